"""An address of an object store is no folder, wherever one is asked for."""

from pathlib import Path

import pytest

from l2w_jax.config import default_config, validate
from l2w_jax.config.paths import local_path
from l2w_jax.errors import UserError

ADDRESSES = ["gs://bucket/runs", "s3://bucket", "hdfs://host:9000/runs", "file:///runs"]


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_is_refused_with_what_to_do(address):
    with pytest.raises(UserError, match=rf"^--workdir={address} is not .*mount.*launch/tpu_pod.sh"):
        local_path(address, "--workdir=")


@pytest.mark.parametrize("path", ["runs/gs", "/data/a:b", "a//b", "gs:/bucket"])
def test_a_path_of_this_machine_is_one(path):
    assert local_path(path) == Path(path)


def test_an_empty_path_is_not_the_current_folder():
    with pytest.raises(UserError, match=r"^--workdir='' is not allowed: must not be empty$"):
        local_path("", "--workdir=")


def test_a_tilde_is_the_home_folder():
    assert local_path("~/runs") == Path.home() / "runs"


def test_the_home_folder_of_nobody_is_refused():
    with pytest.raises(UserError, match=r"^--workdir=~nobody_here/runs is not allowed: there"):
        local_path("~nobody_here/runs", "--workdir=")
    config = default_config()
    config.init.checkpoint = "~nobody_here/run"
    with pytest.raises(UserError, match=r"config\.init\.checkpoint: '~nobody_here/run' is not"):
        validate(config)


@pytest.mark.parametrize("name", ["image_folder", "cifar10", "imagenet2012"])
def test_a_data_set_elsewhere_is_one_fault_whatever_reads_it(name):
    config = default_config()
    config.dataset.update(name=name, data_dir="gs://bucket/data")
    with pytest.raises(UserError, match=r"config\.dataset\.data_dir: 'gs://bucket/data' .*gcsfuse"):
        validate(config)


@pytest.mark.parametrize("field", ["init", "weighting", "imta"])
def test_so_is_an_earlier_run_elsewhere(field):
    config = default_config()
    config[field].checkpoint = "s3://bucket/run"
    with pytest.raises(UserError, match=rf"config\.{field}\.checkpoint: 's3://.*mount-s3"):
        validate(config)

"""The checkpoint that is evaluated is the best one."""

import re

import jax
import numpy as np
import pytest
from scripted_run import metric_lines
from written_runs import made_evaluation

from l2w_jax.arrays import tree_checksum
from l2w_jax.config import default_config
from l2w_jax.errors import UserError
from l2w_jax.evaluation.policy import choose_policy
from l2w_jax.evaluation.results import Evaluation
from l2w_jax.run import restore


def test_the_best_checkpoint_is_the_one_to_evaluate(config, undisturbed):
    workdir, _ = undisturbed
    held_out = {
        line["step"]: line["holdout_top1"][-1]
        for line in metric_lines(workdir)
        if "holdout_top1" in line
    }
    assert set(held_out) == {5, 10, 15, 20}
    best = max(held_out, key=lambda step: (held_out[step], step))
    assert restore.restore_best(config, workdir).step == best
    evaluated = made_evaluation(step=best)
    assert restore.restore_evaluated(config, workdir, evaluated).step == best
    outdated = made_evaluation(step=best - 5)
    with pytest.raises(UserError, match=f"of step {best}, but .* evaluated at step {best - 5}"):
        restore.restore_evaluated(config, workdir, outdated)
    network = tree_checksum(restore.restore_best(config, workdir).variables)
    evaluated = made_evaluation(step=best, network=network)
    assert restore.restore_evaluated(config, workdir, evaluated).step == best
    of_others = made_evaluation(step=best, network="of another training up to this step")
    with pytest.raises(UserError, match=f"best checkpoint is of another network of step {best} "):
        restore.restore_evaluated(config, workdir, of_others)


def test_nothing_is_drawn_for_a_checkpoint_to_take_its_place(config, undisturbed, monkeypatch):
    workdir, _ = undisturbed
    for name in ("default_rng", "random"):
        monkeypatch.delattr(np.random, name)
    assert jax.tree.leaves(restore.restore_best(config, workdir).params)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("model.dtype", "float64", "'float32' or 'bfloat16', unless JAX_ENABLE_X64=1 is set"),
        ("model.step", 0, ">= 1"),
        ("dataset.name", "mnist", "one of 'digits', 'cifar10'"),
        ("dataset.image_size", 10**6, "32 for 'cifar10'"),
    ],
)
def test_an_impossible_configuration_is_told_before_its_network_is_made(
    tmp_path, field, value, told
):
    config = default_config()
    config.dataset.update(name="cifar10", num_classes=10)
    config.update_from_flattened_dict({field: value})
    message = rf"^{tmp_path}: config\.{field}: {value!r} is not allowed: must be {told}"
    with pytest.raises(UserError, match=message):
        restore.restore_best(config, tmp_path)


def test_a_run_may_name_folders_of_another_machine(tmp_path):
    config = default_config()
    config.dataset.update(name="image_folder", data_dir="~somebody-elsewhere/images")
    with pytest.raises(UserError, match="no checkpoint; train first"):
        restore.restore_best(config, tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [("dataset.name", "image_folder"), ("dataset.num_classes", 3), ("model.num_exits", 10**9)],
)
def test_a_configuration_other_than_that_of_the_evaluation_is_refused(tmp_path, field, value):
    config = default_config()
    config.dataset.update(name="digits", num_classes=2)
    config.model.num_exits = 3
    config.update_from_flattened_dict({field: value})
    message = rf"^{tmp_path}: config\.{field}: {value!r} is not allowed: .*of evaluation\.json$"
    with pytest.raises(UserError, match=message):
        restore.restore_evaluated(config, tmp_path, made_evaluation())


def test_without_checkpoints_there_is_nothing_to_evaluate(config, tmp_path):
    with pytest.raises(UserError, match="no checkpoint; train first"):
        restore.restore_best(config, tmp_path)


@pytest.fixture
def predictor(calibrated_run):
    config, workdir = calibrated_run.config, calibrated_run.workdir
    evaluation = Evaluation.load(workdir)
    policy = choose_policy(workdir, None, evaluation)
    return restore.restore_predictor(config, workdir, evaluation, policy)


def test_a_restored_predictor_takes_stored_images_of_the_runs_size_and_no_others(
    predictor, calibrated_run
):
    images = calibrated_run.splits["test"].images
    expected = calibrated_run.decisions("test")
    np.testing.assert_array_equal(predictor(images).labels, expected.labels)
    for others, told in ((images / 255, "float64 [90, 8, 8, 3]"), (images[:, :7], "uint8 [90, 7")):
        message = rf"^images are {re.escape(told)}.*; uint8 \[N, 8, 8, 3\] is expected$"
        with pytest.raises(ValueError, match=message):
            predictor(others)

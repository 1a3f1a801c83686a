"""A run goes on with the images that it began with, and is judged by none of them."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from flax import struct
from image_folders import COLOURS, folder_config, write_split

from l2w_jax.data import open_source
from l2w_jax.errors import UserError
from l2w_jax.run import checkpoints, images

STEP = 5


@pytest.fixture
def folder(tmp_path):
    write_split(tmp_path / "data" / "train", 10, seed=0)
    return tmp_path / "data"


@pytest.fixture
def workdir(tmp_path):
    return tmp_path / "run"


@struct.dataclass
class State:
    step: np.ndarray


def trained(folder, workdir, **fields):
    """Leaves a checkpoint of a run on a folder; what opens the folder as it is later."""

    def reopened():
        return open_source(folder_config(folder, augmentation="none", **fields))

    writer = checkpoints.CheckpointWriter(workdir, 1, images.identity(reopened()))
    writer.save(State(np.int32(STEP)))
    writer.close()
    return reopened


def rename_one(folder):
    (folder / "train" / "blue" / "00.jpg").rename(folder / "train" / "blue" / "zz.jpg")


def replace_one_of_another_class(folder):
    (folder / "train" / "blue" / "00.jpg").rename(folder / "train" / "red" / "zz.jpg")


def add_one(folder):
    shutil.copy(folder / "train" / "red" / "00.jpg", folder / "train" / "blue" / "zz.jpg")


@pytest.mark.parametrize("change", [rename_one, replace_one_of_another_class, add_one])
def test_a_changed_folder_is_not_trained_on_and_does_not_judge(change, folder, workdir):
    reopened = trained(folder, workdir)
    change(folder)
    with pytest.raises(UserError, match=rf"up to step {STEP}, but split 'train' has \d+"):
        images.check_to_train_on(reopened(), workdir, STEP)
    with pytest.raises(UserError, match="'holdout' and 'test', cut from the same folder, may hold"):
        images.check_to_judge_by(reopened(), workdir, STEP)
    # A new run may have any images.
    images.check_to_train_on(reopened(), workdir, 0)


def test_a_folder_that_moved_is_the_same(folder, workdir, tmp_path):
    trained(folder, workdir)
    moved = shutil.copytree(folder, tmp_path / "elsewhere" / "data")
    source = open_source(folder_config(moved, augmentation="none"))
    images.check_to_train_on(source, workdir, STEP)
    images.check_to_judge_by(source, workdir, STEP)


def test_images_of_their_own_judge_whatever_becomes_of_those_trained_on(folder, workdir):
    for split in ("val", "test"):
        write_split(folder / split, 3, seed=50)
    reopened = trained(folder, workdir)
    add_one(folder)
    images.check_to_judge_by(reopened(), workdir, STEP)
    with pytest.raises(UserError, match="has 31 now"):
        images.check_to_train_on(reopened(), workdir, STEP)
    shutil.rmtree(folder / "train")
    images.check_to_judge_by(reopened(), workdir, STEP)


def test_checkpoints_that_say_less_are_taken_at_their_word(workdir):
    writer = checkpoints.CheckpointWriter(workdir, 1, {"num_train": 30})
    writer.save(State(np.int32(STEP)))
    writer.close()
    origins = dict.fromkeys(("train", "holdout", "test"), "cut from train")
    source = SimpleNamespace(num_train=30, train_digest="of them", origins=origins)
    images.check_to_train_on(source, workdir, STEP)
    images.check_to_judge_by(source, workdir, STEP)
    source.num_train = 31
    with pytest.raises(UserError, match=r"trained on 30 images up to step 5, .* has 31 now"):
        images.check_to_train_on(source, workdir, STEP)


@pytest.mark.parametrize("augmentation", ["none", "resized_crop"])
def test_images_on_disk_and_in_memory_are_told_apart_alike(folder, augmentation):
    config = folder_config(folder, augmentation=augmentation)
    before = open_source(config).train_digest
    assert open_source(config).train_digest == before
    assert len(COLOURS) == config.dataset.num_classes
    rename_one(folder)
    assert open_source(config).train_digest != before

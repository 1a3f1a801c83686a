"""A run goes on with the images that it began with, and is judged by none of them."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from flax import struct
from image_folders import COLOURS, folder_config, write_split
from unreadable_files import let_reads_fail
from written_runs import made_evaluation

from l2w_jax.config import to_json
from l2w_jax.data import open_source
from l2w_jax.data.source import Origin
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
    with pytest.raises(UserError, match=rf"up to step {STEP}, but split 'train' now has \d+"):
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
    with pytest.raises(UserError, match="now has 31;"):
        images.check_to_train_on(reopened(), workdir, STEP)
    shutil.rmtree(folder / "train")
    images.check_to_judge_by(reopened(), workdir, STEP)


@pytest.mark.parametrize("new_name", ["toad", "aaa"])
def test_a_network_is_not_given_other_classes_than_it_was_trained_on(new_name, folder, workdir):
    for split in ("val", "test"):
        write_split(folder / split, 3, seed=50)
    reopened = trained(folder, workdir)
    for split in ("train", "val", "test"):
        (folder / split / "green").rename(folder / split / new_name)
    for check in (images.check_to_train_on, images.check_to_judge_by):
        with pytest.raises(UserError, match=f"this data set lacks 'green' and has '{new_name}'; "):
            check(reopened(), workdir, STEP)
    # A new run may have any classes.
    images.check_to_train_on(reopened(), workdir, 0)


def test_the_classes_of_a_run_are_known_from_its_checkpoints(workdir):
    assert images.known_classes(workdir) is None
    for step, identity in ((1, {}), (2, {"class_names": ["cat", "dog"]})):
        writer = checkpoints.CheckpointWriter(workdir, 2, identity)
        writer.save(State(np.int32(step)))
        writer.close()
        assert images.known_classes(workdir) == identity.get("class_names")
    # One that cannot be read now ends the run where its state is asked for, not here.
    let_reads_fail(workdir / "checkpoints" / "1" / "record" / "metadata")
    assert images.known_classes(workdir) == ["cat", "dog"]


def test_images_of_another_folder_are_not_those_that_a_run_was_evaluated_with(folder, workdir):
    source = open_source(folder_config(folder, augmentation="none"))
    evaluation = made_evaluation(digests=dict(source.digests))
    add_one(folder)
    changed = open_source(folder_config(folder, augmentation="none"))
    splits = ("train", "holdout", "test")
    images.check_evaluated(source, workdir, evaluation, splits)
    with pytest.raises(UserError, match=f"{workdir}: its last evaluation used other images of spl"):
        images.check_evaluated(changed, workdir, evaluation, splits)
    # Evaluations of earlier versions do not say, and other data sets are always the same.
    images.check_evaluated(changed, workdir, made_evaluation(), splits)


def test_checkpoints_that_say_less_are_taken_at_their_word(workdir):
    writer = checkpoints.CheckpointWriter(workdir, 1, {"num_train": 30})
    writer.save(State(np.int32(STEP)))
    writer.close()
    origins = dict.fromkeys(("train", "holdout", "test"), Origin("train", is_cut=True))
    source = SimpleNamespace(
        num_train=30, digests={"train": "of them"}, origins=origins, class_names=("any", "name")
    )
    images.check_to_train_on(source, workdir, STEP)
    images.check_to_judge_by(source, workdir, STEP)
    source.num_train = 31
    with pytest.raises(UserError, match=r"trained on 30 images up to step 5, .* now has 31;"):
        images.check_to_train_on(source, workdir, STEP)


@pytest.mark.parametrize("augmentation", ["none", "resized_crop"])
def test_images_on_disk_and_in_memory_are_told_apart_alike(folder, augmentation):
    config = folder_config(folder, augmentation=augmentation)
    before = open_source(config).digests
    assert open_source(config).digests == before
    assert set(before) == {"train", "holdout", "test"}
    assert len(COLOURS) == config.dataset.num_classes
    rename_one(folder)
    assert open_source(config).digests["train"] != before["train"]


def test_a_folder_is_the_same_however_its_path_is_spelled(folder, monkeypatch):
    before = open_source(folder_config(folder, augmentation="none")).digests
    monkeypatch.chdir(folder)
    for spelling in (".", "./", f"../{folder.name}/"):
        assert open_source(folder_config(spelling, augmentation="none")).digests == before


def test_as_many_images_are_others_where_another_one_cannot_be_read(folder, workdir):
    def spoil(path):
        content = path.read_bytes()
        path.write_bytes(b"no image")
        return content

    splits = {"val": 3, "test": 3}
    for split, per_class in splits.items():
        write_split(folder / split, per_class, seed=50)
    first, second = folder / "train" / "blue" / "00.jpg", folder / "train" / "red" / "09.jpg"
    content = spoil(first)
    reopened = trained(folder, workdir, max_bad_share=0.1)
    images.check_to_train_on(reopened(), workdir, STEP)
    first.write_bytes(content)
    spoil(second)
    with pytest.raises(UserError, match="now has 29 other ones"):
        images.check_to_train_on(reopened(), workdir, STEP)


@pytest.mark.parametrize("field", ["init", "imta"])
def test_a_run_that_starts_from_another_is_told_of_images_that_this_one_has_seen(
    field, folder, workdir, tmp_path, monkeypatch
):
    def told(data=folder, earlier=workdir, **fields):
        config = folder_config(data, augmentation="none", **fields)
        config[field].checkpoint = str(earlier)
        return images.seen_by_earlier_runs(config, open_source(config))

    trained(folder, workdir)
    (workdir / "config.json").write_text(to_json(folder_config(folder, augmentation="none")))
    assert told() == []
    monkeypatch.setenv("HOME", str(tmp_path))
    (line,) = told("~/data/../data", "~/run", holdout=9)
    for part in (f"config.{field}.checkpoint: ~/run", "'holdout' and 'test' may hold some"):
        assert part in line
    another_set = shutil.copytree(folder, tmp_path / "another")
    add_one(folder)
    assert len(told()) == 1
    add_one(another_set)
    assert told(another_set) == []
    for split in ("val", "test"):
        write_split(folder / split, 3, seed=50)
    assert told() == []


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_processes_tell_the_images_of_every_split_from_others(split, folder, monkeypatch):
    for other in ("val", "test"):
        write_split(folder / other, 3, seed=50)
    told = []
    monkeypatch.setattr(images.processes, "of_all", lambda own: told.append(own) or [own])
    images.check_alike_in_all_processes(open_source(folder_config(folder)))
    images.check_alike_in_all_processes(open_source(folder_config(folder)))
    (folder / split / "blue" / "00.jpg").rename(folder / split / "blue" / "zz.jpg")
    images.check_alike_in_all_processes(open_source(folder_config(folder)))
    assert told[0] == told[1] != told[2]

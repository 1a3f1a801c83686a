"""Folders as people lay them out: which becomes which split, and what is told of the rest."""

import itertools
import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from image_folders import COLOURS, everything, folder_config, photo, write_split
from PIL import Image

from l2w_jax.data import image_folder, open_source
from l2w_jax.errors import UserError


def counts(source) -> tuple[int, int, int]:
    return source.num_train, source.num_holdout, source.num_test


@pytest.fixture
def folder(tmp_path):
    write_split(tmp_path / "train", 10, 0)
    return tmp_path


LAYOUTS = {
    "train": (
        (18, 6, 6),
        "train: train/ (18 images), holdout: cut from train/ (6 images), "
        "test: cut from train/ (6 images)",
    ),
    "train test": (
        (24, 6, 12),
        "train: train/ (24 images), holdout: cut from train/ (6 images), test: test/ (12 images)",
    ),
    "train val": (
        (24, 6, 12),
        "train: train/ (24 images), holdout: cut from train/ (6 images), test: val/ (12 images)",
    ),
    "train val test": (
        (30, 12, 12),
        "train: train/ (30 images), holdout: val/ (12 images), test: test/ (12 images)",
    ),
    "test": ((0, 0, 12), "train: none, holdout: none, test: test/ (12 images)"),
    "val": ((0, 0, 12), "train: none, holdout: none, test: val/ (12 images)"),
    "val test": ((0, 12, 12), "train: none, holdout: val/ (12 images), test: test/ (12 images)"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_folders_become_splits(tmp_path, layout):
    for split in layout.split():
        write_split(tmp_path / split, 10 if split == "train" else 4, 0)
    source = open_source(folder_config(tmp_path))
    expected, told = LAYOUTS[layout]
    assert counts(source) == expected
    assert ", ".join(f"{split}: {origin}" for split, origin in source.origins.items()) == told
    assert source.class_names == ("blue", "green", "red")


@pytest.mark.parametrize("name", ["valid", "validation", "Val", "VALIDATION"])
def test_val_has_several_names(folder, name):
    write_split(folder / name, 4, 9000)
    (folder / "train").rename(folder / "Train")
    source = open_source(folder_config(folder))
    assert counts(source) == (24, 6, 12)
    assert str(source.origins["train"]) == "Train/ (24 images)"
    assert str(source.origins["test"]) == f"{name}/ (12 images)"


@pytest.mark.parametrize("augmentation", ["resized_crop", "crop"])
def test_test_images_alone_can_be_evaluated_on(tmp_path, augmentation):
    write_split(tmp_path / "val", 4, 0)
    source = open_source(folder_config(tmp_path, augmentation=augmentation))
    seen = everything(source, "test")
    np.testing.assert_array_equal(seen["image"].mean(axis=(1, 2)).argmax(axis=1), 2 - seen["label"])
    assert list(source.evaluation_batches("holdout", 4)) == []
    np.testing.assert_array_equal(source.train_class_counts, [0, 0, 0])


@pytest.mark.parametrize("absent", COLOURS)
@pytest.mark.parametrize("augmentation", ["resized_crop", "crop"])
def test_without_training_images_the_known_classes_number_those_at_hand(
    augmentation, absent, tmp_path, caplog
):
    write_split(tmp_path / "test", 4, 0)
    config = folder_config(tmp_path, augmentation=augmentation)
    whole = everything(open_source(config), "test")
    shutil.rmtree(tmp_path / "test" / absent)
    source = open_source(config, ("blue", "green", "red"))
    assert source.class_names == ("blue", "green", "red")
    others = whole["label"] != source.class_names.index(absent)
    for part in ("image", "label"):
        np.testing.assert_array_equal(everything(source, "test")[part], whole[part][others])
    assert f"classes without an image to test on: '{absent}'" in caplog.text


def test_known_classes_keep_their_order_and_need_not_be_utf8(tmp_path):
    write_split(tmp_path / "test", 4, 0)
    green = os.fsencode(tmp_path) + b"/test/gr\xfcn"
    os.rename(tmp_path / "test" / "green", green)
    names = ("red", "gr\ufffdn", "blue")
    source = open_source(folder_config(tmp_path), names)
    assert source.class_names == names
    seen = everything(source, "test")
    np.testing.assert_array_equal(seen["image"].mean(axis=(1, 2)).argmax(axis=1), seen["label"])


def test_without_training_images_other_classes_than_the_known_are_refused_in_one_line(tmp_path):
    write_split(tmp_path / "test", 4, 0)
    for name in ("green", "red"):
        (tmp_path / "test" / name).rename(tmp_path / "test" / f"{name}ish")
    message = r"'greenish', 'redish': not among the classes trained on, 'blue', 'green', 'red'; "
    with pytest.raises(UserError, match=message) as raised:
        open_source(folder_config(tmp_path), ("blue", "green", "red"))
    assert "\n" not in str(raised.value)


def test_training_images_number_the_classes_whatever_is_known(folder):
    source = open_source(folder_config(folder), ("other", "names", "known"))
    assert source.class_names == ("blue", "green", "red")


def test_folders_that_play_no_part_are_named_once(folder, caplog):
    for name in ("extra", "Testing"):
        (folder / name).mkdir()
    (folder / ".cache").mkdir()
    (folder / "labels.csv").touch()
    open_source(folder_config(folder))
    (record,) = caplog.records
    assert "folders that play no part: 'Testing', 'extra'" in record.getMessage()


def test_what_is_skipped_is_counted_in_one_line(folder, caplog):
    (folder / "train" / "red" / "notes.txt").touch()
    (folder / "train" / "blue" / "deep").mkdir()
    (folder / "train" / "blue" / "deep" / "more.txt").touch()
    photo(0, 9, 9).save(folder / "train" / "stray.png")
    open_source(folder_config(folder))
    (record,) = caplog.records
    assert "2 .txt, 1 .png outside of class folders" in record.getMessage()


def test_images_in_folders_within_a_class_and_behind_links_count(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    photo(0, 40, 40, COLOURS["red"]).save(elsewhere / "linked.webp")
    (folder / "train" / "red" / "a" / "b").mkdir(parents=True)
    (folder / "train" / "red" / "a" / "b" / "link").symlink_to(elsewhere)
    found = image_folder.list_images(folder)
    names = [Path(path.decode()).name for path in found.splits["train"].paths]
    assert len(names) == 31
    label = found.splits["train"].labels[names.index("linked.webp")]
    assert found.class_names[label] == "red"


def test_every_class_keeps_an_image_to_train_on_and_the_untested_are_named(folder, caplog):
    for name, count in (("one", 1), ("two", 2)):
        (folder / "train" / name).mkdir()
        for i in range(count):
            photo(count + i, 40, 40).save(folder / "train" / name / f"{i}.png")
    source = open_source(folder_config(folder, num_classes=5, holdout=15, batch_size=4))
    assert source.class_names == ("blue", "green", "one", "red", "two")
    assert (source.train_class_counts >= 1).all()
    assert sum(counts(source)) == 33
    (record,) = caplog.records
    assert "classes without an image to test on: 'one'" in record.getMessage()


def test_more_held_out_images_than_leave_one_of_each_class_are_refused(folder):
    write_split(folder / "test", 1, 0)
    assert open_source(folder_config(folder, holdout=22)).num_train == 8
    with pytest.raises(UserError, match=r"holdout: 28 .* must be less than 28, to leave"):
        open_source(folder_config(folder, holdout=28))


def test_a_class_folder_alone_is_one_level_too_high_most_likely(tmp_path):
    write_split(tmp_path / "train" / "images", 2, 0)
    message = rf"{tmp_path}/train: one class folder, 'images': must hold two or more \(are the "
    with pytest.raises(UserError, match=message + r"classes one level deeper\?\)"):
        open_source(folder_config(tmp_path))


def test_one_image_of_each_class_can_be_trained_on_but_not_cut(tmp_path):
    write_split(tmp_path / "train", 1, 0)
    config = folder_config(tmp_path, batch_size=2)
    with pytest.raises(UserError, match=r"train: one image of each class, of which none .* test/"):
        open_source(config)
    write_split(tmp_path / "test", 1, 9000)
    with pytest.raises(UserError, match=r"holdout: 6 .* must be 0, with .*thresholds_from 'train'"):
        open_source(config)
    config.dataset.update(holdout=0, thresholds_from="train")
    assert counts(open_source(config)) == (3, 0, 3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_held_out_images_must_be_cut_only_where_the_folder_brings_none(tmp_path, layout):
    for split in layout.split():
        write_split(tmp_path / split, 4, 0)
    config = folder_config(tmp_path, holdout=0)
    if layout in ("train", "train test", "train val"):
        with pytest.raises(UserError, match=r"holdout: 0 .* and .* has no val/ beside a test/"):
            open_source(config)
        config.dataset.thresholds_from = "train"
    assert open_source(config).num_holdout == (12 if "val test" in layout else 0)


def test_names_that_are_composed_differently_are_one_class(folder):
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    write_split(folder / "val", 4, 9000)
    (folder / "train" / "blue").rename(folder / "train" / composed)
    (folder / "val" / "blue").rename(folder / "val" / decomposed)
    source = open_source(folder_config(folder))
    assert source.class_names == (composed, "green", "red")
    assert sorted(np.bincount(everything(source, "test")["label"])) == [4, 4, 4]
    (folder / "train" / decomposed).mkdir()
    photo(0, 40, 40).save(folder / "train" / decomposed / "another.png")
    assert sum(counts(open_source(folder_config(folder)))) == 30 + 1 + 12


def test_transparent_pixels_are_white_in_training_too(folder):
    for path in folder.glob("train/*/*"):
        path.unlink()
    for name, i in itertools.product(COLOURS, range(10)):
        Image.new("RGBA", (40, 40), (0, 0, 0, 0)).save(folder / "train" / name / f"{i}.webp")
    for augmentation in ("resized_crop", "none"):
        source = open_source(folder_config(folder, augmentation=augmentation))
        assert (next(source.train_batches(0))["image"] == 255).all()
        assert (everything(source, "test")["image"] == 255).all()

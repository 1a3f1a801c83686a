"""Images on which a network is both trained and judged are told, at little reading."""

import logging
import os
import re
import shutil

import numpy as np
import pytest
from image_folders import folder_config, write_split

from l2w_jax import progress
from l2w_jax.data import copies, image_folder, open_source


@pytest.fixture
def folder(tmp_path):
    write_split(tmp_path / "train", 6, 0)
    return tmp_path


def copy_all(source, target, prefix):
    for path in sorted(source.glob("*/*")):
        (target / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / path.parent.name / f"{prefix}{path.name}")


def line_of(folder, **fields):
    """What is said of a folder."""
    config = folder_config(folder, **fields)
    found = image_folder.list_images(folder)
    return copies.copies_line(image_folder.complete_splits(config, found).images, folder)


@pytest.mark.parametrize("augmentation", ["resized_crop", "crop"])
def test_copies_on_both_sides_of_a_cut_are_one_line_and_the_cut_stays(folder, augmentation, caplog):
    for prefix in "abc":
        copy_all(folder / "train", folder / "train", prefix)
    # All copies of the originals and of the copies: 8 of each image.
    source = open_source(folder_config(folder, holdout=12, augmentation=augmentation))
    (message,) = caplog.messages
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    test, held_out = source.num_test, source.num_holdout
    assert (source.num_train + held_out + test, held_out) == (3 * 6 * 8, 12)
    assert f"12 of 12 held-out images and {test} of {test} test images are copies" in message
    one, other = re.search("such as '(.*)' of '(.*)': the network is trained", message).groups()
    assert one != other and (folder / one).read_bytes() == (folder / other).read_bytes()


def test_a_search_that_takes_minutes_says_how_far_it_is(folder, monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    monkeypatch.setattr(copies, "_IN_A_PART", 1)
    paths = [os.fsencode(path) for path in sorted(folder.glob("train/*/*"))]
    assert len(copies.find_copies(paths, paths)) == 18
    lines = capsys.readouterr().err.splitlines()
    expected = [f"looking for copies: {count} of 18 images" for count in range(1, 19)]
    # At each look of the judged and of the trained.
    assert lines == 3 * 2 * expected


def test_copies_in_folders_of_their_own_are_told_too(folder):
    write_split(folder / "val", 2, 4000)
    write_split(folder / "test", 2, 5000)
    assert line_of(folder) == ""
    shutil.copyfile(folder / "train" / "red" / "03.jpg", folder / "test" / "blue" / "new.JPG")
    line = line_of(folder)
    assert line.startswith(f"{folder}: 1 of 7 test images are copies of training images, such as ")
    assert "such as 'test/blue/new.JPG' of 'train/red/03.jpg': " in line


def test_equal_sizes_and_ends_make_no_copy_and_nor_do_files_without_content(tmp_path):
    def written(name, content):
        (tmp_path / name).write_bytes(content)
        return os.fsencode(tmp_path / name)

    body = bytes(10_000)
    judged, equal = written("judged", b"a" + body), written("equal", b"a" + body)
    other, cut = written("other", b"b" + body), written("cut", body)
    empty, also_empty = written("empty", b""), written("also_empty", b"")
    nowhere = os.fsencode(tmp_path / "nowhere")
    assert copies.find_copies([judged, empty], [other, cut, also_empty, nowhere]) == {}
    assert copies.find_copies([nowhere, judged], [nowhere, other, equal]) == {judged: equal}
    assert copies.find_copies([], [equal]) == copies.find_copies([equal], []) == {}


def test_only_files_of_equal_size_are_opened_and_only_copies_are_read(folder, monkeypatch):
    looks = []
    tail, content = copies._tail, copies._content
    monkeypatch.setattr(copies, "_tail", lambda path: looks.append("tail") or tail(path))
    monkeypatch.setattr(copies, "_content", lambda path: looks.append("content") or content(path))
    copy_all(folder / "train", folder / "test", "copy_")
    for path in (folder / "train" / "red").iterdir():
        path.write_bytes(path.read_bytes() + bytes(5000))
    same_size = folder / "train" / "blue" / "00.jpg"
    same_size.write_bytes(same_size.read_bytes()[::-1])
    assert "11 of 18 test images are copies" in line_of(folder, holdout=0)
    assert (looks.count("tail"), looks.count("content")) == (24, 22)


def test_of_many_images_some_from_all_over_are_looked_at(folder, monkeypatch):
    copy_all(folder / "train", folder / "test", "")
    monkeypatch.setattr(copies, "MOST_LOOKED_AT", 3)
    assert "3 of 3 test images looked at are copies" in line_of(folder, holdout=0)
    for path in (folder / "test").glob("[br]*/*"):
        path.write_bytes(path.read_bytes() + b"0")
    line = line_of(folder, holdout=0)
    assert "1 of 3 test images looked at are copies" in line and "'test/green/" in line


def test_of_files_of_one_size_not_all_are_opened(tmp_path, monkeypatch):
    paths = [os.fsencode(tmp_path / f"{place}.bmp") for place in range(9)]
    for path in paths:
        with open(path, "wb") as file:
            file.write(b"all alike")
    monkeypatch.setattr(copies, "_MOST_OPENED", 3)
    looks = []
    tail = copies._tail
    monkeypatch.setattr(copies, "_tail", lambda path: looks.append(path) or tail(path))
    assert copies.find_copies(paths[:1], paths[1:]) == {paths[0]: paths[1]}
    assert sorted(looks) == [paths[0], paths[1], paths[4], paths[8]]


def test_a_folder_without_images_to_train_on_holds_no_copies(tmp_path):
    write_split(tmp_path / "test", 2, 0)
    assert line_of(tmp_path) == ""


def test_the_example_is_the_same_in_every_process(folder):
    """It is found by many threads."""
    copy_all(folder / "train", folder / "test", "copy_")
    assert len({line_of(folder) for _ in range(5)}) == 1
    judged, trained = (
        np.array(sorted(map(os.fsencode, (folder / split).glob("*/*"))))
        for split in ("test", "train")
    )
    assert list(copies.find_copies(judged, trained).values()) == list(trained)

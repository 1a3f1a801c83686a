"""Images that cannot be used are named once and counted, and the run goes on without them."""

import itertools
import os
import struct
import zlib

import numpy as np
import pytest
from image_folders import everything, folder_config, photo

from l2w_jax.data import open_source
from l2w_jax.errors import UserError


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_a_broken_training_image_is_replaced_named_once_and_counted(folder, content, caplog):
    broken = folder / "train" / "red" / "00.jpg"
    photo(1, 300, 300).save(broken)
    broken.write_bytes(broken.read_bytes()[:300] if content is None else content)
    config = folder_config(folder, holdout=0, thresholds_from="train", max_bad_share=0.05)
    source = open_source(config)
    batches = list(itertools.islice(source.train_batches(0), 9))  # three epochs
    assert source.num_bad == 1
    assert sum(str(broken) in record.getMessage() for record in caplog.records) == 1
    for batch in batches:
        np.testing.assert_array_equal(
            batch["image"].mean(axis=(1, 2)).argmax(axis=1), 2 - batch["label"]
        )
    resumed = next(open_source(config).train_batches(8))
    np.testing.assert_array_equal(resumed["image"], batches[8]["image"])


def test_a_broken_test_image_is_masked(folder, caplog):
    (folder / "test" / "green" / "00.jpg").write_bytes(b"no image")
    source = open_source(folder_config(folder, max_bad_share=0.05))
    index = everything(source, "test")["index"]
    assert sorted(index) == [i for i in range(12) if i != 4]
    everything(source, "test")
    assert source.num_bad == 1
    assert len(caplog.records) == 1


def huge_png(folder):
    header = b"IHDR" + struct.pack(">IIBBBBB", 10_000, 9_000, 8, 2, 0, 0, 0)
    file = b"\x89PNG\r\n\x1a\n\0\0\0\x0d" + header + struct.pack(">I", zlib.crc32(header))
    (folder / "test" / "green" / "00.jpg").write_bytes(file + b"\0\0\0\0IDAT")


def large_jpeg(folder):
    photo(1, 300, 300).save(folder / "test" / "green" / "00.jpg")


@pytest.mark.parametrize("augmentation", ["resized_crop", "crop"])
@pytest.mark.parametrize(
    ("write", "max_pixels", "size"),
    [(huge_png, 89_478_485, "10000 x 9000"), (large_jpeg, 89_999, "300 x 300")],
)
def test_an_image_too_large_is_named_and_skipped(
    folder, augmentation, write, max_pixels, size, caplog
):
    write(folder)
    config = folder_config(
        folder, augmentation=augmentation, max_bad_share=0.05, max_pixels=max_pixels
    )
    source = open_source(config)
    assert len(everything(source, "test")["index"]) == 11
    assert source.num_bad == 1
    message = f"{folder}/test/green/00.jpg: {size} pixels are more than config.dataset.max_pixels"
    assert message in caplog.text
    config.dataset.max_pixels = 90_000 if write is large_jpeg else max_pixels
    assert len(everything(open_source(config), "test")["index"]) == 12 - (write is huge_png)


@pytest.mark.parametrize("augmentation", ["resized_crop", "crop"])
def test_a_jpeg_without_its_last_bytes_is_used_and_counted(folder, augmentation, caplog):
    path = folder / "test" / "green" / "00.jpg"
    photo(1, 200, 90).save(path, progressive=True)
    whole = everything(open_source(folder_config(folder, augmentation=augmentation)), "test")
    path.write_bytes(path.read_bytes()[:-2])
    source = open_source(folder_config(folder, augmentation=augmentation))
    np.testing.assert_array_equal(everything(source, "test")["image"], whole["image"])
    assert source.num_bad == 0
    assert f"used although its last bytes are missing: {path} (1 so far)" in caplog.text


def test_a_broken_image_is_left_out_of_a_folder_in_memory(folder, caplog):
    (folder / "test" / "green" / "00.jpg").write_bytes(b"no image")
    source = open_source(folder_config(folder, augmentation="crop", max_bad_share=0.05))
    assert (source.num_test, source.num_bad) == (11, 1)
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ("train/red/*", "split 'train': no image can be read of: 'red'"),
        ("test/*/*", "split 'test': no image can be read of: 'blue', 'green', 'red'"),
    ],
)
def test_a_folder_in_memory_loses_no_class_and_no_split(files, message, folder):
    for path in folder.glob(files):
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match=message):
        open_source(
            folder_config(
                folder, holdout=0, thresholds_from="train", augmentation="crop", max_bad_share=0.9
            )
        )


def test_a_name_with_a_line_break_is_told_in_one_line(folder, caplog):
    (folder / "train" / "red" / "two\nlines.jpg").write_bytes(b"no image")
    open_source(folder_config(folder, augmentation="crop", max_bad_share=0.05))
    (message,) = caplog.messages
    assert len(message.splitlines()) == 1
    assert r"two\nlines.jpg" in message


def test_neither_name_nor_reason_moves_a_cursor(folder, caplog):
    (folder / "train" / "red" / "a\x1b[2J.jpg").symlink_to("nowhere.jpg")
    open_source(folder_config(folder, augmentation="crop", max_bad_share=0.05))
    (message,) = caplog.messages
    assert message.isprintable()
    assert r"a\x1b[2J.jpg" in message


def test_a_link_to_nowhere_is_told_as_one_whatever_its_name(folder, caplog):
    (folder / "train" / "red" / os.fsdecode(b"\xfc.jpg")).symlink_to("nowhere.jpg")
    open_source(folder_config(folder, augmentation="crop", max_bad_share=0.05))
    (message,) = caplog.messages
    assert message.endswith("/\ufffd.jpg: cannot be read: No such file or directory")


def test_too_many_broken_images_stop_with_one_line(folder):
    for path in (folder / "train" / "red").iterdir():
        path.write_bytes(b"no image")
    config = folder_config(folder, holdout=0, thresholds_from="train", max_bad_share=0.05)
    with pytest.raises(
        UserError, match=r"at least 4 of 42 images cannot be read, more than"
    ) as raised:
        list(itertools.islice(open_source(config).train_batches(0), 9))
    assert "\n" not in str(raised.value)


def test_a_folder_without_a_readable_image_ends_too(folder):
    for path in folder.glob("train/*/*"):
        path.write_bytes(b"no image")
    config = folder_config(folder, holdout=0, thresholds_from="train", max_bad_share=0.999)
    with pytest.raises(UserError, match="none of the 30 images of split 'train' can be read"):
        next(open_source(config).train_batches(0))

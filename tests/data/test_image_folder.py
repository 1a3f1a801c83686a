"""Folders of images: odd images become right pixels, absent splits are cut, bad data are named."""

import itertools
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from image_folders import (
    BLUE,
    COLOURS,
    GREEN,
    RED,
    SIZE,
    WHITE,
    everything,
    folder_config,
    photo,
    refuse_folder,
    write_split,
)
from PIL import Image

from l2w_jax import progress
from l2w_jax.data import image_folder, open_source
from l2w_jax.errors import UserError


@pytest.mark.parametrize("augmentation", ["resized_crop", "crop"])
def test_every_image_of_a_folder_has_its_class(folder, augmentation):
    source = open_source(folder_config(folder, augmentation=augmentation))
    assert source.class_names == ("blue", "green", "red")
    assert (source.num_train, source.num_holdout, source.num_test) == (24, 6, 12)
    np.testing.assert_array_equal(source.train_class_counts, [8, 8, 8])
    for split in ("train", "holdout", "test"):
        of_split = everything(source, split)
        assert sorted(of_split["index"]) == list(range(len(of_split["index"])))
        brightest = of_split["image"].mean(axis=(1, 2)).argmax(axis=1)
        np.testing.assert_array_equal(brightest, 2 - of_split["label"])  # blue, green, red
    batch = next(source.train_batches(0))
    assert batch["image"].shape == (8, SIZE, SIZE, 3)
    assert batch["image"].dtype == np.uint8
    np.testing.assert_array_equal(
        batch["image"].mean(axis=(1, 2)).argmax(axis=1), 2 - batch["label"]
    )


def test_streamed_batches_are_the_same_on_resume_and_for_any_number_of_processes(folder):
    config = folder_config(folder)
    whole = list(itertools.islice(open_source(config).train_batches(0), 7))
    for process_count in (1, 2, 4):
        parts = [
            list(itertools.islice(open_source(config).train_batches(2, p, process_count), 5))
            for p in range(process_count)
        ]
        for step, batch in enumerate(whole[2:]):
            for key in ("image", "label"):
                joined = np.concatenate([of_process[step][key] for of_process in parts])
                np.testing.assert_array_equal(joined, batch[key])


def test_streamed_evaluation_over_processes_sees_every_image_once(folder):
    source = open_source(folder_config(folder))
    alone = everything(source, "test")
    parts = [list(source.evaluation_batches("test", 5, p, 3)) for p in range(3)]
    assert len({len(of_process) for of_process in parts}) == 1
    index = np.concatenate([b["index"][b["mask"]] for b in itertools.chain(*parts)])
    assert sorted(index) == list(range(12))
    for batch in itertools.chain(*parts):
        for image, position in zip(
            batch["image"][batch["mask"]], batch["index"][batch["mask"]], strict=True
        ):
            np.testing.assert_array_equal(image, alone["image"][position])


def test_absent_splits_are_cut_from_the_training_images_the_same_every_time(tmp_path):
    write_split(tmp_path / "train", 10, 0)
    config = folder_config(tmp_path)
    found = image_folder.list_images(tmp_path)
    first, second = (image_folder.complete_splits(config, found).images for _ in range(2))
    assert [len(first[split]) for split in ("train", "holdout", "test")] == [18, 6, 6]
    paths = np.concatenate([first[split].paths for split in first])
    assert sorted(paths) == sorted(found.splits["train"].paths)
    for split in first:
        np.testing.assert_array_equal(first[split].paths, second[split].paths)
        assert set(first[split].labels) == {0, 1, 2}


@pytest.mark.parametrize("augmentation", ["resized_crop", "crop"])
def test_names_need_not_be_utf8(augmentation, folder, caplog):
    green = os.fsencode(folder) + b"/%s/gr\xfcn"
    for split in (b"train", b"test"):
        os.rename(folder / os.fsdecode(split) / "green", green % split)
    os.rename(green % b"train" + b"/00.jpg", green % b"train" + b"/\xfc.jpg")
    expected = everything(open_source(folder_config(folder, augmentation=augmentation)), "train")
    assert len(expected["label"]) == 24
    Path(os.fsdecode(green % b"train" + b"/\xfc.jpg")).write_bytes(b"no picture")
    config = folder_config(
        folder, augmentation=augmentation, holdout=0, thresholds_from="train", max_bad_share=0.1
    )
    source = open_source(config)
    assert source.class_names == ("blue", "gr\ufffdn", "red")
    assert len(everything(source, "train")["label"]) == 29
    assert f"{folder}/train/gr\ufffdn/\ufffd.jpg" in caplog.text


@pytest.mark.parametrize("augmentation", ["resized_crop", "crop"])
def test_nothing_need_be_held_out(folder, augmentation):
    source = open_source(
        folder_config(folder, augmentation=augmentation, holdout=0, thresholds_from="train")
    )
    assert (source.num_train, source.num_holdout) == (30, 0)
    assert list(source.evaluation_batches("holdout", 5)) == []


def replace_test_images(folder, write) -> None:
    """Has `write(red_folder)` make class "red" of "test"."""
    for path in (folder / "test" / "red").iterdir():
        path.unlink()
    write(folder / "test" / "red")


def red_test_images(source) -> np.ndarray:
    of_split = everything(source, "test")
    return of_split["image"][of_split["label"] == source.class_names.index("red")]


ODD_IMAGES = {
    "grey.jpg": photo(1, 48, 48).convert("L"),
    "grey.png": photo(1, 48, 48).convert("L"),
    "palette.png": photo(1, 48, 48).convert("P"),
    "rgba.png": photo(1, 48, 48).convert("RGBA"),
    "photo.webp": photo(1, 48, 48),
    "photo.bmp": photo(1, 48, 48),
    "photo.gif": photo(1, 48, 48),
    "photo.tiff": photo(1, 48, 48),
    "deep/er/photo.PPM": photo(1, 48, 48),
    "grey_alpha.png": photo(1, 48, 48).convert("LA"),
    "cmyk.jpg": photo(1, 48, 48).convert("CMYK"),
    "UPPER.JPG": photo(1, 48, 48),
    "Upper.Png": photo(1, 48, 48),
    "one_wide.png": photo(1, 1, 40),
    "one_high.jpg": photo(1, 40, 1),
    "one_pixel.png": photo(1, 1, 1),
    "large.jpg": photo(1, 900, 700),
}


@pytest.mark.parametrize("augmentation", ["resized_crop", "crop"])
def test_odd_images_become_the_pixels_that_pillow_shows(folder, augmentation, caplog):
    def write(red):
        for name, image in ODD_IMAGES.items():
            (red / name).parent.mkdir(parents=True, exist_ok=True)
            image.save(red / name)
        (red / ".hidden.jpg").write_bytes(b"no image")
        (red / "notes.txt").write_text("no image")

    replace_test_images(folder, write)
    seen = red_test_images(open_source(folder_config(folder, augmentation=augmentation)))
    assert "skipped files that are not images: 1 .txt" in caplog.text
    shown = {
        name: np.asarray(image.convert("RGB"), float).mean(axis=(0, 1))
        for name, image in ODD_IMAGES.items()
    }
    for name, image in zip(sorted(shown), seen, strict=True):
        np.testing.assert_allclose(image.mean(axis=(0, 1)), shown[name], atol=12, err_msg=name)


def test_odd_images_can_be_trained_on(folder):
    for i, size in enumerate([(1, 60), (60, 1), (1, 1), (2, 3), (700, 5)]):
        photo(i, *size).save(folder / "train" / "red" / f"odd{i}.jpg")
        photo(i, *size).convert("RGBA").save(folder / "train" / "red" / f"odd{i}.png")
    source = open_source(folder_config(folder, max_bad_share=0.0))
    for batch in itertools.islice(source.train_batches(0), 12):
        assert batch["image"].shape == (8, SIZE, SIZE, 3)
    assert source.num_bad == 0


def test_exif_orientation_turns_an_image_upright(folder):
    corners = np.zeros((64, 64, 3), np.uint8)
    corners[:32, :32], corners[:32, 32:] = RED, GREEN
    corners[32:, :32], corners[32:, 32:] = BLUE, WHITE
    upright = Image.fromarray(corners)
    held = {  # what a camera held so stores
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }

    def write(red):
        for orientation in range(1, 9):
            exif = Image.Exif()
            exif[0x0112] = orientation
            stored = upright.transpose(held[orientation]) if orientation in held else upright
            stored.save(red / f"{orientation}.jpg", exif=exif, quality=95)

    replace_test_images(folder, write)
    seen = red_test_images(open_source(folder_config(folder)))
    assert len(seen) == 8
    for orientation, image in enumerate(seen, 1):
        for (row, column), colour in zip(
            itertools.product((6, 25), (6, 25)), (RED, GREEN, BLUE, WHITE), strict=True
        ):
            np.testing.assert_allclose(
                image[row, column], colour, atol=25, err_msg=f"orientation {orientation}"
            )


def test_small_images_in_memory_are_left_as_they_are(folder):
    exact = photo(3, SIZE, SIZE)
    replace_test_images(folder, lambda red: exact.save(red / "exact.png"))
    (seen,) = red_test_images(open_source(folder_config(folder, augmentation="crop")))
    np.testing.assert_array_equal(seen, np.asarray(exact))


def test_of_images_on_disk_the_central_224_of_256_pixels_are_evaluated(folder):
    ramp = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    replace_test_images(folder, lambda red: Image.fromarray(ramp).save(red / "ramp.png"))
    config = folder_config(folder, augmentation="resized_crop", image_size=224)
    (seen,) = red_test_images(open_source(config))
    np.testing.assert_array_equal(seen[100, :, 0], np.arange(16, 240))


def test_training_crops_have_the_stated_areas_and_ratios(folder):
    """On a ramp in x and y the corner values of a crop tell where it was taken from."""
    rows, columns = np.mgrid[0:240, 0:240]
    ramp = Image.fromarray(np.stack([rows, columns, 0 * rows], axis=-1).astype(np.uint8))
    for name in COLOURS:
        for path in (folder / "train" / name).iterdir():
            path.unlink()
        for i in range(10):
            ramp.save(folder / "train" / name / f"{i}.png")
    source = open_source(folder_config(folder, holdout=0, thresholds_from="train"))
    images = np.concatenate(
        [batch["image"] for batch in itertools.islice(source.train_batches(0), 60)]
    ).astype(float)
    scale = SIZE / (SIZE - 1)
    heights = (images[:, -1, :, 0] - images[:, 0, :, 0]).mean(axis=1) * scale
    widths = (images[:, :, -1, 1] - images[:, :, 0, 1]).mean(axis=1) * scale
    areas = np.abs(heights * widths) / 240**2
    ratios = np.abs(widths) / heights
    # From 0.08 to 1 of the image, from 3:4 to 4:3.
    assert 0.06 < areas.min() < 0.12
    assert areas.max() > 0.9
    assert abs(areas.mean() - 0.5) < 0.06
    assert 0.72 < ratios.min() < 0.8
    assert 1.28 < ratios.max() < 1.39
    assert abs((widths < 0).mean() - 0.5) < 0.1


def empty_class(folder):
    (folder / "train" / "violet").mkdir()


def unknown_class(folder):
    write_split(folder / "val", 1, 0)
    (folder / "val" / "red").rename(folder / "val" / "violet")


def no_split(folder):
    (folder / "train").rename(folder / "training")
    (folder / "test").rename(folder / "testing")


def two_of_a_split(folder):
    write_split(folder / "Val", 1, 0)
    write_split(folder / "valid", 1, 0)


def fourth_class(folder):
    (folder / "train" / "red").rename(folder / "train" / "violet")
    (folder / "test" / "red").rename(folder / "test" / "violet")
    write_split(folder / "more", 1, 0)
    (folder / "more" / "red").rename(folder / "train" / "red")


def empty_split(folder):
    (folder / "val").mkdir()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (empty_class, "train/violet: empty class"),
        (unknown_class, "val/violet: class 'violet' is not allowed: not in train/"),
        (no_split, "split 'train' is missing"),
        (two_of_a_split, "folders 'Val' and 'valid' are both split 'val': must be one"),
        (fourth_class, "config.dataset.num_classes: 3 is not allowed: must be 4"),
        (empty_split, "val: empty split"),
    ],
)
def test_a_wrong_folder_is_one_line_before_anything_is_read(folder, damage, message):
    damage(folder)
    with pytest.raises(UserError, match=message) as raised:
        open_source(folder_config(folder))
    assert "\n" not in str(raised.value)


def test_a_folder_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"config.dataset.data_dir: .* must be a folder"):
        open_source(folder_config(tmp_path / "nowhere"))


def test_an_unreadable_folder_is_one_line(folder, monkeypatch):
    refuse_folder(monkeypatch, "green")
    with pytest.raises(UserError, match="green: cannot be read: Permission denied"):
        open_source(folder_config(folder))


def test_of_millions_of_files_only_the_paths_are_kept_while_they_are_listed(tmp_path, monkeypatch):
    def files(inside, skipped):
        return (f"{inside}/{'long' * 20}{number:05d}.jpg" for number in range(1000))

    for name in range(20):
        (tmp_path / "train" / str(name)).mkdir(parents=True)
    monkeypatch.setattr(image_folder.walk, "image_files", files)
    tracemalloc.start()
    try:
        images = image_folder.list_images(tmp_path).splits["train"]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(images) == 20_000
    assert peak < 2.8 * images.paths.nbytes


@pytest.mark.parametrize("augmentation", ["resized_crop", "crop"])
def test_what_may_take_minutes_says_how_far_it_is(folder, augmentation, monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    open_source(folder_config(folder, augmentation=augmentation))
    lines = capsys.readouterr().err.splitlines()
    assert f"{folder}/train: 30 images found so far" in lines
    assert f"{folder}/test: 12 images found so far" in lines
    assert ("test: 12 of 12 images read" in lines) == (augmentation == "crop")


def test_the_digest_of_a_split_tells_other_images_and_other_labels(folder):
    def digests(**fields):
        return open_source(folder_config(folder, **fields)).digests

    before = digests()
    assert len({*before.values()}) == 3
    assert digests() == before
    # The same test images, whose classes are now numbered from 1.
    (folder / "train" / "amber").mkdir()
    photo(9, 60, 50).save(folder / "train" / "amber" / "00.jpg")
    renumbered = digests(num_classes=4)
    assert renumbered["test"] != before["test"]
    photo(9, 60, 50).save(folder / "test" / "red" / "more.jpg")
    assert digests(num_classes=4)["test"] != renumbered["test"]


def test_images_that_do_not_fit_into_memory_are_refused(folder, monkeypatch):
    monkeypatch.setattr(image_folder, "_MOST_BYTES_IN_MEMORY", 42 * SIZE * SIZE * 3 - 1)
    with pytest.raises(UserError, match="do not fit into memory: must be 'resized_crop'"):
        open_source(folder_config(folder, augmentation="crop"))


def test_memory_is_flat_over_fifty_epochs_of_streaming(folder):
    source = open_source(folder_config(folder))
    used = []
    for step, _ in enumerate(itertools.islice(source.train_batches(0), 50 * 3)):
        if step % 3 == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            used.append(pages * os.sysconf("SC_PAGESIZE"))
    assert used[-1] - used[10] < 10e6

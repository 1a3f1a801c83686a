"""A folder of images, `train|val|test/CLASS/*.jpg|jpeg|png`; "val" is what is held out.

A split that is absent is cut from "train", the same in every run: `config.dataset.holdout` images
to hold out, and a fifth of the training images to test on. With augmentation "resized_crop" images
stay on disk; otherwise they are small, and are read into memory once.
"""

import math
import os
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from l2w_jax.data import order, splits
from l2w_jax.data.bad_images import BadImages
from l2w_jax.data.reading import read_evaluation_batches
from l2w_jax.data.source import LabelledImages, MemorySource, Source, choose_training_images
from l2w_jax.data.stored import ImageFiles
from l2w_jax.data.streaming import StreamingSource
from l2w_jax.errors import UserError

_ENDINGS = (".jpg", ".jpeg", ".png")
_SPLITS = ("train", "val", "test")
# Of the training images, where there is no "test" folder.
_TEST_SHARE = 0.2
_MOST_BYTES_IN_MEMORY = 8 * 2**30
_BATCH_SIZE = 500


def open_image_folder(config: ConfigDict) -> Source:
    """Opens the folder `config.dataset.data_dir`.

    Raises:
        UserError: the folder or one of its classes is missing, unreadable or empty, or does not
            agree with the configuration.
    """
    found, class_names = list_images(Path(config.dataset.data_dir).expanduser())
    if len(class_names) != config.dataset.num_classes:
        raise UserError(
            f"config.dataset.num_classes: {config.dataset.num_classes} is not allowed: must be "
            f"{len(class_names)}, the folders in {config.dataset.data_dir}/train"
        )
    complete = complete_splits(config, found)
    if config.dataset.augmentation == "resized_crop":
        return StreamingSource(config, complete, class_names)
    return _read_into_memory(config, complete, class_names)


def list_images(folder: Path) -> tuple[dict[str, ImageFiles], tuple[str, ...]]:
    """Returns the files of each split that is there, in alphabetical order, and the class names.

    Classes are numbered in the alphabetical order of the folders in "train".
    """
    if not folder.is_dir():
        raise UserError(f"config.dataset.data_dir: {folder} is not allowed: must be a folder")
    if not (folder / "train").is_dir():
        raise UserError(f"{folder}: split 'train' is missing: must hold train/CLASS/*.jpg")
    class_names = tuple(entry.name for entry in _entries(folder / "train") if entry.is_dir())
    found = {
        split: _list_split(folder / split, class_names)
        for split in _SPLITS
        if (folder / split).is_dir()
    }
    # A name that is not UTF-8 could be neither logged nor put into a report.
    return found, tuple(os.fsencode(name).decode(errors="replace") for name in class_names)


def _entries(folder: Path) -> list[os.DirEntry]:
    """Lists a folder in alphabetical order, without hidden files."""
    try:
        with os.scandir(folder) as entries:
            return sorted(
                (entry for entry in entries if not entry.name.startswith(".")),
                key=lambda entry: entry.name,
            )
    except OSError as error:
        raise UserError(f"{folder}: cannot be read: {error.strerror}") from error


def _list_split(folder: Path, class_names: tuple[str, ...]) -> ImageFiles:
    paths, labels = [], []
    for entry in _entries(folder):
        if not entry.is_dir():
            continue
        if entry.name not in class_names:
            raise UserError(f"{entry.path}: class {entry.name!r} is not allowed: not in train/")
        files = [
            file.path
            for file in _entries(Path(entry.path))
            if file.name.lower().endswith(_ENDINGS) and file.is_file()
        ]
        if not files:
            raise UserError(f"{entry.path}: empty class: must hold {', '.join(_ENDINGS)} files")
        paths += files
        labels += [class_names.index(entry.name)] * len(files)
    if not paths:
        raise UserError(f"{folder}: empty split: must hold CLASS/*.jpg")
    return ImageFiles(np.array([*map(os.fsencode, paths)]), np.array(labels, np.int32))


def complete_splits(config: ConfigDict, found: dict[str, ImageFiles]) -> dict[str, ImageFiles]:
    """Returns "train", "holdout" and "test", the absent ones cut from "train"."""
    train, test = found["train"], found.get("test")
    if test is None:
        tested = splits.stratified_choice(train.labels, math.ceil(_TEST_SHARE * len(train)))
        test = train.rows(tested)
        train = train.rows(splits.without(len(train), tested))
    holdout = found.get("val")
    num_holdout = config.dataset.holdout if holdout is None else 0
    trained, held_out = choose_training_images(config, train.labels, num_holdout)
    return {
        "train": train.rows(trained),
        "holdout": train.rows(held_out) if holdout is None else holdout,
        "test": test,
    }


def _read_into_memory(
    config: ConfigDict, stored: dict[str, ImageFiles], class_names: tuple[str, ...]
) -> Source:
    """Reads all images, each made square by its centre; those that cannot be read are left out."""
    total = sum(map(len, stored.values()))
    size = config.dataset.image_size
    if total * size * size * 3 > _MOST_BYTES_IN_MEMORY:
        raise UserError(
            f"config.dataset.augmentation: {config.dataset.augmentation!r} is not allowed for "
            f"{total} images of {size} pixels, which do not fit into memory: must be 'resized_crop'"
        )
    bad = BadImages(total, config.dataset.max_bad_share)
    read = {split: _read_split(images, size, bad) for split, images in stored.items()}
    return MemorySource(config, read, class_names, num_bad=len(bad))


def _read_split(images: ImageFiles, size: int, bad: BadImages) -> LabelledImages:
    rows = list(order.evaluation_rows(len(images), max(1, min(_BATCH_SIZE, len(images)))))
    pixels = np.empty((len(images), size, size, 3), np.uint8)
    is_read = np.zeros(len(images), bool)
    for batch in read_evaluation_batches(images, rows, size, bad, share=1.0):
        read = batch.choice.positions[batch.is_read]
        pixels[read] = batch.pixels[batch.is_read]
        is_read[read] = True
    return LabelledImages(pixels, images.labels).rows(np.flatnonzero(is_read))

"""A folder of images, `train|val|test/CLASS/.../*.jpg` and all other kinds that can be decoded.

Where there is "test", "val" is held out; otherwise "val" is tested on, as everywhere on ImageNet.
Splits still missing are cut from "train", the same in every run: `config.dataset.holdout` images to
hold out, and a fifth of the training images to test on. A folder without "train" can be evaluated
on. With augmentation "resized_crop" images stay on disk; otherwise they are small, and are read
into memory once.
"""

import hashlib
import logging
import math
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from l2w_jax.config.choices import holdout_fault
from l2w_jax.data import copies, order, splits, walk
from l2w_jax.data.bad_images import BadImages
from l2w_jax.data.encoded import ImageFiles
from l2w_jax.data.reading import read_evaluation_batches
from l2w_jax.data.source import (
    LabelledImages,
    MemorySource,
    Origin,
    Source,
    choose_training_images,
)
from l2w_jax.data.streaming import StreamingSource
from l2w_jax.errors import UserError, some
from l2w_jax.progress import Progress

_logger = logging.getLogger(__name__)

# Folders at the top, in lower case, and what they are.
_SPLITS = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
_NO_IMAGES = ImageFiles(np.array([], "S"), np.array([], np.int32))

# The share of the training images to test on, where there is no test set.
_TEST_SHARE = 0.2
_MOST_BYTES_IN_MEMORY = 8 * 2**30
_BATCH_SIZE = 500


class FoundImages(NamedTuple):
    """What a folder holds."""

    root: Path
    splits: dict[str, ImageFiles]  # "train", "val" and "test", those that are there
    folders: dict[str, str]  # what the folders of these are called
    class_names: tuple[str, ...]


class CompleteSplits(NamedTuple):
    """The splits of a run and where they come from."""

    images: dict[str, ImageFiles]  # "train", "holdout" and "test"
    origins: dict[str, Origin]


def open_image_folder(config: ConfigDict, known_classes: Sequence[str] | None = None) -> Source:
    """Opens the folder `config.dataset.data_dir`; see `open_source` for the arguments.

    Raises:
        UserError: the folder or one of its classes is missing, unreadable or empty, or does not
            agree with the configuration.
    """
    found = list_images(Path(config.dataset.data_dir).expanduser(), known_classes)
    class_names = found.class_names
    _check_classes(config, found)
    complete = complete_splits(config, found)
    fault = holdout_fault(config.dataset.holdout, config.dataset.thresholds_from)
    if fault and complete.origins["holdout"].is_cut:
        raise UserError(f"{fault}, and {config.dataset.data_dir} has no val/ beside a test/")
    untested = np.setdiff1d(np.arange(len(class_names)), complete.images["test"].labels)
    if len(untested):
        _logger.warning(
            "%s: classes without an image to test on: %s",
            config.dataset.data_dir,
            some([class_names[label] for label in untested]),
        )
    if copied := copies.copies_line(complete.images, found.root):
        _logger.warning("%s", copied)
    if config.dataset.augmentation == "resized_crop":
        source = StreamingSource(config, complete.images, class_names, complete.origins)
        used = complete.images
    else:
        source, used = _read_into_memory(config, complete, class_names)
    source.digests = {split: _digest(images, found.root) for split, images in used.items()}
    return source


def _check_classes(config: ConfigDict, found: FoundImages) -> None:
    """Raises UserError where a folder's classes are too few, or not as many as are configured."""
    names = found.class_names
    folder = found.folders.get("train") or " and ".join(found.folders.values())
    if len(names) == 1:
        raise UserError(
            f"{config.dataset.data_dir}/{folder}: one class folder, {names[0]!r}: must hold two or "
            "more (are the classes one level deeper?)"
        )
    if len(names) != config.dataset.num_classes:
        raise UserError(
            f"config.dataset.num_classes: {config.dataset.num_classes} is not allowed: must be "
            f"{len(names)}, the folders in {config.dataset.data_dir}/{folder}"
        )


def list_images(folder: Path, known_classes: Sequence[str] | None = None) -> FoundImages:
    """Returns the files of each split that is there, in alphabetical order, and the class names.

    Classes are numbered in the alphabetical order of the folders in "train". Without "train", the
    known classes are used, in their order; if none are known, the folders of the other splits, in
    alphabetical order. Names that differ only in how their letters are composed are one class.
    Unused files and unused folders are reported in a warning each.
    """
    if not folder.is_dir():
        raise UserError(f"config.dataset.data_dir: {folder} is not allowed: must be a folder")
    folders = _split_folders(folder)
    if not folders:
        raise UserError(f"{folder}: split 'train' is missing: must hold train/CLASS/*.jpg")
    skipped: Counter[str] = Counter()
    classes = {split: _class_folders(folder / name, skipped) for split, name in folders.items()}
    class_names = _class_names(folder, classes, known_classes)
    found = {
        split: _list_split(folder / folders[split], of_split, class_names, skipped)
        for split, of_split in classes.items()
    }
    if skipped:
        _logger.warning("%s: %s", folder, walk.skipped_line(skipped))
    return FoundImages(folder, found, folders, tuple(map(_readable, class_names)))


def _class_names(
    folder: Path,
    classes: Mapping[str, Mapping[str, Sequence[str]]],
    known: Sequence[str] | None,
) -> list[str]:
    """Returns the names of the class folders, by number; a known class may have no folder."""
    if "train" in classes:
        return sorted(classes["train"])
    found = sorted(set().union(*classes.values()))
    if known is None:
        return found
    names = {_readable(name): name for name in found}
    if unknown := sorted(names.keys() - set(known)):
        raise UserError(
            f"{folder}: {some(unknown)}: not among the classes trained on, {some(known)}; give "
            "class folders the names of these, or name another folder with "
            "--config.dataset.data_dir"
        )
    return [names.get(name, name) for name in known]


def _readable(name: str) -> str:
    # A name that is not UTF-8 could be neither logged nor put into a report.
    return os.fsencode(name).decode(errors="replace")


def _digest(images: ImageFiles, root: Path) -> str:
    """A digest of the images' paths below the root and their labels, in order; not of pixels."""
    # If the root is the current folder, ".", nothing stands before "train/..." in a path.
    above = len(os.fsencode(root / "x")) - 1
    digest = hashlib.sha256(b"\0".join(b"/" + path[above:] for path in images.paths))
    digest.update(images.labels.astype("<i4").tobytes())
    return digest.hexdigest()


def _split_folders(folder: Path) -> dict[str, str]:
    """Returns the names of the folders of "train", "val" and "test", those that are there."""
    found: dict[str, str] = {}
    others = []
    for entry in walk.entries(folder):
        if not walk.is_folder(entry):
            continue
        split = _SPLITS.get(entry.name.lower())
        if split is None:
            others.append(entry.name)
        elif split in found:
            raise UserError(
                f"{folder}: folders {found[split]!r} and {entry.name!r} are both split {split!r}: "
                "must be one"
            )
        else:
            found[split] = entry.name
    if others and found:
        _logger.warning(
            "%s: folders that play no part: %s (those that do: train; val, valid or validation; "
            "test)",
            folder,
            some(others),
        )
    return {split: found[split] for split in ("train", "val", "test") if split in found}


def _class_folders(folder: Path, skipped: Counter[str]) -> dict[str, list[str]]:
    """Returns the folders of each class of a split, by the class's name."""
    folders = defaultdict(list)
    for entry in walk.entries(folder):
        if walk.is_folder(entry):
            # Systems compose accented letters differently, and users cannot see that they do.
            folders[unicodedata.normalize("NFC", entry.name)].append(entry.path)
        else:
            skipped[f"{walk.ending(entry.name)} outside of class folders"] += 1
    return dict(folders)


def _list_split(
    folder: Path,
    classes: Mapping[str, Sequence[str]],
    class_names: Sequence[str],
    skipped: Counter[str],
) -> ImageFiles:
    numbers = {name: number for number, name in enumerate(class_names)}
    progress = Progress(lambda count: f"{folder}: {count:,} images found so far")
    paths, labels = [], []
    for name, folders in sorted(classes.items()):
        if name not in numbers:
            raise UserError(f"{folders[0]}: class {name!r} is not allowed: not in train/")
        files = (file for inside in folders for file in walk.image_files(inside, skipped))
        of_class = np.array([*map(os.fsencode, progress.of(files))], "S")
        if not len(of_class):
            raise UserError(
                f"{folders[0]}: empty class: must hold images, such as .jpg, .png or .webp files"
            )
        # A class at a time: as Python's objects, millions of paths would take five times as much.
        paths.append(of_class)
        labels.append(np.full(len(of_class), numbers[name], np.int32))
    if not paths:
        raise UserError(f"{folder}: empty split: must hold CLASS/*.jpg")
    return ImageFiles(np.concatenate(paths), np.concatenate(labels))


def complete_splits(config: ConfigDict, found: FoundImages) -> CompleteSplits:
    """Returns "train", "holdout" and "test", the absent ones cut from "train".

    Raises:
        UserError: "train" is too small for that.
    """
    origins = {split: Origin(f"{name}/") for split, name in found.folders.items()}
    train, val, test = (found.splits.get(split) for split in ("train", "val", "test"))
    if test is None and val is not None:
        test, val = val, None
        origins["test"] = origins.pop("val")
    if train is None:
        images = {"train": _NO_IMAGES, "holdout": val or _NO_IMAGES, "test": test}
        nowhere = Origin("")
        holdout = origins.get("val", nowhere)
        return CompleteSplits(images, origins | {"train": nowhere, "holdout": holdout})
    cut = origins["train"]._replace(is_cut=True)
    if test is None:
        if not splits.most_to_cut(train.labels):
            raise UserError(
                f"{found.root}/{found.folders['train']}: one image of each class, of which none "
                "can be tested on: must hold more, or be beside a test/"
            )
        tested = splits.stratified_choice(train.labels, math.ceil(_TEST_SHARE * len(train)))
        test = train.rows(tested)
        train = train.rows(splits.without(len(train), tested))
        origins["test"] = cut
    trained, held_out = choose_training_images(
        config, train.labels, config.dataset.holdout if val is None else 0
    )
    origins["holdout"] = origins.get("val", cut)
    holdout = train.rows(held_out) if val is None else val
    return CompleteSplits({"train": train.rows(trained), "holdout": holdout, "test": test}, origins)


def _read_into_memory(
    config: ConfigDict, complete: CompleteSplits, class_names: tuple[str, ...]
) -> tuple[Source, dict[str, ImageFiles]]:
    """Reads all images, each made square by its centre; those that cannot be read are left out.

    Returns:
        The source, and the files of each split that are in it.

    Raises:
        UserError: too many cannot be read, or none of a split or of a class to train on can.
    """
    total = sum(map(len, complete.images.values()))
    size, max_pixels = config.dataset.image_size, config.dataset.max_pixels
    if total * size * size * 3 > _MOST_BYTES_IN_MEMORY:
        raise UserError(
            f"config.dataset.augmentation: {config.dataset.augmentation!r} is not allowed for "
            f"{total:,} images of {size} pixels, which do not fit into memory: must "
            "be 'resized_crop'"
        )
    bad = BadImages(total, config.dataset.max_bad_share)
    read, used = {}, {}
    for split, images in complete.images.items():
        read[split], used[split] = _read_split(split, images, size, max_pixels, bad)
        _check_none_is_lost(config, split, images, used[split], class_names)
    source = MemorySource(config, read, class_names, complete.origins)
    source.num_bad = len(bad)
    return source, used


def _check_none_is_lost(
    config: ConfigDict,
    split: str,
    listed: ImageFiles,
    used: ImageFiles,
    class_names: tuple[str, ...],
) -> None:
    lost = np.setdiff1d(listed.labels, used.labels)
    if len(lost) and (split == "train" or not len(used)):
        raise UserError(
            f"{config.dataset.data_dir}: split {split!r}: no image can be read of: "
            + some([class_names[label] for label in lost])
        )


def _read_split(
    split: str, images: ImageFiles, size: int, max_pixels: int, bad: BadImages
) -> tuple[LabelledImages, ImageFiles]:
    total = len(images)
    rows = list(order.evaluation_rows(total, max(1, min(_BATCH_SIZE, total))))
    pixels = np.empty((total, size, size, 3), np.uint8)
    is_read = np.zeros(total, bool)
    progress = Progress(
        lambda count: f"{split}: {min(count * _BATCH_SIZE, total):,} of {total:,} images read"
    )
    batches = read_evaluation_batches(images, rows, size, max_pixels, bad, share=1.0)
    for batch in progress.of(batches):
        read = batch.choice.positions[batch.is_read]
        pixels[read] = batch.pixels[batch.is_read]
        is_read[read] = True
    read = LabelledImages(pixels, images.labels)
    if is_read.all():
        # Choosing rows would copy them all.
        return read, images
    kept = np.flatnonzero(is_read)
    return read.rows(kept), images.rows(kept)

"""Folders of small pictures, each class in a colour of its own, and what a source shows of them."""

import os

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from l2w_jax.config import default_config

RED, GREEN, BLUE, WHITE = (200, 30, 30), (30, 200, 30), (30, 30, 200), (220, 220, 220)
COLOURS = {"blue": BLUE, "green": GREEN, "red": RED}
SIZE = 32


def photo(seed: int, width: int, height: int, colour=(128, 128, 128)) -> Image.Image:
    """A smooth random image around a colour, so that compression changes it little."""
    coarse = np.random.default_rng(seed).normal(colour, 20, (3, 4, 3)).clip(0, 255)
    return Image.fromarray(coarse.astype(np.uint8)).resize((width, height), Image.BICUBIC)


def folder_config(data_dir, **fields) -> ConfigDict:
    config = default_config()
    config.dataset.update(
        name="image_folder",
        data_dir=str(data_dir),
        num_classes=3,
        image_size=SIZE,
        holdout=6,
        batch_size=8,
        augmentation="resized_crop",
        max_bad_share=0.0,
    )
    config.dataset.update(fields)
    return config


def write_split(folder, per_class: int, seed: int) -> None:
    for number, (name, colour) in enumerate(COLOURS.items()):
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            ending = ("jpg", "png", "JPEG")[i % 3]
            image = photo(seed + 100 * number + i, 60 + 7 * i, 50 + 3 * i, colour)
            image.save(folder / name / f"{i:02}.{ending}")


def everything(source, split, batch_size=7):
    batches = list(source.evaluation_batches(split, batch_size))
    return {
        key: np.concatenate([batch[key][batch["mask"]] for batch in batches])
        for key in ("image", "label", "index")
    }


def refuse_folder(monkeypatch, name):
    """Has a folder of this name be one that may not be read."""
    scandir = os.scandir

    def refuse(path):
        if os.path.basename(path) == name:
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)

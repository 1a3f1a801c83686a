"""The 1,797 handwritten digits that come with scikit-learn: real images that need no download."""

import numpy as np
from ml_collections import ConfigDict
from PIL import Image
from sklearn.datasets import load_digits

from l2w_jax.data import splits
from l2w_jax.data.source import (
    LabelledImages,
    MemorySource,
    Origin,
    Source,
    choose_training_images,
)

_NUM_TEST = 360
_SIZE = 16
_BRIGHTEST = 16


def open_digits(config: ConfigDict) -> Source:
    """Opens the digits, enlarged from 8x8 grey to 16x16 in three equal channels."""
    bundle = load_digits()
    images = np.stack([_enlarge(image) for image in bundle.images])
    everything = LabelledImages(images, bundle.target.astype(np.int32))
    tested = splits.stratified_choice(everything.labels, _NUM_TEST)
    others = everything.rows(splits.without(len(images), tested))
    trained, held_out = choose_training_images(config, others.labels, config.dataset.holdout)
    return MemorySource(
        config,
        {
            "train": others.rows(trained),
            "holdout": others.rows(held_out),
            "test": everything.rows(tested),
        },
        class_names=tuple("0123456789"),
        origins=dict.fromkeys(("train", "holdout", "test"), Origin("all digits", is_cut=True)),
    )


def _enlarge(image: np.ndarray) -> np.ndarray:
    """Turns float[8, 8] with values 0 to 16 into uint8[16, 16, 3]."""
    grey = Image.fromarray(np.round(image * (255 / _BRIGHTEST)).astype(np.uint8))
    enlarged = np.asarray(grey.resize((_SIZE, _SIZE), Image.Resampling.BILINEAR))
    return np.repeat(enlarged[:, :, np.newaxis], 3, axis=2)

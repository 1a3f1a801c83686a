"""CIFAR-10 and CIFAR-100 from TensorFlow Datasets, read once into memory (150 MB)."""

import numpy as np
from ml_collections import ConfigDict

from l2w_jax.data.prepared import prepared_builder
from l2w_jax.data.source import LabelledImages, MemorySource, Source, choose_training_images
from l2w_jax.data.tensorflow_import import explain, tf
from l2w_jax.errors import UserError


def open_cifar(config: ConfigDict) -> Source:
    """Opens `config.dataset.name` ("cifar10" or "cifar100"), downloading it where that is possible.

    With `config.dataset.imbalance_factor` the training images are the long-tailed ones of Cui et
    al., CVPR 2019; held-out images are then taken from these, and the test images stay as they are.
    """
    builder = prepared_builder(config.dataset.name, config.dataset.data_dir, ("train", "test"))
    everything = _read(builder, "train")
    trained, held_out = choose_training_images(config, everything.labels, config.dataset.holdout)
    return MemorySource(
        config,
        {
            "train": everything.rows(trained),
            "holdout": everything.rows(held_out),
            "test": _read(builder, "test"),
        },
        class_names=tuple(builder.info.features["label"].names),
    )


def _read(builder, split: str) -> LabelledImages:
    """Reads a whole split in the order in which it lies on disk."""
    try:
        everything = builder.as_dataset(split=split, shuffle_files=False, batch_size=-1)
    except tf.errors.OpError as error:
        raise UserError(
            f"{builder.data_path}: split {split!r} cannot be read: delete this folder and run the "
            f"same command again to prepare it anew ({explain(error)})"
        ) from error
    return LabelledImages(everything["image"].numpy(), everything["label"].numpy().astype(np.int32))

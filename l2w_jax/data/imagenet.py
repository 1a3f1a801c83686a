"""ImageNet (ILSVRC 2012) from TensorFlow Datasets, which prepares it from the two archives."""

from pathlib import Path

from ml_collections import ConfigDict

from l2w_jax.data import splits
from l2w_jax.data.encoded import ImageRecords, index_records
from l2w_jax.data.prepared import prepared_builder
from l2w_jax.data.source import ORIGINS, Origin, Source, check_holdout
from l2w_jax.data.streaming import StreamingSource
from l2w_jax.errors import UserError


def open_imagenet(config: ConfigDict) -> Source:
    """Opens ImageNet; its validation images are the test set, as in every published table.

    Held-out images are chosen at random: labels lie inside the records, and reading all of them
    first would take as long as an epoch.
    """
    builder = prepared_builder("imagenet2012", config.dataset.data_dir, ("train", "validation"))
    train = _index(builder, "train")
    check_holdout(config.dataset.holdout, len(train))
    held_out = splits.random_choice(len(train), config.dataset.holdout)
    return StreamingSource(
        config,
        {
            "train": train.rows(splits.without(len(train), held_out)),
            "holdout": train.rows(held_out),
            "test": _index(builder, "validation"),
        },
        class_names=tuple(builder.info.features["label"].names),
        origins=ORIGINS | {"test": Origin("validation")},
    )


def _index(builder, split: str) -> ImageRecords:
    info = builder.info.splits[split]
    if any(".tfrecord" not in Path(path).name for path in info.filepaths):
        raise UserError(
            f"{builder.data_path}: files of split {split!r} are not TFRecords: prepare the data "
            "set with file_format='tfrecord', TFDS's default"
        )
    records = index_records([str(path) for path in info.filepaths])
    if len(records) != info.num_examples:
        raise UserError(
            f"{builder.data_path}: split {split!r} holds {len(records):,} images: must be "
            f"{info.num_examples:,}, as its dataset_info.json says"
        )
    return records

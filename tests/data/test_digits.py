"""The digits: 360 test images, held-out images never trained on, batches repeatable and split."""

import itertools

import numpy as np
import pytest
from image_folders import everything

from l2w_jax.config import default_config
from l2w_jax.data import open_source
from l2w_jax.errors import UserError


def digits_config(**fields):
    config = default_config()
    config.dataset.update(
        name="digits", image_size=16, holdout=180, batch_size=64, augmentation="shift"
    )
    config.dataset.update(fields)
    return config


@pytest.fixture(scope="module")
def source():
    return open_source(digits_config())


def test_the_splits_are_apart_and_complete(source):
    splits = {split: everything(source, split) for split in ("train", "holdout", "test")}
    assert [len(splits[name]["label"]) for name in splits] == [1257, 180, 360]
    assert (source.num_train, source.num_holdout, source.num_test) == (1257, 180, 360)
    images = np.concatenate([split["image"] for split in splits.values()])
    assert images.shape == (1797, 16, 16, 3)
    # The bundled digits are all different, so an image in two splits would show here.
    assert len(np.unique(images.reshape(1797, -1), axis=0)) == 1797


def test_every_class_is_in_every_split_in_proportion(source):
    for split in ("train", "holdout", "test"):
        counts = np.bincount(everything(source, split)["label"], minlength=10)
        assert counts.min() >= 0.9 * counts.mean()
    np.testing.assert_array_equal(
        source.train_class_counts, np.bincount(everything(source, "train")["label"])
    )


def test_the_splits_do_not_depend_on_the_seed(source):
    config = digits_config()
    config.seed = 7
    other = open_source(config)
    for split in ("train", "holdout", "test"):
        np.testing.assert_array_equal(
            everything(source, split)["image"], everything(other, split)["image"]
        )


@pytest.mark.parametrize("process_count", [1, 2, 4])
def test_the_batch_of_a_step_is_the_same_for_any_number_of_processes(source, process_count):
    whole = list(itertools.islice(source.train_batches(17), 4))
    parts = [
        list(itertools.islice(source.train_batches(17, process, process_count), 4))
        for process in range(process_count)
    ]
    for step, batch in enumerate(whole):
        for key in ("image", "label"):
            joined = np.concatenate([of_process[step][key] for of_process in parts])
            np.testing.assert_array_equal(joined, batch[key])


def test_a_resumed_run_sees_what_the_uninterrupted_one_sees(source):
    uninterrupted = list(itertools.islice(source.train_batches(0), 45))
    for first_step in (1, 18, 19, 20, 41):
        resumed = next(source.train_batches(first_step))
        for key in ("image", "label"):
            np.testing.assert_array_equal(resumed[key], uninterrupted[first_step][key])


def test_another_seed_gives_other_batches(source):
    config = digits_config()
    config.seed = 1
    other = next(open_source(config).train_batches(0))
    assert (other["image"] != next(source.train_batches(0))["image"]).any()


def test_batches_are_bytes_until_they_are_on_the_device(source):
    batch = next(source.train_batches(0))
    assert batch["image"].dtype == np.uint8
    assert batch["image"].shape == (64, 16, 16, 3)
    assert batch["label"].dtype == np.int32


def test_training_images_are_shifted_and_evaluation_images_are_not(source):
    plain = {image.tobytes() for image in everything(source, "train")["image"]}
    batch = next(source.train_batches(0))["image"]
    assert sum(image.tobytes() in plain for image in batch) < len(batch) / 2
    again = {image.tobytes() for image in everything(source, "train", 99)["image"]}
    assert plain == again


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"holdout": 1437}, "config.dataset.holdout: 1437 is not allowed: must be less than"),
        ({"batch_size": 1258}, "config.dataset.batch_size: 1258 is not allowed: must be at most"),
        (
            {"imbalance_factor": 1000},
            "imbalance_factor: 1000 is not allowed: must be less than 14.*, to leave each one",
        ),
        ({"num_classes": 9}, "label 9 is not allowed: must be from 0 to 8"),
    ],
)
def test_what_the_data_do_not_allow_is_one_line(fields, message):
    with pytest.raises(UserError, match=message) as raised:
        open_source(digits_config(**fields))
    assert "\n" not in str(raised.value)


def test_a_few_images_of_a_split_are_spread_over_it(source):
    indices = [int(image["index"][0]) for image in source.spread_images("test", 50)]
    # 360 / 50 rounded up, so that they are at most 50.
    assert indices == list(range(0, 360, 8))
    assert len(list(source.spread_images("test", 1000))) == 360


def test_a_long_tail_applies_to_training_images_only(source):
    tailed = open_source(digits_config(imbalance_factor=10, holdout=0))
    counts = tailed.train_class_counts
    assert counts[9] == counts[0] // 10
    assert len(everything(tailed, "train")["label"]) == counts.sum() < source.num_train
    np.testing.assert_array_equal(
        everything(tailed, "test")["image"], everything(source, "test")["image"]
    )


def test_held_out_images_are_taken_from_the_long_tail_and_add_none_to_it():
    def images(split, holdout):
        tailed = open_source(digits_config(imbalance_factor=10, holdout=holdout))
        return {image.tobytes() for image in everything(tailed, split)["image"]}

    trained, held_out = images("train", 50), images("holdout", 50)
    assert len(held_out) == 50 and not trained & held_out
    assert trained | held_out == images("train", 0)

import dataclasses

import numpy as np
import pytest
from written_runs import made_predictions

from l2w_jax.config import default_config
from l2w_jax.data.source import LabelledImages, MemorySource
from l2w_jax.early_exit.budget import first_exits
from l2w_jax.evaluation import exit_examples as examples_of_exits
from l2w_jax.evaluation.exit_examples import (
    EXAMPLES,
    THUMBNAIL_SIZE,
    choose_examples,
    read_examples,
)

THRESHOLDS = np.float32([0.7, 0.4, -1e8])


def test_the_surest_and_the_least_sure_of_each_exit_are_chosen_once():
    confidences = np.random.default_rng(0).random((3, 200)).astype(np.float32)
    exits = first_exits(confidences, THRESHOLDS)
    chosen = choose_examples(confidences, THRESHOLDS)
    assert len({sample for _, _, sample in chosen}) == len(chosen) == 3 * 2 * EXAMPLES
    for k in range(3):
        of_exit = np.sort(confidences[k, exits == k])
        for kind, expected in (("sure", of_exit[::-1][:EXAMPLES]), ("unsure", of_exit[:EXAMPLES])):
            samples = [
                sample for exit_k, its_kind, sample in chosen if (exit_k, its_kind) == (k, kind)
            ]
            assert set(exits[samples]) == {k}
            np.testing.assert_array_equal(confidences[k, samples], expected)


def test_an_exit_with_few_samples_shows_them_and_one_with_none_shows_none():
    confidences = np.float32([[0.9, 0.1, 0.8], [0.1, 0.1, 0.1], [0.5, 0.6, 0.7]])
    assert choose_examples(confidences, THRESHOLDS) == [
        (0, "sure", 0),
        (0, "sure", 2),
        (2, "sure", 1),
    ]


def make_source(images, labels):
    config = default_config()
    config.dataset.update({"name": "digits", "num_classes": 4, "batch_size": 8})
    config.dataset.augmentation = "none"
    labelled = LabelledImages(images, labels)
    splits = {"train": labelled, "holdout": labelled, "test": labelled}
    return MemorySource(config, splits, ("a", "b", "c", "d"))


def test_images_that_lie_class_by_class_are_shown_of_all_classes(monkeypatch):
    monkeypatch.setattr(examples_of_exits, "CANDIDATES", 13)
    labels = np.repeat(np.arange(4, dtype=np.int32), 15)
    source = make_source(np.zeros((60, 8, 8, 3), np.uint8), labels)
    answers = made_predictions(np.full((3, 60), 0.5), np.ones((3, 60), bool))
    predictions = dataclasses.replace(answers, labels=labels)
    # All leave at the second exit, where twelve of them are shown.
    shown = read_examples(source, predictions, THRESHOLDS).labels
    assert np.bincount(shown).tolist() == [3, 3, 3, 3]


def test_large_images_are_shown_small_and_as_wide_as_they_are_high():
    """Whole ones would make a page of hundreds of megabytes."""
    images = np.zeros((20, 4 * THUMBNAIL_SIZE, 4 * THUMBNAIL_SIZE, 3), np.uint8)
    images[:, :, 2 * THUMBNAIL_SIZE :] = 200
    source = make_source(images, np.zeros(20, np.int32))
    answers = made_predictions(np.full((3, 20), 0.5), np.ones((3, 20), bool))
    for shown in read_examples(source, answers, THRESHOLDS).images:
        assert shown.shape == (THUMBNAIL_SIZE, THUMBNAIL_SIZE, 3)
        assert (shown[:, 0].max(), shown[:, -1].min()) == (0, 200)


@pytest.mark.parametrize("candidates", [60, 20])
def test_thumbnails_are_the_images_at_their_positions(candidates, monkeypatch):
    monkeypatch.setattr(examples_of_exits, "CANDIDATES", candidates)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 8, 8, 3)).astype(np.uint8)
    labels = rng.integers(0, 4, 60).astype(np.int32)
    source = make_source(images, labels)
    # Image 7 could not be read.
    positions = np.delete(np.arange(60), 7)
    predictions = dataclasses.replace(
        made_predictions(rng.random((3, 59)), np.ones((3, 59), bool)),
        positions=positions,
        labels=labels[positions],
        predicted=rng.integers(0, 4, (3, 59)),
    )
    examples = read_examples(source, predictions, THRESHOLDS)
    among = np.flatnonzero(positions % (60 // candidates) == 0)
    chosen = choose_examples(predictions.log_odds[:, among], THRESHOLDS)
    assert len(examples.images) == len(chosen) >= 20
    for row, (k, kind, place) in enumerate(chosen):
        sample = among[place]
        assert (examples.exits[row], examples.kinds[row]) == (k, kind)
        np.testing.assert_array_equal(examples.images[row], images[positions[sample]])
        assert examples.labels[row] == labels[positions[sample]]
        assert examples.predicted[row] == predictions.predicted[k, sample]
        assert examples.confidences[row] == predictions.confidences[k, sample]


def test_no_other_image_is_read_than_those_that_are_shown(monkeypatch):
    """Of large photographs all candidates take longer to read than the network to answer."""
    source = make_source(np.zeros((60, 8, 8, 3), np.uint8), np.zeros(60, np.int32))
    read, images_at = [], MemorySource.images_at

    def watched(source, split, positions, batch_size):
        read.extend(positions)
        return images_at(source, split, positions, batch_size)

    monkeypatch.setattr(MemorySource, "images_at", watched)
    monkeypatch.setattr(MemorySource, "evaluation_batches", pytest.fail)
    answers = made_predictions(np.full((3, 60), 0.5), np.ones((3, 60), bool))
    shown = read_examples(source, answers, THRESHOLDS)
    assert len(read) == len(set(read)) == len(shown.images) < 60

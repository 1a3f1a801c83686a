"""Test images that leave the network at each exit, to be looked at."""

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from l2w_jax.data import Source
from l2w_jax.early_exit.budget import first_exits
from l2w_jax.evaluation.predictions import Predictions

# How many of each kind at each exit.
EXAMPLES = 6

# Examples come from this many images, evenly spaced: among many of equal confidence, the first ones
# may all be of one class.
CANDIDATES = 2000

# Images to read at a time.
_BATCH_SIZE = 32

THUMBNAIL_SIZE = 64


@dataclasses.dataclass(frozen=True)
class ExitExamples:
    """Some images, and what the network made of them.

    Attributes:
        images: thumbnails, uint8 [n, h, w, 3].
        exits: which exit each left at, from 0, int [n].
        kinds: "sure" or "unsure", for the highest and the lowest confidence at that exit [n].
        labels: true classes, int [n].
        predicted: most probable classes at the exit, int [n].
        confidences: largest softmax probability there, float [n].
    """

    images: NDArray[np.uint8]
    exits: NDArray[np.integer]
    kinds: NDArray[np.str_]
    labels: NDArray[np.integer]
    predicted: NDArray[np.integer]
    confidences: NDArray[np.floating]


def choose_examples(
    scores: NDArray[np.floating], thresholds: NDArray[np.floating]
) -> list[tuple[int, str, int]]:
    """Which samples show best what leaves at each exit.

    Args:
        scores: log-odds, or those of another rule, [K, N].
        thresholds: T_k [K].

    Returns:
        (exit from 0, "sure" or "unsure", sample) for at most EXAMPLES samples that left there with
        the highest scores, falling, and as many others with the lowest, rising.
    """
    exits = first_exits(scores, thresholds)
    chosen = []
    for k in range(len(scores)):
        leaving = np.flatnonzero(exits == k)
        by_score = leaving[np.argsort(-scores[k, leaving], kind="stable")]
        sure = by_score[:EXAMPLES]
        unsure = by_score[EXAMPLES:][::-1][:EXAMPLES]
        chosen += [(k, "sure", int(i)) for i in sure] + [(k, "unsure", int(i)) for i in unsure]
    return chosen


def read_examples(
    source: Source, predictions: Predictions, thresholds: NDArray[Any]
) -> ExitExamples:
    """Chooses examples among the test images and reads them.

    Args:
        source: the data.
        predictions: of the test images.
        thresholds: T_k [K], of log-odds.
    """
    candidates = predictions.positions % source.spacing("test", CANDIDATES) == 0
    chosen = choose_examples(predictions.log_odds[:, candidates], thresholds)
    exits, kinds, samples = (np.array(column) for column in zip(*chosen, strict=True))
    wanted = predictions.positions[candidates][samples]
    thumbnails = {
        int(position): _thumbnail(image)
        for batch in source.images_at("test", np.unique(wanted), _BATCH_SIZE)
        for position, image in zip(batch["index"], batch["image"], strict=True)
    }
    return ExitExamples(
        images=np.stack([thumbnails[position] for position in wanted.tolist()]),
        exits=exits,
        kinds=kinds,
        labels=predictions.labels[candidates][samples],
        predicted=predictions.predicted[:, candidates][exits, samples],
        confidences=predictions.confidences[:, candidates][exits, samples],
    )


def _thumbnail(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    picture = Image.fromarray(image)
    picture.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE))
    return np.asarray(picture)

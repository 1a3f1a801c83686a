"""Which images make which batch: pure functions of a seed and a number.

Nothing here is carried from one batch to the next, so a run resumes at any step at once, and every
process computes the same global batch and reads only its own rows of it.
"""

from collections.abc import Iterator

import numpy as np

# The last entry of a generator's seed says what its numbers are for.
_SHUFFLING = 0
_AUGMENTING = 1


def epoch_permutation(seed: int, epoch: int, num_images: int) -> np.ndarray:
    """Returns the order, int64[num_images], in which `epoch` goes through the training images."""
    return np.random.default_rng([seed, epoch, _SHUFFLING]).permutation(num_images)


def training_rows(
    seed: int, first_step: int, num_images: int, batch_size: int
) -> Iterator[np.ndarray]:
    """Yields the images, int64[batch_size], of each global batch from `first_step` on, endlessly.

    An epoch is `num_images // batch_size` steps; the few images that its permutation leaves over
    are not used in that epoch.
    """
    steps_per_epoch = num_images // batch_size
    epoch, step = divmod(first_step, steps_per_epoch)
    while True:
        permutation = epoch_permutation(seed, epoch, num_images)
        for first in range(step * batch_size, steps_per_epoch * batch_size, batch_size):
            yield permutation[first : first + batch_size]
        epoch, step = epoch + 1, 0


def augmentation_generator(seed: int, step: int) -> np.random.Generator:
    """Returns the source of the random augmentation of the global batch of `step`."""
    return np.random.default_rng([seed, step, _AUGMENTING])


def part_of_batch(batch_size: int, process_index: int, process_count: int) -> slice:
    """Returns the rows of a global batch that process `process_index` reads."""
    if batch_size % process_count:
        raise ValueError(f"{process_count} processes cannot share a batch of {batch_size} evenly")
    rows = batch_size // process_count
    return slice(process_index * rows, (process_index + 1) * rows)


def evaluation_rows(
    num_images: int, batch_size: int, process_index: int = 0, process_count: int = 1
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (image int32[batch_size], mask bool[batch_size]) of one process's evaluation batches.

    Over all processes every image occurs exactly once under a true mask; all processes get equally
    many batches of `batch_size` rows. Rows with a false mask repeat the last image.
    """
    rows_of_a_round = batch_size * process_count
    for first in range(0, num_images, rows_of_a_round):
        start = first + process_index * batch_size
        rows = np.arange(start, start + batch_size, dtype=np.int32)
        yield np.minimum(rows, num_images - 1), rows < num_images


def rows_at(positions: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """As `evaluation_rows` for one process, but only of the images at some positions [n]."""
    for rows, mask in evaluation_rows(len(positions), batch_size):
        yield positions[rows].astype(np.int32), mask

"""Choices among images that depend on nothing but the data set: held-out images and long tails.

They are the same for every `config.seed`, so that runs with different seeds train on the same
images, choose thresholds on the same images and can be compared.
"""

import numpy as np

# Kept apart so that one choice does not follow from the other.
_HOLDOUT_SEED = 2022
_LONG_TAIL_SEED = 2019


def stratified_choice(labels: np.ndarray, count: int) -> np.ndarray:
    """Returns `count` positions in `labels`, ascending, each class in proportion to its size.

    Every class gives the whole part of its proportional share; the positions still missing are
    taken from the classes with the largest remainders in float64, the lower class first among
    equals. But no class gives its last image, so at most `most_to_cut` are returned.
    """
    sizes = np.bincount(labels)
    most = np.maximum(sizes - 1, 0)
    quotas = sizes * count / max(1, len(labels))
    taken = np.minimum(np.floor(quotas).astype(int), most)
    while missing := min(count, most.sum()) - taken.sum():
        by_remainder = np.argsort(taken - quotas, kind="stable")
        has_more = taken[by_remainder] < most[by_remainder]
        taken[by_remainder[has_more][:missing]] += 1
    generator = np.random.default_rng(_HOLDOUT_SEED)
    chosen = [
        generator.permutation(positions)[:count_of_class]
        for positions, count_of_class in zip(positions_by_class(labels), taken, strict=True)
    ]
    return np.sort(np.concatenate(chosen))


def positions_by_class(labels: np.ndarray, num_classes: int = 0) -> list[np.ndarray]:
    """Returns the positions of each class's images in `labels`, ascending, from class 0 on.

    There are as many classes as the labels have, but at least `num_classes`. The labels are sorted
    once: comparing them all with each class takes minutes for millions of thousands of classes.
    """
    ends = np.cumsum(np.bincount(labels, minlength=num_classes))
    return np.split(np.argsort(labels, kind="stable"), ends[:-1])


def most_to_cut(labels: np.ndarray) -> int:
    """Returns how many images can be taken away so that every class keeps one."""
    return len(labels) - len(np.unique(labels))


def random_choice(num_images: int, count: int) -> np.ndarray:
    """Returns `count` of `num_images` positions, ascending, where no labels are at hand."""
    generator = np.random.default_rng(_HOLDOUT_SEED)
    return np.sort(generator.choice(num_images, count, replace=False))


def without(num_images: int, chosen: np.ndarray) -> np.ndarray:
    """Returns the positions of `num_images` images that are not `chosen`, ascending."""
    return np.setdiff1d(np.arange(num_images), chosen, assume_unique=True)


def long_tailed_counts(largest: int, num_classes: int, imbalance_factor: float) -> np.ndarray:
    """Returns how many images, int[num_classes], each class keeps (Cui et al., CVPR 2019).

    Class c keeps floor(largest / imbalance_factor**(c / (num_classes - 1))), so the sizes fall
    exponentially from `largest` to `largest` / imbalance_factor.
    """
    exponents = np.arange(num_classes) / (num_classes - 1)
    # Multiplying by a power of 1 / imbalance_factor, which is rounded, could lose a whole image.
    return np.floor(largest / imbalance_factor**exponents).astype(int)


def long_tailed_choice(labels: np.ndarray, imbalance_factor: float) -> np.ndarray:
    """Returns the positions in `labels`, ascending, that a long-tailed training set keeps."""
    sizes = np.bincount(labels)
    kept = long_tailed_counts(int(sizes.max()), len(sizes), imbalance_factor)
    generator = np.random.default_rng(_LONG_TAIL_SEED)
    chosen = [
        generator.permutation(positions)[:count_of_class]
        for positions, count_of_class in zip(positions_by_class(labels), kept, strict=True)
    ]
    return np.sort(np.concatenate(chosen))

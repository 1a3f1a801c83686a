"""Held-out images and long tails: deterministic, in proportion, and nothing counted twice."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2w_jax.data import splits

some_labels = st.lists(st.integers(0, 5), min_size=1, max_size=80).map(np.array)


@given(labels=some_labels, data=st.data())
def test_a_stratified_choice_is_in_proportion_and_leaves_one_of_each(labels, data):
    count = data.draw(st.integers(0, len(labels)))
    chosen = splits.stratified_choice(labels, count)
    assert len(np.unique(chosen)) == len(chosen) == min(count, splits.most_to_cut(labels))
    sizes = np.bincount(labels)
    taken = np.bincount(labels[chosen], minlength=len(sizes))
    assert (taken <= np.maximum(sizes - 1, 0)).all()
    shares = sizes * count / len(labels)
    # What a small class cannot give the others give.
    has_given_all = taken == sizes - 1
    missing = np.maximum(shares - taken, 0)[has_given_all].sum()
    assert (taken > shares - 1)[~has_given_all].all()
    assert (np.maximum(taken - shares, 0) < 1 + missing).all()


def test_classes_of_one_image_change_nothing_for_the_others():
    labels = np.array([0] * 10 + [1] + [2] * 20 + [3])
    chosen = splits.stratified_choice(labels, 7)
    np.testing.assert_array_equal(np.bincount(labels[chosen], minlength=4), [2, 0, 5, 0])


def test_a_choice_is_the_same_every_time():
    labels = np.arange(500) % 7
    first, second = (splits.stratified_choice(labels, 50) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(splits.random_choice(500, 50), splits.random_choice(500, 50))


def test_the_choices_are_those_that_runs_were_begun_with():
    """With others a run that goes on would hold out images that it was trained on.

    Where a release of NumPy draws other numbers, that is to be known as well.
    """
    labels = np.arange(60) % 3
    assert splits.stratified_choice(labels, 6).tolist() == [10, 11, 14, 30, 42, 52]
    assert splits.random_choice(60, 6).tolist() == [5, 11, 13, 36, 38, 42]
    tail = splits.long_tailed_choice(labels, 10)
    assert tail[labels[tail] == 1].tolist() == [7, 25, 28, 49, 52, 55]
    assert tail[labels[tail] == 2].tolist() == [14, 35]


class Compared(np.ndarray):
    """Labels that count how many of them were compared with something."""

    count = 0

    def __eq__(self, other):
        Compared.count += self.size
        return np.asarray(self) == other


@pytest.mark.parametrize("choice", [splits.stratified_choice, splits.long_tailed_choice])
def test_the_work_for_a_choice_does_not_grow_with_images_times_classes(choice, monkeypatch):
    monkeypatch.setattr(Compared, "count", 0)
    choice((np.arange(2000) % 500).view(Compared), 100)
    assert Compared.count <= 10 * 2000


@given(labels=some_labels, more=st.integers(0, 3))
def test_the_positions_of_classes_are_those_found_one_by_one(labels, more):
    num_classes = int(labels.max()) + 1 + more
    found = splits.positions_by_class(labels, num_classes)
    assert len(found) == num_classes
    for label, positions in enumerate(found):
        np.testing.assert_array_equal(positions, np.flatnonzero(labels == label))


def test_images_are_not_held_out_for_being_in_a_long_tail():
    """Drawn from the same numbers the tail's images would be those to hold out."""
    labels = np.arange(1000) % 2
    tail = splits.long_tailed_choice(labels, 2.0)
    held_out = splits.stratified_choice(labels, 500)
    of_second = [np.intersect1d(chosen, np.flatnonzero(labels)) for chosen in (tail, held_out)]
    assert len(of_second[0]) == len(of_second[1]) == 250
    assert 80 < len(np.intersect1d(*of_second)) < 170


@given(num_images=st.integers(1, 100), data=st.data())
def test_the_rest_is_the_complement(num_images, data):
    chosen = splits.random_choice(num_images, data.draw(st.integers(0, num_images)))
    rest = splits.without(num_images, chosen)
    assert sorted([*chosen, *rest]) == list(range(num_images))


@pytest.mark.parametrize(
    ("factor", "total"), [(200, 9502), (100, 10847), (50, 12608), (20, 15907), (10, 19573)]
)
def test_long_tailed_cifar100_has_the_published_sizes(factor, total):
    """Cui et al., CVPR 2019: 500 images of the first class, 500 / factor of the last."""
    counts = splits.long_tailed_counts(500, 100, factor)
    assert counts[0] == 500
    assert counts[-1] in (500 // factor, 500 // factor - 1)
    assert (np.diff(counts) <= 0).all()
    assert abs(int(counts.sum()) - total) <= 1


@pytest.mark.parametrize("factor", range(1, 99))
def test_long_tailed_sizes_are_those_of_exact_arithmetic(factor):
    """98 / 49 is 2; 98 times a rounded 1/49 is less."""
    for c, count in enumerate(splits.long_tailed_counts(98, 10, factor)):
        # count <= 98 / factor**(c / 9) < count + 1, to the ninth power.
        assert int(count) ** 9 * factor**c <= 98**9 < (int(count) + 1) ** 9 * factor**c


def test_a_long_tail_keeps_what_its_counts_say():
    labels = np.repeat(np.arange(10), 50)
    np.random.default_rng(0).shuffle(labels)
    kept = splits.long_tailed_choice(labels, 10)
    np.testing.assert_array_equal(np.bincount(labels[kept]), splits.long_tailed_counts(50, 10, 10))
    np.testing.assert_array_equal(kept, splits.long_tailed_choice(labels, 10))

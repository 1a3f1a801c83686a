"""The batch of a step is a function of (seed, step); evaluation sees every image exactly once."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2w_jax.data import order

sizes = st.integers(1, 60)


@given(seed=st.integers(0, 2**32 - 1), num_images=sizes, data=st.data())
def test_training_rows_resume_at_any_step(seed, num_images, data):
    batch_size = data.draw(st.integers(1, num_images))
    first_step = data.draw(st.integers(0, 40))
    from_the_start = order.training_rows(seed, 0, num_images, batch_size)
    resumed = order.training_rows(seed, first_step, num_images, batch_size)
    for expected, rows in zip(
        itertools.islice(from_the_start, first_step, first_step + 5), resumed, strict=False
    ):
        np.testing.assert_array_equal(rows, expected)


@given(seed=st.integers(0, 2**32 - 1), num_images=sizes, data=st.data())
def test_an_epoch_repeats_no_image_and_the_next_has_another_order(seed, num_images, data):
    batch_size = data.draw(st.integers(1, num_images))
    steps = num_images // batch_size
    rows = list(itertools.islice(order.training_rows(seed, 0, num_images, batch_size), 2 * steps))
    first, second = np.concatenate(rows[:steps]), np.concatenate(rows[steps:])
    for images in (first, second):
        assert len(np.unique(images)) == len(images) == steps * batch_size
        assert images.min() >= 0
        assert images.max() < num_images
    # Few images may well come in one order twice.
    if len(first) >= 20:
        assert (first != second).any()


def test_epochs_and_seeds_have_their_own_order():
    orders = [order.epoch_permutation(seed, epoch, 100) for seed in (0, 1) for epoch in (0, 1)]
    for first, second in itertools.combinations(orders, 2):
        assert (first != second).any()


def test_order_and_augmentation_are_those_that_runs_were_begun_with():
    """With others a run that goes on would see some images twice in its epoch, and some never.

    Where a release of NumPy draws other numbers, that is to be known as well.
    """
    assert order.epoch_permutation(3, 7, 10).tolist() == [3, 4, 2, 6, 1, 9, 7, 0, 8, 5]
    assert next(order.training_rows(3, 7 * 5 + 1, 10, 2)).tolist() == [2, 6]
    generator = order.augmentation_generator(3, 7)
    assert generator.integers(0, 1000, 4).tolist() == [182, 315, 487, 130]


def test_steps_and_seeds_have_their_own_augmentation_and_it_does_not_follow_the_order():
    drawn = [
        order.augmentation_generator(seed, step).permutation(100)
        for seed in (0, 1)
        for step in (0, 1)
    ]
    orders = [order.epoch_permutation(seed, epoch, 100) for seed in (0, 1) for epoch in (0, 1)]
    for first, second in itertools.combinations(drawn + orders, 2):
        assert (first != second).any()


def test_starting_late_costs_no_replay(monkeypatch):
    """A million steps in, the first batch needs one permutation, that of its own epoch."""
    epochs = []

    def permutation(seed, epoch, num_images):
        epochs.append(epoch)
        return np.arange(num_images)

    monkeypatch.setattr(order, "epoch_permutation", permutation)
    rows = next(order.training_rows(0, 1_000_000, 50, 7))
    # Seven steps make an epoch, and this one is the second of its own.
    assert epochs == [142_857]
    np.testing.assert_array_equal(rows, np.arange(7, 14))


@given(rows=st.integers(1, 9), process_count=st.integers(1, 9))
def test_processes_share_a_batch(rows, process_count):
    batch = np.arange(rows * process_count)
    parts = [
        batch[order.part_of_batch(len(batch), process, process_count)]
        for process in range(process_count)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), batch)


def test_processes_that_cannot_share_a_batch_are_refused():
    with pytest.raises(ValueError, match="3 processes cannot share a batch of 8"):
        order.part_of_batch(8, 0, 3)


@given(num_images=st.integers(0, 200), batch_size=sizes, process_count=st.integers(1, 8))
def test_evaluation_sees_every_image_once(num_images, batch_size, process_count):
    batches = [
        list(order.evaluation_rows(num_images, batch_size, process, process_count))
        for process in range(process_count)
    ]
    assert len({len(of_process) for of_process in batches}) == 1
    seen = []
    for rows, mask in itertools.chain.from_iterable(batches):
        assert len(rows) == len(mask) == batch_size
        assert ((rows >= 0) & (rows < num_images)).all()
        seen.extend(rows[mask])
    assert sorted(seen) == list(range(num_images))

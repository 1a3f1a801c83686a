"""The vectorised allocation against a loop over samples, and over several devices."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from l2w_jax.early_exit import exit_shares
from l2w_jax.training.allocation import allocate, allocate_globally, allocated_mean


def allocate_one_by_one(confidences, shares):
    """Section 3.3 of the paper, sample by sample."""
    num_samples, num_exits = confidences.shape
    exits = np.full(num_samples, num_exits - 1)
    left = list(range(num_samples))
    for k in range(num_exits - 1):
        count = int(np.floor(np.float32(num_samples) * shares[k]))
        left.sort(key=lambda i: (-confidences[i, k], i))
        for i in left[:count]:
            exits[i] = k
        left = sorted(left[count:])
    return exits


# Few shapes, since each is compiled, and few distinct values, so that ties are the rule.
TIED_CONFIDENCES = hnp.arrays(
    np.float32,
    st.sampled_from([(1, 1), (1, 3), (2, 5), (7, 2), (40, 1), (23, 4), (40, 5)]),
    elements=st.sampled_from([0.1, 0.2, 0.5, 0.9, 1]),
)


@settings(max_examples=60, deadline=None)
@given(confidences=TIED_CONFIDENCES, q=st.floats(0.1, 3))
def test_allocation_equals_a_loop_over_samples(confidences, q):
    shares = exit_shares(q, confidences.shape[1])
    allocation = np.asarray(allocate(jnp.asarray(confidences), shares))
    assert (allocation.sum(axis=1) == 1).all()
    np.testing.assert_array_equal(
        allocation.argmax(axis=1), allocate_one_by_one(confidences, shares)
    )


def test_a_count_that_only_float32_rounds_up_to_a_whole_number_is_that_number():
    """As for thresholds: 10 times the float32 below 0.7 is 7 there, and less in float64."""
    shares = np.float32([0.7, 0.3])
    assert 10 * float(shares[0]) < 7
    allocation = allocate(jnp.arange(20.0).reshape(10, 2), shares)
    assert allocation.sum(axis=0).tolist() == [7, 3]


def test_devices_allocate_as_one():
    generator = np.random.default_rng(0)
    confidences = jnp.asarray(generator.integers(0, 4, (4, 6, 3)) / 4)
    shares = exit_shares(0.75, 3)
    over_devices = jax.vmap(lambda c: allocate_globally(c, shares, "device"), axis_name="device")(
        confidences
    )
    np.testing.assert_array_equal(
        over_devices.reshape(24, 3), allocate(confidences.reshape(24, 3), shares)
    )


def test_means_of_exits_count_the_samples_of_all_devices():
    generator = np.random.default_rng(1)
    losses = jnp.asarray(generator.uniform(size=(4, 6, 3)))
    allocation = jax.nn.one_hot(generator.integers(0, 2, (4, 6)), 3).astype(bool)
    per_device = jax.vmap(
        lambda losses, allocation: allocated_mean(losses, allocation, "device"),
        axis_name="device",
    )(losses, allocation)
    expected = sum(
        losses.reshape(24, 3)[:, k][allocation.reshape(24, 3)[:, k]].mean() for k in range(2)
    )
    np.testing.assert_allclose(per_device.mean(), expected, rtol=1e-6)


def test_exit_without_samples_adds_nothing():
    allocation = jnp.array([[True, False], [True, False]])
    losses = jnp.array([[1.0, 7.0], [3.0, jnp.inf]])
    assert allocated_mean(losses, allocation) == 2

"""The shares of samples that are meant for each exit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2w_jax.models.exit_shares import exit_shares


@given(q=st.floats(0.01, 4), num_exits=st.integers(1, 12))
def test_shares_are_a_geometric_distribution(q, num_exits):
    shares = exit_shares(q, num_exits)
    assert shares.dtype == np.float32
    expected = np.float64(q) ** np.arange(1, num_exits + 1)
    np.testing.assert_allclose(shares, expected / expected.sum(), rtol=2e-5)


@pytest.mark.parametrize("q", [0, -1, float("nan"), float("inf"), 1e-50, 1e50])
def test_impossible_q_is_refused(q):
    with pytest.raises(ValueError, match="q is"):
        exit_shares(q, 4)


def test_impossible_number_of_exits_is_refused():
    with pytest.raises(ValueError, match="num_exits is 0"):
        exit_shares(0.5, 0)


@pytest.mark.parametrize("q", [1.95, 20.0, 0.05, 1e-10])
@pytest.mark.parametrize("num_exits", [30, 200])
def test_powers_that_a_float32_does_not_hold_give_shares_all_the_same(q, num_exits):
    shares = exit_shares(q, num_exits)
    assert shares.dtype == np.float32
    assert shares.sum() == pytest.approx(1)
    largest = np.sort(shares)[::-1]
    assert list(largest) == list(shares if q < 1 else shares[::-1])
    np.testing.assert_allclose(largest[1:4] / largest[:3], min(q, 1 / q), rtol=1e-4)

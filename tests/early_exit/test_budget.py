"""Budgeted-batch classification against recorded figures and a sample-by-sample transcription."""

import json
import math
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from l2w_jax.early_exit import budgeted_curve, confidence, exit_shares, find_thresholds
from l2w_jax.early_exit.budget import (
    CURVE_QS,
    budgeted_curve_from_confidences,
    confidences_of,
    first_exits,
    operating_point,
)

GOLDEN = Path(__file__).parents[1] / "golden"
GOLDEN_CASES = json.loads((GOLDEN / "budgeted.json").read_text())


@pytest.fixture(scope="module")
def golden_arrays():
    with np.load(GOLDEN / "budgeted.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_thresholds_equal_the_recorded_ones(name, golden_arrays):
    case = GOLDEN_CASES[name]
    confidences = confidences_of(golden_arrays[f"{name}_val_probs"])
    for row in case["rows"]:
        shares = exit_shares(row["p_index"] / 20, case["num_exits"])
        np.testing.assert_allclose(shares, row["probs"], rtol=3e-7)
        thresholds = find_thresholds(confidences, shares)
        assert thresholds.dtype == np.float32
        np.testing.assert_array_equal(thresholds, np.float32(row["thresholds"]))


@pytest.mark.parametrize("name", GOLDEN_CASES)
@pytest.mark.parametrize("split", ["val", "test"])
def test_curve_equals_the_recorded_one(name, split, golden_arrays):
    case = GOLDEN_CASES[name]
    curve = budgeted_curve(
        golden_arrays[f"{name}_val_probs"],
        golden_arrays[f"{name}_{split}_probs"],
        golden_arrays[f"{name}_{split}_labels"],
        case["mul_adds"],
    )
    assert [point["q"] for point in curve] == [row["p_index"] / 20 for row in case["rows"]]
    for point, row in zip(curve, case["rows"], strict=True):
        assert point["top1"] == pytest.approx(row[f"{split}_acc"], abs=1e-3)
        assert point["mul_adds"] == pytest.approx(row[f"{split}_mul_adds"], rel=1e-9)


def naive_thresholds(confidences, shares):
    """Walk down the sorted samples of each exit, one by one, counting those not yet taken."""
    num_exits, num_samples = confidences.shape
    thresholds = [1e8] * num_exits
    taken = [False] * num_samples
    for k in range(num_exits - 1):
        wanted = math.floor(np.float32(num_samples) * shares[k])
        count = 0
        for i in sorted(range(num_samples), key=lambda i: -confidences[k, i]):
            if not taken[i]:
                count += 1
                if count == wanted:
                    thresholds[k] = confidences[k, i]
                    break
        for i in range(num_samples):
            if confidences[k, i] >= thresholds[k]:
                taken[i] = True
    thresholds[-1] = -1e8
    return np.float32(thresholds)


def naive_exits(confidences, thresholds):
    return [
        next(k for k, threshold in enumerate(thresholds) if row[k] >= threshold)
        for row in confidences.T
    ]


# Few distinct values make ties, within an exit and across exits, the rule.
TIED_OR_NOT = st.one_of(
    st.sampled_from([np.float32(v) for v in (0.25, 0.5, 0.75, 1.0)]),
    st.floats(0, 1, width=32),
)
CONFIDENCES = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 6), st.integers(1, 40)),
    elements=TIED_OR_NOT,
    fill=TIED_OR_NOT,
)
QS = st.one_of(st.sampled_from(CURVE_QS), st.floats(0.01, 4))


@given(confidences=CONFIDENCES, q=QS)
@settings(max_examples=300, deadline=None)
def test_thresholds_and_exits_equal_a_sample_by_sample_walk(confidences, q):
    shares = exit_shares(q, len(confidences))
    thresholds = find_thresholds(confidences, shares)
    np.testing.assert_array_equal(thresholds, naive_thresholds(confidences, shares))
    np.testing.assert_array_equal(
        first_exits(confidences, thresholds), naive_exits(confidences, thresholds)
    )


@given(confidences=CONFIDENCES, q=QS, seed=st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_the_order_of_the_samples_is_irrelevant(confidences, q, seed):
    shares = exit_shares(q, len(confidences))
    shuffled = np.random.default_rng(seed).permutation(confidences, axis=1)
    np.testing.assert_array_equal(
        find_thresholds(shuffled, shares), find_thresholds(confidences, shares)
    )


def test_an_early_exit_takes_a_sample_that_a_later_threshold_admits():
    # Exit 1 takes sample 0. Exit 2 takes the best one left, sample 2, although sample 0 is as
    # confident there: it is counted once.
    confidences = np.float32([[0.9, 0.1, 0.2, 0.3], [0.8, 0.1, 0.8, 0.3], [0.5, 0.5, 0.5, 0.5]])
    thresholds = find_thresholds(confidences, np.float32([0.25, 0.25, 0.5]))
    np.testing.assert_array_equal(thresholds, np.float32([0.9, 0.8, -1e8]))
    assert first_exits(confidences, thresholds).tolist() == [0, 2, 1, 2]


def test_equal_confidences_leave_together_and_starve_a_later_exit():
    confidences = np.full((3, 8), 0.5, np.float32)
    thresholds = find_thresholds(confidences, np.float32([0.25, 0.25, 0.5]))
    np.testing.assert_array_equal(thresholds, np.float32([0.5, 1e8, -1e8]))
    assert first_exits(confidences, thresholds).tolist() == [0] * 8


def test_float64_confidences_are_compared_as_float32():
    # A third in float64 lies below its float32 neighbour, which the threshold is stored as.
    confidences = np.array([[1 / 3, 0.1], [0.5, 0.5]])
    thresholds = find_thresholds(confidences, np.float32([0.5, 0.5]))
    assert first_exits(confidences, thresholds).tolist() == [0, 1]


def test_curve_has_the_columns_of_its_table_and_its_shares_add_up_to_the_cost():
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(4), size=(3, 50))
    mul_adds = [1e6, 2e6, 4e6]
    curve = budgeted_curve(probs, probs, rng.integers(0, 4, 50), mul_adds)
    assert len(curve) == 39
    for point in curve:
        assert list(point) == ["q", "mul_adds", "top1", "share_1", "share_2", "share_3"]
        shares = [point[f"share_{k}"] for k in (1, 2, 3)]
        assert sum(shares) == pytest.approx(1)
        assert point["mul_adds"] == pytest.approx(np.dot(shares, mul_adds))
    costs = [point["mul_adds"] for point in curve]
    assert costs[0] < 1.2e6 and costs[-1] > 2e6


def test_operating_point_counts_each_sample_at_its_own_exit():
    correct = np.array([[True, False, True], [False, True, False]])
    point = operating_point(np.array([0, 1, 1]), correct, [10, 40])
    assert (point.cost, point.top1) == pytest.approx((30, 200 / 3))
    assert point.row() == pytest.approx(
        {"mul_adds": 30, "top1": 200 / 3, "share_1": 1 / 3, "share_2": 2 / 3}
    )


def test_curve_of_fifty_thousand_samples_takes_at_most_a_second():
    rng = np.random.default_rng(0)
    confidences = rng.random((5, 50_000), dtype=np.float32)
    correct = rng.random((5, 50_000)) < 0.7
    durations = []
    for _ in range(3):
        start = time.process_time()
        budgeted_curve_from_confidences(confidences, confidences, correct, [1, 2, 3, 4, 5])
        durations.append(time.process_time() - start)
    assert min(durations) <= 1


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_confidences_in_which_many_round_to_one_are_refused(dtype):
    logits = jnp.array([[[9.0, 0.0], [8.0, 0.0]]] * 2, dtype)
    probs = jax.nn.softmax(logits)
    message = "at least float32 is expected, as l2w_jax.early_exit.confidence gives"
    with pytest.raises(ValueError, match=message):
        find_thresholds(probs.max(axis=-1), exit_shares(1, 2))
    with pytest.raises(ValueError, match=message):
        budgeted_curve(probs, probs, [0, 0], [1, 2])
    thresholds = find_thresholds(confidence(logits), exit_shares(1, 2))
    assert first_exits(confidence(logits), thresholds).tolist() == [0, 1]


def test_nan_and_infinity_are_refused():
    good = np.full((2, 3, 4), 0.25)
    for value in (np.nan, np.inf):
        bad = good.copy()
        bad[1, 2, 3] = value
        with pytest.raises(ValueError, match="NaN or infinite"):
            budgeted_curve(bad, good, [0, 1, 2], [1, 2])
        with pytest.raises(ValueError, match="NaN or infinite"):
            budgeted_curve(good, bad, [0, 1, 2], [1, 2])
        with pytest.raises(ValueError, match="NaN or infinite"):
            find_thresholds(bad[:, :, 3], exit_shares(1, 2))
        with pytest.raises(ValueError, match="NaN or infinite"):
            first_exits(bad[:, :, 3], [0.5, -1e8])
    with pytest.raises(ValueError, match="NaN is not a threshold"):
        first_exits(good[:, :, 3], [np.nan, -1e8])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((2, 3), (2, 3, 4), 3, 2), "probs have shape"),
        (((2, 0, 4), (2, 3, 4), 3, 2), "probs have shape"),
        (((3, 3, 4), (2, 3, 4), 3, 2), "exits set thresholds"),
        (((2, 3, 4), (2, 3, 4), 4, 2), "labels have shape"),
        (((2, 3, 4), (2, 3, 4), 3, 3), "mul_adds have shape"),
    ],
)
def test_shapes_that_do_not_match_are_refused(arguments, message):
    val_shape, test_shape, num_labels, num_costs = arguments
    with pytest.raises(ValueError, match=message):
        budgeted_curve(
            np.full(val_shape, 0.25),
            np.full(test_shape, 0.25),
            np.zeros(num_labels, int),
            np.ones(num_costs),
        )


def test_thresholds_and_shares_of_another_length_are_refused():
    confidences = np.full((3, 4), 0.5)
    with pytest.raises(ValueError, match="shares have shape"):
        find_thresholds(confidences, exit_shares(1, 2))
    with pytest.raises(ValueError, match="thresholds have shape"):
        first_exits(confidences, [0.5, -1e8])
    with pytest.raises(ValueError, match="confidences have shape"):
        find_thresholds(confidences[0], exit_shares(1, 3))
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        find_thresholds(confidences, [0.5, -0.1, 0.6])

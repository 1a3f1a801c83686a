"""Scores that decide who leaves: what they order, and where they saturate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from l2w_jax.early_exit import EarlyExitPredictor, exit_shares, find_thresholds, rules
from l2w_jax.early_exit.budget import EVERYBODY_LEAVES, NOBODY_LEAVES, first_exits

LOGITS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 20), st.integers(2, 6)),
    elements=st.one_of(st.sampled_from([0.0, 1.0, 3.0]), st.floats(-50, 50, width=32)),
)


def exact_log_odds(logits):
    """In float64, class by class."""
    scores = []
    for row in np.float64(logits):
        others = np.delete(row, row.argmax()) - row.max()
        scores.append(-np.log(np.exp(others).sum()))
    return np.array(scores)


@given(logits=LOGITS)
@settings(max_examples=100, deadline=None)
def test_log_odds_are_those_of_the_largest_probability(logits):
    odds = np.asarray(rules.log_odds(logits))
    np.testing.assert_allclose(odds, exact_log_odds(logits), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(nn.sigmoid(odds), rules.confidence(logits), rtol=1e-5)


def test_log_odds_tell_apart_what_float32_rounds_to_one():
    logits = np.float32([[30, 0, 0], [31, 0, 0], [90, 0, 0]])
    assert set(np.asarray(rules.confidence(logits))) == {1}
    np.testing.assert_allclose(rules.log_odds(logits), logits[:, 0] - np.log(2), rtol=1e-6)
    half = rules.log_odds(jnp.bfloat16(logits))
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, rules.log_odds(logits), rtol=5e-3)


@pytest.mark.parametrize("scale", [1e9, 3e38])
def test_no_score_is_beyond_the_two_special_thresholds(scale):
    scores = np.asarray(rules.log_odds(np.float32([[scale, 0], [0, 0], [1, -scale]])))
    assert (scores < NOBODY_LEAVES).all() and (scores > EVERYBODY_LEAVES).all()
    assert first_exits(np.stack([scores, scores]), [NOBODY_LEAVES, 0]).tolist() == [1] * 3


def test_answers_that_are_not_numbers_have_no_score():
    assert np.isnan(rules.log_odds(np.float32([[np.nan, 0], [np.nan, np.nan]]))).all()


def test_log_odds_of_stored_confidences_are_finite_and_in_order():
    confidences = np.float32([0.25, 0.5, 0.9, 1 - 2**-24, 1])
    odds = rules.log_odds_of_confidences(confidences)
    assert np.isfinite(odds).all() and (np.diff(odds) > 0).all()
    np.testing.assert_allclose(odds[:3], np.log([1 / 3, 1, 9]), rtol=1e-6, atol=1e-7)


class SureNetwork(nn.Module):
    """Three exits, the answers of which are the first pixels times a large number."""

    num_exits: int = 3

    def init_carry(self, images, train):
        return images[:, 0, :3].reshape(len(images), 3, 3)

    def stage(self, k, carry, train):
        return 40 * carry[:, k], carry


@pytest.fixture(scope="module")
def sure_images():
    return np.random.default_rng(0).normal(0, 1, (256, 3, 3, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def sure_logits(sure_images):
    """[K, N, C], half of whose confidences are 1 in float32."""
    return 40 * sure_images[:, 0].transpose(1, 0, 2)


@pytest.mark.parametrize("q", [1, 2])
def test_a_network_that_is_sure_lets_as_many_leave_as_are_asked_for(sure_logits, q):
    confidences = np.asarray(rules.confidence(sure_logits))
    assert (confidences == 1).mean() > 0.5
    shares = exit_shares(q, 3)

    def largest_difference(scores):
        exits = first_exits(scores, find_thresholds(scores, shares))
        return np.abs(np.bincount(exits, minlength=3) / len(exits) - shares).max()

    assert largest_difference(np.asarray(rules.log_odds(sure_logits))) < 0.02
    # Without which there would be nothing to find here.
    assert largest_difference(confidences) > 0.2


def test_a_network_that_is_sure_stops_where_its_scores_say(sure_images, sure_logits):
    scores = np.asarray(rules.log_odds(sure_logits))
    thresholds = find_thresholds(scores, exit_shares(2, 3))
    predict = EarlyExitPredictor(SureNetwork(), {}, thresholds, rule=rules.log_odds)
    decisions = predict(sure_images)
    exits = first_exits(scores, thresholds)
    everyone = np.arange(len(exits))
    np.testing.assert_array_equal(decisions.exits, exits)
    np.testing.assert_array_equal(decisions.labels, sure_logits.argmax(-1)[exits, everyone])
    expected = jax.nn.softmax(sure_logits[exits, everyone]).max(axis=-1)
    np.testing.assert_allclose(decisions.confidences, expected, rtol=1e-5)


def test_rules_that_are_unknown_are_named_with_those_there_are():
    assert rules.checked_rule("log_odds") == "log_odds"
    with pytest.raises(ValueError, match="rule 'luck' is not allowed: must be one of log_odds"):
        rules.checked_rule("luck")

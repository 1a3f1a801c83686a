"""Scores that decide who leaves: what they order, and where they saturate."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from l2w_jax import early_exit
from l2w_jax.early_exit import EarlyExitPredictor, exit_shares, find_thresholds, rules
from l2w_jax.early_exit.budget import EVERYBODY_LEAVES, NOBODY_LEAVES, first_exits
from l2w_jax.models import MultiExitNetwork

LOGITS = hnp.arrays(
    np.float32,
    # Few shapes, since each is compiled.
    st.sampled_from([(20, 2), (20, 5)]),
    # XLA takes subnormal numbers for 0.
    elements=st.one_of(
        st.sampled_from([0.0, 1.0, 3.0]), st.floats(-50, 50, width=32, allow_subnormal=False)
    ),
)


def exact_log_odds(logits):
    """In float64, class by class."""
    scores = []
    for row in np.float64(logits):
        others = np.delete(row, row.argmax()) - row.max()
        scores.append(-np.log(np.exp(others).sum()))
    return np.array(scores)


@given(logits=LOGITS)
@settings(max_examples=40, deadline=None)
def test_log_odds_are_those_of_the_largest_probability(logits):
    odds = np.asarray(jax.jit(rules.log_odds)(logits))
    np.testing.assert_allclose(odds, exact_log_odds(logits), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(nn.sigmoid(odds), rules.confidence(logits), rtol=1e-5)


def test_log_odds_tell_apart_what_float32_rounds_to_one():
    logits = np.float32([[30, 0, 0], [31, 0, 0], [90, 0, 0]])
    assert set(np.asarray(rules.confidence(logits))) == {1}
    np.testing.assert_allclose(rules.log_odds(logits), logits[:, 0] - np.log(2), rtol=1e-6)
    half = rules.log_odds(jnp.bfloat16(logits))
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, rules.log_odds(logits), rtol=5e-3)


@given(logits=LOGITS)
@settings(max_examples=40, deadline=None)
def test_entropy_and_margin_are_those_of_the_probabilities(logits):
    *others, first = np.sort(np.float64(logits), axis=-1).T
    # Of the logarithms, that of the largest probability too, which float64 would round to 1.
    log_sum = np.log1p(np.exp(np.array(others) - first).sum(axis=0))
    log_probs = np.array([*(others - first), 0 * first]) - log_sum
    probs = np.exp(log_probs)
    # XLA takes a probability below the least normal number for 0.
    probs[probs < np.finfo(np.float32).tiny] = 0
    entropies = -(probs * log_probs).sum(axis=0)
    found = jax.jit(rules.negative_entropy)(logits)
    np.testing.assert_allclose(found, -entropies, rtol=1e-4, atol=1e-37)
    np.testing.assert_allclose(jax.jit(rules.margin)(logits), first - others[-1], rtol=1e-6)


@pytest.mark.parametrize("rule", [rules.negative_entropy, rules.margin])
def test_no_rule_but_confidence_ties_where_the_network_is_sure(rule):
    scores = rule(np.float32([[20, 0, 0], [21, 0, 0], [60, 0, 0]]))
    assert (np.diff(scores) > 0).all()


def test_patience_counts_exits_that_agree_and_orders_equals_by_their_log_odds():
    labels = np.array([[0, 0, 1], [1, 0, 1], [1, 0, 0], [1, 0, 0]])
    odds = np.float32([[5, -1, 99], [5, 80, 90], [0, 0, 0], [1, 2, 3]])
    scores = rules.patience_of_predictions(labels, odds)
    np.testing.assert_array_equal(np.floor(scores), [[1, 1, 1], [1, 2, 2], [2, 3, 1], [3, 4, 2]])
    assert scores[0, 1] < scores[0, 0] < scores[0, 2]
    assert scores[1, 1] < scores[1, 2]
    # Whole numbers are the patience of the literature: the first exit that two agree at.
    assert first_exits(scores, [2, 2, 2, 2]).tolist() == [2, 1, 1]
    surest = rules.patience_of_predictions(np.zeros((30, 1)), np.full((30, 1), 9e7))
    np.testing.assert_array_equal(np.floor(surest)[:, 0], np.arange(1, 31))


def test_patience_of_logits_is_that_of_the_predictions_that_they_are(sure_logits):
    stored = rules.patience_of_predictions(sure_logits.argmax(-1), rules.log_odds(sure_logits))
    assert set(np.floor(stored[-1])) == {1, 2, 3}
    np.testing.assert_array_equal(rules.patience(sure_logits), stored)


@pytest.mark.parametrize("scale", [1e9, 3e38])
def test_no_score_is_beyond_the_two_special_thresholds(scale):
    scores = np.asarray(rules.log_odds(np.float32([[scale, 0], [0, 0], [1, -scale]])))
    assert rules.margin(np.float32([[scale, 0]])) < NOBODY_LEAVES
    assert (scores < NOBODY_LEAVES).all() and (scores > EVERYBODY_LEAVES).all()
    assert first_exits(np.stack([scores, scores]), [NOBODY_LEAVES, 0]).tolist() == [1] * 3


def test_a_class_that_is_ruled_out_changes_no_score():
    for rule in (rules.log_odds, rules.confidence, rules.negative_entropy, rules.margin):
        with_class = rule(np.float32([[1, 3, -np.inf]]))
        np.testing.assert_allclose(with_class, rule(np.float32([[1, 3]])), rtol=1e-6)


def test_scores_of_numpys_wide_numbers_are_those_of_narrow_ones():
    logits = np.array([[0.0], [2.0]]), np.array([[1, 3, -np.inf], [0, -np.inf, -np.inf]])
    for rule in (rules.log_odds, rules.confidence, rules.negative_entropy, rules.margin):
        for of_classes in logits:
            scores = rule(of_classes)
            np.testing.assert_array_equal(scores, rule(of_classes.astype(np.float32)))
            assert np.isfinite(scores).all()


def test_answers_that_are_not_numbers_have_no_score():
    assert np.isnan(rules.log_odds(np.float32([[np.nan, 0], [np.nan, np.nan]]))).all()


def test_log_odds_of_stored_confidences_are_finite_and_in_order():
    confidences = np.float32([0.25, 0.5, 0.9, 1 - 2**-24, 1])
    odds = rules.log_odds_of_confidences(confidences)
    assert np.isfinite(odds).all() and (np.diff(odds) > 0).all()
    np.testing.assert_allclose(odds[:3], np.log([1 / 3, 1, 9]), rtol=1e-6, atol=1e-7)


class SureNetwork(MultiExitNetwork):
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


@pytest.mark.parametrize("rule", rules.RULES)
def test_the_predictor_follows_any_rule(tiny_network, rule):
    model, variables = tiny_network
    images = np.random.default_rng(3).normal(0, 1, (128, 8, 8, 3)).astype(np.float32)
    logits = jax.jit(functools.partial(model.apply, train=False))(variables, images)
    scores = np.asarray(rules.RULES[rule](logits))
    thresholds = find_thresholds(scores, exit_shares(1, 3))
    decisions = EarlyExitPredictor(
        model, variables, thresholds, batch_sizes=[64, 128], rule=rules.RULES[rule]
    )(images)
    assert np.bincount(decisions.exits, minlength=3).min() > 20
    clear = (np.abs(scores - thresholds[:, None]) > 1e-5 * np.abs(thresholds[:, None])).all(axis=0)
    assert clear.mean() > 0.95
    np.testing.assert_array_equal(decisions.exits[clear], first_exits(scores, thresholds)[clear])


# NaN as from an entropy in which a probability of 0 has a logarithm.
@pytest.mark.parametrize("score", [np.nan, np.inf, -np.inf])
def test_a_rule_that_gives_no_score_is_refused(tiny_network, score):
    def rule(logits):
        return jnp.full(len(logits), score)

    predict = EarlyExitPredictor(*tiny_network, [0, 0, 0], rule=rule)
    with pytest.raises(ValueError, match=r"^the rule's score at exit 1 is NaN or infinite"):
        predict(np.zeros((3, 8, 8, 3), np.float32))


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


def test_every_rule_is_there_to_import_beside_the_predictor():
    assert all(getattr(early_exit, name) is rule for name, rule in rules.RULES.items())


def test_rules_that_are_unknown_are_named_with_those_there_are():
    assert rules.checked_rule("log_odds") == "log_odds"
    with pytest.raises(ValueError, match="rule 'luck' is not allowed: must be one of log_odds"):
        rules.checked_rule("luck")

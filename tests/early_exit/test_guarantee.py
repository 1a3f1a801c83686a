"""The promise holds as often as it says, over many held-out samples of one population."""

import math

import numpy as np
import pytest

from l2w_jax.early_exit.budget import first_exits
from l2w_jax.early_exit.guarantee import (
    TooFewImages,
    best_bet,
    betting_p_value,
    guaranteed_thresholds,
    images_needed,
)
from l2w_jax.early_exit.selection import candidates

COSTS = np.array([1.0, 2.0, 4.0])
RISK = 0.02


@pytest.fixture(scope="module")
def population():
    """A hundred thousand images; later exits are right more often, confidence says how likely."""
    rng = np.random.default_rng(0)
    strength = rng.normal(1, 1.5, 100_000) + np.array([[0.0], [0.7], [1.2]])
    confidences = 1 / (1 + np.exp(-strength))
    # One draw for all exits: an image that an early exit gets right, a later one mostly does too.
    luck = 0.8 * rng.random(100_000) + 0.2 * rng.random((3, 100_000))
    return confidences.astype(np.float32), luck < confidences


def true_loss(population, thresholds):
    confidences, correct = population
    exits = first_exits(confidences, thresholds)
    return correct[-1].mean() - correct[exits, np.arange(len(exits))].mean()


def samples(population, count, size):
    confidences, correct = population
    for seed in range(count):
        rows = np.random.default_rng(seed).integers(0, correct.shape[1], size)
        yield confidences[:, rows], correct[:, rows]


def test_the_promise_is_broken_no_more_often_than_allowed(population):
    repeats, confidence = 150, 0.9
    broken, costs = 0, []
    for sample in samples(population, repeats, 1500):
        chosen = guaranteed_thresholds(*sample, COSTS, RISK, confidence)
        broken += true_loss(population, chosen.thresholds) > RISK
        costs.append(COSTS[first_exits(population[0], chosen.thresholds)].mean())
    # Three standard deviations above what is allowed.
    allowed = 1 - confidence
    assert broken / repeats <= allowed + 3 * math.sqrt(allowed * confidence / repeats)
    # Not by never stopping early.
    assert np.mean(costs) < 0.75 * COSTS[-1]


def test_without_a_test_the_promise_would_be_broken_often(population):
    """So that the test above has something to find."""
    broken = 0
    for confidences, correct in samples(population, 40, 1500):
        full = 100 * correct[-1].mean()
        good = [c for c in candidates(confidences, correct, COSTS) if c.top1 >= full - 100 * RISK]
        chosen = min(good, key=lambda candidate: candidate.cost)
        broken += true_loss(population, chosen.thresholds) > RISK
    assert broken / 40 > 0.25


@pytest.mark.parametrize("bet", [0.1, 0.6, 0.95])
def test_a_p_value_is_below_p_with_probability_at_most_p(bet):
    rng = np.random.default_rng(1)
    # The hypothesis holds with equality: 0.05 is lost on average.
    draws = rng.choice([1, 0, -1], p=[0.08, 0.89, 0.03], size=(4000, 300))
    p_values = np.array([betting_p_value(lost, 0.05, bet) for lost in draws])
    for level in (0.01, 0.05, 0.2):
        assert (p_values <= level).mean() <= level + 3 * math.sqrt(level / 4000)


def test_evidence_grows_with_images_and_shrinks_with_losses():
    bet = best_bet(np.zeros(500, int), 0.05)
    p_values = [betting_p_value(np.zeros(n, int), 0.05, bet) for n in (10, 100, 1000)]
    assert 1 > p_values[0] > p_values[1] > p_values[2] > 0
    with_losses = np.zeros(100, int)
    with_losses[:2] = 1
    with_gains = np.zeros(100, int)
    with_gains[:2] = -1
    assert betting_p_value(with_gains, 0.05, bet) < p_values[1]
    assert betting_p_value(with_losses, 0.05, bet) > p_values[1]


def test_the_bet_is_small_where_much_was_lost():
    rng = np.random.default_rng(0)
    lost = {rate: (rng.random(1000) < rate).astype(int) for rate in (0.0, 0.02, 0.1)}
    bets = {rate: best_bet(sample, 0.05) for rate, sample in lost.items()}
    assert 1 / 0.95 > bets[0.0] > bets[0.02] > bets[0.1] == 0


@pytest.mark.parametrize(
    ("risk", "confidence"), [(0.01, 0.95), (0.05, 0.95), (0.01, 0.9), (0.2, 0.999)]
)
def test_lossless_exits_are_promised_with_as_many_images_as_are_asked_for(risk, confidence):
    needed = images_needed(risk, confidence)
    confidences = np.tile(np.linspace(0.5, 1, needed, dtype=np.float32), (3, 1))
    correct = np.ones((3, needed), bool)
    chosen = guaranteed_thresholds(confidences, correct, COSTS, risk, confidence)
    assert math.isfinite(chosen.q) and chosen.p_value <= 1 - confidence
    assert chosen.design_images + chosen.test_images == needed
    with pytest.raises(TooFewImages, match=f"{needed - 1} held-out images .*: {needed} are needed"):
        guaranteed_thresholds(confidences[:, 1:], correct[:, 1:], COSTS, risk, confidence)


def test_the_number_of_images_for_a_tiny_risk_is_found_at_once():
    assert images_needed(1e-9, 0.95) > 3e9


def test_where_early_exits_are_wrong_the_full_network_is_chosen():
    rng = np.random.default_rng(0)
    confidences = rng.random((3, 2000)).astype(np.float32)
    correct = np.zeros((3, 2000), bool)
    correct[-1] = True
    chosen = guaranteed_thresholds(confidences, correct, COSTS, 0.01, 0.95)
    assert chosen.q == math.inf
    assert set(first_exits(confidences, chosen.thresholds)) == {2}


@pytest.mark.parametrize(("risk", "confidence"), [(0, 0.9), (1, 0.9), (0.1, 0), (0.1, 1)])
def test_impossible_promises_are_refused(risk, confidence):
    with pytest.raises(ValueError, match="between 0 and 1"):
        guaranteed_thresholds(np.ones((2, 9)), np.ones((2, 9), bool), [1, 2], risk, confidence)

"""The promise holds as often as it says, over many held-out samples of one population."""

import math

import numpy as np
import pytest

from l2w_jax.early_exit import guarantee
from l2w_jax.early_exit.budget import first_exits
from l2w_jax.early_exit.guarantee import (
    best_bet,
    betting_p_value,
    guaranteed_thresholds,
    images_needed,
)
from l2w_jax.early_exit.selection import SEARCH_QS, candidates, thresholds_of

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


class Gathered(np.ndarray):
    """An array that counts how often samples are taken out of it."""

    count = 0

    def __getitem__(self, index):
        Gathered.count += 1
        return np.asarray(self)[index]


def test_the_images_are_divided_once_and_not_for_each_candidate(population, monkeypatch):
    monkeypatch.setattr(Gathered, "count", 0)
    confidences, correct = (array[:, :3000].view(Gathered) for array in population)
    guaranteed_thresholds(confidences, correct, COSTS, 0.3, 0.9)
    assert 0 < Gathered.count < 10 < len(SEARCH_QS)


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


NUM_IMAGES, NUM_DESIGN = 3000, 1000


@pytest.fixture
def flawless():
    """Images of which every exit is right, however sure it is: all thresholds lose nothing."""
    confidences = np.random.default_rng(5).random(NUM_IMAGES).astype(np.float32)
    return np.tile(confidences, (3, 1)), np.ones((3, NUM_IMAGES), bool)


@pytest.fixture
def traced(monkeypatch):
    """Chooses thresholds; tells too how many images and which bet tested what each were set by."""

    def choose(confidences, correct, costs=COSTS):
        tests, designs = [], []

        def tested(lost, risk, bet):
            tests.append((len(lost), bet))
            return betting_p_value(lost, risk, bet)

        def designed(q, of_images):
            designs.append(of_images)
            return thresholds_of(q, of_images)

        with monkeypatch.context() as spied:
            spied.setattr(guarantee, "betting_p_value", tested)
            spied.setattr(guarantee, "thresholds_of", designed)
            chosen = guaranteed_thresholds(confidences, correct, costs, RISK, 0.95)
        # The first is the full network, which no image sets.
        return chosen, tests, designs[1:]

    return choose


def rows_that_test():
    return np.random.default_rng(0).permutation(NUM_IMAGES)[NUM_DESIGN:]


def test_one_part_of_the_images_sets_thresholds_and_the_other_tests_them(flawless, traced):
    confidences, correct = flawless
    chosen, tests, designs = traced(confidences, correct)
    assert len(tests) == len(designs) == len(SEARCH_QS)
    assert {count for count, _ in tests} == {NUM_IMAGES - NUM_DESIGN} == {chosen.test_images}
    assert {of_images.shape for of_images in designs} == {(3, NUM_DESIGN)}
    # Confidences of images that test are nothing to the thresholds.
    changed = confidences.copy()
    changed[:, rows_that_test()] = 0
    other, *_ = traced(changed, correct)
    np.testing.assert_array_equal(other.thresholds, chosen.thresholds)


def test_the_bet_is_fixed_before_the_test_sees_anything(flawless, traced):
    confidences, correct = flawless
    _, tests, _ = traced(confidences, correct)
    correct[:2, rows_that_test()[::2]] = False
    _, with_losses, _ = traced(confidences, correct)
    assert with_losses[0] == tests[0]


def test_images_in_an_order_are_divided_at_random(flawless, traced):
    confidences, correct = flawless
    confidences.sort(axis=1)
    _, _, designs = traced(confidences, correct)
    assert designs[0].min() < 0.05 and designs[0].max() > 0.95


def test_after_the_first_candidate_that_does_not_pass_none_is_tested(flawless, monkeypatch):
    p_values = iter([0.01, 0.01, 0.9, *[0.01] * len(SEARCH_QS)])
    monkeypatch.setattr(guarantee, "betting_p_value", lambda *_: next(p_values))
    chosen = guaranteed_thresholds(*flawless, COSTS, RISK, 0.95)
    assert chosen.q == SEARCH_QS[1]
    assert next(p_values) == 0.01
    assert len(list(p_values)) == len(SEARCH_QS) - 1


def test_what_early_exits_get_right_alone_makes_up_for_what_they_lose(flawless):
    confidences, correct = flawless
    differs = np.random.default_rng(1).random(NUM_IMAGES)
    correct[:2, differs < 0.03] = False
    correct[2, differs > 0.96] = False
    chosen = guaranteed_thresholds(confidences, correct, COSTS, RISK, 0.95)
    assert chosen.q == SEARCH_QS[-1]


def test_the_cheapest_that_passes_need_not_be_the_last_one(flawless):
    confidences, correct = flawless
    costs = np.array([4.0, 1.0, 2.0])
    chosen = guaranteed_thresholds(confidences, correct, costs, RISK, 0.95)
    assert costs[first_exits(confidences, chosen.thresholds)].mean() < 2


def test_few_images_without_a_loss_stake_nothing():
    assert best_bet(np.zeros(3, int), 0.05) == 0


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
    ("risk", "confidence"),
    [(0.01, 0.95), (0.05, 0.95), (0.01, 0.9), (0.2, 0.999), (0.48, 0.995)],
)
def test_lossless_exits_are_promised_with_as_many_images_as_are_asked_for(risk, confidence):
    needed = images_needed(risk, confidence)
    confidences = np.tile(np.linspace(0.5, 1, needed, dtype=np.float32), (3, 1))
    correct = np.ones((3, needed), bool)
    chosen = guaranteed_thresholds(confidences, correct, COSTS, risk, confidence)
    assert math.isfinite(chosen.q) and chosen.p_value <= 1 - confidence
    assert chosen.design_images + chosen.test_images == needed
    with pytest.raises(ValueError, match=f"{needed - 1} held-out images .*: {needed} are needed"):
        guaranteed_thresholds(confidences[:, 1:], correct[:, 1:], COSTS, risk, confidence)


@pytest.mark.parametrize(("risk", "fewest"), [(0.05, 103), (0.01, 523), (0.48, 13)])
def test_no_more_images_are_asked_for_than_pass(risk, fewest):
    confidence = 0.995 if risk == 0.48 else 0.95
    assert images_needed(risk, confidence) == fewest


@pytest.mark.parametrize("risk", [1e-9, 1e-18, 1e-300])
def test_the_number_of_images_for_a_tiny_risk_is_found_at_once(risk):
    assert 3 / risk < images_needed(risk, 0.95) < 30 / risk


def test_where_early_exits_are_wrong_the_full_network_is_chosen():
    rng = np.random.default_rng(0)
    confidences = rng.random((3, 2000)).astype(np.float32)
    correct = np.zeros((3, 2000), bool)
    correct[-1] = True
    chosen = guaranteed_thresholds(confidences, correct, COSTS, 0.01, 0.95)
    assert chosen.q == math.inf
    assert set(first_exits(confidences, chosen.thresholds)) == {2}


@pytest.mark.parametrize(
    ("risk", "confidence"), [(0, 0.9), (1e-310, 0.9), (1, 0.9), (0.1, 0), (0.1, 1)]
)
def test_impossible_promises_are_refused(risk, confidence):
    with pytest.raises(ValueError, match=r"must be (between 0|at least 1e-300)"):
        guaranteed_thresholds(np.ones((2, 9)), np.ones((2, 9), bool), [1, 2], risk, confidence)


@pytest.mark.parametrize("shape", [(3, 2999), (3, 3001), (2, 3000), (4, 3000)])
def test_nothing_is_promised_by_the_correctness_of_other_samples_or_exits(shape):
    correct = np.ones(shape, bool)
    with pytest.raises(ValueError, match="correctness has shape"):
        guaranteed_thresholds(np.ones((3, 3000)), correct, COSTS, RISK, 0.95)


@pytest.mark.parametrize("costs", [[1.0, 2.0], [1.0, 2.0, 4.0, 8.0]])
def test_nothing_is_promised_by_the_costs_of_other_exits(costs):
    ones = np.ones((3, 3000))
    with pytest.raises(ValueError, match="costs have shape"):
        guaranteed_thresholds(ones, ones.astype(bool), costs, RISK, 0.95)

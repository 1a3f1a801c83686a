import dataclasses
import itertools
import math
import re

import numpy as np
import pytest

from l2w_jax.early_exit.budget import first_exits, operating_point
from l2w_jax.early_exit.selection import (
    SEARCH_QS,
    best_within,
    candidates,
    cheapest_reaching,
    cheapest_without_loss,
    shares_of,
    thresholds_of,
)

COSTS = [1.0, 2.0, 4.0]


@pytest.fixture(scope="module")
def held_out():
    """Confidences and correctness of an easy-to-hard data set on which later exits do better."""
    rng = np.random.default_rng(0)
    strength = rng.normal(0, 1, 3000) + np.array([[0.5], [1.0], [1.5]])
    noise = rng.normal(0, 0.3, (3, 3000))
    confidences = 1 / (1 + np.exp(-strength - noise))
    return confidences.astype(np.float32), rng.random((3, 3000)) < confidences


def test_the_ends_of_the_family_are_the_full_network_and_the_first_exit(held_out):
    confidences, _ = held_out
    assert set(first_exits(confidences, thresholds_of(math.inf, confidences))) == {2}
    assert set(first_exits(confidences, thresholds_of(0, confidences))) == {0}


def test_candidates_grow_cheaper_and_say_what_their_thresholds_do(held_out):
    found = candidates(*held_out, COSTS)
    costs = [candidate.cost for candidate in found]
    assert costs[0] == 4 and costs[-1] == 1
    assert all(later <= earlier + 0.02 for earlier, later in itertools.pairwise(costs))
    confidences, correct = held_out
    for candidate in found:
        point = operating_point(first_exits(confidences, candidate.thresholds), correct, COSTS)
        assert (candidate.cost, candidate.top1) == (point.cost, point.top1)


def test_a_budget_buys_the_most_accurate_that_it_can(held_out):
    found = candidates(*held_out, COSTS)
    for budget in (1, 1.5, 2.7, 4, 100):
        chosen = best_within(found, budget)
        affordable = [candidate for candidate in found if candidate.cost <= budget]
        assert chosen.cost <= budget
        assert chosen.top1 == max(candidate.top1 for candidate in affordable)
    assert best_within(found, 0.99) is None


def test_of_equally_accurate_ones_a_budget_buys_the_cheapest(held_out):
    first = candidates(*held_out, COSTS)[0]
    among = [dataclasses.replace(first, cost=cost, top1=70.0) for cost in (3.0, 2.0, 2.5)]
    assert best_within(among, 4).cost == 2


def test_an_accuracy_is_reached_as_cheaply_as_possible(held_out):
    found = candidates(*held_out, COSTS)
    best = max(candidate.top1 for candidate in found)
    for target in (0, 70, best):
        chosen = cheapest_reaching(found, target)
        assert chosen.top1 >= target
        assert not [c for c in found if c.top1 >= target and c.cost < chosen.cost]
    assert cheapest_reaching(found, best + 0.01) is None


def test_what_loses_nothing_is_the_cheapest_that_is_as_accurate_as_the_full_network(held_out):
    chosen = cheapest_without_loss(*held_out, COSTS)
    full = 100 * held_out[1][-1].mean()
    assert chosen.top1 >= full - 1e-9
    cheaper = [c for c in candidates(*held_out, COSTS) if c.cost < chosen.cost]
    assert cheaper and all(candidate.top1 < full for candidate in cheaper)


def test_where_early_exits_always_lose_all_go_on_to_the_last(held_out):
    confidences, correct = held_out
    correct = np.concatenate([np.zeros_like(correct[:2]), np.ones_like(correct[2:])])
    assert cheapest_without_loss(confidences, correct, COSTS).q == math.inf


@pytest.mark.parametrize(("q", "shares"), [(0, [1, 0, 0]), (1, [1 / 3] * 3), (math.inf, [0, 0, 1])])
def test_shares_reach_from_all_at_the_first_to_all_at_the_last(q, shares):
    assert shares_of(q, 3).tolist() == pytest.approx(shares)


def test_the_family_reaches_to_where_nearly_all_leave_at_one_end():
    dearest, cheapest = (shares_of(q, 5) for q in (SEARCH_QS[0], SEARCH_QS[-1]))
    assert dearest[-1] > 0.9 and cheapest[0] > 0.9


@pytest.mark.parametrize("shape", [(3, 2999), (3, 3001), (2, 3000), (4, 3000)])
def test_correctness_of_other_samples_or_exits_is_refused(held_out, shape):
    confidences, _ = held_out
    correct = np.ones(shape, bool)
    message = re.escape(f"correctness has shape {correct.shape}, confidences (3, 3000)")
    with pytest.raises(ValueError, match=message):
        candidates(confidences, correct, COSTS)


@pytest.mark.parametrize("costs", [[1.0, 2.0], [1.0, 2.0, 4.0, 8.0]])
def test_costs_of_other_exits_are_refused(held_out, costs):
    message = re.escape(f"costs have shape ({len(costs)},) for 3 exits")
    with pytest.raises(ValueError, match=message):
        candidates(*held_out, costs)

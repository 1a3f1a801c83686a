"""Choosing thresholds: the best within a budget, or the cheapest that is accurate enough.

All candidates come from one family, the thresholds that `find_thresholds` sets for the shares
p_k ~ q^k: from q = infinity, where every sample goes on to the last exit, to q = 0, where all
leave at the first. A budget or an accuracy then picks one of them on held-out data.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from l2w_jax.early_exit.budget import (
    EVERYBODY_LEAVES,
    check_shapes,
    find_thresholds,
    first_exits,
    operating_point,
)
from l2w_jax.models.exit_shares import exit_shares

# Falling, in equal ratios: beyond these nearly all samples leave at one end of the network.
SEARCH_QS: tuple[float, ...] = tuple(float(q) for q in np.geomspace(20, 0.02, 120))

# Of the shares of samples found at the exits from those asked for: a larger shift is reported.
_LARGEST_SHIFT = 0.05


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Thresholds and what they lead to on the data that they were judged on.

    Attributes:
        q: which member of the family; infinity for the full network, 0 for exit 1 alone.
        thresholds: T_k, float32 [K].
        cost: mean per sample, in the unit of the exits' costs.
        top1: percent.
    """

    q: float
    thresholds: NDArray[np.float32]
    cost: float
    top1: float


def shares_of(q: float, num_exits: int) -> NDArray[np.float32]:
    """`exit_shares` for a q that may be 0 (all at the first exit) or infinity (all at the last)."""
    if q == math.inf or q == 0:
        return np.eye(num_exits, dtype=np.float32)[num_exits - 1 if q else 0]
    return exit_shares(q, num_exits)


def are_shifted(asked: ArrayLike, found: ArrayLike) -> bool:
    """Whether shares [K] are so far from those asked for that a person should know."""
    return bool(np.abs(np.subtract(asked, found)).max() > _LARGEST_SHIFT)


def percentages(shares: Iterable[float]) -> list[str]:
    """Shares [K] for a person to read."""
    return [f"{100 * share:.0f}%" for share in shares]


def thresholds_of(q: float, confidences: NDArray[np.floating]) -> NDArray[np.float32]:
    """`find_thresholds` for the shares of q, which may be 0 or infinity: float32 [K]."""
    num_exits = len(confidences)
    if q == 0:
        # At the first exit, however low the confidence of what comes later.
        return np.full(num_exits, EVERYBODY_LEAVES)
    return find_thresholds(confidences, shares_of(q, num_exits))


def candidates(
    confidences: NDArray[np.floating],
    correct: NDArray[np.bool_],
    costs: ArrayLike,
    qs: Sequence[float] = (math.inf, *SEARCH_QS, 0.0),
) -> list[Candidate]:
    """Thresholds from the most careful to the cheapest, judged on the data that set them.

    Args:
        confidences: held-out confidences [K, N].
        correct: whether each exit classifies each sample correctly [K, N].
        costs: of stopping at each exit [K], in any unit.
        qs: which members of the family.

    Raises:
        ValueError: the shapes do not match, or a confidence is NaN, infinite or less precise than
            float32.
    """
    check_shapes(confidences, correct, costs)
    found = []
    for q in qs:
        thresholds = thresholds_of(q, confidences)
        point = operating_point(first_exits(confidences, thresholds), correct, costs)
        found.append(Candidate(q, thresholds, point.cost, point.top1))
    return found


def best_within(among: Sequence[Candidate], budget: float) -> Candidate | None:
    """The most accurate within the budget, and of equals the cheapest; None if none is within."""
    affordable = [candidate for candidate in among if candidate.cost <= budget]
    return max(affordable, key=lambda candidate: (candidate.top1, -candidate.cost), default=None)


def cheapest_reaching(among: Sequence[Candidate], top1: float) -> Candidate | None:
    """The cheapest that reaches an accuracy in percent; None if none does."""
    accurate = [candidate for candidate in among if candidate.top1 >= top1]
    return min(accurate, key=lambda candidate: candidate.cost, default=None)


def cheapest_without_loss(
    confidences: NDArray[np.floating], correct: NDArray[np.bool_], costs: ArrayLike
) -> Candidate:
    """The cheapest candidate that is as accurate as the full network on the data that set it.

    Args:
        confidences: held-out confidences [K, N].
        correct: whether each exit classifies each sample correctly [K, N].
        costs: of stopping at each exit [K], in any unit.

    Raises:
        ValueError: as by `candidates`.
    """
    full_network, *others = candidates(confidences, correct, costs)
    return cheapest_reaching([full_network, *others], full_network.top1)

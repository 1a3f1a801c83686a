"""Thresholds with a promise: at most a given accuracy is lost, with a given confidence.

Stopping early may lose accuracy against the full network. How much it loses on images to come is
not known, but it can be tested: each candidate stands for a hypothesis "the loss is above the
accepted risk", and a candidate whose hypothesis held-out data reject is safe to use. This is Learn
then Test (Angelopoulos, Bates, Candes, Jordan and Lei, Annals of Applied Statistics 2025, arXiv
2110.01052). It holds for any network and any distribution of images, as long as the held-out images
are a random sample of it by which the network was neither trained nor chosen. A run's checkpoint is
chosen by them, by the top-1 of its last exit: the promise for a run leaves out what that is worth.

- The candidates are fixed before the test sees any data: one part of the held-out images sets
  thresholds, the other tests them.
- Candidates are tested from the most careful on, until a hypothesis is not rejected (fixed-sequence
  testing): however many are tested, that costs no confidence.
- A test is a bet against the hypothesis (Waudby-Smith and Ramdas, JRSS B 2024, arXiv 2010.09686),
  with capital that grows where less is lost than the hypothesis says. Were the hypothesis true, the
  capital would reach 1/p with probability at most p.
"""

import dataclasses
import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from l2w_jax.early_exit.budget import check_shapes, first_exits
from l2w_jax.early_exit.selection import SEARCH_QS, thresholds_of

# The part of the held-out images that sets thresholds; the others test them.
DESIGN_SHARE = 1 / 3

# A smaller one would need more images than a float can count.
SMALLEST_RISK = 1e-300


@dataclasses.dataclass(frozen=True)
class Guarantee:
    """Thresholds that lose at most `risk` of accuracy, with probability `confidence`.

    Attributes:
        thresholds: T_k, float32 [K].
        q: which member of the family of `selection`; infinity where no early exit can be promised.
        p_value: of the test that the thresholds passed; 0 for the full network, which needs no
            test.
        risk: accuracy that may be lost against the last exit, a fraction.
        confidence: probability, over the draw of the held-out images, that the promise holds.
        design_images: how many images set thresholds.
        test_images: how many images tested them.
    """

    thresholds: NDArray[np.float32]
    q: float
    p_value: float
    risk: float
    confidence: float
    design_images: int
    test_images: int


def images_needed(risk: float, confidence: float) -> int:
    """The fewest held-out images that pass the test where stopping early changes no answer."""
    # No bet multiplies the capital by more than 1 / (1 - risk) per image that is not lost.
    testing = math.ceil(math.log1p(-confidence) / math.log1p(-risk))
    # Fewer images would leave fewer than `testing` to test with.
    bound = math.floor((testing - 1) / (1 - DESIGN_SHARE)) + 1

    def passes(num_images: int) -> bool:
        num_design = _num_design(num_images)
        bet = _best_bet_on({-1: 0, 0: num_design, 1: 0}, risk)
        unchanged = {-1: 0, 0: num_images - num_design, 1: 0}
        return _p_value(unchanged, risk, bet) <= 1 - confidence

    too_few, enough = bound - 1, bound
    while not passes(enough):
        too_few, enough = enough, 2 * enough
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if passes(middle) else (middle, enough)
    return enough


def _num_design(num_images: int) -> int:
    return math.floor(num_images * DESIGN_SHARE)


def guaranteed_thresholds(
    confidences: NDArray[np.floating],
    correct: NDArray[np.bool_],
    costs: ArrayLike,
    risk: float,
    confidence: float,
    seed: int = 0,
) -> Guarantee:
    """The cheapest thresholds of the family that pass the test.

    Args:
        confidences: held-out confidences [K, N].
        correct: whether each exit classifies each sample correctly, bool [K, N].
        costs: of stopping at each exit [K], in any unit.
        risk: accuracy that may be lost against the last exit, as a fraction in [1e-300, 1).
        confidence: probability with which no more is lost, in (0, 1).
        seed: of the division of the images; it must not depend on the outcome.

    Raises:
        ValueError: risk or confidence is out of range, the images are too few to pass even if
            stopping early changed no answer, the shapes do not match, or a confidence is NaN,
            infinite or less precise than float32.
    """
    check_shapes(confidences, correct, costs)
    if not SMALLEST_RISK <= risk < 1:
        raise ValueError(f"risk is {risk}; it must be at least {SMALLEST_RISK} and below 1")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must be between 0 and 1")
    num_images = correct.shape[1]
    needed = images_needed(risk, confidence)
    if num_images < needed:
        raise ValueError(
            f"{num_images} held-out images are too few to promise a loss of at most {risk:g} with "
            f"confidence {confidence:g}: {needed} are needed even if stopping early changes nothing"
        )
    shuffled = np.random.default_rng(seed).permutation(num_images)
    num_design = _num_design(num_images)
    # Taken once: of a million images this takes longer than all that is done with them below.
    design, test = (
        (confidences[:, part], correct[:, part])
        for part in (shuffled[:num_design], shuffled[num_design:])
    )

    # The full network loses nothing against itself: the one candidate that needs no test.
    passed = [(math.inf, thresholds_of(math.inf, confidences), 0.0)]
    for q in SEARCH_QS:
        thresholds = thresholds_of(q, design[0])
        of_design = _lost(*design, thresholds)
        of_test = _lost(*test, thresholds)
        p_value = betting_p_value(of_test, risk, best_bet(of_design, risk))
        if p_value > 1 - confidence:
            break
        passed.append((q, thresholds, p_value))

    def cost_on_design(item: tuple[float, NDArray[np.float32], float]) -> float:
        exits = first_exits(design[0], item[1])
        return float(np.asarray(costs)[exits].mean())

    # All that passed are safe together, so any rule may choose among them.
    q, thresholds, p_value = min(passed, key=cost_on_design)
    return Guarantee(thresholds, q, p_value, risk, confidence, num_design, num_images - num_design)


def betting_p_value(lost: NDArray[np.integer], risk: float, bet: float) -> float:
    """A p-value of "on average at least `risk` is lost", for a bet fixed beforehand.

    The capital is the product over the images of 1 + bet·(risk - lost): each factor is positive
    and, under the hypothesis, at most 1 on average.

    Args:
        lost: for each image 1, 0 or -1: right answers lost by stopping early.
        risk: a fraction.
        bet: in [0, 1 / (1 - risk)).
    """
    return _p_value(_counts(lost), risk, bet)


def _p_value(counts: dict[int, float], risk: float, bet: float) -> float:
    log_capital = _log_capital(counts, risk, np.float64(bet))
    return float(np.exp(-max(log_capital, 0.0)))


def best_bet(lost: NDArray[np.integer], risk: float) -> float:
    """The bet that grows the capital fastest on images like these (Kelly's).

    It assumes a quarter of a loss more than was seen, so that a few images without any loss do not
    tempt it to stake everything.
    """
    return _best_bet_on(_counts(lost), risk)


def _best_bet_on(counts: dict[int, float], risk: float) -> float:
    bets = np.linspace(0, 1 / (1 - risk), 200, endpoint=False)
    expected = {**counts, 1: counts[1] + 0.25}
    return float(bets[np.argmax(_log_capital(expected, risk, bets))])


def _lost(
    confidences: NDArray[np.floating], correct: NDArray[np.bool_], thresholds: NDArray[np.float32]
) -> NDArray[np.int64]:
    """1 where only the full network is right, -1 where only the early exit is, else 0: [N]."""
    exits = first_exits(confidences, thresholds)
    early = correct[exits, np.arange(correct.shape[1])]
    return correct[-1].astype(np.int64) - early


def _counts(lost: NDArray[np.integer]) -> dict[int, float]:
    return {value: np.count_nonzero(lost == value) for value in (-1, 0, 1)}


def _log_capital(
    counts: dict[int, float], risk: float, bets: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Logarithm of the capital for each of several bets, from the number of images of each loss."""
    return sum(count * np.log1p(bets * (risk - value)) for value, count in counts.items())

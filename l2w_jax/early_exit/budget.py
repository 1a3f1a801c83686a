"""Budgeted-batch classification: thresholds, exits and the curve of accuracy over mul-adds.

A network with K exits shares a compute budget among the samples of a batch: easy samples leave at
an early exit, the rest go on (Huang et al., ICLR 2018, section 5; Han et al., ECCV 2022, section
4.1). A parameter q sets which share of the samples should leave where, held-out data turn the
shares into one confidence threshold per exit, and on test data a sample leaves at the first exit
whose threshold its confidence reaches. "Confidences" here may be probabilities, or the scores of
any other rule of `rules`: only their order counts.

Everything here is a pure function of NumPy arrays. Confidences are compared in float32, the
precision that thresholds are stored in, so that the same sample leaves at the same exit wherever
the decision is taken.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from l2w_jax.models.exit_shares import exit_shares

# The q of the 39 points of a budgeted curve: 0.05 (nearly all leave at exit 1) to 1.95.
CURVE_QS: tuple[float, ...] = tuple(i / 20 for i in range(1, 40))

# The thresholds of an exit at which no sample leaves, and at which every sample does: beyond the
# scores of any rule, but finite, so that they survive JSON and CSV.
NOBODY_LEAVES = np.float32(1e8)
EVERYBODY_LEAVES = np.float32(-1e8)


def confidences_of(probs: ArrayLike) -> NDArray[np.float32]:
    """Largest class probability of each sample at each exit.

    Args:
        probs: softmax probabilities [K, N, C].

    Returns:
        float32[K, N].

    Raises:
        ValueError: if probs has another number of dimensions, is empty or is narrower than float32,
            or a confidence is NaN or infinite.
    """
    return _checked_confidences(_checked_probs(probs).max(axis=-1))


def correctness_of(probs: ArrayLike, labels: ArrayLike) -> NDArray[np.bool_]:
    """Whether each exit's most probable class (the first of equals) is the label.

    Args:
        probs: class probabilities or logits [K, N, C].
        labels: class indices [N].

    Returns:
        bool[K, N].

    Raises:
        ValueError: if the shapes do not match, or probs is empty.
    """
    probs, labels = _checked_probs(probs), np.asarray(labels)
    if labels.shape != probs.shape[1:2]:
        raise ValueError(f"labels have shape {labels.shape} for probs of shape {probs.shape}")
    return probs.argmax(axis=-1) == labels


def find_thresholds(confidences: ArrayLike, shares: ArrayLike) -> NDArray[np.float32]:
    """Thresholds at which the given shares of held-out samples leave at each exit.

    Exit k takes the floor(N p_k) most confident samples of those that no earlier threshold took,
    and its threshold T_k is the confidence of the last of them. All samples with a confidence of
    T_k or more at exit k then count as taken, equals included. An exit that should take none, or
    more than are left, gets NOBODY_LEAVES; the last exit takes everybody who is left.

    Only the value of T_k matters, not which of several equal samples has it: selecting the n-th
    largest of those left replaces a walk down the sorted samples.

    Args:
        confidences: held-out confidences [K, N] by the rule that will decide, such as
            `rules.confidence`.
        shares: p_k [K], from `exit_shares`.

    Returns:
        float32[K].

    Raises:
        ValueError: if the shapes do not match, a confidence is NaN, infinite or less precise than
            float32, or a share is not in [0, 1].
    """
    confidences = _checked_confidences(confidences)
    shares = np.asarray(shares, dtype=np.float32)
    num_exits, num_samples = confidences.shape
    if shares.shape != (num_exits,):
        raise ValueError(f"shares have shape {shares.shape} for {num_exits} exits")
    if not ((shares >= 0) & (shares <= 1)).all():
        raise ValueError(f"shares are {shares.tolist()}; each must be in [0, 1]")

    counts = np.floor(np.float32(num_samples) * shares).astype(np.int64)
    thresholds = np.full(num_exits, NOBODY_LEAVES)
    taken = np.zeros(num_samples, dtype=bool)
    for k in range(num_exits - 1):
        left = confidences[k, ~taken]
        if 0 < counts[k] <= left.size:
            thresholds[k] = _nth_largest(left, counts[k])
        taken |= confidences[k] >= thresholds[k]
    thresholds[-1] = EVERYBODY_LEAVES
    return thresholds


def first_exits(confidences: ArrayLike, thresholds: ArrayLike) -> NDArray[np.int64]:
    """The exit that each sample leaves at: the first whose threshold its confidence reaches.

    Args:
        confidences: [K, N].
        thresholds: T_k [K]; the last one is taken as EVERYBODY_LEAVES.

    Returns:
        int[N], exits counted from 0.

    Raises:
        ValueError: if the shapes do not match, a confidence is NaN, infinite or less precise than
            float32, or a threshold is NaN.
    """
    confidences = _checked_confidences(confidences)
    thresholds = checked_thresholds(thresholds, len(confidences))
    return (confidences >= thresholds[:, None]).argmax(axis=0)


def checked_thresholds(thresholds: ArrayLike, num_exits: int) -> NDArray[np.float32]:
    """A copy of the thresholds in which everybody leaves at the last exit.

    Args:
        thresholds: T_k [K].
        num_exits: K.

    Returns:
        float32[K].

    Raises:
        ValueError: there are not K thresholds, or one is NaN.
    """
    thresholds = np.array(thresholds, dtype=np.float32)
    if thresholds.shape != (num_exits,):
        raise ValueError(f"thresholds have shape {thresholds.shape} for {num_exits} exits")
    if np.isnan(thresholds).any():
        raise ValueError(f"thresholds are {thresholds.tolist()}; NaN is not a threshold")
    thresholds[-1] = EVERYBODY_LEAVES
    return thresholds


def check_shapes(
    confidences: ArrayLike, correct: ArrayLike, costs: ArrayLike, name_of_costs: str = "costs"
) -> None:
    """Checks that what samples are judged by is of the samples and exits of the confidences.

    NumPy would index without an error where there are samples or exits too many.

    Args:
        confidences: [K, N].
        correct: whether each exit classifies each sample correctly, [K, N].
        costs: of stopping at each exit, [K].
        name_of_costs: what the caller's user calls them.

    Raises:
        ValueError: one has another shape.
    """
    shape = np.shape(confidences)
    if np.shape(correct) != shape:
        raise ValueError(f"correctness has shape {np.shape(correct)}, confidences {shape}")
    if np.shape(costs) != shape[:1]:
        raise ValueError(f"{name_of_costs} have shape {np.shape(costs)} for {shape[0]} exits")


class OperatingPoint(NamedTuple):
    """Cost and accuracy when samples leave where they do.

    Attributes:
        cost: mean per sample, in the unit of the exits' costs.
        top1: percent, 0 to 100.
        shares: the share of the samples that leaves at each exit, 0 to 1, [K].
    """

    cost: float
    top1: float
    shares: NDArray[np.float64]

    def row(self) -> dict[str, float]:
        """As a row of a table: mul_adds, which the cost must be in, top1, share_1 to share_K."""
        shares = {f"share_{k}": float(share) for k, share in enumerate(self.shares, start=1)}
        return {"mul_adds": self.cost, "top1": self.top1, **shares}


def operating_point(
    exits: NDArray[np.integer], correct: NDArray[np.bool_], costs: ArrayLike
) -> OperatingPoint:
    """Accuracy, cost and shares when sample i leaves at exit exits[i].

    Args:
        exits: exit of each sample [N], counted from 0.
        correct: whether each exit classifies each sample correctly [K, N].
        costs: of stopping at each exit [K], in any unit.
    """
    num_exits, num_samples = correct.shape
    shares = np.bincount(exits, minlength=num_exits) / num_samples
    return OperatingPoint(
        cost=float(shares @ np.asarray(costs, dtype=np.float64)),
        top1=float((100.0 * correct[exits, np.arange(num_samples)]).mean()),
        shares=shares,
    )


def budgeted_curve_from_confidences(
    val_confidences: ArrayLike,
    test_confidences: ArrayLike,
    test_correct: ArrayLike,
    mul_adds: ArrayLike,
) -> list[dict[str, float]]:
    """`budgeted_curve` from confidences and correctness: C times less memory for C classes.

    Args:
        val_confidences: of the data that set the thresholds [K, N].
        test_confidences: of the data that are classified [K, M].
        test_correct: whether each exit classifies each of them correctly, bool [K, M].
        mul_adds: cost of stopping at each exit [K], in multiply-adds per image.

    Returns:
        One dict for each q of CURVE_QS, with the keys q, mul_adds, top1 (percent) and share_1 to
        share_K (0 to 1).

    Raises:
        ValueError: if the shapes do not match, or a confidence is NaN, infinite or less precise
            than float32.
    """
    val_confidences = _checked_confidences(val_confidences)
    test_confidences = _checked_confidences(test_confidences)
    test_correct = np.asarray(test_correct, dtype=bool)
    num_exits = len(test_confidences)
    if len(val_confidences) != num_exits:
        raise ValueError(f"{len(val_confidences)} exits set thresholds for {num_exits} exits")
    check_shapes(test_confidences, test_correct, mul_adds, "mul_adds")

    curve = []
    for q in CURVE_QS:
        thresholds = find_thresholds(val_confidences, exit_shares(q, num_exits))
        exits = first_exits(test_confidences, thresholds)
        curve.append({"q": q, **operating_point(exits, test_correct, mul_adds).row()})
    return curve


def budgeted_curve(
    val_probs: ArrayLike, test_probs: ArrayLike, test_labels: ArrayLike, mul_adds: ArrayLike
) -> list[dict[str, float]]:
    """The 39-point curve of accuracy over mul-adds (Huang et al., ICLR 2018, section 5).

    Args:
        val_probs: softmax probabilities [K, N, C] of the data that set the thresholds.
        test_probs: softmax probabilities [K, M, C] of the data that are classified.
        test_labels: their class indices [M].
        mul_adds: cost of stopping at each exit [K], in multiply-adds per image.

    Returns:
        One dict for each q of CURVE_QS, with the keys q, mul_adds (mean per image), top1
        (percent, 0 to 100) and share_1 to share_K (share of the samples that leave there, 0 to 1).

    Raises:
        ValueError: if the shapes do not match, or a probability is NaN, infinite or less precise
            than float32.
    """
    return budgeted_curve_from_confidences(
        confidences_of(val_probs),
        confidences_of(test_probs),
        correctness_of(test_probs, test_labels),
        mul_adds,
    )


def _nth_largest(values: NDArray[np.float32], n: int) -> np.float32:
    position = values.size - n
    return np.partition(values, position)[position]


def _checked_probs(probs: ArrayLike) -> np.ndarray:
    probs = np.asarray(probs)
    if probs.ndim != 3 or 0 in probs.shape:
        raise ValueError(f"probs have shape {probs.shape}; [exits, samples, classes] is expected")
    return probs


def _checked_confidences(confidences: ArrayLike) -> NDArray[np.float32]:
    confidences = np.asarray(confidences)
    # With less precision many would be equal, and equals leave together.
    if jnp.issubdtype(confidences.dtype, jnp.floating) and confidences.dtype.itemsize < 4:
        raise ValueError(
            f"confidences are {confidences.dtype}; at least float32 is expected, as "
            "l2w_jax.early_exit.confidence gives them of any logits"
        )
    confidences = confidences.astype(np.float32)
    if confidences.ndim != 2 or 0 in confidences.shape:
        raise ValueError(
            f"confidences have shape {confidences.shape}; [exits, samples] is expected"
        )
    # NaN fails the comparison too. A value beyond the two special thresholds would not obey them.
    if not (np.abs(confidences) < NOBODY_LEAVES).all():
        raise ValueError("a confidence is NaN or infinite")
    return confidences

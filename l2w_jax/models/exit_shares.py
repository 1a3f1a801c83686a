"""Which share of the samples is meant for each exit, in training and in early exit alike."""

import numpy as np
from numpy.typing import NDArray


def exit_shares(q: float, num_exits: int) -> NDArray[np.float32]:
    """Shares p_k = q^k / sum_j q^j of the samples that should leave at each exit.

    Every step of p = exp(k log q), normalised, is rounded to float32: the shares are multiplied by
    sample counts and rounded down, so that another precision would move a sample to another exit.
    The logarithm and the exponential are taken in float64 first, because their float32 versions
    differ in the last bit between processors. Where a float32 is too small for the powers, they are
    divided by the largest of them.

    Args:
        q: positive; below 1 most samples leave early, above 1 most leave late.
        num_exits: K, at least 1.

    Returns:
        float32[K], summing to 1.

    Raises:
        ValueError: q or num_exits is out of range.
    """
    if num_exits < 1:
        raise ValueError(f"num_exits is {num_exits}; it must be at least 1")
    with np.errstate(over="ignore"):
        ratio = np.float32(q)
    if not 0 < ratio < np.inf:
        raise ValueError(f"q is {q}; it must be a positive float32")
    ordinals = np.arange(1, num_exits + 1, dtype=np.float32)
    exponents = np.float32(np.log(np.float64(ratio))) * ordinals
    shares = _normalized_powers(exponents)
    return shares if np.isfinite(shares).all() else _normalized_powers(exponents - exponents.max())


def _normalized_powers(exponents: NDArray[np.float32]) -> NDArray[np.float32]:
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        powers = np.exp(exponents.astype(np.float64)).astype(np.float32)
        return powers / powers.sum()

"""Which share of the samples is meant for each exit: what training and early exit both go by."""

import numpy as np
from numpy.typing import NDArray


def exit_shares(q: float, num_exits: int) -> NDArray[np.float32]:
    """Shares p_k = q^k / sum_j q^j of the samples that should leave at each exit.

    Every step of p = exp(k log q), normalised, is rounded to float32: the shares are multiplied by
    sample counts and rounded down, so that another precision would move a sample to another exit.
    The logarithm and the exponential are taken in float64 first, because their float32 versions
    differ in the last bit between processors.

    Args:
        q: positive; below 1 most samples leave early, above 1 most leave late.
        num_exits: K, at least 1.

    Returns:
        float32[K], summing to 1.

    Raises:
        ValueError: if q or num_exits is out of range, or q^K is not a float32.
    """
    if num_exits < 1:
        raise ValueError(f"num_exits is {num_exits}; it must be at least 1")
    if not 0 < q < float("inf"):
        raise ValueError(f"q is {q}; it must be positive and finite")
    ordinals = np.arange(1, num_exits + 1, dtype=np.float32)
    exponents = np.float32(np.log(np.float64(np.float32(q)))) * ordinals
    with np.errstate(over="ignore", invalid="ignore"):
        powers = np.exp(exponents.astype(np.float64)).astype(np.float32)
        shares = powers / powers.sum()
    if not np.isfinite(shares).all():
        raise ValueError(f"q is {q}, and {q}^{num_exits} or its inverse overflows float32")
    return shares

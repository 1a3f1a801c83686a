"""Exit rules: how ready an exit is to answer, as one number that a threshold is compared with.

A rule is a function from the logits of an exit to a score for each image; an image leaves at the
first exit at which its score reaches the threshold. Everything that chooses thresholds or follows
them takes the scores of any rule.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from l2w_jax.early_exit.budget import NOBODY_LEAVES
from l2w_jax.models.layers import at_least_float32

# From logits [..., C] to scores [...].
Rule = Callable[[jax.Array], jax.Array]

# The largest score: those beyond are cut off, so that all obey the two special thresholds.
_LARGEST = np.nextafter(NOBODY_LEAVES, np.float32(0))

# The probability that float32 rounds to 1 ends about here; what was stored as 1 is taken as this.
_LARGEST_STORED = 1 - 2.0**-25


def confidence(logits: jax.Array) -> jax.Array:
    """Largest softmax probability, [..., C] -> [...].

    It saturates: in float32 all samples with log-odds above about 17 have confidence 1, and no
    threshold can tell them apart.
    """
    return jax.nn.softmax(at_least_float32(logits)).max(axis=-1)


def log_odds(logits: jax.Array) -> jax.Array:
    """Logarithm of p / (1 - p) for the largest softmax probability p, [..., C] -> [...].

    It orders samples as p does and does not saturate, since it is computed from the logits z:
    z_max - log sum_c exp(z_c) over all classes but the most probable one.
    """
    logits = at_least_float32(logits)
    most_probable = jax.nn.one_hot(logits.argmax(axis=-1), logits.shape[-1], dtype=bool)
    others = jnp.where(most_probable, -jnp.inf, logits)
    odds = logits.max(axis=-1) - jax.nn.logsumexp(others, axis=-1)
    return jnp.clip(odds, -_LARGEST, _LARGEST)


RULES: dict[str, Rule] = {rule.__name__: rule for rule in (log_odds, confidence)}

# What the commands decide by unless they are told otherwise.
DEFAULT_RULE = log_odds.__name__


def checked_rule(name: str) -> str:
    """The name, if it is that of a rule.

    Raises:
        ValueError: it is not.
    """
    if name not in RULES:
        raise ValueError(f"rule {name!r} is not allowed: must be one of {', '.join(RULES)}")
    return name


def log_odds_of_confidences(confidences: ArrayLike) -> NDArray[np.float32]:
    """Log-odds of stored confidences, for when the logits are gone; of 1 they are finite too."""
    p = np.minimum(np.asarray(confidences, dtype=np.float64), _LARGEST_STORED)
    return np.log(p / (1 - p)).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class ExitPolicy:
    """Who leaves where.

    Attributes:
        thresholds: T_k, float32 [K].
        rule: key of RULES, of the scores that the thresholds are for.
    """

    thresholds: NDArray[np.float32]
    rule: str = DEFAULT_RULE

"""Exit rules: how ready an exit is to answer, as one number that a threshold is compared with.

A rule is a function from the logits of an exit to a score for each image; an image leaves at the
first exit at which its score reaches the threshold. Everything that chooses thresholds or follows
them takes the scores of any rule. Patience also goes by earlier exits: it is `Remembering`.
From the logits of all exits, [K, N, C], any rule gives the scores of all, [K, N].
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from l2w_jax.early_exit.budget import NOBODY_LEAVES, checked_thresholds
from l2w_jax.models.precision import at_least_float32

# From logits [..., C] to scores [...].
RuleOfOneExit = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Remembering:
    """A rule that also goes by what earlier exits said.

    Attributes:
        step: from logits [..., C] and what was remembered at the exit before, None at the first, to
            scores [...] and what to remember: arrays of the images' leading axes.
    """

    step: Callable[[jax.Array, Any], tuple[jax.Array, Any]]

    @property
    def __name__(self) -> str:
        return self.step.__name__

    def __call__(self, logits: ArrayLike) -> jax.Array:
        """Scores at all exits, [K, ..., C] -> [K, ...]."""
        scores: list[jax.Array] = []
        remembered = None
        for logits_of_exit in jnp.asarray(logits):
            scores_of_exit, remembered = self.step(logits_of_exit, remembered)
            scores.append(scores_of_exit)
        return jnp.stack(scores)


Rule = RuleOfOneExit | Remembering

# The largest score: larger ones are cut off, so that all obey the two special thresholds.
_LARGEST = np.nextafter(NOBODY_LEAVES, np.float32(0))

# From about here on float32 rounds a probability to 1; what was stored as 1 is taken as this.
_LARGEST_STORED = 1 - 2.0**-25


def confidence(logits: jax.Array) -> jax.Array:
    """Largest softmax probability, [..., C] -> [...].

    It saturates: in float32 all samples with log-odds above about 17 have confidence 1, and no
    threshold can tell them apart; where that begins differs from one runtime to another.
    """
    return jax.nn.sigmoid(log_odds(logits))


def finite_confidence(logits: jax.Array) -> jax.Array:
    """`confidence` as float32, NaN where there is no answer (`has_answer`), [..., C] -> [...]."""
    of_answer = confidence(logits).astype(jnp.float32)
    return jnp.where(has_answer(logits), of_answer, jnp.nan)


def has_answer(logits: jax.Array) -> jax.Array:
    """Whether the logits are those of a distribution, [..., C] -> bool [...].

    Minus infinity rules a class out, but not all of them; infinity would be a probability of 1.
    """
    return jnp.abs(logits.max(axis=-1)) < jnp.inf


def log_odds(logits: jax.Array) -> jax.Array:
    """Logarithm of p / (1 - p) for the largest softmax probability p, [..., C] -> [...].

    It orders samples as p does and does not saturate, since it is computed from the logits z:
    z_max - log sum_c exp(z_c) over all classes but the most probable one.
    """
    logits = at_least_float32(logits)
    others = _others(logits)
    runner_up = others.max(axis=-1)
    # The sum is at least 1 and finite, so this need not check for infinity as `logsumexp` does.
    log_sum = jnp.log(jnp.exp(others - runner_up[..., None]).sum(axis=-1))
    return _between(-_LARGEST, logits.max(axis=-1) - runner_up - log_sum)


def margin(logits: jax.Array) -> jax.Array:
    """Logarithm of p / p' for the two largest softmax probabilities p and p', [..., C] -> [...].

    It is the difference of their logits. The difference of the probabilities, which is also used,
    saturates as they do.
    """
    logits = at_least_float32(logits)
    return _between(0, logits.max(axis=-1) - _others(logits).max(axis=-1))


def negative_entropy(logits: jax.Array) -> jax.Array:
    """Minus the entropy of the softmax probabilities in nats, -log C to 0, [..., C] -> [...].

    Down to entropies of 1e-36 it tells samples apart, since -log p of the most probable class is
    taken as log(1 + exp(-log-odds)) instead of through p, which is rounded to 1.
    """
    logits = at_least_float32(logits)
    log_probs = jax.nn.log_softmax(logits)
    # A class whose logit is minus infinity adds nothing.
    is_left_out = _most_probable(logits) | (log_probs == -jnp.inf)
    of_others = jnp.where(is_left_out, 0, jnp.exp(log_probs) * log_probs).sum(axis=-1)
    return of_others - confidence(logits) * jnp.log1p(jnp.exp(-log_odds(logits)))


def _between(least: float, scores: jax.Array) -> jax.Array:
    """The scores, cut off at `least` and _LARGEST by one operation."""
    return jax.lax.clamp(*(jnp.asarray(x, scores.dtype) for x in (least, scores, _LARGEST)))


def _most_probable(logits: jax.Array) -> jax.Array:
    """Marks the most probable class, the first of equals: bool [..., C]."""
    return jax.nn.one_hot(logits.argmax(axis=-1), logits.shape[-1], dtype=bool)


def _others(logits: jax.Array) -> jax.Array:
    """The logits, with that of the most probable class replaced by the least number there is."""
    return jnp.where(_most_probable(logits), jnp.finfo(logits.dtype).min, logits)


@Remembering
def patience(logits: jax.Array, before: tuple[jax.Array, jax.Array] | None) -> tuple[Any, Any]:
    """How many exits, up to this one, name the same class without a break, [..., C] -> [...].

    That is the whole part of the score (Zhou et al., "BERT Loses Patience", NeurIPS 2020): the
    threshold k means "k exits agree". The fraction orders equals by their log-odds; without it a
    threshold would take all of them or none, whatever share is asked for.
    """
    labels = logits.argmax(axis=-1)
    scores = _scores_of_patience(labels, log_odds(logits), before)
    return scores, (labels, scores)


def _scores_of_patience(
    labels: jax.Array, odds: jax.Array, before: tuple[jax.Array, jax.Array] | None
) -> jax.Array:
    # From 0 to just under 1, which it approaches more slowly than any probability.
    sureness = (1 - 2.0**-18) * (1 + odds / (1 + jnp.abs(odds))) / 2
    if before is None:
        return 1 + sureness
    earlier_labels, earlier_scores = before
    return 1 + jnp.where(labels == earlier_labels, jnp.floor(earlier_scores), 0) + sureness


def patience_of_predictions(predicted: ArrayLike, log_odds: ArrayLike) -> NDArray[np.float32]:
    """Scores by `patience` from the predicted classes and log-odds of all exits, each [K, N]."""
    scores: list[jax.Array] = []
    for k, (labels, odds) in enumerate(zip(np.asarray(predicted), log_odds, strict=True)):
        before = (predicted[k - 1], scores[-1]) if k else None
        scores.append(_scores_of_patience(labels, odds, before))
    return np.asarray(jnp.stack(scores), dtype=np.float32)


def follow(rule: Rule, logits: jax.Array, remembered: Any) -> tuple[jax.Array, Any]:
    """Scores at an exit, and what the rule takes along to the next one.

    Args:
        rule: any rule.
        logits: of the exit [..., C].
        remembered: what the exit before gave; None at the first.
    """
    if isinstance(rule, Remembering):
        return rule.step(logits, remembered)
    return rule(logits), None


RULES: dict[str, Rule] = {
    rule.__name__: rule for rule in (log_odds, confidence, negative_entropy, margin, patience)
}

# What the commands decide by unless they are told otherwise.
DEFAULT_RULE = log_odds.__name__


def checked_rule(name: str) -> str:
    """The name, if it is that of a rule.

    Raises:
        ValueError: it is not.
    """
    # A list, because what a file names need not be hashable.
    if name not in [*RULES]:
        raise ValueError(f"rule {name!r} is not allowed: must be one of {', '.join(RULES)}")
    return name


def largest_score(rule: Rule) -> float:
    """The most that a rule can give; infinity where that is not known."""
    if rule is confidence:
        return 1.0
    if rule is negative_entropy:
        return 0.0
    return math.inf


def thresholds_for(rule: Rule, thresholds: ArrayLike, num_exits: int) -> NDArray[np.float32]:
    """`checked_thresholds`, each of which scores of the rule can reach.

    NOBODY_LEAVES and infinity are meant not to be reached.

    Args:
        rule: the scores that the thresholds are compared with.
        thresholds: T_k [K].
        num_exits: K.

    Returns:
        float32[K].

    Raises:
        ValueError: as by `checked_thresholds`, or a threshold is above all scores of the rule.
    """
    checked = checked_thresholds(thresholds, num_exits)
    largest = largest_score(rule)
    beyond = np.flatnonzero((checked > largest) & (checked < NOBODY_LEAVES))
    if beyond.size:
        k = beyond[0]
        raise ValueError(
            f"threshold {checked[k]:g} of exit {k + 1} is above {largest:g}, the most that the "
            f"rule {rule.__name__} gives; rule must be the one that the thresholds are for "
            "('rule' in a file of them)"
        )
    return checked


def log_odds_of_confidences(confidences: ArrayLike) -> NDArray[np.float32]:
    """Log-odds of stored confidences, for when the logits are gone; finite even for 1."""
    p = np.minimum(np.asarray(confidences, dtype=np.float64), _LARGEST_STORED)
    return np.log(p / (1 - p)).astype(np.float32)

"""What each field of a configuration may be by itself."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from l2w_jax.config.choices import CHOICES, one_of


class Allowed(NamedTuple):
    """The values that a field may have.

    Attributes:
        words: what a value must be, after "must be".
        includes: whether a value of the field's type is one of them.
    """

    words: str
    includes: Callable[[Any], bool]


def _one_of(names: Sequence[str]) -> Allowed:
    return Allowed(one_of(names), lambda value: value in names)


def _at_least(least: float) -> Allowed:
    return Allowed(f">= {least}", lambda value: least <= value < math.inf)


def _every(allowed: Allowed) -> Allowed:
    return Allowed(
        f"one or more numbers, each {allowed.words}",
        lambda values: len(values) > 0 and all(allowed.includes(value) for value in values),
    )


_ABOVE_ZERO = Allowed("> 0 and finite", lambda value: 0 < value < math.inf)
_BELOW_ONE = Allowed(">= 0 and < 1", lambda value: 0 <= value < 1)
_SEED = Allowed("between 0 and 2**32 - 1", lambda value: 0 <= value < 2**32)
_PART = Allowed("> 0 and <= 1", lambda value: 0 < value <= 1)
# Beyond these, powers of q leave float32's range; long before, one exit has all the images.
_Q = Allowed("between 0.001 and 1000", lambda value: 1e-3 <= value <= 1e3)
_MILESTONES = Allowed(
    "one or more increasing fractions of the run, each > 0 and < 1",
    lambda values: (
        len(values) > 0
        and all(0 < value < 1 for value in values)
        and all(a < b for a, b in itertools.pairwise(values))
    ),
)

# For every field but switches and texts.
ALLOWED = {
    **{field: _one_of(names) for field, names in CHOICES.items()},
    "seed": _SEED,
    "dataset.image_size": _at_least(1),
    "dataset.num_classes": _at_least(2),
    "dataset.holdout": _at_least(0),
    "dataset.batch_size": _at_least(1),
    "dataset.eval_batch_size": _at_least(1),
    "dataset.imbalance_factor": Allowed("0 (off) or >= 1", lambda value: value == 0 or value >= 1),
    "dataset.max_bad_share": _BELOW_ONE,
    "dataset.max_pixels": _at_least(1),
    "model.num_exits": _at_least(1),
    "model.base": _at_least(1),
    "model.step": _at_least(1),
    "model.channels": _at_least(1),
    "model.growth_rate": _at_least(1),
    "model.growth_factors": _every(_at_least(1)),
    "model.bottleneck_factors": _every(_at_least(1)),
    "model.reduction": _PART,
    "model.num_classes": _at_least(2),
    "model.first_blocks": _at_least(1),
    "model.block_step": _at_least(1),
    "model.scale_list": _every(_at_least(1)),
    "model.compress_factor": Allowed("> 0 and < 1", lambda value: 0 < value < 1),
    "weighting.magnitude": _at_least(0),
    "weighting.hidden": _at_least(1),
    "weighting.num_layers": _at_least(1),
    "weighting.q": _Q,
    "weighting.interval": _at_least(1),
    "weighting.learning_rate": _ABOVE_ZERO,
    "weighting.weight_decay": _at_least(0),
    "optimizer.learning_rate": _ABOVE_ZERO,
    "optimizer.milestones": _MILESTONES,
    "optimizer.momentum": _BELOW_ONE,
    "optimizer.weight_decay": _at_least(0),
    "optimizer.epochs": _at_least(1),
    "optimizer.warmup_epochs": _at_least(0),
    "optimizer.label_smoothing": _BELOW_ONE,
    "optimizer.accumulation": _at_least(0),
    "imta.distillation": _BELOW_ONE,
    "imta.temperature": _ABOVE_ZERO,
    "checkpoint.keep": _at_least(1),
    "checkpoint.every_epochs": _at_least(0),
    "checkpoint.every_steps": _at_least(0),
    "log.every_steps": _at_least(1),
    "log.histogram_every_steps": _at_least(0),
    "log.check_replicas": _at_least(0),
}

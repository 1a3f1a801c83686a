"""The two optimisers, SGD for the network and Adam for the weight predictor, and their schedule.

An optimiser here is an optax transformation that gives the direction of a step; `descend` takes
the step. So the learning rate is one value an iteration, whatever the number of updates in it,
and the pseudo-update is the same function as the real one.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

Params = TypeVar("Params")


def sgd(config: ConfigDict) -> optax.GradientTransformation:
    """The SGD of `config.optimizer`: the direction is buf <- μ·buf + g + wd·θ (no Nesterov).

    Every parameter decays.
    """
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay), optax.trace(decay=config.momentum)
    )


def network_optimizer(config: ConfigDict, frozen: Sequence[str]) -> optax.GradientTransformation:
    """`sgd` of θ, in which the parts with these names stay as they are, and have no buffer."""
    optimizer = sgd(config)
    if not frozen:
        return optimizer
    return optax.partition(
        {"trained": optimizer, "frozen": optax.set_to_zero()},
        lambda params: {name: "frozen" if name in frozen else "trained" for name in params},
    )


def adam(weight_decay: float) -> optax.GradientTransformation:
    """Adam (betas 0.9 and 0.999, epsilon 1e-8) on g + wd·Θ.

    The decay enters the moments (L2 regularisation), which is not AdamW's.
    """
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.scale_by_adam())


# Jitted so that the pseudo-update and the real one are traced once.
@functools.partial(jax.jit, static_argnums=0)
def descend(
    optimizer: optax.GradientTransformation,
    gradient: Params,
    opt_state: optax.OptState,
    params: Params,
    learning_rate: jax.Array,
) -> tuple[Params, optax.OptState]:
    """One step: params - learning_rate · direction, and the optimiser's new state."""
    direction, opt_state = optimizer.update(gradient, opt_state, params)
    params = jax.tree.map(
        lambda p, d: p - jnp.asarray(learning_rate, p.dtype) * d, params, direction
    )
    return params, opt_state


class LearningRates(NamedTuple):
    """Those of one iteration.

    Attributes:
        network: lr, of θ.
        predictor: of Θ.
    """

    network: jax.Array
    predictor: jax.Array


def learning_rates(config: ConfigDict, total_steps: int) -> Callable[[jax.Array], LearningRates]:
    """The function from an iteration to its learning rates, which follow one schedule.

    Args:
        config: a run's configuration.
        total_steps: T, iterations of the whole run.
    """
    factor_at = learning_rate_factor(config.optimizer, total_steps)
    # Read here: by the time a step is traced, the configuration may be that of another one.
    of_network, of_predictor = config.optimizer.learning_rate, config.weighting.learning_rate

    def rates_at(step: jax.Array) -> LearningRates:
        factor = factor_at(step)
        return LearningRates(network=of_network * factor, predictor=of_predictor * factor)

    return rates_at


def learning_rate_factor(config: ConfigDict, total_steps: int) -> Callable[[Any], jax.Array]:
    """What both learning rates are multiplied by at iteration t of T = `total_steps`.

    "cosine": (1 + cos(πt/T)) / 2, and 0 from T on. "multistep": a factor 0.1 for every milestone, a
    fraction of T rounded to an iteration, that t has reached. With a warm-up of W iterations it is
    multiplied by (t + 1) / W while t < W (Goyal et al., 2017).

    Args:
        config: `config.optimizer`.
        total_steps: T, iterations of the whole run.
    """
    schedule = _SCHEDULES[config.schedule](config, total_steps)
    if not config.get("warmup_epochs", 0):
        return schedule
    warmup_steps = config.warmup_epochs * total_steps / config.epochs
    return lambda step: schedule(step) * jnp.minimum((step + 1) / warmup_steps, 1)


def _cosine(config: ConfigDict, total_steps: int) -> Callable[[Any], jax.Array]:
    total = float(total_steps)
    return lambda step: (1 + jnp.cos(math.pi * (jnp.minimum(step, total) / total))) / 2


def _multistep(config: ConfigDict, total_steps: int) -> Callable[[Any], jax.Array]:
    boundaries = [float(round(milestone * total_steps)) for milestone in config.milestones]
    return lambda step: 0.1 ** sum(jnp.asarray(step >= b, int) for b in boundaries)


_SCHEDULES = {"cosine": _cosine, "multistep": _multistep}

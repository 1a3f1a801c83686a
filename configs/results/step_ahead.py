"""What learned weights are worth to the meta loss one half-step ahead, at a run's best checkpoint.

python configs/results/step_ahead.py RUN ...

A finished run's best checkpoint is often its last, with no step left after it: stop the run before.
"""

import functools
import itertools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from l2w_jax.config.stored import read_config
from l2w_jax.data import open_source
from l2w_jax.models.preprocessing import channel_statistics, normalize
from l2w_jax.run.loop import total_steps
from l2w_jax.run.restore import restore_best
from l2w_jax.training.forward import training_forward
from l2w_jax.training.losses import confidences_of_logits
from l2w_jax.training.optimizers import descend
from l2w_jax.training.step import create_training, half_of

BATCHES = 100


def meta_losses(config, num_steps, state, halves):
    """The meta loss of x2 at θ, after a plain training step on x1, and after a weighted one."""
    training = create_training(config, num_steps)
    x1, x2 = halves
    forward = training_forward(training.network, state, x1)
    weights = training.weigh(state.wpn_params, forward.losses, forward.confidences)
    rate = training.rates_at(state.step).network

    def after(weights):
        gradient = forward.weighted_gradient(weights)
        return descend(training.optimizer, gradient, state.opt_state, state.params, rate)[0]

    def meta_loss(params):
        losses, (logits, _) = training.learner.network(params, state.batch_stats, x2)
        return training.learner.objective(losses, confidences_of_logits(logits))

    return jnp.stack(
        [meta_loss(p) for p in (state.params, after(jnp.ones_like(weights)), after(weights))]
    )


def worth(workdir):
    """One line on a run."""
    config = read_config(workdir)
    source = open_source(config)
    state = restore_best(config, workdir)
    num_steps = total_steps(config, source)
    if int(state.step) >= num_steps:
        return f"{workdir}: the best checkpoint is of the last step, {num_steps}: must be before it"
    measure = jax.jit(functools.partial(meta_losses, config, num_steps))
    statistics = channel_statistics(config.dataset.name)
    found = []
    for batch in itertools.islice(source.train_batches(int(state.step)), BATCHES):
        batch = {"image": normalize(batch["image"], *statistics), "label": batch["label"]}
        found.append(measure(state, [half_of(batch, i) for i in range(2)]))
    at, plain, weighted = np.array(found).T
    gain = plain - weighted
    return (
        f"{workdir} step {state.step}: meta loss {at.mean():.4f}, after a plain step "
        f"{plain.mean():.4f}, after a weighted one {weighted.mean():.4f}, "
        f"less by {gain.mean():.5f} +- {gain.std(ddof=1) / len(gain) ** 0.5:.5f}"
    )


for argument in sys.argv[1:]:
    print(worth(Path(argument)))

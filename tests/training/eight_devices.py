"""Runs iterations on 1 device and over 8 simulated ones, and prints how far apart they end.

`test_devices.py` runs it in a process of its own: the number of devices is fixed at start.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
from compiled_step import compiled_step
from small_networks import ConvNetwork

from l2w_jax.benchmark.program import collectives
from l2w_jax.config import default_config
from l2w_jax.models.layers import BatchNorm, LayerOptions
from l2w_jax.training import DEVICE_AXIS, create_train_state, make_train_step, pmap_train_step
from l2w_jax.training.forward import training_forward
from l2w_jax.training.meta import meta_gradient, predictor_step
from l2w_jax.training.step import create_training

DEVICES = 8
# Of a device's four images.
HALVES = (slice(0, 2), slice(2, 4))
ITERATIONS = 2


def config_of(scope, schedule):
    """Weighting whose every mean runs over the batch."""
    config = default_config(model=ConvNetwork(dtype=jnp.float64))
    config.dataset.image_size = 8
    config.weighting.update(hidden=8, learning_rate=1e-2, constraint="mat", input="both")
    config.weighting.update(scope=scope, schedule=schedule)
    config.optimizer.learning_rate = 0.1
    return config


def batches():
    """Global batches, halves as one device splits them, and the same rows as 8 devices get them.

    Each holds the one before it, as the pipelined schedule wants.
    """
    previous = None
    generator = np.random.default_rng(0)
    for _ in range(ITERATIONS):
        image = generator.standard_normal((2, DEVICES, 2, 8, 8, 3))
        label = generator.integers(0, 10, (2, DEVICES, 2))
        whole = {"image": image.reshape(-1, 8, 8, 3), "label": label.reshape(-1)}
        shards = {
            "image": image.swapaxes(0, 1).reshape(DEVICES, 4, 8, 8, 3),
            "label": label.swapaxes(0, 1).reshape(DEVICES, 4),
        }
        previous = previous or (whole, shards)
        pairs = zip((whole, shards), previous, strict=True)
        yield tuple({**batch, "previous": before} for batch, before in pairs)
        previous = whole, shards


def distance(ours, theirs, start):
    """Largest difference of two trees over the largest change from `start`."""
    leaves = zip(*map(jax.tree.leaves, (ours, theirs, start)), strict=True)
    trios = [tuple(np.asarray(x) for x in trio) for trio in leaves]
    change = max(np.abs(theirs - start).max() for _, theirs, start in trios)
    return float(max(np.abs(ours - theirs).max() for ours, theirs, _ in trios) / change)


def learned(state):
    return {"theta": state.params, "Theta": state.wpn_params, "statistics": state.batch_stats}


def metric_distance(ours, theirs):
    """Largest difference of two iterations' metrics; samples come in another order."""

    def in_order(metric):
        return np.sort(np.atleast_1d(metric), axis=0)

    return max(
        float(np.abs(in_order(ours[name]) - in_order(theirs[name])).max())
        for name in ("loss", "top1", "weighted_loss", "meta_loss", "weights", "losses")
    )


def spread_over_replicas(config, start, shards):
    """Largest difference between what the replicas of one update return."""
    step = make_train_step(config, 100, DEVICE_AXIS)
    over_devices = jax.pmap(step.update, axis_name=DEVICE_AXIS, in_axes=(None, 0, None), out_axes=0)
    replicas = over_devices(start, shards, np.int32(0))
    return max(float(np.ptp(np.asarray(x), axis=0).max()) for x in jax.tree.leaves(replicas))


def by_hand(config, start, shards):
    """Adam's moments of Θ after a half-step: each device's gradient by itself, then their mean."""
    training = create_training(config, 1)
    network, learner = training.network, training.learner

    @jax.jit
    def gradient_on(shard):
        training_half, meta_half = ({k: v[rows] for k, v in shard.items()} for rows in HALVES)
        forward = training_forward(network, start, training_half)
        rate = config.optimizer.learning_rate
        return meta_gradient(learner, start, forward, meta_half, rate)[1]

    images_and_labels = {name: shards[name] for name in ("image", "label")}
    gradients = [
        gradient_on(jax.tree.map(lambda x, device=device: x[device], images_and_labels))
        for device in range(DEVICES)
    ]
    mean = jax.tree.map(lambda *values: sum(values) / DEVICES, *gradients)
    return moments(predictor_step(learner, start, mean, config.weighting.learning_rate))


def by_hand_distance(config, step, start, shards):
    expected = by_hand(config, start, shards)
    found, _ = step.update(jax.tree.map(np.asarray, start), shards, np.int32(0))
    return distance(moments(found), expected, moments(start))


def exchanges_of_a_norm(dtype):
    """Exchanges of all devices that a batch norm is compiled to, and that its gradient is."""
    norm = BatchNorm(LayerOptions(dtype, axis_name="device"))
    x = jnp.ones((DEVICES, 2, 4, 4, 3), dtype)
    variables = BatchNorm(LayerOptions(dtype)).init(jax.random.key(0), x[0], train=False)

    def normalized(x):
        y, _ = norm.apply(variables, x, train=True, mutable=["batch_stats"])
        return (y**3).sum()

    def num_exchanges(function):
        compiled = jax.pmap(function, axis_name="device").lower(x).compile()
        return sum(kind["count"] for kind in collectives(compiled.as_text()).values())

    return num_exchanges(normalized), num_exchanges(jax.grad(normalized))


def moments(state):
    return [leaf for leaf in jax.tree.leaves(state.wpn_opt_state) if leaf.ndim]


def main():
    jax.config.update("jax_enable_x64", True)
    assert jax.device_count() == DEVICES
    result = {}
    settings = {
        "global": ("global", "exact"),
        "device": ("device", "exact"),
        "pipelined": ("global", "pipelined"),
    }
    for name, setting in settings.items():
        config = config_of(*setting)
        start = create_train_state(config, jax.random.key(0))
        one, eight = start, jax.tree.map(np.asarray, start)
        step_of_one = compiled_step(config, 100)
        step_of_eight = pmap_train_step(make_train_step(config, 100, DEVICE_AXIS))
        for whole, shards in batches():
            one, metrics_of_one = step_of_one(one, whole)
            eight, metrics_of_eight = step_of_eight(eight, shards)
        result[name] = {
            what: distance(learned(eight)[what], learned(one)[what], learned(start)[what])
            for what in learned(start)
        }
        result[name]["metrics"] = metric_distance(metrics_of_eight, metrics_of_one)
        if name == "device":
            result[name]["by_hand"] = by_hand_distance(
                config, step_of_eight, start, next(batches())[1]
            )
        result[name]["spread"] = spread_over_replicas(config, start, next(batches())[1])
    result["exchanges"] = {
        dtype: exchanges_of_a_norm(jnp.dtype(dtype)) for dtype in ("float32", "bfloat16")
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

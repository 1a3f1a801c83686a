"""What an update of a training step costs on this machine, compared with plain training's."""

import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from l2w_jax.benchmark.program import has_loops, num_kernels
from l2w_jax.config.choices import updates_per_iteration
from l2w_jax.run.devices import device_batches, place_replicated, step_on_devices, with_previous
from l2w_jax.run.parts import with_parts_that_fit
from l2w_jax.training.state import untrained_state
from l2w_jax.training.weighting import is_pipelined

# Steps of a run so long that its learning rates do not fall while it is measured.
TOTAL_STEPS = 1_000_000


def measure(config: ConfigDict, num_steps: int, started: float) -> dict[str, Any]:
    """The report on both steps.

    Args:
        config: a run's configuration, checked.
        num_steps: steps to time.
        started: `time.monotonic()` when the program began.
    """
    config = with_parts_that_fit(config, TOTAL_STEPS)
    halved = updates_per_iteration(config.weighting.kind) == 2
    batch_size = config.dataset.batch_size
    weighted = measure_update(config, batch_size, num_steps, started)
    report = {
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
        "images_per_update": batch_size // 2 if halved else batch_size,
    }
    if not halved:
        return report | {"plain": weighted}
    plain = measure_update(plain_training(config), batch_size // 2, num_steps, time.monotonic())
    compared = ("gigaflops", "temporary_megabytes", "kernels", "seconds")
    return report | {
        "plain": plain,
        "weighted": weighted,
        "ratio": {
            name: weighted[name] / plain[name]
            for name in compared
            if name in weighted and name in plain
        },
    }


def plain_training(config: ConfigDict) -> ConfigDict:
    """The configuration without weights of the samples: an SGD step on the whole batch."""
    plain = config.copy_and_resolve_references()
    plain.weighting.kind = "none"
    return plain


def measure_update(
    config: ConfigDict, batch_size: int, num_steps: int, started: float
) -> dict[str, float]:
    """What one update over all devices costs and how long it takes to get there.

    Args:
        config: a run's configuration.
        batch_size: images of an iteration, over all devices.
        num_steps: updates to time.
        started: when the seconds to the first update began, by `time.monotonic()`.

    Returns:
        gigaflops (of a step in one part: XLA counts one pass of a loop), temporary_megabytes and
        kernels of one device, seconds (median) of an update, images_per_second of all devices, and
        seconds_to_first_step, of which seconds_tracing and seconds_compiling (or reading from the
        cache).
    """
    step = step_on_devices(config, TOTAL_STEPS)
    state = place_replicated(untrained_state(config, jax.random.key(config.seed)))
    batches = device_batches(_random_batches(config, batch_size))
    if is_pipelined(config.weighting):
        unpaired = batches
        batches = with_previous(lambda step: unpaired, first_step=0)
    batch = next(batches)
    first = np.int32(0)

    start = time.monotonic()
    lowered = step.update.lower(state, batch, first)
    traced = time.monotonic()
    compiled = lowered.compile()
    compiled_at = time.monotonic()
    state, metrics = compiled(state, batch, first)
    jax.block_until_ready((state, metrics))
    first_step_done = time.monotonic()

    durations = []
    for _ in range(num_steps):
        batch = next(batches)
        begun = time.monotonic()
        state, metrics = compiled(state, batch, first)
        jax.block_until_ready((state, metrics))
        durations.append(time.monotonic() - begun)
    batches.close()
    seconds = float(np.median(durations))
    text = compiled.as_text()
    counted = {} if has_loops(text) else {"gigaflops": compiled.cost_analysis()["flops"] / 1e9}
    return counted | {
        "temporary_megabytes": compiled.memory_analysis().temp_size_in_bytes / 1e6,
        "kernels": float(num_kernels(text)),
        "seconds": seconds,
        "images_per_second": batch_size / step.num_updates / seconds,
        "seconds_to_first_step": first_step_done - started,
        "seconds_tracing": traced - start,
        "seconds_compiling": compiled_at - traced,
    }


def ratios(new: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """new / old for every number that both hold, nested in the same way."""
    result: dict[str, Any] = {}
    for name in new.keys() & old.keys():
        if isinstance(new[name], Mapping) and isinstance(old[name], Mapping):
            result[name] = ratios(new[name], old[name])
        elif isinstance(new[name], float) and isinstance(old[name], int | float) and old[name]:
            result[name] = new[name] / old[name]
    return dict(sorted(result.items()))


def _random_batches(config: ConfigDict, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """The same batch of random images [n, H, W, 3] and labels [n], endlessly."""
    generator = np.random.default_rng(0)
    size = config.dataset.image_size
    batch = {
        "image": generator.integers(0, 256, (batch_size, size, size, 3), np.uint8),
        "label": generator.integers(0, config.dataset.num_classes, batch_size, np.int32),
    }
    while True:
        yield batch

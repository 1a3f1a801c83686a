"""The training loop: from a configuration and a data source to a trained state on disk.

A run is a sequence of iterations, the s-th of which depends only on the state before it, on s, and
on the number of devices, whose halves make up a batch's halves. So a run that was interrupted
anywhere goes on from its last checkpoint to the very same end.
"""

import contextlib
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from l2w_jax.config.choices import updates_per_iteration
from l2w_jax.data import Source
from l2w_jax.errors import RunFailed, RunInterrupted, UserError, told_if_memory_is_short
from l2w_jax.evaluation.predictions import predict_all
from l2w_jax.models import create_network
from l2w_jax.run import checkpoints, images, processes, start, stop_signals
from l2w_jax.run.devices import (
    device_batches,
    diverged_devices,
    place_replicated,
    step_on_devices,
    with_previous,
)
from l2w_jax.run.log import HostMetrics, RunLog, SilentLog, say
from l2w_jax.training import TrainState
from l2w_jax.training.step import Metrics
from l2w_jax.training.weighting import is_pipelined


def train(config: ConfigDict, source: Source, workdir: Path) -> TrainState:
    """Trains to the end of the run, from the newest good checkpoint where there is one.

    Args:
        config: a run's configuration, checked, with `parts.with_parts_that_fit`.
        source: its data.
        workdir: the run folder, which exists and which no other process uses. Gets `checkpoints/`,
            `metrics.jsonl` and TensorBoard's events.

    Returns:
        The state after the last iteration.

    Raises:
        UserError: the existing checkpoints are all damaged, or of another network, or were trained
            on other images; or processes have different images or networks.
        RunFailed: a loss or an array is not finite, a checkpoint could not be saved or cannot be
            read now, or a device's memory is too small for a step.
        RunInterrupted: a signal asked the run to stop; its state is saved.
    """
    images.check_alike_in_all_processes(source)
    last_step = total_steps(config, source)
    steps_per_epoch = last_step // config.optimizer.epochs
    train_step = step_on_devices(config, last_step)
    state = start.create_or_restore(config, workdir)
    start.check_alike_in_all_processes(state)
    first_step = int(state.step)
    images.check_to_train_on(source, workdir, first_step)
    if first_step >= last_step:
        say(f"{workdir}: is trained to its last step, {last_step}, already")
        return state
    if not first_step:
        for line in images.seen_by_earlier_runs(config, source):
            say(line)
    say("splits: " + "; ".join(f"{split}: {origin}" for split, origin in source.origins.items()))
    say(
        f"{source.num_train:,} images to train on, {source.num_holdout:,} held out, "
        f"{source.num_test:,} to test on; {jax.device_count()} x {jax.devices()[0].device_kind}; "
        f"{'goes on after' if first_step else 'starts at'} step {first_step}/{last_step}"
    )
    batches = _batches(config, source, first_step)
    state = place_replicated(state)
    with (
        stop_signals.ending_at_once() as signals,
        contextlib.closing(batches),
        contextlib.closing(
            checkpoints.CheckpointWriter(workdir, config.checkpoint.keep, images.identity(source))
        ) as writer,
        _open_log(config, source, workdir, first_step) as log,
        told_if_memory_is_short("a step", lambda: _memory_advice(config, workdir, writer)),
    ):
        watched = _WatchedMetrics(config, steps_per_epoch, log, writer)
        say("the first step compiles; with a warm cache that is quick")
        started = time.monotonic()
        for step in range(first_step + 1, last_step + 1):
            with log.waiting():
                batch = next(batches)
            state, metrics = train_step(state, batch)
            watched.add(step, metrics)
            if step == first_step + 1:
                jax.block_until_ready(metrics)
                signals.defer(processes.sigterm_listener())
                say(f"first step after {time.monotonic() - started:.1f} s")
                watched.finish()
                log.start_clock()
            if _is_due(step, config.log.every_steps):
                writer.check()
            if _is_due(step, config.log.check_replicas):
                _check_replicas(step, state, writer)
            stopping = bool(signals.received) or processes.asked_to_stop(step)
            epoch_ends = step % steps_per_epoch == 0
            scored = step == last_step or (
                epoch_ends and _is_due(step // steps_per_epoch, config.checkpoint.every_epochs)
            )
            if scored or stopping or _is_due(step, config.checkpoint.every_steps):
                watched.finish()
                log.stop_clock()
                score = _score(config, source, state, log, writer) if scored else None
                writer.save(state, score)
                log.start_clock()
            if stopping:
                log.write_rest(step)
                writer.wait()
                raise RunInterrupted(
                    f"stopped by {' '.join(signals.received) or 'SIGTERM'} after step {step}, "
                    "which is saved; the same command goes on from there"
                )
        writer.wait()
        if signals.received:
            raise RunInterrupted(
                f"stopped by {' '.join(signals.received)} after the last step, which is saved; the "
                "same command evaluates it"
            )
    return jax.device_get(state)


def total_steps(config: ConfigDict, source: Source) -> int:
    """Iterations of the whole run."""
    return config.optimizer.epochs * (source.num_train // config.dataset.batch_size)


def _open_log(config: ConfigDict, source: Source, workdir: Path, first_step: int) -> SilentLog:
    if processes.is_first():
        return RunLog(workdir, config, source, first_step, total_steps(config, source))
    return SilentLog()


def _memory_advice(config: ConfigDict, workdir: Path, writer: checkpoints.CheckpointWriter) -> str:
    accumulation = config.optimizer.accumulation
    settings = (
        f"--config.optimizer.accumulation={2 * accumulation} (now {accumulation}), "
        "--config.model.dtype=bfloat16 or a smaller --config.dataset.batch_size"
    )
    # This waits for a checkpoint that is being saved.
    resume_advice = writer.resume_advice()
    if writer.last_saved_step is None:
        return f"try {settings}, or more devices; {resume_advice}"
    return (
        f"try more devices; {resume_advice}; with {settings} it would be another run, which "
        f"--config.init.checkpoint={workdir} and a new --workdir start from this one's network"
    )


def _batches(config: ConfigDict, source: Source, first_step: int) -> Generator[dict[str, Any]]:
    """The batches of a run after `first_step` steps, on the devices."""

    def batches_from(step: int) -> Generator[dict[str, jax.Array]]:
        return device_batches(source.train_batches(step, jax.process_index(), jax.process_count()))

    if is_pipelined(config.weighting):
        return with_previous(batches_from, first_step)
    return batches_from(first_step)


class _WatchedMetrics:
    """Fetches each iteration's metrics while the next one runs, checks them and logs them."""

    def __init__(
        self,
        config: ConfigDict,
        steps_per_epoch: int,
        log: SilentLog,
        writer: checkpoints.CheckpointWriter,
    ):
        self._config = config
        self._steps_per_epoch = steps_per_epoch
        self._log = log
        self._writer = writer
        self._running: tuple[int, Metrics] | None = None

    def add(self, step: int, metrics: Metrics) -> None:
        """Takes the metrics of an iteration that was just started.

        Raises:
            RunFailed: the iteration before has a loss that is not finite.
        """
        self.finish()
        self._running = (step, metrics)

    def finish(self) -> None:
        """Waits for the iteration that runs.

        Raises:
            RunFailed: it has a loss that is not finite.
        """
        if self._running is None:
            return
        step, metrics = self._running
        self._running = None
        host_metrics: HostMetrics = jax.device_get(metrics)
        # A meta loss is NaN where there was no meta update; a meta update that went wrong shows in
        # the weighted loss, through the weights.
        for name in ("loss", "weighted_loss"):
            if not np.isfinite(host_metrics[name]).all():
                raise RunFailed(
                    f"step {step}: the {name.replace('_', ' ')} is not finite "
                    f"({host_metrics[name]}) at learning rate {host_metrics['learning_rate']:.3g} "
                    f"and meta learning rate {host_metrics['meta_learning_rate']:.3g}; "
                    f"{self._writer.resume_advice()}"
                    + (_rate_advice(self._config) if step <= self._steps_per_epoch else "")
                )
        self._log.add_step(step, host_metrics)


def _rate_advice(config: ConfigDict) -> str:
    """What to try where a run fails in its first epoch.

    The paper's rates, 0.8 for two halves of 512 images (Han et al., ECCV 2022, section 4.1) and 0.1
    for 64 in plain training, are the same by the linear rule (Goyal et al., 2017).
    """
    images = config.dataset.batch_size // updates_per_iteration(config.weighting.kind)
    return (
        "; in the first epoch, try --config.optimizer.warmup_epochs=5 (now "
        f"{config.optimizer.warmup_epochs}) or a lower --config.optimizer.learning_rate (the "
        f"linear rule gives {0.1 * images / 64:.3g} for updates of {images} images)"
    )


def _check_replicas(step: int, state: TrainState, writer: checkpoints.CheckpointWriter) -> None:
    if diverged := diverged_devices(state):
        raise RunFailed(
            f"step {step}: device {', '.join(map(str, diverged))} of {jax.device_count()} no "
            f"longer holds the state that device 0 holds; {writer.resume_advice()}"
        )


def _score(
    config: ConfigDict,
    source: Source,
    state: TrainState,
    log: SilentLog,
    writer: checkpoints.CheckpointWriter,
) -> float | None:
    """Held-out top-1 of the last exit, percent; None without held-out images.

    Raises:
        RunFailed: the network or the images cannot be used any more.
    """
    if source.num_holdout == 0:
        return None
    variables = state.variables
    try:
        predictions = predict_all(config, create_network(config), variables, source, "holdout")
    except RunFailed:
        raise
    except UserError as error:
        raise RunFailed(f"step {int(state.step)}: {error}; {writer.resume_advice()}") from error
    log.add_holdout(int(state.step), predictions.top1)
    return float(predictions.top1[-1])


def _is_due(count: int, interval: int) -> bool:
    """Whether `count` completes an interval; an interval of 0 never does."""
    return interval > 0 and count % interval == 0

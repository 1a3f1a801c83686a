"""What a training run reports while it runs: lines to read, TensorBoard, metrics.jsonl.

Percentages are 0 to 100 in all of them.
"""

import concurrent.futures
import contextlib
import importlib
import json
import logging
import math
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from ml_collections import ConfigDict

from l2w_jax import standard_output
from l2w_jax.data import Source
from l2w_jax.errors import RunFailed, RunInterrupted, first_line
from l2w_jax.run import metrics_file, processes

HostMetrics = Mapping[str, np.ndarray]

_logger = logging.getLogger(__name__)

# What is profiled: not the first iterations of a process, which compile.
_STEPS_BEFORE_PROFILE = 5
_PROFILED_STEPS = 5

_GOES_ON = "the same command goes on from the last checkpoint"


class SilentLog:
    """The log of every process but the first: nothing."""

    def __enter__(self) -> "SilentLog":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def start_clock(self) -> None:
        """See `RunLog.start_clock`."""

    def stop_clock(self) -> None:
        """See `RunLog.stop_clock`."""

    def waiting(self) -> contextlib.AbstractContextManager[None]:
        """See `RunLog.waiting`."""
        return contextlib.nullcontext()

    def add_step(self, step: int, metrics: HostMetrics) -> None:
        """See `RunLog.add_step`."""

    def write_rest(self, step: int) -> None:
        """See `RunLog.write_rest`."""

    def add_holdout(self, step: int, top1: np.ndarray) -> None:
        """See `RunLog.add_holdout`."""


class RunLog(SilentLog):
    """Writes the metrics of a run; use as a context manager, so that nothing stays in a buffer.

    Args:
        workdir: the run folder. Lines of metrics.jsonl after `first_step` are dropped: they belong
            to steps that are done again.
        config: the run's configuration.
        source: its data.
        first_step: iterations that were done before.
        total_steps: iterations of the whole run.
    """

    def __init__(
        self,
        workdir: Path,
        config: ConfigDict,
        source: Source,
        first_step: int,
        total_steps: int,
    ):
        self._settings = config.log
        self._source = source
        self._batch_size = config.dataset.batch_size
        self._steps_per_epoch = total_steps // config.optimizer.epochs
        self._total_steps = total_steps
        self._json_lines = _opened_metrics(workdir / "metrics.jsonl", first_step)
        # In the background, while the first step compiles: clu imports TensorFlow, which takes
        # seconds.
        self._background = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        self._workdir = workdir
        self._opened = self._background.submit(
            _TensorBoard, workdir, self._has_profile(first_step), self._total_steps, first_step
        )
        self._window: list[HostMetrics] = []
        self._clock = _StepClock()

    def _has_profile(self, first_step: int) -> bool:
        needed = _STEPS_BEFORE_PROFILE + _PROFILED_STEPS
        if self._settings.profile and self._total_steps - first_step < needed:
            _logger.warning(
                "config.log.profile: no profile: %d iterations are left, and it needs %d",
                self._total_steps - first_step,
                needed,
            )
            return False
        return self._settings.profile

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        with self._background:
            try:
                with self._told_if_unwritable():
                    self._json_lines.close()
                with self._tensorboard() as tensorboard:
                    tensorboard.writer.close()
            except RunFailed:
                # An error that already ends the run comes first.
                if error is None:
                    raise

    def start_clock(self) -> None:
        """From now on iterations, and the time that they take, count for the images per second."""
        self._clock.start()

    def stop_clock(self) -> None:
        """What follows until `start_clock` does not count: compilation, evaluation, saving."""
        self._clock.stop()

    def waiting(self) -> contextlib.AbstractContextManager[None]:
        """A context: the time spent inside counts as waiting for data."""
        return self._clock.waiting()

    def add_step(self, step: int, metrics: HostMetrics) -> None:
        """Takes the metrics of one iteration; every `log.every_steps` their means are written.

        Args:
            step: iterations done, with this one.
            metrics: of `make_train_step`, on the host.
        """
        with self._tensorboard() as tensorboard:
            for hook in tensorboard.hooks:
                hook(step)
        self._window.append({name: metrics[name] for name in _AVERAGED})
        self._clock.count_step()
        if step % self._settings.every_steps == 0 or step == self._total_steps:
            self._write_window(step)
        histogram_every = self._settings.histogram_every_steps
        if histogram_every and step % histogram_every == 0:
            weights = np.asarray(metrics["weights"])
            by_exit = {f"weights/exit_{k + 1}": column for k, column in enumerate(weights.T)}
            with self._tensorboard() as tensorboard:
                tensorboard.writer.write_histograms(step, by_exit)

    def write_rest(self, step: int) -> None:
        """Writes the means of the iterations since the last line, when a run stops at `step`."""
        if self._window:
            self._write_window(step)

    def add_holdout(self, step: int, top1: np.ndarray) -> None:
        """Writes the accuracy on held-out images, percent [K]."""
        self._write_json({"step": step, "holdout_top1": _rounded(top1)})
        with self._tensorboard() as tensorboard:
            tensorboard.writer.write_scalars(step, _per_exit("holdout", "top1", top1))
        say(f"held-out images after step {step}: top-1 {_join(top1)} %")

    def _write_window(self, step: int) -> None:
        seconds_per_step, waiting = self._clock.take()
        means = {
            name: _mean_of_finite([metrics[name] for metrics in self._window]) for name in _AVERAGED
        }
        rates = {name: self._window[-1][name] for name in ("learning_rate", "meta_learning_rate")}
        speed = self._batch_size / seconds_per_step
        epoch = step / self._steps_per_epoch
        top1 = 100 * means["top1"]
        self._write_json(
            {
                "step": step,
                "steps": len(self._window),
                "epoch": round(epoch, 4),
                "loss": _rounded(means["loss"]),
                "top1": _rounded(top1),
                "weighted_loss": _rounded(means["weighted_loss"]),
                "meta_loss": _rounded(means["meta_loss"]),
                **{name: float(rate) for name, rate in rates.items()},
                "images_per_second": _rounded(np.float64(speed)),
                "waiting_for_data": _rounded(np.float64(100 * waiting)),
                "bad_images": self._source.num_bad,
            }
        )
        scalars = {
            **_per_exit("train", "loss", means["loss"]),
            **_per_exit("train", "top1", top1),
            "train/weighted_loss": means["weighted_loss"],
            "train/learning_rate": rates["learning_rate"],
            "train/meta_learning_rate": rates["meta_learning_rate"],
            "train/meta_loss": means["meta_loss"],
            "images_per_second": speed,
            "waiting_for_data": 100 * waiting,
            "bad_images": self._source.num_bad,
        }
        finite = {name: float(value) for name, value in scalars.items() if np.isfinite(value)}
        with self._tensorboard() as tensorboard:
            tensorboard.writer.write_scalars(step, finite)
        say(
            f"step {step}/{self._total_steps}  epoch {epoch:.1f}  "
            f"loss {means['loss'].mean():.4f}  top-1 {_join(top1)} %"
            f"{_pace(speed, seconds_per_step * (self._total_steps - step))}"
        )
        self._window = []

    @contextlib.contextmanager
    def _tensorboard(self) -> Iterator["_TensorBoard"]:
        """TensorBoard's part of the log. It writes in a thread, so errors come at a later call.

        Raises:
            RunFailed: its events cannot be written.
        """
        try:
            yield self._opened.result()
        except RunInterrupted:
            raise
        except Exception as error:
            reason = first_line(error.__cause__ or error)
            raise RunFailed(
                f"{self._workdir}: TensorBoard's events cannot be written: {reason}; {_GOES_ON}"
            ) from error

    def _write_json(self, line: Mapping[str, Any]) -> None:
        with self._told_if_unwritable():
            self._json_lines.write(json.dumps(line, allow_nan=False) + "\n")
            self._json_lines.flush()

    @contextlib.contextmanager
    def _told_if_unwritable(self) -> Iterator[None]:
        """Makes an error in writing metrics.jsonl a RunFailed."""
        try:
            yield
        except OSError as error:
            raise RunFailed(
                f"{self._json_lines.name}: cannot be written: {error.strerror}; {_GOES_ON}"
            ) from error


class _TensorBoard:
    """clu's writer, and its hooks to be called after every iteration."""

    def __init__(self, workdir: Path, profile: bool, total_steps: int, first_step: int):
        # First, so that TensorFlow, which clu brings, leaves accelerators and cores alone.
        importlib.import_module("l2w_jax.data.tensorflow_import")
        from clu import metric_writers, periodic_actions

        self.writer = metric_writers.AsyncMultiWriter([metric_writers.SummaryWriter(str(workdir))])
        self.hooks: list[periodic_actions.PeriodicAction] = [
            periodic_actions.ReportProgress(
                num_train_steps=total_steps, writer=self.writer, every_secs=60
            )
        ]
        if profile:
            self.hooks.append(
                periodic_actions.Profile(
                    logdir=str(workdir),
                    num_profile_steps=_PROFILED_STEPS,
                    profile_duration_ms=None,
                    first_profile=first_step + _STEPS_BEFORE_PROFILE,
                    every_secs=None,
                )
            )


class _StepClock:
    """How long iterations take, without what comes between them, and how long they wait."""

    def __init__(self) -> None:
        self._started: float | None = None
        self._seconds = 0.0
        self._waited = 0.0
        self._steps = 0

    def start(self) -> None:
        self._started = time.monotonic()

    def stop(self) -> None:
        if self._started is not None:
            self._seconds += time.monotonic() - self._started
            self._started = None

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time spent inside as waiting, if the clock runs."""
        begun = time.monotonic()
        yield
        if self._started is not None:
            self._waited += time.monotonic() - begun

    def count_step(self) -> None:
        """An iteration is over; it counts if the clock runs."""
        self._steps += self._started is not None

    def take(self) -> tuple[float, float]:
        """Seconds per iteration since the last call, and the share waited; NaN if none counts."""
        if self._started is not None:
            self.stop()
            self.start()
        seconds, waited, steps = self._seconds, self._waited, self._steps
        self._seconds, self._waited, self._steps = 0.0, 0.0, 0
        return (seconds / steps, waited / seconds) if steps else (math.nan, math.nan)


_AVERAGED = ("loss", "top1", "weighted_loss", "meta_loss", "learning_rate", "meta_learning_rate")


def say(line: str) -> None:
    """Prints a line for whoever watches the run; of several processes only the first does."""
    if processes.is_first():
        try:
            print(line, flush=True)
        except OSError:
            # Who watched it, through a pipe or a terminal, is gone; the run goes on.
            standard_output.discard(sys.stdout)


def _opened_metrics(path: Path, first_step: int) -> TextIO:
    """The file of metrics, to go on after a step; what came later is dropped.

    Raises:
        RunFailed: it cannot be read or written.
    """
    try:
        return metrics_file.reopened(path, first_step)
    except OSError as error:
        raise RunFailed(f"{path}: cannot be written: {error.strerror}; {_GOES_ON}") from error


def _mean_of_finite(values: list[np.ndarray]) -> np.ndarray:
    """The mean, without the NaN of iterations that made no meta update; NaN if all are."""
    stacked = np.asarray(values, np.float64)
    if np.isnan(stacked).all():
        return np.full(stacked.shape[1:], np.nan)
    return np.nanmean(stacked, axis=0)


def _per_exit(group: str, name: str, values: np.ndarray) -> dict[str, float]:
    return {f"{group}/exit_{k + 1}/{name}": float(value) for k, value in enumerate(values)}


def _rounded(values: np.ndarray) -> Any:
    """Six significant digits, None for NaN, which JSON lacks; a list for an array."""
    if np.ndim(values):
        return [_rounded(value) for value in values]
    return None if math.isnan(values) else float(f"{float(values):.6g}")


def _join(percentages: np.ndarray) -> str:
    return " ".join(f"{value:.1f}" for value in percentages)


def _pace(images_per_second: float, seconds_left: float) -> str:
    if math.isnan(images_per_second):
        return ""
    return f"  {images_per_second:,.0f} images/s  {_duration(seconds_left)} left"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"

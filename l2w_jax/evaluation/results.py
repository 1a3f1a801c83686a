"""The results of evaluating a run, and the latency measured afterwards, on disk."""

import dataclasses
import functools
import hashlib
import io
import json
import tokenize
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self
from zipfile import BadZipFile

import numpy as np
from numpy.typing import ArrayLike, NDArray

from l2w_jax.config import stored
from l2w_jax.early_exit import rules
from l2w_jax.early_exit.budget import first_exits, operating_point
from l2w_jax.early_exit.selection import Candidate, cheapest_without_loss, thresholds_of
from l2w_jax.errors import UserError
from l2w_jax.evaluation import checks
from l2w_jax.evaluation.exit_examples import ExitExamples
from l2w_jax.evaluation.predictions import Predictions
from l2w_jax.files import csv_text, json_text, npz_bytes, replace_together, write_json

SUMMARY_FILE = "evaluation.json"
LATENCY_FILE = "latency.json"


@dataclasses.dataclass(frozen=True)
class SampleWeights:
    """Weights that training would give some images, taken as one batch.

    Attributes:
        losses: cross-entropy in nats, float32 [n, K].
        weights: in the training loss, 1 in plain training, float32 [n, K].
    """

    losses: NDArray[np.float32]
    weights: NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a trained network is worth, as a run folder keeps it.

    A folder holds the tables as anytime.csv, budgeted.csv and shots.csv, all that is not an array
    in evaluation.json, and the arrays in evaluation.npz. A field added later has a default, which
    it gets where an older file lacks it. Percentages are 0 to 100, shares 0 to 1, losses in nats.

    Attributes:
        step: of the network.
        dataset: its name.
        class_names: by class index.
        thresholds_from: split of `held_out`, "holdout" or "train".
        anytime: for each exit, if all images stop there: exit (from 1), mul_adds, top1, top5, loss.
        budgeted: for each q of the budgeted curve: q, mul_adds, top1, share_1 to share_K; empty
            without images that set thresholds.
        test: the network's answers to the test images.
        held_out: its answers to the images that set thresholds, if there are any.
        shots: for each exit of a long-tailed data set: exit, and top-1 on the many, medium and few
            shot classes (`evaluate.shots_table`).
        calibration: for each exit: exit, and ece and adaptive_ece of the test images, 0 to 1
            (`early_exit.calibration`).
        calibrated: the same with temperatures, if any were fitted: exit, temperature, ece,
            adaptive_ece, and reliability, the points of a reliability diagram (confidence and
            accuracy, 0 to 1).
        sample_weights: of some of the `held_out` images; None for plain training.
        examples: test images that leave at each exit, when about equally many leave at each.
        splits: where the images of each split come from, `Source.origins` as texts.
        class_counts: training images of each class of a long-tailed data set.
        network: checksum of the network's arrays (`arrays.tree_checksum`), by which it is known;
            None in files of earlier versions.
        digests: of the images of each split (`Source.digests`), where they tell them from others.
        held_out_kept: whether `held_out` is of an earlier evaluation of the network, since this one
            had no such images. `splits` and `digests` then describe the earlier ones.
    """

    step: int
    dataset: str
    class_names: list[str]
    thresholds_from: str
    anytime: list[dict[str, float]]
    budgeted: list[dict[str, float]]
    test: Predictions
    held_out: Predictions | None = None
    shots: list[dict[str, float | None]] | None = None
    calibration: list[dict[str, float]] | None = None
    calibrated: list[dict[str, Any]] | None = None
    sample_weights: SampleWeights | None = None
    examples: ExitExamples | None = None
    splits: dict[str, str] | None = None
    class_counts: list[int] | None = None
    network: str | None = None
    digests: dict[str, str] | None = None
    held_out_kept: bool = False

    @property
    def mul_adds(self) -> list[float]:
        """The mul-adds of stopping at each exit [K]."""
        return [row["mul_adds"] for row in self.anytime]

    @property
    def curve(self) -> list[dict[str, float]]:
        """The budgeted curve as it is drawn and read off: by rising cost, and with both its ends.

        At its ends all images leave at the first exit (q = 0) and at the last (q = infinity). Rows
        have mul_adds, top1 and share_1 to share_K. Empty where there is no curve.
        """
        if not self.budgeted:
            return []
        first, last = (
            {
                "mul_adds": row["mul_adds"],
                "top1": row["top1"],
                **{f"share_{k + 1}": float(k == place) for k in range(len(self.anytime))},
            }
            for place, row in ((0, self.anytime[0]), (len(self.anytime) - 1, self.anytime[-1]))
        )
        return sorted([first, *self.budgeted, last], key=lambda row: row["mul_adds"])

    def threshold_images(self) -> Predictions:
        """The answers to the images that set thresholds.

        Raises:
            UserError: the run was evaluated without such images.
        """
        if self.held_out is None:
            raise UserError(
                f"the run was evaluated without images of {self.thresholds_from!r}, which "
                "thresholds are chosen on: evaluate the run with such images; predict and the "
                "export also take a file of thresholds"
            )
        return self.held_out

    def even_thresholds(self) -> NDArray[np.float32]:
        """Default rule's thresholds [K] at which equally many held-out images leave at each exit.

        Raises:
            UserError: as by `threshold_images`.
        """
        return thresholds_of(1, self.threshold_images().scores(rules.DEFAULT_RULE))

    @functools.cached_property
    def without_loss(self) -> Candidate:
        """The cheapest thresholds that lose no accuracy on the images that set thresholds.

        Raises:
            UserError: as `threshold_images`.
        """
        images = self.threshold_images()
        return cheapest_without_loss(
            images.scores(rules.DEFAULT_RULE), images.correct, self.mul_adds
        )

    def outcome(
        self, images: Predictions, thresholds: ArrayLike, rule: str = rules.DEFAULT_RULE
    ) -> dict[str, float]:
        """mul_adds, top1 and share_1 to share_K of images that leave at a rule's thresholds [K]."""
        exits = first_exits(images.scores(rule), thresholds)
        return operating_point(exits, images.correct, self.mul_adds).row()

    def is_of(self, step: int, network: str | None) -> bool:
        """Whether the network that was evaluated has this step and this checksum.

        Where a file of an earlier version holds no checksum, the step decides.
        """
        if network is None or self.network is None:
            return step == self.step
        return network == self.network

    def check_network(self, step: int, network: str | None, what: str) -> None:
        """Raises UserError if `what` is of another network than the one that was evaluated."""
        if self.is_of(step, network):
            return
        raise UserError(
            f"{what} is of "
            + (
                f"another network of step {step} than the one that was last evaluated; "
                if step == self.step
                else f"step {step}, but the run was last evaluated at step {self.step}; "
            )
            + "evaluate the run (python -m l2w_jax.main with its --config and --workdir, "
            "--mode=evaluate), then choose thresholds anew"
        )

    def save(self, workdir: Path) -> None:
        """Writes the files of the folder, in place of those of an earlier evaluation.

        Raises:
            OSError: a file cannot be written; where the disk is full, the earlier ones stay.
        """
        tables = {
            workdir / f"{name}.csv": csv_text(rows) if (rows := getattr(self, name)) else None
            for name in ("anytime", "budgeted", "shots")
        }
        arrays = {
            f"{prefix}_{name}": array
            for field, (prefix, _) in _ARRAYS.items()
            if (group := getattr(self, field)) is not None
            for name, array in _arrays_of(group).items()
        }
        content = npz_bytes(arrays)
        summary = json_text(self._summary(content))
        replace_together(
            {**tables, workdir / _ARRAYS_FILE: content, workdir / SUMMARY_FILE: summary}
        )

    def save_summary(self, workdir: Path) -> None:
        """Writes all that is not an array into evaluation.json, atomically.

        Args:
            workdir: holds the arrays of this evaluation already.

        Raises:
            OSError: the file cannot be written, or the arrays cannot be read.
        """
        arrays = (workdir / _ARRAYS_FILE).read_bytes()
        write_json(workdir / SUMMARY_FILE, self._summary(arrays))

    def _summary(self, arrays: bytes) -> dict[str, Any]:
        """What evaluation.json holds beside this content of evaluation.npz."""
        summary = {
            field.name: value
            for field in _summary_fields()
            if (value := getattr(self, field.name)) != field.default
        }
        summary["test_images"] = len(self.test.labels)
        summary["thresholds_images"] = 0 if self.held_out is None else len(self.held_out.labels)
        summary[_ARRAYS_CHECKSUM] = hashlib.sha256(arrays).hexdigest()
        return summary

    @classmethod
    def load(cls, workdir: Path) -> Self:
        """The last evaluation of a run.

        Raises:
            UserError: the folder is not that of a run, or it was not evaluated, or not completely.
        """
        stored.read_config(workdir)
        name = SUMMARY_FILE
        try:
            summary = json.loads((workdir / name).read_text())
            fields = {
                field.name: summary[field.name]
                for field in _summary_fields()
                if field.name in summary or field.default is dataclasses.MISSING
            }
            checks.check_summary(fields)
            name = _ARRAYS_FILE
            content = (workdir / name).read_bytes()
            checksum = hashlib.sha256(content).hexdigest()
            # Files of earlier versions have none.
            if summary.get(_ARRAYS_CHECKSUM, checksum) != checksum:
                raise ValueError(f"it is not what {SUMMARY_FILE} was written with")
            with np.load(io.BytesIO(content)) as arrays:
                groups = {
                    field: group_of(found)
                    for field, (prefix, group_of) in _ARRAYS.items()
                    if (found := _with_prefix(arrays, prefix))
                }
            num_exits, num_classes = len(fields["anytime"]), len(fields["class_names"])
            _check_arrays(groups, num_exits, num_classes)
            return cls(**fields, **groups)
        except FileNotFoundError as error:
            raise UserError(
                f"{workdir}: {Path(error.filename).name} is missing; evaluate the run first "
                "(python -m l2w_jax.main with its --config and --workdir, --mode=evaluate)"
            ) from error
        except (*_DAMAGED, OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{workdir / name} is damaged ({error}); evaluate the run "
                "again (python -m l2w_jax.main with its --config and --workdir, --mode=evaluate)"
            ) from error


# What else an archive of arrays with a wrong byte may raise, the last one where it makes an array
# large; JSON that is nested too deeply also raises a RuntimeError.
_DAMAGED = (BadZipFile, zlib.error, tokenize.TokenError, RuntimeError, MemoryError)

_ARRAYS_FILE = "evaluation.npz"

# The field of the summary that tells whether the file of arrays is of the same evaluation.
_ARRAYS_CHECKSUM = "arrays_sha256"

# The fields of `Evaluation` that hold arrays: how their names begin in the file, and what makes the
# field of those arrays.
_ARRAYS: dict[str, tuple[str, Callable[[Mapping[str, NDArray[Any]]], Any]]] = {
    "test": ("test", Predictions.of_arrays),
    "held_out": ("thresholds", Predictions.of_arrays),
    "sample_weights": ("weighted", lambda arrays: SampleWeights(**arrays)),
    "examples": ("examples", lambda arrays: ExitExamples(**arrays)),
}


def _arrays_of(group: Predictions | SampleWeights | ExitExamples) -> dict[str, NDArray[Any]]:
    return group.arrays() if isinstance(group, Predictions) else vars(group)


def _summary_fields() -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(Evaluation) if field.name not in _ARRAYS]


def _check_arrays(groups: Mapping[str, Any], num_exits: int, num_classes: int) -> None:
    """Raises ValueError where arrays are not those of an evaluation of K exits and C classes."""
    for field, group in groups.items():
        try:
            if isinstance(group, Predictions):
                checks.check_predictions(group.arrays(), num_exits, num_classes)
            elif isinstance(group, SampleWeights):
                checks.check_sample_weights(vars(group), num_exits)
            else:
                checks.check_examples(vars(group), num_exits, num_classes)
        except ValueError as error:
            raise ValueError(f"{_ARRAYS[field][0]}: {error}") from error


def _with_prefix(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    start = f"{prefix}_"
    return {name.removeprefix(start): arrays[name] for name in arrays if name.startswith(start)}


def read_latency(workdir: Path, evaluation: Evaluation) -> dict[str, Any] | None:
    """The latency of the network that was evaluated; None if none, or only another's, was measured.

    Raises:
        UserError: the file is damaged.
    """
    path = workdir / LATENCY_FILE
    try:
        latency = json.loads(path.read_text())
        is_of_network = evaluation.is_of(latency.get("step"), latency.get("network"))
        if is_of_network:
            checks.check_latency(latency)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: is damaged ({error}); delete it or measure again") from error
    return latency if is_of_network else None

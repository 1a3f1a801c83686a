"""The page about some runs: what its template is given."""

import base64
import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import to_hex
from ml_collections import ConfigDict
from PIL import Image

from l2w_jax.config import default_config
from l2w_jax.config.stored import changes
from l2w_jax.evaluation import classes
from l2w_jax.evaluation.exit_examples import ExitExamples
from l2w_jax.evaluation.results import Evaluation
from l2w_jax.report import figures
from l2w_jax.report.svg import style_of, svg
from l2w_jax.report.templating import render

# A table has at most this many classes: if there are more, those at both ends.
MOST_CLASSES = 30


@dataclasses.dataclass(frozen=True)
class Run:
    """What the page shows of a run.

    Attributes:
        name: of its folder, or the whole path where another run's folder has the same name.
        config: its configuration.
        evaluation: its last one.
        metrics: the lines of its metrics.jsonl, as far as `figures.training` shows them.
        latency: what its latency.json holds, if that network was measured.
    """

    name: str
    config: ConfigDict
    evaluation: Evaluation
    metrics: list[dict[str, Any]]
    latency: dict[str, Any] | None


@dataclasses.dataclass(frozen=True)
class Table:
    """Texts in rows under a header."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def page(runs: Sequence[Run]) -> str:
    """The whole page as HTML; it can be read offline and needs no other file."""
    most_exits = max(len(run.evaluation.anytime) for run in runs)
    bands = matplotlib.colormaps["cividis"](np.linspace(0.05, 0.95, most_exits))
    return render(
        "page.html",
        names=", ".join(run.name for run in runs),
        band_colours=[to_hex(colour) for colour in bands],
        several=len(runs) > 1,
        results=results_table(runs),
        configuration=config_table(runs),
        accuracy=figures.accuracy({run.name: run.evaluation for run in runs}),
        training=figures.training({run.name: run.metrics for run in runs}),
        runs=[_of_run(run) for run in runs],
        svg=svg,
        style_of=style_of,
    )


def results_table(runs: Sequence[Run]) -> Table:
    """Each run's last exit, and early exits chosen on the images that set thresholds."""
    rows = []
    for run in runs:
        evaluation, last = run.evaluation, run.evaluation.anytime[-1]
        early, images = ["", ""], "none"
        if evaluation.held_out is not None:
            point = evaluation.outcome(evaluation.test, evaluation.without_loss.thresholds)
            early = [f"{point['top1']:.2f}", f"{point['mul_adds'] / 1e6:.2f}"]
            kept = ", of an earlier evaluation" if evaluation.held_out_kept else ""
            images = f"{len(evaluation.held_out.labels)} ({evaluation.thresholds_from}{kept})"
        rows.append(
            [
                run.name,
                f"{len(evaluation.anytime)}",
                f"{last['top1']:.2f}",
                f"{last['mul_adds'] / 1e6:.2f}",
                *early,
                f"{len(evaluation.test.labels)}",
                images,
                f"{evaluation.step}",
            ]
        )
    header = [
        "run",
        "exits",
        "last exit, top-1 [%]",
        "its mul-adds [M]",
        "early exit, top-1 [%]",
        "its mul-adds [M]",
        "test images",
        "images that set thresholds",
        "step",
    ]
    return Table(header, rows)


def config_table(runs: Sequence[Run]) -> Table:
    """The fields in which the runs differ; those of a single one from the defaults."""
    if len(runs) == 1:
        rows = [list(change) for change in changes(default_config(), runs[0].config)]
        return Table(["field", "default", runs[0].name], rows)
    fields = sorted(
        {change.field for run in runs[1:] for change in changes(runs[0].config, run.config)}
    )
    return Table(
        ["field", *(run.name for run in runs)],
        [[field, *(repr(_value(run.config, field)) for run in runs)] for field in fields],
    )


def _of_run(run: Run) -> dict[str, Any]:
    """What the page shows of each run by itself."""
    evaluation = run.evaluation
    sampled = evaluation.sample_weights
    return {
        "name": run.name,
        "splits": evaluation.splits,
        "exits": evaluation.anytime,
        "above_curve": figures.exits_above_curve(evaluation),
        "held_out": evaluation.held_out is not None,
        "plain": run.config.weighting.kind == "none",
        "shares": figures.exit_shares(evaluation),
        "reliability": figures.reliability(evaluation),
        "calibrated_reliability": figures.calibrated_reliability(evaluation),
        "calibration": _calibration(evaluation),
        "classes": _classes(evaluation),
        "examples": _examples(evaluation),
        "weighted": sampled is not None,
        "weights": None if sampled is None else figures.mean_weights(sampled),
        "latency": None if run.latency is None else _latency(run.latency),
    }


def _calibration(evaluation: Evaluation) -> Table | None:
    """Calibration errors of each exit, with temperatures too where they were fitted."""
    if evaluation.calibration is None:
        return None
    names = {"ece": "ECE [%]", "adaptive_ece": "adaptive [%]"}
    header = ["exit", *names.values()]
    rows = [
        [str(row["exit"]), *(f"{100 * row[name]:.2f}" for name in names)]
        for row in evaluation.calibration
    ]
    if evaluation.calibrated is not None:
        header += ["temperature", *(f"with it, {name}" for name in names.values())]
        for cells, row in zip(rows, evaluation.calibrated, strict=True):
            cells.append(f"{row['temperature']:.2f}")
            cells += [f"{100 * row[name]:.2f}" for name in names]
    return Table(header, rows)


def _classes(evaluation: Evaluation) -> dict[str, Any] | None:
    """Chart and table of the classes; if there are many, the table has those at both ends."""
    if evaluation.held_out is None:
        return None
    rows = classes.leaving_by_class(evaluation)
    shown = rows
    if len(rows) > MOST_CLASSES:
        shown = [*rows[: MOST_CLASSES // 2], *rows[-MOST_CLASSES // 2 :]]
    return {
        "chart": figures.class_shares(rows) if len(rows) > 1 else None,
        "table": _leaving_table("class", shown),
        "left_out": len(rows) - len(shown),
        "shots": _leaving_table("classes", classes.leaving_by_shots(evaluation)),
    }


def _leaving_table(what: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    num_exits = sum(name.startswith("share_") for name in rows[0]) if rows else 0
    exits = range(1, num_exits + 1)
    header = [
        what,
        "images",
        "top-1 [%]",
        "at the last exit [%]",
        *(f"exit {k} [%]" for k in exits),
    ]
    return Table(
        header,
        [
            [
                row["name"],
                f"{row['images']}",
                f"{row['top1']:.1f}",
                f"{row['top1_last']:.1f}",
                *(f"{100 * row[f'share_{k}']:.0f}" for k in exits),
            ]
            for row in rows
        ],
    )


def _examples(evaluation: Evaluation) -> list[list[list[dict[str, Any]]]]:
    """For each exit, the images that left there with the highest and the lowest confidence."""
    examples = evaluation.examples
    if examples is None:
        return []
    return [
        [
            [
                _example(examples, row, evaluation.class_names)
                for row in np.flatnonzero((examples.exits == k) & (examples.kinds == kind))
            ]
            for kind in ("sure", "unsure")
        ]
        for k in range(len(evaluation.anytime))
    ]


def _example(examples: ExitExamples, row: int, names: Sequence[str]) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(examples.images[row]).save(buffer, format="PNG")
    return {
        "label": names[examples.labels[row]],
        "predicted": names[examples.predicted[row]],
        "percent": f"{100 * examples.confidences[row]:.0f}%",
        "wrong": examples.labels[row] != examples.predicted[row],
        "png": base64.b64encode(buffer.getvalue()).decode(),
    }


def _latency(latency: dict[str, Any]) -> dict[str, Any]:
    timed = latency["batch_sizes"]
    return {
        "device": latency["device"],
        "charts": list(zip(figures.latency(timed), timed, strict=True)),
    }


def _value(config: ConfigDict, field: str) -> Any:
    """The value of a field such as "model.name"; None where the configuration has no such field."""
    value: Any = config
    for part in field.split("."):
        value = value.get(part) if isinstance(value, ConfigDict) else None
    return value

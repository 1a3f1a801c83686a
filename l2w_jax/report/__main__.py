"""One web page about one run or several, side by side: what they learned and what it is worth.

    python -m l2w_jax.report RUN [RUN ...] [--output=FILE]

The runs must have been evaluated. The page, RUN/report.html of the first one unless --output says
otherwise, needs no network and no other file.
"""

import argparse
import base64
import dataclasses
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import to_hex
from ml_collections import ConfigDict
from numpy.typing import NDArray
from PIL import Image

from l2w_jax import command_line
from l2w_jax.config import default_config, differences, stored
from l2w_jax.evaluation import results
from l2w_jax.files import told_if_unwritable, write_atomically
from l2w_jax.report.page_parts import (
    CSS,
    SERIES_COLOURS,
    band_css,
    legend,
    section,
    table,
    text,
)
from l2w_jax.report.png import LEAST_ACCURACY_RANGE, SMALLEST_LOSS_SHOWN
from l2w_jax.report.svg import Series, line_chart, stacked_chart


@dataclasses.dataclass(frozen=True)
class Run:
    """What the page tells of a run.

    Attributes:
        name: of its folder, or the whole path where another run's is the same.
        config: its configuration.
        results: its last evaluation.
        metrics: the lines of its metrics.jsonl.
        latency: what its latency.json holds, if that network was measured.
        colour: which of the page's colours is its own.
    """

    name: str
    config: ConfigDict
    results: results.Results
    metrics: list[dict[str, Any]]
    latency: dict[str, Any] | None
    colour: int

    @property
    def anytime(self) -> list[dict[str, float]]:
        """Rows of anytime.csv."""
        return self.results.summary["anytime"]

    @property
    def budgeted(self) -> list[dict[str, float]]:
        """Rows of budgeted.csv, by rising cost."""
        return sorted(self.results.summary["budgeted"], key=lambda row: row["mul_adds"])


def main(argv: Sequence[str]) -> None:
    """Runs the command.

    Args:
        argv: arguments without the program's name.

    Raises:
        UserError: a folder is not that of an evaluated run.
    """
    parser = command_line.ArgumentParser(
        prog="python -m l2w_jax.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run")
    parser.add_argument("--output", type=Path, help="default: report.html in the first folder")
    arguments = parser.parse_args(argv)
    print(f"written to {write_report(arguments.runs, arguments.output)}")


def write_report(workdirs: Sequence[Path], output: Path | None = None) -> Path:
    """Writes the page about these runs, and says where.

    Raises:
        UserError: a folder is not that of an evaluated run, or the page cannot be written.
    """
    output = output or workdirs[0] / "report.html"
    whole = page(read_runs(workdirs))
    with told_if_unwritable(output):
        write_atomically(output, whole)
    return output


def read_runs(workdirs: Sequence[Path]) -> list[Run]:
    """The runs in these folders.

    Raises:
        UserError: a folder is not that of an evaluated run.
    """
    folders = [workdir.absolute() for workdir in workdirs]
    names = [folder.name for folder in folders]
    runs = []
    for i, folder in enumerate(folders):
        lines = folder / "metrics.jsonl"
        evaluation = results.read_results(folder)
        runs.append(
            Run(
                name=names[i] if names.count(names[i]) == 1 else str(workdirs[i]),
                config=stored.read_config(folder),
                results=evaluation,
                metrics=_read_json_lines(lines) if lines.exists() else [],
                latency=results.read_latency(folder, evaluation),
                colour=i % SERIES_COLOURS,
            )
        )
    return runs


def page(runs: Sequence[Run]) -> str:
    """The whole page as HTML."""
    most_exits = max(len(run.anytime) for run in runs)
    bands = matplotlib.colormaps["cividis"](np.linspace(0.05, 0.95, most_exits))
    names = ", ".join(run.name for run in runs)
    sections = [
        section("Results", "", _results_table(runs) + _splits(runs)),
        section("Configuration", _CONFIG_TEXT[len(runs) > 1], _config_table(runs)),
        section("Accuracy over compute", _ACCURACY_TEXT, _accuracy(runs)),
        section("Where images leave", _SHARES_TEXT, _cards(runs, _shares)),
        section("Which images leave", _EXAMPLES_TEXT, _cards(runs, _examples)),
        section("What the weights depend on", _WEIGHTS_TEXT, _cards(runs, _weights)),
        section("Measured latency", _LATENCY_TEXT, _cards(runs, _latency)),
        section("Training", "", _training(runs)),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(names)}: early exits</title>"
        f"<style>{CSS}{band_css([to_hex(colour) for colour in bands])}</style></head><body>"
        f"<h1>Early exits: {text(names)}</h1>" + "".join(sections) + "</body></html>\n"
    )


_CONFIG_TEXT = {
    False: "Fields that differ from the defaults.",
    True: "Fields in which the runs differ.",
}
_ACCURACY_TEXT = (
    "Top-1 accuracy on the test images. Marks: all images stop at one exit. Line: each image stops "
    "at the first exit that is confident enough, along the budgeted curve."
)
_SHARES_TEXT = "Share of the test images that leave at each exit, along the budgeted curve."
_EXAMPLES_TEXT = (
    "Test images that leave at each exit when held-out images leave in about equal numbers: the "
    "surest ones above the least sure. Under each the predicted class and its probability; where "
    "it is wrong, the true class in brackets."
)
_WEIGHTS_TEXT = (
    "Mean learned weight of images of like loss, at each exit; 1 is the weight in plain training."
)

_WITHOUT_HELD_OUT = "<p>Evaluated without held-out images, which this is made from.</p>"

_LATENCY_TEXT = (
    "Top-1 accuracy over the measured time per image, for images that come one by one or in "
    "batches. The full network in one piece is the last row of each table."
)


def _results_table(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        summary, last = run.results.summary, run.anytime[-1]
        best = max(run.budgeted, key=lambda row: (row["top1"], -row["mul_adds"]), default=None)
        rows.append(
            [
                run.name,
                f"{len(run.anytime)}",
                f"{last['top1']:.2f}",
                f"{last['mul_adds'] / 1e6:.2f}",
                f"{best['top1']:.2f}" if best else "",
                f"{best['mul_adds'] / 1e6:.2f}" if best else "",
                f"{summary['test_images']}",
                f"{summary['thresholds_images']} ({summary['thresholds_from']})",
                f"{summary['step']}",
            ]
        )
    return table(
        [
            "run",
            "exits",
            "last exit, top-1 [%]",
            "its mul-adds [M]",
            "best early exit, top-1 [%]",
            "its mul-adds [M]",
            "test images",
            "images that set thresholds",
            "step",
        ],
        rows,
    )


def _splits(runs: Sequence[Run]) -> str:
    """Where each run's images come from; runs that an older version evaluated do not say."""
    lines = (
        f"{run.name}: "
        + "; ".join(f"{split}: {origin}" for split, origin in run.results.summary["splits"].items())
        for run in runs
        if "splits" in run.results.summary
    )
    return "".join(f"<p>{text(line)}</p>" for line in lines)


def _config_table(runs: Sequence[Run]) -> str:
    if len(runs) == 1:
        lines = differences(default_config(), runs[0].config)
        return table(
            ["field", "default", runs[0].name],
            [[field, *change.split(" -> ")] for field, change in (s.split(": ", 1) for s in lines)],
        )
    fields = sorted(
        {
            line.split(": ", 1)[0]
            for run in runs[1:]
            for line in differences(runs[0].config, run.config)
        }
    )
    if not fields:
        return "<p>None: the runs have the same configuration.</p>"
    return table(
        ["field", *(run.name for run in runs)],
        [[field, *(repr(_value(run.config, field)) for run in runs)] for field in fields],
    )


def _accuracy(runs: Sequence[Run]) -> str:
    series = []
    for run in runs:
        fixed = [(row["mul_adds"] / 1e6, row["top1"]) for row in run.anytime]
        early = [(row["mul_adds"] / 1e6, row["top1"]) for row in run.budgeted]
        series.append(Series(f"{run.name}, one exit", fixed, run.colour, True, True))
        if early:
            series.append(Series(f"{run.name}, early exit", early, run.colour))
    chart = line_chart(
        series,
        "mean mul-adds per image [M]",
        "top-1 [%]",
        "Accuracy over compute",
        least_y_range=LEAST_ACCURACY_RANGE,
        highest_y=100,
    )
    tables = "".join(f"<h3>{text(run.name)}</h3>{_exits_table(run)}" for run in runs)
    return (
        f'<div class="grid"><div class="card">{chart}{legend(series)}</div>'
        f'<div class="card">{tables}</div></div>'
    )


def _exits_table(run: Run) -> str:
    return table(
        ["exit", "mul-adds [M]", "top-1 [%]", "top-5 [%]", "loss [nats]"],
        [
            [
                f"{row['exit']}",
                f"{row['mul_adds'] / 1e6:.2f}",
                f"{row['top1']:.2f}",
                f"{row['top5']:.2f}",
                f"{row['loss']:.4f}",
            ]
            for row in run.anytime
        ],
    )


def _shares(run: Run) -> str:
    if not run.budgeted:
        return _WITHOUT_HELD_OUT
    x = [row["mul_adds"] / 1e6 for row in run.budgeted]
    bands = [
        Series(
            f"exit {k}",
            [(row["mul_adds"] / 1e6, 100 * row[f"share_{k}"]) for row in run.budgeted],
            k - 1,
        )
        for k in range(1, len(run.anytime) + 1)
    ]
    chart = stacked_chart(
        x, bands, "mean mul-adds per image [M]", "test images [%]", "Share of each exit"
    )
    items = "".join(f'<li><i class="band e{b.colour}"></i>{b.label}</li>' for b in bands)
    return f'{chart}<ul class="legend">{items}</ul>'


def _examples(run: Run) -> str:
    arrays, parts = run.results.arrays, []
    if "examples_exits" not in arrays:
        return _WITHOUT_HELD_OUT
    names = run.results.summary["class_names"]
    for k in range(len(run.anytime)):
        parts.append(f"<h3>exit {k + 1}</h3>")
        for kind in ("sure", "unsure"):
            rows = (arrays["examples_exits"] == k) & (arrays["examples_kinds"] == kind)
            figures = "".join(_figure(arrays, row, names) for row in np.flatnonzero(rows))
            parts.append(f'<div class="examples">{figures or "no image"}</div>')
    return "".join(parts)


def _figure(arrays: Mapping[str, NDArray[Any]], row: int, names: Sequence[str]) -> str:
    label, predicted = arrays["examples_labels"][row], arrays["examples_predicted"][row]
    caption = f"{names[predicted]} {100 * arrays['examples_confidences'][row]:.0f}%"
    if predicted != label:
        caption += f" ({names[label]})"
    buffer = io.BytesIO()
    Image.fromarray(arrays["examples_images"][row]).save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<figure class="{"right" if predicted == label else "wrong"}">'
        f'<img alt="{text(names[label])}" src="data:image/png;base64,{data}">'
        f"<figcaption>{text(caption)}</figcaption></figure>"
    )


def _weights(run: Run) -> str:
    if run.config.weighting.kind == "none":
        return "<p>Plain training: every image has weight 1.</p>"
    if "weighted_weights" not in run.results.arrays:
        return _WITHOUT_HELD_OUT
    losses = np.maximum(run.results.arrays["weighted_losses"], SMALLEST_LOSS_SHOWN)
    weights = run.results.arrays["weighted_weights"]
    edges = np.geomspace(losses.min(), max(losses.max(), 2 * losses.min()), 11)
    series = []
    for k in range(losses.shape[1]):
        of_range = np.digitize(losses[:, k], edges[1:-1])
        ranges = [of_range == i for i in range(10) if (of_range == i).any()]
        points = [(float(losses[r, k].mean()), float(weights[r, k].mean())) for r in ranges]
        series.append(
            Series(f"exit {k + 1}", points, k % SERIES_COLOURS, k >= SERIES_COLOURS, True)
        )
    chart = line_chart(series, "loss [nats]", "weight", "Weight over loss", log_x=True)
    return chart + legend(series)


def _latency(run: Run) -> str:
    if run.latency is None:
        return "<p>Not measured: python -m l2w_jax.benchmark --early-exit --workdir=RUN</p>"
    parts = [f"<p>{text(run.latency['device'])}</p>"]
    for entry in run.latency["batch_sizes"]:
        fixed = [(row["ms"], row["top1"]) for row in entry["exits"]]
        early = sorted((row["ms"], row["top1"]) for row in entry["budgeted"])
        series = [
            Series("one exit", fixed, run.colour, dashed=True, marks=True),
            Series("early exit", early, run.colour),
        ]
        title = f"Batch of {entry['batch_size']}"
        chart = line_chart(
            series,
            "time per image [ms]",
            "top-1 [%]",
            title,
            least_y_range=LEAST_ACCURACY_RANGE,
            highest_y=100,
        )
        rows = [[f"exit {row['exit']}", f"{row['ms']:.3f}"] for row in entry["exits"]]
        rows.append(["full network", f"{entry['full_ms']:.3f}"])
        times = table(["stops at", "time per image [ms]"], rows)
        parts.append(f"<h3>{title}</h3>{chart}{legend(series)}{times}")
    return "".join(parts)


def _training(runs: Sequence[Run]) -> str:
    charts = []
    for field, y_label, title in (
        ("loss", "loss [nats]", "Training loss of the last exit"),
        ("top1", "top-1 [%]", "Training accuracy of the last exit"),
        ("holdout_top1", "top-1 [%]", "Held-out accuracy of the last exit"),
    ):
        series = [
            Series(run.name, points, run.colour, marks=field == "holdout_top1")
            for run in runs
            if (
                points := [(line["step"], line[field][-1]) for line in run.metrics if field in line]
            )
        ]
        if series:
            chart = line_chart(series, "step", y_label, title)
            charts.append(f'<div class="card"><h3>{title}</h3>{chart}{legend(series)}</div>')
    return f'<div class="grid">{"".join(charts)}</div>' if charts else "<p>No metrics.jsonl.</p>"


def _cards(runs: Sequence[Run], content: Callable[[Run], str]) -> str:
    cards = (f'<div class="card"><h3>{text(run.name)}</h3>{content(run)}</div>' for run in runs)
    return f'<div class="grid">{"".join(cards)}</div>'


def _value(config: ConfigDict, field: str) -> Any:
    """The value of a field such as "model.name"; None where the configuration has no such field."""
    value: Any = config
    for part in field.split("."):
        value = value.get(part) if isinstance(value, ConfigDict) else None
    return value


def _read_json_lines(path: Path) -> list[dict[str, Any]]:
    # A run that is still going on may be half-way through its last line.
    complete = path.read_text().split("\n")[:-1]
    return [json.loads(line) for line in complete]


if __name__ == "__main__":
    command_line.run(lambda: main(sys.argv[1:]))

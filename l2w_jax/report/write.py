"""Reads runs from their folders, and writes the page about them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from l2w_jax.config import stored
from l2w_jax.errors import UserError
from l2w_jax.evaluation import results
from l2w_jax.evaluation.checks import is_number
from l2w_jax.files import told_if_unwritable, write_atomically
from l2w_jax.report import figures, png
from l2w_jax.report.page import Run, page


def write_report(workdirs: Sequence[Path], output: Path | None = None) -> Path:
    """Writes the page about these runs, and returns its path.

    Without an output it goes to the first run's folder, as do that run's figures.

    Raises:
        UserError: a folder is not that of an evaluated run, or the page cannot be written.
    """
    runs = read_runs(workdirs)
    # The name of a folder need not be UTF-8.
    whole = page(runs).encode(errors="replace")
    if output is not None:
        with told_if_unwritable(output):
            write_atomically(output, whole)
        return output
    folder = workdirs[0]
    with told_if_unwritable(folder):
        write_atomically(folder / "report.html", whole)
        drawn = png.of_run(runs[0].evaluation)
        for name in png.FIGURES:
            path = folder / "plots" / f"{name}.png"
            if name in drawn:
                write_atomically(path, png.png(drawn[name]))
            else:
                # An earlier evaluation's figure would pass for this one's.
                path.unlink(missing_ok=True)
        if runs[0].latency is None:
            (folder / "plots" / "latency.png").unlink(missing_ok=True)
    return folder / "report.html"


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
        evaluation = results.Evaluation.load(folder)
        runs.append(
            Run(
                name=names[i] if names.count(names[i]) == 1 else str(workdirs[i]),
                config=stored.read_config(folder),
                evaluation=evaluation,
                metrics=_read_metrics(lines) if lines.exists() else [],
                latency=results.read_latency(folder, evaluation),
            )
        )
    return runs


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    """What the page shows of metrics.jsonl, which may be larger than the memory: see `_shown`.

    Raises:
        UserError: a line is damaged.
    """
    lines = []
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            # A run that is still going on may be half-way through its last line.
            if not line.endswith(b"\n"):
                break
            try:
                lines.append(_shown(json.loads(line.decode())))
            except (ValueError, LookupError, TypeError, RecursionError) as error:
                raise UserError(f"{path}: line {number} is damaged; take it out") from error
    return lines


def _shown(line: Any) -> dict[str, Any]:
    """The step of a line of metrics.jsonl and, in lists of one, what `figures.training` shows.

    Raises:
        LookupError, TypeError: one of these is no number.
    """
    fields = [field for field, _, _ in figures.TRAINING if field in line]
    last = {field: [line[field][-1]] for field in fields}
    # None is what a run writes for NaN.
    for value in (line["step"], *(value or 0.0 for (value,) in last.values())):
        if not is_number(value):
            raise TypeError(f"{value!r} is no finite number")
    return {"step": line["step"], **last}

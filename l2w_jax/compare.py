"""Compares ways of training over several seeds: a table, and on request a picture.

    python -m l2w_jax.compare RUN RUN [RUN ...] [--output=FILE.png]

The runs must have been evaluated. Those whose configurations differ in the seed alone are one way
of training, named by the first one's folder without the -NUMBER that it may end in. The table has,
for each way, the mean and the standard deviation over its runs of top-1 at every exit, and of top-1
with images leaving early at 40, 60 and 80% of the mul-adds of the last exit.
"""

import argparse
import dataclasses
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from l2w_jax import command_line
from l2w_jax.config import stored, to_json
from l2w_jax.errors import UserError
from l2w_jax.evaluation import results
from l2w_jax.files import told_if_unwritable, write_atomically
from l2w_jax.report import png as plots

# Of the last exit's mul-adds: what the budgeted curves are read at.
BUDGETS = (0.4, 0.6, 0.8)


@dataclasses.dataclass(frozen=True)
class Way:
    """The evaluated runs of one way of training.

    Attributes:
        name: of the way.
        mul_adds: of each exit, float [K].
        anytime: top-1 of all test images at each exit in percent, [runs, K].
        budgeted: of each run, (mul-adds, top-1 in percent) of its budgeted curve, [39, 2], by
            rising mul-adds.
    """

    name: str
    mul_adds: NDArray[np.float64]
    anytime: NDArray[np.float64]
    budgeted: Sequence[NDArray[np.float64]]

    def top1_at(self, mul_adds: NDArray[np.float64]) -> NDArray[np.float64]:
        """The runs' budgeted curves at these mul-adds, NaN outside of them: [runs, n]."""
        return np.stack(
            [np.interp(mul_adds, *curve.T, left=np.nan, right=np.nan) for curve in self.budgeted]
        )


def main(argv: Sequence[str]) -> None:
    """Runs the command.

    Args:
        argv: arguments without the program's name.

    Raises:
        UserError: a folder is not that of an evaluated run, or the picture cannot be written.
    """
    parser = command_line.ArgumentParser(
        prog="python -m l2w_jax.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run")
    parser.add_argument("--output", type=Path, help="where to draw the curves")
    arguments = parser.parse_args(argv)
    ways = read_ways(arguments.runs)
    print("\n".join(table_lines(ways)))
    if arguments.output:
        figure = plots.comparison_figure(ways)
        with told_if_unwritable(arguments.output, "--output="):
            write_atomically(arguments.output, plots.png(figure))


def read_ways(workdirs: Sequence[Path]) -> list[Way]:
    """The runs in these folders, by way of training, in the order of the folders.

    Raises:
        UserError: a folder is not that of an evaluated run, or is given twice.
    """
    grouped: dict[str, list[Path]] = {}
    given = [workdir.resolve() for workdir in workdirs]
    for workdir in workdirs:
        if given.count(workdir.resolve()) > 1:
            raise UserError(f"{workdir}: is given twice; a run counts once")
        config = stored.read_config(workdir)
        config.seed = 0
        grouped.setdefault(to_json(config), []).append(workdir)
    groups = list(grouped.values())
    names = [_without_number(group[0].absolute().name) for group in groups]
    return [
        _read_way(name if names.count(name) == 1 else str(group[0]), group)
        for name, group in zip(names, groups, strict=True)
    ]


def _without_number(name: str) -> str:
    """The name of a folder without the seed that it may end in."""
    return re.sub(r"[-_]\d+$", "", name) or name


def _read_way(name: str, workdirs: Sequence[Path]) -> Way:
    evaluations = [results.read_results(workdir) for workdir in workdirs]
    return Way(
        name=name,
        mul_adds=np.asarray(evaluations[0].mul_adds, np.float64),
        anytime=np.array([[row["top1"] for row in e.summary["anytime"]] for e in evaluations]),
        budgeted=[_budgeted_curve(e.summary["budgeted"]) for e in evaluations],
    )


def _budgeted_curve(rows: Sequence[Mapping[str, float]]) -> NDArray[np.float64]:
    # A run that was evaluated without held-out images has no curve.
    points = sorted((row["mul_adds"], row["top1"]) for row in rows)
    return np.array(points or [(np.nan, np.nan)])


def table_lines(ways: Sequence[Way]) -> list[str]:
    """A Markdown table with a row for each way of training."""
    num_exits = max(len(way.mul_adds) for way in ways)
    columns = [f"exit {k + 1}" for k in range(num_exits)]
    columns += [f"early, {budget:.0%}" for budget in BUDGETS]
    lines = [
        "| top-1 [%] | runs | " + " | ".join(columns) + " |",
        "|---" * (2 + len(columns)) + "|",
    ]
    for way in ways:
        early = way.top1_at(way.mul_adds[-1] * np.asarray(BUDGETS))
        blank = np.full((len(early), num_exits - len(way.mul_adds)), np.nan)
        cells = map(_mean_and_deviation, np.concatenate([way.anytime, blank, early], axis=1).T)
        lines.append(f"| {way.name} | {len(early)} | " + " | ".join(cells) + " |")
    return lines


def _mean_and_deviation(values: NDArray[np.float64]) -> str:
    if np.isnan(values).any():
        return "–"
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{values.mean():.2f} ± {values.std(ddof=1):.2f}"


if __name__ == "__main__":
    command_line.run(lambda: main(sys.argv[1:]))

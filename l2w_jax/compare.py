"""Compares ways of training over several seeds: tables, and on request a picture.

    python -m l2w_jax.compare RUN|FILE.json ... [--output=FILE.png] [--save=FILE.json]
        [--images=test|holdout] [--ways=NAME,NAME ...]

The runs must have been evaluated. Those whose configurations differ in the seed alone, besides
data_dir, logs, checkpoints and what else changes no number, are one way of training, named by the
first one's folder without the -NUMBER that it may end in; they must have been evaluated on the same
images. The first table has, for each way, the mean and the standard
deviation over its runs of top-1 at every exit, and of top-1 with images leaving early: at 40, 60
and 80% of the mul-adds of the last exit, and on average between 20 and 80%. The second has each
way's average gain over the first one, by pairs of runs of the same seed, with the 95% interval of
Student's t.

--save writes the numbers of all runs to a file, which can be given instead of the runs. Runs given
with it join the way in it that has their configuration or, failing that, their name.
--images=holdout takes held-out images instead of test images: half of them set the thresholds at
which the other half is measured, and the other way round. --ways takes only these ways, in this
order.
"""

import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import special

from l2w_jax import command_line, standard_output
from l2w_jax.config import stored
from l2w_jax.errors import UserError
from l2w_jax.evaluation.evaluated_data import differences
from l2w_jax.evaluation.ways import (
    AVERAGED_BUDGETS,
    Way,
    mean_where_reached,
    numbers,
    read_ways,
)
from l2w_jax.files import told_if_unwritable, write_atomically, write_json
from l2w_jax.standard_output import in_one_line

# Shares of the last exit's mul-adds at which the budgeted curves are read.
BUDGETS = (0.4, 0.6, 0.8)
_CONFIDENCE = 0.95

# Which images a network learns from and is tested on, and how large they are.
_DATA_FIELDS = tuple(
    f"dataset.{name}" for name in ("name", "num_classes", "image_size", "imbalance_factor")
)
# How many are held out, where an evaluation does not say: a folder may have its own.
_HELD_OUT_FIELD = "dataset.holdout"


def main(argv: Sequence[str]) -> None:
    """Runs the command.

    Raises:
        UserError: a folder is not that of an evaluated run, or the picture cannot be written.
    """
    parser = command_line.ArgumentParser("compare", __doc__)
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="folder of a run, or a file of --save"
    )
    parser.add_argument("--output", type=Path, help="a .png, to draw the curves in")
    parser.add_argument("--save", type=Path, help="a .json, to keep the numbers in")
    parser.add_argument(
        "--images",
        choices=("test", "holdout"),
        default="test",
        help="those whose accuracy is told; default: test",
    )
    parser.add_argument("--ways", help="names of those to compare, with commas between them")
    arguments = parser.parse_args(argv)
    if arguments.output and arguments.output.suffix.lower() != ".png":
        raise UserError(f"--output={arguments.output}: must end in .png, the only format")
    ways = read_ways(arguments.runs, arguments.images)
    if arguments.ways is not None:
        ways = _chosen(ways, arguments.ways.split(","))
    print("\n".join(map(in_one_line, table_lines(ways))))
    if len(ways) > 1:
        print("", *map(in_one_line, gain_lines(ways)), sep="\n")
    for line in data_lines(ways):
        standard_output.tell(in_one_line(line))
    if arguments.save:
        with told_if_unwritable(arguments.save, "--save="):
            write_json(arguments.save, [numbers(way) for way in ways])
    if arguments.output:
        _draw(ways, arguments.output)


def _draw(ways: Sequence[Way], path: Path) -> None:
    # Imported here, since Matplotlib takes long to import, and tables do without.
    from l2w_jax.report import figures, png

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        picture = png.png(png.figure([figures.comparison(ways)]))
    with told_if_unwritable(path, "--output="):
        write_atomically(path, picture)
    letters: dict[str, None] = {}
    for each in warned:
        if found := re.match(r"Glyph (\d+)", str(each.message)):
            letters[chr(int(found[1]))] = None
        else:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    if letters:
        standard_output.tell(
            f"--output={path}: shows boxes for {''.join(letters)}, which Matplotlib's font lacks; "
            "to read the names in it, give the runs' folders other ones"
        )


def _chosen(ways: Sequence[Way], names: Sequence[str]) -> list[Way]:
    """The ways of these names, in the order of the names.

    Raises:
        UserError: no way has a name, or a name comes twice.
    """
    by_name = {way.name: way for way in ways}
    for place, name in enumerate(names):
        if name not in by_name or name in names[:place]:
            raise UserError(
                f"--ways: {name!r} is not allowed: must be one or more of {', '.join(by_name)}, "
                "none of them twice"
            )
    return [by_name[name] for name in names]


def table_lines(ways: Sequence[Way]) -> list[str]:
    """A Markdown table with a row for each way of training."""
    num_exits = max(len(way.mul_adds) for way in ways)
    columns = [f"exit {k + 1}" for k in range(num_exits)]
    columns += [f"early, {budget:.0%}" for budget in BUDGETS]
    columns.append("early, {:.0%} to {:.0%}".format(*AVERAGED_BUDGETS))
    lines = [
        "| top-1 [%] | runs | " + " | ".join(columns) + " |",
        "|---" * (2 + len(columns)) + "|",
    ]
    for way in ways:
        early = way.top1_at(way.mul_adds[-1] * np.asarray(BUDGETS))
        blank = np.full((len(early), num_exits - len(way.mul_adds)), np.nan)
        cells = map(
            _mean_and_deviation,
            np.concatenate([way.anytime, blank, early, way.mean_top1()[:, None]], axis=1).T,
        )
        lines.append(f"| {way.name} | {len(early)} | " + " | ".join(cells) + " |")
    return lines


def gain_lines(ways: Sequence[Way]) -> list[str]:
    """A Markdown table of what each way gains over the first, by pairs of runs of one seed.

    If their first exits cost differently, only the budgets that both reach count.
    """
    first, *others = ways
    of_first = dict(zip(first.seeds, first.early(), strict=True))
    lines = [
        f"| gain over {first.name} | pairs | "
        + "top-1, early, {:.0%} to {:.0%}, mean and 95% interval |".format(*AVERAGED_BUDGETS),
        "|---|---|---|",
    ]
    for way in others:
        gains = [
            early - of_first[seed]
            for seed, early in zip(way.seeds, way.early(), strict=True)
            if seed in of_first
        ]
        interval = _mean_and_interval(mean_where_reached(np.array(gains))) if gains else "–"
        lines.append(f"| {way.name} | {len(gains)} | {interval} |")
    return lines


def data_lines(ways: Sequence[Way]) -> list[str]:
    """A line for each way whose data differ from the first one's, which no gain should hide."""
    first, *others = ways
    lines = []
    for way in others:
        texts = [*_config_changes(first, way), *differences(first.data, way.data).values()]
        if texts:
            lines.append(f"{first.name} and {way.name} are of other data: " + ", ".join(texts))
    return lines


def _config_changes(first: Way, other: Way) -> list[str]:
    """The fields in which the data of two ways differ; none where a config was not kept."""
    if first.config is None or other.config is None:
        return []
    fields = _DATA_FIELDS
    if None in (first.data.num_holdout, other.data.num_holdout):
        fields += (_HELD_OUT_FIELD,)
    changes = stored.changes(first.config, other.config)
    return [str(change) for change in changes if change.field in fields]


def _mean_and_interval(values: NDArray[np.float64]) -> str:
    if np.isnan(values).any():
        return "–"
    if len(values) == 1:
        return f"{values[0]:+.2f}"
    error = values.std(ddof=1) / np.sqrt(len(values))
    # Student's t, without SciPy's distributions, which take long to import.
    reach = error * special.stdtrit(len(values) - 1, (1 + _CONFIDENCE) / 2)
    mean = values.mean()
    return f"{mean:+.2f} ({mean - reach:+.2f} to {mean + reach:+.2f})"


def _mean_and_deviation(values: NDArray[np.float64]) -> str:
    if np.isnan(values).any():
        return "–"
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{values.mean():.2f} ± {values.std(ddof=1):.2f}"


if __name__ == "__main__":
    command_line.run(main)

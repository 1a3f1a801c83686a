"""Compares ways of training over several seeds: tables, and on request a picture.

    python -m l2w_jax.compare RUN|FILE.json ... [--output=FILE.png] [--save=FILE.json]
        [--images=test|holdout] [--ways=NAME,NAME ...]

The runs must have been evaluated. Those whose configurations differ in the seed alone are one way
of training, named by the first one's folder without the -NUMBER that it may end in. The first table
has, for each way, the mean and the standard deviation over its runs of top-1 at every exit, and of
top-1 with images leaving early: at 40, 60 and 80% of the mul-adds of the last exit, and on average
between 20 and 80%. The second has what each way gains on average over the first one, by pairs of
runs of the same seed, with the 95% interval of Student's t.

--save keeps the numbers of all runs in a file, which can be given in place of the runs, and beside
further runs, which join the way of their configuration, or else of their name, that it holds.
--images=holdout takes held-out images instead of test images: half of them set the thresholds with
which the other half is read, and the other way round. --ways takes some of the ways only, in this
order.
"""

import dataclasses
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from numpy.typing import NDArray
from scipy.stats import t as student_t

from l2w_jax import command_line
from l2w_jax.config import default_config, stored, to_json
from l2w_jax.early_exit.budget import budgeted_curve_from_confidences
from l2w_jax.early_exit.rules import DEFAULT_RULE
from l2w_jax.errors import UserError
from l2w_jax.evaluation.results import Evaluation
from l2w_jax.files import told_if_unwritable, write_atomically, write_json
from l2w_jax.report import figures, png
from l2w_jax.run.workdir import FREE_FIELDS

# Of the last exit's mul-adds: what the budgeted curves are read at, and averaged between.
BUDGETS = (0.4, 0.6, 0.8)
AVERAGED_BUDGETS = (0.2, 0.8)
_CONFIDENCE = 0.95

# Which images a network learns from and is tested on, and how large they are.
_DATA_FIELDS = tuple(
    f"dataset.{name}:"
    for name in ("name", "num_classes", "image_size", "holdout", "imbalance_factor")
)

# Of the curve of a run that was evaluated without held-out images.
_NO_POINT = (np.nan, np.nan)


@dataclasses.dataclass(frozen=True)
class Way:
    """The evaluated runs of one way of training.

    Attributes:
        name: of the way.
        seeds: of each run.
        mul_adds: of each exit, float [K].
        anytime: top-1 of all images at each exit in percent, [runs, K].
        budgeted: of each run, (mul-adds, top-1 in percent) of its budgeted curve and its ends,
            [n, 2], by rising mul-adds.
        images: that these are of, "test" or "holdout".
        config: of the runs, but for their seeds and what changes no number; None if not kept.
    """

    name: str
    seeds: Sequence[int]
    mul_adds: NDArray[np.float64]
    anytime: NDArray[np.float64]
    budgeted: Sequence[NDArray[np.float64]]
    images: str = "test"
    config: ConfigDict | None = None

    def top1_at(self, mul_adds: NDArray[np.float64]) -> NDArray[np.float64]:
        """The runs' budgeted curves at these mul-adds, NaN outside of them: [runs, n]."""
        return np.stack(
            [np.interp(mul_adds, *curve.T, left=np.nan, right=np.nan) for curve in self.budgeted]
        )

    def early(self) -> NDArray[np.float64]:
        """The runs' top-1 over the budgets AVERAGED_BUDGETS, NaN where a curve has none.

        A curve begins where all images leave at the first exit, which may cost more than the least
        budget.
        """
        return self.top1_at(self.mul_adds[-1] * np.linspace(*AVERAGED_BUDGETS, 601))

    def mean_top1(self) -> NDArray[np.float64]:
        """The runs' mean of `early` where all curves have it: [runs], NaN where they never do."""
        return _mean_where_reached(self.early())


def main(argv: Sequence[str]) -> None:
    """Runs the command.

    Raises:
        UserError: a folder is not that of an evaluated run, or the picture cannot be written.
    """
    parser = command_line.ArgumentParser("compare", __doc__)
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="folder of a run, or a file of --save"
    )
    parser.add_argument("--output", type=Path, help="where to draw the curves")
    parser.add_argument("--save", type=Path, help="where to keep the numbers")
    parser.add_argument("--images", choices=("test", "holdout"), default="test")
    parser.add_argument("--ways", help="names of those to compare, with commas between them")
    arguments = parser.parse_args(argv)
    if arguments.output and arguments.output.suffix.lower() != ".png":
        raise UserError(f"--output={arguments.output}: must end in .png, which it is written as")
    ways = read_ways(arguments.runs, arguments.images)
    if arguments.ways is not None:
        ways = _chosen(ways, arguments.ways.split(","))
    print("\n".join(table_lines(ways)))
    if len(ways) > 1:
        print("", *gain_lines(ways), sep="\n")
    for line in data_lines(ways):
        print(line, file=sys.stderr)
    if arguments.save:
        with told_if_unwritable(arguments.save, "--save="):
            write_json(arguments.save, [_numbers(way) for way in ways])
    if arguments.output:
        picture = png.png(png.figure([figures.comparison(ways)]))
        with told_if_unwritable(arguments.output, "--output="):
            write_atomically(arguments.output, picture)


def read_ways(paths: Sequence[Path], images: str = "test") -> list[Way]:
    """The runs in these folders, by way of training, and the ways in these files, in their order.

    Ways of one name are one.

    Args:
        paths: folders of evaluated runs, and files that --save wrote.
        images: "test" or "holdout": which images of the runs count.

    Raises:
        UserError: a path is neither, a run is given twice, ways of one name are of networks with
            other costs or of other configurations, a file is of other images, or a run has no
            held-out images that count.
    """
    resolved = [path.resolve() for path in paths]
    for path in paths:
        if resolved.count(path.resolve()) > 1:
            raise UserError(f"{path}: is given twice; a run counts once")
    ways: list[list[Path] | Way] = []
    groups: dict[str, list[Path]] = {}
    for path in paths:
        if path.suffix == ".json":
            ways += _read_numbers(path, images)
            continue
        way = to_json(_config_of_way(stored.read_config(path)))
        if way not in groups:
            groups[way] = []
            ways.append(groups[way])
        groups[way].append(path)
    names = [_without_number(group[0].absolute().name) for group in groups.values()]

    kept = {to_json(way.config): way.name for way in ways if isinstance(way, Way) and way.config}

    def read(group: list[Path]) -> Way:
        name = _without_number(group[0].absolute().name)
        name = name if names.count(name) == 1 else str(group[0])
        return _read_way(
            kept.get(to_json(_config_of_way(stored.read_config(group[0]))), name), group, images
        )

    return _joined([way if isinstance(way, Way) else read(way) for way in ways])


def _joined(ways: Sequence[Way]) -> list[Way]:
    """The ways, those of one name as one."""
    by_name: dict[str, Way] = {}
    for way in ways:
        before = by_name.setdefault(way.name, way)
        if before is way:
            continue
        if not np.array_equal(before.mul_adds, way.mul_adds):
            raise UserError(f"{way.name}: is the name of two ways whose exits cost differently")
        configs = [config for config in (before.config, way.config) if config is not None]
        if changes := stored.differences(configs[0], configs[-1]) if configs else []:
            raise UserError(
                f"{way.name}: is the name of two ways, which differ in " + ", ".join(changes)
            )
        if twice := set(before.seeds) & set(way.seeds):
            raise UserError(f"{way.name}: seed {min(twice)} is given twice; a run counts once")
        by_name[way.name] = Way(
            name=way.name,
            seeds=[*before.seeds, *way.seeds],
            mul_adds=way.mul_adds,
            anytime=np.concatenate([before.anytime, way.anytime]),
            budgeted=[*before.budgeted, *way.budgeted],
            images=way.images,
            config=configs[0] if configs else None,
        )
    return list(by_name.values())


def _config_of_way(config: ConfigDict) -> ConfigDict:
    """A run's configuration but for the seed and what changes no number: as by default."""
    names = [name for name, _ in stored.fields(config)]
    free = {
        name: value
        for name, value in stored.fields(default_config())
        if name in names and (name == "seed" or name.startswith(FREE_FIELDS))
    }
    config.update_from_flattened_dict(free)
    return config


def _chosen(ways: Sequence[Way], names: Sequence[str]) -> list[Way]:
    """The ways of these names, in their order.

    Raises:
        UserError: a name is of none, or comes twice.
    """
    by_name = {way.name: way for way in ways}
    for place, name in enumerate(names):
        if name not in by_name or name in names[:place]:
            raise UserError(
                f"--ways: {name!r} is not allowed: must be some of {', '.join(by_name)}, each once"
            )
    return [by_name[name] for name in names]


def _without_number(name: str) -> str:
    """The name of a folder without the seed that it may end in."""
    return re.sub(r"[-_]\d+$", "", name) or name


def _read_way(name: str, workdirs: Sequence[Path], images: str) -> Way:
    evaluations = [Evaluation.load(workdir) for workdir in workdirs]
    seeds = [stored.read_config(workdir).seed for workdir in workdirs]
    for place, (workdir, evaluation) in enumerate(zip(workdirs, evaluations, strict=True)):
        if seeds[place] in seeds[:place]:
            raise UserError(f"{workdir}: a run of seed {seeds[place]} is given already")
        if images == "holdout" and evaluation.thresholds_from != "holdout":
            raise UserError(
                f"{workdir}: --images=holdout is not allowed: its thresholds are set by images of "
                f"{evaluation.thresholds_from!r}, and no held-out ones were evaluated"
            )
    read = _of_test_images if images == "test" else _of_held_out_images
    anytime, budgeted = zip(*map(read, evaluations), strict=True)
    return Way(
        name=name,
        seeds=seeds,
        mul_adds=np.asarray(evaluations[0].mul_adds, np.float64),
        anytime=np.array(anytime),
        budgeted=budgeted,
        images=images,
        config=_config_of_way(stored.read_config(workdirs[0])),
    )


def _of_test_images(
    evaluation: Evaluation,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Top-1 of each exit [K], and (mul-adds, top-1) of the curve's points [n, 2]."""
    return np.array([row["top1"] for row in evaluation.anytime]), _points(evaluation.curve)


def _of_held_out_images(
    evaluation: Evaluation,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The same of held-out images, each half read with the thresholds of the other."""
    images = evaluation.threshold_images()
    scores, correct = images.scores(DEFAULT_RULE), images.correct
    # Every second one: where images lie class by class, both halves have all of them.
    halves = [slice(0, None, 2), slice(1, None, 2)]
    curves = [
        budgeted_curve_from_confidences(
            scores[:, sets], scores[:, read], correct[:, read], evaluation.mul_adds
        )
        for sets, read in (halves, halves[::-1])
    ]
    points = np.mean(list(map(_points, curves)), axis=0)
    anytime = (100.0 * correct).mean(axis=1)
    # Where all images leave at the first exit, and where none does before the last.
    ends = [(evaluation.mul_adds[k], anytime[k]) for k in (0, -1)]
    points = np.concatenate([points, ends])
    return anytime, points[np.argsort(points[:, 0], kind="stable")]


def _points(rows: Sequence[Mapping[str, float]]) -> NDArray[np.float64]:
    return np.array([(row["mul_adds"], row["top1"]) for row in rows] or [_NO_POINT])


def _numbers(way: Way) -> dict[str, Any]:
    """What --save keeps of a way."""
    return {
        "name": way.name,
        "images": way.images,
        "mul_adds": way.mul_adds.tolist(),
        **({"config": way.config.to_dict()} if way.config is not None else {}),
        "runs": [
            {
                "seed": seed,
                "anytime": anytime.tolist(),
                # Empty of a run without a curve: JSON has no NaN.
                "budgeted": budgeted[~np.isnan(budgeted).any(axis=1)].tolist(),
            }
            for seed, anytime, budgeted in zip(way.seeds, way.anytime, way.budgeted, strict=True)
        ],
    }


def _read_numbers(path: Path, images: str) -> list[Way]:
    """Undoes `_numbers`.

    Raises:
        UserError: the file cannot be read, --save did not write it, or it is of other images.
    """
    try:
        ways = [
            Way(
                name=way["name"],
                seeds=[run["seed"] for run in way["runs"]],
                mul_adds=np.array(way["mul_adds"], np.float64),
                anytime=np.array([run["anytime"] for run in way["runs"]], np.float64),
                budgeted=[
                    np.array(run["budgeted"] or [_NO_POINT], np.float64) for run in way["runs"]
                ],
                images=way.get("images", "test"),
                config=(
                    _config_of_way(stored.from_json(json.dumps(way["config"])))
                    if "config" in way
                    else None
                ),
            )
            for way in json.loads(path.read_text())
        ]
        for way in ways:
            shapes = {curve.shape[1:] for curve in way.budgeted}
            if way.anytime.shape[1:] != way.mul_adds.shape or shapes != {(2,)}:
                raise ValueError(f"{way.name!r} lacks numbers")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, UserError) as error:
        raise UserError(f"{path}: must be a file that --save wrote ({error})") from error
    if not ways:
        raise UserError(f"{path}: holds no way")
    for way in ways:
        if way.images != images:
            raise UserError(
                f"{path}: holds numbers of --images={way.images}, which --images={images} does not "
                "go with"
            )
    return ways


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

    Of networks whose first exits cost differently, over the budgets that both reach.
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
        interval = _mean_and_interval(_mean_where_reached(np.array(gains))) if gains else "–"
        lines.append(f"| {way.name} | {len(gains)} | {interval} |")
    return lines


def data_lines(ways: Sequence[Way]) -> list[str]:
    """A line for each way whose data are others than the first one's, which no gain should hide."""
    first, *others = ways
    lines = []
    for way in others:
        if first.config is None or way.config is None:
            continue
        changes = [
            change
            for change in stored.differences(first.config, way.config)
            if change.startswith(_DATA_FIELDS)
        ]
        if changes:
            names = f"{first.name} and {way.name}"
            lines.append(f"{names} are of other data: " + ", ".join(changes))
    return lines


def _mean_where_reached(early: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of each row over the columns without NaN; NaN where there is no such column."""
    reached = ~np.isnan(early).any(axis=0)
    return early[:, reached].mean(axis=1) if reached.any() else np.full(len(early), np.nan)


def _mean_and_interval(values: NDArray[np.float64]) -> str:
    if np.isnan(values).any():
        return "–"
    if len(values) == 1:
        return f"{values[0]:+.2f}"
    error = values.std(ddof=1) / np.sqrt(len(values))
    reach = error * student_t.ppf((1 + _CONFIDENCE) / 2, len(values) - 1)
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

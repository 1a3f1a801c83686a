"""The evaluated runs of several ways of training: read from run folders, or from kept numbers."""

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from numpy.typing import NDArray

from l2w_jax.config import default_config, stored, to_json
from l2w_jax.early_exit.budget import budgeted_curve_from_confidences
from l2w_jax.early_exit.rules import DEFAULT_RULE
from l2w_jax.errors import UserError
from l2w_jax.evaluation.evaluated_data import (
    NOTHING_KNOWN,
    EvaluatedData,
    data_of,
    differences,
    in_common,
    num_held_out,
)
from l2w_jax.evaluation.results import Evaluation

# The budgets, as shares of the last exit's mul-adds, between which curves are averaged.
AVERAGED_BUDGETS = (0.2, 0.8)

# The point of the curve of a run that was evaluated without held-out images.
_NO_POINT = (np.nan, np.nan)


@dataclasses.dataclass(frozen=True)
class Way:
    """The evaluated runs of one way of training.

    Attributes:
        name: of the way.
        seeds: of each run.
        mul_adds: of each exit, float [K].
        anytime: top-1 of all images at each exit in percent, [runs, K].
        budgeted: for each run, (mul-adds, top-1 in percent) of its budgeted curve and its ends,
            [n, 2], by rising mul-adds.
        images: which images these are for, "test" or "holdout".
        config: of the runs, without their seeds and what changes no number; None if not kept.
        data: what the runs were evaluated with, as far as it is known and the same for all.
    """

    name: str
    seeds: Sequence[int]
    mul_adds: NDArray[np.float64]
    anytime: NDArray[np.float64]
    budgeted: Sequence[NDArray[np.float64]]
    images: str = "test"
    config: ConfigDict | None = None
    data: EvaluatedData = NOTHING_KNOWN

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
        """Each run's mean of `early` over budgets that all curves have: [runs]; NaN without any."""
        return mean_where_reached(self.early())


def read_ways(paths: Sequence[Path], images: str = "test") -> list[Way]:
    """The runs in these folders, by way of training, and the ways in these files, in their order.

    Ways of the same name are joined into one.

    Args:
        paths: folders of evaluated runs, and files that --save wrote.
        images: "test" or "holdout": which images of the runs count.

    Raises:
        UserError: a path is neither, a run is given twice, ways of one name differ in the costs of
            their networks or in their configurations, runs of one way were evaluated on different
            images, a file is of other images, or a run has no held-out images that count.
    """
    resolved = [path.resolve() for path in paths]
    for path in paths:
        if resolved.count(path.resolve()) > 1:
            raise UserError(f"{path}: is given twice; a run counts once")
    # In the order given: the configuration of a way to be read, or a way that was kept.
    ways: list[str | Way] = []
    groups: dict[str, list[_Run]] = {}
    for path in paths:
        if path.suffix == ".json":
            ways += _read_numbers(path, images)
            continue
        run = _read_run(path)
        config = to_json(_config_of_way(run.config))
        if config not in groups:
            groups[config] = []
            ways.append(config)
        groups[config].append(run)
    names = {
        config: _without_number(group[0].workdir.absolute().name)
        for config, group in groups.items()
    }
    of_one_name = Counter(names.values())
    names = {
        config: name if of_one_name[name] == 1 else str(groups[config][0].workdir)
        for config, name in names.items()
    }
    # Runs of a kept way take its name.
    names |= {to_json(way.config): way.name for way in ways if isinstance(way, Way) and way.config}
    return _joined(
        [way if isinstance(way, Way) else _way_of(names[way], groups[way], images) for way in ways]
    )


def _joined(ways: Sequence[Way]) -> list[Way]:
    """The ways, with those of the same name joined into one."""
    by_name: dict[str, Way] = {}
    for way in ways:
        before = by_name.setdefault(way.name, way)
        if before is way:
            continue
        if not np.array_equal(before.mul_adds, way.mul_adds):
            raise UserError(f"{way.name}: is the name of two ways whose exits cost differently")
        configs = [config for config in (before.config, way.config) if config is not None]
        if changes := stored.changes(configs[0], configs[-1]) if configs else []:
            raise UserError(
                f"{way.name}: is the name of two ways, which differ in "
                + ", ".join(map(str, changes))
            )
        if texts := _differences_that_count(before.data, way.data, way.images):
            raise UserError(
                f"{way.name}: is the name of two ways, which were evaluated with "
                + ", ".join(texts)
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
            data=in_common([before.data, way.data]),
        )
    return list(by_name.values())


def _differences_that_count(one: EvaluatedData, other: EvaluatedData, images: str) -> list[str]:
    """In words, what keeps accuracies on these images, "test" or "holdout", from being averaged."""
    # Counts may differ by images that could not be read.
    found = differences(one._replace(num_holdout=None), other)
    return [found[field] for field in ("class_names", images) if field in found]


def _config_of_way(config: ConfigDict) -> ConfigDict:
    """A run's configuration, with the seed and what changes no number set to the defaults."""
    names = [name for name, _ in stored.fields(config)]
    free = {
        name: value
        for name, value in stored.fields(default_config())
        if name in names
        and (name == "seed" or name.startswith(stored.FREE_FIELDS))
        # This one changes no number in training, but those of early exit.
        and name != "dataset.thresholds_from"
    }
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(free)
    return config


def _without_number(name: str) -> str:
    """The name of a folder without the seed that it may end in."""
    return re.sub(r"[-_]\d+$", "", name) or name


class _Run(NamedTuple):
    """What a run folder holds."""

    workdir: Path
    config: ConfigDict
    evaluation: Evaluation


def _read_run(workdir: Path) -> _Run:
    config, evaluation = stored.read_config(workdir), Evaluation.load(workdir)
    # The run may have been evaluated with another value than it was begun with.
    config.dataset.thresholds_from = evaluation.thresholds_from
    return _Run(workdir, config, evaluation)


def _way_of(name: str, runs: Sequence[_Run], images: str) -> Way:
    seeds = [run.config.seed for run in runs]
    data = [data_of(run.evaluation) for run in runs]
    for place, (workdir, _, evaluation) in enumerate(runs):
        for other, of_other in zip(runs[:place], data, strict=False):
            if texts := _differences_that_count(of_other, data[place], images):
                raise UserError(
                    f"{workdir}: was evaluated with {', '.join(texts)} than {other.workdir}, whose "
                    "configuration it has: evaluate both with the same, or give one of them"
                )
        if seeds[place] in seeds[:place]:
            other = runs[seeds.index(seeds[place])].workdir
            raise UserError(
                f"{workdir}: has the seed ({seeds[place]}) and the configuration of {other}: give "
                "one of them"
            )
        if images == "holdout" and (count := num_held_out(evaluation)) < 2:
            raise UserError(
                f"{workdir}: --images=holdout is not allowed: was evaluated with {count} held-out "
                "images, must be with at least 2, half of which set thresholds for the others"
            )
    read = _of_test_images if images == "test" else _of_held_out_images
    anytime, budgeted = zip(*(read(run.evaluation) for run in runs), strict=True)
    return Way(
        name=name,
        seeds=seeds,
        mul_adds=np.asarray(runs[0].evaluation.mul_adds, np.float64),
        anytime=np.array(anytime),
        budgeted=budgeted,
        images=images,
        config=_config_of_way(runs[0].config),
        data=in_common(data),
    )


def _of_test_images(
    evaluation: Evaluation,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Top-1 of each exit [K], and (mul-adds, top-1) of the curve's points [n, 2]."""
    return np.array([row["top1"] for row in evaluation.anytime]), _points(evaluation.curve)


def _of_held_out_images(
    evaluation: Evaluation,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The same for held-out images, each half measured with the thresholds from the other."""
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


def numbers(way: Way) -> dict[str, Any]:
    """What --save keeps of a way."""
    return {
        "name": way.name,
        "images": way.images,
        "mul_adds": way.mul_adds.tolist(),
        **({"config": way.config.to_dict()} if way.config is not None else {}),
        "data": {name: of_data for name, of_data in way.data._asdict().items() if of_data},
        "runs": [
            {
                "seed": seed,
                "anytime": anytime.tolist(),
                # Empty for a run without a curve: JSON has no NaN.
                "budgeted": budgeted[~np.isnan(budgeted).any(axis=1)].tolist(),
            }
            for seed, anytime, budgeted in zip(way.seeds, way.anytime, way.budgeted, strict=True)
        ],
    }


def _read_numbers(path: Path, images: str) -> list[Way]:
    """Undoes `numbers`.

    Raises:
        UserError: the file cannot be read, --save did not write it, or it is of other images.
    """
    try:
        stored_ways = json.loads(path.read_bytes())
        if not isinstance(stored_ways, list):
            raise ValueError("holds no list of ways")
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
                data=_read_data(way.get("data", {})),
            )
            for way in stored_ways
        ]
        for way in ways:
            shapes = {curve.shape[1:] for curve in way.budgeted}
            if way.anytime.shape[1:] != way.mul_adds.shape or shapes != {(2,)}:
                raise ValueError(f"{way.name!r} lacks numbers")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError, UserError) as error:
        raise UserError(f"{path}: must be a file that --save wrote ({error})") from error
    if not ways:
        raise UserError(f"{path}: holds no runs")
    for way in ways:
        if way.images != images:
            raise UserError(
                f"{path}: was saved with --images={way.images}: give that too, not "
                f"--images={images}"
            )
    return ways


def _read_data(kept: Mapping[str, Any]) -> EvaluatedData:
    """Undoes what `numbers` does to `Way.data`; files of earlier versions have none."""
    data = EvaluatedData(**kept)
    return data._replace(class_names=data.class_names and tuple(data.class_names))


def mean_where_reached(early: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of each row over the columns without NaN; NaN where there is no such column."""
    reached = ~np.isnan(early).any(axis=0)
    return early[:, reached].mean(axis=1) if reached.any() else np.full(len(early), np.nan)

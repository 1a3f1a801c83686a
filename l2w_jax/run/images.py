"""Which images a run was trained on: it goes on with no others, and is judged by none of them.

Nor does it go on with other classes, or is it judged by their images: its network answers with a
number, which would get a name that it was not trained for.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from l2w_jax import data
from l2w_jax.config import stored
from l2w_jax.data import Source
from l2w_jax.errors import RunFailed, UserError, some
from l2w_jax.evaluation.results import Evaluation
from l2w_jax.run import checkpoints, processes


def identity(source: Source) -> dict[str, Any]:
    """What a checkpoint's record says of the images that it was trained on."""
    return {
        "num_train": source.num_train,
        "train_digest": source.digests.get("train"),
        "class_names": list(source.class_names),
    }


def known_classes(workdir: Path) -> list[str] | None:
    """The classes that a run's network was trained on, by number; None where no checkpoint says."""
    for step in checkpoints.saved_steps(workdir):
        # One that cannot be read now ends the run only where its state is asked for.
        with contextlib.suppress(RunFailed):
            if names := checkpoints.trained_on(workdir, step)["class_names"]:
                return names
    return None


def check_to_train_on(source: Source, workdir: Path, step: int) -> None:
    """Checks that a run trained up to a step, 0 for a new one, would go on with its own images.

    Raises:
        UserError: the images are others, of other classes, or in another order.
        RunFailed: the checkpoint that says which they were cannot be read now.
    """
    if not step:
        return
    before, found = checkpoints.trained_on(workdir, step), identity(source)
    _check_classes(source, workdir, before["class_names"])
    # Checkpoints of older code say less.
    if all(before[name] in (None, value) for name, value in found.items()):
        return
    others = "" if before["num_train"] != found["num_train"] else " other ones"
    raise UserError(
        f"--workdir={workdir}: trained on {before['num_train']:,} images up to step {step}, but "
        f"split 'train' now has {found['num_train']:,}{others}; bring back what is missing or "
        "cannot be read and take out what is new, or start a new run with another --workdir"
    )


def check_to_judge_by(source: Source, workdir: Path, step: int) -> None:
    """Checks that a network trained up to a step is judged by images that it has not seen, of the
    classes that it was trained on.

    Where held-out or test images are cut from the training images, added or removed files move
    images from one split to another.

    Raises:
        UserError: it was trained on other classes, or may have been on some of the images.
        RunFailed: the checkpoint that says what it was trained on cannot be read now.
    """
    cut = _cut_splits(source)
    before = checkpoints.trained_on(workdir, step)
    _check_classes(source, workdir, before["class_names"])
    if cut and before["train_digest"] not in (None, source.digests.get("train")):
        raise UserError(
            f"--workdir={workdir}: trained on {before['num_train']:,} images, but split 'train' "
            f"now has {source.num_train:,} other ones, and {' and '.join(map(repr, cut))}, cut "
            "from the same folder, may hold images that it was trained on: bring back what is "
            "missing or cannot be read, and take out what is new"
        )


def _check_classes(source: Source, workdir: Path, before: list[str] | None) -> None:
    """Raises UserError where a network was trained on other classes; None: they are not known."""
    found = list(source.class_names)
    # Checkpoints of older code do not say.
    if before in (None, found):
        return
    lacking, others = (sorted(set(a) - set(b)) for a, b in ((before, found), (found, before)))
    raise UserError(
        f"--workdir={workdir}: trained on other classes: this data set lacks {some(lacking)} and "
        f"has {some(others)}; give the class folders their names back, name a data set of the "
        "run's classes with --config.dataset.data_dir, or start a new run with another --workdir"
    )


def open_evaluated(
    config: ConfigDict, workdir: Path, evaluation: Evaluation, splits: Sequence[str]
) -> Source:
    """Opens the data set whose images in these splits an evaluated run was last judged by.

    Raises:
        UserError: it is not there, holds other images by now, or `check_to_judge_by` refuses it.
    """
    source = data.open_source(config, known_classes(workdir))
    check_to_judge_by(source, workdir, evaluation.step)
    check_evaluated(source, workdir, evaluation, splits)
    return source


def check_evaluated(
    source: Source, workdir: Path, evaluation: Evaluation, splits: Sequence[str]
) -> None:
    """Checks that a run was evaluated with the images that a source has in these splits.

    They may have been those of a folder other than the one that its config.json names.

    Raises:
        UserError: it was evaluated with others.
    """
    evaluated = evaluation.digests or {}
    for split in splits:
        if evaluated.get(split) not in (None, source.digests.get(split)):
            raise UserError(
                f"{workdir}: its last evaluation used other images of split {split!r} than those "
                "of the data set that its config.json names; evaluate it with these first (python "
                "-m l2w_jax.main with its --config and --workdir, --mode=evaluate)"
            )


def seen_by_earlier_runs(config: ConfigDict, source: Source) -> list[str]:
    """What to know before a new run that starts from an earlier one's network is judged.

    Another number of held-out images, a long tail or a changed folder divides the same data set in
    another way, and may put images that the earlier run was trained on among the held-out or test
    images.

    Returns:
        A line for each earlier run to which that may have happened.
    """
    cut = " and ".join(map(repr, _cut_splits(source)))
    lines = []
    for field in ("init", "imta"):
        earlier = config[field].checkpoint
        if not (cut and earlier):
            continue
        workdir = Path(earlier).expanduser()
        before = checkpoints.trained_on(workdir, checkpoints.saved_steps(workdir)[-1])
        known = {name: value for name, value in before.items() if value is not None}
        of_same_data = _data_set(stored.read_config(workdir)) == _data_set(config)
        if of_same_data and not known.items() <= identity(source).items():
            lines.append(
                f"config.{field}.checkpoint: {earlier} was trained on "
                f"{before['num_train']:,} images of this data set, not on the "
                f"{source.num_train:,} of this run; {cut} may hold some of them, and what they say "
                "of this run may be too good"
            )
    return lines


def _data_set(config: ConfigDict) -> tuple[str, Path]:
    return config.dataset.name, Path(config.dataset.data_dir).expanduser().resolve()


def _cut_splits(source: Source) -> list[str]:
    """The splits to judge by that are taken from images to train on."""
    return [split for split in ("holdout", "test") if source.origins[split].is_cut]


def check_alike_in_all_processes(source: Source) -> None:
    """Checks that all processes of a run, each of which reads for itself, have the same images.

    Raises:
        UserError: in every process, if one has others.
    """
    counts = [source.num_train, source.num_holdout, source.num_test]
    own = [counts, dict(source.digests)]
    if any(other != own for other in processes.of_all(own)):
        raise UserError(
            f"process {jax.process_index()} has {counts[0]:,} training, {counts[1]:,} held-out and "
            f"{counts[2]:,} test images, and not all processes have the same: their copies of the "
            "data set must be alike, file by file"
        )

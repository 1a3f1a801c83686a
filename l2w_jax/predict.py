"""Classifies image files, each with as much of the network as it takes.

    python -m l2w_jax.predict --workdir=RUN [--thresholds=FILE] [--json] IMAGE|FOLDER ...

Prints, for every image, its class, how confident the network is, at which exit it left and the
share of the full network's mul-adds that this saved: as a table, or with --json as one JSON object
a line. Folders are searched for images of all kinds, their sub-folders too, and links are followed;
the other files in them are counted. A file that is no image is reported, the rest go on, and the
exit status is 1.

Thresholds are those of --thresholds, or else of RUN/thresholds.json; without either, the cheapest
with which stopping early lost no accuracy on the run's held-out images.
"""

import argparse
import itertools
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from numpy.typing import NDArray

from l2w_jax import command_line
from l2w_jax.config import stored
from l2w_jax.data import walk
from l2w_jax.early_exit.rules import ExitPolicy
from l2w_jax.errors import Incomplete, UserError
from l2w_jax.evaluation import results

# Read, classified and printed together.
FILES_AT_ONCE = 256

TABLE_HEADER = f"{'class':<20} {'confidence':>10}  {'exit':>5}  {'saved':>6}  file"


def main(argv: Sequence[str]) -> None:
    """Runs the command.

    Raises:
        UserError: an argument is wrong, the run is not evaluated, or there is no file.
        Incomplete: a file is no image; the others were classified.
    """
    arguments = _parse(argv)
    config = stored.read_config(arguments.workdir)
    evaluation = results.Evaluation.load(arguments.workdir)
    policy = choose_policy(arguments.workdir, arguments.thresholds, evaluation)
    skipped: Counter[str] = Counter()
    unreadable: list[UserError] = []
    files = files_in(arguments.images, skipped, unreadable)
    # The network takes seconds, which are in vain where there is nothing to classify.
    first = list(itertools.islice(files, 1))
    if not first:
        _tell_of_others(skipped, unreadable)
        given = ", ".join(map(str, arguments.images))
        raise (Incomplete if unreadable else UserError)(
            f"{given}: no image found; must be image files or hold some"
        )

    # Imported late: it brings Orbax and clu, which take seconds.
    from l2w_jax.run.restore import restore_predictor

    predictor = restore_predictor(config, arguments.workdir, evaluation, policy)
    found = failed = 0
    for answer in answers(itertools.chain(first, files), config, predictor, evaluation):
        if "error" in answer and not arguments.json:
            print(answer["error"], file=sys.stderr)
        elif arguments.json:
            print(json.dumps(answer))
        else:
            if not found:
                print(TABLE_HEADER)
            print(table_row(answer, evaluation))
        found += "error" not in answer
        failed += "error" in answer
    _tell_of_others(skipped, unreadable)
    if failed:
        raise Incomplete(f"{failed} of {found + failed} files could not be classified")
    if unreadable:
        raise Incomplete(f"{len(unreadable)} folders could not be read")


def _tell_of_others(skipped: Counter[str], unreadable: Sequence[UserError]) -> None:
    """Says which folders could not be read, and what in the others is no image."""
    for error in unreadable:
        print(error, file=sys.stderr)
    if skipped:
        print(walk.skipped_line(skipped), file=sys.stderr)


def choose_policy(workdir: Path, given: Path | None, evaluation: results.Evaluation) -> ExitPolicy:
    """Who leaves where: as given, as set for the run, or so that no accuracy is lost.

    Raises:
        UserError: a file of thresholds is missing or wrong, or there is none and the run was
            evaluated without images to choose thresholds from.
    """
    of_run = workdir / results.THRESHOLDS_FILE
    if given is not None or of_run.exists():
        return results.read_policy(given or of_run, evaluation)
    return ExitPolicy(evaluation.without_loss.thresholds)


def files_in(
    paths: Sequence[Path], skipped: Counter[str], unreadable: list[UserError] | None = None
) -> Iterator[Path]:
    """The files themselves, and all images in the folders, see `walk.image_files`.

    Args:
        paths: files and folders.
        skipped: counts the other files in the folders by their endings.
        unreadable: see there.
    """
    for path in paths:
        if os.path.isdir(path):
            yield from map(Path, walk.image_files(path, skipped, unreadable))
        else:
            yield path


def answers(
    files: Iterator[Path],
    config: ConfigDict,
    predict: Callable[[NDArray[np.uint8]], tuple[NDArray[Any], NDArray[Any], NDArray[Any]]],
    evaluation: results.Evaluation,
) -> Iterator[dict[str, Any]]:
    """For each file, in order: file, class, confidence, exit (from 1) and saved, or an error.

    Args:
        files: what to classify.
        config: that of the run.
        predict: from images uint8 [N, size, size, 3] to labels, exits and confidences.
        evaluation: that of the run.
    """
    # Imported late: it brings TensorFlow, which takes seconds.
    from l2w_jax.data.single import UnreadableImage, read_image

    class_names = evaluation.class_names
    saved = 1 - np.array(evaluation.mul_adds) / evaluation.mul_adds[-1]
    while chunk := list(itertools.islice(files, FILES_AT_ONCE)):
        images, errors = {}, {}
        for file in chunk:
            try:
                images[file] = read_image(file, config)
            except UnreadableImage as error:
                errors[file] = str(error)
        decided = {}
        if images:
            decisions = predict(np.stack(list(images.values())))
            decided = dict(zip(images, zip(*decisions, strict=True), strict=True))
        for file in chunk:
            if file in errors:
                yield {"file": str(file), "error": errors[file]}
            else:
                label, exit_index, confidence = decided[file]
                yield {
                    "file": str(file),
                    "class": class_names[label],
                    "confidence": float(confidence),
                    "exit": int(exit_index) + 1,
                    "saved": float(saved[exit_index]),
                }


def table_row(answer: dict[str, Any], evaluation: results.Evaluation) -> str:
    """One line of the table, under TABLE_HEADER."""
    of_exits = f"{answer['exit']}/{len(evaluation.mul_adds)}"
    file = answer["file"].replace("\n", "\\n")
    return (
        f"{answer['class']:<20} {100 * answer['confidence']:>9.1f}%  {of_exits:>5}  "
        f"{100 * answer['saved']:>5.0f}%  {file}"
    )


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = command_line.ArgumentParser("predict", __doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="folder of an evaluated run")
    parser.add_argument("--thresholds", type=Path, help="a file that l2w_jax.thresholds wrote")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument(
        "images", type=Path, nargs="+", metavar="IMAGE|FOLDER", help="what to classify"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    command_line.run(main)

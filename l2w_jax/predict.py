"""Classifies image files, each with as much of the network as it takes.

    python -m l2w_jax.predict --workdir=RUN [--thresholds=FILE] [--top-k=N] [--json]
        IMAGE|FOLDER ...

Prints, for every image, its class, how confident the network is, at which exit it left and the
share of the full network's mul-adds that this saved: as a table, or with --json as one JSON object
a line. With --top-k=N the N most probable classes at that exit are given, each with its
probability: in the table in lines below, in JSON as "top". Folders and their sub-folders are
searched for images of all kinds, and links are followed; other files in them are counted. A file
that is not an image, or cannot be read, is reported, with --json as an object with only "file" and
"error"; the rest are classified all the same, and the exit status is 1.

Thresholds are those of --thresholds, or else of RUN/thresholds.json; without either, the cheapest
with which stopping early lost no accuracy on the run's held-out images, or on its training images
where its `dataset.thresholds_from` is "train".
"""

import argparse
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from numpy.typing import NDArray

from l2w_jax import command_line, standard_output
from l2w_jax.config import stored
from l2w_jax.data import walk
from l2w_jax.errors import Incomplete, UserError
from l2w_jax.evaluation import results
from l2w_jax.evaluation.policy import choose_policy
from l2w_jax.standard_output import in_one_line

# How many files are read, classified and printed together.
FILES_AT_ONCE = 256

TABLE_HEADER = f"{'class':<20} {'confidence':>10}  {'exit':>5}  {'saved':>6}  file"


def main(argv: Sequence[str]) -> None:
    """Runs the command.

    Raises:
        UserError: an argument is wrong, the run is not evaluated, or there is no file.
        Incomplete: a file is not an image; the others were classified.
    """
    arguments = _parse(argv)
    config = stored.read_config(arguments.workdir)
    evaluation = results.Evaluation.load(arguments.workdir)
    command_line.check_top_k(arguments.top_k, evaluation.class_names)
    policy = choose_policy(arguments.workdir, arguments.thresholds, evaluation)
    skipped: Counter[str] = Counter()
    unreadable: list[UserError] = []
    files = files_in(arguments.images, skipped, unreadable)
    # Loading the network takes seconds, in vain where there is nothing to classify.
    first = list(itertools.islice(files, 1))
    if not first:
        _tell_of_others(skipped, unreadable)
        given = ", ".join(map(str, arguments.images))
        raise (Incomplete if unreadable else UserError)(
            f"{given}: no image found; must be image files or hold some"
        )

    # Imported late: it brings Orbax and clu, which take seconds.
    from l2w_jax.run.restore import restore_predictor

    predictor = restore_predictor(config, arguments.workdir, evaluation, policy, arguments.top_k)
    found = failed = 0
    for answer in answers(itertools.chain(first, files), config, predictor, evaluation):
        if "error" in answer and not arguments.json:
            standard_output.tell(in_one_line(answer["error"]))
        elif arguments.json:
            print(json.dumps(answer))
        else:
            if not found:
                print(TABLE_HEADER)
            print("\n".join(table_rows(answer, evaluation)))
        found += "error" not in answer
        failed += "error" in answer
    _tell_of_others(skipped, unreadable)
    if failed:
        raise Incomplete(f"{failed} of {found + failed} files could not be classified")
    if unreadable:
        raise Incomplete(f"{len(unreadable)} folders could not be read")


def _tell_of_others(skipped: Counter[str], unreadable: Sequence[UserError]) -> None:
    """Says which folders could not be read, and which files in the others are not images."""
    for error in unreadable:
        standard_output.tell(str(error))
    if skipped:
        standard_output.tell(walk.skipped_line(skipped))


def files_in(
    paths: Sequence[Path], skipped: Counter[str], unreadable: list[UserError] | None = None
) -> Iterator[Path]:
    """The files themselves, and all images in the folders, see `walk.image_files`.

    Args:
        paths: files and folders.
        skipped: counts the other files in the folders by their endings.
        unreadable: as of `walk.image_files`.
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

    Where several classes are predicted for each, "top" has the class and confidence of them all.

    Args:
        files: what to classify.
        config: that of the run.
        predict: from images uint8 [N, size, size, 3] to labels, exits and confidences, as
            `EarlyExitPredictor` gives them.
        evaluation: that of the run.
    """
    # Imported late: it brings TensorFlow, which takes seconds.
    from l2w_jax.data.single import UnreadableImage, read_images

    class_names = evaluation.class_names
    saved = 1 - np.array(evaluation.mul_adds) / evaluation.mul_adds[-1]
    while chunk := list(itertools.islice(files, FILES_AT_ONCE)):
        read = dict(zip(chunk, read_images(chunk, config), strict=True))
        images = {
            file: image for file, image in read.items() if not isinstance(image, UnreadableImage)
        }
        decided = {}
        if images:
            decisions = predict(np.stack(list(images.values())))
            decided = dict(zip(images, zip(*decisions, strict=True), strict=True))
        for file in chunk:
            if file not in decided:
                yield {"file": str(file), "error": str(read[file])}
            else:
                labels, exit_index, confidences = decided[file]
                top = [
                    {"class": class_names[label], "confidence": float(confidence)}
                    for label, confidence in zip(
                        np.atleast_1d(labels), np.atleast_1d(confidences), strict=True
                    )
                ]
                yield {
                    "file": str(file),
                    **top[0],
                    "exit": int(exit_index) + 1,
                    "saved": float(saved[exit_index]),
                    **({"top": top} if np.ndim(labels) else {}),
                }


def table_rows(answer: dict[str, Any], evaluation: results.Evaluation) -> list[str]:
    """One line of the table, under TABLE_HEADER, and one for each further class."""
    of_exits = f"{answer['exit']}/{len(evaluation.mul_adds)}"
    file = in_one_line(answer["file"])
    first, *further = (
        f"{in_one_line(of_class['class']):<20} {100 * of_class['confidence']:>9.1f}%"
        for of_class in answer.get("top", [answer])
    )
    return [f"{first}  {of_exits:>5}  {100 * answer['saved']:>5.0f}%  {file}", *further]


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = command_line.ArgumentParser("predict", __doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="folder of an evaluated run")
    parser.add_argument("--thresholds", type=Path, help="a file that l2w_jax.thresholds wrote")
    command_line.add_top_k(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument(
        "images", type=Path, nargs="+", metavar="IMAGE|FOLDER", help="what to classify"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    command_line.run(main)

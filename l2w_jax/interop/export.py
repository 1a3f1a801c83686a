"""Writes a run's network, with its early exits, into a folder that runs without this package.

    python -m l2w_jax.interop.export --workdir=RUN --output=FOLDER [--thresholds=FILE]

FOLDER then holds network.json (classes, thresholds, how images become pixels), each stage as
StableHLO for CPU, CUDA and TPU and for any batch size, the variables that they read, and
run_exported.py, which classifies images with them: copy it, or begin your own from it. Thresholds
are chosen as by `l2w_jax.predict`: those of --thresholds, or else of RUN/thresholds.json; without
either, the cheapest with which stopping early lost no accuracy on the run's held-out images.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from numpy.typing import ArrayLike

from l2w_jax import command_line
from l2w_jax.config import stored
from l2w_jax.early_exit.budget import EVERYBODY_LEAVES, NOBODY_LEAVES, checked_thresholds
from l2w_jax.early_exit.predictor import BATCH_SIZES, StageFunction, narrowed, stage_function
from l2w_jax.errors import UserError
from l2w_jax.files import told_if_unwritable, write_arrays, write_atomically, write_json
from l2w_jax.models import MultiExitNetwork, create_network
from l2w_jax.models.preprocessing import channel_statistics, normalize

PLATFORMS = ("cpu", "cuda", "tpu")
LOADER = "run_exported.py"


@dataclasses.dataclass(frozen=True)
class ImageFormat:
    """How an image becomes what the exported network takes, and what it makes of that.

    Before, an image is turned upright as its EXIF says and composed over white where it is
    transparent, as for training, see `data.decode`.

    Attributes:
        size: of the square that the network sees, in pixels.
        centre_share: share of the shorter side of the original image that this square shows.
        mean, deviation: of pixels on a scale of 0 to 1, [3] each. The first stage subtracts and
            divides by them.
    """

    size: int
    centre_share: float
    mean: Sequence[float]
    deviation: Sequence[float]


def main(argv: Sequence[str]) -> None:
    """Runs the command.

    Args:
        argv: arguments without the program's name.

    Raises:
        UserError: an argument is wrong, the run is not evaluated or has no good checkpoint, or the
            folder cannot be written.
    """
    from l2w_jax.evaluation import results
    from l2w_jax.predict import choose_thresholds

    arguments = _parse(argv)
    config = stored.read_config(arguments.workdir)
    evaluation = results.read_results(arguments.workdir)
    thresholds = choose_thresholds(arguments.workdir, arguments.thresholds, evaluation)

    # Imported late: they bring Orbax and TensorFlow, which take seconds.
    from l2w_jax.data.single import evaluated_share
    from l2w_jax.run.restore import restore_evaluated

    state = restore_evaluated(config, arguments.workdir, evaluation)
    mean, deviation = channel_statistics(config.dataset.name)
    image_format = ImageFormat(
        config.dataset.image_size, evaluated_share(config), mean.tolist(), deviation.tolist()
    )
    try:
        arguments.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--output={arguments.output}: is no folder and cannot be made one: {error.strerror}"
        ) from error
    with told_if_unwritable(arguments.output, "--output="):
        export_network(
            arguments.output,
            create_network(config),
            state.variables,
            thresholds,
            image_format,
            evaluation.summary["class_names"],
        )
    print(f"{arguments.output}: {len(thresholds)} stages of step {int(state.step)}, and {LOADER}")


def export_network(
    folder: Path,
    model: MultiExitNetwork,
    variables: Mapping[str, Any],
    thresholds: ArrayLike,
    image_format: ImageFormat,
    class_names: Sequence[str],
    batch_sizes: Sequence[int] = BATCH_SIZES,
) -> None:
    """Writes the network's stages, what they need and the loader into a folder.

    The variables are one file beside the stages, not constants in them: nothing is stored twice,
    and a compiler takes long over large constants.

    Args:
        folder: made where needed; files of an earlier export are replaced.
        model: the network.
        variables: its {"params", "batch_stats"}.
        thresholds: T_k [K]; at the last exit everybody leaves.
        image_format: of the images to come.
        class_names: [C].
        batch_sizes: that the loader fills batches up to. The stages take any.

    Raises:
        ValueError: the thresholds are not one number for each exit.
        OSError: the folder cannot be written.
    """
    thresholds = checked_thresholds(thresholds, model.num_exits)
    # JSON has no infinity.
    thresholds = np.clip(thresholds, EVERYBODY_LEAVES, NOBODY_LEAVES)
    mean, deviation = np.float32(image_format.mean), np.float32(image_format.deviation)

    def preprocess(images: jax.Array) -> jax.Array:
        return normalize(images, mean, deviation)

    paths = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(variables)
    ]
    stages = []
    for k, (exported, read) in enumerate(
        exported_stages(model, variables, preprocess, image_format.size)
    ):
        stages.append({"file": f"stage_{k + 1}.jax_export", "variables": [paths[i] for i in read]})
        write_atomically(folder / stages[-1]["file"], bytes(exported.serialize()))
    leaves = map(np.asarray, jax.tree.leaves(variables))
    write_arrays(folder / "variables.npz", dict(zip(paths, leaves, strict=True)))
    write_atomically(folder / LOADER, (Path(__file__).parent / LOADER).read_text())
    write_json(
        folder / "network.json",
        {
            "class_names": list(class_names),
            "image_format": dataclasses.asdict(image_format),
            "thresholds": thresholds.tolist(),
            "batch_sizes": sorted(set(batch_sizes)),
            "stages": stages,
            "platforms": PLATFORMS,
            "jax": jax.__version__,
        },
    )


def exported_stages(
    model: MultiExitNetwork,
    variables: Mapping[str, Any],
    preprocess: Callable[[jax.Array], jax.Array],
    image_size: int,
) -> list[tuple[export.Exported, list[int]]]:
    """Each stage as StableHLO for all platforms and batch sizes, from stored images on.

    A stage is a function of a list of variables and a list of arrays [n, ...], for the first the
    images uint8 [n, H, W, 3], and gives labels int32 [n], confidences float32 [n] and the list for
    the next stage: plain lists, so that who calls it need not know the network's own types.

    Returns:
        With each stage, which leaves of the variables it takes.
    """
    (batch,) = export.symbolic_shape("batch")
    features: Any = jax.ShapeDtypeStruct((batch, image_size, image_size, 3), jnp.uint8)
    variables = jax.eval_shape(lambda: variables)
    stages = []
    for k in range(model.num_exits):
        function = stage_function(model, k, preprocess)
        stages.append(_exported(function, variables, features))
        _, _, features = jax.eval_shape(function, variables, features)
    return stages


def _exported(
    function: StageFunction, variables: Mapping[str, Any], features: Any
) -> tuple[export.Exported, list[int]]:
    read, narrow = narrowed(function, variables, features)
    feature_leaves, structure = jax.tree.flatten(features)

    def of_lists(
        read_leaves: list[jax.Array], feature_leaves: list[jax.Array]
    ) -> tuple[jax.Array, jax.Array, list[jax.Array]]:
        features = jax.tree.unflatten(structure, feature_leaves)
        labels, confidences, features = narrow(read_leaves, features)
        return labels, confidences, jax.tree.leaves(features)

    leaves = jax.tree.leaves(variables)
    to_export = export.export(jax.jit(of_lists), platforms=PLATFORMS)
    return to_export([leaves[i] for i in read], feature_leaves), read


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = command_line.ArgumentParser(
        prog="python -m l2w_jax.interop.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", type=Path, required=True, help="folder of an evaluated run")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--thresholds", type=Path, help="a file that l2w_jax.thresholds wrote")
    return parser.parse_args(argv)


if __name__ == "__main__":
    command_line.run(lambda: main(sys.argv[1:]))

"""Writes a run's network, with its early exits, into a folder that runs without this package.

    python -m l2w_jax.interop.export --workdir=RUN --output=FOLDER [--thresholds=FILE]
        [--top-k=N] [--format=stablehlo|onnx [--quantize]]

FOLDER then holds network.json (classes, thresholds, how images become pixels), the network's
stages, which take any batch size, and a program that classifies images with them: copy it, or begin
your own from it. With --format=stablehlo the stages are for JAX on a CPU, CUDA or a TPU, beside the
variables that they read, and the program is run_exported.py. With --format=onnx they are
stage_1.onnx and so on, the program is run_onnx.py, and neither needs JAX. With --quantize these
compute in 8 bits, calibrated with the images that set the run's thresholds, and what that costs
and saves on its test images is printed. With --top-k=N the program gives the N most probable
classes of each image, as `l2w_jax.predict` does.

Thresholds are chosen as by `l2w_jax.predict`: those of --thresholds, or else of
RUN/thresholds.json; without either, the cheapest with which stopping early lost no accuracy on the
images that set the run's thresholds. In 8 bits they are set anew, so that as many of these images
leave at each exit as before.
"""

import argparse
import hashlib
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export
from ml_collections import ConfigDict
from numpy.typing import NDArray

from l2w_jax import command_line
from l2w_jax.arrays import named_arrays
from l2w_jax.config import stored
from l2w_jax.data.augment import evaluated_share
from l2w_jax.early_exit import rules
from l2w_jax.early_exit.calibration import calibrated
from l2w_jax.early_exit.predictor import BATCH_SIZES
from l2w_jax.early_exit.stages import StageFunction, narrowed
from l2w_jax.errors import UserError
from l2w_jax.evaluation.policy import choose_policy
from l2w_jax.evaluation.results import Evaluation
from l2w_jax.files import npz_bytes, told_if_unwritable, write_atomically, write_json
from l2w_jax.interop.exported_folder import (
    ImageFormat,
    NetworkToExport,
    description,
    remove_earlier_export,
    write_programs,
)
from l2w_jax.models import create_network
from l2w_jax.models.compiler_options import cpu_compiler_options
from l2w_jax.models.preprocessing import channel_statistics

PLATFORMS = ("cpu", "cuda", "tpu")
LOADER = "run_exported.py"

# The most images of a split, enough to tell what 8 bits cost; all of them would fill the memory.
MOST_IMAGES = 10_000


def main(argv: Sequence[str]) -> None:
    """Runs the command.

    Raises:
        UserError: an argument is wrong, the run is not evaluated or has no good checkpoint, or the
            folder cannot be written.
    """
    arguments = _parse(argv)
    if arguments.quantize and arguments.format != "onnx":
        raise UserError(f"--quantize: needs --format=onnx, not {arguments.format}")
    write, loader = writer(arguments.format)
    config = stored.read_config(arguments.workdir)
    evaluation = Evaluation.load(arguments.workdir)
    command_line.check_top_k(arguments.top_k, evaluation.class_names)
    policy = choose_policy(arguments.workdir, arguments.thresholds, evaluation)

    # Imported late: it brings Orbax, which takes seconds.
    from l2w_jax.run.restore import restore_evaluated

    _make_folder(arguments.output)
    state = restore_evaluated(config, arguments.workdir, evaluation)
    mean, deviation = channel_statistics(config.dataset.name)
    image_format = ImageFormat(
        config.dataset.image_size,
        evaluated_share(config),
        mean.tolist(),
        deviation.tolist(),
        config.dataset.max_pixels,
    )
    network = NetworkToExport(
        calibrated(create_network(config), policy.temperatures),
        state.variables,
        policy.thresholds,
        image_format,
        evaluation.class_names,
        rules.RULES[policy.rule],
        arguments.top_k,
    )
    if arguments.quantize:
        from l2w_jax.interop.export_onnx import export_quantized

        config.dataset.thresholds_from = evaluation.thresholds_from
        images = _images_of(config, arguments.workdir, evaluation)
        with told_if_unwritable(arguments.output, "--output="):
            summary = export_quantized(arguments.output, network, *images, evaluation.mul_adds)
        print("\n".join(summary))
        if policy.has_promise:
            print("the promise of --risk is not kept: it is of other thresholds, in float32")
    else:
        with told_if_unwritable(arguments.output, "--output="):
            write(arguments.output, network)
    num_stages = len(policy.thresholds)
    print(f"{arguments.output}: {num_stages} stages of step {int(state.step)}, and {loader}")


def _make_folder(path: Path) -> None:
    """Makes the folder to write where it is not there yet.

    Raises:
        UserError: it is a file, or cannot be made.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"--output={path}: is a file; give a folder, which need not exist")
    with told_if_unwritable(path, "--output="):
        path.mkdir(parents=True, exist_ok=True)


def _images_of(
    config: ConfigDict, workdir: Path, evaluation: Evaluation
) -> tuple[NDArray[np.uint8], tuple[NDArray[np.uint8], NDArray[np.int32]]]:
    """Images of a run that set thresholds, [N, H, W, 3], and test images with their labels.

    Raises:
        UserError: the data set is missing, has changed, or is not the one that set the run's
            thresholds; or there are no images to set thresholds.
    """
    from l2w_jax.run.images import open_evaluated

    split = config.dataset.thresholds_from
    source = open_evaluated(config, workdir, evaluation, (split,))
    if split == "holdout" and not source.num_holdout:
        raise UserError(
            "--quantize: sets thresholds anew by held-out images, and this run has none"
        )

    def images_of(split: str) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        images = list(source.spread_images(split, MOST_IMAGES))
        return tuple(
            np.concatenate([image[part] for image in images]) for part in ("image", "label")
        )

    held_out, _ = images_of(split)
    return held_out, images_of("test")


def writer(name: str) -> tuple[Callable[[Path, NetworkToExport], None], str]:
    """The function that writes a network in the format of this name, and its loader's name.

    Raises:
        UserError: a package that the format needs is not installed.
    """
    if name == "stablehlo":
        return export_network, LOADER
    try:
        for needed in ("onnx", "onnxruntime"):
            importlib.import_module(needed)
    except ModuleNotFoundError as error:
        raise UserError(
            f"onnx: {error.name} is not installed; pip install -e '.[onnx]' brings it"
        ) from error
    from l2w_jax.interop import export_onnx

    return export_onnx.export_network, export_onnx.LOADER


def export_network(
    folder: Path, network: NetworkToExport, batch_sizes: Sequence[int] = BATCH_SIZES
) -> None:
    """Writes the network's stages, what they need and the loader into a folder.

    The variables are one file beside the stages, not constants in them: nothing is stored twice,
    and a compiler takes long over large constants.

    Args:
        folder: made where needed; files of an earlier export are replaced.
        network: the stages compute in its own type.
        batch_sizes: sizes that the loader fills batches up to. The stages take any.

    Raises:
        ValueError: the thresholds are not one number for each exit.
        OSError: the folder cannot be written.
    """
    about = description(network)
    variables = network.folded_variables()
    arrays = {name: np.asarray(array) for name, array in named_arrays(variables).items()}
    exported_functions = exported_stages(network, variables)
    remove_earlier_export(folder)
    names, stages = list(arrays), []
    for k, (exported, read) in enumerate(exported_functions):
        stages.append({"file": f"stage_{k + 1}.jax_export", "variables": [names[i] for i in read]})
        write_atomically(folder / stages[-1]["file"], bytes(exported.serialize()))
    written = ["variables.npz", *(stage["file"] for stage in stages)]
    write_atomically(folder / "variables.npz", npz_bytes(arrays))
    write_programs(folder, LOADER)
    write_json(
        folder / "network.json",
        {
            **about,
            "batch_sizes": sorted(set(batch_sizes)),
            "stages": stages,
            "sha256": {
                name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in written
            },
            "platforms": PLATFORMS,
            # Of this machine, where it is a CPU; the loader asks whether its own knows them too.
            "cpu_compiler_options": cpu_compiler_options(),
            "jax": jax.__version__,
        },
    )


def exported_stages(
    network: NetworkToExport, variables: Mapping[str, Any]
) -> list[tuple[export.Exported, list[int]]]:
    """Each stage as StableHLO for all platforms and batch sizes, from stored images on.

    A stage is a function of a list of variables and a list of arrays [n, ...], for the first the
    images uint8 [n, H, W, 3]. It gives labels int32 and confidences float32, [n] or [n, top_k],
    scores of the rule float32 [n] and the list for the next stage: plain lists, so that its caller
    need not know the network's own types.

    Args:
        network: what to export.
        variables: its folded variables; shapes and types are enough.

    Returns:
        Each stage, with which leaves of the variables it takes.
    """
    (batch,) = export.symbolic_shape("batch")
    features: Any = network.stored_images(batch)
    variables = jax.eval_shape(lambda: variables)
    stages = []
    for k in range(network.model.num_exits):
        function = network.stage_function(k)
        stages.append(_exported(function, variables, features))
        *_, features = jax.eval_shape(function, variables, features)
    return stages


def _exported(
    function: StageFunction, variables: Mapping[str, Any], features: Any
) -> tuple[export.Exported, list[int]]:
    read, narrow = narrowed(function, variables, features)
    feature_leaves, structure = jax.tree.flatten(features)

    def of_lists(
        read_leaves: list[jax.Array], feature_leaves: list[jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array, list[jax.Array]]:
        features = jax.tree.unflatten(structure, feature_leaves)
        labels, confidences, scores, features = narrow(read_leaves, features)
        return labels, confidences, scores, jax.tree.leaves(features)

    leaves = jax.tree.leaves(variables)
    to_export = export.export(jax.jit(of_lists), platforms=PLATFORMS)
    return to_export([leaves[i] for i in read], feature_leaves), read


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = command_line.ArgumentParser("interop.export", __doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="folder of an evaluated run")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--format", choices=("stablehlo", "onnx"), default="stablehlo", help="default: stablehlo"
    )
    parser.add_argument("--quantize", action="store_true", help="8 bits, with --format=onnx")
    parser.add_argument("--thresholds", type=Path, help="a file that l2w_jax.thresholds wrote")
    command_line.add_top_k(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    command_line.run(main)

"""Writes a network, with its early exits, as ONNX files beside a program that runs them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray

from l2w_jax.early_exit import rules
from l2w_jax.early_exit.budget import checked_thresholds
from l2w_jax.early_exit.latency import milliseconds
from l2w_jax.files import write_atomically, write_json
from l2w_jax.interop import quantize
from l2w_jax.interop.exported_folder import (
    ImageFormat,
    description,
    remove_earlier_export,
    write_programs,
)
from l2w_jax.interop.onnx_stages import onnx_stages
from l2w_jax.models import MultiExitNetwork

LOADER = "run_onnx.py"

# Of the test images, those that are classified together to tell the time.
TIMED_IMAGES = 64


def export_network(
    folder: Path,
    model: MultiExitNetwork,
    variables: Mapping[str, Any],
    thresholds: ArrayLike,
    image_format: ImageFormat,
    class_names: Sequence[str],
    rule: rules.Rule = rules.confidence,
) -> None:
    """Writes the network's stages, what they need and the loader into a folder.

    Args:
        folder: made where needed; files of an earlier export are replaced.
        model: the network. The stages compute in float32, whatever its own type.
        variables: its {"params", "batch_stats"}.
        thresholds: T_k [K]; at the last exit everybody leaves.
        image_format: of the images to come.
        class_names: [C].
        rule: the scores that the thresholds are for.

    Raises:
        ValueError: the thresholds are not one number for each exit.
        UserError: the network does what cannot be written as ONNX.
        OSError: the folder cannot be written.
    """
    thresholds = checked_thresholds(thresholds, model.num_exits)
    models = _models(model, variables, image_format, rule)
    about = description(class_names, image_format, rule.__name__, thresholds)
    _write(folder, models, about)


def export_quantized(
    folder: Path,
    model: MultiExitNetwork,
    variables: Mapping[str, Any],
    thresholds: ArrayLike,
    image_format: ImageFormat,
    class_names: Sequence[str],
    rule: rules.Rule,
    held_out: NDArray[np.uint8],
    test: tuple[NDArray[np.uint8], NDArray[np.int32]],
    mul_adds: Sequence[float],
) -> list[str]:
    """`export_network` in 8 bits (`quantize`), at thresholds by which as many images leave.

    Args:
        folder, model, variables, thresholds, image_format, class_names, rule: as there.
        held_out: images uint8 [N, H, W, 3] that set limits and thresholds.
        test: images and their labels, to tell what quantising costs.
        mul_adds: of stopping at each exit [K].

    Returns:
        A summary: accuracies, points of the budgeted curve and time, before and after.
    """
    thresholds = checked_thresholds(thresholds, model.num_exits)
    models = _models(model, variables, image_format, rule)
    every = max(1, len(held_out) // quantize.CALIBRATION_IMAGES)
    in_8_bits = quantize.quantized(models, held_out[::every])
    set_by = [quantize.answers(stages, held_out) for stages in (models, in_8_bits)]
    anew = quantize.thresholds_as_before(thresholds, *set_by)
    images, labels = test
    outcomes = [
        quantize.outcome(of_held_out, quantize.answers(stages, images), labels, of_stages, mul_adds)
        for stages, of_held_out, of_stages in zip(
            (models, in_8_bits), set_by, (thresholds, anew), strict=True
        )
    ]
    ways = [quantize.full_network(stages) for stages in (models, in_8_bits)]
    times = milliseconds(ways, images[:TIMED_IMAGES], repeats=5)
    about = description(class_names, image_format, rule.__name__, anew)
    _write(folder, in_8_bits, about)
    return quantize.summary_lines(*outcomes, times.tolist())


def _models(
    model: MultiExitNetwork,
    variables: Mapping[str, Any],
    image_format: ImageFormat,
    rule: rules.Rule,
) -> list[onnx.ModelProto]:
    return onnx_stages(model, variables, image_format.preprocess, image_format.size, rule)


def _write(folder: Path, models: Sequence[onnx.ModelProto], about: dict[str, Any]) -> None:
    """The stages, each with what network.json says of them, that and the loader."""
    remove_earlier_export(folder)
    stages = []
    for k, of_stage in enumerate(models, start=1):
        texts = {name: json.dumps(value) for name, value in about.items()}
        onnx.helper.set_model_props(of_stage, texts)
        content = of_stage.SerializeToString()
        stages.append({"file": f"stage_{k}.onnx", "sha256": hashlib.sha256(content).hexdigest()})
        write_atomically(folder / stages[-1]["file"], content)
    write_programs(folder, LOADER)
    write_json(folder / "network.json", {**about, "stages": stages})

"""Writes a network, with its early exits, as ONNX files beside a program that runs them."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from l2w_jax.early_exit.budget import checked_thresholds
from l2w_jax.early_exit.latency import milliseconds
from l2w_jax.files import write_atomically, write_json
from l2w_jax.interop import quantize
from l2w_jax.interop.exported_folder import (
    NetworkToExport,
    description,
    remove_earlier_export,
    write_programs,
)
from l2w_jax.interop.onnx_stages import onnx_stages

LOADER = "run_onnx.py"

# Test images that are classified together to measure the time.
TIMED_IMAGES = 64


def export_network(folder: Path, network: NetworkToExport) -> None:
    """Writes the network's stages, what they need and the loader into a folder.

    Args:
        folder: made where needed; files of an earlier export are replaced.
        network: the stages compute in float32, whatever its type.

    Raises:
        ValueError: the thresholds are not one number for each exit.
        UserError: the network does something that cannot be written as ONNX.
        OSError: the folder cannot be written.
    """
    _write(folder, onnx_stages(network), description(network))


def export_quantized(
    folder: Path,
    network: NetworkToExport,
    held_out: NDArray[np.uint8],
    test: tuple[NDArray[np.uint8], NDArray[np.int32]],
    mul_adds: Sequence[float],
) -> list[str]:
    """`export_network` in 8 bits (`quantize`), at thresholds at which as many images leave.

    Args:
        folder, network: as for `export_network`.
        held_out: images uint8 [N, H, W, 3] that set limits and thresholds.
        test: images and their labels, to measure what quantising costs.
        mul_adds: of stopping at each exit [K].

    Returns:
        A summary: accuracies, points of the budgeted curve and time, before and after.
    """
    thresholds = checked_thresholds(network.thresholds, network.model.num_exits)
    models = onnx_stages(network)
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
    _write(folder, in_8_bits, description(dataclasses.replace(network, thresholds=anew)))
    return quantize.summary_lines(*outcomes, times.tolist())


def _write(folder: Path, models: Sequence[onnx.ModelProto], about: dict[str, Any]) -> None:
    """Writes the stages, each with what network.json says of them, network.json and the loader."""
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

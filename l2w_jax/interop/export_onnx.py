"""Writes a network, with its early exits, as ONNX files beside a program that runs them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from l2w_jax.early_exit import rules
from l2w_jax.early_exit.budget import checked_thresholds
from l2w_jax.files import write_atomically, write_json
from l2w_jax.interop.exported_folder import ImageFormat, description
from l2w_jax.interop.onnx_stages import onnx_stages
from l2w_jax.models import MultiExitNetwork
from l2w_jax.models.preprocessing import normalize

LOADER = "run_onnx.py"

# Of network.json and the stages' inputs and outputs; the loader refuses any other.
FORMAT = 1


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
    mean, deviation = np.float32(image_format.mean), np.float32(image_format.deviation)

    def preprocess(images: jax.Array) -> jax.Array:
        return normalize(images, mean, deviation)

    about = description(class_names, image_format, rule.__name__, thresholds)
    metadata = {name: json.dumps(value) for name, value in about.items()}
    models = onnx_stages(model, variables, preprocess, image_format.size, rule, metadata)
    stages = []
    for k, of_stage in enumerate(models, start=1):
        content = of_stage.SerializeToString()
        stages.append({"file": f"stage_{k}.onnx", "sha256": hashlib.sha256(content).hexdigest()})
        write_atomically(folder / stages[-1]["file"], content)
    write_atomically(folder / LOADER, (Path(__file__).parent / LOADER).read_text())
    write_json(folder / "network.json", {"format": FORMAT, **about, "stages": stages})

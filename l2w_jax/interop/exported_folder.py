"""What an exported network's folder holds beside its stages, whatever the stages' format."""

import dataclasses
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from l2w_jax import standard_output
from l2w_jax.data import cores, cut_jpeg, rgb
from l2w_jax.early_exit import rules
from l2w_jax.early_exit.budget import EVERYBODY_LEAVES, NOBODY_LEAVES, checked_thresholds
from l2w_jax.early_exit.stages import StageFunction, answer_of, folded_variables, stage_function
from l2w_jax.files import write_atomically
from l2w_jax.interop.exported_files import FORMAT
from l2w_jax.models import MultiExitNetwork
from l2w_jax.models.preprocessing import normalize

_HERE = Path(__file__).parent

# The modules that the exported programs consist of; each runs without this package.
_MODULES = (
    _HERE / "classify.py",
    Path(cores.__file__),
    Path(cut_jpeg.__file__),
    _HERE / "exported_files.py",
    _HERE / "image_files.py",
    Path(rgb.__file__),
    Path(standard_output.__file__),
)

_OTHER_FILES = (
    *(module.name for module in _MODULES),
    "run_exported.py",
    "run_onnx.py",
    "variables.npz",
)


@dataclasses.dataclass(frozen=True)
class ImageFormat:
    """How an image becomes what the exported network takes, and how its first stage scales it.

    Attributes:
        size: of the square that the network sees, in pixels.
        centre_share: share of the shorter side of the original image that this square shows.
        mean, deviation: of pixels on a scale of 0 to 1, [3] each. The first stage subtracts and
            divides by them.
        max_pixels: the most that an image file may have.
    """

    size: int
    centre_share: float
    mean: Sequence[float]
    deviation: Sequence[float]
    max_pixels: int = 89_478_485  # Pillow's own limit

    def preprocess(self, images: jax.Array) -> jax.Array:
        """`normalize` of stored images by this mean and deviation."""
        return normalize(images, np.float32(self.mean), np.float32(self.deviation))


@dataclasses.dataclass(frozen=True)
class NetworkToExport:
    """A network with early exits, and what is needed to run it.

    Attributes:
        model: the network.
        variables: its {"params", "batch_stats"}.
        thresholds: T_k [K]; at the last exit everybody leaves.
        image_format: of the images to come.
        class_names: [C].
        rule: the scores that the thresholds are for.
        top_k: how many classes to give for each image; without it only the most probable one.
    """

    model: MultiExitNetwork
    variables: Mapping[str, Any]
    thresholds: ArrayLike
    image_format: ImageFormat
    class_names: Sequence[str]
    rule: rules.Rule = rules.confidence
    top_k: int | None = None

    def stored_images(self, count: Any) -> jax.ShapeDtypeStruct:
        """Shape and type of images for the first stage; `count` is a number or a symbol."""
        size = self.image_format.size
        return jax.ShapeDtypeStruct((count, size, size, 3), jnp.uint8)

    def folded_variables(self) -> dict[str, Any]:
        """The variables that the stages are to read, batch norms folded."""
        preprocess = self.image_format.preprocess
        return folded_variables(self.model, self.variables, preprocess, self.stored_images(1))

    def stage_function(self, k: int) -> StageFunction:
        """The function of stage k; the first takes stored images."""
        preprocess, answer = self.image_format.preprocess, answer_of(self.top_k)
        return stage_function(self.model, k, preprocess, self.rule, answer)


def description(network: NetworkToExport) -> dict[str, Any]:
    """What a loader must know: classes, images, and which images leave where.

    Raises:
        ValueError: the thresholds are not one number for each exit.
    """
    thresholds = checked_thresholds(network.thresholds, network.model.num_exits)
    return {
        "format": FORMAT,
        "num_classes": len(network.class_names),
        "class_names": list(network.class_names),
        "image_format": dataclasses.asdict(network.image_format),
        "rule": network.rule.__name__,
        # JSON has no infinity.
        "thresholds": np.clip(thresholds, EVERYBODY_LEAVES, NOBODY_LEAVES).tolist(),
    }


def remove_earlier_export(folder: Path) -> None:
    """Removes what an earlier export, of either format, wrote into a folder; else nothing.

    Its program would take the new network.json for its own, and stages that the new network lacks
    would seem to belong to it.
    """
    if not (folder / "network.json").exists():
        return
    # network.json, the sign of an export, goes last, in case this is interrupted.
    for pattern in ("stage_*.onnx", "stage_*.jax_export", *_OTHER_FILES, "network.json"):
        for path in folder.glob(pattern):
            path.unlink()


def write_programs(folder: Path, loader: str) -> None:
    """Copies the program of this name, and the modules that it is made of, into a folder."""
    for module in (_HERE / loader, *_MODULES):
        write_atomically(folder / module.name, module.read_text())


def load_program(folder: Path, loader: str) -> ModuleType:
    """The program of this name in a folder, as a module."""
    sys.path.insert(0, str(folder))
    try:
        spec = importlib.util.spec_from_file_location(Path(loader).stem, folder / loader)
        program = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(program)
    finally:
        sys.path.remove(str(folder))
        # Another folder may hold other versions of them.
        for module in _MODULES:
            sys.modules.pop(module.stem, None)
    return program

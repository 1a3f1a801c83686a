"""The files of the authors' PyTorch programs: the network's tensors and the predictor's.

Such a file is a dictionary with "state_dict" and, where sample weights were learned,
"meta_state_dict". The names may begin with "module.", which `torch.nn.DataParallel` adds. Needs
PyTorch (the extra `torch`), which reads the tensors without executing what else a pickle may hold.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from l2w_jax.errors import UserError, first_line
from l2w_jax.files import told_if_unwritable, write_atomically

_PREFIX = "module."


class TorchCheckpoint(NamedTuple):
    """What such a file holds.

    Attributes:
        network: tensors of the multi-exit network by name, without "module.".
        predictor: tensors of the weight-prediction network; empty where the file has none.
        prefixed: whether the names begin with "module." in the file.
    """

    network: dict[str, np.ndarray]
    predictor: dict[str, np.ndarray]
    prefixed: bool = False


def read_torch_checkpoint(path: Path) -> TorchCheckpoint:
    """Reads a file of the authors' programs.

    Raises:
        UserError: PyTorch is not installed, there is no such file, or it is not one of theirs.
    """
    torch = _import_torch()
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except Exception as error:
        # The unpickler's errors are of many kinds, and advise the user to trust the file.
        raise UserError(
            f"{path}: not a checkpoint of tensors alone; must be a file that torch.load reads with "
            "weights_only=True"
        ) from error
    if not isinstance(content, Mapping) or not isinstance(content.get("state_dict"), Mapping):
        raise UserError(f"{path}: must hold a dictionary with 'state_dict'")
    network = _arrays(content["state_dict"], f"{path}: state_dict")
    predictor = content.get("meta_state_dict")
    predictor = _arrays({} if predictor is None else predictor, f"{path}: meta_state_dict")
    return TorchCheckpoint(
        network=_without_prefix(network, f"{path}: state_dict"),
        predictor=_without_prefix(predictor, f"{path}: meta_state_dict"),
        prefixed=bool(network) and all(name.startswith(_PREFIX) for name in network),
    )


def _without_prefix(arrays: Mapping[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
    named = {name.removeprefix(_PREFIX): array for name, array in arrays.items()}
    if len(named) < len(arrays):
        raise UserError(f"{where}: has tensors both with and without {_PREFIX!r} before their name")
    return named


def write_torch_checkpoint(path: Path, checkpoint: TorchCheckpoint) -> None:
    """Writes a file that the authors' programs, and `read_torch_checkpoint`, read, atomically.

    Raises:
        UserError: PyTorch is not installed, or the file cannot be written.
    """
    torch = _import_torch()
    prefix = _PREFIX if checkpoint.prefixed else ""

    def tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return {prefix + name: torch.tensor(array) for name, array in arrays.items()}

    content = {"state_dict": tensors(checkpoint.network)}
    if checkpoint.predictor:
        content["meta_state_dict"] = tensors(checkpoint.predictor)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with told_if_unwritable(path):
        write_atomically(path, buffer.getvalue())


def _arrays(tensors: Any, where: str) -> dict[str, np.ndarray]:
    """The tensors as arrays: floating-point ones, of whatever precision, in float32."""
    torch = _import_torch()
    if not isinstance(tensors, Mapping):
        raise UserError(f"{where}: must be a dictionary of tensors, not {type(tensors).__name__}")
    faults = [
        f"{where}: {name!r} must be a tensor, not {type(value).__name__}"
        for name, value in tensors.items()
        if not isinstance(value, torch.Tensor)
    ]
    faults += [
        f"{where}: {name!r} is not allowed: the names of tensors must be texts"
        for name in tensors
        if not isinstance(name, str)
    ]
    if faults:
        raise UserError("\n".join(faults))
    arrays = {}
    for name, tensor in tensors.items():
        try:
            tensor = tensor.float() if tensor.is_floating_point() else tensor
            arrays[name] = tensor.detach().cpu().numpy()
        except (TypeError, RuntimeError) as error:
            # A sparse or quantized one, one without data, or one that no memory holds.
            raise UserError(
                f"{where}: {name!r} must be a tensor that NumPy can hold: {first_line(error)}"
            ) from error
    return arrays


def _import_torch() -> ModuleType:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            "PyTorch is needed to read and write its files: pip install -e '.[torch]'"
        ) from error
    return torch

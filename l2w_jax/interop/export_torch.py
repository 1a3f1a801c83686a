"""Writes a run's network and weight predictor as the authors' PyTorch programs would.

    python -m l2w_jax.interop.export_torch CKPT.pth.tar --workdir=FOLDER

The inverse of `l2w_jax.interop.import_torch`, bit for bit, of what the configuration has a place
for (plain training has none for a weight predictor). The checkpoint with the best held-out accuracy
is taken, as in an evaluation.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from l2w_jax import command_line
from l2w_jax.config import stored
from l2w_jax.errors import UserError
from l2w_jax.interop.import_torch import EXTRAS_FILE
from l2w_jax.interop.torch_checkpoint import TorchCheckpoint, write_torch_checkpoint
from l2w_jax.interop.torch_tensors import variables_to_torch, wpn_to_torch
from l2w_jax.models import create_network
from l2w_jax.training import TrainState


def main(argv: Sequence[str]) -> None:
    """Runs the command.

    Raises:
        UserError: an argument is wrong, the folder holds no run or no good checkpoint, its weight
            predictor is not one that the authors' programs have, what was kept of an import is
            damaged, or the file cannot be written.
    """
    from l2w_jax.run.restore import restore_best

    parser = command_line.ArgumentParser("interop.export_torch", __doc__)
    parser.add_argument("file", type=Path, help="checkpoint of PyTorch to write")
    parser.add_argument("--workdir", type=Path, required=True, help="folder of a run")
    arguments = parser.parse_args(argv)
    config = stored.read_config(arguments.workdir)
    state = restore_best(config, arguments.workdir)
    try:
        checkpoint = state_to_torch(config, state)
    except ValueError as error:
        raise UserError(f"{arguments.workdir}: {error}") from error
    checkpoint = with_extras(checkpoint, arguments.workdir / EXTRAS_FILE, int(state.step))
    write_torch_checkpoint(arguments.file, checkpoint)
    print(f"{arguments.file}: written from step {int(state.step)} of {arguments.workdir}")


def state_to_torch(config: ConfigDict, state: TrainState) -> TorchCheckpoint:
    """The tensors of a training state.

    Raises:
        ValueError: the network or the weight predictor is not one of the authors'.
    """
    variables = state.variables
    return TorchCheckpoint(
        network=variables_to_torch(create_network(config), variables),
        predictor=wpn_to_torch(state.wpn_params) if state.wpn_params else {},
    )


def with_extras(checkpoint: TorchCheckpoint, path: Path, step: int) -> TorchCheckpoint:
    """The checkpoint with the counters and names that it was imported with, if it was.

    It has no predictor if the imported file had none and this run's has learned nothing since.

    Args:
        checkpoint: of the run.
        path: the file that an import leaves in the run's folder.
        step: of the run.

    Raises:
        UserError: the file is damaged.
    """
    try:
        extras = json.loads(path.read_bytes())
        counters = {name: np.array(int(n), np.int64) for name, n in extras["counters"].items()}
        prefixed, has_predictor = extras["prefixed"], extras.get("has_predictor", True)
        if not isinstance(prefixed, bool) or not isinstance(has_predictor, bool):
            raise ValueError("'prefixed' and 'has_predictor' must be true or false")
    except FileNotFoundError:
        return checkpoint
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise UserError(
            f"{path}: is damaged ({error}); import the checkpoint again into another folder"
        ) from error
    if step == 0 and not has_predictor:
        checkpoint = checkpoint._replace(predictor={})
    return checkpoint._replace(network=checkpoint.network | counters, prefixed=prefixed)


if __name__ == "__main__":
    command_line.run(main)

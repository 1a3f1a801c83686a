"""Makes a run folder from a checkpoint of the authors' PyTorch programs.

    python -m l2w_jax.interop.import_torch CKPT.pth.tar --config=configs/NAME.py --workdir=FOLDER

Reads the files of L2W-DEN, MSDNet-PyTorch and RANet-pytorch; the configuration says which network
they hold. `python -m l2w_jax.main` with the same --config and --workdir, and --mode=evaluate,
evaluates the result; without --mode=evaluate it trains it further, from step 0.
`l2w_jax.interop.export_torch` is the inverse.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from l2w_jax import command_line
from l2w_jax.errors import UserError
from l2w_jax.files import write_atomically
from l2w_jax.interop.torch_checkpoint import TorchCheckpoint, read_torch_checkpoint
from l2w_jax.interop.torch_tensors import COUNTER, variables_from_torch, wpn_from_torch
from l2w_jax.models import create_network
from l2w_jax.training import TrainState

# What the file held that a training state has no place for, so that an export gives it back.
EXTRAS_FILE = "torch_extras.json"


def main(argv: Sequence[str]) -> None:
    """Runs the command.

    Raises:
        UserError: an argument is wrong, or the file does not hold the configuration's network: a
            line for each tensor that is missing, extra, of the wrong shape or type, or not finite.
    """
    from l2w_jax.config import flags, validate
    from l2w_jax.run import checkpoints
    from l2w_jax.run import workdir as run_folder

    path, config_arguments = parse_file_argument(argv)
    config, workdir, _ = flags.parse(["import_torch", *config_arguments])
    run_folder.check(config, workdir)
    validate(config)
    if checkpoints.has_checkpoint(workdir):
        raise UserError(f"--workdir={workdir}: has checkpoints already; choose another --workdir")
    checkpoint = read_torch_checkpoint(path)
    state = state_from_torch(config, checkpoint, path)
    counters = {
        name: _count(path, name, tensor)
        for name, tensor in checkpoint.network.items()
        if name.endswith(COUNTER)
    }
    with run_folder.exclusive_use(config, workdir):
        extras = {
            "prefixed": checkpoint.prefixed,
            "counters": counters,
            "has_predictor": bool(checkpoint.predictor),
        }
        write_atomically(workdir / EXTRAS_FILE, json.dumps(extras, indent=2))
        writer = checkpoints.CheckpointWriter(workdir, config.checkpoint.keep)
        writer.save(state)
        writer.wait()
        writer.close()
    what = "of the weight predictor"
    if not state.wpn_params:
        what += " left out, as plain training has none"
    print(
        f"{path}: {len(checkpoint.network)} tensors of the network, "
        f"{len(checkpoint.predictor)} {what}; written to {workdir}"
    )


def _count(path: Path, name: str, tensor: np.ndarray) -> int:
    """What a counter of batch norm holds.

    Raises:
        UserError: it is not one finite number.
    """
    if tensor.ndim or not np.isfinite(tensor):
        raise UserError(f"{path}: {name}: must be one finite number")
    return int(tensor)


def state_from_torch(config: ConfigDict, checkpoint: TorchCheckpoint, path: Path) -> TrainState:
    """A training state at step 0 with the tensors of a checkpoint.

    The weight predictor keeps its initial values where the checkpoint has none.

    Args:
        config: a run's configuration.
        checkpoint: the tensors.
        path: where they come from, for messages.

    Raises:
        UserError: a line for each tensor that is missing, extra, of the wrong shape or type, or
            not finite.
    """
    import jax

    from l2w_jax.training import create_train_state

    state = create_train_state(config, jax.random.key(config.seed))
    try:
        variables = variables_from_torch(create_network(config), checkpoint.network)
        state = state.replace(**variables)
        if checkpoint.predictor and state.wpn_params:
            wpn_params = wpn_from_torch(checkpoint.predictor)
            shapes, wanted = (
                jax.tree.map(lambda x: x.shape, tree) for tree in (wpn_params, state.wpn_params)
            )
            if shapes != wanted:
                raise ValueError(f"meta_state_dict: has shapes {shapes}, must be {wanted}")
            state = state.replace(wpn_params=wpn_params)
    except ValueError as error:
        raise UserError("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from error
    return state


def parse_file_argument(argv: Sequence[str]) -> tuple[Path, list[str]]:
    """The one positional argument, a file, and the other arguments.

    The folder is named too: its default is where a training run with the configuration belongs,
    which would go on from the imported network.

    Raises:
        UserError: the file, --config or --workdir is missing.
    """
    parser = command_line.ArgumentParser("interop.import_torch", __doc__, allow_abbrev=False)
    parser.add_argument("file", type=Path, help="checkpoint of PyTorch to read")
    # Named here too, so that their values are not taken for the file.
    parser.add_argument("--config", required=True, help="configuration of the network in it")
    parser.add_argument("--workdir", required=True, help="folder of the run to make")
    arguments, others = parser.parse_known_args(argv)
    named = [f"--config={arguments.config}", f"--workdir={arguments.workdir}"]
    return arguments.file, named + others


if __name__ == "__main__":
    command_line.run(main)

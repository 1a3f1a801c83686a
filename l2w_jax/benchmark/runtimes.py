"""Runtimes for a network with early exits, behind one interface so that all are timed alike."""

import copy
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from l2w_jax.early_exit import EarlyExitPredictor, rules
from l2w_jax.early_exit.latency import all_leave_at
from l2w_jax.early_exit.stages import folded_variables
from l2w_jax.errors import UserError
from l2w_jax.files import temporary_folder
from l2w_jax.interop import variables_to_torch
from l2w_jax.interop.export import writer
from l2w_jax.interop.exported_folder import ImageFormat, NetworkToExport, load_program
from l2w_jax.models import MSDNet, MultiExitNetwork
from l2w_jax.models.compiler_options import cpu_compiler_options

_RULE = rules.RULES[rules.DEFAULT_RULE]

# From images uint8 [N, H, W, 3] to whatever the network says of them.
Predict = Callable[[NDArray[Any]], Any]


@dataclasses.dataclass(frozen=True)
class Runtime:
    """A network, ready to run on stored images.

    Attributes:
        name: key of RUNTIMES.
        full_network: all exits, as fast as it runs without stopping.
        with_thresholds: from thresholds [K] of the default rule to the network that stops early.
    """

    name: str
    full_network: Predict
    with_thresholds: Callable[[ArrayLike], Predict]


def in_jax(
    model: MultiExitNetwork, variables: Mapping[str, Any], image_format: ImageFormat
) -> Runtime:
    """The predictor; its full network is compiled in one piece."""
    preprocess = image_format.preprocess

    def probabilities(variables: Mapping[str, Any], images: jax.Array) -> jax.Array:
        return jax.nn.softmax(model.apply(variables, preprocess(images), train=False))

    leaving_at_once = all_leave_at(0, model.num_exits)
    predictor = EarlyExitPredictor(model, variables, leaving_at_once, preprocess, rule=_RULE)
    image = jax.ShapeDtypeStruct((1, image_format.size, image_format.size, 3), jnp.uint8)
    placed = jax.device_put(folded_variables(model, variables, preprocess, image))
    compiled = jax.jit(probabilities, compiler_options=cpu_compiler_options())
    return Runtime(
        "jax", lambda images: jax.device_get(compiled(placed, images)), predictor.with_thresholds
    )


def in_onnx(
    name: str,
    threads: int,
    model: MultiExitNetwork,
    variables: Mapping[str, Any],
    image_format: ImageFormat,
) -> Runtime:
    """What `interop.export --format=onnx` writes, run by the program that it writes with it.

    Args:
        name: of the runtime.
        threads: threads that share an operation; 0 for one on each core.
        model: the network.
        variables: its {"params", "batch_stats"}.
        image_format: of the images to come.

    Raises:
        UserError: what this takes is not installed, the network cannot be written so, or there is
            no room for it.
    """
    write, loader = writer("onnx")
    with temporary_folder() as folder:
        everybody = all_leave_at(0, model.num_exits)
        to_export = NetworkToExport(model, variables, everybody, image_format, [], _RULE)
        write(folder, to_export)
        network = load_program(folder, loader).ExportedNetwork(folder, threads)

    with_thresholds = functools.partial(_with_thresholds, network)
    to_the_end = with_thresholds(all_leave_at(model.num_exits - 1, model.num_exits))
    return Runtime(name, to_the_end, with_thresholds)


def in_torch(
    name: str,
    memory_format: str,
    model: MultiExitNetwork,
    variables: Mapping[str, Any],
    image_format: ImageFormat,
) -> Runtime:
    """The same network in PyTorch, uncompiled, as its authors' programs run it.

    Args:
        name: of the runtime.
        memory_format: how features lie in memory, a name of `torch`'s.
        model: the network.
        variables: its {"params", "batch_stats"}.
        image_format: of the images to come.

    Raises:
        UserError: PyTorch is not installed, or the network is no MSDNet.
    """
    if not isinstance(model, MSDNet):
        raise UserError(f"--runtime={name}: runs MSDNets only, and this network is another")
    try:
        import torch
    except ImportError as error:
        raise UserError(f"--runtime: {name!r} needs PyTorch: pip install -e '.[torch]'") from error
    from l2w_jax.benchmark.torch_msdnet import EarlyExits

    mean, deviation = np.float32(image_format.mean), np.float32(image_format.deviation)
    tensors = variables_to_torch(model, variables)
    network = EarlyExits(model, tensors, mean, deviation, getattr(torch, memory_format))

    return Runtime(name, network.full_network, functools.partial(_with_thresholds, network))


def _with_thresholds(network: Any, thresholds: ArrayLike) -> Predict:
    """A copy of the network with other `thresholds`, which shares everything else with it."""
    other = copy.copy(network)
    other.thresholds = thresholds
    return other


RUNTIMES = {
    "jax": in_jax,
    "onnx": functools.partial(in_onnx, "onnx", 0),
    # A small stage may be done with a single image before a second thread has begun.
    "onnx_1_thread": functools.partial(in_onnx, "onnx_1_thread", 1),
    "torch": functools.partial(in_torch, "torch", "contiguous_format"),
    "torch_channels_last": functools.partial(in_torch, "torch_channels_last", "channels_last"),
}


def checked_runtimes(names: Sequence[str]) -> list[str]:
    """The names, if all are keys of RUNTIMES.

    Raises:
        UserError: one is not.
    """
    for name in names:
        if name not in RUNTIMES:
            raise UserError(
                f"--runtime: {name!r} is not allowed: must be one or some of {','.join(RUNTIMES)}"
            )
    return list(names)

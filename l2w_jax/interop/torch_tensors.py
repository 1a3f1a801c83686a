"""Variables to and from the tensors of the authors' PyTorch state dicts, without PyTorch.

Convolution kernels are [H, W, in, out] here and [out, in, H, W] there; linear ones [in, out] here
and [out, in] there. Values are moved, never computed with, so a round trip is exact.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from l2w_jax.config.choices import image_sizes
from l2w_jax.interop.torch_names import module_namer, weight_predictor_module_name
from l2w_jax.models import CollaborativeExits, MultiExitNetwork, WeightPredictor
from l2w_jax.models.initializers import Variables

_LEAF_NAMES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
# The number of batches that a batch norm has seen, which PyTorch counts and nothing here needs.
COUNTER = "num_batches_tracked"


def variables_from_torch(model: MultiExitNetwork, tensors: Mapping[str, np.ndarray]) -> Variables:
    """`{"params", "batch_stats"}` of `model` from the tensors of a state dict by name.

    Batch norm's counters (`num_batches_tracked`) are not needed and may be absent.

    Raises:
        ValueError: the network is not one of the authors', or a tensor is missing, extra, of the
            wrong shape or type, or not finite; a line for each.
    """
    name_module = module_namer(model)
    names = {name for name in tensors if not name.endswith(COUNTER)}
    return _from_torch(_abstract_variables(model), name_module, tensors, names)


def variables_to_torch(model: MultiExitNetwork, variables: Variables) -> dict[str, np.ndarray]:
    """The inverse of `variables_from_torch`; batch norm's counters are 0.

    Raises:
        ValueError: the network is not one of the authors'.
    """
    tensors = _to_torch(variables, module_namer(model))
    counters = {
        name.removesuffix("running_mean") + COUNTER: np.zeros((), np.int64)
        for name in tensors
        if name.endswith("running_mean")
    }
    return tensors | counters


def wpn_from_torch(tensors: Mapping[str, np.ndarray]) -> dict:
    """Parameters of the weight-prediction network from the tensors of its state dict.

    Its depth and widths are read off the tensors.

    Raises:
        ValueError: a tensor is missing, extra, of the wrong shape or type, or not finite; a line
            for each.
    """
    first, last = "first_hidden_layer.fc.weight", "output_layer.weight"
    missing = [name for name in (first, last) if name not in tensors]
    if missing:
        raise ValueError("\n".join(f"{name}: missing" for name in missing))
    # The other shapes follow from these two.
    faults = [
        f"{name}: shape {np.shape(tensors[name])} is wrong, must be two numbers above 0"
        for name in (first, last)
        if np.ndim(tensors[name]) != 2 or 0 in np.shape(tensors[name])
    ]
    if faults:
        raise ValueError("\n".join(faults))
    hidden, num_inputs = np.shape(tensors[first])
    deeper = sum(name.endswith("fc.weight") for name in tensors) - 1
    model = WeightPredictor(np.shape(tensors[last])[0], hidden, 1 + deeper)
    abstract = jax.eval_shape(
        model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, num_inputs), jnp.float32)
    )
    return _from_torch(abstract, weight_predictor_module_name, tensors, set(tensors))["params"]


def wpn_to_torch(wpn_params: dict) -> dict[str, np.ndarray]:
    """The inverse of `wpn_from_torch`.

    Raises:
        ValueError: a layer is not one of the authors' weight predictor.
    """
    return _to_torch({"params": wpn_params}, weight_predictor_module_name)


def _abstract_variables(model: MultiExitNetwork) -> Variables:
    """Shapes of the variables; no parameter's shape depends on the size of the image."""
    backbone = model.backbone if isinstance(model, CollaborativeExits) else model
    size = image_sizes(backbone.stem, backbone.num_scales)[0]
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(lambda rng, x: model.init(rng, x, train=False), jax.random.key(0), images)


def _from_torch(
    abstract: Variables,
    name_module: Callable[[tuple[str, ...]], str],
    tensors: Mapping[str, np.ndarray],
    offered: set[str],
) -> Variables:
    faults, values = [], {}
    for path, leaf in traverse_util.flatten_dict(abstract).items():
        name = _tensor_name(path, name_module)
        offered = offered - {name}
        if name not in tensors:
            faults.append(f"{name}: missing, must have shape {_torch_shape(leaf.shape)}")
            continue
        tensor = np.asarray(tensors[name])
        if tensor.shape != _torch_shape(leaf.shape):
            faults.append(
                f"{name}: shape {tensor.shape} is wrong, must be {_torch_shape(leaf.shape)}"
            )
            continue
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            faults.append(f"{name}: type {tensor.dtype} is wrong, must be a floating-point one")
            continue
        if not np.isfinite(tensor).all():
            faults.append(f"{name}: has a number that is not finite")
            continue
        values[path] = tensor.transpose(_FROM_TORCH_AXES[tensor.ndim])
    faults += [f"{name}: not a tensor of this network" for name in sorted(offered)]
    if faults:
        raise ValueError("\n".join(faults))
    return traverse_util.unflatten_dict(values)


def _to_torch(
    variables: Variables, name_module: Callable[[tuple[str, ...]], str]
) -> dict[str, np.ndarray]:
    return {
        _tensor_name(path, name_module): np.asarray(value).transpose(_TO_TORCH_AXES[value.ndim])
        for path, value in traverse_util.flatten_dict(variables).items()
    }


def _tensor_name(path: tuple[str, ...], name_module: Callable[[tuple[str, ...]], str]) -> str:
    _, *module_path, leaf = path
    return f"{name_module(tuple(module_path))}.{_LEAF_NAMES[leaf]}"


_TO_TORCH_AXES = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}
_FROM_TORCH_AXES = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(shape[axis] for axis in _TO_TORCH_AXES[len(shape)])

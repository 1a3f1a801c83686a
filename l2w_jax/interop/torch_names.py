"""What the authors' PyTorch modules call each layer of ours.

A name here is that of a module: the last component ("weight", "running_mean", …) is added by
`l2w_jax.interop.torch_tensors`.
"""

import re
from collections.abc import Callable

from l2w_jax.models import CollaborativeExits, MSDNet, MultiExitNetwork, RANet

ModulePath = tuple[str, ...]

# The position of each part in PyTorch's sequential of convolution, batch norm and ReLU, and in a
# branch of two of those.
_CONV_BN_RELU = {"conv": 0, "bn": 1}
_BRANCH = {"reduce": 0, "conv": 3}
# And in that of linear layer, batch norm and ReLU between two collaborating exits.
_HINT = {"hint": 0, "bn": 1}


def module_namer(model: MultiExitNetwork) -> Callable[[ModulePath], str]:
    """The function that gives the PyTorch name of a linen module path of `model`.

    Raises:
        ValueError: the network is none of the authors'.
    """
    for kind, name_module in _NAMERS.items():
        if isinstance(model, kind):
            return lambda path: name_module(model, path)
    raise ValueError(
        f"PyTorch names are known for {', '.join(kind.__name__ for kind in _NAMERS)}, "
        f"not for {type(model).__name__}"
    )


def weight_predictor_module_name(path: ModulePath) -> str:
    """`hidden_0` is "first_hidden_layer.fc", `hidden_i` "rest_hidden_layers.{i-1}.fc".

    Raises:
        ValueError: the layer is none of the authors' weight predictor.
    """
    name = "/".join(path)
    if name == "output":
        return "output_layer"
    hidden = re.fullmatch(r"hidden_(\d+)", name)
    if not hidden:
        raise ValueError(
            f"the weight predictor is none that the authors' programs have: its layer {name!r} "
            "must be one of hidden_0, hidden_1, … and output"
        )
    i = int(hidden[1])
    return "first_hidden_layer.fc" if i == 0 else f"rest_hidden_layers.{i - 1}.fc"


def _msdnet_module_name(model: MSDNet, path: ModulePath) -> str:
    root, *rest = path
    if root.startswith("classifiers_"):
        return _classifier_name(root, rest)
    if root == "first_layer":
        return _first_layer_name("blocks.0.0.layers", model.stem, rest)
    k = int(root.removeprefix("blocks_"))
    kind, i = rest[0].rsplit("_", 1)
    position = _sequential_position(model, k, kind, int(i))
    if kind == "transition":
        scale = rest[1].removeprefix("scale_")
        return f"blocks.{k}.{position}.m.{scale}.net.{_CONV_BN_RELU[rest[2]]}"
    scale, branch = re.fullmatch(r"scale_(\d+)_(\w+)", rest[1]).groups()
    return f"blocks.{k}.{position}.layers.{scale}.conv_{branch}.net.{_branch_position(rest[2:])}"


def _ranet_module_name(model: RANet, path: ModulePath) -> str:
    root, *rest = path
    if root.startswith("classifiers_"):
        return _classifier_name(root, rest)
    if root == "first_layer":
        return _first_layer_name("FirstLayer.layers", model.stem, rest)
    kind, i, j = root.split("_")
    prefix = f"scale_flows.{i}.{j}"
    if kind == "transitions":
        return f"{prefix}.trans.net.{_CONV_BN_RELU[rest[1]]}"
    if rest[0] == "conv_last":
        return f"{prefix}.conv_last.net.{_CONV_BN_RELU[rest[1]]}"
    _, layer, branch = rest[0].split("_")
    return f"{prefix}.layers.{layer}.conv_{branch}.net.{_branch_position(rest[1:])}"


def _collaboration_module_name(model: CollaborativeExits, path: ModulePath) -> str:
    root, *rest = path
    if root == "net":
        return f"net.{module_namer(model.backbone)(tuple(rest))}"
    k = int(root.removeprefix("classifiers_"))
    (layer,) = rest
    if layer == "linear":
        return f"classifier.{k}"
    # The first exit reads no other, so that PyTorch's list begins with the second.
    return f"isc_modules.{k - 1}.{_HINT[layer]}"


def _sequential_position(model: MSDNet, k: int, kind: str, i: int) -> int:
    """Place of layer or transition i in PyTorch's block k, where each has a place of its own."""
    before = sum(1 + (plan.transition_width is not None) for plan in model.block_plans[k][:i])
    first_layer = 1 if k == 0 else 0
    return first_layer + before + (1 if kind == "transition" else 0)


def _first_layer_name(prefix: str, stem: str, rest: list[str]) -> str:
    """Layers of the first block; ImageNet's stem is a bare sequential there, without `net`."""
    if rest[0] == "stem":
        nest = "net." if stem == "cifar" else ""
        return f"{prefix}.0.{nest}{_CONV_BN_RELU[rest[2]]}"
    scale = rest[0].removeprefix("scale_")
    return f"{prefix}.{scale}.net.{_CONV_BN_RELU[rest[1]]}"


def _classifier_name(root: str, rest: list[str]) -> str:
    k = root.removeprefix("classifiers_")
    if rest[0] == "linear":
        return f"classifier.{k}.linear"
    i = rest[0].removeprefix("conv_")
    return f"classifier.{k}.m.{i}.net.{_CONV_BN_RELU[rest[1]]}"


def _branch_position(parts: list[str]) -> int:
    """Place of ("reduce" | "conv", "conv" | "bn") in a branch."""
    return _BRANCH[parts[0]] + _CONV_BN_RELU[parts[1]]


_NAMERS = {
    MSDNet: _msdnet_module_name,
    RANet: _ranet_module_name,
    CollaborativeExits: _collaboration_module_name,
}

"""Ways in and out: the authors' PyTorch tensors, StableHLO and ONNX."""

from l2w_jax.interop.torch_tensors import (
    variables_from_torch,
    variables_to_torch,
    wpn_from_torch,
    wpn_to_torch,
)

__all__ = ["variables_from_torch", "variables_to_torch", "wpn_from_torch", "wpn_to_torch"]

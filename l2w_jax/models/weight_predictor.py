"""The weight-prediction network g (Han et al., ECCV 2022, section 3.2)."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from l2w_jax.models.initializers import torch_default
from l2w_jax.models.precision import parameter_dtype


class WeightPredictor(nn.Module):
    """An MLP from what a sample looks like at the K exits to one number in (-1, 1) for each exit.

    Attributes:
        num_exits: K, the number of outputs.
        hidden: width of the hidden layers.
        num_layers: number of hidden layers.
        dtype: type of the computation; never below float32.
    """

    num_exits: int
    hidden: int = 500
    num_layers: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """[N, K] losses or confidences, or [N, 2K] losses and confidences -> [N, K]."""
        x = inputs
        for i in range(self.num_layers):
            x = nn.relu(self._linear(x, self.hidden, f"hidden_{i}"))
        return jnp.tanh(self._linear(x, self.num_exits, "output"))

    def _linear(self, x: jax.Array, features: int, name: str) -> jax.Array:
        init = torch_default(x.shape[-1])
        dtype = parameter_dtype(self.dtype)
        return nn.Dense(
            features, dtype=dtype, param_dtype=dtype, kernel_init=init, bias_init=init, name=name
        )(x)

"""What every multi-exit network offers: its exits one by one, or all at once."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

Carry = Any


class MultiExitNetwork(nn.Module):
    """A network with K classifiers, run stage by stage.

    A subclass is a linen module (with `setup`, since several methods share its layers) that
    defines `num_exits`, `init_carry` and `stage`. That is all that training, evaluation and early
    exit ask for. Every batch norm in it should take `axis_name=self.axis_name`, so that its
    statistics are those of the batch of all devices.

    Attributes:
        axis_name: name of the device axis that the network runs under, or None. The training step
            sets it.
        dtype: type of the computation: float32, bfloat16, or float64 under `jax_enable_x64`.
    """

    axis_name: str | None = dataclasses.field(default=None, kw_only=True)
    dtype: jnp.dtype = dataclasses.field(default=jnp.float32, kw_only=True)

    @property
    def num_exits(self) -> int:
        """K, the number of classifiers."""
        raise NotImplementedError(f"{type(self).__name__} must define the property num_exits")

    def init_carry(self, images: jax.Array, train: bool) -> Carry:
        """What stage 0 starts from: any pytree of arrays whose leading axis is the batch."""
        raise NotImplementedError(f"{type(self).__name__} must define init_carry(images, train)")

    def stage(self, k: int, carry: Carry, train: bool) -> tuple[jax.Array, Carry]:
        """Block k (from 0) and its exit: logits [N, C] and what stage k + 1 starts from."""
        raise NotImplementedError(f"{type(self).__name__} must define stage(k, carry, train)")

    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Logits of all exits, [N, H, W, 3] -> [K, N, C]."""
        carry = self.init_carry(images, train)
        logits = []
        for k in range(self.num_exits):
            exit_logits, carry = self.stage(k, carry, train)
            logits.append(exit_logits)
        return jnp.stack(logits)

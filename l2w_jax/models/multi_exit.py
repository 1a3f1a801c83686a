"""What every multi-exit network offers: its exits one by one, or all at once."""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.errors import InvalidRngError, ScopeParamShapeError

from l2w_jax.models.initializers import Variables

Carry = Any


class MultiExitNetwork(nn.Module):
    """A network with K classifiers, run stage by stage.

    A subclass is a linen module (with `setup`, since several methods share its layers) that
    defines `num_exits`, `init_carry` and `stage`. That is all that training, evaluation and early
    exit ask for. Every batch norm in it should take `axis_name=self.axis_name`, so that its
    statistics are those of the batch of all devices.

    Its images are normalised floating-point arrays [N, ...] of any one shape: [N, H, W, 3] in the
    recipes, but also one channel, or signals [N, T, C]; `create_train_state` and
    `mul_adds_per_exit` must then be given their shape. Integers are taken for stored images, so
    tokens [N, T] come as floating-point numbers, which `init_carry` makes integers again.

    In training it must draw no random numbers, as dropout would: a half-step passes the same images
    several times, and all passes must be of the same function.

    For the training of Li et al., ICCV 2019, it defines `stage_with_features` in place of `stage`,
    and calls `balance_gradients` on what each classifier reads; for collaboration also
    `num_classes`, C.

    Attributes:
        num_exits: K, the number of classifiers; a field or a property of the subclass.
        axis_name: name of the device axis that the network runs under, or None. The training step
            sets it.
        dtype: type of the computation: float32, bfloat16, or float64 under `jax_enable_x64`. Layers
            compute in it only where `setup` passes it on, as `dtype=self.dtype`.
        gradient_equilibrium: whether `balance_gradients` does anything.
    """

    axis_name: str | None = dataclasses.field(default=None, kw_only=True)
    dtype: jnp.dtype = dataclasses.field(default=jnp.float32, kw_only=True)
    gradient_equilibrium: bool = dataclasses.field(default=False, kw_only=True)

    num_exits: ClassVar[int]

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of the top-level parts whose parameters training leaves as they are."""
        return ()

    def init_carry(self, images: jax.Array, train: bool) -> Carry:
        """What stage 0 starts from: any pytree of arrays whose leading axis is the batch."""
        raise NotImplementedError(f"{type(self).__name__} must define init_carry(images, train)")

    def stage(self, k: int, carry: Carry, train: bool) -> tuple[jax.Array, Carry]:
        """Block k (from 0) and its exit: logits [N, C] and what stage k + 1 starts from."""
        _, logits, carry = self.stage_with_features(k, carry, train)
        return logits, carry

    def stage_with_features(
        self, k: int, carry: Carry, train: bool
    ) -> tuple[jax.Array, jax.Array, Carry]:
        """`stage`, preceded by the pooled features [N, F] that the exit's linear layer reads."""
        raise NotImplementedError(
            f"{type(self).__name__} must define stage(k, carry, train) or stage_with_features"
        )

    def balance_gradients(self, k: int, features: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The exit's features as classifier k (from 0) and as later blocks should read them.

        Both are `features`. With gradient equilibrium (Li et al., ICCV 2019) what flows back from
        classifier k is scaled by 1/(K-k), and what flows back from later blocks by (K-k-1)/(K-k),
        so that a block's gradient does not grow with the number of exits after it.
        """
        if not self.gradient_equilibrium:
            return features, features
        exits_left = self.num_exits - k
        features = scale_gradient(features, 1 / exits_left)
        return features, scale_gradient(features, exits_left - 1)

    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Logits of all exits, images [N, ...] -> [K, N, C]."""
        carry = self.init_carry(images, train)
        logits = []
        for k in range(self.num_exits):
            exit_logits, carry = self.stage(k, carry, train)
            logits.append(exit_logits)
        return jnp.stack(logits)


def apply_in_training(
    model: MultiExitNetwork, variables: Variables, images: jax.Array, method: str = "__call__"
) -> tuple[Any, Any]:
    """What `method` makes of images in training mode, and the moved running statistics.

    Args:
        model: the network.
        variables: its {"params", "batch_stats"}.
        images: [N, ...], normalised.
        method: of the network, which takes images and `train`.

    Raises:
        ValueError: the images are not floating-point, the variables are not for their shape, or
            the network draws random numbers.
    """
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images are {images.dtype}; training takes normalised floating-point images"
        )
    try:
        outputs, moved = model.apply(
            variables, images, train=True, mutable=["batch_stats"], method=method
        )
    except InvalidRngError as error:
        raise ValueError(
            f"{type(model).__name__} draws random numbers in training, which is not allowed: a "
            "half-step passes the same images several times, through the same function"
        ) from error
    except ScopeParamShapeError as error:
        raise ValueError(
            f"images have shape {images.shape}, which the variables are not for; "
            f"create_train_state(config, rng, images) makes them for the shape of images: {error}"
        ) from error
    return outputs, moved.get("batch_stats", {})


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def scale_gradient(x: jax.Array, scale: float) -> jax.Array:
    """`x` itself, whose derivative is taken to be `scale` instead of 1."""
    del scale
    return x


@scale_gradient.defjvp
def _scale_tangent(
    scale: float, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    return primals[0], scale * tangents[0]

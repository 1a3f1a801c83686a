"""What compilers of different platforms are to do differently."""

import functools
from typing import TypeVar

import jax
import jax.numpy as jnp

Tree = TypeVar("Tree")


def apart_on_tpus(tree: Tree) -> Tree:
    """`tree`, which a TPU's compiler is to compute outside the kernels that read it.

    Kernels of the same layer in the passes of a step are then the very same, and it compiles them
    once. Other platforms' compilers, which compile less for each kernel, may do as they like: for
    GPUs it would be more kernels and memory traffic.
    """
    return jax.lax.platform_dependent(
        tree, tpu=jax.lax.optimization_barrier, default=lambda tree: tree
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def cast_once(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """`x` in `dtype`, on TPUs cast once instead of by each kernel that reads it.

    Left to itself a TPU's compiler casts some parameters within convolutions and others before.
    Gradients are cast where it suits the compiler.
    """
    return x if x.dtype == dtype else apart_on_tpus(x.astype(dtype))


@cast_once.defjvp
def _tangent_of_cast(dtype, primals, tangents):
    return cast_once(*primals, dtype), tangents[0].astype(dtype)

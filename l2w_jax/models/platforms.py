"""What compilers of different platforms are to do differently."""

from typing import TypeVar

import jax

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

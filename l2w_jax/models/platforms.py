"""What compilers of different platforms are to do differently."""

import functools
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Tree = TypeVar("Tree")


def apart_on_tpus(tree: Tree) -> Tree:
    """`tree`, which a TPU's compiler is to compute outside the kernels that read it.

    The kernels of a layer are then the very same in all passes of a step, and it compiles them
    once. Other platforms' compilers, which spend less on each kernel, may do as they like: for GPUs
    it would mean more kernels and memory traffic.
    """
    return jax.lax.platform_dependent(
        tree, tpu=jax.lax.optimization_barrier, default=lambda tree: tree
    )


def made_after(earlier: Tree, params: Tree) -> Tree:
    """`params`, which XLA cannot read before `earlier`, of the same structure and finite, is there.

    Without this a forward pass at `params` is made as soon as possible, and all that it leaves
    waits in memory for its derivative. For the pipelined schedule that would take 1.6 times the
    temporary memory of the step. On a TPU this takes no kernels; on a CPU XLA drops
    `optimization_barrier` before it orders its operations.
    """
    return jax.lax.platform_dependent(
        earlier,
        params,
        tpu=lambda earlier, params: jax.lax.optimization_barrier((earlier, params))[1],
        default=lambda earlier, params: jax.tree.map(lambda x, y: x + 0 * y, params, earlier),
    )


def gradient_apart(x: jax.Array) -> jax.Array:
    """`x`, whose gradient is `apart_on_tpus`; x and its tangent are left to the compiler.

    Where x is concatenated to a larger map, its gradient is a slice of that map's. If taken within
    the derivatives of the convolution that made x, the slice would make each a kernel of its own;
    kept apart, layers of equal shape share their kernels.
    """
    return _gradient_apart.bind(x)


_gradient_apart = Primitive("gradient_apart")
_gradient_apart.def_impl(lambda x: x)
_gradient_apart.def_abstract_eval(lambda x: x)
mlir.register_lowering(_gradient_apart, mlir.lower_fun(lambda x: x, multiple_results=False))
batching.defvectorized(_gradient_apart)
ad.deflinear2(_gradient_apart, lambda gradient, _: [apart_on_tpus(gradient)])


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def cast_once(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """`x` in `dtype`, on TPUs cast once instead of by each kernel that reads it.

    Left to itself, a TPU's compiler casts some parameters within convolutions and others before.
    Gradients are cast where it suits the compiler.
    """
    return x if x.dtype == dtype else apart_on_tpus(x.astype(dtype))


@cast_once.defjvp
def _tangent_of_cast(dtype, primals, tangents):
    return cast_once(*primals, dtype), tangents[0].astype(dtype)

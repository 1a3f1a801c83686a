"""Initial values: PyTorch's defaults and RANet's, and a way to draw them all without compiling.

Linen draws every parameter by a kernel of its own, and a multi-exit network has hundreds: a jitted
`model.init` spends most of a minute in the compiler. The initialisers here can also draw with
NumPy, which `initial_variables` uses.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from typing_extensions import override

from l2w_jax.models.compiler_options import cpu_options_for_a_single_run

Variables = dict[str, dict]


class HostInitializer(Protocol):
    """A linen initialiser that can also draw from the same distribution with NumPy."""

    def __call__(self, key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        """A draw by `jax.random`, for `model.init`."""
        ...

    def draw(self, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """A draw by NumPy, for `initial_variables`."""
        ...


@dataclasses.dataclass(frozen=True)
class Uniform(HostInitializer):
    """Uniform in [-bound, bound].

    With bound = 1/sqrt(fan_in) this is what PyTorch gives the weights and the biases of its
    convolution and linear layers.
    """

    bound: float

    @override
    def __call__(
        self, key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32
    ) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -self.bound, self.bound)

    @override
    def draw(self, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return generator.uniform(-self.bound, self.bound, shape)


@dataclasses.dataclass(frozen=True)
class TorchDefaultKernel(HostInitializer):
    """PyTorch's default for a kernel [..., in, out]: uniform in ±1/sqrt(fan_in), by its shape."""

    @override
    def __call__(
        self, key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32
    ) -> jax.Array:
        return torch_default(math.prod(shape[:-1]))(key, shape, dtype)

    @override
    def draw(self, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return torch_default(math.prod(shape[:-1])).draw(generator, shape)


@dataclasses.dataclass(frozen=True)
class Normal(HostInitializer):
    """Normal with mean 0 and the given standard deviation."""

    stddev: float

    @override
    def __call__(
        self, key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32
    ) -> jax.Array:
        return self.stddev * jax.random.normal(key, shape, dtype)

    @override
    def draw(self, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return generator.normal(0.0, self.stddev, shape)


@dataclasses.dataclass(frozen=True)
class Constant(HostInitializer):
    """The same value everywhere: batch norm's scale and shift, RANet's linear bias."""

    value: float

    @override
    def __call__(
        self, key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32
    ) -> jax.Array:
        del key
        return jnp.full(shape, self.value, dtype)

    @override
    def draw(self, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        del generator
        return np.full(shape, self.value)


def torch_default(fan_in: int) -> Uniform:
    """PyTorch's default for weights and biases: uniform in ±1/sqrt(fan_in)."""
    return Uniform(fan_in**-0.5)


def fan_out_normal(kernel_size: int, features: int) -> Normal:
    """Standard deviation sqrt(2 / (k² · out)) (He et al., ICCV 2015, backward case)."""
    return Normal((2.0 / (kernel_size**2 * features)) ** 0.5)


_PARAMETER_INITIALIZERS = {"kernel": "kernel_init", "bias": "bias_init", "scale": "scale_init"}
_STATISTICS = {"mean": 0.0, "var": 1.0}


def initial_variables(
    model: nn.Module, rng: jax.Array, *inputs: jax.ShapeDtypeStruct, **static: Any
) -> Variables:
    """Initial `{"params", "batch_stats"}` of `model`, distributed as `model.init` draws them.

    The shapes come from an abstract run, during which each layer's own initialisers are noted;
    the values are then drawn with NumPy from a generator seeded by `rng`. A network with a
    parameter whose initialiser has no NumPy form falls back to a jitted `model.init`. In a
    function that is traced, as by `jax.eval_shape`, `model.init` is used, and nothing is drawn.

    Args:
        model: any linen module.
        rng: a `jax.random` key.
        *inputs: shapes and types of the arrays that `model.__call__` takes.
        **static: its other arguments.
    """
    init = functools.partial(model.init, **static)
    if isinstance(rng, jax.core.Tracer):
        return init(rng, *_zeros(inputs))
    initializers: dict[tuple[str, ...], Callable] = {}

    def note_initializers(call, args, kwargs, context):
        for parameter, attribute in _PARAMETER_INITIALIZERS.items():
            if hasattr(context.module, attribute):
                path = (*context.module.path, parameter)
                initializers[path] = getattr(context.module, attribute)
        return call(*args, **kwargs)

    with nn.intercept_methods(note_initializers):
        abstract = jax.eval_shape(init, rng, *inputs)

    leaves = traverse_util.flatten_dict(abstract)
    draws = {path: _host_draw(path, initializers) for path in leaves}
    if any(draw is None for draw in draws.values()):
        options = cpu_options_for_a_single_run()
        return jax.jit(init, compiler_options=options)(rng, *_zeros(inputs))
    generator = np.random.default_rng(np.asarray(jax.random.key_data(rng)).tolist())
    values = {
        path: draws[path](generator, leaf.shape).astype(leaf.dtype)
        for path, leaf in sorted(leaves.items())
    }
    return jax.device_put(traverse_util.unflatten_dict(values))


def _zeros(specs: Sequence[jax.ShapeDtypeStruct]) -> list[jax.Array]:
    return [jnp.zeros(spec.shape, spec.dtype) for spec in specs]


def _host_draw(path, initializers):
    """How NumPy draws the variable at `path`, or None where it cannot."""
    collection, *names = path
    if collection == "batch_stats" and names[-1] in _STATISTICS:
        return Constant(_STATISTICS[names[-1]]).draw
    return getattr(initializers.get(tuple(names)), "draw", None)

"""Layers compute what their simplest formulation does."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from pytrees import assert_close

from l2w_jax.models.layers import (
    BatchNorm,
    ConvBNReLU,
    LayerOptions,
    from_one_input,
    side_by_side,
)

FLOAT64 = LayerOptions(jnp.float64)


@pytest.fixture(autouse=True)
def _x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.bfloat16])
@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_is_that_of_flax(train, dtype):
    x = jax.random.normal(jax.random.key(0), (3, 4, 5, 6), jnp.float64).astype(dtype) + 2
    options = LayerOptions(dtype)
    ours = BatchNorm(options)
    theirs = nn.BatchNorm(
        not train,
        momentum=0.9,
        epsilon=1e-5,
        dtype=dtype,
        param_dtype=options.param_dtype,
        use_fast_variance=False,
    )
    variables = theirs.init(jax.random.key(1), x)
    variables = jax.tree.map(lambda v: v + 0.1 * jnp.arange(6, dtype=v.dtype), variables)
    initial = ours.init(jax.random.key(1), x, train)
    assert jax.tree.map(jnp.shape, initial) == jax.tree.map(jnp.shape, variables)
    y, moved = ours.apply(variables, x, train, mutable=["batch_stats"])
    expected, expected_moved = theirs.apply(variables, x, mutable=["batch_stats"])
    assert y.dtype == dtype
    assert_close(y.astype(jnp.float64), expected.astype(jnp.float64))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), moved, expected_moved)


def test_derivatives_of_batch_norm_are_those_of_its_operations():
    keys = jax.random.split(jax.random.key(0), 5)
    x, probe = (jax.random.normal(key, (3, 4, 5, 6)) for key in keys[:2])
    tangents = jax.random.normal(keys[2], x.shape), *jax.random.normal(keys[3], (2, 6))
    arguments = 3 * x + 1, *jnp.exp(jax.random.normal(keys[4], (2, 6)))

    def ours(x, scale, bias):
        variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": initial}
        return BatchNorm(FLOAT64).apply(variables, x, True, mutable=["batch_stats"])[0]

    initial = BatchNorm(FLOAT64).init(keys[0], x, True)["batch_stats"]

    def operations(x, scale, bias):
        deviation = x - x.mean((0, 1, 2))
        return scale * deviation / jnp.sqrt((deviation**2).mean((0, 1, 2)) + 1e-5) + bias

    def derivatives(function):
        def gradient(*arguments):
            return jax.vjp(function, *arguments)[1](probe)

        # The last is what the meta-gradient needs: the transposed map, differentiated.
        return jax.jvp(function, arguments, tangents), jax.jvp(gradient, arguments, tangents)

    assert_close(*(jax.jit(derivatives, static_argnums=0)(f) for f in (ours, operations)))


def test_batch_norm_sums_twice_forward_and_twice_backward():
    norm = BatchNorm(LayerOptions())
    x = jnp.ones((4, 8, 8, 6), jnp.float32)
    variables = norm.init(jax.random.key(0), x, True)

    def normalized(x, params):
        variables_of = {**variables, "params": params}
        return norm.apply(variables_of, x, True, mutable=["batch_stats"])[0]

    def value_and_gradient(x, params, cotangent):
        y, pull_back = jax.vjp(normalized, x, params)
        return y, pull_back(cotangent)

    def num_sums(function, *arguments):
        text = jax.jit(function).lower(*arguments).compile().as_text()
        return len(re.findall(r" reduce\(", text))

    assert num_sums(normalized, x, variables["params"]) == 2
    assert num_sums(value_and_gradient, x, variables["params"], x) == 4


class TwoLayers(nn.Module):
    """Two layers, alone or together."""

    kernel_size: int

    def setup(self):
        self.wide = ConvBNReLU(7, self.kernel_size, FLOAT64)
        self.narrow = ConvBNReLU(3, self.kernel_size, FLOAT64)

    def __call__(self, x, y, train):
        return [self.wide(x, train), self.narrow(y, train)]

    def side_by_side(self, x, y, train):
        return side_by_side([self.wide, self.narrow], [x, y], train)

    def from_one_input(self, x, train):
        return from_one_input([self.wide, self.narrow], x, train)


@pytest.mark.parametrize("train", [True, False])
def test_layers_together_give_what_they_give_alone(train):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, 6, 6, 5))
    y = jax.random.normal(keys[1], (2, 6, 6, 4))

    def both_ways(layers, inputs, together):
        init = jax.jit(functools.partial(layers.init, train=train))
        variables = init(keys[2], *inputs)
        variables = jax.tree.map(lambda v: v + 0.1 * jnp.arange(v.shape[-1]), variables)

        @functools.partial(jax.jit, static_argnums=1)
        def outputs_and_gradient(inputs, method):
            def run(params):
                y, moved = layers.apply(
                    {**variables, "params": params},
                    *inputs,
                    train,
                    mutable=["batch_stats"],
                    method=method,
                )
                y = jnp.concatenate(y, -1) if isinstance(y, list) else y
                return y, moved

            y, pull_back, moved = jax.vjp(run, variables["params"], has_aux=True)
            return y, pull_back(jnp.cos(y)), moved

        shared = inputs[:1] if together == "from_one_input" else inputs
        assert_close(
            outputs_and_gradient(shared, together), outputs_and_gradient(inputs, "__call__")
        )

    both_ways(TwoLayers(3), (x, y), "side_by_side")
    both_ways(TwoLayers(1), (x, x), "from_one_input")


def test_the_gradient_of_what_extends_a_map_is_kept_apart_on_tpus():
    x, y = jnp.ones((2, 4, 4, 5)), jnp.ones((2, 4, 4, 6))
    layers = TwoLayers(3)
    variables = layers.init(jax.random.key(0), x, y, False)

    def loss(params, method):
        outputs, _ = layers.apply(
            {**variables, "params": params}, x, y, True, method=method, mutable=["batch_stats"]
        )
        return sum(jnp.sum(output) for output in outputs)

    def num_barriers(method):
        traced = jax.jit(jax.grad(lambda params: loss(params, method))).trace(variables["params"])
        return traced.lower(lowering_platforms=("tpu",)).as_text().count("optimization_barrier")

    assert num_barriers("side_by_side") == num_barriers("__call__") + 1


def test_statistics_over_devices_keep_small_deviations_from_a_large_mean():
    """E[x²] - E[x]² in float32 would lose them, and so would a variance within devices alone."""
    noise = jax.random.normal(jax.random.key(0), (4, 8, 3, 3, 5), jnp.float32)
    x = 1e4 + noise + jnp.arange(4, dtype=jnp.float32).reshape(4, 1, 1, 1, 1)
    norm = BatchNorm(LayerOptions(axis_name="devices"))
    variables = norm.init(jax.random.key(0), x[0], train=False)

    def on_device(x):
        return norm.apply(variables, x, train=True, mutable=["batch_stats"])

    y, moved = jax.vmap(on_device, axis_name="devices")(x)
    exact = np.asarray(x, np.float64)
    mean, variance = exact.mean(axis=(0, 1, 2, 3)), exact.var(axis=(0, 1, 2, 3))
    np.testing.assert_allclose(y, (exact - mean) / np.sqrt(variance + 1e-5), atol=5e-3)
    for of_device in moved["batch_stats"]["var"]:
        np.testing.assert_allclose(of_device, 0.9 + 0.1 * variance, rtol=1e-4)

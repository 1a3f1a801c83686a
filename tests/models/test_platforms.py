"""Compilers are told what their platform needs, and values stay what they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pytrees import assert_close

from l2w_jax.models.platforms import apart_on_tpus, cast_once, gradient_apart, made_after


def cubes(tree):
    return jax.tree.map(lambda x: x**3, apart_on_tpus(tree))


def num_barriers(function, operand, platform):
    traced = jax.jit(function).trace(operand)
    return traced.lower(lowering_platforms=(platform,)).as_text().count("optimization_barrier")


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_only_a_tpu_keeps_it_apart_also_on_the_way_back(platform):
    def total(tree):
        return sum(map(jnp.sum, jax.tree.leaves(cubes(tree))))

    tree = {"a": jnp.ones(3), "b": jnp.ones((2, 2))}
    assert num_barriers(total, tree, platform) == (platform == "tpu")
    assert num_barriers(jax.grad(total), tree, platform) == 2 * (platform == "tpu")


def test_values_and_derivatives_are_those_without_it():
    tree = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([[3.0]])}
    values, pull_back = jax.vjp(cubes, tree)
    _, tangents = jax.jvp(cubes, (tree,), (tree,))
    (gradients,) = pull_back(tree)
    jax.tree.map(lambda y, x: np.testing.assert_array_equal(y, x**3), values, tree)
    for derivatives in (tangents, gradients):
        jax.tree.map(lambda d, x: np.testing.assert_allclose(d, 3 * x**3), derivatives, tree)


def test_parameters_are_cast_apart_and_their_gradients_as_ever():
    x = jnp.linspace(-1, 1, 12, dtype=jnp.float32).reshape(3, 4)

    def value_and_gradient(cast, dtype):
        return jax.value_and_grad(lambda x: (cast(x, dtype) ** 3).sum().astype(jnp.float32))

    ours = value_and_gradient(cast_once, jnp.bfloat16)
    theirs = value_and_gradient(lambda x, dtype: x.astype(dtype), jnp.bfloat16)
    assert_close(ours(x), theirs(x))
    assert num_barriers(ours, x, "tpu") == 1
    assert num_barriers(value_and_gradient(cast_once, jnp.float32), x, "tpu") == 0


def test_only_a_gradient_is_kept_apart_and_only_on_a_tpu():
    x = jnp.linspace(-1, 1, 6)

    def cubes(x):
        return gradient_apart(x) ** 3

    def gradient(x):
        return jax.grad(lambda x: cubes(x).sum())(x)

    def tangent(x):
        return jax.jvp(cubes, (x,), (x,))[1]

    np.testing.assert_allclose(gradient(x), 3 * x**2, rtol=1e-6)
    np.testing.assert_allclose(tangent(x), 3 * x**3, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(cubes))(x), 3 * x**2, rtol=1e-6)
    assert num_barriers(gradient, x, "tpu") == 1
    assert num_barriers(gradient, x, "cpu") == 0
    assert num_barriers(tangent, x, "tpu") == num_barriers(cubes, x, "tpu") == 0


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_parameters_wait_for_what_is_earlier_and_stay_what_they_are(platform):
    params = {"a": jnp.array([1.0, -2.0]), "b": jnp.array(3.0)}
    earlier = jax.tree.map(lambda x: x + 1, params)
    assert_close(made_after(earlier, params), params)

    def changed(earlier):
        return made_after(jax.tree.map(jnp.exp, earlier), params)

    lowered = jax.jit(changed).trace(earlier).lower(lowering_platforms=(platform,)).as_text()
    assert lowered.count("stablehlo.exponential") == 2
    assert lowered.count("optimization_barrier") == (platform == "tpu")

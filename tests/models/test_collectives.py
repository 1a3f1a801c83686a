"""Devices tell one another what they have, and what it makes together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2w_jax.models.collectives import gather_rows, gathered, mean_over

TREE = {"a": jnp.arange(12.0).reshape(4, 3), "b": jnp.array([1.0, -1.0, 5.0, 2.0])}


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32])
def test_every_device_has_what_all_have_in_their_order(shape, dtype):
    x = jax.random.normal(jax.random.key(0), (4, *shape)) * 100
    x = x.astype(dtype)
    of_devices = jax.vmap(lambda x: gathered("devices", x), axis_name="devices")(x)
    for of_device in of_devices:
        assert of_device.dtype == dtype
        np.testing.assert_array_equal(of_device, x)


def test_what_is_not_a_number_stays_with_its_device():
    x = jnp.array([1.0, jnp.nan, jnp.inf])
    of_devices = jax.vmap(lambda x: gathered("devices", x), axis_name="devices")(x)
    np.testing.assert_array_equal(of_devices, np.tile(x, (3, 1)))


def test_a_mean_is_that_of_all_devices_on_each():
    means = jax.vmap(lambda tree: mean_over("devices", tree), axis_name="devices")(TREE)
    for name, x in TREE.items():
        for of_device in means[name]:
            np.testing.assert_allclose(of_device, x.mean(axis=0), rtol=1e-6)


def test_nothing_is_computed_after_an_exchange():
    """On a TPU each array that is divided after it would be a kernel of its own."""
    of_device = jax.tree.map(lambda x: x[0], TREE)
    traced = jax.make_jaxpr(lambda tree: mean_over("devices", tree), axis_env=[("devices", 4)])
    operations = [equation.primitive.name for equation in traced(of_device).eqns]
    exchanges = [name.startswith("psum") for name in operations]
    assert any(exchanges)
    assert exchanges == sorted(exchanges)


def test_rows_are_gathered_by_a_sum_which_compilers_join_with_others():
    def gather(x):
        return gather_rows("device", x)

    traced = jax.make_jaxpr(gather, axis_env=[("device", 8)])(jnp.ones((4, 3)))
    assert traced.out_avals[0].shape == (32, 3)
    assert "psum" in str(traced) and "all_gather" not in str(traced)

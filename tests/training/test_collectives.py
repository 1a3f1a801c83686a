"""What devices make together."""

import jax
import jax.numpy as jnp
import numpy as np

from l2w_jax.training.collectives import mean_over

TREE = {"a": jnp.arange(12.0).reshape(4, 3), "b": jnp.array([1.0, -1.0, 5.0, 2.0])}


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

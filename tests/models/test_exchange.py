"""Devices tell one another what they have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2w_jax.models.exchange import gathered


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

"""Means and variances of channels, whatever their mean is and whatever type they are in."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2w_jax.models.normalization import batch_normalize


def statistics(x, axis_name=None):
    """Of x [..., C]: mean and variance, as a batch norm finds them."""
    ones = jnp.ones(x.shape[-1])
    return batch_normalize(x, ones, 0 * ones, axis_name)[1:]


def exactly(x):
    x = np.asarray(x, np.float64)
    axes = tuple(range(x.ndim - 1))
    return x.mean(axis=axes), x.var(axis=axes)


@pytest.mark.parametrize("mean", [0, 1, 10, 100, 1000])
def test_one_pass_loses_less_than_the_rounding_to_bfloat16_has_changed(mean):
    drawn = mean + np.random.default_rng(0).standard_normal((64, 16, 16, 4))
    rounded = jnp.asarray(drawn, jnp.bfloat16)
    _, variance = statistics(rounded)
    _, of_rounded = exactly(rounded)
    # Of an error spread evenly over ±2⁻⁹·|x|.
    of_rounding = np.square(drawn).mean(axis=(0, 1, 2)) * 2.0**-18 / 3
    assert np.all(np.abs(variance - of_rounded) < of_rounding)


def test_channels_of_one_value_each_stay_finite_in_one_pass():
    """Though the mean square then differs from the squared mean by rounding, either way."""
    of_channels = jnp.asarray(np.random.default_rng(0).uniform(1, 1e4, 400), jnp.bfloat16)
    x = jnp.broadcast_to(of_channels, (7, 11, 13, 400))
    ones = jnp.ones(400)
    y, _, variance = batch_normalize(x, ones, 0 * ones, None)
    assert np.all(variance >= 0)
    assert np.all(np.isfinite(y))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("outlier", [0, 5])
def test_devices_find_the_statistics_of_all_their_images(dtype, outlier):
    """Also where one of them, the first or another, has other images than the rest."""
    x = np.random.default_rng(0).standard_normal((8, 4, 3, 3, 6))
    x[outlier] += 30
    x = jnp.asarray(x, dtype)
    mean, variance = jax.vmap(lambda x: statistics(x, "devices"), axis_name="devices")(x)
    exact_mean, exact_variance = exactly(x)
    for device in range(8):
        np.testing.assert_allclose(mean[device], exact_mean, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(variance[device], exact_variance, rtol=3e-6)


def test_both_sums_of_one_pass_are_there_before_they_are_exchanged():
    """Else a TPU's compiler makes two exchanges of some."""
    x = jnp.ones((4, 3, 3, 6), jnp.bfloat16)
    traced = jax.make_jaxpr(lambda x: statistics(x, "devices"), axis_env=[("devices", 8)])(x)
    operations = re.findall(r"= (reduce_sum|optimization_barrier|psum)\b", str(traced))
    assert operations == ["reduce_sum"] * 2 + ["optimization_barrier"] + ["psum"] * 2


@pytest.mark.parametrize(("dtype", "shape"), [(jnp.float32, (8, 6)), (jnp.bfloat16, (6,))])
def test_what_devices_exchange_in_bfloat16_does_not_grow_with_their_number(dtype, shape):
    x = jnp.ones((4, 3, 3, 6), dtype)
    traced = str(jax.make_jaxpr(lambda x: statistics(x, "devices"), axis_env=[("devices", 8)])(x))
    exchanged = re.findall(r":f32\[([\d,]*)\] = psum", traced)
    assert exchanged
    assert {tuple(map(int, sizes.split(","))) for sizes in exchanged} == {shape}

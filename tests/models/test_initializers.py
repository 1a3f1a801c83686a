"""Initial values: their distribution, and that they are drawn without compiling."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util
from golden_files import config_of, load
from small_networks import network

from l2w_jax.models import WeightPredictor, create_model, initial_variables
from l2w_jax.models.initializers import Normal, Uniform
from l2w_jax.training import create_train_state

IMAGES = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)


@pytest.fixture(scope="module")
def tiny():
    return create_model(config_of(load("models")["msdnet_tiny"]["config"]).model)


def test_shapes_and_types_are_those_of_init(tiny):
    expected = jax.eval_shape(lambda k, x: tiny.init(k, x, train=False), jax.random.key(0), IMAGES)
    drawn = initial_variables(tiny, jax.random.key(0), IMAGES, train=False)
    assert jax.tree.structure(drawn) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(drawn), jax.tree.leaves(expected), strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)


@functools.cache
def initial_params(kind):
    """By path. Of a thousand classes, so that biases are enough to tell how they are spread."""
    model = network(kind, num_classes=1000)
    variables = initial_variables(model, jax.random.key(3), IMAGES, train=False)
    return traverse_util.flatten_dict(jax.device_get(variables["params"]))


def layers_of(params):
    """The path of each linear or convolutional layer, with its kernel and its bias or None."""
    kernels = {path[:-1]: value for path, value in params.items() if path[-1] == "kernel"}
    return [(path, kernel, params.get((*path, "bias"))) for path, kernel in kernels.items()]


@pytest.mark.parametrize("kind", ["msdnet", "ranet", "imta"])
def test_batch_norms_leave_what_they_have_normalised(kind):
    params = initial_params(kind)
    scales = [path[:-1] for path in params if path[-1] == "scale"]
    assert len(scales) > 30
    for path in scales:
        assert np.all(params[(*path, "scale")] == 1), path
        assert np.all(params[(*path, "bias")] == 0), path


def assert_spread(value, expected, kurtosis, path):
    """The root mean square of independent draws, to four of its standard errors."""
    tolerance = 4 * ((kurtosis - 1) / (4 * value.size)) ** 0.5
    assert np.sqrt(np.mean(value**2)) == pytest.approx(expected, rel=tolerance), path


def assert_uniform(value, fan_in, path):
    bound = fan_in**-0.5
    assert np.abs(value).max() <= bound, path
    assert_spread(value, bound / np.sqrt(3), 1.8, path)


@pytest.mark.parametrize(("kind", "num_biases"), [("msdnet", 2), ("imagenet", 3), ("imta", 5)])
def test_weights_and_biases_are_uniform_within_one_over_root_fan_in(kind, num_biases):
    biases = []
    for path, kernel, bias in layers_of(initial_params(kind)):
        fan_in = np.prod(kernel.shape[:-1])
        assert_uniform(kernel, fan_in, path)
        if bias is not None:
            assert_uniform(bias, fan_in, path)
            biases.append(path)
    assert len(biases) == num_biases


def test_ranet_is_normal_by_fan_out_but_for_its_first_layer_and_the_linear_weights():
    linear, normal = [], []
    for path, kernel, bias in layers_of(initial_params("ranet")):
        if path[-1] == "linear":
            assert np.all(bias == 0), path
            linear.append(path)
        if path[-1] == "linear" or path[0] == "first_layer":
            assert_uniform(kernel, np.prod(kernel.shape[:-1]), path)
        else:
            expected = np.sqrt(2 / (kernel.shape[0] ** 2 * kernel.shape[-1]))
            assert_spread(kernel, expected, 3, path)
            normal.append(kernel.ravel() / expected)
    assert len(linear) == 3
    within_one = np.mean(np.abs(np.concatenate(normal)) < 1)
    assert within_one == pytest.approx(0.6827, abs=0.003)


def test_values_depend_on_the_key_alone(tiny):
    first, same = (initial_variables(tiny, jax.random.key(1), IMAGES, train=False) for _ in "ab")
    other = initial_variables(tiny, jax.random.key(2), IMAGES, train=False)
    jax.tree.map(np.testing.assert_array_equal, first, same)
    first, other = (v["params"]["classifiers_0"]["linear"]["kernel"] for v in (first, other))
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("initializer", [Uniform(0.3), Normal(0.2)])
def test_both_ways_to_draw_have_one_distribution(initializer):
    ours = initializer.draw(np.random.default_rng(0), (20_000,))
    theirs = np.asarray(initializer(jax.random.key(0), (20_000,), jnp.float32))
    quantiles = np.linspace(0.01, 0.99, 9)
    np.testing.assert_allclose(
        np.quantile(ours, quantiles), np.quantile(theirs, quantiles), atol=0.01
    )


def test_network_with_other_initializers_falls_back_to_init():
    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.Dense(4)(x)

    inputs = jax.ShapeDtypeStruct((1, 5), jnp.float32)
    drawn = initial_variables(Plain(), jax.random.key(0), inputs, train=False)
    expected = Plain().init(jax.random.key(0), jnp.zeros((1, 5)), train=False)
    jax.tree.map(np.testing.assert_allclose, drawn, expected)


def test_weight_predictor_draws_its_biases_as_its_weights():
    inputs = jax.ShapeDtypeStruct((1, 5), jnp.float32)
    params = initial_variables(WeightPredictor(5), jax.random.key(0), inputs)["params"]
    bias = params["output"]["bias"]
    assert 0 < np.abs(bias).max() <= 500**-0.5


def test_creating_a_state_compiles_a_handful_of_kernels_and_not_one_a_parameter():
    config = config_of(load("models")["msdnet_tiny"]["config"])
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration, **_: compiled.append(event)
    )
    try:
        jax.clear_caches()
        state = create_train_state(config, jax.random.key(0))
    finally:
        jax.monitoring.clear_event_listeners()
    kernels = [event for event in compiled if event.endswith("backend_compile_duration")]
    assert len(jax.tree.leaves(state.params)) > 90
    assert 0 < len(kernels) < 20

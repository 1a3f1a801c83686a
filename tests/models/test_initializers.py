"""Initial values: their distribution, and that they are drawn without compiling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util
from golden_files import config_of, load

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


def test_weights_are_uniform_within_one_over_root_fan_in(tiny):
    params = initial_variables(tiny, jax.random.key(3), IMAGES, train=False)["params"]
    for path, value in traverse_util.flatten_dict(params).items():
        if path[-1] == "scale":
            assert np.all(value == 1), path
        elif path[-2:] == ("bn", "bias"):
            assert np.all(value == 0), path
        elif path[-1] == "kernel":
            bound = np.prod(value.shape[:-1]) ** -0.5
            assert np.abs(value).max() <= bound, path
            if value.size > 1000:
                assert np.std(value) == pytest.approx(bound / np.sqrt(3), rel=0.1), path


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

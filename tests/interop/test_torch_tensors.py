"""The authors' tensors in and out."""

import re

import jax
import numpy as np
import pytest
from golden_files import config_of, load, named_tensor
from small_networks import OneLayer

from l2w_jax.interop import variables_from_torch, variables_to_torch, wpn_from_torch, wpn_to_torch
from l2w_jax.models import create_model

GOLDEN = load("models")
LARGE = "ranet_imagenet"


def tensors_of(case):
    return {name: named_tensor(name, shape) for name, shape in case["shapes"].items()}


def test_names_and_shapes_of_the_largest_network_are_the_authors():
    case = GOLDEN[LARGE]
    model = create_model(config_of(case["config"]).model)
    # Views of one zero: the network has 131 million parameters.
    zeros = {name: np.broadcast_to(np.zeros(()), shape) for name, shape in case["shapes"].items()}
    back = variables_to_torch(model, variables_from_torch(model, zeros))
    assert {name: list(value.shape) for name, value in back.items()} == case["shapes"]


@pytest.mark.parametrize("name", sorted(GOLDEN.keys() - {LARGE}))
def test_there_and_back_is_exact(name):
    case = GOLDEN[name]
    model = create_model(config_of(case["config"]).model)
    tensors = tensors_of(case)
    back = variables_to_torch(model, variables_from_torch(model, tensors))
    assert set(back) == set(tensors)
    for tensor, value in tensors.items():
        np.testing.assert_array_equal(back[tensor], value)
        assert back[tensor].dtype == value.dtype


@pytest.fixture
def tiny():
    case = GOLDEN["msdnet_tiny"]
    return create_model(config_of(case["config"]).model), tensors_of(case)


def test_each_fault_gets_a_line_with_the_name_of_its_tensor(tiny):
    model, tensors = tiny
    del tensors["classifier.0.linear.bias"]
    tensors["classifier.1.linear.weight"] = np.zeros((7, 128))
    tensors["classifier.9.linear.weight"] = np.zeros((10, 128))
    with pytest.raises(ValueError) as error:
        variables_from_torch(model, tensors)
    lines = str(error.value).splitlines()
    assert lines == [
        "classifier.0.linear.bias: missing, must have shape (10,)",
        "classifier.1.linear.weight: shape (7, 128) is wrong, must be (10, 128)",
        "classifier.9.linear.weight: not a tensor of this network",
    ]


def test_a_tensor_of_another_type_or_not_finite_is_named(tiny):
    model, tensors = tiny
    name, other = "classifier.0.linear.bias", "classifier.1.linear.bias"
    tensors[name] = np.full_like(tensors[name], np.nan)
    tensors[other] = tensors[other].astype(np.int64)
    with pytest.raises(ValueError) as error:
        variables_from_torch(model, tensors)
    assert str(error.value).splitlines() == [
        f"{name}: has a number that is not finite",
        f"{other}: type int64 is wrong, must be a floating-point one",
    ]


def test_network_of_ones_own_is_refused_either_way():
    model = OneLayer()
    for exchange in (variables_from_torch, variables_to_torch):
        with pytest.raises(ValueError, match=r"known for MSDNet, RANet, .* not for OneLayer"):
            exchange(model, {})


def test_counters_are_not_needed(tiny):
    model, tensors = tiny
    without = {name: v for name, v in tensors.items() if not name.endswith("num_batches_tracked")}
    assert set(variables_to_torch(model, variables_from_torch(model, without))) == set(tensors)


@pytest.mark.parametrize("num_layers", [1, 3])
def test_weight_predictor_there_and_back_is_exact(num_layers):
    shapes = {"first_hidden_layer.fc": (7, 4), "output_layer": (4, 7)}
    shapes |= {f"rest_hidden_layers.{i}.fc": (7, 7) for i in range(num_layers - 1)}
    tensors = {}
    for name, shape in shapes.items():
        tensors[name + ".weight"] = named_tensor(name, shape)
        tensors[name + ".bias"] = named_tensor(name + ".bias", shape[:1])
    back = wpn_to_torch(wpn_from_torch(tensors))
    assert set(back) == set(tensors)
    for name, value in tensors.items():
        np.testing.assert_array_equal(back[name], value)


def test_weight_predictor_without_an_output_layer_is_refused():
    with pytest.raises(ValueError, match=r"^output_layer\.weight: missing$"):
        wpn_from_torch({"first_hidden_layer.fc.weight": np.zeros((3, 2))})


@pytest.mark.parametrize("layer", ["first_hidden_layer.fc", "output_layer"])
@pytest.mark.parametrize("shape", [(), (3,), (3, 2, 1), (0, 2), (3, 0)])
def test_weight_predictor_whose_weights_are_no_matrix_is_refused(layer, shape):
    tensors = {"first_hidden_layer.fc.weight": np.zeros((3, 2)), "output_layer.weight": np.eye(3)}
    tensors[f"{layer}.weight"] = np.zeros(shape)
    message = re.escape(f"{layer}.weight: shape {shape} is wrong, must be two numbers above 0")
    with pytest.raises(ValueError, match=f"^{message}$"):
        wpn_from_torch(tensors)


def test_network_of_two_scales_goes_there_and_back():
    config = config_of(GOLDEN["msdnet_tiny"]["config"])
    config.model.update(growth_factors=(1, 2), bottleneck_factors=(1, 2))
    config.dataset.image_size = 16
    model = create_model(config.model)
    image = np.zeros((1, 16, 16, 3), np.float32)
    shapes = jax.eval_shape(lambda key: model.init(key, image, False), jax.random.key(0))
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)
    back = variables_from_torch(model, variables_to_torch(model, variables))
    assert jax.tree.map(np.shape, back) == jax.tree.map(np.shape, variables)

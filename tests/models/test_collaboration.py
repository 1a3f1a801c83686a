"""Collaborating exits: what each reads, and that they are a multi-exit network like any other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from golden_files import config_of, load
from small_networks import ConvNetwork

from l2w_jax.early_exit import EarlyExitPredictor, mul_adds_per_exit
from l2w_jax.interop import variables_from_torch, variables_to_torch
from l2w_jax.models import CollaborativeExits, create_network, initial_variables
from l2w_jax.models.layers import BatchNorm


@pytest.fixture(scope="module")
def network():
    model = CollaborativeExits(ConvNetwork())
    images = jax.random.normal(jax.random.key(0), (6, 8, 8, 3))
    return model, initial_variables(model, jax.random.key(1), images, train=False), images


def test_stages_in_order_give_the_logits_of_the_whole(network):
    model, variables, images = network
    carry = model.apply(variables, images, False, method="init_carry")
    for k, expected in enumerate(model.apply(variables, images, train=False)):
        logits, carry = model.apply(variables, k, carry, False, method="stage")
        np.testing.assert_array_equal(logits, expected)
    assert jax.tree.leaves(carry) == []


def test_an_exit_reads_the_logits_of_the_one_before_and_learns_through_them(network):
    model, variables, images = network

    @jax.jit
    def gradient_of_exit(k):
        def loss(params):
            logits = model.apply({**variables, "params": params}, images, train=False)
            return (logits[k] ** 2).sum()

        gradient = jax.grad(loss)(variables["params"])
        return [jnp.abs(gradient[f"classifiers_{i}"]["linear"]["kernel"]).max() for i in range(2)]

    first, last = gradient_of_exit(0), gradient_of_exit(1)
    assert first[0] > 0 and first[1] == 0
    assert last[0] > 0 and last[1] > 0


def test_teacher_is_the_last_exit_of_the_backbone(network):
    model, variables, images = network
    logits, teacher = model.apply(variables, images, False, method="with_teacher")
    np.testing.assert_array_equal(logits, model.apply(variables, images, train=False))
    backbone = {collection: tree["net"] for collection, tree in variables.items()}
    expected = model.backbone.apply(backbone, images, train=False)[-1]
    np.testing.assert_array_equal(teacher, expected)


def test_early_exit_and_mul_adds_work_on_it(network):
    model, variables, images = network
    decisions = EarlyExitPredictor(model, variables, [1.0, 0.0], batch_sizes=(8,))(images)
    logits = model.apply(variables, images, train=False)
    np.testing.assert_array_equal(decisions.labels, logits[-1].argmax(axis=-1))
    of_backbone = mul_adds_per_exit(model.backbone, 8)
    more = mul_adds_per_exit(model, 8) - of_backbone
    # Linear layers 6 -> 10, then 10 -> 6 with ReLU and 12 -> 10, with their biases.
    assert more.tolist() == [70, 70 + 66 + 6 + 130]


def test_every_batch_norm_has_the_axis_and_the_type_of_the_whole():
    model = CollaborativeExits(ConvNetwork(), dtype=jnp.bfloat16).clone(axis_name="device")
    found = []

    def note(call, args, kwargs, context):
        if isinstance(context.module, BatchNorm) and context.method_name == "variables_for":
            found.append((context.module.options.axis_name, context.module.options.dtype))
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(
            lambda key: model.init(key, jnp.zeros((1, 8, 8, 3)), train=True), jax.random.key(0)
        )
    assert len(found) == 3
    assert set(found) == {("device", jnp.bfloat16)}


@pytest.mark.parametrize("name", sorted(load("imta")))
def test_names_and_shapes_are_the_authors(name):
    case = load("imta")[name]
    config = config_of(case["config"])
    config.imta.collaboration = True
    model = create_network(config)
    zeros = {name: np.zeros(shape) for name, shape in case["isc_shapes"].items()}
    back = variables_to_torch(model, variables_from_torch(model, zeros))
    assert {name: list(value.shape) for name, value in back.items()} == case["isc_shapes"]


def test_configuration_without_the_section_is_the_network_as_it_is():
    config = config_of(load("models")["msdnet_tiny"]["config"])
    plain = create_network(config)
    del config["imta"]
    assert create_network(config) == plain
    assert not plain.gradient_equilibrium

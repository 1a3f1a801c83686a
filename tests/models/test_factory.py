"""A network of one's own is trained as the configuration says, or refused with the field's name."""

import re

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from small_networks import ConvNetwork, OneLayer

from l2w_jax.config import default_config
from l2w_jax.models import create_model, create_network


class NoNumberOfClasses(OneLayer):
    def stage_with_features(self, k, carry, train):
        features = carry.mean(axis=(1, 2))
        return features, self.head(features), carry


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("msdnet", {"num_exits": 3, "growth_factors": [1, 2], "prune": "min", "dtype": "bfloat16"}),
        ("ranet", {"first_blocks": 3, "scale_list": [1, 1, 2], "compress_factor": 0.5}),
    ],
)
def test_a_network_has_the_fields_of_its_section_and_no_name_among_variables(name, fields):
    config = default_config()
    config.model.update(fields, name=name)
    model = create_network(config)
    assert {field: getattr(model, field) for field in fields} == {
        field: tuple(value) if isinstance(value, list) else value for field, value in fields.items()
    }
    assert model.name is None


def test_a_network_is_taken_as_it_is():
    model = OneLayer()
    assert create_network(default_config(model=model)) is model


@pytest.mark.parametrize("model", [nn.Dense(3), OneLayer, "resnet"])
def test_what_is_no_multi_exit_network_is_refused(model):
    name = type(model).__name__
    message = f"config.model: {name!r} is not allowed: must be a section of fields, or an object of"
    with pytest.raises(ValueError, match=re.escape(message)):
        create_network(default_config(model=model))


@pytest.mark.parametrize(
    ("model", "fields", "message"),
    [
        (
            OneLayer(),
            {"gradient_equilibrium": True},
            "config.imta.gradient_equilibrium: True is not allowed: must be False where the "
            "network, here OneLayer, does not define stage_with_features",
        ),
        (
            OneLayer(),
            {"collaboration": True},
            "config.imta.collaboration: True is not allowed: must be False where the network, "
            "here OneLayer, does not define stage_with_features",
        ),
        (
            NoNumberOfClasses(),
            {"collaboration": True},
            "config.imta.collaboration: True is not allowed: must be False where the network, "
            "here NoNumberOfClasses, does not define num_classes",
        ),
        (
            ConvNetwork(),
            {"distillation": 0.1},
            "config.imta.distillation: 0.1 is not allowed: must be 0 without imta.collaboration",
        ),
    ],
)
def test_what_a_network_cannot_follow_is_refused(model, fields, message):
    config = default_config(model=model)
    config.imta.update(fields)
    with pytest.raises(ValueError, match=re.escape(message)):
        create_network(config)


@pytest.mark.parametrize(
    ("field", "allowed"), [("stem", "'cifar', 'imagenet'"), ("prune", "'max', 'min'")]
)
def test_a_choice_that_a_network_does_not_know_is_not_taken_for_another(field, allowed):
    """`create_model` takes a section that nobody has checked."""
    config = default_config()
    config.model[field] = "other"
    message = f"config.model.{field}: 'other' is not allowed: must be one of {allowed}"
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    model = create_model(config.model)
    with pytest.raises(ValueError, match=re.escape(message)):
        jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)


def test_what_a_network_can_follow_is_not_refused():
    config = default_config(model=NoNumberOfClasses())
    config.imta.gradient_equilibrium = True
    assert create_network(config).gradient_equilibrium

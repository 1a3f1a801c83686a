"""From a config to a network."""

import dataclasses

import jax.numpy as jnp
from ml_collections import ConfigDict

from l2w_jax.config.choices import distillation_fault, no_network, not_allowed, unknown_choice
from l2w_jax.models.collaboration import CollaborativeExits
from l2w_jax.models.msdnet import MSDNet
from l2w_jax.models.multi_exit import MultiExitNetwork
from l2w_jax.models.ranet import RANet

_NETWORKS = {"msdnet": MSDNet, "ranet": RANet}


def create_network(config: ConfigDict) -> MultiExitNetwork:
    """The network that a run trains: `config.model`, in the way that `config.imta` says.

    A configuration without a section `imta` trains the network as it is.

    Args:
        config: a run's configuration; `config.model` may be a module.

    Raises:
        ValueError: `config.model` is no network, or not one that `config.imta` can train.
    """
    model = create_model(config.model)
    imta = config.get("imta", {})
    collaboration = imta.get("collaboration", False)
    if fault := distillation_fault(imta.get("distillation", 0.0), collaboration):
        raise ValueError(fault)
    if imta.get("gradient_equilibrium", False):
        _check_defines(model, "stage_with_features", "imta.gradient_equilibrium")
        model = model.clone(gradient_equilibrium=True)
    if collaboration:
        _check_defines(model, "stage_with_features", "imta.collaboration")
        _check_defines(model, "num_classes", "imta.collaboration")
        model = CollaborativeExits(model, dtype=model.dtype)
    return model


def _check_defines(model: MultiExitNetwork, name: str, field: str) -> None:
    """Raises ValueError where a network lacks what a field of the configuration asks of it."""
    defined = hasattr(model, name)
    if hasattr(MultiExitNetwork, name):
        defined = getattr(type(model), name) is not getattr(MultiExitNetwork, name)
    if not defined:
        allowed = f"False where the network, here {type(model).__name__}, does not define {name}"
        raise ValueError(not_allowed(field, True, allowed))


def create_model(config: ConfigDict | MultiExitNetwork) -> MultiExitNetwork:
    """The network that `config.model` describes; a network is returned as it is.

    Raises:
        ValueError: `config.name` is not known, or `config` is no network.
    """
    if isinstance(config, MultiExitNetwork):
        return config
    if not isinstance(config, ConfigDict):
        raise ValueError(no_network(config))
    if config.name not in _NETWORKS:
        raise unknown_choice("model.name", config.name)
    network = _NETWORKS[config.name]
    # The fields that describe a network are named as its attributes; Flax adds one, `name`.
    attributes = {field.name for field in dataclasses.fields(network)} - {"name"}
    described = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in config.items()
        if name in attributes
    }
    return network(**described | {"dtype": jnp.dtype(config.dtype)})

"""From a config to a network."""

import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from l2w_jax.config.choices import unknown_choice
from l2w_jax.models.collaboration import CollaborativeExits
from l2w_jax.models.msdnet import MSDNet
from l2w_jax.models.multi_exit import MultiExitNetwork
from l2w_jax.models.ranet import RANet


def create_network(config: ConfigDict) -> MultiExitNetwork:
    """The network that a run trains: `config.model`, as `config.imta` has it trained.

    A configuration without a section `imta` trains the network as it is.

    Args:
        config: a run's configuration; `config.model` may be a module.

    Raises:
        ValueError: `config.model.name` is not known.
    """
    model = create_model(config.model)
    imta = config.get("imta", {})
    if imta.get("gradient_equilibrium", False):
        model = model.clone(gradient_equilibrium=True)
    if imta.get("collaboration", False):
        model = CollaborativeExits(model, dtype=model.dtype)
    return model


def create_model(config: ConfigDict | nn.Module) -> MultiExitNetwork:
    """The network that `config.model` describes; a module is returned as it is.

    Raises:
        ValueError: `config.name` is not known.
    """
    if isinstance(config, nn.Module):
        return config
    if config.name == "msdnet":
        return MSDNet(
            num_blocks=config.num_exits,
            base=config.base,
            step=config.step,
            step_mode=config.step_mode,
            channels=config.channels,
            growth_rate=config.growth_rate,
            growth_factors=tuple(config.growth_factors),
            bottleneck_factors=tuple(config.bottleneck_factors),
            reduction=config.reduction,
            prune=config.prune,
            stem=config.stem,
            num_classes=config.num_classes,
            dtype=jnp.dtype(config.dtype),
        )
    if config.name == "ranet":
        return RANet(
            first_blocks=config.first_blocks,
            block_step=config.block_step,
            step=config.step,
            step_mode=config.step_mode,
            channels=config.channels,
            growth_rate=config.growth_rate,
            growth_factors=tuple(config.growth_factors),
            bottleneck_factors=tuple(config.bottleneck_factors),
            scale_list=tuple(config.scale_list),
            reduction=config.reduction,
            compress_factor=config.compress_factor,
            stem=config.stem,
            num_classes=config.num_classes,
            dtype=jnp.dtype(config.dtype),
        )
    raise unknown_choice("model.name", config.name)

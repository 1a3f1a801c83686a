"""How Θ learns on one device, for tests that take a meta-gradient by itself."""

from l2w_jax.models import create_network
from l2w_jax.training.losses import create_losses
from l2w_jax.training.meta import create_meta_learner
from l2w_jax.training.optimizers import create_sgd
from l2w_jax.training.weighting import create_weighting


def create_learner(config, recompute=False):
    """The losses that train θ in a run, and the learner of Θ."""
    model = create_network(config)
    network, judging = create_losses(config, model)
    weigh = create_weighting(config.weighting, model, None)
    optimizer = create_sgd(config.optimizer, model.frozen)
    return network, create_meta_learner(
        config, judging, weigh, optimizer, recompute, batch_axis=None, device_axis=None
    )

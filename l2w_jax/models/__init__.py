"""Multi-exit networks and the weight-prediction network, as linen modules."""

from l2w_jax.models.collaboration import CollaborativeExits
from l2w_jax.models.factory import create_model, create_network
from l2w_jax.models.initializers import initial_variables
from l2w_jax.models.msdnet import MSDNet
from l2w_jax.models.multi_exit import MultiExitNetwork
from l2w_jax.models.ranet import RANet
from l2w_jax.models.weight_predictor import WeightPredictor

__all__ = [
    "CollaborativeExits",
    "MSDNet",
    "MultiExitNetwork",
    "RANet",
    "WeightPredictor",
    "create_model",
    "create_network",
    "initial_variables",
]

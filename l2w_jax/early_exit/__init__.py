"""Early exiting: what each exit costs, when a sample may leave, and inference that really stops."""

from l2w_jax.early_exit.budget import budgeted_curve, find_thresholds
from l2w_jax.early_exit.mul_adds import mul_adds_per_exit
from l2w_jax.early_exit.predictor import EarlyExitPredictor
from l2w_jax.early_exit.rules import confidence, log_odds, margin, negative_entropy, patience
from l2w_jax.models.exit_shares import exit_shares

__all__ = [
    "EarlyExitPredictor",
    "budgeted_curve",
    "confidence",
    "exit_shares",
    "find_thresholds",
    "log_odds",
    "margin",
    "mul_adds_per_exit",
    "negative_entropy",
    "patience",
]

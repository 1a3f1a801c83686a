"""The paper's ablations on CIFAR-100: each differs from `cifar100_msdnet.py` in what its name says.

Han et al., ECCV 2022, section 4.3. Not run here.

    python -m l2w_jax.main --config=configs/ablations.py:NAME

    plain               every sample counts 1 at every exit, with as many updates
    hard_allocation     a sample trains the one exit that it is allocated to
    fixed_weights       weights set by hand, from the rank of a sample's loss
    frozen_predictor    a trained predictor that learns no more; give the workdir it comes from:
                        --config.weighting.checkpoint=runs/cifar100_msdnet
    vanilla_objective   the meta loss takes all samples at every exit
    input_confidence, input_both                        what the predictor reads (loss)
    constraint_row, constraint_mat                      which mean is subtracted (col)
    magnitude_0.2, magnitude_0.5, magnitude_1.0         delta (0.8)
    q_0.5, q_0.6, q_0.9, q_1.0                          shares of the exits (0.75)
    interval_10, interval_100                           iterations between meta updates (1)
"""

from ml_collections import ConfigDict

from l2w_jax.config import default_config, split_variant
from l2w_jax.errors import UserError

_NAMED = {
    "plain": {"kind": "none"},
    "hard_allocation": {"kind": "allocation"},
    "fixed_weights": {"kind": "fixed"},
    "frozen_predictor": {"kind": "frozen", "checkpoint": "runs/cifar100_msdnet"},
    "vanilla_objective": {"objective": "vanilla"},
}
_VALUES = {
    "input": ("confidence", "both"),
    "constraint": ("row", "mat"),
    "magnitude": (0.2, 0.5, 1.0),
    "q": (0.5, 0.6, 0.9, 1.0),
    "interval": (10, 100),
}
ABLATIONS = _NAMED | {
    f"{field}_{value}": {field: value} for field, values in _VALUES.items() for value in values
}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the configuration; `variant` is one of the names above."""
    name = variant or "plain"
    if split_variant(name, list(ABLATIONS)) != (name,):
        raise UserError(f"config variant: {variant!r} is not allowed: must be one name")
    config = default_config()
    config.dataset.update(name="cifar100", num_classes=100)
    config.weighting.update(ABLATIONS[name])
    if config.weighting.kind == "none":
        # An iteration with two halves makes two updates, one without halves a single update.
        config.dataset.batch_size //= 2
    return config

"""MSDNet with learned sample weights on long-tailed CIFAR-100 (Cui et al., CVPR 2019).

The first class keeps 500 images, the last 500 / factor; thresholds come from the training images,
none of which can be spared. Not run here.

    python -m l2w_jax.main --config=configs/cifar100_lt_msdnet.py             # factor 100
    python -m l2w_jax.main --config=configs/cifar100_lt_msdnet.py:10          # 200, 100, 50, 20, 10
    python -m l2w_jax.main --config=configs/cifar100_lt_msdnet.py:10,baseline
"""

from ml_collections import ConfigDict

from l2w_jax.config import default_config, split_variant, use_plain_recipe

_FACTORS = ["200", "100", "50", "20", "10"]


def get_config(variant: str = "") -> ConfigDict:
    """Returns the configuration; `variant` is an imbalance factor, "baseline" or both."""
    parts = split_variant(variant, [*_FACTORS, "baseline"], one_of=[_FACTORS])
    factors = [int(part) for part in parts if part in _FACTORS]
    config = default_config()
    config.dataset.update(
        name="cifar100",
        num_classes=100,
        imbalance_factor=factors[0] if factors else 100,
        holdout=0,
        thresholds_from="train",
    )
    if "baseline" in parts:
        use_plain_recipe(config)
    return config

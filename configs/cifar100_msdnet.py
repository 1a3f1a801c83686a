"""MSDNet with learned sample weights on CIFAR-100 (5 exits, Huang et al., ICLR 2018).

Paper (Han et al., ECCV 2022, figure 6): budgeted 75.0% at 4.9e7 mul-adds, where plain MSDNet needs
7.7e7, and 76.0% from 7e7. Not run to the end here.

    python -m l2w_jax.main --config=configs/cifar100_msdnet.py            # learned weights
    python -m l2w_jax.main --config=configs/cifar100_msdnet.py:baseline   # MSDNet's own recipe
"""

from ml_collections import ConfigDict

from l2w_jax.config import default_config, split_variant, use_plain_recipe


def get_config(variant: str = "") -> ConfigDict:
    """Returns the configuration; `variant` is "" or "baseline"."""
    config = default_config()
    config.dataset.name = "cifar100"
    config.dataset.num_classes = 100
    if "baseline" in split_variant(variant, ["baseline"]):
        use_plain_recipe(config)
    return config

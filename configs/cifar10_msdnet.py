"""MSDNet with learned sample weights on CIFAR-10 (5 exits, Huang et al., ICLR 2018).

Paper (Han et al., ECCV 2022, figure 6): budgeted 94.0% at 1.8e7 mul-adds, where plain MSDNet needs
3.6e7, and 94.7% from 3e7. Not run to the end here.

    python -m l2w_jax.main --config=configs/cifar10_msdnet.py            # learned weights
    python -m l2w_jax.main --config=configs/cifar10_msdnet.py:baseline   # MSDNet's own recipe
"""

from ml_collections import ConfigDict

from l2w_jax.config import default_config, split_variant, use_plain_recipe


def get_config(variant: str = "") -> ConfigDict:
    """Returns the configuration; `variant` is "" or "baseline"."""
    config = default_config()
    config.dataset.name = "cifar10"
    if "baseline" in split_variant(variant, ["baseline"]):
        use_plain_recipe(config)
    return config

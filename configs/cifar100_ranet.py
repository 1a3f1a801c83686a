"""RANet with learned sample weights on CIFAR-100 (6 exits, Yang et al., CVPR 2020).

The paper (Han et al., ECCV 2022) draws its curves but tabulates no figure. Not run here.

    python -m l2w_jax.main --config=configs/cifar100_ranet.py            # learned weights
    python -m l2w_jax.main --config=configs/cifar100_ranet.py:baseline   # RANet's own recipe
"""

from ml_collections import ConfigDict

from l2w_jax.config import default_config, split_variant, use_cifar_ranet, use_plain_recipe


def get_config(variant: str = "") -> ConfigDict:
    """Returns the configuration; `variant` is "" or "baseline"."""
    config = default_config()
    config.dataset.update(name="cifar100", num_classes=100)
    use_cifar_ranet(config)
    if "baseline" in split_variant(variant, ["baseline"]):
        use_plain_recipe(config)
    return config

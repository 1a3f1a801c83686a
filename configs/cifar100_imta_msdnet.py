"""MSDNet on CIFAR-100 trained as Li et al., ICCV 2019 ("IMTA"), propose, in two stages.

The first stage trains the network with gradient equilibrium. The second leaves it as it is and
trains new exits on it, each of which reads what the one before has concluded, and learns from the
first stage's last exit. The paper (section 4.2) draws its CIFAR curves but tabulates no figure. Not
run here.

    python -m l2w_jax.main --config=configs/cifar100_imta_msdnet.py
    python -m l2w_jax.main --config=configs/cifar100_imta_msdnet.py:collaboration

The second stage finds the first in its default folder; --config.imta.checkpoint=FOLDER names
another. Learned sample weights go with either stage: --config.weighting.kind=meta, with which an
iteration takes two half batches.
"""

from ml_collections import ConfigDict

from l2w_jax.config import default_config, split_variant, use_plain_recipe


def get_config(variant: str = "") -> ConfigDict:
    """Returns the configuration; `variant` is "" or "collaboration"."""
    config = default_config()
    config.dataset.update(name="cifar100", num_classes=100)
    # SGD from 0.1, in both stages.
    use_plain_recipe(config)
    if "collaboration" in split_variant(variant, ["collaboration"]):
        config.imta.update(
            collaboration=True,
            checkpoint="runs/cifar100_imta_msdnet",
            distillation=0.1,
            temperature=1.0,
        )
    else:
        config.imta.gradient_equilibrium = True
    return config

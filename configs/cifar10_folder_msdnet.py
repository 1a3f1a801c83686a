"""A CPU-sized MSDNet with learned sample weights on CIFAR-10 as a folder of JPEGs.

For `train|test/CLASS/*.jpg`; the images are read into memory once, made 16x16 pixels. No figure of
a paper: a real data set, small enough for a CPU. Without a variant it runs two epochs; the variant
"long" is the protocol of `configs/results/README.md`, by which ways of training are compared.

    python -m l2w_jax.main --config=configs/cifar10_folder_msdnet.py --config.dataset.data_dir=DIR
    python -m l2w_jax.main --config=configs/cifar10_folder_msdnet.py:baseline \\
        --config.dataset.data_dir=DIR                     # the same run without weighting
    python -m l2w_jax.main --config=configs/cifar10_folder_msdnet.py:long,pipelined \\
        --config.dataset.data_dir=DIR
"""

from ml_collections import ConfigDict

from l2w_jax.config import default_config, split_variant, use_small_msdnet

# Ways of training: what each changes of `config.weighting`.
_WAYS = {
    "baseline": {"kind": "none"},
    "pipelined": {"schedule": "pipelined"},
    "vanilla_objective": {"objective": "vanilla"},
    "hard_allocation": {"kind": "allocation"},
}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the configuration. Set dataset.data_dir besides.

    Args:
        variant: parts with commas between them: one of the ways of training, none for the exact
            method; "long" for 10 epochs and random crops; "long_tailed" for 40 epochs, as many
            updates in all, on classes of 5,000 to 50 images ("long,long_tailed" is the protocol's).
    """
    parts = split_variant(variant, [*_WAYS, "long", "long_tailed"], one_of=[_WAYS])
    config = default_config()
    config.dataset.update(name="image_folder", image_size=16, batch_size=256, augmentation="shift")
    use_small_msdnet(config)
    config.optimizer.update(learning_rate=0.2, epochs=2)
    if "long" in parts:
        config.dataset.augmentation = "crop"
        config.optimizer.epochs = 10
    if "long_tailed" in parts:
        config.dataset.update(imbalance_factor=100, holdout=1000)
        config.optimizer.epochs = 40
    for way in _WAYS.keys() & set(parts):
        config.weighting.update(_WAYS[way])
    if config.weighting.kind == "none":
        # As many updates, each on as many images: an iteration with weighting makes two.
        config.dataset.batch_size //= 2
    return config

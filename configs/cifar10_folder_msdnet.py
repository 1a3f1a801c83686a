"""A CPU-sized MSDNet with learned sample weights on CIFAR-10 as a folder of JPEGs.

For `train|test/CLASS/*.jpg`; the images are read into memory once, made 16x16 pixels, so that a run
takes minutes on two CPU cores. No figure of a paper: a short run on a real data set. Run here with
three seeds: top-1 57.1 58.2 58.4 58.0% at the exits with weighting, 57.9 58.5 58.8 59.1% without,
which differ less than the seeds do.

    python -m l2w_jax.main --config=configs/cifar10_folder_msdnet.py --config.dataset.data_dir=DIR
    python -m l2w_jax.main --config=configs/cifar10_folder_msdnet.py:baseline \\
        --config.dataset.data_dir=DIR                     # the same run without weighting
"""

from ml_collections import ConfigDict

from l2w_jax.config import default_config, split_variant, use_small_msdnet


def get_config(variant: str = "") -> ConfigDict:
    """Returns the configuration; `variant` is "" or "baseline". Set dataset.data_dir besides."""
    config = default_config()
    config.dataset.update(name="image_folder", image_size=16, batch_size=256, augmentation="shift")
    use_small_msdnet(config)
    config.optimizer.update(learning_rate=0.2, epochs=2)
    if "baseline" in split_variant(variant, ["baseline"]):
        config.weighting.kind = "none"
        # As many updates, each on as many images: an iteration with weighting makes two.
        config.dataset.batch_size //= 2
    return config

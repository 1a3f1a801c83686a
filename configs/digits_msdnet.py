"""A small MSDNet with learned sample weights on scikit-learn's handwritten digits (no download).

1,797 real images, enlarged to 16x16: 1,257 to train on, 180 held out, 360 to test on. No figure of
a paper; it shows the whole method in a minute or so on two CPU cores, and
`configs/results/README.md` has what came out.

    bash launch/local.sh --config=configs/digits_msdnet.py            # learned weights
    bash launch/local.sh --config=configs/digits_msdnet.py:baseline   # plain training
"""

from ml_collections import ConfigDict

from l2w_jax.config import default_config, split_variant, use_small_msdnet


def get_config(variant: str = "") -> ConfigDict:
    """Returns the configuration; `variant` is "" or "baseline"."""
    config = default_config()
    config.dataset.update(
        name="digits",
        image_size=16,
        holdout=180,
        batch_size=64,
        eval_batch_size=180,
        augmentation="shift",
    )
    use_small_msdnet(config)
    config.optimizer.update(learning_rate=0.1, epochs=8)
    config.checkpoint.every_epochs = 4
    config.log.update(every_steps=10, histogram_every_steps=100)
    if "baseline" in split_variant(variant, ["baseline"]):
        config.weighting.kind = "none"
        # As many updates, each on as many images: an iteration with weighting makes two.
        config.dataset.batch_size //= 2
    return config

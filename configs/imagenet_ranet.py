"""RANet with learned sample weights on ImageNet (8 exits, Yang et al., CVPR 2020).

The paper (Han et al., ECCV 2022) draws its curves but tabulates no figure. Not run here: ImageNet
is not at hand.

    python -m l2w_jax.main --config=configs/imagenet_ranet.py               # 32 channels
    python -m l2w_jax.main --config=configs/imagenet_ranet.py:channels=64
    python -m l2w_jax.main --config=configs/imagenet_ranet.py:baseline      # RANet's own recipe
"""

from ml_collections import ConfigDict

from l2w_jax.config import default_config, split_variant, use_imagenet_recipe, use_plain_recipe


def get_config(variant: str = "") -> ConfigDict:
    """Returns the configuration; `variant` is any of channels=32|64 and baseline."""
    widths = ["channels=32", "channels=64"]
    parts = split_variant(variant, [*widths, "baseline"], one_of=[widths])
    config = default_config()
    use_imagenet_recipe(config)
    config.model.update(
        name="ranet",
        num_exits=8,
        first_blocks=2,
        block_step=2,
        step=8,
        step_mode="even",
        channels=64 if "channels=64" in parts else 32,
        growth_rate=16,
        growth_factors=(4, 2, 2, 1),
        bottleneck_factors=(4, 2, 2, 1),
        scale_list=(1, 2, 3, 4),
        stem="imagenet",
    )
    if "baseline" in parts:
        use_plain_recipe(config, batch_size=256, epochs=90, milestones=(1 / 3, 2 / 3))
    return config

"""MSDNet with learned sample weights on ImageNet (5 exits, Huang et al., ICLR 2018).

Paper (Han et al., ECCV 2022): top-1 at the exits; "smooth" is 300 epochs with label smoothing 0.1.

    step=4  59.54 67.22 71.03 72.33 73.93    step=4,smooth  61.64 67.89 71.61 73.82 75.03
    step=6  60.05 69.13 73.33 75.19 76.30    step=6,smooth  61.41 70.70 74.38 75.80 76.66
    step=7  59.24 69.65 73.94 75.66 76.72    step=7,smooth  60.94 71.88 75.13 76.03 76.82

Not run here: ImageNet is not at hand.

    python -m l2w_jax.main --config=configs/imagenet_msdnet.py                  # step=4
    python -m l2w_jax.main --config=configs/imagenet_msdnet.py:step=7,smooth
    python -m l2w_jax.main --config=configs/imagenet_msdnet.py:step=4,baseline   # MSDNet's recipe
"""

from ml_collections import ConfigDict

from l2w_jax.config import default_config, split_variant, use_imagenet_recipe, use_plain_recipe


def get_config(variant: str = "") -> ConfigDict:
    """Returns the configuration; `variant` is step=4|6|7, and smooth or baseline."""
    steps, recipes = ["step=4", "step=6", "step=7"], ["smooth", "baseline"]
    parts = split_variant(variant, [*steps, *recipes], one_of=[steps, recipes])
    config = default_config()
    use_imagenet_recipe(config)
    config.model.update(
        base=4,
        step=4,
        step_mode="even",
        channels=32,
        growth_rate=16,
        growth_factors=(1, 2, 4, 4),
        bottleneck_factors=(1, 2, 4, 4),
        stem="imagenet",
    )
    for part in parts:
        if part.startswith("step="):
            config.model.base = config.model.step = int(part.removeprefix("step="))
    if "smooth" in parts:
        config.optimizer.update(epochs=300, label_smoothing=0.1)
    if "baseline" in parts:
        use_plain_recipe(config, batch_size=256, epochs=90, milestones=(1 / 3, 2 / 3))
    return config

"""The recipes in configs/ train on digits for two epochs, each with its own method and schedule."""

import json
from pathlib import Path

import numpy as np
import pytest

from l2w_jax import main
from l2w_jax.config import validate
from l2w_jax.data.digits import open_digits
from l2w_jax.run import loop

CONFIGS = Path(__file__).parents[2] / "configs"

# Digits in place of the recipe's images, and steps that are few and so must be large.
DIGITS = [
    "dataset.name=digits",
    "dataset.num_classes=10",
    "dataset.image_size=16",
    "dataset.augmentation=shift",
    "dataset.batch_size=64",
    "dataset.eval_batch_size=180",
    "optimizer.epochs=2",
    "optimizer.learning_rate=0.1",
    "weighting.hidden=16",
    "log.every_steps=1",
]
SMALL = ["stem=cifar", "num_exits=2", "channels=8", "growth_rate=4", "step=1"]
# One branch for each resolution; a later flag would add to a tuple, not replace it.
SMALL_MSDNET = [*SMALL, "base=1", "growth_factors=(1,2)", "bottleneck_factors=(1,2)"]
SMALL_RANET = [
    *SMALL,
    "first_blocks=1",
    "block_step=1",
    "growth_factors=(2,1)",
    "bottleneck_factors=(2,1)",
    "scale_list=(1,2)",
]
NETWORKS = {
    "cifar100_msdnet.py": SMALL_MSDNET,
    "cifar10_ranet.py": SMALL_RANET,
    "cifar100_ranet.py:baseline": SMALL_RANET,
    "imagenet_ranet.py": SMALL_RANET,
    "imagenet_msdnet.py:smooth": SMALL_MSDNET,
    "cifar100_lt_msdnet.py:10": SMALL_MSDNET,
}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", NETWORKS)
def test_recipe_lowers_the_loss_of_every_exit_in_two_epochs(recipe, tmp_path):
    overrides = [*DIGITS, *(f"model.{field}" for field in NETWORKS[recipe])]
    flags = [f"--config={CONFIGS / recipe}", *(f"--config.{field}" for field in overrides)]
    config = main.parse(["main", *flags]).config
    if config.dataset.holdout:
        config.dataset.holdout = 180
    validate(config)
    loop.train(config, open_digits(config), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = np.array([line["loss"] for line in lines if "loss" in line])
    assert (losses[-4:].mean(axis=0) < losses[:4].mean(axis=0) - 0.1).all()

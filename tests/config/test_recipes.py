"""The recipes in configs/: each is possible, its paper's, and lowers the loss of digits."""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import golden_files
import numpy as np
import pytest
from ml_collections import ConfigDict

from l2w_jax import main
from l2w_jax.config import changes, split_variant, validate
from l2w_jax.data.digits import open_digits
from l2w_jax.errors import UserError
from l2w_jax.models import create_model
from l2w_jax.run import loop, parts

CONFIGS = Path(__file__).parents[2] / "configs"


def read_module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load(name: str, variant: str = "") -> ConfigDict:
    return read_module(name).get_config(variant)


SHIPPED = {
    "digits_msdnet": ["", "baseline"],
    "cifar10_msdnet": ["", "baseline"],
    "cifar100_msdnet": ["", "baseline"],
    "cifar100_lt_msdnet": ["", "200", "100", "50", "20", "10,baseline"],
    "cifar10_folder_msdnet": [
        "",
        "baseline",
        "long",
        "long,pipelined",
        "long,vanilla_objective",
        "long,hard_allocation",
        "long_tailed",
        "long_tailed,baseline",
    ],
    "cifar10_ranet": ["", "baseline"],
    "cifar100_ranet": ["", "baseline"],
    "cifar100_imta_msdnet": ["", "collaboration"],
    "imagenet_ranet": ["", "channels=32", "channels=64", "baseline"],
    "imagenet_msdnet": ["", "step=6", "step=7,smooth", "step=4,baseline"],
    "ablations": ["", *read_module("ablations").ABLATIONS],
}


@pytest.mark.parametrize(
    ("name", "variant"), [(name, variant) for name in SHIPPED for variant in SHIPPED[name]]
)
def test_the_shipped_configurations_are_valid_on_one_to_four_devices(name, variant):
    config = load(name, variant)
    if config.dataset.name == "image_folder":
        config.dataset.data_dir = "somewhere"
    for devices in (1, 2, 4):
        validate(config, device_count=devices)


def test_every_shipped_configuration_is_tested():
    assert {path.stem for path in CONFIGS.glob("*.py")} == set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_part_of_a_variant_is_tested(name):
    with pytest.raises(UserError, match="must be one of") as raised:
        load(name, "no_such_part")
    allowed = re.search("must be one of (.*), or nothing", str(raised.value)).group(1)
    tested = ",".join(SHIPPED[name]).split(",")
    assert set(allowed.split(", ")) == set(filter(None, tested))


def test_every_ablation_changes_what_its_name_says():
    whole = load("cifar100_msdnet")
    for name, changed in read_module("ablations").ABLATIONS.items():
        changed_fields = {change.field for change in changes(whole, load("ablations", name))}
        expected = {f"weighting.{field}" for field in changed}
        if name == "plain":
            expected.add("dataset.batch_size")
        assert changed_fields == expected


@pytest.mark.parametrize(
    ("name", "variant", "golden", "changed"),
    [
        ("cifar100_msdnet", "", "msdnet_cifar100", {}),
        ("cifar100_msdnet", "baseline", "msdnet_cifar100", {}),
        ("cifar10_msdnet", "", "msdnet_cifar100", {"num_classes": 10}),
        ("cifar10_ranet", "", "ranet_cifar10", {}),
        ("cifar100_ranet", "", "ranet_cifar10", {"num_classes": 100}),
        ("imagenet_msdnet", "", "msdnet_imagenet_step4", {}),
        ("imagenet_msdnet", "step=6", "msdnet_imagenet_step4", {"base": 6, "step": 6}),
        ("imagenet_ranet", "", "ranet_imagenet", {}),
        ("imagenet_ranet", "channels=64", "ranet_imagenet", {"channels": 64}),
    ],
)
def test_the_network_of_a_recipe_is_the_authors(name, variant, golden, changed):
    authors = golden_files.config_of(golden_files.load("models")[golden]["config"])
    expected = create_model(authors.model).clone(**changed)
    assert create_model(load(name, variant).model) == expected


def test_the_imagenet_recipe_is_the_papers():
    config = load("imagenet_msdnet", "step=7,smooth")
    assert (config.model.base, config.model.step, config.model.channels) == (7, 7, 32)
    assert (config.dataset.batch_size, config.dataset.holdout) == (4096, 50_000)
    assert (config.weighting.magnitude, config.weighting.constraint) == (0.3, "mat")
    assert (config.weighting.interval, config.optimizer.learning_rate) == (100, 0.8)
    assert (config.optimizer.epochs, config.optimizer.label_smoothing) == (300, 0.1)
    assert config.dataset.augmentation == "resized_crop"
    # So large a batch may not fit: as few parts as do.
    assert config.optimizer.accumulation == 0


@pytest.mark.parametrize("name", ["imagenet_msdnet", "imagenet_ranet"])
def test_the_imagenet_baseline_is_divided_by_ten_every_30_of_90_epochs(name):
    plain = load(name, "baseline")
    assert plain.weighting.kind == "none"
    assert (plain.dataset.batch_size, plain.optimizer.epochs) == (256, 90)
    assert (plain.optimizer.schedule, plain.optimizer.learning_rate) == ("multistep", 0.1)
    assert [90 * milestone for milestone in plain.optimizer.milestones] == [30, 60]


def test_the_cifar_recipe_is_the_papers():
    config = load("cifar100_msdnet")
    assert config.weighting.kind == "meta"
    assert (config.dataset.batch_size, config.optimizer.epochs) == (1024, 300)
    assert (config.optimizer.learning_rate, config.weighting.learning_rate) == (0.8, 1e-4)
    assert (config.weighting.magnitude, config.weighting.constraint) == (0.8, "col")
    assert (config.weighting.q, config.weighting.interval) == (0.75, 1)
    assert (config.weighting.hidden, config.weighting.num_layers) == (500, 1)
    assert (config.optimizer.momentum, config.optimizer.weight_decay) == (0.9, 1e-4)
    assert config.weighting.weight_decay == 1e-4
    assert config.dataset.augmentation == "crop"
    assert config.model.num_classes == 100


def test_the_baseline_is_the_networks_own_recipe():
    config = load("cifar10_msdnet", "baseline")
    assert config.weighting.kind == "none"
    assert (config.dataset.batch_size, config.optimizer.learning_rate) == (64, 0.1)
    assert (config.optimizer.schedule, config.optimizer.milestones) == ("multistep", (0.5, 0.75))


@pytest.mark.parametrize(("variant", "factor"), [("", 100), ("200", 200), ("10", 10)])
def test_the_long_tailed_recipe_is_the_balanced_one_on_other_images(variant, factor):
    config = load("cifar100_lt_msdnet", variant)
    changed = {change.field: change.new for change in changes(load("cifar100_msdnet"), config)}
    assert changed == {
        "dataset.imbalance_factor": str(factor),
        "dataset.holdout": "0",
        "dataset.thresholds_from": "'train'",
    }


def test_the_two_stages_of_imta_are_the_papers():
    first, second = load("cifar100_imta_msdnet"), load("cifar100_imta_msdnet", "collaboration")
    for config in (first, second):
        assert (config.weighting.kind, config.optimizer.learning_rate) == ("none", 0.1)
    assert (first.imta.gradient_equilibrium, first.imta.collaboration) == (True, False)
    assert first.imta.distillation == 0
    assert (second.imta.gradient_equilibrium, second.imta.collaboration) == (False, True)
    assert (second.imta.distillation, second.imta.temperature) == (0.1, 1.0)


def test_an_unknown_variant_is_named_with_those_that_exist():
    with pytest.raises(UserError, match="'basline' is not allowed: must be one of baseline"):
        split_variant("basline", ["baseline"])


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("cifar10_folder_msdnet", "baseline,hard_allocation"),
        ("cifar100_lt_msdnet", "10,100"),
        ("imagenet_msdnet", "step=4,step=7"),
        ("imagenet_msdnet", "smooth,baseline"),
        ("imagenet_ranet", "channels=32,channels=64"),
    ],
)
def test_variants_that_contradict_each_other_are_refused(name, variant):
    named = variant.replace(",", ", ")
    with pytest.raises(UserError, match=f"'{variant}' is not allowed: must have one of {named}"):
        load(name, variant)


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
    source = open_digits(config)
    config = parts.with_parts_that_fit(config, loop.total_steps(config, source))
    loop.train(config, source, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = np.array([line["loss"] for line in lines if "loss" in line])
    assert (losses[-4:].mean(axis=0) < losses[:4].mean(axis=0) - 0.1).all()

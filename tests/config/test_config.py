"""Every impossible configuration is one clear line, and the shipped ones are possible."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
from ml_collections import ConfigDict

from l2w_jax.config import default_config, differences, split_variant, validate
from l2w_jax.config.rules import RULES
from l2w_jax.config.stored import fields
from l2w_jax.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs"


def read_module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load(name: str, variant: str = "") -> ConfigDict:
    return read_module(name).get_config(variant)


def set_field(config: ConfigDict, field: str, value) -> None:
    """Sets even what ConfigDict itself would refuse, as a file that builds its own may."""
    section, _, name = field.rpartition(".")
    owner = config[section] if section else config
    if name in owner:
        del owner[name]
    owner[name] = value


def faults_of(config: ConfigDict, **counts: int) -> list[str]:
    with pytest.raises(UserError) as raised:
        validate(config, **counts)
    return str(raised.value).splitlines()


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
        lines = differences(whole, load("ablations", name))
        expected = {f"weighting.{field}" for field in changed}
        if name == "plain":
            expected.add("dataset.batch_size")
        assert {line.split(":")[0] for line in lines} == expected


def test_the_imagenet_recipe_is_the_papers():
    config = load("imagenet_msdnet", "step=7,smooth")
    assert (config.model.base, config.model.step, config.model.channels) == (7, 7, 32)
    assert (config.dataset.batch_size, config.dataset.holdout) == (4096, 50_000)
    assert (config.weighting.magnitude, config.weighting.constraint) == (0.3, "mat")
    assert (config.weighting.interval, config.optimizer.learning_rate) == (100, 0.8)
    assert (config.optimizer.epochs, config.optimizer.label_smoothing) == (300, 0.1)
    plain = load("imagenet_msdnet", "baseline")
    assert (plain.dataset.batch_size, plain.optimizer.epochs) == (256, 90)


def test_the_cifar_recipe_is_the_papers():
    config = load("cifar100_msdnet")
    assert config.weighting.kind == "meta"
    assert (config.dataset.batch_size, config.optimizer.epochs) == (1024, 300)
    assert (config.optimizer.learning_rate, config.weighting.learning_rate) == (0.8, 1e-4)
    assert (config.weighting.magnitude, config.weighting.constraint) == (0.8, "col")
    assert (config.weighting.q, config.weighting.interval) == (0.75, 1)
    assert (config.weighting.hidden, config.weighting.num_layers) == (500, 1)
    assert config.model.num_classes == 100


def test_the_baseline_is_the_networks_own_recipe():
    config = load("cifar10_msdnet", "baseline")
    assert config.weighting.kind == "none"
    assert (config.dataset.batch_size, config.optimizer.learning_rate) == (64, 0.1)
    assert (config.optimizer.schedule, config.optimizer.milestones) == ("multistep", (0.5, 0.75))


def test_an_unknown_variant_is_named_with_those_that_exist():
    with pytest.raises(UserError, match="'basline' is not allowed: must be one of baseline"):
        split_variant("basline", ["baseline"])


IMPOSSIBLE = [
    ("seed", -1),
    ("dataset.name", "cifar"),
    ("dataset.image_size", 0),
    ("dataset.image_size", 30),
    ("dataset.num_classes", 11),
    ("dataset.holdout", -1),
    ("dataset.holdout", 0),
    ("dataset.holdout", 50_000),
    ("dataset.batch_size", 0),
    ("dataset.batch_size", 1023),
    ("dataset.batch_size", 60_000),
    ("dataset.eval_batch_size", 0),
    ("dataset.imbalance_factor", -1),
    ("dataset.thresholds_from", "test"),
    ("dataset.augmentation", "mixup"),
    ("dataset.augmentation", "resized_crop"),
    ("dataset.max_bad_share", 1.0),
    ("dataset.max_pixels", 0),
    ("model.name", "resnet"),
    ("model.num_exits", 0),
    ("model.base", 0),
    ("model.step", 0),
    ("model.step_mode", "odd"),
    ("model.step_mode", "lg"),
    ("model.channels", 0),
    ("model.growth_rate", 0),
    ("model.growth_factors", ()),
    ("model.growth_factors", (1, 2)),
    ("model.growth_factors", (1, 2, 0)),
    ("model.bottleneck_factors", (1, 2)),
    ("model.reduction", 0.0),
    ("model.reduction", 0.02),
    ("model.reduction", 1.5),
    ("model.prune", "none"),
    ("model.stem", "svhn"),
    ("model.num_classes", 9),
    ("model.dtype", "float16"),
    ("weighting.kind", "learned"),
    ("weighting.kind", "frozen"),
    ("weighting.input", "logits"),
    ("weighting.constraint", "column"),
    ("weighting.magnitude", -0.1),
    ("weighting.hidden", 0),
    ("weighting.num_layers", 0),
    ("weighting.checkpoint", "runs/other"),
    ("imta.checkpoint", "runs/first_stage"),
    ("weighting.q", 0.0),
    ("weighting.q", -1.0),
    ("weighting.q", float("nan")),
    ("weighting.q", float("inf")),
    ("weighting.schedule", "late"),
    ("weighting.interval", 0),
    ("weighting.objective", "mean"),
    ("weighting.scope", "host"),
    ("weighting.learning_rate", 0.0),
    ("weighting.weight_decay", -1e-4),
    ("optimizer.learning_rate", 0.0),
    ("optimizer.schedule", "linear"),
    ("optimizer.milestones", (0.75, 0.5)),
    ("optimizer.milestones", (0.5, 1.0)),
    ("optimizer.milestones", ()),
    ("optimizer.momentum", 1.0),
    ("optimizer.weight_decay", -1.0),
    ("optimizer.epochs", 0),
    ("optimizer.label_smoothing", 1.0),
    ("optimizer.accumulation", -1),
    ("imta.distillation", 1.0),
    ("imta.distillation", 0.1),
    ("imta.temperature", 0.0),
    ("checkpoint.keep", 0),
    ("checkpoint.every_epochs", 0),
    ("log.every_steps", 0),
    # Wrong types.
    ("seed", 0.5),
    ("weighting.q", "high"),
    ("weighting.q", True),
    ("model.base", 1.0),
    ("model.growth_factors", [1, 2, 4]),
    ("model.growth_factors", (1, 2, "4")),
    ("optimizer.epochs", None),
    ("imta.collaboration", 1),
    ("dataset.name", 10),
    ("weighting", 3),
]


@pytest.mark.parametrize(("field", "value"), IMPOSSIBLE)
def test_an_impossible_value_is_named_with_what_is_allowed(field, value):
    config = default_config()
    set_field(config, field, value)
    lines = faults_of(config)
    assert all(re.fullmatch(r"config\.\S+: .+ is not allowed: must be .+", line) for line in lines)
    named = {line.split(":")[0] for line in lines}
    related = {
        ("weighting.kind", "frozen"): "config.weighting.checkpoint",
        ("model.growth_factors", (1, 2)): "config.model.bottleneck_factors",
    }
    expected = related.get((field, value if not isinstance(value, list) else ()), f"config.{field}")
    assert expected in named
    assert any(repr(value) in line for line in lines) or expected != f"config.{field}"


def test_the_line_of_the_documentation():
    config = default_config()
    config.weighting.q = -1.0
    assert faults_of(config) == ["config.weighting.q: -1.0 is not allowed: must be > 0 and finite"]


def test_shares_of_the_exits_must_be_numbers():
    config = default_config()
    config.weighting.q = 1e8
    (fault,) = faults_of(config)
    assert fault.startswith("config.weighting.q: 100000000.0 is not allowed: must be between")


def test_collaboration_needs_a_run_to_start_from():
    config = default_config()
    config.imta.update(collaboration=True, distillation=0.1)
    (line,) = faults_of(config)
    assert line.startswith("config.imta.checkpoint: '' is not allowed: must be the workdir")
    config.imta.checkpoint = "runs/first_stage"
    validate(config)
    # Of the trained network below nothing is trained, so that no gradient of it is rescaled.
    config.imta.gradient_equilibrium = True
    config.weighting.schedule = "pipelined"
    validate(config)


def test_a_batch_that_the_parts_do_not_divide_is_refused():
    config = default_config()
    config.optimizer.accumulation = 3
    assert faults_of(config) == [
        "config.dataset.batch_size: 1024 is not allowed: must be a multiple of 6 "
        "(1 device x 2 halves x 3 parts)"
    ]


def test_pipelined_schedule_needs_the_true_gradient():
    config = default_config()
    config.weighting.schedule = "pipelined"
    validate(config)
    config.imta.gradient_equilibrium = True
    (line,) = faults_of(config)
    assert line.startswith(
        "config.weighting.schedule: 'pipelined' is not allowed: must be 'exact' with imta.gradient"
    )


def test_every_fault_gets_its_own_line():
    config = default_config()
    config.weighting.q = -1.0
    config.model.base = 0
    config.optimizer.epochs = 0
    assert len(faults_of(config)) == 3


@pytest.mark.parametrize(
    ("field", "nearest"),
    [
        ("weighting.qq", "config.weighting.q"),
        ("optimizer.learning_rat", "config.optimizer.learning_rate"),
        ("optimiser", "config.optimizer"),
        ("dataset.batchsize", "config.dataset.batch_size"),
    ],
)
def test_an_unknown_field_is_named_with_the_nearest(field, nearest):
    config = default_config()
    set_field(config, field, 1)
    assert faults_of(config) == [
        f"config.{field}: unknown field: the nearest that exists is {nearest}"
    ]


def test_a_missing_field_is_named():
    config = default_config()
    del config.weighting["q"]
    (line,) = faults_of(config)
    assert line.startswith("config.weighting.q: missing")


def test_every_field_but_switches_and_texts_has_a_rule():
    free = {name for name, value in fields(default_config()) if isinstance(value, bool)}
    free |= {
        "dataset.data_dir",
        *(f"{section}.checkpoint" for section in ("init", "weighting", "imta")),
    }
    assert {name for name, _ in fields(default_config())} == set(RULES) | free


@pytest.mark.parametrize(
    ("kind", "devices", "processes", "batch", "possible"),
    [
        ("meta", 1, 1, 6, True),
        ("meta", 1, 1, 7, False),
        ("none", 1, 1, 7, True),
        ("fixed", 4, 2, 12, False),
        ("meta", 4, 2, 16, True),
        ("none", 4, 2, 12, True),
        ("none", 4, 2, 10, False),
    ],
)
def test_a_batch_divides_over_devices_and_halves(kind, devices, processes, batch, possible):
    config = default_config()
    config.weighting.kind = kind
    config.dataset.batch_size = batch
    if possible:
        validate(config, device_count=devices, process_count=processes)
    else:
        (line,) = faults_of(config, device_count=devices, process_count=processes)
        assert line.startswith(f"config.dataset.batch_size: {batch} is not allowed")


def test_pruning_min_needs_a_layer_for_each_scale():
    config = default_config()
    config.model.update(num_exits=2, step_mode="even", prune="min")
    (line,) = faults_of(config)
    assert line.startswith("config.model.prune: 'min' is not allowed")
    config.model.num_exits = 3
    validate(config)


def test_ranet_counts_its_own_exits():
    config = default_config()
    config.model.update(
        name="ranet",
        step_mode="lg",
        growth_factors=(4, 2, 1),
        bottleneck_factors=(4, 2, 1),
        num_exits=6,
    )
    validate(config)
    config.model.num_exits = 5
    (line,) = faults_of(config)
    assert line.startswith("config.model.num_exits: 5 is not allowed: must be 6")


def test_ranet_too_thin_to_read_from_the_resolution_below_is_refused():
    config = default_config()
    config.model.update(name="ranet", step_mode="lg", num_exits=6, growth_rate=3)
    config.model.update(growth_factors=(4, 2, 1), bottleneck_factors=(4, 2, 1))
    (line,) = faults_of(config)
    assert line.startswith("config.model.compress_factor: 0.25 is not allowed: must be such that")
    assert "sub-network 3" in line


def test_the_number_of_classes_is_one_field():
    config = default_config()
    config.dataset.num_classes = 7
    assert config.model.num_classes == 7


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

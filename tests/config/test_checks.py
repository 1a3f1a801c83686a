"""Every impossible configuration is one clear line."""

import re

import pytest
from flax import linen as nn
from ml_collections import ConfigDict
from small_networks import OneLayer

from l2w_jax.config import default_config, validate
from l2w_jax.config.allowed import ALLOWED
from l2w_jax.config.stored import fields
from l2w_jax.errors import UserError


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


def test_a_folder_of_images_may_bring_its_own_to_hold_out():
    config = default_config()
    config.dataset.update(name="image_folder", data_dir="/data", holdout=0)
    validate(config)


def test_a_size_of_images_that_does_not_pool_to_one_pixel_is_told_with_those_that_do():
    config = default_config()
    config.dataset.update(name="image_folder", data_dir="/data", image_size=49)
    (line,) = faults_of(config)
    assert line.startswith(
        "config.dataset.image_size: 49 is not allowed: must be from 17 to 48 for 3 scales with the "
        "'cifar' stem"
    )


@pytest.mark.parametrize("q", [-1.0, 0.0, 1e-4, 1e8, float("inf")])
def test_a_fault_names_the_field_its_value_and_all_that_is_allowed(q):
    config = default_config()
    config.weighting.q = q
    line = f"config.weighting.q: {q} is not allowed: must be between 0.001 and 1000"
    assert faults_of(config) == [line]


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


@pytest.mark.parametrize("kind", ["meta", "frozen"])
def test_weights_of_one_exit_are_not_centred_over_the_exits(kind):
    config = default_config(model=OneLayer())
    config.weighting.kind = kind
    assert faults_of(config) == [
        "config.weighting.constraint: 'col' is not allowed: must be 'row' or 'mat' for a network "
        "of one exit, whose weights it would make 1"
    ]
    config.weighting.constraint = "mat"
    validate(config)
    config.weighting.update(kind="none", constraint="col")
    validate(config)


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


def test_of_a_network_of_ones_own_only_what_trains_it_is_checked():
    config = default_config(model=OneLayer(num_exits=2))
    # Neither a size nor a data set of a recipe; its images come from whoever trains it.
    config.dataset.update(image_size=8, batch_size=7)
    config.weighting.kind = "frozen"
    validate(config)
    config.optimizer.warmup_epochs = 300
    (line,) = faults_of(config)
    assert line.startswith("config.optimizer.warmup_epochs: 300 is not allowed: must be less than")
    config.optimizer.lr = 0.1
    (line,) = faults_of(config)
    assert line.startswith("config.optimizer.lr: unknown field: the nearest that exists is ")


@pytest.mark.parametrize("model", [nn.Dense(3), OneLayer, "resnet"])
def test_what_is_no_network_is_one_line(model):
    assert faults_of(default_config(model=model)) == [
        f"config.model: {type(model).__name__!r} is not allowed: must be a section of fields, or "
        "an object of a subclass of MultiExitNetwork"
    ]


def test_of_every_field_but_switches_and_texts_it_is_said_what_is_allowed():
    free = {name for name, value in fields(default_config()) if isinstance(value, bool)}
    free |= {
        "dataset.data_dir",
        *(f"{section}.checkpoint" for section in ("init", "weighting", "imta")),
    }
    assert {name for name, _ in fields(default_config())} == set(ALLOWED) | free


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

"""What makes a configuration impossible: one line per fault, in the words of its fields.

Only the configuration is looked at here. What depends on the images themselves is checked when the
data set is opened.
"""

import difflib
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from l2w_jax.config.choices import (
    AUGMENTATIONS,
    IN_MEMORY,
    KNOWN_DATASETS,
    layers_per_block,
    pooled_size,
)
from l2w_jax.config.defaults import default_config
from l2w_jax.errors import UserError


class _Rule(NamedTuple):
    allowed: str
    holds: Callable[[Any], bool]


def _one_of(*choices: str) -> _Rule:
    return _Rule("one of " + ", ".join(map(repr, choices)), lambda value: value in choices)


def _at_least(least: float) -> _Rule:
    return _Rule(f">= {least}", lambda value: least <= value < math.inf)


def _every(rule: _Rule) -> _Rule:
    return _Rule(
        f"one or more numbers, each {rule.allowed}",
        lambda values: len(values) > 0 and all(rule.holds(value) for value in values),
    )


_ABOVE_ZERO = _Rule("> 0", lambda value: 0 < value < math.inf)
_BELOW_ONE = _Rule(">= 0 and < 1", lambda value: 0 <= value < 1)
_SHARE = _Rule("between 0 and 1", lambda value: 0 <= value <= 1)
_SEED = _Rule("between 0 and 2**32 - 1", lambda value: 0 <= value < 2**32)
_PART = _Rule("> 0 and <= 1", lambda value: 0 < value <= 1)
_MILESTONES = _Rule(
    "one or more increasing fractions of the run, each > 0 and < 1",
    lambda values: (
        len(values) > 0
        and all(0 < value < 1 for value in values)
        and all(a < b for a, b in itertools.pairwise(values))
    ),
)

_RULES = {
    "seed": _SEED,
    "dataset.name": _one_of(*AUGMENTATIONS),
    "dataset.image_size": _at_least(1),
    "dataset.num_classes": _at_least(2),
    "dataset.holdout": _at_least(0),
    "dataset.batch_size": _at_least(1),
    "dataset.eval_batch_size": _at_least(1),
    "dataset.imbalance_factor": _Rule("0 (off) or >= 1", lambda value: value == 0 or value >= 1),
    "dataset.thresholds_from": _one_of("holdout", "train"),
    "dataset.augmentation": _one_of(*IN_MEMORY, "resized_crop"),
    "dataset.max_bad_share": _BELOW_ONE,
    "dataset.max_pixels": _at_least(1),
    "model.name": _one_of("msdnet", "ranet"),
    "model.num_exits": _at_least(1),
    "model.base": _at_least(1),
    "model.step": _at_least(1),
    "model.step_mode": _one_of("even", "lin_grow", "lg"),
    "model.channels": _at_least(1),
    "model.growth_rate": _at_least(1),
    "model.growth_factors": _every(_at_least(1)),
    "model.bottleneck_factors": _every(_at_least(1)),
    "model.reduction": _PART,
    "model.prune": _one_of("max", "min"),
    "model.stem": _one_of("cifar", "imagenet"),
    "model.num_classes": _at_least(2),
    "model.dtype": _one_of("float32", "bfloat16", "float64"),
    "model.first_blocks": _at_least(1),
    "model.block_step": _at_least(1),
    "model.scale_list": _every(_at_least(1)),
    "model.compress_factor": _Rule("> 0 and < 1", lambda value: 0 < value < 1),
    "weighting.kind": _one_of("meta", "none", "allocation", "fixed", "frozen"),
    "weighting.input": _one_of("loss", "confidence", "both"),
    "weighting.constraint": _one_of("row", "col", "mat"),
    "weighting.magnitude": _at_least(0),
    "weighting.hidden": _at_least(1),
    "weighting.num_layers": _at_least(1),
    "weighting.q": _ABOVE_ZERO,
    "weighting.schedule": _one_of("exact", "pipelined"),
    "weighting.interval": _at_least(1),
    "weighting.objective": _one_of("allocated", "vanilla"),
    "weighting.scope": _one_of("global", "device"),
    "weighting.learning_rate": _ABOVE_ZERO,
    "weighting.weight_decay": _at_least(0),
    "optimizer.learning_rate": _ABOVE_ZERO,
    "optimizer.schedule": _one_of("cosine", "multistep"),
    "optimizer.milestones": _MILESTONES,
    "optimizer.momentum": _BELOW_ONE,
    "optimizer.weight_decay": _at_least(0),
    "optimizer.epochs": _at_least(1),
    "optimizer.label_smoothing": _BELOW_ONE,
    "optimizer.accumulation": _at_least(1),
    "imta.distillation": _BELOW_ONE,
    "imta.temperature": _ABOVE_ZERO,
    "checkpoint.keep": _at_least(1),
    "checkpoint.every_epochs": _at_least(0),
    "checkpoint.every_steps": _at_least(0),
    "log.every_steps": _at_least(1),
    "log.histogram_every_steps": _at_least(0),
    "log.check_replicas": _at_least(0),
}


def validate(config: ConfigDict, device_count: int = 1, process_count: int = 1) -> None:
    """Checks the whole of `config` before anything else runs.

    Args:
        config: what to check; it is not changed.
        device_count: devices of all processes together, which share a batch.
        process_count: processes, each of which reads its part of a batch.

    Raises:
        UserError: one line for each unknown, missing, mistyped or impossible field.
    """
    faults = find_faults(config, default_config(), device_count, process_count)
    if faults:
        raise UserError("\n".join(faults))


def find_faults(
    config: ConfigDict, reference: ConfigDict, device_count: int, process_count: int
) -> list[str]:
    """Returns a line for everything that is wrong with `config`.

    Args:
        config: what to check.
        reference: a configuration that has every field, each with a value of its type.
        device_count: devices of all processes together.
        process_count: processes that each read their part of a batch.
    """
    faults = list(_structure_faults(config, reference, "config"))
    if not faults:
        faults = list(_field_faults(config))
    # Relations between fields make sense only where each field does by itself.
    if not faults:
        faults = [
            *_dataset_faults(config.dataset),
            *_batch_faults(config, device_count, process_count),
            *_model_faults(config),
            *_training_faults(config),
        ]
    return faults


def _has_float64() -> bool:
    # Imported here, since it takes a second and only this needs it.
    import jax

    return jax.config.jax_enable_x64


def _not_allowed(field: str, value: Any, allowed: str) -> str:
    return f"config.{field}: {value!r} is not allowed: must be {allowed}"


def _structure_faults(config: ConfigDict, reference: ConfigDict, path: str) -> Iterator[str]:
    """Yields unknown fields (with the nearest known one), missing fields and wrong types."""
    for name in config:
        if name not in reference:
            nearest = difflib.get_close_matches(name, list(reference), n=1, cutoff=0.0)
            yield f"{path}.{name}: unknown field: the nearest that exists is {path}.{nearest[0]}"
    for name, default in reference.items():
        field = f"{path}.{name}"
        if name not in config:
            yield f"{field}: missing: start from l2w_jax.config.default_config()"
        elif isinstance(default, ConfigDict):
            if isinstance(config[name], ConfigDict):
                yield from _structure_faults(config[name], default, field)
            else:
                yield f"{field}: {config[name]!r} is not allowed: must be a section of fields"
        elif not _has_type(config[name], default):
            yield f"{field}: {config[name]!r} is not allowed: must be {_type_name(default)}"


def _has_type(value: Any, default: Any) -> bool:
    if isinstance(default, tuple):
        return isinstance(value, tuple) and all(_has_type(item, default[0]) for item in value)
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is type(default)


def _type_name(default: Any) -> str:
    if isinstance(default, tuple):
        return f"a tuple, each item {_type_name(default[0])}"
    names = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}
    return names[type(default)]


def _field_faults(config: ConfigDict) -> Iterator[str]:
    for field, rule in _RULES.items():
        section, _, name = field.rpartition(".")
        value = config[section][name] if section else config[name]
        if not rule.holds(value):
            yield _not_allowed(field, value, rule.allowed)


def _dataset_faults(dataset: ConfigDict) -> Iterator[str]:
    if dataset.thresholds_from == "holdout" and dataset.holdout == 0:
        yield _not_allowed("dataset.holdout", 0, "> 0 where dataset.thresholds_from is 'holdout'")
    if dataset.imbalance_factor and dataset.name == "imagenet2012":
        yield _not_allowed(
            "dataset.imbalance_factor", dataset.imbalance_factor, "0 for 'imagenet2012'"
        )
    if dataset.name == "image_folder" and not dataset.data_dir:
        yield _not_allowed(
            "dataset.data_dir", "", "the folder that holds train/CLASS/*.jpg for 'image_folder'"
        )
    augmentations = AUGMENTATIONS[dataset.name]
    if dataset.augmentation not in augmentations:
        yield _not_allowed(
            "dataset.augmentation",
            dataset.augmentation,
            f"one of {', '.join(map(repr, augmentations))} for {dataset.name!r}",
        )
    known = KNOWN_DATASETS.get(dataset.name)
    if known is None:
        return
    if dataset.num_classes != known.num_classes:
        yield _not_allowed(
            "dataset.num_classes", dataset.num_classes, f"{known.num_classes} for {dataset.name!r}"
        )
    if known.image_size and dataset.image_size != known.image_size:
        yield _not_allowed(
            "dataset.image_size", dataset.image_size, f"{known.image_size} for {dataset.name!r}"
        )
    if dataset.holdout >= known.num_train:
        yield _not_allowed(
            "dataset.holdout",
            dataset.holdout,
            f"less than the {known.num_train} training images of {dataset.name!r}",
        )
    elif dataset.batch_size > known.num_train - dataset.holdout:
        yield _not_allowed(
            "dataset.batch_size",
            dataset.batch_size,
            f"at most {known.num_train - dataset.holdout}, the training images of "
            f"{dataset.name!r} without the held-out ones",
        )


def _batch_faults(config: ConfigDict, device_count: int, process_count: int) -> Iterator[str]:
    halves = 1 if config.weighting.kind == "none" else 2
    parts = config.optimizer.accumulation
    unit = math.lcm(halves * device_count * parts, process_count)
    why = f"{device_count} devices" + (" x 2 halves" if halves == 2 else "")
    why += f" x {parts} parts" if parts > 1 else ""
    if config.dataset.batch_size % unit:
        yield _not_allowed(
            "dataset.batch_size", config.dataset.batch_size, f"a multiple of {unit} ({why})"
        )
    eval_unit = math.lcm(device_count, process_count)
    if config.dataset.eval_batch_size % eval_unit:
        yield _not_allowed(
            "dataset.eval_batch_size",
            config.dataset.eval_batch_size,
            f"a multiple of {eval_unit} ({device_count} devices)",
        )


def _model_faults(config: ConfigDict) -> Iterator[str]:
    model = config.model
    if model.num_classes != config.dataset.num_classes:
        yield _not_allowed(
            "model.num_classes",
            model.num_classes,
            f"{config.dataset.num_classes}, the value of dataset.num_classes",
        )
    if len(model.growth_factors) != len(model.bottleneck_factors):
        yield _not_allowed(
            "model.bottleneck_factors",
            model.bottleneck_factors,
            f"as long as model.growth_factors {model.growth_factors!r}",
        )
    if model.dtype == "float64" and not _has_float64():
        yield _not_allowed(
            "model.dtype", model.dtype, "'float32' or 'bfloat16', unless JAX_ENABLE_X64=1 is set"
        )
    if model.name == "msdnet":
        yield from _msdnet_faults(model)
        num_scales = len(model.growth_factors)
    else:
        yield from _ranet_faults(model)
        num_scales = max(model.scale_list)
    yield from _image_size_faults(config.dataset.image_size, model.stem, num_scales)


def _msdnet_faults(model: ConfigDict) -> Iterator[str]:
    if model.step_mode == "lg":
        yield _not_allowed("model.step_mode", "lg", "'even' or 'lin_grow' for 'msdnet'")
        return
    num_scales = len(model.growth_factors)
    num_layers = sum(layers_per_block(model.num_exits, model.base, model.step, model.step_mode))
    if model.prune == "min" and num_layers < num_scales:
        yield _not_allowed(
            "model.prune",
            "min",
            f"'max' for a network of {num_layers} layers and {num_scales} scales: pruning 'min' "
            "needs a layer for each scale",
        )
    for scale, factor in enumerate(model.growth_factors):
        if scale > 0 and model.growth_rate * factor < 2:
            yield _not_allowed(
                "model.growth_factors",
                model.growth_factors,
                f"such that scale {scale + 1} grows by at least 2 channels a layer, which two "
                f"branches share: {model.growth_rate} x {factor} is less",
            )


def _ranet_faults(model: ConfigDict) -> Iterator[str]:
    if model.step_mode == "lin_grow":
        yield _not_allowed("model.step_mode", "lin_grow", "'even' or 'lg' for 'ranet'")
    scales = model.scale_list
    if len(scales) != len(model.growth_factors):
        yield _not_allowed(
            "model.scale_list", scales, f"as long as model.growth_factors {model.growth_factors!r}"
        )
    if scales[0] != 1 or any(b - a not in (0, 1) for a, b in itertools.pairwise(scales)):
        yield _not_allowed(
            "model.scale_list", scales, "numbers that start at 1 and go up by 0 or 1 each"
        )
    for i, factor in enumerate(model.growth_factors[1:], start=2):
        if math.floor(model.growth_rate * factor * model.compress_factor) < 1:
            yield _not_allowed(
                "model.compress_factor",
                model.compress_factor,
                f"such that sub-network {i} reads at least 1 of the {model.growth_rate * factor} "
                "channels that a layer adds from the one before",
            )
    num_exits = model.first_blocks + model.block_step * (len(scales) - 1)
    if model.num_exits != num_exits:
        yield _not_allowed(
            "model.num_exits",
            model.num_exits,
            f"{num_exits}: first_blocks {model.first_blocks} and block_step {model.block_step} for "
            f"each of {len(scales) - 1} further sub-networks",
        )


def _image_size_faults(image_size: int, stem: str, num_scales: int) -> Iterator[str]:
    if pooled_size(image_size, stem, num_scales) == 1:
        return
    allowed = [size for size in range(1, 4097) if pooled_size(size, stem, num_scales) == 1]
    yield _not_allowed(
        "dataset.image_size",
        image_size,
        f"from {allowed[0]} to {allowed[-1]} for {num_scales} scales with the {stem!r} stem, so "
        "that the exits can pool it to one pixel",
    )


def _training_faults(config: ConfigDict) -> Iterator[str]:
    if config.weighting.kind == "frozen" and not config.weighting.checkpoint:
        yield _not_allowed(
            "weighting.checkpoint",
            "",
            "the workdir of a run with weighting.kind 'meta' where weighting.kind is 'frozen'",
        )
    if config.weighting.schedule == "pipelined" and config.imta.gradient_equilibrium:
        yield _not_allowed(
            "weighting.schedule",
            "pipelined",
            "'exact' with imta.gradient_equilibrium, which gives the training loss another "
            "gradient than the meta loss, so that they cannot share a forward pass",
        )
    if config.imta.collaboration and not config.imta.checkpoint:
        yield _not_allowed(
            "imta.checkpoint",
            "",
            "the workdir of a run of the same network where imta.collaboration is True",
        )
    if config.imta.distillation > 0 and not config.imta.collaboration:
        yield _not_allowed(
            "imta.distillation",
            config.imta.distillation,
            "0 without imta.collaboration: it trains the classifiers that collaboration adds",
        )
    if config.checkpoint.every_epochs == 0 and config.checkpoint.every_steps == 0:
        yield _not_allowed("checkpoint.every_epochs", 0, "> 0 where checkpoint.every_steps is 0")

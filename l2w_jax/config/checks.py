"""What makes a configuration impossible: one line per fault, in the words of its fields.

Only the configuration is checked here. What depends on the images themselves is checked when the
data set is opened. Whoever puts a network in the place of `config.model` brings the images too, and
starts from no run: fields about these are not checked then.
"""

import difflib
import itertools
import math
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from l2w_jax.config.allowed import ALLOWED
from l2w_jax.config.choices import (
    AUGMENTATIONS,
    KNOWN_DATASETS,
    PREDICTED_KINDS,
    blocks_per_sub_network,
    distillation_fault,
    has_type,
    holdout_fault,
    image_sizes,
    is_network,
    layers_per_block,
    no_network,
    not_allowed,
    one_of,
    schedule_fault,
    step_mode_fault,
    type_name,
    updates_per_iteration,
)
from l2w_jax.config.defaults import default_config
from l2w_jax.config.paths import path_faults
from l2w_jax.config.stored import fields
from l2w_jax.errors import UserError


def validate(config: ConfigDict, device_count: int = 1, process_count: int = 1) -> None:
    """Checks the whole of `config` before anything else runs.

    Args:
        config: what to check; it is not changed. `config.model` may be a network.
        device_count: devices of all processes together, which share a batch.
        process_count: processes, each of which reads its part of a batch.

    Raises:
        UserError: one line for each unknown, missing, mistyped or impossible field.
    """
    # Relations between fields make sense only where each field does by itself.
    faults = _faults_of_fields(config) or _relation_faults(config, device_count, process_count)
    if faults:
        raise UserError("\n".join(faults))


def validate_trained(config: ConfigDict) -> None:
    """Checks the configuration of a run that is there already, before its network is made.

    The folders that it names may be on another machine, and are not checked.

    Args:
        config: what to check. The section `imta` may be missing, for its defaults.

    Raises:
        UserError: as by `validate`.
    """
    config = _with_imta(config)
    faults = _form_faults(config) or list(_value_faults(config)) or _relation_faults(config, 1, 1)
    if faults:
        raise UserError("\n".join(faults))


def validate_training(config: ConfigDict) -> None:
    """Checks what an iteration depends on, apart from the images, the run and the devices.

    Args:
        config: what to check. The section `imta` may be missing, for its defaults.

    Raises:
        ValueError: one line for each unknown, missing, mistyped or impossible field.
    """
    config = _with_imta(config)
    faults = _faults_of_fields(config) or list(_training_faults(config))
    if faults:
        raise ValueError("\n".join(faults))


def _with_imta(config: ConfigDict) -> ConfigDict:
    return ConfigDict({"imta": default_config().imta, **dict(config)})


def _faults_of_fields(config: ConfigDict) -> list[str]:
    """What is wrong with fields by themselves."""
    return _form_faults(config) or [*_value_faults(config), *path_faults(config)]


def _relation_faults(config: ConfigDict, device_count: int, process_count: int) -> list[str]:
    """What is wrong between fields that do by themselves."""
    if is_network(config.model):
        return list(_training_faults(config))
    return [
        *_dataset_faults(config.dataset),
        *_batch_faults(config, device_count, process_count),
        *_model_faults(config),
        *_training_faults(config),
        *_run_faults(config),
    ]


def _form_faults(config: ConfigDict) -> list[str]:
    """Which fields are unknown, missing or mistyped."""
    reference = default_config()
    model = config.get("model", reference.model)
    if is_network(model):
        reference = default_config(model)
    elif not isinstance(model, ConfigDict):
        return [no_network(model)]
    return list(_structure_faults(config, reference, "config"))


def _float64_fault(dtype: Any) -> str | None:
    """The line that reports a `model.dtype` of float64 where JAX has none; else None."""
    # Imported here, since it takes a second and only this needs it.
    import jax

    if dtype != "float64" or jax.config.jax_enable_x64:
        return None
    return not_allowed(
        "model.dtype", dtype, "'float32' or 'bfloat16', unless JAX_ENABLE_X64=1 is set"
    )


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
        elif not has_type(config[name], default):
            yield f"{field}: {config[name]!r} is not allowed: must be {type_name(default)}"


def _value_faults(config: ConfigDict) -> Iterator[str]:
    for field, value in fields(config):
        allowed = ALLOWED.get(field)
        if allowed and not allowed.includes(value):
            yield not_allowed(field, value, allowed.words)


def _dataset_faults(dataset: ConfigDict) -> Iterator[str]:
    fault = holdout_fault(dataset.holdout, dataset.thresholds_from)
    # A folder may bring its own held-out images, which shows only when it is opened.
    if fault and dataset.name != "image_folder":
        yield fault
    if dataset.imbalance_factor and dataset.name == "imagenet2012":
        yield not_allowed(
            "dataset.imbalance_factor", dataset.imbalance_factor, "0 for 'imagenet2012'"
        )
    if dataset.name == "image_folder" and not dataset.data_dir:
        yield not_allowed(
            "dataset.data_dir", "", "the folder that holds train/CLASS/*.jpg for 'image_folder'"
        )
    augmentations = AUGMENTATIONS[dataset.name]
    if dataset.augmentation not in augmentations:
        yield not_allowed(
            "dataset.augmentation",
            dataset.augmentation,
            f"{one_of(augmentations)} for {dataset.name!r}",
        )
    known = KNOWN_DATASETS.get(dataset.name)
    if known is None:
        return
    if dataset.num_classes != known.num_classes:
        yield not_allowed(
            "dataset.num_classes", dataset.num_classes, f"{known.num_classes} for {dataset.name!r}"
        )
    if known.image_size and dataset.image_size != known.image_size:
        yield not_allowed(
            "dataset.image_size", dataset.image_size, f"{known.image_size} for {dataset.name!r}"
        )
    if dataset.holdout >= known.num_train:
        yield not_allowed(
            "dataset.holdout",
            dataset.holdout,
            f"less than the {known.num_train:,} training images of {dataset.name!r}",
        )
    elif dataset.batch_size > known.num_train - dataset.holdout:
        yield not_allowed(
            "dataset.batch_size",
            dataset.batch_size,
            f"at most {known.num_train - dataset.holdout}, the training images of "
            f"{dataset.name!r} without the held-out ones",
        )


def _batch_faults(config: ConfigDict, device_count: int, process_count: int) -> Iterator[str]:
    halves = updates_per_iteration(config.weighting.kind)
    parts = config.optimizer.accumulation or 1
    unit = math.lcm(halves * device_count * parts, process_count)
    devices = f"{device_count} device" + "s" * (device_count > 1)
    why = devices + (" x 2 halves" if halves == 2 else "")
    why += f" x {parts} parts" if parts > 1 else ""
    if config.dataset.batch_size % unit:
        yield not_allowed(
            "dataset.batch_size", config.dataset.batch_size, f"a multiple of {unit} ({why})"
        )
    eval_unit = math.lcm(device_count, process_count)
    if config.dataset.eval_batch_size % eval_unit:
        yield not_allowed(
            "dataset.eval_batch_size",
            config.dataset.eval_batch_size,
            f"a multiple of {eval_unit} ({devices})",
        )


def _model_faults(config: ConfigDict) -> Iterator[str]:
    model = config.model
    if model.num_classes != config.dataset.num_classes:
        yield not_allowed(
            "model.num_classes",
            model.num_classes,
            f"{config.dataset.num_classes}, the value of dataset.num_classes",
        )
    if len(model.growth_factors) != len(model.bottleneck_factors):
        yield not_allowed(
            "model.bottleneck_factors",
            model.bottleneck_factors,
            f"as long as model.growth_factors {model.growth_factors!r}",
        )
    if fault := _float64_fault(model.dtype):
        yield fault
    if fault := step_mode_fault(model.name, model.step_mode):
        yield fault
        return
    if model.reduction * (model.growth_rate + 1) < 1:
        yield not_allowed(
            "model.reduction",
            model.reduction,
            f"at least 1/{model.growth_rate + 1} with model.growth_rate {model.growth_rate}, so "
            "that each transition keeps a channel",
        )
    if model.name == "msdnet":
        yield from _msdnet_faults(model)
        num_scales = len(model.growth_factors)
    else:
        yield from _ranet_faults(model)
        num_scales = max(model.scale_list)
    yield from _image_size_faults(config.dataset.image_size, model.stem, num_scales)


def _msdnet_faults(model: ConfigDict) -> Iterator[str]:
    num_scales = len(model.growth_factors)
    num_layers = sum(layers_per_block(model.num_exits, model.base, model.step, model.step_mode))
    if model.prune == "min" and num_layers < num_scales:
        yield not_allowed(
            "model.prune",
            "min",
            f"'max' for a network of {num_layers} layers and {num_scales} scales: pruning 'min' "
            "needs a layer for each scale",
        )
    for scale, factor in enumerate(model.growth_factors):
        if scale > 0 and model.growth_rate * factor < 2:
            yield not_allowed(
                "model.growth_factors",
                model.growth_factors,
                f"such that scale {scale + 1} grows by at least 2 channels a layer, which two "
                f"branches share: {model.growth_rate} x {factor} is less",
            )


def _ranet_faults(model: ConfigDict) -> Iterator[str]:
    scales = model.scale_list
    if len(scales) != len(model.growth_factors):
        yield not_allowed(
            "model.scale_list", scales, f"as long as model.growth_factors {model.growth_factors!r}"
        )
    if scales[0] != 1 or any(b - a not in (0, 1) for a, b in itertools.pairwise(scales)):
        yield not_allowed(
            "model.scale_list", scales, "numbers that start at 1 and go up by 0 or 1 each"
        )
    for i, factor in enumerate(model.growth_factors[1:], start=2):
        if math.floor(model.growth_rate * factor * model.compress_factor) < 1:
            yield not_allowed(
                "model.compress_factor",
                model.compress_factor,
                f"such that sub-network {i} reads at least 1 of the {model.growth_rate * factor} "
                "channels that a layer adds from the one before",
            )
    num_exits = blocks_per_sub_network(model.first_blocks, model.block_step, len(scales))[-1]
    if model.num_exits != num_exits:
        yield not_allowed(
            "model.num_exits",
            model.num_exits,
            f"{num_exits}: first_blocks {model.first_blocks} and block_step {model.block_step} for "
            f"each of {len(scales) - 1} further sub-networks",
        )


def _image_size_faults(image_size: int, stem: str, num_scales: int) -> Iterator[str]:
    allowed = image_sizes(stem, num_scales)
    if image_size in allowed:
        return
    yield not_allowed(
        "dataset.image_size",
        image_size,
        f"from {allowed[0]} to {allowed[-1]} for {num_scales} scales with the {stem!r} stem, so "
        "that the exits can pool it to one pixel",
    )


def _training_faults(config: ConfigDict) -> Iterator[str]:
    if config.optimizer.warmup_epochs >= config.optimizer.epochs:
        yield not_allowed(
            "optimizer.warmup_epochs",
            config.optimizer.warmup_epochs,
            f"less than optimizer.epochs, {config.optimizer.epochs}",
        )
    is_predicted = config.weighting.kind in PREDICTED_KINDS
    if is_predicted and config.weighting.constraint == "col" and config.model.num_exits == 1:
        yield not_allowed(
            "weighting.constraint",
            "col",
            "'row' or 'mat' for a network of one exit, whose weights it would make 1",
        )
    # The classifiers that collaboration adds are trained without equilibrium.
    equilibrium = config.imta.gradient_equilibrium and not config.imta.collaboration
    if fault := schedule_fault(config.weighting.schedule, equilibrium):
        yield fault
    if fault := distillation_fault(config.imta.distillation, config.imta.collaboration):
        yield fault


def _run_faults(config: ConfigDict) -> Iterator[str]:
    if config.init.strict and not config.init.checkpoint:
        yield not_allowed("init.strict", True, "False without init.checkpoint")
    if config.init.checkpoint and config.imta.collaboration:
        yield not_allowed(
            "init.checkpoint",
            config.init.checkpoint,
            "'' with imta.collaboration, whose network is that of imta.checkpoint",
        )
    if config.weighting.kind == "frozen" and not config.weighting.checkpoint:
        yield not_allowed(
            "weighting.checkpoint",
            "",
            "the workdir of a run with weighting.kind 'meta' where weighting.kind is 'frozen'",
        )
    if config.weighting.checkpoint and config.weighting.kind != "frozen":
        yield not_allowed(
            "weighting.checkpoint",
            config.weighting.checkpoint,
            f"'' with weighting.kind {config.weighting.kind!r}: only 'frozen' weights come from it",
        )
    if config.imta.checkpoint and not config.imta.collaboration:
        yield not_allowed(
            "imta.checkpoint",
            config.imta.checkpoint,
            "'' without imta.collaboration, whose network is trained from it",
        )
    if config.imta.collaboration and not config.imta.checkpoint:
        yield not_allowed(
            "imta.checkpoint",
            "",
            "the workdir of a run of the same network where imta.collaboration is True",
        )
    if config.checkpoint.every_epochs == 0 and config.checkpoint.every_steps == 0:
        yield not_allowed("checkpoint.every_epochs", 0, "> 0 where checkpoint.every_steps is 0")

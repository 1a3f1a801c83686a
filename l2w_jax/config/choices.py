"""What a configuration may say, for its checks and for the code that does what it says."""

from collections.abc import Sequence
from typing import Any, NamedTuple


class KnownDataset(NamedTuple):
    """What is known of a data set before it is opened. Image size 0: any."""

    num_train: int
    num_classes: int
    image_size: int


KNOWN_DATASETS = {
    "digits": KnownDataset(num_train=1437, num_classes=10, image_size=16),
    "cifar10": KnownDataset(num_train=50_000, num_classes=10, image_size=32),
    "cifar100": KnownDataset(num_train=50_000, num_classes=100, image_size=32),
    "imagenet2012": KnownDataset(num_train=1_281_167, num_classes=1000, image_size=0),
}

IN_MEMORY = ("crop", "shift", "none")
AUGMENTATIONS = {
    "digits": IN_MEMORY,
    "cifar10": IN_MEMORY,
    "cifar100": IN_MEMORY,
    "imagenet2012": ("resized_crop",),
    "image_folder": (*IN_MEMORY, "resized_crop"),
}

# The fields that are one of a few names. Which of them go together is said below and in `checks`.
CHOICES = {
    "dataset.name": tuple(AUGMENTATIONS),
    "dataset.thresholds_from": ("holdout", "train"),
    "dataset.augmentation": (*IN_MEMORY, "resized_crop"),
    "model.name": ("msdnet", "ranet"),
    "model.step_mode": ("even", "lin_grow", "lg"),
    "model.prune": ("max", "min"),
    "model.stem": ("cifar", "imagenet"),
    "model.dtype": ("float32", "bfloat16", "float64"),
    "weighting.kind": ("meta", "none", "allocation", "fixed", "frozen"),
    "weighting.input": ("loss", "confidence", "both"),
    "weighting.constraint": ("row", "col", "mat"),
    "weighting.schedule": ("exact", "pipelined"),
    "weighting.objective": ("allocated", "vanilla"),
    "weighting.scope": ("global", "device"),
    "optimizer.schedule": ("cosine", "multistep"),
}

# The values of `model.step_mode` for each `model.name`.
STEP_MODES = {"msdnet": ("even", "lin_grow"), "ranet": ("even", "lg")}

# The fields that name an earlier run to start from.
EARLIER_RUNS = ("init.checkpoint", "weighting.checkpoint", "imta.checkpoint")

# The kinds of weighting whose weights a weight-prediction network gives.
PREDICTED_KINDS = ("meta", "frozen")

# Width and height of the coarsest features of an exit: two convolutions of stride 2, which round
# up, and an average pool of 2, which rounds down, bring these to the one pixel that its linear
# layer reads (Huang et al., ICLR 2018; figures as in the authors' code).
EXIT_SIZES = range(5, 13)


def updates_per_iteration(kind: str) -> int:
    """How many updates of the network a batch makes: one, or where samples are weighted one on each
    half, with the other half as its meta data (Han et al., ECCV 2022, algorithm 1).

    Args:
        kind: `weighting.kind`.
    """
    return 1 if kind == "none" else 2


def not_allowed(field: str, value: Any, allowed: str) -> str:
    """The line that reports an impossible value."""
    return f"config.{field}: {value!r} is not allowed: must be {allowed}"


def has_type(value: Any, default: Any) -> bool:
    """Whether a value may stand where the default of a field is of this type."""
    if isinstance(default, tuple):
        return isinstance(value, tuple) and all(has_type(item, default[0]) for item in value)
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is type(default)


def type_name(default: Any) -> str:
    """What is allowed where the default of a field is of this type."""
    if isinstance(default, tuple):
        return f"a tuple, each item {type_name(default[0])}"
    names = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}
    return names[type(default)]


def one_of(names: Sequence[str]) -> str:
    """What is allowed where a field is one of a few names."""
    return "one of " + ", ".join(map(repr, names))


def unknown_choice(field: str, value: Any) -> ValueError:
    """The error for a name that `CHOICES` does not have for the field."""
    return ValueError(not_allowed(field, value, one_of(CHOICES[field])))


def is_network(model: Any) -> bool:
    """Whether a `model` is a network, and not the fields that describe one.

    It is known by what it defines, as its class takes seconds to import.
    """
    return hasattr(model, "init_carry") and not isinstance(model, type)


def no_network(model: Any) -> str:
    """The line that reports a `model` that is neither, by its type: a module's text is long."""
    allowed = "a section of fields, or an object of a subclass of MultiExitNetwork"
    return not_allowed("model", type(model).__name__, allowed)


def step_mode_fault(network: str, step_mode: str) -> str | None:
    """The line that reports a `model.step_mode` not meant for this `model.name`; else None."""
    if step_mode in STEP_MODES[network]:
        return None
    allowed = f"{one_of(STEP_MODES[network])} for {network!r}"
    return not_allowed("model.step_mode", step_mode, allowed)


def holdout_fault(holdout: int, thresholds_from: str) -> str | None:
    """The line that reports thresholds from held-out images where there are none; else None."""
    if holdout or thresholds_from != "holdout":
        return None
    return not_allowed("dataset.holdout", 0, "> 0 where dataset.thresholds_from is 'holdout'")


def schedule_fault(schedule: str, gradient_equilibrium: bool) -> str | None:
    """The line that reports a `weighting.schedule` that gradient equilibrium forbids; else None."""
    if schedule != "pipelined" or not gradient_equilibrium:
        return None
    return not_allowed(
        "weighting.schedule",
        schedule,
        "'exact' with imta.gradient_equilibrium, which gives the training loss another "
        "gradient than the meta loss, so that they cannot share a forward pass",
    )


def distillation_fault(distillation: float, collaboration: bool) -> str | None:
    """The line that reports an `imta.distillation` that has nobody to teach; else None."""
    if not distillation or collaboration:
        return None
    return not_allowed(
        "imta.distillation",
        distillation,
        "0 without imta.collaboration: it trains the classifiers that collaboration adds",
    )


def layers_per_block(num_exits: int, base: int, step: int, step_mode: str) -> list[int]:
    """Layers in each block of MSDNet: `base`, then `step` ("even") or `step`·i + 1 ("lin_grow").

    Raises:
        ValueError: `step_mode` is not one of MSDNet's.
    """
    if fault := step_mode_fault("msdnet", step_mode):
        raise ValueError(fault)
    if step_mode == "even":
        return [base] + [step] * (num_exits - 1)
    return [base] + [step * i + 1 for i in range(1, num_exits)]


def blocks_per_sub_network(first_blocks: int, block_step: int, num_sub_networks: int) -> list[int]:
    """Blocks in each sub-network of RANet; the last has as many as the network has exits."""
    return [first_blocks + block_step * i for i in range(num_sub_networks)]


def image_sizes(stem: str, num_scales: int) -> range:
    """Widths and heights of images whose coarsest features have one of `EXIT_SIZES`.

    Every convolution or pool of stride 2 on the way pads by 1, so it rounds up: features of n
    pixels come from images of (n - 1)·2^h + 1 to n·2^h pixels, h being their number.

    Args:
        stem: "cifar", or "imagenet", which halves twice.
        num_scales: resolutions from the stem's to that of the exits.
    """
    shrinkage = 2 ** (num_scales - 1 + (2 if stem == "imagenet" else 0))
    return range((EXIT_SIZES[0] - 1) * shrinkage + 1, EXIT_SIZES[-1] * shrinkage + 1)

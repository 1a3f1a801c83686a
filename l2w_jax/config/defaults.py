"""Every field of a configuration with its default.

`default_config` holds the method's CIFAR recipe (Han et al., ECCV 2022, section 4.1) on the 5-exit
MSDNet, so that a file in `configs/` states only what differs.
"""

from collections.abc import Collection, Sequence
from typing import Any

from ml_collections import ConfigDict

from l2w_jax.errors import UserError


def default_config(model: Any = None) -> ConfigDict:
    """Returns a configuration with every field that exists, unlocked.

    `model.num_classes` is a reference to `dataset.num_classes`: setting the latter sets both.

    Args:
        model: a network (`l2w_jax.models.MultiExitNetwork`) that takes the place of the fields that
            describe one.
    """
    config = ConfigDict()
    # Draws the same first network only where JAX_THREEFRY_PARTITIONABLE and JAX_DEFAULT_PRNG_IMPL,
    # which decide how JAX draws, are the same too.
    config.seed = 0
    config.init = ConfigDict(
        {
            "checkpoint": "",  # workdir of the run whose network this one starts from
            "strict": False,  # refuses a network that does not fit as a whole
        }
    )
    config.dataset = ConfigDict(
        {
            "name": "cifar10",  # digits | cifar10 | cifar100 | imagenet2012 | image_folder
            "data_dir": "",  # where the data lie; "" is the default folder of TensorFlow Datasets
            "image_size": 32,  # pixels, of the square that the network sees
            "num_classes": 10,
            "holdout": 5000,  # training images kept for thresholds and for choosing checkpoints
            "batch_size": 1024,  # images of one iteration over all devices (both halves)
            "eval_batch_size": 256,  # images of one evaluation batch over all devices
            "imbalance_factor": 0,  # largest over smallest class of a long-tailed set; 0: untouched
            "thresholds_from": "holdout",  # holdout | train (the authors' CIFAR script)
            "augmentation": "crop",  # crop | resized_crop | shift | none
            "max_bad_share": 0.001,  # a run stops when more, rounded up to images, cannot be read
            "max_pixels": 89_478_485,  # of a stored image; a larger one is bad (Pillow's limit)
        }
    )
    config.model = ConfigDict(
        {
            "name": "msdnet",  # msdnet | ranet
            "num_exits": 5,
            "base": 1,  # layers of the first block (MSDNet)
            "step": 1,
            "step_mode": "lin_grow",  # msdnet: even | lin_grow; ranet: even | lg
            "channels": 16,
            "growth_rate": 6,
            "growth_factors": (1, 2, 4),  # per scale (MSDNet) or per sub-network (RANet)
            "bottleneck_factors": (1, 2, 4),
            "reduction": 0.5,
            "prune": "max",  # max | min (MSDNet)
            "stem": "cifar",  # cifar | imagenet
            "num_classes": config.dataset.get_ref("num_classes"),
            "dtype": "float32",  # float32 | bfloat16 | float64
            "first_blocks": 2,  # the last four: RANet only
            "block_step": 2,
            "scale_list": (1, 2, 3),
            "compress_factor": 0.25,
        }
    )
    if model is not None:
        with config.ignore_type():
            config.model = model
    config.weighting = ConfigDict(
        {
            "kind": "meta",  # meta | none | allocation | fixed | frozen
            "input": "loss",  # loss | confidence | both
            "constraint": "col",  # the mean that is subtracted: row | col | mat
            "magnitude": 0.8,  # the paper's delta; learned weights lie in 1 +- 2 delta
            "hidden": 500,
            "num_layers": 1,
            "q": 0.75,  # exit k is given a share proportional to q**k of the meta data
            "schedule": "exact",  # exact | pipelined (each meta update one half-step late)
            "interval": 1,  # iterations from one meta update to the next
            "objective": "allocated",  # allocated | vanilla
            "scope": "global",  # global | device (the authors': each device by itself)
            "learning_rate": 1e-4,
            "weight_decay": 1e-4,
            "checkpoint": "",  # workdir of the run whose weight-prediction network kind=frozen uses
        }
    )
    config.optimizer = ConfigDict(
        {
            "learning_rate": 0.8,
            "schedule": "cosine",  # cosine | multistep
            "milestones": (0.5, 0.75),  # multistep: x0.1 after these fractions of the run
            "momentum": 0.9,
            "weight_decay": 1e-4,
            "epochs": 300,
            "warmup_epochs": 0,  # in which both learning rates rise linearly from 0
            "label_smoothing": 0.0,
            "accumulation": 1,  # parts of a half, one in memory at a time; 0: as few as fit
        }
    )
    config.imta = ConfigDict(
        {
            "gradient_equilibrium": False,
            "collaboration": False,  # new exits on a trained network, which stays as it is
            "checkpoint": "",  # workdir of the run whose network collaboration starts from
            "distillation": 0.0,  # gamma, the part that the last exit teaches; 0 is off
            "temperature": 1.0,  # of distillation
        }
    )
    config.checkpoint = ConfigDict(
        {
            "keep": 3,  # newest checkpoints that stay, beside the best one
            "every_epochs": 1,  # epochs from one checkpoint and held-out score to the next; 0: off
            "every_steps": 0,  # iterations from one checkpoint to the next; 0: off
        }
    )
    config.log = ConfigDict(
        {
            "every_steps": 20,  # iterations from one line of metrics.jsonl, their mean, to the next
            "histogram_every_steps": 500,  # from one histogram of weights to the next; 0: none
            "profile": False,  # TensorBoard's profile of a few iterations
            "check_replicas": 0,  # iterations between comparisons of devices' states; 0: none
        }
    )
    return config


def use_plain_recipe(
    config: ConfigDict,
    batch_size: int = 64,
    epochs: int = 300,
    milestones: tuple[float, ...] = (0.5, 0.75),
) -> None:
    """Changes `config` to ordinary training, as MSDNet and RANet were first trained.

    The defaults are Huang et al., ICLR 2018, section 5 on CIFAR: no weighting, SGD from 0.1, x0.1
    at one half and three quarters of the run.
    """
    config.weighting.kind = "none"
    config.dataset.batch_size = batch_size
    config.optimizer.learning_rate = 0.1
    config.optimizer.schedule = "multistep"
    config.optimizer.milestones = milestones
    config.optimizer.epochs = epochs


def use_small_msdnet(config: ConfigDict) -> None:
    """Changes `config.model` to a 4-exit MSDNet for images of 16x16 pixels: minutes on a CPU."""
    config.model.update(
        num_exits=4,
        step_mode="even",
        channels=8,
        growth_rate=4,
        growth_factors=(1, 2),
        bottleneck_factors=(1, 2),
    )


def use_imagenet_recipe(config: ConfigDict) -> None:
    """Changes `config` to the method's ImageNet recipe (Han et al., ECCV 2022, section 4.1)."""
    config.dataset.update(
        name="imagenet2012",
        image_size=224,
        num_classes=1000,
        holdout=50_000,
        batch_size=4096,
        augmentation="resized_crop",
    )
    config.weighting.update(magnitude=0.3, constraint="mat", interval=100)
    config.optimizer.update(epochs=100, accumulation=0)


def use_cifar_ranet(config: ConfigDict) -> None:
    """Changes `config.model` to the 6-exit RANet on CIFAR (Yang et al., CVPR 2020, section 4.1)."""
    config.model.update(
        name="ranet",
        num_exits=6,
        first_blocks=2,
        block_step=2,
        step=2,
        step_mode="lg",
        growth_factors=(4, 2, 1),
        bottleneck_factors=(4, 2, 1),
        scale_list=(1, 2, 3),
    )


def split_variant(
    variant: str, allowed: Sequence[str], one_of: Sequence[Collection[str]] = ()
) -> tuple[str, ...]:
    """Splits the text after the colon of `--config=FILE.py:VARIANT` at its commas.

    Args:
        variant: the text.
        allowed: what its parts may be.
        one_of: groups of parts that exclude one another.

    Raises:
        UserError: a part of it is not in `allowed`, or two are of one group.
    """
    parts = tuple(part for part in variant.split(",") if part)
    for part in parts:
        if part not in allowed:
            raise UserError(
                f"config variant: {part!r} is not allowed: must be one of {', '.join(allowed)}, "
                "or nothing after the colon"
            )
    for group in one_of:
        chosen = sorted(set(parts) & set(group), key=parts.index)
        if len(chosen) > 1:
            raise UserError(
                f"config variant: {variant!r} is not allowed: must have one of "
                f"{', '.join(chosen)} only"
            )
    return parts

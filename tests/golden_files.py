"""Reads the golden files: what the networks' original authors' modules compute."""

import importlib.util
import json
from pathlib import Path

from l2w_jax.config import default_config

FOLDER = Path(__file__).parent / "golden"
_NUM_CLASSES = {"cifar10": 10, "cifar100": 100, "ImageNet": 1000}


def load(name):
    """The content of `name`.json."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def _load_named_tensors():
    spec = importlib.util.spec_from_file_location("named_tensors", FOLDER / "named_tensors.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


named_tensors = _load_named_tensors()


def config_of(authors_config, image_size=32):
    """A configuration of ours for the network of a golden file."""
    config = default_config()
    config.dataset.num_classes = _NUM_CLASSES[authors_config["data"]]
    config.dataset.image_size = image_size
    config.model.update(
        step=authors_config["step"],
        step_mode=authors_config["stepmode"],
        channels=authors_config["nChannels"],
        growth_rate=authors_config["growthRate"],
        growth_factors=tuple(authors_config["grFactor"]),
        bottleneck_factors=tuple(authors_config["bnFactor"]),
        reduction=authors_config["reduction"],
        stem="imagenet" if authors_config["data"] == "ImageNet" else "cifar",
    )
    if "scale_list" in authors_config:
        config.model.update(
            name="ranet",
            first_blocks=authors_config["nBlocks"],
            block_step=authors_config["block_step"],
            scale_list=tuple(authors_config["scale_list"]),
            compress_factor=authors_config["compress_factor"],
        )
    else:
        config.model.update(
            num_exits=authors_config["nBlocks"],
            base=authors_config["base"],
            prune=authors_config["prune"],
        )
    return config


def images(seed, count, size):
    """The golden images in our axis order, [count, size, size, 3]."""
    return named_tensors.images(seed, count, size).transpose(0, 2, 3, 1)


def labels(seed, count, num_classes):
    """The golden labels, [count]."""
    return named_tensors.labels(seed, count, num_classes)


def named_tensor(name, shape):
    """The value of the tensor that PyTorch calls `name`."""
    return named_tensors.named_tensor(name, tuple(shape))

"""What a configuration may say, for its checks and for the networks that it describes."""

from typing import NamedTuple


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


def layers_per_block(num_exits: int, base: int, step: int, step_mode: str) -> list[int]:
    """Number of layers in each block: `base`, then `step` ("even") or `step`·i + 1 ("lin_grow")."""
    if step_mode == "even":
        return [base] + [step] * (num_exits - 1)
    return [base] + [step * i + 1 for i in range(1, num_exits)]


def pooled_size(image_size: int, stem: str, num_scales: int) -> int:
    """Returns the width in pixels of what an exit's linear layer is given, which must be 1.

    Every stride-2 convolution or pool pads by 1, so it rounds up; the classifier's average pool
    of 2 rounds down (Huang et al., ICLR 2018; figures as in the authors' code).
    """
    num_halvings = num_scales - 1 + 2 + (2 if stem == "imagenet" else 0)
    size = image_size
    for _ in range(num_halvings):
        size = -(-size // 2)
    return size // 2

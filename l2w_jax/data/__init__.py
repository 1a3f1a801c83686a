"""Data sets: `open_source(config)` is all that the rest of the program needs.

Only this package knows about TensorFlow, and imports it only where it reads files through it.
"""

from collections.abc import Sequence

from ml_collections import ConfigDict

from l2w_jax.data.source import Batch, Source

__all__ = ["Batch", "Source", "open_source"]


def open_source(config: ConfigDict, known_classes: Sequence[str] | None = None) -> Source:
    """Opens the data set that `config.dataset` names and splits it.

    Args:
        config: a run's configuration.
        known_classes: the names of the classes that its network was trained on, by number; None
            where there are none yet. They number the classes of a folder without training images.

    Raises:
        UserError: it is not there or not as the configuration says; raised before any training.
    """
    # Imported here because each brings other libraries, TensorFlow among them (9 s).
    if config.dataset.name == "digits":
        from l2w_jax.data.digits import open_digits

        return open_digits(config)
    if config.dataset.name in ("cifar10", "cifar100"):
        from l2w_jax.data.cifar import open_cifar

        return open_cifar(config)
    if config.dataset.name == "imagenet2012":
        from l2w_jax.data.imagenet import open_imagenet

        return open_imagenet(config)
    if config.dataset.name == "image_folder":
        from l2w_jax.data.image_folder import open_image_folder

        return open_image_folder(config, known_classes)
    raise ValueError(f"unknown data set {config.dataset.name!r}")

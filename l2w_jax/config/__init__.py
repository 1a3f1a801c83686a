"""The configuration of a run: its fields, what is allowed in them, and how it is stored.

The command line of a configuration is in `flags`, which needs absl and so is not imported here.
"""

from l2w_jax.config.checks import validate
from l2w_jax.config.defaults import (
    default_config,
    split_variant,
    use_cifar_ranet,
    use_imagenet_recipe,
    use_plain_recipe,
    use_small_msdnet,
)
from l2w_jax.config.stored import changes, from_json, read_config, to_json

__all__ = [
    "changes",
    "default_config",
    "from_json",
    "read_config",
    "split_variant",
    "to_json",
    "use_cifar_ranet",
    "use_imagenet_recipe",
    "use_plain_recipe",
    "use_small_msdnet",
    "validate",
]

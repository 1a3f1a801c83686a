"""Inline subnetwork collaboration (Li et al., "Improved Techniques for Training Adaptive Deep
Networks", ICCV 2019): each exit reads what the one before it has concluded.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from typing_extensions import override

from l2w_jax.models.initializers import torch_default
from l2w_jax.models.layers import BatchNorm, LayerOptions
from l2w_jax.models.multi_exit import Carry, MultiExitNetwork

# The backbone's carry, and the logits of the new classifier before; None before the first.
CollaborationCarry = tuple[Carry, jax.Array | None]


class CollaborativeClassifier(nn.Module):
    """A linear layer on pooled features and on what the logits of the exit before say."""

    num_classes: int
    options: LayerOptions

    @nn.compact
    def __call__(self, pooled: jax.Array, previous: jax.Array | None, train: bool) -> jax.Array:
        """[N, F] and the logits of the exit before, [N, C] or None -> logits [N, C]."""
        x = pooled
        if previous is not None:
            hint = self._linear(previous, pooled.shape[-1], "hint")
            hint = nn.relu(BatchNorm(self.options, name="bn")(hint, train))
            x = jnp.concatenate([pooled, hint], axis=-1)
        return self._linear(x, self.num_classes, "linear")

    def _linear(self, x: jax.Array, features: int, name: str) -> jax.Array:
        init = torch_default(x.shape[-1])
        return nn.Dense(
            features,
            dtype=self.options.dtype,
            param_dtype=self.options.param_dtype,
            kernel_init=init,
            bias_init=init,
            name=name,
        )(x)


class CollaborativeExits(MultiExitNetwork):
    """A trained network with new classifiers, each of which reads the logits of the one before.

    The network itself, under "net" among the variables, is not trained any further; its running
    statistics still move. Its type of computation and device axis become those given here.

    Attributes:
        backbone: a network with `stage_with_features` and `num_classes`, C.
    """

    backbone: MultiExitNetwork

    @property
    @override
    def num_exits(self) -> int:
        return self.backbone.num_exits

    @property
    def num_classes(self) -> int:
        """C, as many as the backbone has."""
        return self.backbone.num_classes

    @property
    @override
    def frozen(self) -> tuple[str, ...]:
        return ("net",)

    @override
    def setup(self) -> None:
        self.net = self.backbone.clone(dtype=self.dtype, axis_name=self.axis_name, name=None)
        options = LayerOptions(self.dtype, self.axis_name)
        self.classifiers = [
            CollaborativeClassifier(self.num_classes, options) for _ in range(self.num_exits)
        ]

    @override
    def init_carry(self, images: jax.Array, train: bool) -> CollaborationCarry:
        # There are no logits yet.
        return self.net.init_carry(images, train), None

    @override
    def stage(
        self, k: int, carry: CollaborationCarry, train: bool
    ) -> tuple[jax.Array, CollaborationCarry | tuple[()]]:
        logits, _, carry = self._stage_with_backbone(k, carry, train)
        return logits, carry

    def with_teacher(self, images: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """[N, H, W, 3] -> logits of all exits [K, N, C], and the backbone's own last [N, C]."""
        carry = self.init_carry(images, train)
        logits = []
        for k in range(self.num_exits):
            exit_logits, backbone_logits, carry = self._stage_with_backbone(k, carry, train)
            logits.append(exit_logits)
        return jnp.stack(logits), backbone_logits

    def _stage_with_backbone(
        self, k: int, carry: CollaborationCarry, train: bool
    ) -> tuple[jax.Array, jax.Array, CollaborationCarry | tuple[()]]:
        """Logits of the new classifier and of the backbone's, and what stage k + 1 starts from."""
        backbone_carry, previous = carry
        pooled, backbone_logits, backbone_carry = self.net.stage_with_features(
            k, backbone_carry, train
        )
        logits = self.classifiers[k](pooled, previous, train)
        last = k + 1 == self.num_exits
        return logits, backbone_logits, () if last else (backbone_carry, logits)

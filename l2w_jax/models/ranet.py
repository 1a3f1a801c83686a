"""Resolution Adaptive Network (Yang et al., "Resolution Adaptive Networks for Efficient Inference",
CVPR 2020).

Sub-networks work at rising resolutions: the first sees the image at the lowest one, and each later
one fuses what the one before has computed into its own blocks. Exits are ordered sub-network by
sub-network, so that only hard images reach the high resolutions.
"""

import dataclasses
import itertools

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn
from typing_extensions import override

from l2w_jax.config.choices import blocks_per_sub_network, step_mode_fault
from l2w_jax.models.layers import (
    Branch,
    Classifier,
    ConvBNReLU,
    FirstLayer,
    LayerOptions,
    reduced,
)
from l2w_jax.models.multi_exit import MultiExitNetwork
from l2w_jax.models.resize import resize_align_corners

# What a block hands to the same block of the next sub-network: its input, and the output of each of
# its layers.
BlockFeatures = tuple[jax.Array, ...]


@dataclasses.dataclass(frozen=True)
class BlockPlan:
    """One block of a sub-network.

    Attributes:
        num_layers: number of layers.
        fuses: whether it reads the same block of the sub-network before (else it has an exit).
        downsamples: whether a fusing block halves the resolution, in its last layer.
        has_transition: whether a 1x1 transition closes it.
    """

    num_layers: int
    fuses: bool
    downsamples: bool
    has_transition: bool


def plan_sub_networks(
    first_blocks: int, block_step: int, step: int, step_mode: str, scale_list: tuple[int, ...]
) -> tuple[tuple[BlockPlan, ...], ...]:
    """The blocks of every sub-network (Yang et al., section 3.3).

    Args:
        first_blocks: blocks of sub-network 0; each later one has `block_step` more.
        block_step: blocks, and exits, that each later sub-network adds.
        step: layers of the first block.
        step_mode: "even", `step` layers in every block, or "lg": all sub-networks share a list of
            layer counts, to which each block with an exit appends one that is `step` larger.
        scale_list: number of scales of each sub-network, one more than the number of times that it
            halves its resolution.

    Raises:
        ValueError: `step_mode` is not one of RANet's.
    """
    if fault := step_mode_fault("ranet", step_mode):
        raise ValueError(fault)
    layer_counts = [step]
    block_counts = blocks_per_sub_network(first_blocks, block_step, len(scale_list))
    sub_networks = []
    for i, (num_blocks, num_scales) in enumerate(zip(block_counts, scale_list, strict=True)):
        fusing = block_counts[i - 1] if i > 0 else 0
        downsampling = [0, *block_counts[:i]][-(num_scales - 1) :] if num_scales > 1 else []
        transitions = [(m + 1) * num_blocks // num_scales for m in range(num_scales - 1)]
        blocks = []
        for j in range(1, num_blocks + 1):
            fuses = j <= fusing
            blocks.append(
                BlockPlan(
                    num_layers=layer_counts[j - 1],
                    fuses=fuses,
                    downsamples=fuses and j in downsampling,
                    has_transition=j in transitions,
                )
            )
            if not fuses:
                layer_counts.append(step if step_mode == "even" else layer_counts[-1] + step)
        sub_networks.append(tuple(blocks))
    return tuple(sub_networks)


class NormalBlock(nn.Module):
    """Densely connected layers: x <- concat(x, branch(x))."""

    num_layers: int
    width: int
    bottleneck_factor: int
    options: LayerOptions

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, BlockFeatures]:
        """[N, H, W, C] -> the output, and the features for the next sub-network."""
        features = [x]
        for i in range(self.num_layers):
            branch = Branch(
                x.shape[-1],
                self.width,
                self.bottleneck_factor,
                self.options,
                name=f"layer_{i}_normal",
            )
            x = jnp.concatenate([x, branch(x, train)], axis=-1)
            features.append(x)
        return x, tuple(features)


class FusionBlock(nn.Module):
    """Dense layers, part of whose new channels come from the sub-network before.

    Attributes:
        plan: the number of layers, and whether the last one halves the resolution.
        width: new channels of a layer.
        compress_factor: share of them that is read from the lower resolution.
        bottleneck_factor, low_bottleneck_factor: this sub-network's and that of the one before.
    """

    plan: BlockPlan
    width: int
    compress_factor: float
    bottleneck_factor: int
    low_bottleneck_factor: int
    options: LayerOptions

    @nn.compact
    def __call__(
        self, x: jax.Array, low_features: BlockFeatures, train: bool
    ) -> tuple[jax.Array, BlockFeatures]:
        """x at this resolution and the low block's features -> output, features for the next."""
        num_layers = self.plan.num_layers
        low_width = reduced(self.width, self.compress_factor)
        out_features = x.shape[-1] + num_layers * self.width
        features = [x]
        for i in range(num_layers):
            halves = self.plan.downsamples and i == num_layers - 1
            low = Branch(
                low_features[i].shape[-1],
                low_width,
                self.low_bottleneck_factor,
                self.options,
                name=f"layer_{i}_up",
            )(low_features[i], train)
            own = Branch(
                x.shape[-1],
                self.width - low_width,
                self.bottleneck_factor,
                self.options,
                2 if halves else 1,
                name=f"layer_{i}_normal",
            )(x, train)
            size = own.shape[1:3]
            resized = (resize_align_corners(x, *size), resize_align_corners(low, *size), own)
            x = jnp.concatenate(resized, axis=-1)
            features.append(x)
        low_out = ConvBNReLU(
            reduced(out_features, self.compress_factor), 1, self.options, name="conv_last"
        )(low_features[-1], train)
        low_out = resize_align_corners(low_out, *x.shape[1:3])
        return jnp.concatenate([x, low_out], axis=-1), tuple(features)


class Transition(nn.Module):
    """A 1x1 convolution, batch norm and ReLU that keeps the share `reduction` of the channels."""

    reduction: float
    options: LayerOptions

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[N, H, W, C] -> [N, H, W, floor(reduction · C)]."""
        width = reduced(x.shape[-1], self.reduction)
        return ConvBNReLU(width, 1, self.options, name="reduce")(x, train)


@flax.struct.dataclass
class RANetCarry:
    """Where a forward pass stands.

    Attributes:
        starts: inputs of the sub-networks that have not begun, the next one first.
        x: the last output of the current sub-network; None where the next one is to begin.
        features: what the current sub-network hands to the next, block by block.
    """

    starts: tuple[jax.Array, ...]
    x: jax.Array | None
    features: tuple[BlockFeatures, ...]


class RANet(MultiExitNetwork):
    """Resolution Adaptive Network.

    Attributes:
        first_blocks, block_step, step, step_mode: `plan_sub_networks`.
        channels: width of the first layer, times the sub-network's growth factor.
        growth_rate: channels that a layer adds, times the sub-network's growth factor.
        growth_factors, bottleneck_factors, scale_list: one a sub-network, the lowest resolution
            first.
        reduction: transitions keep this share of the channels.
        compress_factor: share of a fusing layer's new channels that the lower resolution gives.
        stem: "cifar" or "imagenet".
        num_classes: C.
    """

    first_blocks: int
    block_step: int
    step: int
    step_mode: str
    channels: int
    growth_rate: int
    growth_factors: tuple[int, ...]
    bottleneck_factors: tuple[int, ...]
    scale_list: tuple[int, ...]
    reduction: float
    compress_factor: float
    stem: str
    num_classes: int

    @property
    def num_scales(self) -> int:
        """Resolutions between the highest and that of the exits, each half of the one before."""
        return max(self.scale_list)

    @property
    def plans(self) -> tuple[tuple[BlockPlan, ...], ...]:
        """The blocks of every sub-network."""
        return plan_sub_networks(
            self.first_blocks, self.block_step, self.step, self.step_mode, self.scale_list
        )

    @property
    @override
    def num_exits(self) -> int:
        return len(self._exits)

    @override
    def setup(self) -> None:
        options = LayerOptions(self.dtype, self.axis_name)
        widths = tuple(self.channels * factor for factor in self.growth_factors)
        strides = tuple(2 if a != b else 1 for a, b in itertools.pairwise(self.scale_list))
        # From the highest resolution down, which is that of the last sub-network.
        self.first_layer = FirstLayer(widths[::-1], strides[::-1], self.stem, options)
        options = dataclasses.replace(options, fan_out_init=True)
        self.blocks = {
            f"{i}_{j}": self._block(i, plan, options)
            for i, blocks in enumerate(self.plans)
            for j, plan in enumerate(blocks)
        }
        self.transitions = {
            f"{i}_{j}": Transition(self.reduction, options)
            for i, blocks in enumerate(self.plans)
            for j, plan in enumerate(blocks)
            if plan.has_transition
        }
        self.classifiers = [
            Classifier(self.stem, self.num_classes, options) for _ in range(self.num_exits)
        ]

    def _block(self, i: int, plan: BlockPlan, options: LayerOptions) -> nn.Module:
        width = self.growth_rate * self.growth_factors[i]
        bottleneck = self.bottleneck_factors[i]
        if not plan.fuses:
            return NormalBlock(plan.num_layers, width, bottleneck, options)
        low_bottleneck = self.bottleneck_factors[i - 1]
        return FusionBlock(plan, width, self.compress_factor, bottleneck, low_bottleneck, options)

    @override
    def init_carry(self, images: jax.Array, train: bool) -> RANetCarry:
        return RANetCarry(starts=self.first_layer(images, train)[::-1], x=None, features=())

    @override
    def stage_with_features(
        self, k: int, carry: RANetCarry, train: bool
    ) -> tuple[jax.Array, jax.Array, RANetCarry | tuple[()]]:
        """The block of exit k and its classifier.

        Where a sub-network begins, all its fusing blocks run first.
        """
        i, j = self._exits[k]
        x, starts, features = carry.x, carry.starts, carry.features
        if j == len(self._fusing(i)):
            x, starts, low_features, features = starts[0], starts[1:], features, ()
            for fusing in self._fusing(i):
                x, handed = self.blocks[f"{i}_{fusing}"](x, low_features[fusing], train)
                x = self._close(i, fusing, x, train)
                features = (*features, handed)
        x, handed = self.blocks[f"{i}_{j}"](x, train)
        for_classifier, x = self.balance_gradients(k, self._close(i, j, x, train))
        pooled, logits = self.classifiers[k](for_classifier, train)
        if k + 1 == self.num_exits:
            return pooled, logits, ()
        if f"{i}_{j}" not in self.transitions:
            # The next sub-network reads this exit's features too, so they are handed on balanced.
            handed = (*handed[:-1], x)
        # Nothing is carried that no later block reads: survivors are copied at every exit.
        features = (*features, handed) if starts else ()
        ends = self._exits[k + 1][0] != i
        return pooled, logits, RANetCarry(starts, None if ends else x, features)

    @property
    def _exits(self) -> list[tuple[int, int]]:
        """Sub-network and block of every exit."""
        return [
            (i, j)
            for i, blocks in enumerate(self.plans)
            for j, plan in enumerate(blocks)
            if not plan.fuses
        ]

    def _fusing(self, i: int) -> list[int]:
        """The blocks of sub-network i that fuse, which are its first."""
        return [j for j, plan in enumerate(self.plans[i]) if plan.fuses]

    def _close(self, i: int, j: int, x: jax.Array, train: bool) -> jax.Array:
        """The transition after block j of sub-network i, where it has one."""
        name = f"{i}_{j}"
        return self.transitions[name](x, train) if name in self.transitions else x

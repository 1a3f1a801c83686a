"""Multi-Scale DenseNet (Huang et al., "Multi-Scale Dense Networks for Resource Efficient Image
Classification", ICLR 2018).

A layer works on several scales at once, scale 0 the finest; blocks of layers end in a classifier on
the coarsest scale. As the network deepens it drops its finest scales ("network reduction").
"""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from typing_extensions import override

from l2w_jax.config.choices import CHOICES, layers_per_block, unknown_choice
from l2w_jax.models.layers import (
    Branch,
    Classifier,
    ConvBNReLU,
    FirstLayer,
    LayerOptions,
    from_one_input,
    reduced,
    side_by_side,
)
from l2w_jax.models.multi_exit import MultiExitNetwork

Features = tuple[jax.Array, ...]


@dataclasses.dataclass(frozen=True)
class LayerPlan:
    """One layer: how many of the coarsest scales come in and go out, and what follows.

    Attributes:
        transition_width: channels per growth factor of the 1x1 transition after the layer; None
            where there is none.
    """

    scales_in: int
    scales_out: int
    transition_width: int | None


def plan_blocks(
    layer_counts: list[int],
    num_scales: int,
    channels: int,
    growth_rate: int,
    reduction: float,
    prune: str,
) -> tuple[tuple[LayerPlan, ...], ...]:
    """The layers of every block (Huang et al., section 4, "network reduction").

    prune "max" drops a scale every ceil(L/S) layers, with a transition after each drop; "min" keeps
    all scales as long as the remaining layers can still reach the coarsest one, with transitions
    after a third and two thirds of the L layers.

    Raises:
        ValueError: `prune` is neither.
    """
    if prune not in CHOICES["model.prune"]:
        raise unknown_choice("model.prune", prune)
    total = sum(layer_counts)
    interval = math.ceil(total / num_scales)
    width = channels
    blocks, n = [], 0
    for count in layer_counts:
        block = []
        for _ in range(count):
            n += 1
            if prune == "max":
                scales_in = num_scales - max(0, n - 2) // interval
                scales_out = num_scales - (n - 1) // interval
                has_transition = scales_in > scales_out
            else:
                scales_in = min(num_scales, total - n + 2)
                scales_out = min(num_scales, total - n + 1)
                has_transition = n in (total // 3, 2 * total // 3)
            width += growth_rate
            if has_transition:
                width = reduced(width, reduction)
            block.append(LayerPlan(scales_in, scales_out, width if has_transition else None))
        blocks.append(tuple(block))
    return tuple(blocks)


class MSDLayer(nn.Module):
    """One layer: every kept scale is extended by what it and the next finer scale compute.

    The finest kept scale is extended by a normal branch alone, unless a finer one has just been
    dropped and can still be read.
    """

    plan: LayerPlan
    growth_rate: int
    growth_factors: tuple[int, ...]
    bottleneck_factors: tuple[int, ...]
    options: LayerOptions

    @nn.compact
    def __call__(self, features: Features, train: bool) -> Features:
        """The `scales_in` coarsest scales -> the `scales_out` coarsest, each wider."""
        dropped = self.plan.scales_in - self.plan.scales_out
        kept = features[dropped:]
        branches = [self._branches(i, dropped, features) for i in range(len(kept))]
        narrowed = {}
        for source, x in enumerate(features):
            readers = [b for reads, b in itertools.chain(*branches) if reads == source]
            if readers:
                outputs = from_one_input([b.reduce for b in readers], x, train)
                narrowed |= {b.name: y for b, y in zip(readers, outputs, strict=True)}
        outputs = []
        for x, of_scale in zip(kept, branches, strict=True):
            layers = [b.conv for _, b in of_scale]
            new = side_by_side(layers, [narrowed[b.name] for _, b in of_scale], train)
            outputs.append(jnp.concatenate([x, new], axis=-1))
        return tuple(outputs)

    def _branches(self, i: int, dropped: int, features: Features) -> list[tuple[int, Branch]]:
        """The branches that extend kept scale i, each with the position of what it reads."""
        scale = len(self.growth_factors) - self.plan.scales_out + i
        width = self.growth_rate * self.growth_factors[scale]

        def branch(kind: str, source: int, width: int, bottleneck: int, stride: int):
            channels, name = features[source].shape[-1], f"scale_{i}_{kind}"
            return source, Branch(channels, width, bottleneck, self.options, stride, name=name)

        bottleneck, source = self.bottleneck_factors[scale], i + dropped
        if source == 0:
            return [branch("normal", source, width, bottleneck, 1)]
        finer_bottleneck = self.bottleneck_factors[scale - 1]
        return [
            branch("down", source - 1, width // 2, finer_bottleneck, 2),
            branch("normal", source, width // 2, bottleneck, 1),
        ]


class Transition(nn.Module):
    """A 1x1 convolution, batch norm and ReLU at every scale, to the given widths."""

    widths: tuple[int, ...]
    options: LayerOptions

    @nn.compact
    def __call__(self, features: Features, train: bool) -> Features:
        """[N, H_s, W_s, C_s] -> [N, H_s, W_s, widths[s]] for every scale s."""
        return tuple(
            ConvBNReLU(width, 1, self.options, name=f"scale_{i}")(x, train)
            for i, (width, x) in enumerate(zip(self.widths, features, strict=True))
        )


class Block(nn.Module):
    """The layers between two exits, each with its transition where it has one."""

    plans: tuple[LayerPlan, ...]
    growth_rate: int
    growth_factors: tuple[int, ...]
    bottleneck_factors: tuple[int, ...]
    options: LayerOptions

    @nn.compact
    def __call__(self, features: Features, train: bool) -> Features:
        """The scales that come in -> the scales that are kept, the coarsest last."""
        for i, plan in enumerate(self.plans):
            features = MSDLayer(
                plan,
                self.growth_rate,
                self.growth_factors,
                self.bottleneck_factors,
                self.options,
                name=f"layer_{i}",
            )(features, train)
            if plan.transition_width is not None:
                kept = self.growth_factors[-plan.scales_out :]
                widths = tuple(plan.transition_width * factor for factor in kept)
                features = Transition(widths, self.options, name=f"transition_{i}")(features, train)
        return features


class MSDNet(MultiExitNetwork):
    """Multi-Scale DenseNet.

    Attributes:
        num_exits: K, the number of blocks, each with an exit.
        base: layers in the first block.
        step, step_mode: layers in the others (`layers_per_block`).
        channels: width of the first layer, times the scale's growth factor.
        growth_rate: channels that a layer adds, times the scale's growth factor.
        growth_factors: one a scale, the finest first; their number is the number of scales.
        bottleneck_factors: the 1x1 bottleneck's width over the branch's, one a scale.
        reduction: transitions keep this share of the channels.
        prune: "max" or "min" (`plan_blocks`).
        stem: "cifar" or "imagenet".
        num_classes: C.
    """

    num_exits: int
    base: int
    step: int
    step_mode: str
    channels: int
    growth_rate: int
    growth_factors: tuple[int, ...]
    bottleneck_factors: tuple[int, ...]
    reduction: float
    prune: str
    stem: str
    num_classes: int

    @property
    def num_scales(self) -> int:
        """S, each half as large as the one before."""
        return len(self.growth_factors)

    @property
    def block_plans(self) -> tuple[tuple[LayerPlan, ...], ...]:
        """The layers of every block."""
        counts = layers_per_block(self.num_exits, self.base, self.step, self.step_mode)
        return plan_blocks(
            counts,
            self.num_scales,
            self.channels,
            self.growth_rate,
            self.reduction,
            self.prune,
        )

    @override
    def setup(self) -> None:
        options = LayerOptions(self.dtype, self.axis_name)
        widths = tuple(self.channels * factor for factor in self.growth_factors)
        strides = (2,) * (self.num_scales - 1)
        self.first_layer = FirstLayer(widths, strides, self.stem, options)
        self.blocks = [
            Block(plans, self.growth_rate, self.growth_factors, self.bottleneck_factors, options)
            for plans in self.block_plans
        ]
        self.classifiers = [
            Classifier(self.stem, self.num_classes, options) for _ in range(self.num_exits)
        ]

    @override
    def init_carry(self, images: jax.Array, train: bool) -> Features:
        return self.first_layer(images, train)

    @override
    def stage_with_features(
        self, k: int, carry: Features, train: bool
    ) -> tuple[jax.Array, jax.Array, Features]:
        *finer, coarsest = self.blocks[k](carry, train)
        for_classifier, for_blocks = self.balance_gradients(k, coarsest)
        pooled, logits = self.classifiers[k](for_classifier, train)
        return pooled, logits, (*finer, for_blocks) if k + 1 < self.num_exits else ()

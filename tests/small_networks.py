"""Convolutional multi-exit networks that compile in seconds."""

import golden_files
import jax
import numpy as np
from flax import linen as nn

from l2w_jax.early_exit import rules
from l2w_jax.early_exit.budget import NOBODY_LEAVES
from l2w_jax.models import (
    CollaborativeExits,
    MultiExitNetwork,
    create_model,
    initial_variables,
)
from l2w_jax.models.initializers import torch_default
from l2w_jax.models.layers import ConvBNReLU, LayerOptions
from l2w_jax.models.precision import parameter_dtype


class OneLayer(MultiExitNetwork):
    """Defines what every network must and no more."""

    num_exits: int = 1

    def setup(self):
        self.head = nn.Dense(10)

    def init_carry(self, images, train):
        return images

    def stage(self, k, carry, train):
        return self.head(carry.mean(axis=(1, 2))), carry


class ConvNetwork(MultiExitNetwork):
    """Two exits, each a linear layer on the pooled output of one more strided convolution."""

    num_classes: int = 10

    def setup(self):
        options = LayerOptions(self.dtype, self.axis_name)
        dtype = parameter_dtype(self.dtype)
        init = torch_default(6)
        self.convolutions = [ConvBNReLU(6, 3, options, 2) for _ in range(2)]
        self.heads = [
            nn.Dense(
                self.num_classes, dtype=dtype, param_dtype=dtype, kernel_init=init, bias_init=init
            )
            for _ in range(2)
        ]

    @property
    def num_exits(self):
        return 2

    def init_carry(self, images, train):
        return images

    def stage_with_features(self, k, carry, train):
        for_head, carry = self.balance_gradients(k, self.convolutions[k](carry, train))
        pooled = for_head.mean(axis=(1, 2))
        return pooled, self.heads[k](pooled), carry


def network(kind, num_classes=10):
    """A small network of 32x32 images: "msdnet", "imagenet" (its stem), "ranet" or "imta"."""
    golden = "ranet_tiny" if kind == "ranet" else "msdnet_tiny"
    model = create_model(
        golden_files.config_of(golden_files.load("models")[golden]["config"]).model
    )
    model = model.clone(num_classes=num_classes)
    if kind == "imagenet":
        # This stem leaves a quarter of the resolution; an exit wants no less.
        model = model.clone(stem="imagenet", growth_factors=(1,), bottleneck_factors=(1,))
    return CollaborativeExits(model) if kind == "imta" else model


def lively_variables(model, images):
    """Variables of which each has something to say, running statistics and shifts included."""
    variables = initial_variables(model, jax.random.key(0), images[:1], train=False)
    generator = np.random.default_rng(3)

    def varied(path, value):
        if path[-1].key == "kernel":
            # Neither does the signal die out on its way to the last exit, nor grow.
            return np.asarray(value * np.sqrt(2 / np.prod(value.shape[:-1])) / value.std())
        middle = 1.0 if path[-1].key in ("scale", "var") else 0.0
        drawn = middle + generator.uniform(-0.5, 0.5, value.shape)
        return drawn.astype(value.dtype)

    return jax.tree_util.tree_map_with_path(varied, variables)


def thresholds_between(predictor, images, share):
    """`between` the confidences of these images."""
    num_exits = len(predictor.thresholds)
    confidences = []
    for k in range(num_exits):
        at_k = np.where(np.arange(num_exits) == k, 0, NOBODY_LEAVES)
        confidences.append(predictor.with_thresholds(at_k)(images).confidences)
    return between(np.array(confidences), share)


def between(scores, share):
    """Of each exit, half-way between two scores [K, N], so that rounding is none: float32 [K].

    About the share of the images stays; of the places thereabouts it is the widest.
    """
    first = int(share * scores.shape[1])
    near = np.sort(scores, axis=1)[:, first : first + 2 + scores.shape[1] // 50]
    widest = np.diff(near, axis=1).argmax(axis=1)
    return np.float32([row[at : at + 2].mean() for row, at in zip(near, widest, strict=True)])


def no_number(logits):
    """A rule of one's own that is broken. NaN is not less than any threshold."""
    return jax.numpy.nan * rules.confidence(logits)


def scores_of(rule, logits):
    """By the rule of this name, from logits of all exits [K, N, C]: [K, N]."""
    return np.asarray(rules.RULES[rule](logits))

"""RANet's plan: layers, fusion, resolution and transitions of its blocks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2w_jax.models.layers import LayerOptions
from l2w_jax.models.ranet import BlockPlan, FusionBlock, plan_sub_networks
from l2w_jax.models.resize import resize_align_corners


@pytest.fixture(scope="module")
def growing():
    return plan_sub_networks(2, 2, 2, "lg", (1, 2, 3))


def test_every_block_with_an_exit_makes_the_shared_list_longer(growing):
    assert [[plan.num_layers for plan in blocks] for blocks in growing] == [
        [2, 4],
        [2, 4, 6, 8],
        [2, 4, 6, 8, 10, 12],
    ]


def test_even_blocks_have_one_length():
    plans = plan_sub_networks(2, 2, 8, "even", (1, 2, 3, 4))
    assert {plan.num_layers for blocks in plans for plan in blocks} == {8}


def test_blocks_fuse_as_far_as_the_sub_network_before_has_blocks(growing):
    assert [[plan.fuses for plan in blocks] for blocks in growing] == [
        [False] * 2,
        [True] * 2 + [False] * 2,
        [True] * 4 + [False] * 2,
    ]


def test_resolution_is_halved_in_the_last_blocks_before_each_change(growing):
    halving = [[j for j, p in enumerate(blocks, 1) if p.downsamples] for blocks in growing]
    assert halving == [[], [2], [2, 4]]


def test_transitions_divide_the_blocks_of_a_sub_network_evenly(growing):
    closed = [[j for j, p in enumerate(blocks, 1) if p.has_transition] for blocks in growing]
    assert closed == [[], [2], [2, 4]]


@pytest.mark.parametrize(("num_layers", "downsamples"), [(1, False), (2, True)])
def test_a_fusing_layer_reads_its_own_input_below_by_itself(num_layers, downsamples):
    width, low_width, below = 6, 2, 4
    plan = BlockPlan(num_layers, fuses=True, downsamples=downsamples, has_transition=False)
    block = FusionBlock(plan, width, 0.34, 2, 2, LayerOptions())
    keys = jax.random.split(jax.random.key(0), num_layers + 3)
    x = jax.random.normal(keys[0], (5, 8, 8, 7))
    low_features = [
        jax.random.normal(keys[1 + i], (5, below, below, 3 + i)) for i in range(num_layers + 1)
    ]

    @jax.jit
    def variables_and_features(x, low_features):
        variables = block.init(keys[-1], x, low_features, train=True)
        (_, features), _ = block.apply(
            variables, x, low_features, train=True, mutable="batch_stats"
        )
        return variables, features

    variables, features = variables_and_features(x, low_features)

    @functools.partial(jax.jit, static_argnums=(0, 1, 3))
    def layer(branch, part, inputs, stride=1):
        kernel = variables["params"][branch][part]["conv"]["kernel"]
        outputs = jax.lax.conv_general_dilated(
            inputs,
            kernel,
            (stride, stride),
            [((len(kernel) - 1) // 2,) * 2] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        deviations = outputs - outputs.mean((0, 1, 2))
        return jax.nn.relu(deviations / jnp.sqrt((deviations**2).mean((0, 1, 2)) + 1e-5))

    for i in range(num_layers):
        stride = 2 if downsamples and i == num_layers - 1 else 1
        up, normal = f"layer_{i}_up", f"layer_{i}_normal"
        low = layer(up, "conv", layer(up, "reduce", low_features[i]))
        own = layer(normal, "conv", layer(normal, "reduce", features[i]), stride)
        parts = [resize_align_corners(part, *own.shape[1:3]) for part in (features[i], low)]
        assert low.shape[-1] == low_width
        np.testing.assert_allclose(
            features[i + 1], jnp.concatenate([*parts, own], axis=-1), atol=1e-4
        )

"""MSDNet's layers, scales and transitions."""

import jax
import jax.numpy as jnp
import pytest
from golden_files import config_of, load

from l2w_jax.models import create_model
from l2w_jax.models.msdnet import plan_blocks


def test_image_that_does_not_pool_to_one_pixel_is_refused():
    model = create_model(config_of(load("models")["msdnet_tiny"]["config"]).model)
    images_64 = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    with pytest.raises(ValueError, match="16x16 pixels, but must be 5 to 12"):
        jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images_64)


def scales(blocks):
    return [(plan.scales_in, plan.scales_out) for block in blocks for plan in block]


def transitions(blocks):
    layers = [plan for block in blocks for plan in block]
    return [n for n, plan in enumerate(layers, start=1) if plan.transition_width is not None]


def test_prune_max_drops_a_scale_at_equal_intervals():
    blocks = plan_blocks([4, 4, 4], 3, 16, 6, 0.5, "max")
    assert [out for _, out in scales(blocks)] == [3] * 4 + [2] * 4 + [1] * 4
    assert transitions(blocks) == [5, 9]


def test_prune_min_keeps_scales_while_the_coarsest_can_still_be_reached():
    blocks = plan_blocks([2, 2, 2], 3, 16, 6, 0.5, "min")
    assert scales(blocks) == [(3, 3), (3, 3), (3, 3), (3, 3), (3, 2), (2, 1)]
    assert transitions(blocks) == [2, 4]


def test_prune_min_has_transitions_after_a_third_and_two_thirds_of_the_layers_rounded_down():
    assert transitions(plan_blocks([2, 2, 1], 3, 16, 6, 0.5, "min")) == [1, 3]
    assert transitions(plan_blocks([2, 3, 2], 3, 16, 6, 0.5, "min")) == [2, 4]


def test_transition_keeps_the_share_of_channels_of_reduction():
    (first, second), *_ = plan_blocks([2, 1], 2, 10, 3, 0.5, "max")
    assert first.transition_width is None and second.transition_width is None
    blocks = plan_blocks([1, 1], 2, 10, 3, 0.5, "max")
    assert blocks[1][0].transition_width == 8

"""What the checks and the networks share: layers, image sizes, and what does not go together."""

import math
import re

import pytest

from l2w_jax.config.choices import image_sizes, layers_per_block
from l2w_jax.models.ranet import plan_sub_networks


def test_lin_grow_adds_step_layers_a_block_and_even_does_not():
    assert layers_per_block(4, base=1, step=2, step_mode="lin_grow") == [1, 3, 5, 7]
    assert layers_per_block(4, base=4, step=2, step_mode="even") == [4, 2, 2, 2]


@pytest.mark.parametrize(
    ("stem", "scales", "possible", "impossible"),
    [
        ("cifar", 3, [17, 32, 48], [16, 49]),
        ("cifar", 2, [9, 16, 24], [8, 25]),
        ("imagenet", 4, [224, 192], [512, 96]),
    ],
)
def test_image_sizes_are_those_that_pool_to_one_pixel(stem, scales, possible, impossible):
    def pooled(size):
        halvings = scales - 1 + (2 if stem == "imagenet" else 0)
        for _ in range(halvings + 2):
            size = math.ceil(size / 2)
        return size // 2

    allowed = image_sizes(stem, scales)
    assert list(allowed) == [size for size in range(1, 2000) if pooled(size) == 1]
    assert set(possible) <= set(allowed)
    assert not set(impossible) & set(allowed)


@pytest.mark.parametrize(
    ("plan", "allowed"),
    [
        (lambda: layers_per_block(3, 1, 1, "lg"), "one of 'even', 'lin_grow' for 'msdnet'"),
        (
            lambda: plan_sub_networks(2, 2, 2, "lin_grow", (1, 2)),
            "one of 'even', 'lg' for 'ranet'",
        ),
    ],
)
def test_step_mode_of_the_other_network_is_refused(plan, allowed):
    with pytest.raises(ValueError, match=re.escape(f"is not allowed: must be {allowed}")):
        plan()

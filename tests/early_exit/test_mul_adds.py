"""Mul-adds against the authors' counts, and operation by operation."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from golden_files import config_of, load

from l2w_jax.early_exit import mul_adds_per_exit
from l2w_jax.models import MultiExitNetwork, create_model

GOLDEN = load("models")


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_counts_equal_the_authors(name):
    case = GOLDEN[name]
    counted = mul_adds_per_exit(create_model(config_of(case["config"]).model), case["image_size"])
    np.testing.assert_array_equal(counted, case["mul_adds_per_exit"])


class OwnNetwork(MultiExitNetwork):
    """Two exits of standard linen layers; the second reads through a grouped convolution."""

    def setup(self):
        self.conv = nn.Conv(6, (3, 3), strides=2)
        self.grouped = nn.Conv(6, (3, 3), feature_group_count=3)
        self.norm = nn.BatchNorm()
        self.heads = [nn.Dense(5), nn.Dense(5, use_bias=False)]

    @property
    def num_exits(self):
        return 2

    def init_carry(self, images, train):
        return nn.relu(self.norm(self.conv(images), use_running_average=not train))

    def stage(self, k, carry, train):
        if k == 1:
            carry = self.grouped(carry)
        pooled = nn.max_pool(carry, (4, 4), strides=(4, 4)).mean(axis=(1, 2))
        return self.heads[k](pooled), carry


def test_an_own_network_is_counted_by_its_operations():
    conv, relu, pool, linear = 8 * 8 * 6 * 9 * 3, 8 * 8 * 6, 2 * 2 * 6 * 16, 6 * 5 + 5
    first = conv + relu + pool + linear
    second = first + 8 * 8 * 6 * 9 * 2 + pool + 6 * 5
    counted = mul_adds_per_exit(OwnNetwork(dtype=jnp.float32), 16)
    np.testing.assert_array_equal(counted, [first, second])

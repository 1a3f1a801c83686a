"""Mul-adds against the authors' counts, and operation by operation."""

import jax
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


@pytest.mark.parametrize("image_size", [16, np.int64(16), (16, 16, 3), np.array([16, 16, 3])])
def test_an_own_network_is_counted_by_its_operations(image_size):
    conv, relu, pool, linear = 8 * 8 * 6 * 9 * 3, 8 * 8 * 6, 2 * 2 * 6 * 16, 6 * 5 + 5
    first = conv + relu + pool + linear
    second = first + 8 * 8 * 6 * 9 * 2 + pool + 6 * 5
    counted = mul_adds_per_exit(OwnNetwork(dtype=jnp.float32), image_size)
    np.testing.assert_array_equal(counted, [first, second])


class OneExit(MultiExitNetwork):
    """One linear layer of 10 outputs on the mean of `features` of 16 numbers of the image."""

    num_exits: int = 1

    def setup(self):
        self.square = nn.Dense(16, use_bias=False)
        self.head = nn.Dense(10, use_bias=False)

    def init_carry(self, images, train):
        return images.reshape(len(images), -1)[:, :16]

    def features(self, x):
        raise NotImplementedError

    def stage(self, k, carry, train):
        return self.head(self.features(carry)), carry


HEAD, PRODUCT = 160, 256


def mul_adds_of_features(features):
    """What `features`, a method of `OneExit`, adds to its classifier."""
    network = type("Network", (OneExit,), {"features": features})
    (counted,) = mul_adds_per_exit(network(), 8)
    return counted - HEAD


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.relu(nn.Dense(16)(x)), None


def scanned_layers(self, x):
    layers = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=4)
    return layers(name="layers")(x, None)[0]


def scanned_products(self, x):
    return jax.lax.scan(lambda x, kernel: (x @ kernel, None), x, jnp.ones((4, 16, 16)))[0]


def looped_products(self, x):
    return jax.lax.fori_loop(0, 4, lambda _, x: x @ jnp.ones((16, 16)), x)


@pytest.mark.parametrize(
    ("features", "of_an_iteration"),
    [
        (nn.compact(scanned_layers), PRODUCT + 16 + 16),
        (scanned_products, PRODUCT),
        (looped_products, PRODUCT),
    ],
)
def test_a_loop_counts_as_often_as_it_runs(features, of_an_iteration):
    assert mul_adds_of_features(features) == 4 * of_an_iteration


def test_a_choice_counts_as_its_dearest_branch():
    def features(self, x):
        return jax.lax.cond(x.sum() > 0, nn.relu, lambda x: x @ jnp.ones((16, 16)), x)

    assert mul_adds_of_features(features) == PRODUCT


def test_a_loop_that_only_data_end_is_refused():
    def products(self, x):
        return jax.lax.while_loop(lambda x: x.sum() < 3, lambda x: x @ jnp.ones((16, 16)), x)

    with pytest.raises(ValueError, match="number of iterations depends on data"):
        mul_adds_of_features(products)

    def doublings(self, x):
        return jax.lax.while_loop(lambda x: x.sum() < 3, lambda x: 2 * x, x)

    assert mul_adds_of_features(doublings) == 0


@pytest.mark.parametrize(
    "relu",
    [
        nn.relu,
        nn.relu6,
        lambda x: jnp.maximum(x, 0),
        lambda x: jnp.maximum(0, x),
        lambda x: jnp.clip(x, 0, 6),
        lambda x: jax.lax.clamp(0.0, x, 6.0),
    ],
)
def test_relu_counts_however_it_is_written(relu):
    assert mul_adds_of_features(lambda self, x: relu(x)) == 16
    assert mul_adds_of_features(lambda self, x: jnp.maximum(x, 1)) == 0


@pytest.mark.parametrize(
    ("reduction", "start"),
    [
        (jax.lax.max, -np.inf),
        (jax.lax.min, np.inf),
        (jax.lax.add, 0.0),
        # Of a user's own, with what would be a ReLU elsewhere.
        (lambda x, largest: jnp.maximum(jnp.abs(x), largest), 0.0),
    ],
)
def test_a_pooling_window_counts_its_size_whatever_it_is_reduced_by(reduction, start):
    def features(self, x):
        pooled = jax.lax.reduce_window(x, start, reduction, (1, 4), (1, 2), "VALID")
        assert pooled.shape == (1, 7)
        return jnp.pad(pooled, ((0, 0), (0, 9)))

    assert mul_adds_of_features(features) == 7 * 4


def test_a_sum_of_features_is_no_bias():
    assert mul_adds_of_features(lambda self, x: x + self.square(x)) == PRODUCT
    with_bias = nn.compact(lambda self, x: x + nn.Dense(16, name="with_bias")(x))
    assert mul_adds_of_features(with_bias) == PRODUCT + 16

"""Folding batch norms changes what is computed, not what comes out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from small_networks import lively_variables, network

from l2w_jax.early_exit.calibration import calibrated
from l2w_jax.models import MultiExitNetwork
from l2w_jax.models.folding import fold_batch_norms
from l2w_jax.models.layers import BatchNorm, Convolution, LayerOptions

IMAGES = np.random.default_rng(0).normal(size=(16, 32, 32, 3)).astype(np.float32)


def logits_of(model, variables, images=IMAGES):
    return np.asarray(jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images))


def rsqrts_in(model, variables, images=IMAGES):
    """How many batch norms are still computed."""
    jaxpr = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False))(variables, images)
    return str(jaxpr).count("rsqrt")


@pytest.mark.parametrize("kind", ["msdnet", "imagenet", "ranet", "imta"])
def test_answers_stay_and_normalising_goes(kind):
    model = network(kind)
    variables = lively_variables(model, IMAGES)
    folded = fold_batch_norms(model, variables, IMAGES)
    expected = logits_of(model, variables)
    np.testing.assert_allclose(
        logits_of(model, folded), expected, rtol=0, atol=2e-5 * np.abs(expected).max()
    )
    # The new classifiers of IMTA normalise what a linear layer gives.
    assert rsqrts_in(model, folded) == (model.num_exits - 1 if kind == "imta" else 0)
    assert rsqrts_in(model, variables) > 10
    again = fold_batch_norms(model, folded, IMAGES)
    assert jax.tree.all(jax.tree.map(np.array_equal, again, folded))


def test_in_bfloat16_no_more_is_lost_than_by_bfloat16_itself():
    model = network("msdnet")
    variables = lively_variables(model, IMAGES)
    exact, narrow = logits_of(model, variables), model.clone(dtype=jnp.bfloat16)
    folded = logits_of(narrow, fold_batch_norms(narrow, variables, IMAGES)).astype(np.float32)
    unfolded = logits_of(narrow, variables).astype(np.float32)
    assert np.abs(folded - exact).mean() < 1.2 * np.abs(unfolded - exact).mean()


def test_exits_that_are_calibrated_are_folded_as_those_that_are_not():
    model = network("msdnet")
    variables = lively_variables(model, IMAGES)
    folded = fold_batch_norms(calibrated(model, [1.5, 0.5]), variables, IMAGES)
    expected = fold_batch_norms(model, variables, IMAGES)
    assert jax.tree.structure(folded) == jax.tree.structure(expected)
    assert jax.tree.all(jax.tree.map(np.array_equal, folded, expected))


class NormBefore(nn.Module):
    """Named as our layers are, but the batch norm stands before the convolution."""

    @nn.compact
    def __call__(self, x, train):
        options = LayerOptions()
        x = nn.relu(BatchNorm(options, name="bn")(x, train))
        return Convolution(3, 3, options, name="conv")(x)


class OwnNetwork(MultiExitNetwork):
    num_exits: int = 1

    def setup(self):
        self.block = NormBefore()

    def init_carry(self, images, train):
        return images

    def stage(self, k, carry, train):
        return self.block(carry, train).mean(axis=(1, 2)), ()


def test_layers_of_a_users_own_are_left_as_they_are():
    model, images = OwnNetwork(), IMAGES[:, :8, :8]
    variables = lively_variables(model, images)
    folded = fold_batch_norms(model, variables, images)
    assert jax.tree.structure(folded) == jax.tree.structure(variables)
    np.testing.assert_array_equal(
        logits_of(model, folded, images), logits_of(model, variables, images)
    )

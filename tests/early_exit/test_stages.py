"""What a network's stages may be, for who runs them one by one, and what their logits say."""

import copy
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exported_networks import image_format
from flax import linen as nn

from l2w_jax.early_exit import EarlyExitPredictor
from l2w_jax.early_exit.budget import NOBODY_LEAVES
from l2w_jax.early_exit.stages import most_probable, most_probable_classes
from l2w_jax.interop.export import exported_stages
from l2w_jax.interop.exported_folder import NetworkToExport
from l2w_jax.models import MultiExitNetwork

IMAGES = np.random.default_rng(0).normal(0, 1, (8, 4, 4, 3)).astype(np.float32)


class TwoExits(MultiExitNetwork):
    """Hands on the images and something more, and calls its arguments by names of its own."""

    num_exits: int = 2
    more: Any = ()

    def setup(self):
        self.heads = [nn.Dense(5), nn.Dense(5)]

    def init_carry(self, pixels, is_training):
        return pixels, self.more

    def stage(self, at, state, is_training):
        return self.heads[at](state[0].mean(axis=(1, 2))), state


def variables_of(model):
    return model.init(jax.random.key(0), IMAGES, False)


def test_arguments_of_a_networks_methods_may_have_any_names():
    model = TwoExits()
    variables = variables_of(model)
    labels, *_ = EarlyExitPredictor(model, variables, [NOBODY_LEAVES, 0])(IMAGES)
    np.testing.assert_array_equal(labels, model.apply(variables, IMAGES, False)[1].argmax(-1))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_stages_can_be_copied_and_sent_elsewhere_before_their_first_images(copied):
    model = TwoExits()
    predictor = EarlyExitPredictor(model, variables_of(model), [NOBODY_LEAVES, 0])
    found = copied(predictor)(IMAGES)
    np.testing.assert_array_equal(found.labels, predictor(IMAGES).labels)


# A number; a table as long as the batch, which is 8 or 1; and one number for all images.
@pytest.mark.parametrize("shape", [(), (8, 2), (1, 2)])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_an_array_that_is_handed_on_without_an_axis_of_images_is_refused(shape, batch_size):
    model = TwoExits(more=jnp.ones(shape))
    predictor = EarlyExitPredictor(
        model, variables_of(model), [NOBODY_LEAVES, 0], batch_sizes=[batch_size]
    )
    message = rf"stage\(k=0\) hands on an array of shape \({str(shape)[1:-1]}\) with a batch of "
    with pytest.raises(ValueError, match=message + r"\d; its first axis must be the images'"):
        predictor(IMAGES)


def test_an_array_without_an_axis_of_images_cannot_be_exported_either():
    model = TwoExits(more=jnp.ones((8, 2)))
    with pytest.raises(ValueError, match="its first axis must be the images'"):
        network = NetworkToExport(model, variables_of(model), [0, 0], image_format(4), "abcde")
        exported_stages(network, network.variables)


# The last rules out every class.
@pytest.mark.parametrize(
    "broken", [[1, np.nan, 2, 0], [1, np.inf, 2, 0], [-np.inf] * 4], ids=["nan", "inf", "none"]
)
def test_probabilities_are_none_where_logits_are_no_answer(broken):
    logits = jnp.array([[1.0, 2.0, 2.0, -jnp.inf], broken])
    _, confidence = most_probable(logits)
    assert np.isnan(confidence).tolist() == [False, True]
    labels, confidences = most_probable_classes(logits, 4)
    assert labels[0].tolist() == [1, 2, 0, 3]
    np.testing.assert_allclose(confidences[0], jax.nn.softmax(logits[0])[labels[0]], rtol=1e-6)
    assert np.isnan(confidences[1]).all()

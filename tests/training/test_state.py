"""A new state holds nothing of an earlier run, and says what in a configuration is impossible."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from small_networks import OneLayer, between

from l2w_jax.config import default_config
from l2w_jax.early_exit import EarlyExitPredictor, log_odds, mul_adds_per_exit
from l2w_jax.early_exit.budget import first_exits
from l2w_jax.models import MultiExitNetwork
from l2w_jax.training import create_train_state, make_train_step
from l2w_jax.training.state import abstract_state


@pytest.mark.parametrize("section", ["init", "weighting", "imta"])
def test_an_earlier_run_that_nobody_would_read_is_refused(small_config, section):
    small_config[section].checkpoint = "runs/earlier"
    message = (
        f"config.{section}.checkpoint: 'runs/earlier' is not allowed: must be '' here, where "
        "nobody reads it"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        create_train_state(small_config, jax.random.key(0))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("optimizer.lr", 0.1, "config.optimizer.lr: unknown field: the nearest that exists is"),
        ("weighting.scope", "globl", "config.weighting.scope: 'globl' is not allowed: must be"),
        ("weighting.magnitude", float("nan"), "config.weighting.magnitude: nan is not allowed"),
        ("weighting.hidden", 0, "config.weighting.hidden: 0 is not allowed: must be >= 1"),
        ("optimizer.warmup_epochs", 400, "config.optimizer.warmup_epochs: 400 is not allowed"),
    ],
)
@pytest.mark.parametrize("model", [None, OneLayer(num_exits=2)])
def test_what_is_impossible_is_named_by_the_state_and_by_the_step(model, field, value, message):
    config = default_config(model=model)
    # A size that the data set does not have, which training does not look at.
    config.dataset.image_size = 8
    section, name = field.split(".")
    config[section][name] = value
    for make in (
        lambda: create_train_state(config, jax.random.key(0)),
        lambda: make_train_step(config, 10),
    ):
        with pytest.raises(ValueError, match="^" + re.escape(message)):
            make()


def test_a_frozen_part_that_the_network_lacks_is_named_with_those_it_has():
    class Misspelt(OneLayer):
        @property
        def frozen(self):
            return ("haed",)

    message = (
        "Misspelt.frozen: 'haed' is not allowed: must be among the network's top-level parts, "
        "'head'"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        create_train_state(default_config(model=Misspelt(num_exits=2)), jax.random.key(0))


@pytest.mark.parametrize("model", [None, OneLayer(num_exits=2)])
@pytest.mark.parametrize("schedule", ["exact", "pipelined"])
def test_an_abstract_state_is_like_the_one_that_is_drawn(x64, small_config, model, schedule):
    config = small_config if model is None else default_config(model=model)
    config.weighting.schedule = schedule
    drawn = create_train_state(config, jax.random.key(0))
    of_drawn = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), drawn)
    assert abstract_state(config) == of_drawn


class LinearExits(MultiExitNetwork):
    """Two linear classifiers of all that an image holds; of tokens, of their embeddings."""

    num_exits: int = 2
    of_tokens: bool = False

    def setup(self):
        self.embed = nn.Embed(10, 3)
        self.heads = [nn.Dense(4), nn.Dense(4)]

    def init_carry(self, images, train):
        read = self.embed(images.astype(jnp.int32)) if self.of_tokens else images
        return read.reshape(len(images), -1)

    def stage(self, k, carry, train):
        return self.heads[k](carry), carry


# A picture that is neither square nor coloured, a signal, and tokens.
@pytest.mark.parametrize(("shape", "inputs"), [((6, 4, 1), 24), ((9, 2), 18), ((7,), 21)])
def test_images_may_have_any_shape_from_the_state_to_the_predictor(shape, inputs):
    model = LinearExits(of_tokens=len(shape) == 1)
    config = default_config(model=model)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 10, (32, *shape)).astype(float)
    batch = {"image": images, "label": generator.integers(0, 4, 32)}

    start = create_train_state(config, jax.random.key(0), images)
    of_shape = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    of_shape = create_train_state(config, jax.random.key(0), of_shape)
    jax.tree.map(np.testing.assert_array_equal, start.params, of_shape.params)

    state, metrics = jax.jit(make_train_step(config, total_steps=10))(start, batch)
    assert np.isfinite(metrics["loss"]).all()
    of_exit = 4 * inputs + 4
    np.testing.assert_array_equal(mul_adds_per_exit(model, shape), [of_exit, 2 * of_exit])

    logits = np.asarray(model.apply(state.variables, images, train=False))
    scores = np.asarray(log_odds(logits))
    thresholds = between(scores, 0.5)
    decisions = EarlyExitPredictor(model, state.variables, thresholds, rule=log_odds)(images)
    exits = first_exits(scores, thresholds)
    assert set(exits) == {0, 1}
    np.testing.assert_array_equal(decisions.exits, exits)
    np.testing.assert_array_equal(decisions.labels, logits.argmax(-1)[exits, np.arange(32)])


def test_images_of_a_shape_that_the_state_is_not_for_are_told_where_to_give_it():
    config = default_config(model=LinearExits())
    config.dataset.image_size = 4
    state = create_train_state(config, jax.random.key(0))
    batch = {"image": jnp.zeros((8, 6, 4, 1)), "label": jnp.zeros(8, jnp.int32)}
    message = r"images have shape \(\d, 6, 4, 1\), .*; create_train_state\(config, rng, images\) "
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(make_train_step(config, total_steps=10), state, batch)


@pytest.mark.parametrize(
    ("of_state", "of_step", "field"),
    [
        ({"kind": "none"}, {"kind": "meta"}, "wpn_params"),
        ({"kind": "fixed"}, {"kind": "frozen"}, "wpn_params"),
        ({"kind": "frozen"}, {"kind": "meta"}, "wpn_opt_state"),
        ({"schedule": "exact"}, {"schedule": "pipelined"}, "previous_params"),
    ],
)
def test_a_state_of_another_weighting_is_refused(
    small_config, make_batch, of_state, of_step, field, x64
):
    small_config.weighting.update(of_state)
    state = create_train_state(small_config, jax.random.key(0))
    small_config.weighting.update(of_step)
    batch = make_batch(0, 8)
    with pytest.raises(ValueError, match=f"^state.{field} is empty; must be as create_train_state"):
        jax.eval_shape(make_train_step(small_config, 10), state, {**batch, "previous": batch})


def test_a_state_takes_over_what_was_trained_without_weights(small_config, make_batch, x64):
    small_config.weighting.kind = "none"
    trained = create_train_state(small_config, jax.random.key(0))
    small_config.weighting.kind = "meta"
    state = create_train_state(small_config, jax.random.key(1))
    state = state.replace(params=trained.params, batch_stats=trained.batch_stats)
    found, _ = jax.eval_shape(make_train_step(small_config, 10), state, make_batch(0, 8))
    assert jax.tree.structure(found) == jax.tree.structure(state)

"""A new state holds nothing of an earlier run, and says what in a configuration is impossible."""

import re

import jax
import pytest
from small_networks import OneLayer

from l2w_jax.config import default_config
from l2w_jax.training import create_train_state, make_train_step


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
@pytest.mark.parametrize("model", [None, OneLayer()])
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
        create_train_state(default_config(model=Misspelt()), jax.random.key(0))

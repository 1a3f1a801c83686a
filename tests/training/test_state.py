"""A new state holds nothing of an earlier run, and says so where one is named."""

import re

import jax
import pytest

from l2w_jax.training import create_train_state


@pytest.mark.parametrize("section", ["init", "weighting", "imta"])
def test_an_earlier_run_that_nobody_would_read_is_refused(small_config, section):
    small_config[section].checkpoint = "runs/earlier"
    message = (
        f"config.{section}.checkpoint: 'runs/earlier' is not allowed: must be '' here, where "
        "nobody reads it"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        create_train_state(small_config, jax.random.key(0))

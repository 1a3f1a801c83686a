"""A wrong override is named with its field, and with what is allowed."""

from pathlib import Path

import pytest

from l2w_jax.config.defaults import default_config
from l2w_jax.config.flags import parse
from l2w_jax.config.stored import fields
from l2w_jax.errors import UserError

DIGITS = f"--config={Path(__file__).parents[2] / 'configs' / 'digits_msdnet.py'}"


def told(override):
    with pytest.raises(UserError) as refusal:
        parse(["main", DIGITS, override])
    return str(refusal.value)


def test_a_value_with_a_line_break_is_told_in_one_line_with_its_field():
    expected = r"config.seed: 'a\nb' is not allowed: must be a whole number"
    assert told("--config.seed=a\nb") == expected


@pytest.mark.parametrize("text", [" ", "0.5 0.7", "(0.5,"])
def test_what_is_no_tuple_is_told_as_any_other_value(text):
    expected = f"{text!r} is not allowed: must be a tuple, each item a number"
    assert told(f"--config.optimizer.milestones={text}") == (
        f"config.optimizer.milestones: {expected}"
    )


def test_a_field_in_upper_case_is_near_to_itself():
    for name, _ in fields(default_config()):
        nearest = f"the nearest that exists is --config.{name}"
        assert told(f"--config.{name.upper()}=1").endswith(nearest)

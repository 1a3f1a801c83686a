"""What the command line makes of its arguments; a wrong one is named, with what is allowed."""

from pathlib import Path

import pytest

from l2w_jax.config.defaults import default_config
from l2w_jax.config.flags import parse
from l2w_jax.config.stored import fields
from l2w_jax.errors import UserError

DIGITS = str(Path(__file__).parents[2] / "configs" / "digits_msdnet.py")


def told(override):
    with pytest.raises(UserError) as refusal:
        parse(["main", f"--config={DIGITS}", override])
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


def test_overrides_reach_the_config():
    config = parse(
        [
            "main",
            f"--config={DIGITS}",
            "--config.optimizer.learning_rate=0.05",
            "--config.model.growth_factors=(2,2)",
            "--config.log.profile",
        ]
    ).config
    assert config.optimizer.learning_rate == 0.05
    assert config.model.growth_factors == (2, 2)
    assert config.log.profile is True


@pytest.mark.parametrize("named", [[f"--config={DIGITS}"], ["--config", DIGITS]])
def test_the_order_of_arguments_does_not_matter(named):
    overrides = ["--config.dataset.data_dir=X", "--workdir=W", "--noconfig.log.profile"]
    for place in range(len(overrides) + 1):
        ordered = [*overrides[:place], *named, *overrides[place:]]
        arguments = parse(["main", *ordered])
        assert arguments.config.dataset.data_dir == "X"
        assert arguments.workdir == Path("W")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (DIGITS, "runs/digits_msdnet"),
        (f"{DIGITS}:baseline", "runs/digits_msdnet_baseline"),
    ],
)
def test_the_workdir_has_the_name_of_the_config(config, expected):
    assert parse(["main", f"--config={config}"]).workdir == Path(expected)
    assert parse(["main", "--config", config]).workdir == Path(expected)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("{}['lr']", "KeyError: 'lr'"),
        ("assert False", "AssertionError"),
        # absl takes these two for a wrong value of --config.
        ("raise ValueError('first\\nsecond')", "ValueError: first second"),
        ("float([])", "TypeError: float() argument must be a string or a real number, not 'list'"),
    ],
)
def test_a_fault_in_a_configuration_file_is_told_in_one_line_with_its_place(
    code, expected, tmp_path
):
    path = tmp_path / "own.py"
    path.write_text(f"def get_config(variant):\n    return part()\ndef part():\n    {code}\n")
    with pytest.raises(UserError) as refusal:
        parse(["main", f"--config={path}:some,variant"])
    assert str(refusal.value) == f"{path}: line 4: {expected}"


def test_what_returns_no_configuration_is_not_told_to_lack_get_config(tmp_path):
    path = tmp_path / "own.py"
    lines = "from ml_collections import FrozenConfigDict\n\ndef get_config(variant):\n"
    path.write_text(lines + "    return FrozenConfigDict({'seed': 0})\n")
    with pytest.raises(UserError, match=r"own\.py:some: FrozenConfigDict is immutable") as refusal:
        parse(["main", f"--config={path}:some", "--config.seed=1"])
    assert "must define" not in str(refusal.value)

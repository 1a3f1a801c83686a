"""A configuration survives the disk, and two of them are told apart by their fields."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2w_jax.config import (
    changes,
    default_config,
    from_json,
    read_config,
    to_json,
    use_plain_recipe,
    validate,
)
from l2w_jax.errors import UserError


def test_a_configuration_survives_the_disk():
    config = default_config()
    use_plain_recipe(config)
    restored = from_json(to_json(config))
    validate(restored)
    assert changes(config, restored) == []
    assert to_json(restored) == to_json(config)
    assert isinstance(restored.model.growth_factors, tuple)


@given(
    classes=st.integers(2, 1000),
    q=st.floats(0.01, 5),
    factors=st.lists(st.integers(1, 8), min_size=1, max_size=4).map(tuple),
)
def test_any_values_survive_the_disk(classes, q, factors):
    config = default_config()
    config.dataset.num_classes = classes
    config.weighting.q = q
    config.model.growth_factors = factors
    assert changes(config, from_json(to_json(config))) == []


def test_a_configuration_of_before_a_field_existed_gets_its_default():
    text = to_json(default_config()).replace('"interval": 1,', "")
    assert "interval" not in text
    assert changes(default_config(), from_json(text)) == []


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"seed": "zero"}', '{"dataset": 3}', '{"weighting": null}', '{"a.b": 3}'],
)
def test_a_broken_file_is_one_line(text):
    with pytest.raises(UserError) as raised:
        from_json(text)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("seed", None, "a whole number"),
        ("seed", True, "a whole number"),
        ("model.num_exits", 2.0, "a whole number"),
        ("optimizer.momentum", "0.9", "a number"),
        ("optimizer.milestones", None, "a tuple, each item a number"),
        ("optimizer.milestones", [0.5, None], "a tuple, each item a number"),
        ("dataset.data_dir", [], "a text"),
        ("init.strict", 1, "True or False"),
        ("model", "msdnet", "a section of fields"),
    ],
)
def test_a_field_of_another_type_is_named_with_what_is_allowed(field, value, allowed):
    stored = json.loads(to_json(default_config()))
    *section, name = field.split(".")
    inner = stored[section[0]] if section else stored
    inner[name] = value
    with pytest.raises(UserError) as raised:
        from_json(json.dumps(stored))
    told = f"config.json: {field}: {json.dumps(value)} is not allowed: must be {allowed}"
    assert str(raised.value) == told


def test_a_file_that_is_no_text_is_one_line(tmp_path):
    (tmp_path / "config.json").write_bytes(b'{"seed": "\xe9"}')
    with pytest.raises(UserError, match=r"config\.json: is no text$"):
        read_config(tmp_path)


def test_a_file_that_is_nested_too_deeply_is_one_line(tmp_path):
    faults = []
    # What is too deep for one Python, or one of the parts that read it, is not for another.
    for depth in (3, 900, 100_000):
        (tmp_path / "config.json").write_text('{"seed":' * depth + "1" + "}" * depth)
        with pytest.raises(UserError, match=r"config\.json: ") as caught:
            read_config(tmp_path)
        faults.append(str(caught.value))
    assert all("\n" not in fault for fault in faults)
    assert faults[-1].endswith("config.json: is nested too deeply")


def test_changes_name_the_fields():
    old, new = default_config(), default_config()
    use_plain_recipe(new)
    assert [*map(str, changes(old, new))] == [
        "dataset.batch_size: 1024 -> 64",
        "optimizer.learning_rate: 0.8 -> 0.1",
        "optimizer.schedule: 'cosine' -> 'multistep'",
        "weighting.kind: 'meta' -> 'none'",
    ]


def test_a_field_that_one_of_two_lacks_is_a_change_either_way():
    whole, without = default_config(), default_config()
    del without.imta["temperature"]
    assert [*map(str, changes(whole, without))] == ["imta.temperature: 1.0 -> (absent)"]
    assert [*map(str, changes(without, whole))] == ["imta.temperature: (absent) -> 1.0"]

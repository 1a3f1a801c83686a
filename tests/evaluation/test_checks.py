"""Files that hold no evaluation are refused in one line, whatever is wrong in them."""

import copy
import json

import numpy as np
import pytest
from written_runs import made_evaluation, made_examples, write_config

from l2w_jax.early_exit.budget import NOBODY_LEAVES
from l2w_jax.errors import UserError
from l2w_jax.evaluation.results import Evaluation, SampleWeights

NOT_NUMBERS = (None, "1", True, [], float("nan"), float("inf"), 10**400)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with an evaluation that has every field."""
    folder = tmp_path_factory.mktemp("evaluated")
    write_config(folder)
    exits = [{"exit": k, "ece": 0.1, "adaptive_ece": 0.1} for k in (1, 2, 3)]
    made_evaluation(
        calibration=exits,
        calibrated=[
            {**row, "temperature": 1.5, "reliability": [(0.5, 0.25), (1.0, 1.0)]} for row in exits
        ],
        shots=[{"exit": k, "many": 50.0, "medium": None, "few": 25.0} for k in (1, 2, 3)],
        class_counts=[500, 7],
        splits={"test": "test/"},
        digests={"test": "of them"},
        network="of it",
        sample_weights=SampleWeights(*np.ones((2, 5, 3), np.float32)),
        examples=made_examples(np.random.default_rng(0)),
    ).save(folder)
    return folder


@pytest.fixture
def load_with(whole, tmp_path):
    """Loads the evaluation with one thing of evaluation.json, or one array, in place of another."""
    summary = json.loads((whole / "evaluation.json").read_text())
    del summary["arrays_sha256"]
    with np.load(whole / "evaluation.npz") as found:
        arrays = dict(found)
    write_config(tmp_path)

    def load(path=(), value=None, **other_arrays):
        changed = copy.deepcopy(summary)
        inner = changed
        for name in path[:-1]:
            inner = inner[name]
        if path:
            inner[path[-1]] = value
        (tmp_path / "evaluation.json").write_text(json.dumps(changed))
        np.savez(tmp_path / "evaluation.npz", **arrays | other_arrays)
        return Evaluation.load(tmp_path)

    load.arrays = arrays
    return load


def test_an_evaluation_with_every_field_is_none_of_these(load_with):
    assert load_with().network == "of it"


@pytest.mark.parametrize(
    "path",
    [
        ("anytime", 1, "mul_adds"),
        ("anytime", 0, "loss"),
        ("budgeted", 0, "share_3"),
        ("calibration", 2, "ece"),
        ("calibrated", 0, "temperature"),
        ("calibrated", 0, "reliability", 0, 1),
    ],
)
def test_what_is_no_finite_number_is_refused_where_one_belongs(load_with, path):
    for value in NOT_NUMBERS:
        with pytest.raises(UserError, match=r"evaluation\.json is damaged \('\w+' .*number"):
            load_with(path, value)


@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize("table", ["anytime", "budgeted"])
def test_nothing_costs_no_mul_adds(load_with, table, value):
    with pytest.raises(UserError, match=f"'mul_adds' of '{table}' must be above 0"):
        load_with((table, 0, "mul_adds"), value)


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("step", "a whole number from 0"),
        ("dataset", "a text"),
        ("class_names", "a list of texts"),
        ("thresholds_from", "'holdout' or 'train'"),
        ("anytime", "a list of objects, not empty"),
        ("budgeted", "a list of objects"),
        ("shots", "a list of objects or null"),
        ("calibration", "a list of objects or null"),
        ("calibrated", "a list of objects or null"),
        ("splits", "an object of texts or null"),
        ("class_counts", "a list of whole numbers"),
        ("network", "a text or null"),
        ("digests", "an object of texts or null"),
        ("held_out_kept", "true or false"),
    ],
)
def test_a_field_of_another_type_is_named_with_what_is_allowed(load_with, name, allowed):
    for value in (-1, 0.5, [None], {"a": None}):
        with pytest.raises(UserError, match=f"is damaged \\('{name}' must be {allowed}"):
            load_with((name,), value)


def test_tables_and_arrays_are_of_as_many_exits(load_with):
    for name in ("calibration", "calibrated"):
        with pytest.raises(UserError, match=f"'{name}' must have 3 rows"):
            load_with((name,), [])
    with pytest.raises(UserError, match=r"evaluation\.json is damaged \('\w+' must have 2 rows"):
        load_with(("anytime",), load_with().anytime[:2])


def test_classes_without_a_name_are_refused(load_with):
    with pytest.raises(UserError, match="'class_counts' must be as many as 'class_names'"):
        load_with(("class_names",), ["cat"])
    labels = np.full_like(load_with.arrays["test_labels"], 2)
    for wrong in (labels, -labels):
        with pytest.raises(UserError, match="test: labels must be from 0 and below 2"):
            load_with(test_labels=wrong)
    with pytest.raises(UserError, match="examples: exits must be from 0 and below 3"):
        load_with(examples_exits=np.array([0, 1, 2, 3]))


@pytest.mark.parametrize("split", ["test", "thresholds"])
@pytest.mark.parametrize("name", ["positions", "losses", "log_odds", "predicted", "correct"])
def test_an_array_of_another_shape_or_kind_is_named(load_with, split, name):
    array = load_with.arrays[f"{split}_{name}"]
    for wrong in (array[1:], array[..., 1:], array[..., :0], array[None], array.astype(str)):
        with pytest.raises(UserError, match=rf"npz is damaged \({split}: {name} must be "):
            load_with(**{f"{split}_{name}": wrong})


@pytest.mark.parametrize("name", ["test_confidences", "weighted_losses", "examples_confidences"])
def test_an_array_with_what_is_no_number_is_refused(load_with, name):
    for value in (np.nan, np.inf):
        with pytest.raises(UserError, match="has a number that is not finite"):
            load_with(**{name: np.full_like(load_with.arrays[name], value)})


def test_a_score_that_no_threshold_exceeds_is_refused(load_with):
    odds = load_with.arrays["test_log_odds"]
    with pytest.raises(UserError, match=r"test: log_odds must be below 1e\+08"):
        load_with(test_log_odds=np.full_like(odds, NOBODY_LEAVES))
    # As `rules` cuts them off.
    largest = np.full_like(odds, np.nextafter(NOBODY_LEAVES, np.float32(0)))
    assert (load_with(test_log_odds=largest).test.log_odds == largest).all()


def test_an_evaluation_has_images(load_with):
    nothing = {
        name: array[..., :0] for name, array in load_with.arrays.items() if name.startswith("test_")
    }
    with pytest.raises(UserError, match=r"damaged \(test: there are no images"):
        load_with(**nothing)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("weighted_losses", r"weighted: there must be as many weights as losses"),
        ("weighted_weights", r"weighted: there must be as many weights as losses"),
        ("examples_images", r"examples: exits must be whole numbers \[3\]"),
        ("examples_kinds", r"examples: kinds must be texts \[4\]"),
    ],
)
def test_arrays_of_one_thing_are_as_long(load_with, name, told):
    with pytest.raises(UserError, match=told):
        load_with(**{name: load_with.arrays[name][1:]})

"""Who leaves where is read from a run's files, or chosen; a wrong file is named with its fault."""

import json

import numpy as np
import pytest
from written_runs import made_evaluation

from l2w_jax.errors import UserError
from l2w_jax.evaluation.policy import choose_policy, read_policy


def test_who_leaves_is_as_given_or_as_set_for_the_run_or_loses_no_accuracy(tmp_path):
    evaluation = made_evaluation()
    careful = choose_policy(tmp_path, None, evaluation)
    assert careful.thresholds.shape == (3,)
    assert careful.rule == "log_odds"
    for path, first in (("thresholds.json", 0.5), ("other.json", 0.9)):
        content = {"thresholds": [first, 0.5, 0], "rule": "log_odds"}
        (tmp_path / path).write_text(json.dumps(content))
    assert choose_policy(tmp_path, None, evaluation).thresholds[0] == np.float32(0.5)
    given = choose_policy(tmp_path, tmp_path / "other.json", evaluation)
    assert given.thresholds[0] == np.float32(0.9)
    with pytest.raises(UserError, match="no such file"):
        choose_policy(tmp_path, tmp_path / "none.json", evaluation)


def test_without_images_to_choose_thresholds_on_a_file_of_them_is_asked_for(tmp_path):
    alone = made_evaluation(held_out=None)
    with pytest.raises(UserError, match=r"without images of 'holdout'.*also take a file"):
        choose_policy(tmp_path, None, alone)
    content = {"thresholds": [0.5, 0.5, 0], "rule": "log_odds"}
    (tmp_path / "thresholds.json").write_text(json.dumps(content))
    assert choose_policy(tmp_path, None, alone).thresholds[0] == np.float32(0.5)


def test_a_file_of_other_than_thresholds_is_named_with_its_fault(tmp_path):
    path, evaluation = tmp_path / "thresholds.json", made_evaluation()
    for content, fault in {
        '{"thresholds": [0.5, 0.5, 0.5, 0.5]}': "for 3 exits",
        '{"thresholds": "high"}': "'thresholds' must be a list of numbers",
        '{"thresholds": [true, 0.5, 0]}': "'thresholds' must be a list of numbers",
        f'{{"thresholds": [1{"0" * 400}, 0.5, 0]}}': "not a file .* int too large to convert",
        "[" * 100_000: "not a file of thresholds for 3 exits: maximum recursion depth",
        '{"thresholds": [0.5, 0.5, 0], "temperatures": [1, 0, 1]}': "3 from 0.05 to 20 are",
        '{"thresholds": [0.5, 0.5, 0], "temperatures": [1, 1e-40, 1]}': "are expected",
        '{"thresholds": [0.5, 0.5, 0], "temperatures": [1, 1e300, 1]}': "are expected",
        '{"thresholds": [0.5, 0.5, 0], "temperatures": ["1", 1, 1]}': "'temperatures' must be a",
        '{"thresholds": [0.5, 0.5, 0], "temperatures": [1, Infinity, 1]}': "are expected",
        '{"thresholds": [5, 5, 5], "rule": "luck"}': "rule 'luck' is not allowed: .* log_odds",
        '{"thresholds": [5, 5, 5], "rule": ["log_odds"]}': r"rule \['log_odds'\] is not allowed",
        '{"thresholds": [5, 0.5, 0], "rule": "confidence"}': "threshold 5 of exit 1 is above 1",
        '{"thresholds": [0.5, 0.5, 0.5], "step": 1}': "of step 1, but .* evaluated at step",
    }.items():
        path.write_text(content)
        with pytest.raises(UserError, match=fault):
            read_policy(path, evaluation)
    path.write_bytes(b'{"thresholds": [0.5, 0.5, 0], "rule": "\xff"}')
    with pytest.raises(UserError, match=f"^{path}: not a file of thresholds: is no text$"):
        read_policy(path, evaluation)
    with pytest.raises(UserError, match=r"l2w_jax\.thresholds"):
        read_policy(tmp_path / "none.json", evaluation)
    with pytest.raises(UserError, match="Is a directory"):
        read_policy(tmp_path, evaluation)


def test_thresholds_of_before_there_were_rules_are_probabilities(tmp_path):
    path = tmp_path / "thresholds.json"
    path.write_text('{"thresholds": [0.5, 0.5, 0]}')
    assert read_policy(path, made_evaluation()).rule == "confidence"

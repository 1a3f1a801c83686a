"""Data of runs are other data where both are known, and by nothing that is not."""

import pytest
from written_runs import made_evaluation

from l2w_jax.evaluation.evaluated_data import EvaluatedData, data_of, differences, in_common

DATA = EvaluatedData(("cat", "dog"), "of test", "of holdout", 60)


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (DATA, {}),
        (EvaluatedData(), {}),
        (DATA._replace(class_names=("dog", "cat")), {"class_names": "other class names"}),
        (DATA._replace(test="others"), {"test": "other test images"}),
        (DATA._replace(holdout="others"), {"holdout": "other held-out images"}),
        (
            DATA._replace(holdout="others", num_holdout=50),
            {"holdout": "other held-out images (60 -> 50)"},
        ),
        (
            DATA._replace(holdout=None, num_holdout=50),
            {"holdout": "other held-out images (60 -> 50)"},
        ),
        # Of the same images, some could not be read.
        (DATA._replace(num_holdout=59), {}),
    ],
)
def test_what_is_known_of_both_is_compared(other, told):
    assert differences(DATA, other) == told


def test_an_evaluation_says_what_it_was_made_with():
    digests = {"test": "of test", "holdout": "of holdout", "train": "of train"}
    found = data_of(made_evaluation(digests=digests))
    assert found == EvaluatedData(("cat", "<dog>"), "of test", "of holdout", 180)


@pytest.mark.parametrize("fields", [{"held_out": None}, {"thresholds_from": "train"}])
def test_images_that_no_threshold_was_set_by_are_not_known(fields):
    evaluation = made_evaluation(digests={"holdout": "of holdout"}, **fields)
    assert data_of(evaluation) == EvaluatedData(("cat", "<dog>"))


def test_runs_have_in_common_what_is_known_and_the_same():
    others = [DATA._replace(test=None, num_holdout=50), DATA._replace(holdout=None)]
    assert in_common([DATA, *others]) == DATA._replace(num_holdout=None)

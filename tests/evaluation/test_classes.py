"""Which classes leave where, counted one by one."""

import dataclasses
import tracemalloc

import numpy as np
import pytest
from written_runs import made_evaluation

from l2w_jax.early_exit.selection import thresholds_of
from l2w_jax.errors import UserError
from l2w_jax.evaluation import classes


@pytest.fixture
def evaluation():
    """Classes of which the second is surer; the third has no images."""
    made = made_evaluation(class_names=["unsure", "sure", "unseen"])
    labels = (made.test.log_odds[0] >= np.median(made.test.log_odds[0])).astype(np.int32)
    return dataclasses.replace(made, test=dataclasses.replace(made.test, labels=labels))


def test_rows_are_those_counted_image_by_image(evaluation):
    thresholds = thresholds_of(1, evaluation.held_out.log_odds)
    rows = {row["name"]: row for row in classes.leaving_by_class(evaluation)}
    assert list(rows) == ["sure", "unsure"], "from the class that leaves earliest"
    test = evaluation.test
    for label, name in enumerate(evaluation.class_names[:2]):
        left, right = np.zeros(3), 0
        images = np.flatnonzero(test.labels == label)
        for image in images:
            k = next(k for k in range(3) if k == 2 or test.log_odds[k, image] >= thresholds[k])
            left[k] += 1
            right += test.correct[k, image]
        assert rows[name]["images"] == len(images)
        assert rows[name]["top1"] == pytest.approx(100 * right / len(images))
        assert rows[name]["top1_last"] == pytest.approx(100 * test.correct[-1, images].mean())
        shares = [rows[name][f"share_{k}"] for k in (1, 2, 3)]
        np.testing.assert_allclose(shares, left / len(images))


def test_memory_does_not_grow_with_images_times_classes(evaluation):
    num_images, num_classes = len(evaluation.test.labels), 20_000
    many = dataclasses.replace(evaluation, class_names=list(map(str, range(num_classes))))
    tracemalloc.start()
    try:
        assert len(classes.leaving_by_class(many)) == 2
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < num_images * num_classes / 2


def test_a_long_tail_is_told_by_how_often_classes_were_seen(evaluation):
    assert classes.leaving_by_shots(evaluation) == []
    of_all_kinds = dataclasses.replace(evaluation, class_counts=[7, 500, 7])
    assert classes.leaving_by_shots(of_all_kinds) == [], "no tail was trained on"
    shots = [{"exit": 1, "many": 1.0, "medium": None, "few": 2.0}]
    tailed = dataclasses.replace(evaluation, class_counts=[7, 500, 7], shots=shots)
    rows = classes.leaving_by_shots(tailed)
    assert [(row["name"], row["images"]) for row in rows] == [("many", 180), ("few", 180)]
    assert rows[0]["share_1"] > rows[1]["share_1"]


def test_without_held_out_images_there_are_no_thresholds(evaluation):
    with pytest.raises(UserError, match="without images of 'holdout'"):
        classes.leaving_by_class(dataclasses.replace(evaluation, held_out=None))

"""Runs that differ in the seed alone are one way of training, kept or read anew."""

import json

import numpy as np
import pytest
from compared_runs import evaluate_with, write_run, write_ways
from written_runs import made_evaluation, made_predictions, write_config

from l2w_jax.errors import UserError
from l2w_jax.evaluation.ways import numbers, read_ways


@pytest.fixture
def workdirs(tmp_path):
    return write_ways(tmp_path)


def keep(workdirs, path):
    """As a comparison keeps them."""
    path.write_text(json.dumps([numbers(way) for way in read_ways(workdirs)]))


def test_further_runs_join_those_of_a_file(workdirs, tmp_path):
    of_file, later = tmp_path / "numbers.json", workdirs[1]
    first = [workdirs[0], *workdirs[2:]]
    keep(first, of_file)
    joined, plain = read_ways([of_file, later])
    expected, _ = read_ways(workdirs)
    assert (joined.name, joined.seeds, plain.seeds) == ("weighted", [0, 1], [0, 1])
    np.testing.assert_array_equal(joined.anytime, expected.anytime)
    np.testing.assert_array_equal(joined.mean_top1(), expected.mean_top1())
    with pytest.raises(UserError, match="weighted: seed 0 is given twice; a run counts once"):
        read_ways([of_file, workdirs[0]])


@pytest.mark.parametrize("content", ["", "[1]", json.dumps([{"name": "a"}])])
def test_a_file_of_other_content_is_one_line(content, tmp_path):
    path = tmp_path / "numbers.json"
    path.write_text(content)
    with pytest.raises(UserError, match="must be a file that --save wrote") as error:
        read_ways([path])
    assert "\n" not in str(error.value)


def test_held_out_images_are_read_with_the_thresholds_of_the_others(workdirs):
    (weighted, _) = read_ways(workdirs, "holdout")
    np.testing.assert_array_equal(weighted.anytime, [[50, 100]] * 2)
    # Where half of the images are to leave at exit 1, the thresholds are 0.8 by one half and
    # 0.9 by the other: one image of 0.9 leaves, at 1 instead of 3 million, and none of 0.8.
    mul_adds, top1 = weighted.budgeted[0].T
    assert mul_adds[1] == (2e6 + 3e6) / 2 and (top1[1:] == 100).all()
    # The ends: everybody leaves at the first exit, or at the last.
    assert (mul_adds[0], top1[0], mul_adds[-1]) == (1e6, 50, 3e6)


def test_a_run_that_is_given_twice_is_refused(workdirs):
    with pytest.raises(UserError, match="is given twice"):
        read_ways([workdirs[0], workdirs[1], workdirs[0].parent / "." / workdirs[0].name])


def test_ways_whose_folders_are_named_alike_go_by_their_paths(tmp_path):
    folders = [
        write_run(tmp_path / f"lr-{number}", 0, kind, (50.0, 60.0))
        for number, kind in enumerate(("meta", "none"))
    ]
    assert [way.name for way in read_ways(folders)] == [str(folder) for folder in folders]


def test_a_decimal_in_a_name_is_no_seed(tmp_path):
    folder = write_run(tmp_path / "lr0.05", 0, "meta", (50.0, 60.0))
    assert [way.name for way in read_ways([folder])] == ["lr0.05"]


def test_training_images_are_not_taken_for_held_out_ones(workdirs):
    summary = json.loads((workdirs[0] / "evaluation.json").read_text())
    summary["thresholds_from"] = "train"
    (workdirs[0] / "evaluation.json").write_text(json.dumps(summary))
    with pytest.raises(UserError, match="weighted-0: --images=holdout is not allowed"):
        read_ways(workdirs, "holdout")


def test_runs_evaluated_with_other_thresholds_are_not_one_way(workdirs):
    """Of one way, evaluated once more with thresholds from training images."""
    summary = json.loads((workdirs[0] / "evaluation.json").read_text())
    before = {way.name for way in read_ways(workdirs)}
    summary["thresholds_from"] = "train"
    (workdirs[0] / "evaluation.json").write_text(json.dumps(summary))
    assert len(read_ways(workdirs)) > len(before)


def test_the_curve_of_held_out_images_goes_from_the_first_of_all_exits_to_the_last(tmp_path):
    write_config(tmp_path)
    evaluation = made_evaluation()
    evaluation.save(tmp_path)
    (way,) = read_ways([tmp_path], "holdout")
    first, last = way.budgeted[0][[0, -1]].tolist()
    top1 = evaluation.held_out.top1
    assert first == [1.5e6, pytest.approx(top1[0])]
    assert last == [4.5e6, pytest.approx(top1[-1])]


def hold_out(workdir, num_images):
    """Leaves a run as if it had been evaluated with so many held-out images."""
    held_out = made_predictions(np.full((2, num_images), 0.5), np.full((2, num_images), True))
    evaluate_with(workdir, held_out=held_out if num_images else None)


def test_two_held_out_images_can_be_halved(workdirs):
    hold_out(workdirs[1], 2)
    assert read_ways(workdirs, "holdout")


@pytest.mark.parametrize("num_images", [0, 1])
def test_held_out_images_too_few_to_halve_are_refused(num_images, workdirs):
    hold_out(workdirs[1], num_images)
    with pytest.raises(UserError) as caught:
        read_ways(workdirs, "holdout")
    assert str(caught.value) == (
        f"{workdirs[1]}: --images=holdout is not allowed: was evaluated with {num_images} held-out "
        "images, must be with at least 2, half of which set thresholds for the others"
    )


def test_two_runs_of_one_seed_do_not_count_twice(workdirs, tmp_path):
    again = write_run(tmp_path / "again", 0, "meta", (50.0, 60.0))
    with pytest.raises(UserError, match=r"again: has the seed \(0\) and the configuration of "):
        read_ways([*workdirs, again])


@pytest.mark.parametrize(
    ("fields", "images", "told"),
    [
        ({"digests": {"test": "others"}}, "test", "other test images"),
        ({"class_names": ["cat", "frog"]}, "test", "other class names"),
        ({"digests": {"holdout": "others"}}, "holdout", "other held-out images"),
    ],
)
def test_runs_on_other_images_are_not_averaged(fields, images, told, workdirs):
    evaluate_with(workdirs[0], digests={"test": "these", "holdout": "these"})
    evaluate_with(workdirs[1], **fields)
    with pytest.raises(UserError) as caught:
        read_ways(workdirs, images)
    assert str(caught.value) == (
        f"{workdirs[1]}: was evaluated with {told} than {workdirs[0]}, whose configuration it has: "
        "evaluate both with the same, or give one of them"
    )


def test_images_that_do_not_count_may_be_others(workdirs):
    evaluate_with(workdirs[0], digests={"test": "these", "holdout": "these"})
    evaluate_with(workdirs[1], digests={"test": "others", "holdout": "these"})
    weighted, _ = read_ways(workdirs, "holdout")
    assert (weighted.data.test, weighted.data.holdout) == (None, "these")


def test_a_joined_way_has_the_digests_that_all_its_runs_have(workdirs, tmp_path):
    evaluate_with(workdirs[0], digests={"test": "these", "holdout": "these"})
    evaluate_with(workdirs[1], digests={"test": "these", "holdout": "others"})
    keep(workdirs[:1], tmp_path / "kept.json")
    (joined,) = read_ways([tmp_path / "kept.json", workdirs[1]])
    assert (joined.data.test, joined.data.holdout) == ("these", None)


def test_every_two_runs_are_on_the_same_images(workdirs, tmp_path):
    """Of the first, evaluated by an earlier version, it is not known which they were."""
    third = write_run(tmp_path / "weighted-2", 2, "meta", (50.0, 60.0))
    evaluate_with(workdirs[1], digests={"test": "these"})
    evaluate_with(third, digests={"test": "others"})
    told = f"^{third}: was evaluated with other test images than {workdirs[1]}, whose"
    with pytest.raises(UserError, match=told):
        read_ways([workdirs[0], workdirs[1], third])


def test_runs_on_other_images_do_not_join_a_kept_way(workdirs, tmp_path):
    kept = tmp_path / "kept.json"
    evaluate_with(workdirs[0], digests={"test": "these"})
    keep(workdirs[:1], kept)
    (way,) = read_ways([kept])
    assert way.data == read_ways(workdirs[:1])[0].data
    evaluate_with(workdirs[1], digests={"test": "others"})
    with pytest.raises(UserError, match=r"weighted: is .* two ways, .* other test images"):
        read_ways([kept, workdirs[1]])
    # A file of a version that did not keep it.
    ways = json.loads(kept.read_text())
    del ways[0]["data"]
    kept.write_text(json.dumps(ways))
    (joined,) = read_ways([kept, workdirs[1]])
    assert joined.seeds == [0, 1]


def test_runs_of_another_way_do_not_join_a_kept_one_of_their_name(workdirs, tmp_path):
    kept = tmp_path / "kept.json"
    keep(workdirs[:1], kept)
    folder = tmp_path / "other" / "weighted-1"
    folder.mkdir(parents=True)
    other = write_run(folder, 1, "allocation", (50.0, 60.0))
    with pytest.raises(UserError, match=r"weighted: is .* two ways, .* weighting\.kind: 'meta' ->"):
        read_ways([kept, other])
    # A file of a version that did not keep it.
    ways = json.loads(kept.read_text())
    del ways[0]["config"]
    kept.write_text(json.dumps(ways))
    (joined,) = read_ways([kept, other])
    assert joined.seeds == [0, 1]


def test_where_the_data_lay_and_what_was_logged_makes_no_other_way(workdirs):
    path = workdirs[1] / "config.json"
    config = json.loads(path.read_text())
    config["dataset"]["data_dir"] = "elsewhere"
    config["log"]["every_steps"] = 7
    path.write_text(json.dumps(config))
    (weighted, _) = read_ways(workdirs)
    assert weighted.seeds == [0, 1]


def test_where_the_data_of_kept_runs_lay_makes_no_other_way(workdirs, tmp_path):
    """A file may be of a version that kept it."""
    kept = tmp_path / "kept.json"
    keep(workdirs[:1], kept)
    ways = json.loads(kept.read_text())
    ways[0]["config"]["dataset"]["data_dir"] = "elsewhere"
    kept.write_text(json.dumps(ways))
    (joined,) = read_ways([kept, workdirs[1]])
    assert joined.seeds == [0, 1]


def test_runs_of_a_dearer_network_do_not_join_a_kept_way_of_their_name(workdirs, tmp_path):
    kept = tmp_path / "kept.json"
    keep(workdirs[:1], kept)
    ways = json.loads(kept.read_text())
    ways[0]["mul_adds"][1] += 1
    kept.write_text(json.dumps(ways))
    with pytest.raises(UserError, match=r"weighted: .* two ways whose exits cost differently"):
        read_ways([kept, workdirs[1]])


def test_a_run_of_another_name_joins_the_kept_way_of_its_configuration(workdirs, tmp_path):
    kept = tmp_path / "kept.json"
    keep(workdirs[:1], kept)
    mine = workdirs[1].rename(tmp_path / "mine-1")
    (joined,) = read_ways([kept, mine])
    assert (joined.name, joined.seeds) == ("weighted", [0, 1])


@pytest.mark.parametrize(
    "change",
    [
        lambda ways: ways.clear(),
        lambda ways: ways[0]["runs"].clear(),
        lambda ways: ways[0]["runs"][0].update(budgeted=[1, 2]),
        lambda ways: ways[0].update(config=3),
        lambda ways: ways[0].update(data={"classes": ["cat"]}),
        lambda ways: ways[0]["data"].update(class_names=2),
    ],
)
def test_a_file_that_lacks_numbers_is_one_line(change, workdirs, tmp_path):
    kept = tmp_path / "kept.json"
    keep(workdirs[:1], kept)
    ways = json.loads(kept.read_text())
    change(ways)
    kept.write_text(json.dumps(ways))
    with pytest.raises(UserError, match=r"kept\.json: (must be a file|holds no runs)") as error:
        read_ways([kept])
    assert "\n" not in str(error.value)

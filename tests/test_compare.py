"""Runs that differ in the seed alone are one way of training, told by mean and deviation."""

import dataclasses
import json

import numpy as np
import pytest
from scipy import stats
from written_runs import made_evaluation, made_predictions, write_config

from l2w_jax import compare
from l2w_jax.errors import UserError
from l2w_jax.evaluation.results import Evaluation
from l2w_jax.report import figures


def write_run(folder, seed, kind, top1):
    """A run with two exits, of 1 and 3 million mul-adds, whose early exit gains a point."""
    write_config(folder, seed, kind)
    made_evaluation(
        anytime=[
            {"exit": 1, "mul_adds": 1e6, "top1": top1[0]},
            {"exit": 2, "mul_adds": 3e6, "top1": top1[1]},
        ],
        budgeted=[
            {"mul_adds": 3e6, "top1": top1[1]},
            {"mul_adds": 1e6, "top1": top1[0] + 1},
        ],
        held_out=made_predictions(
            np.array([[0.1, 0.2, 0.8, 0.9], [0.5] * 4]),
            np.array([[False, False, True, True], [True] * 4]),
        ),
    ).save(folder)
    return folder


@pytest.fixture
def workdirs(tmp_path):
    return [
        write_run(tmp_path / f"{name}-{seed}", seed, kind, (50.0 + 2 * seed, 60.0 + gain))
        for name, kind, gain in (("weighted", "meta", 4), ("plain", "none", 0))
        for seed in (0, 1)
    ]


def test_table_has_mean_and_deviation_over_the_seeds(workdirs, capsys):
    compare.main(list(map(str, workdirs)))
    header, _, weighted, plain, *_ = capsys.readouterr().out.splitlines()
    assert header == (
        "| top-1 [%] | runs | exit 1 | exit 2 | early, 40% | early, 60% | early, 80% "
        "| early, 20% to 80% |"
    )
    # 40% of 3 million lies a tenth of the way from (1 million, 51 or 53%) to (3 million, 64%).
    assert weighted == (
        "| weighted | 2 | 51.00 ± 1.41 | 64.00 ± 0.00 "
        "| 53.20 ± 1.27 | 56.80 ± 0.85 | 60.40 ± 0.42 "
        # From a third, where the curve begins, to 80% it is a line.
        "| 56.21 ± 0.92 |"
    )
    assert plain.startswith("| plain | 2 | 51.00 ± 1.41 | 60.00 ± 0.00 |")


def test_gains_are_paired_by_seed_with_the_interval_of_student(tmp_path, capsys):
    # The seeds alone differ by more than the ways do, and come in another order.
    plain = [
        write_run(tmp_path / f"plain-{seed}", seed, "none", (50.0 + 2 * seed, 60.0 + 9 * seed))
        for seed in (2, 0, 1)
    ]
    weighted = [
        write_run(tmp_path / f"weighted-{seed}", seed, "meta", (50.0 + 2 * seed, last))
        for seed, last in enumerate((61.0, 71.0, 84.0))
    ]
    compare.main(list(map(str, plain + weighted)))
    *_, header, _, gain = capsys.readouterr().out.splitlines()
    assert header.startswith("| gain over plain | pairs |")
    of_plain, of_weighted = (way.mean_top1() for way in compare.read_ways(plain + weighted))
    of_plain = of_plain[[1, 2, 0]]
    mean = (of_weighted - of_plain).mean()
    low, high = stats.ttest_rel(of_weighted, of_plain).confidence_interval(0.95)
    assert gain == f"| weighted | 3 | {mean:+.2f} ({low:+.2f} to {high:+.2f}) |"


def test_runs_without_a_partner_do_not_count(workdirs, capsys):
    compare.main(list(map(str, workdirs[:3])))
    assert capsys.readouterr().out.splitlines()[-1].startswith("| plain | 1 | ")


def test_kept_numbers_make_the_same_tables(workdirs, tmp_path, capsys):
    compare.main([*map(str, workdirs), f"--save={tmp_path / 'numbers.json'}"])
    of_runs = capsys.readouterr().out
    compare.main([str(tmp_path / "numbers.json")])
    assert capsys.readouterr().out == of_runs


def test_further_runs_join_those_of_a_file(workdirs, tmp_path):
    of_file, later = tmp_path / "numbers.json", workdirs[1]
    first = [workdirs[0], *workdirs[2:]]
    compare.main([*map(str, first), f"--save={of_file}"])
    joined, plain = compare.read_ways([of_file, later])
    expected, _ = compare.read_ways(workdirs)
    assert (joined.name, joined.seeds, plain.seeds) == ("weighted", [0, 1], [0, 1])
    np.testing.assert_array_equal(joined.anytime, expected.anytime)
    np.testing.assert_array_equal(joined.mean_top1(), expected.mean_top1())
    with pytest.raises(UserError, match="weighted: seed 0 is given twice; a run counts once"):
        compare.read_ways([of_file, workdirs[0]])


@pytest.mark.parametrize("content", ["", "[1]", json.dumps([{"name": "a"}])])
def test_a_file_of_other_content_is_one_line(content, tmp_path):
    path = tmp_path / "numbers.json"
    path.write_text(content)
    with pytest.raises(UserError, match="must be a file that --save wrote") as error:
        compare.read_ways([path])
    assert "\n" not in str(error.value)


def test_held_out_images_are_read_with_the_thresholds_of_the_others(workdirs):
    (weighted, _) = compare.read_ways(workdirs, "holdout")
    np.testing.assert_array_equal(weighted.anytime, [[50, 100]] * 2)
    # Where half of the images are to leave at exit 1, the thresholds are 0.8 by one half and
    # 0.9 by the other: one image of 0.9 leaves, at 1 instead of 3 million, and none of 0.8.
    mul_adds, top1 = weighted.budgeted[0].T
    assert mul_adds[1] == (2e6 + 3e6) / 2 and (top1[1:] == 100).all()
    # The ends: everybody leaves at the first exit, or at the last.
    assert (mul_adds[0], top1[0], mul_adds[-1]) == (1e6, 50, 3e6)


def test_figure_has_a_line_for_each_way_over_the_budgets_of_all_its_runs(workdirs):
    chart = figures.comparison(compare.read_ways(workdirs))
    lines = {series.label: series for series in chart.series if series.joined}
    assert list(lines) == ["weighted (2 runs)", "plain (2 runs)"]
    x, y = zip(*lines["weighted (2 runs)"].points, strict=True)
    assert min(x) == pytest.approx(1, abs=0.01) and max(x) == 3
    assert y[-1] == pytest.approx(64)
    assert lines["weighted (2 runs)"].ranges[-1] == (64, 64)


def test_figure_has_the_exits_of_each_way_with_their_range(workdirs):
    chart = figures.comparison(compare.read_ways(workdirs))
    exits = next(series for series in chart.series if not series.joined)
    assert exits.points == [(1, 51), (3, 64)]
    assert exits.ranges == [(50, 52), (64, 64)]


def test_picture_is_written(workdirs, tmp_path):
    compare.main([*map(str, workdirs), f"--output={tmp_path / 'curves.png'}"])
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match=r"curves\.svg: must end in \.png"):
        compare.main([*map(str, workdirs), f"--output={tmp_path / 'curves.svg'}"])


def test_a_run_that_is_given_twice_is_refused(workdirs):
    with pytest.raises(UserError, match="is given twice"):
        compare.read_ways([workdirs[0], workdirs[1], workdirs[0].parent / "." / workdirs[0].name])


def test_ways_whose_folders_are_named_alike_go_by_their_paths(tmp_path):
    folders = [
        write_run(tmp_path / f"lr-{number}", 0, kind, (50.0, 60.0))
        for number, kind in enumerate(("meta", "none"))
    ]
    assert [way.name for way in compare.read_ways(folders)] == [str(folder) for folder in folders]


def test_a_decimal_in_a_name_is_no_seed(tmp_path):
    folder = write_run(tmp_path / "lr0.05", 0, "meta", (50.0, 60.0))
    assert [way.name for way in compare.read_ways([folder])] == ["lr0.05"]


def test_folder_that_is_no_run_is_one_line(tmp_path):
    with pytest.raises(UserError) as error:
        compare.main([str(tmp_path)])
    assert "\n" not in str(error.value)


def test_numbers_of_other_images_do_not_join(workdirs, tmp_path, capsys):
    kept = tmp_path / "kept.json"
    compare.main([*map(str, workdirs), "--images=holdout", f"--save={kept}"])
    of_runs = capsys.readouterr().out
    compare.main([str(kept), "--images=holdout"])
    assert capsys.readouterr().out == of_runs
    with pytest.raises(UserError, match=r"kept.json: was saved with --images=holdout: give"):
        compare.read_ways([kept])


def test_training_images_are_not_taken_for_held_out_ones(workdirs):
    summary = json.loads((workdirs[0] / "evaluation.json").read_text())
    summary["thresholds_from"] = "train"
    (workdirs[0] / "evaluation.json").write_text(json.dumps(summary))
    with pytest.raises(UserError, match="weighted-0: --images=holdout is not allowed"):
        compare.read_ways(workdirs, "holdout")


def test_runs_evaluated_with_other_thresholds_are_not_one_way(workdirs):
    """Of one way, evaluated once more with thresholds from training images."""
    summary = json.loads((workdirs[0] / "evaluation.json").read_text())
    before = {way.name for way in compare.read_ways(workdirs)}
    summary["thresholds_from"] = "train"
    (workdirs[0] / "evaluation.json").write_text(json.dumps(summary))
    assert len(compare.read_ways(workdirs)) > len(before)


@pytest.mark.parametrize("num_images", [0, 1, 2])
def test_held_out_images_too_few_to_halve_are_refused(num_images, workdirs):
    held_out = made_predictions(np.full((2, num_images), 0.5), np.full((2, num_images), True))
    few = dataclasses.replace(
        Evaluation.load(workdirs[1]), held_out=held_out if num_images else None
    )
    few.save(workdirs[1])
    if num_images == 2:
        assert compare.read_ways(workdirs, "holdout")
        return
    with pytest.raises(UserError) as caught:
        compare.read_ways(workdirs, "holdout")
    assert str(caught.value) == (
        f"{workdirs[1]}: --images=holdout is not allowed: was evaluated with {num_images} held-out "
        "images, must be with at least 2, half of which set thresholds for the others"
    )


def test_runs_without_a_curve_are_kept_too(tmp_path, capsys):
    write_config(tmp_path, 0, "meta")
    anytime = [{"exit": k + 1, "mul_adds": 1e6 * (k + 1), "top1": 50.0} for k in range(2)]
    made_evaluation(anytime=anytime, budgeted=[], held_out=None).save(tmp_path)
    compare.main([str(tmp_path), f"--save={tmp_path / 'kept.json'}"])
    of_run = capsys.readouterr().out
    compare.main([str(tmp_path / "kept.json")])
    assert capsys.readouterr().out == of_run


def test_two_runs_of_one_seed_do_not_count_twice(workdirs, tmp_path):
    again = write_run(tmp_path / "again", 0, "meta", (50.0, 60.0))
    with pytest.raises(UserError, match=r"again: has the seed \(0\) and the configuration of "):
        compare.read_ways([*workdirs, again])


def test_some_ways_are_compared_in_another_order(workdirs, capsys):
    runs = list(map(str, workdirs))
    compare.main([*runs, "--ways=plain,weighted"])
    chosen = capsys.readouterr().out
    compare.main(runs[::-1])
    assert chosen.splitlines()[-1] == capsys.readouterr().out.splitlines()[-1]
    compare.main([*runs, "--ways=plain"])
    assert "weighted" not in capsys.readouterr().out
    for names in ("plane", "plain,plain", ""):
        with pytest.raises(UserError, match=r"--ways: .* must be some of weighted, plain, each"):
            compare.main([*runs, f"--ways={names}"])


def test_runs_of_another_way_do_not_join_a_kept_one_of_their_name(workdirs, tmp_path):
    kept = tmp_path / "kept.json"
    compare.main([str(workdirs[0]), f"--save={kept}"])
    folder = tmp_path / "other" / "weighted-1"
    folder.mkdir(parents=True)
    other = write_run(folder, 1, "allocation", (50.0, 60.0))
    with pytest.raises(UserError, match=r"weighted: is .* two ways, .* weighting\.kind: 'meta' ->"):
        compare.read_ways([kept, other])
    # A file of a version that did not keep it.
    ways = json.loads(kept.read_text())
    del ways[0]["config"]
    kept.write_text(json.dumps(ways))
    (joined,) = compare.read_ways([kept, other])
    assert joined.seeds == [0, 1]


def test_where_the_data_lay_and_what_was_logged_makes_no_other_way(workdirs):
    path = workdirs[1] / "config.json"
    config = json.loads(path.read_text())
    config["dataset"]["data_dir"] = "elsewhere"
    config["log"]["every_steps"] = 7
    path.write_text(json.dumps(config))
    (weighted, _) = compare.read_ways(workdirs)
    assert weighted.seeds == [0, 1]


def test_runs_of_a_dearer_network_do_not_join_a_kept_way_of_their_name(workdirs, tmp_path):
    kept = tmp_path / "kept.json"
    compare.main([str(workdirs[0]), f"--save={kept}"])
    ways = json.loads(kept.read_text())
    ways[0]["mul_adds"][1] += 1
    kept.write_text(json.dumps(ways))
    with pytest.raises(UserError, match=r"weighted: .* two ways whose exits cost differently"):
        compare.read_ways([kept, workdirs[1]])


def test_ways_of_other_data_are_told(workdirs, capsys):
    compare.main(list(map(str, workdirs)))
    assert capsys.readouterr().err == ""
    path = workdirs[2] / "config.json"
    config = json.loads(path.read_text())
    config["dataset"]["imbalance_factor"] = 100
    path.write_text(json.dumps(config))
    compare.main(list(map(str, workdirs[:3])))
    told = "weighted and plain are of other data: dataset.imbalance_factor: "
    assert capsys.readouterr().err.startswith(told)


def test_gains_are_over_the_budgets_that_both_ways_reach():
    def way(name, first_exit):
        """Of networks as accurate as each other at each share of the mul-adds."""
        costs = np.array([first_exit, 10.0])
        curve = np.stack([costs, 50 + costs], axis=1)
        return compare.Way(
            name, [0, 1], np.array([first_exit, 10.0]), np.zeros((2, 2)), [curve] * 2
        )

    *_, gain = compare.gain_lines([way("early", 1.0), way("late", 5.0)])
    assert gain == "| late | 2 | +0.00 (+0.00 to +0.00) |"


def test_a_run_of_another_name_joins_the_kept_way_of_its_configuration(workdirs, tmp_path):
    kept = tmp_path / "kept.json"
    compare.main([str(workdirs[0]), f"--save={kept}"])
    mine = workdirs[1].rename(tmp_path / "mine-1")
    (joined,) = compare.read_ways([kept, mine])
    assert (joined.name, joined.seeds) == ("weighted", [0, 1])


@pytest.mark.parametrize(
    "change",
    [
        lambda ways: ways.clear(),
        lambda ways: ways[0]["runs"].clear(),
        lambda ways: ways[0]["runs"][0].update(budgeted=[1, 2]),
        lambda ways: ways[0].update(config=3),
    ],
)
def test_a_file_that_lacks_numbers_is_one_line(change, workdirs, tmp_path):
    kept = tmp_path / "kept.json"
    compare.main([str(workdirs[0]), f"--save={kept}"])
    ways = json.loads(kept.read_text())
    change(ways)
    kept.write_text(json.dumps(ways))
    with pytest.raises(UserError, match=r"kept\.json: (must be a file|holds no runs)") as error:
        compare.read_ways([kept])
    assert "\n" not in str(error.value)

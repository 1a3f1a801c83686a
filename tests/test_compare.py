"""Ways of training are told by mean and deviation over the seeds, and gains by pairs of them."""

import json

import numpy as np
import pytest
from compared_runs import evaluate_with, write_run, write_ways
from scipy import stats
from written_runs import made_evaluation, random_predictions, write_config

from l2w_jax import compare
from l2w_jax.errors import UserError
from l2w_jax.report import figures


@pytest.fixture
def workdirs(tmp_path):
    return write_ways(tmp_path)


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


def test_a_name_is_one_row_and_moves_no_cursor(tmp_path, capsys):
    folders = [write_run(tmp_path / "plain-0", 0, "none", (50.0, 60.0))]
    folders.append(write_run(tmp_path / "a\n\x1b[2J-0", 0, "meta", (50.0, 61.0)))
    compare.main(list(map(str, folders)))
    _, _, _, row, _, _, _, gain = capsys.readouterr().out.splitlines()
    assert row.startswith(r"| a\n\x1b[2J | 1 | ")
    assert gain.startswith(r"| a\n\x1b[2J | 1 | ")


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


def test_the_gain_of_a_single_pair_has_a_sign_and_no_interval(workdirs, capsys):
    for first, second in ((0, 2), (2, 0)):
        runs = [workdirs[first], workdirs[second]]
        of_first, of_second = (way.mean_top1() for way in compare.read_ways(runs))
        compare.main(list(map(str, runs)))
        *_, gain = capsys.readouterr().out.splitlines()
        ((difference,),) = [of_second - of_first]
        assert gain.endswith(f" | 1 | {difference:+.2f} |")


def of_exits(name, *costs):
    """A way of two runs that are 50 percent right, and one more for each million mul-adds."""
    costs = np.array(costs, float)
    curve = np.stack([1e6 * costs, 50 + costs], axis=1)
    return compare.Way(name, [0, 1], 1e6 * costs, np.stack([50 + costs] * 2), [curve] * 2)


def test_a_way_of_fewer_exits_has_no_number_where_another_has_more():
    ways = [of_exits("two", 1, 2), of_exits("three", 1, 2, 4)]
    header, _, *rows = compare.table_lines(ways)
    assert header.startswith("| top-1 [%] | runs | exit 1 | exit 2 | exit 3 | early, 40% |")
    assert [row.split(" | ")[2:5] for row in rows] == [
        ["51.00 ± 0.00", "52.00 ± 0.00", "–"],
        ["51.00 ± 0.00", "52.00 ± 0.00", "54.00 ± 0.00"],
    ]


def test_budgets_are_shares_of_each_networks_own_last_exit():
    _, _, *rows = compare.table_lines([of_exits("two", 1, 2), of_exits("four", 1, 4)])
    # 60% and 80% of 2 and of 4 million mul-adds.
    assert [row.split(" | ")[5:7] for row in rows] == [
        ["51.20 ± 0.00", "51.60 ± 0.00"],
        ["52.40 ± 0.00", "53.20 ± 0.00"],
    ]


def test_the_line_of_a_cheaper_network_ends_at_its_last_exit():
    chart = figures.comparison([of_exits("cheap", 1, 2), of_exits("dear", 1, 4)])
    ends = [max(x for x, _ in series.points) for series in chart.series if series.joined]
    assert ends == pytest.approx([2, 4], abs=0.01)


def test_kept_numbers_make_the_same_tables(workdirs, tmp_path, capsys):
    compare.main([*map(str, workdirs), f"--save={tmp_path / 'numbers.json'}"])
    of_runs = capsys.readouterr().out
    compare.main([str(tmp_path / "numbers.json")])
    assert capsys.readouterr().out == of_runs


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


def test_letters_that_a_picture_cannot_show_are_told_in_one_line(workdirs, tmp_path, capfd):
    for run in workdirs[:2]:
        run.rename(run.with_name(run.name.replace("weighted", "猫と犬と")))
    runs = [str(path) for path in tmp_path.iterdir()]
    compare.main([*runs, f"--output={tmp_path / 'curves.png'}"])
    (line,) = capfd.readouterr().err.splitlines()
    assert "curves.png: shows boxes for 猫と犬, " in line


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


def test_runs_without_a_curve_are_kept_too(tmp_path, capsys):
    write_config(tmp_path, 0, "meta")
    made_evaluation(budgeted=[], held_out=None).save(tmp_path)
    compare.main([str(tmp_path), f"--save={tmp_path / 'kept.json'}"])
    of_run = capsys.readouterr().out
    compare.main([str(tmp_path / "kept.json")])
    assert capsys.readouterr().out == of_run


def test_some_ways_are_compared_in_another_order(workdirs, capsys):
    runs = list(map(str, workdirs))
    compare.main([*runs, "--ways=plain,weighted"])
    chosen = capsys.readouterr().out
    compare.main(runs[::-1])
    assert chosen.splitlines()[-1] == capsys.readouterr().out.splitlines()[-1]
    compare.main([*runs, "--ways=plain"])
    alone = capsys.readouterr().out
    assert "| plain |" in alone
    assert "weighted" not in alone and "gain over" not in alone
    for names in ("plane", "plain,plain", ""):
        with pytest.raises(UserError, match=r"--ways: .* one or more of weighted, plain, none"):
            compare.main([*runs, f"--ways={names}"])


@pytest.mark.parametrize(
    ("field", "value"),
    [("name", "cifar100"), ("num_classes", 7), ("image_size", 16), ("imbalance_factor", 100)],
)
def test_ways_of_other_data_are_told(field, value, workdirs, capsys):
    compare.main(list(map(str, workdirs)))
    assert capsys.readouterr().err == ""
    path = workdirs[2] / "config.json"
    config = json.loads(path.read_text())
    config["dataset"][field] = value
    path.write_text(json.dumps(config))
    compare.main(list(map(str, workdirs[:3])))
    told = f"weighted and plain are of other data: dataset.{field}: "
    assert capsys.readouterr().err.startswith(told)


def set_holdout(workdir, num_images):
    path = workdir / "config.json"
    config = json.loads(path.read_text())
    config["dataset"]["holdout"] = num_images
    path.write_text(json.dumps(config))


def test_ways_that_were_evaluated_on_other_images_are_told(workdirs, capsys):
    runs = [workdirs[0], workdirs[2]]
    evaluate_with(runs[0], digests={"test": "these", "holdout": "these"})
    evaluate_with(runs[1], digests={"test": "others", "holdout": "others"})
    compare.main(list(map(str, runs)))
    told = "weighted and plain are of other data: other test images, other held-out images\n"
    assert capsys.readouterr().err == told
    evaluate_with(runs[1], class_names=["cat", "frog"], digests={})
    compare.main(list(map(str, runs)))
    assert capsys.readouterr().err.endswith(" of other data: other class names\n")


def test_ways_with_as_many_held_out_images_are_not_of_other_data(workdirs, capsys):
    """Of a folder with a val/ of its own, the field says nothing."""
    runs = [workdirs[0], workdirs[2]]
    set_holdout(runs[0], 60)
    compare.main(list(map(str, runs)))
    assert capsys.readouterr().err == ""
    held_out = random_predictions(np.random.default_rng(0), 180, num_exits=2)
    evaluate_with(runs[1], held_out=held_out)
    compare.main(list(map(str, runs)))
    assert capsys.readouterr().err.endswith(": other held-out images (4 -> 180)\n")
    # Where an evaluation does not tell, the field has to do.
    evaluate_with(runs[1], held_out=None, budgeted=[])
    compare.main(list(map(str, runs)))
    assert capsys.readouterr().err.endswith(" are of other data: dataset.holdout: 60 -> 5000\n")


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

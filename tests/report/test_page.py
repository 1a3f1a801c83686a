"""The page holds the runs' figures, and nothing that it would have to fetch."""

import dataclasses
import os
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from written_runs import anytime_rows, made_evaluation, random_predictions, write_config, write_run

from l2w_jax.config import default_config, to_json
from l2w_jax.early_exit.selection import cheapest_without_loss
from l2w_jax.errors import UserError
from l2w_jax.evaluation.classes import leaving_by_class, leaving_by_shots
from l2w_jax.evaluation.results import Evaluation, SampleWeights
from l2w_jax.files import write_json
from l2w_jax.report.__main__ import main
from l2w_jax.report.write import read_runs, write_report


class Reader(HTMLParser):
    """Collects the cells of tables, the texts under images and what elements refer to."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.headings, self.captions, self.references = [], [], [], []
        self.open = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag == "figcaption":
            self.captions.append("")
        self.references += [value for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        where = self.open[-1] if self.open else ""
        if where in ("td", "th"):
            self.rows[-1].append(data)
        elif where in ("h2", "h3", "h4"):
            self.headings.append(data)
        elif "figcaption" in self.open:
            self.captions[-1] += data


@pytest.fixture
def two_runs(tmp_path):
    return [write_run(tmp_path / "learned"), write_run(tmp_path / "plain", 1, kind="none")]


def read(runs):
    return Reader(write_report(runs).read_text())


def test_every_exit_is_in_the_tables(two_runs):
    rows = read(two_runs).rows
    for seed in (0, 1):
        for k in (1, 2, 3):
            cells = [str(k), f"{1.5 * k:.2f}", f"{70.25 + seed + k:.2f}", "90.50", f"{0.5 / k:.4f}"]
            assert cells in rows


def test_results_name_early_exits_that_were_not_chosen_on_test_images(two_runs):
    evaluation = Evaluation.load(two_runs[0])
    held_out = evaluation.held_out
    choice = cheapest_without_loss(held_out.log_odds, held_out.correct, evaluation.mul_adds)
    early = evaluation.outcome(evaluation.test, choice.thresholds)
    told = [f"{early['top1']:.2f}", f"{early['mul_adds'] / 1e6:.2f}"]
    assert [
        *["learned", "3", "73.25", "4.50", *told],
        *["360", "180 (holdout)", "40"],
    ] in read(two_runs).rows


def test_images_of_an_earlier_evaluation_are_said_to_set_the_thresholds(two_runs):
    dataclasses.replace(Evaluation.load(two_runs[0]), held_out_kept=True).save(two_runs[0])
    *_, images, _ = next(row for row in read(two_runs).rows if row[0] == "learned")
    assert images == "180 (holdout, of an earlier evaluation)"


def test_training_images_that_set_thresholds_are_not_called_held_out(two_runs):
    dataclasses.replace(Evaluation.load(two_runs[0]), thresholds_from="train").save(two_runs[0])
    assert "by which held-out" not in (text := write_report(two_runs).read_text())
    assert "when held-out" not in text


def test_exits_above_the_curve_are_said_to_be(tmp_path):
    folder = write_run(tmp_path / "run")
    evaluation = Evaluation.load(folder)
    evaluation.anytime[1]["top1"] = 99.0
    evaluation.save(folder)
    assert "Above the curve: exit 2." in write_report([folder]).read_text()


def test_runs_are_told_apart_by_what_differs_in_their_configurations(two_runs):
    rows = read(two_runs).rows
    assert ["field", "learned", "plain"] in rows
    assert ["weighting.kind", "'meta'", "'none'"] in rows
    assert not [row for row in rows if row[0] == "seed"]


def test_one_run_is_compared_with_the_defaults(tmp_path):
    rows = read([write_run(tmp_path / "plain", kind="none")]).rows
    assert ["weighting.kind", "'meta'", "'none'"] in rows


def test_a_run_is_shown_once(tmp_path):
    folder = write_run(tmp_path / "run")
    with pytest.raises(UserError, match="run: is given twice"):
        main([str(folder), str(tmp_path / "other" / ".." / "run")])


def test_runs_alike_say_so(tmp_path):
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b")]
    assert "The runs have the same configuration" in write_report(runs).read_text()


def test_images_show_what_the_network_made_of_them(two_runs):
    page = read(two_runs[:1])
    assert page.captions == ["cat 90%", "<dog> 80%", "<dog> 70% (cat)", "<dog> 60%"]
    text = write_report(two_runs[:1]).read_text()
    assert text.count('<figure class="wrong">') == 1
    assert text.count("no image") == 2
    # Names written from right to left turn round nothing beside them.
    assert "<bdi>&lt;dog&gt;</bdi> 70% (<bdi>cat</bdi>)" in text


def test_the_page_needs_no_other_file_and_no_network(two_runs):
    page = read(two_runs)
    assert page.references
    assert all(reference.startswith("data:image/png;base64,") for reference in page.references)
    text = write_report(two_runs).read_text()
    assert not re.search(r"https?://|@import|url\(", text)


def test_a_value_may_hold_an_arrow(tmp_path):
    run = write_run(tmp_path / "run")
    config = default_config()
    config.dataset.data_dir = "/d -> e: f"
    (run / "config.json").write_text(to_json(config))
    assert ["dataset.data_dir", "''", "'/d -> e: f'"] in read([run]).rows


def test_a_folder_may_have_any_name(tmp_path):
    run = write_run(tmp_path / os.fsdecode(b"caf\xe9"))
    assert "caf?" in write_report([run]).read_text()


def test_every_section_is_there_and_plain_training_has_no_weights(two_runs):
    headings = read(two_runs).headings
    for section in (
        "Results",
        "Configuration",
        "Accuracy over compute",
        "Where images leave",
        "Which images leave",
        "What the weights depend on",
        "Held-out accuracy of the last exit",
    ):
        assert section in headings
    assert "every image has weight 1" in write_report(two_runs).read_text()


def measured(step):
    rows = [{"exit": k, "ms": 0.5 * k, "top1": 70.0 + k} for k in (1, 2, 3)]
    entry = {"batch_size": 32, "full_ms": 1.25, "exits": rows, "budgeted": rows}
    return {"device": "some cpu", "step": step, "batch_sizes": [entry]}


def test_measured_latency_is_shown(two_runs):
    write_json(two_runs[0] / "latency.json", measured(step=40))
    page = read(two_runs)
    assert "Batch of 32" in page.headings
    assert ["exit 3", "1.500"] in page.rows
    assert ["full network", "1.250"] in page.rows


def test_a_picture_of_another_steps_latency_is_taken_away(two_runs):
    picture = two_runs[0] / "plots" / "latency.png"
    picture.parent.mkdir()
    for step, stays in ((40, True), (20, False)):
        picture.write_bytes(b"drawn when it was measured")
        write_json(two_runs[0] / "latency.json", measured(step=step))
        write_report(two_runs)
        assert picture.exists() == stays


def test_latency_of_another_step_or_of_none_is_not_measured(two_runs):
    write_json(two_runs[0] / "latency.json", measured(step=20))
    assert write_report(two_runs).read_text().count("Not measured") == 2


def test_an_evaluation_without_examples_is_shown(two_runs):
    evaluation = dataclasses.replace(Evaluation.load(two_runs[1]), examples=None)
    evaluation.save(two_runs[1])
    assert "The evaluation has none." in write_report(two_runs).read_text()


def test_an_evaluation_without_images_for_thresholds_is_shown(two_runs):
    folder = two_runs[0]
    write_report(two_runs)
    without = {"held_out": None, "budgeted": [], "examples": None, "sample_weights": None}
    dataclasses.replace(Evaluation.load(folder), **without).save(folder)
    page = read(two_runs)
    assert ["learned", "3", "73.25", "4.50", "360", "none", "40"] in page.rows
    text = (folder / "report.html").read_text()
    assert text.count("evaluated without images that set thresholds") == 4
    assert [path.name for path in (folder / "plots").iterdir()] == ["accuracy.png"]


def test_no_chart_is_empty(tmp_path):
    one = random_predictions(np.random.default_rng(0), 40, num_exits=1)
    row = {"q": 1.0, "mul_adds": 1e6, "top1": 50.0, "share_1": 1.0}
    of_one_exit = made_evaluation(
        anytime=anytime_rows([1e6], [50.0]), budgeted=[row], test=one, held_out=one
    )
    losses = np.float32([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])
    of_few_images = made_evaluation(sample_weights=SampleWeights(losses, losses))
    for evaluation, section, told, picture in (
        (of_one_exit, "Where images leave", "All images leave at the only exit.", "exits.png"),
        (of_few_images, "What the weights depend on", "so there is no mean", None),
    ):
        folder = tmp_path / section
        write_config(folder)
        evaluation.save(folder)
        page = write_report([folder]).read_text()
        shown = page.split(f"<h2>{section}</h2>")[1].split("</section>")[0]
        assert told in shown and "<svg" not in shown
        assert picture not in [path.name for path in (folder / "plots").iterdir()]


def test_a_run_without_metrics_is_shown(two_runs):
    (two_runs[0] / "metrics.jsonl").unlink()
    assert "No metrics.jsonl" in write_report(two_runs[:1]).read_text()


def test_damaged_and_unwritable_files_are_named(two_runs, tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}: cannot be written"):
        write_report(two_runs, tmp_path)
    for line in (
        b"{half",
        b'{"step": "\xff"}',
        b"3",
        b'{"step": 2, "loss": 1}',
        b'{"top1": [2]}',
        b'{"step": Infinity, "loss": [1]}',
        b'{"step": 2, "loss": [1' + b"0" * 400 + b"]}",
        b"[" * 100_000,
    ):
        (two_runs[0] / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
        with pytest.raises(UserError, match=r"metrics\.jsonl: line 2 is damaged"):
            write_report(two_runs)
    (two_runs[0] / "metrics.jsonl").unlink()
    step = Evaluation.load(two_runs[0]).step
    whole = measured(step)
    (entry,) = whole["batch_sizes"]
    for latency in (
        [],
        {"step": step},
        whole | {"device": 3},
        whole | {"batch_sizes": [3]},
        whole | {"batch_sizes": [{"full_ms": 1.0}]},
        whole | {"batch_sizes": [entry | {"exits": [{"exit": 1, "ms": 1.0}]}]},
        whole | {"batch_sizes": [entry | {"full_ms": "1.0"}]},
        whole | {"batch_sizes": [entry | {"budgeted": None}]},
        whole | {"batch_sizes": [entry | {"exits": []}]},
    ):
        write_json(two_runs[0] / "latency.json", latency)
        with pytest.raises(UserError, match=r"latency\.json: is damaged"):
            write_report(two_runs)
    for name in ("latency.json", "evaluation.npz", "evaluation.json"):
        for damaged in ("{half", "[" * 100_000):
            (two_runs[0] / name).write_text(damaged)
            with pytest.raises(UserError, match=f"{two_runs[0]}.*{name}:? is damaged"):
                write_report(two_runs)
    (two_runs[0] / "config.json").write_text("{half")
    with pytest.raises(UserError, match=f"{two_runs[0]}: config.json: line 1"):
        write_report(two_runs)


def test_folders_of_one_name_are_told_apart(tmp_path):
    for parent in ("first", "second"):
        (tmp_path / parent).mkdir()
        write_run(tmp_path / parent / "run")
    runs = read_runs([tmp_path / "first" / "run", tmp_path / "second" / "run"])
    assert len({run.name for run in runs}) == 2


def test_figures_are_drawn_beside_the_page_of_a_run(two_runs):
    main([*map(str, two_runs)])
    drawn = {path.name for path in (two_runs[0] / "plots").iterdir()}
    assert drawn == {"accuracy.png", "exits.png", "weights.png"}
    assert not (two_runs[1] / "plots").exists()


def test_a_page_elsewhere_leaves_the_runs_as_they_are(two_runs, tmp_path, capsys):
    before = sorted(two_runs[0].iterdir())
    main([*map(str, two_runs), f"--output={tmp_path / 'page.html'}"])
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    assert "page.html" in capsys.readouterr().out
    assert sorted(two_runs[0].iterdir()) == before


def test_a_folder_without_an_evaluation_is_named(two_runs, tmp_path):
    with pytest.raises(UserError, match="nothing: not the folder of a run"):
        main([str(two_runs[0]), str(tmp_path / "nothing")])
    (two_runs[1] / "evaluation.npz").unlink()
    with pytest.raises(UserError, match=r"evaluation\.npz is missing"):
        main([str(two_runs[1])])


def test_the_page_says_where_the_images_come_from(tmp_path):
    splits = {"train": "train/ (38,000 images)", "holdout": "cut from train/", "test": "<val>/"}
    write_config(tmp_path / "run")
    made_evaluation(splits=splits).save(tmp_path / "run")
    page = write_report([tmp_path / "run"]).read_text()
    assert (
        "run: train: train/ (38,000 images); holdout: cut from train/; test: &lt;val&gt;/." in page
    )


def test_classes_and_the_parts_of_a_long_tail_have_their_numbers_in_tables(tmp_path):
    test = random_predictions(np.random.default_rng(0), 400)
    labels = (test.log_odds[0] < np.median(test.log_odds[0])).astype(np.int32)
    shots = [{"exit": 1, "many": 1.0, "medium": None, "few": 2.0}]
    write_config(tmp_path)
    evaluation = made_evaluation(
        test=dataclasses.replace(test, labels=labels), class_counts=[500, 7], shots=shots
    )
    evaluation.save(tmp_path)
    page = Reader(write_report([tmp_path], tmp_path / "page.html").read_text())
    for rows, names in (
        (leaving_by_class(evaluation), ["cat", "<dog>"]),
        (leaving_by_shots(evaluation), ["many", "few"]),
    ):
        assert [row["name"] for row in rows] == names
        for row in rows:
            assert [
                *[row["name"], f"{row['images']}", f"{row['top1']:.1f}", f"{row['top1_last']:.1f}"],
                *(f"{100 * row[f'share_{k}']:.0f}" for k in (1, 2, 3)),
            ] in page.rows


def test_every_band_has_a_colour_also_where_runs_have_other_numbers_of_exits(two_runs, tmp_path):
    test = random_predictions(np.random.default_rng(0), 40, num_exits=2)
    fewer = {"test": test, "held_out": test, "examples": None, "sample_weights": None}
    whole = Evaluation.load(two_runs[0])
    dataclasses.replace(whole, anytime=whole.anytime[:2], **fewer).save(two_runs[0])
    text = write_report(two_runs, tmp_path / "page.html").read_text()
    drawn = set(re.findall(r'class="band (e\d)"', text))
    assert drawn == {"e0", "e1", "e2"} == set(re.findall(r"\.(e\d)\b", text))


def test_of_many_classes_those_at_both_ends_are_told(tmp_path):
    rng = np.random.default_rng(0)
    names = [f"class {c}" for c in range(40)]
    test = random_predictions(rng, 400)
    test = dataclasses.replace(test, labels=np.arange(400, dtype=np.int32) % 40)
    write_config(tmp_path / "run")
    made_evaluation(class_names=names, test=test).save(tmp_path / "run")
    page = write_report([tmp_path / "run"]).read_text()
    order = [row["name"] for row in leaving_by_class(Evaluation.load(tmp_path / "run"))]
    told = [name for name in order if f"<td>{name}</td>" in page]
    assert told == order[:15] + order[-15:]
    assert "10 classes between the earliest and the latest are left out" in page
    # Pointed at, the chart tells each of them.
    assert all(f"<title>{name}\n" in page for name in order)


def test_calibrated_exits_are_shown_beside_what_they_were(tmp_path):
    calibration = [{"exit": k, "ece": 0.1 * k, "adaptive_ece": 0.05 * k} for k in (1, 2, 3)]
    calibrated = [
        {
            "exit": k,
            "ece": 0.01,
            "adaptive_ece": 0.02,
            "temperature": 1.5,
            "reliability": [[0.5, 1]],
        }
        for k in (1, 2, 3)
    ]
    write_config(tmp_path)
    evaluation = made_evaluation(calibration=calibration)
    evaluation.save(tmp_path)
    before = read([tmp_path])
    assert ["2", "20.00", "10.00"] in before.rows
    assert "Accuracy over confidence, with temperatures" not in before.headings
    dataclasses.replace(evaluation, calibrated=calibrated).save(tmp_path)
    after = read([tmp_path])
    assert ["2", "20.00", "10.00", "1.50", "1.00", "2.00"] in after.rows
    assert "Accuracy over confidence, with temperatures" in after.headings

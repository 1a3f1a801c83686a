"""An evaluation comes back from its files as it was, those of earlier versions included."""

import csv
import dataclasses
import io
import json
import os
import zipfile

import numpy as np
import pytest
from full_disk import fill_disk
from written_runs import (
    anytime_rows,
    made_evaluation,
    made_examples,
    random_predictions,
    write_config,
)

from l2w_jax.errors import UserError
from l2w_jax.evaluation import results
from l2w_jax.evaluation.results import Evaluation, SampleWeights

PREDICTED = random_predictions(np.random.default_rng(3), 20)
OPTIONAL = ("shots", "sample_weights", "examples")


def whole_evaluation():
    rng = np.random.default_rng(0)
    return made_evaluation(
        shots=[{"exit": 1, "many": 50.0, "medium": None, "few": 25.0}],
        sample_weights=SampleWeights(*rng.random((2, 5, 3)).astype(np.float32)),
        examples=made_examples(rng),
    )


@pytest.fixture
def folder(tmp_path):
    write_config(tmp_path)
    return tmp_path


def assert_same(one, other):
    assert type(one) is type(other)
    if dataclasses.is_dataclass(one):
        for field in dataclasses.fields(one):
            assert_same(getattr(one, field.name), getattr(other, field.name))
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    else:
        assert one == other


@pytest.mark.parametrize("without", [(), *((name,) for name in OPTIONAL), OPTIONAL])
def test_what_is_saved_is_loaded(folder, without):
    evaluation = dataclasses.replace(whole_evaluation(), **dict.fromkeys(without))
    evaluation.save(folder)
    assert_same(Evaluation.load(folder), evaluation)


def test_tables_are_files_too(folder):
    evaluation = whole_evaluation()
    evaluation.save(folder)
    for name in ("anytime", "budgeted"):
        with open(folder / f"{name}.csv", newline="") as file:
            rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
        assert rows == getattr(evaluation, name)
    assert (folder / "shots.csv").read_text() == "exit,many,medium,few\n1,50.0,,25.0\n"


def test_it_is_told_how_many_images_were_evaluated_and_how_many_set_thresholds(folder):
    for evaluation, counts in ((whole_evaluation(), (360, 180)), (without_held_out(), (360, 0))):
        evaluation.save(folder)
        summary = json.loads((folder / "evaluation.json").read_text())
        assert (summary["test_images"], summary["thresholds_images"]) == counts


def test_the_curve_goes_by_rising_cost_from_the_first_exit_to_the_last():
    rows = [{"mul_adds": 3e6, "top1": 80}, {"mul_adds": 2e6, "top1": 75}]
    evaluation = made_evaluation(budgeted=rows)
    first, *inner, last = evaluation.curve
    assert inner == rows[::-1]
    assert first == {"mul_adds": 1.5e6, "top1": 71.25, "share_1": 1, "share_2": 0, "share_3": 0}
    assert last == {"mul_adds": 4.5e6, "top1": 73.25, "share_1": 0, "share_2": 0, "share_3": 1}


def test_thresholds_without_loss_are_as_accurate_as_the_last_exit_on_what_set_them():
    evaluation = made_evaluation()
    held_out = evaluation.held_out
    point = evaluation.outcome(held_out, evaluation.without_loss.thresholds)
    assert point["top1"] >= held_out.top1[-1]
    assert point["mul_adds"] == evaluation.without_loss.cost < evaluation.mul_adds[-1]


def without_held_out():
    return dataclasses.replace(whole_evaluation(), held_out=None, budgeted=[])


def test_without_images_that_set_thresholds_there_is_no_curve_and_no_choice():
    assert without_held_out().curve == []
    with pytest.raises(UserError, match="evaluated without images of 'holdout'"):
        without_held_out().threshold_images()


def test_a_table_that_is_no_more_is_taken_away(folder):
    whole_evaluation().save(folder)
    without_held_out().save(folder)
    assert not (folder / "budgeted.csv").exists()
    assert_same(Evaluation.load(folder), without_held_out())


def write_as_before(folder):
    """The files of a plain run of three exits, as they were before there was `Evaluation`."""
    summary = {
        "step": 5,
        "dataset": "digits",
        "class_names": ["0", "1"],
        "test_images": 20,
        "thresholds_from": "holdout",
        "thresholds_images": 20,
        "anytime": anytime_rows([1e6, 2e6, 3e6], [50.0, 55.0, 60.0]),
        "budgeted": [
            {"q": 1.0, "mul_adds": 1e6, "top1": 50.0, "share_1": 1.0, "share_2": 0, "share_3": 0}
        ],
    }
    (folder / "evaluation.json").write_text(json.dumps(summary))
    fields = ("positions", "labels", "losses", "confidences", "predicted", "correct")
    arrays = {
        f"{split}_{field}": getattr(PREDICTED, field)
        for split in ("test", "thresholds")
        for field in (*fields, "correct_top5")
    }
    examples = {
        "images": np.zeros((1, 8, 8, 3), np.uint8),
        "exits": np.array([0]),
        "kinds": np.array(["sure"]),
        "labels": np.array([1]),
        "predicted": np.array([1]),
        "confidences": np.float32([0.5]),
    }
    arrays |= {f"examples_{name}": array for name, array in examples.items()}
    np.savez(folder / "evaluation.npz", **arrays)
    return summary, arrays


def test_an_evaluation_of_an_earlier_version_is_loaded(folder):
    summary, _ = write_as_before(folder)
    evaluation = Evaluation.load(folder)
    assert evaluation.budgeted == summary["budgeted"]
    # The log-odds, which that version did not keep, are made of the confidences.
    assert_same(evaluation.held_out, PREDICTED)
    assert evaluation.examples.kinds.tolist() == ["sure"]
    assert (evaluation.sample_weights, evaluation.shots) == (None, None)


def test_the_files_keep_the_names_of_earlier_versions(folder):
    summary, arrays = write_as_before(folder)
    Evaluation.load(folder).save(folder)
    written = json.loads((folder / "evaluation.json").read_text())
    assert {name: written[name] for name in summary} == summary
    with np.load(folder / "evaluation.npz") as written:
        assert set(written) == set(arrays) | {"test_log_odds", "thresholds_log_odds"}
    with pytest.raises(UserError, match=r"rule 'margin': .* evaluate the run again"):
        Evaluation.load(folder).held_out.scores("margin")


@pytest.mark.parametrize("missing", ["evaluation.json", "evaluation.npz"])
def test_a_run_that_was_not_evaluated_is_told_how(folder, missing):
    made_evaluation().save(folder)
    (folder / missing).unlink()
    with pytest.raises(UserError, match=f"{missing} is missing; evaluate the run first"):
        Evaluation.load(folder)


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(UserError, match="not the folder of a run"):
        Evaluation.load(tmp_path)


@pytest.mark.parametrize("damaged", ["evaluation.json", "evaluation.npz"])
def test_a_damaged_file_is_named(folder, damaged):
    made_evaluation().save(folder)
    (folder / damaged).write_text("{half")
    with pytest.raises(UserError, match=f"{damaged} is damaged"):
        Evaluation.load(folder)


def test_an_evaluation_that_is_cut_short_does_not_pass_for_the_one_before(folder, monkeypatch):
    made_evaluation(step=1).save(folder)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        made_evaluation(step=2).save(folder)
    with pytest.raises(UserError, match=r"evaluation\.json is missing"):
        Evaluation.load(folder)


@pytest.mark.parametrize("full", ["anytime.csv", "evaluation.npz", "evaluation.json"])
def test_on_a_full_disk_the_earlier_evaluation_stays_whole(folder, monkeypatch, full):
    made_evaluation(step=1).save(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    fill_disk(monkeypatch, full)
    with pytest.raises(OSError, match="No space left"):
        whole_evaluation().save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_every_wrong_byte_is_found(folder):
    made_evaluation().save(folder)
    file = folder / "evaluation.npz"
    content = file.read_bytes()
    for place in range(0, len(content), len(content) // 50):
        damaged = bytearray(content)
        damaged[place] ^= 0x55
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"evaluation\.npz is damaged"):
            Evaluation.load(folder)


def test_files_of_two_evaluations_do_not_pass_for_one(folder):
    made_evaluation(test=random_predictions(np.random.default_rng(1), 360)).save(folder)
    of_another = (folder / "evaluation.npz").read_bytes()
    made_evaluation().save(folder)
    (folder / "evaluation.npz").write_bytes(of_another)
    told = r"evaluation\.npz is damaged \(it is not what evaluation\.json was written with\)"
    with pytest.raises(UserError, match=told):
        Evaluation.load(folder)


def test_what_lacks_a_number_is_damaged(folder):
    write_as_before(folder)
    summary = json.loads((folder / "evaluation.json").read_text())
    del summary["anytime"]
    (folder / "evaluation.json").write_text(json.dumps(summary))
    with pytest.raises(UserError, match=r"evaluation\.json is damaged \('anytime'\)"):
        Evaluation.load(folder)


def test_arrays_that_say_they_are_encrypted_are_damaged(folder):
    """Which a wrong byte may say; of these files no checksum was kept."""
    write_as_before(folder)
    content = bytearray((folder / "evaluation.npz").read_bytes())
    # The flags of the first entry of the archive's index.
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (folder / "evaluation.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"evaluation\.npz is damaged \(.* encrypted"):
        Evaluation.load(folder)


def test_arrays_that_say_they_are_larger_than_any_memory_are_damaged(folder):
    write_as_before(folder)
    header = io.BytesIO()
    described = {"descr": "|u1", "fortran_order": False, "shape": (10**13,)}
    np.lib.format.write_array_header_1_0(header, described)
    with zipfile.ZipFile(folder / "evaluation.npz", "a") as arrays:
        arrays.writestr("test_others.npy", header.getvalue())
    with pytest.raises(UserError, match=r"evaluation\.npz is damaged \(Unable to allocate"):
        Evaluation.load(folder)


def test_a_summary_that_is_nested_too_deeply_is_damaged(folder):
    made_evaluation().save(folder)
    (folder / "evaluation.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"evaluation\.json is damaged"):
        Evaluation.load(folder)


def test_latency_of_another_network_of_the_same_step_is_not_measured(folder):
    latency = {"device": "cpu", "step": 40, "network": "one", "batch_sizes": []}
    (folder / "latency.json").write_text(json.dumps(latency))
    assert results.read_latency(folder, made_evaluation(network="one")) == latency
    assert results.read_latency(folder, made_evaluation(network="other")) is None
    # Of an earlier version, which knew a network by its step.
    assert results.read_latency(folder, made_evaluation()) == latency
    assert results.read_latency(folder, made_evaluation(step=20)) is None

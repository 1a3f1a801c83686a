"""The command that sets thresholds: every wish, and what it says where one cannot be fulfilled."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from written_runs import anytime_rows, made_evaluation, random_predictions, write_config

from l2w_jax import thresholds
from l2w_jax.early_exit import latency
from l2w_jax.early_exit.budget import NOBODY_LEAVES, find_thresholds, first_exits
from l2w_jax.early_exit.calibration import calibration_error
from l2w_jax.errors import RunFailed, UserError
from l2w_jax.evaluation import results
from l2w_jax.evaluation.calibrate import Calibration
from l2w_jax.evaluation.policy import read_policy
from l2w_jax.models.exit_shares import exit_shares
from l2w_jax.run import workdir as run_folder

MUL_ADDS = [1e6, 2e6, 4e6]


def write_run(folder, **fields):
    """The evaluation of a run with 3000 images of either kind, written into the folder."""
    rng = np.random.default_rng(0)
    evaluation = made_evaluation(
        step=5,
        anytime=anytime_rows(MUL_ADDS, [70.0, 75.0, 80.0]),
        held_out=random_predictions(rng, 3000),
        test=random_predictions(rng, 3000),
    )
    evaluation = dataclasses.replace(evaluation, **fields)
    write_config(folder)
    evaluation.save(folder)
    return evaluation


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, write_run(folder)


def chosen(folder, *wish):
    return chosen_in(folder, *wish, output=folder.parent / "chosen.json")


def chosen_in(folder, *wish, output=None):
    output = output or folder / "thresholds.json"
    thresholds.main([f"--workdir={folder}", f"--output={output}", *wish])
    return json.loads(output.read_text())


def test_a_budget_in_mul_adds_is_kept(run):
    result = chosen(run[0], "--mul-adds=2M")
    assert 1.5e6 < result["expected"]["mul_adds"] <= 2e6
    assert result["test"]["mul_adds"] == pytest.approx(2e6, rel=0.05)
    assert result["chosen_by"] == {"mul_adds": 2e6}


def test_an_accuracy_is_reached_for_less_than_the_full_network_costs(run):
    full = 100 * run[1].held_out.correct[-1].mean()
    result = chosen(run[0], f"--accuracy={full - 2}")
    assert result["expected"]["top1"] >= full - 2
    assert result["expected"]["mul_adds"] < 3e6


def test_q_gives_the_thresholds_of_its_shares(run):
    result = chosen(run[0], "--q=0.8")
    expected = find_thresholds(run[1].held_out.log_odds, exit_shares(0.8, 3))
    np.testing.assert_array_equal(np.float32(result["thresholds"]), expected)
    assert result["q"] == 0.8
    assert result["rule"] == "log_odds"


def test_thresholds_are_shown_as_probabilities_however_sure_the_network_is(tmp_path, capsys):
    evaluation = write_run(tmp_path)
    first_choice = chosen_in(tmp_path, "--q=0.5")
    p = np.sort(evaluation.held_out.confidences[0])[-int(3000 * exit_shares(0.5, 3)[0])]
    assert capsys.readouterr().out.startswith(f"thresholds, as probabilities: {p:.4f}, ")
    surer = dataclasses.replace(evaluation.held_out, log_odds=evaluation.held_out.log_odds + 30)
    write_run(tmp_path, held_out=surer)
    second_choice = chosen_in(tmp_path, "--q=0.5")
    assert second_choice["thresholds"][0] == pytest.approx(first_choice["thresholds"][0] + 30)
    doubt = np.exp(-second_choice["thresholds"][0])
    assert capsys.readouterr().out.startswith(
        f"thresholds, as probabilities: 1 - {doubt:.1e}, 1 - "
    )


def test_shares_that_were_not_got_are_pointed_out(tmp_path, capsys):
    evaluation = write_run(tmp_path)
    chosen_in(tmp_path, "--q=2")
    assert "asks for" not in capsys.readouterr().out
    # Half of the images are equals at the first exit, so that they leave together or not at all.
    scores = evaluation.held_out.log_odds
    scores[0, ::2] = scores.max()
    evaluation.save(tmp_path)
    assert chosen_in(tmp_path, "--q=2")["expected"]["share_1"] == 0.5
    assert "  but q=2 asked for shares of 14% 29% 57%" in capsys.readouterr().out


def test_patience_is_one_of_the_rules(run):
    result = chosen(run[0], "--mul-adds=2M", "--rule=patience")
    assert result["rule"] == "patience"
    scores = run[1].held_out.scores("patience")
    shares = np.bincount(first_exits(scores, result["thresholds"]), minlength=3) / 3000
    assert [result["expected"][f"share_{k}"] for k in (1, 2, 3)] == pytest.approx(shares.tolist())
    assert 1.5e6 < result["expected"]["mul_adds"] <= 2e6


@pytest.fixture
def calibration(run, monkeypatch):
    """What --calibrate finds."""
    rows = [
        {"exit": k, "ece": 0.021, "adaptive_ece": 0.02, "temperature": 1 + k / 2, "reliability": []}
        for k in (1, 2, 3)
    ]
    cooled = dataclasses.replace(
        run[1], held_out=random_predictions(np.random.default_rng(9), 2000), calibrated=rows
    )
    made = Calibration((1.5, 2.0, 2.5), 1000, cooled)
    monkeypatch.setattr(thresholds, "_calibration", lambda workdir, evaluation: made)
    return made


def test_temperatures_are_kept_with_the_thresholds_that_need_them(
    run, calibration, tmp_path, capsys
):
    write_run(tmp_path)
    evaluated = json.loads((tmp_path / "evaluation.json").read_text())
    thresholds.main([f"--workdir={tmp_path}", "--q=0.8", "--calibrate"])
    result = json.loads((tmp_path / "thresholds.json").read_text())
    expected = find_thresholds(calibration.evaluation.held_out.log_odds, exit_shares(0.8, 3))
    np.testing.assert_array_equal(np.float32(result["thresholds"]), expected)
    assert result["thresholds_images"] == 2000
    before = calibration_error(run[1].test.confidences[0], run[1].test.correct[0])
    assert f": {100 * before:.1f}% -> 2.1%, " in capsys.readouterr().out
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert written.pop("calibrated") == calibration.evaluation.calibrated
    assert written == evaluated
    read = read_policy(tmp_path / "thresholds.json", run[1])
    assert read.temperatures == (1.5, 2.0, 2.5)


def test_an_exit_that_no_temperature_was_found_for_is_told(run, calibration):
    without = dataclasses.replace(calibration, temperatures=(1.5, 1.0, 2.5))
    lines = thresholds.calibration_lines(run[1], without)
    assert [line for line in lines if line.startswith("  exit ")] == [
        "  exit 2 stays as sure as it is: the images tell no temperature between 0.05 and 20 for "
        "it, as where it is right about them all"
    ]


@pytest.fixture
def evaluate_meanwhile(calibration, monkeypatch):
    """Has another evaluation of a folder end while temperatures are fitted."""

    def set_up(folder, **fields):
        def calibrate(workdir, evaluation):
            dataclasses.replace(evaluation, **fields).save(folder)
            return calibration

        monkeypatch.setattr(thresholds, "_calibration", calibrate)

    return set_up


@pytest.mark.parametrize("other", [{"network": "other"}, {"digests": {"test": "new"}}])
def test_temperatures_are_not_told_of_another_evaluation(evaluate_meanwhile, other, tmp_path):
    write_run(tmp_path, network="one", digests={"test": "old"})
    evaluate_meanwhile(tmp_path, **other)
    with pytest.raises(RunFailed, match="was evaluated anew while temperatures were fitted"):
        thresholds.main([f"--workdir={tmp_path}", "--q=0.8", "--calibrate"])
    assert not (tmp_path / "thresholds.json").exists()
    assert results.Evaluation.load(tmp_path).calibrated is None


def test_temperatures_are_told_of_an_evaluation_that_came_to_the_same(evaluate_meanwhile, tmp_path):
    write_run(tmp_path)
    evaluate_meanwhile(tmp_path)
    thresholds.main([f"--workdir={tmp_path}", "--q=0.8", "--calibrate"])
    assert [row["exit"] for row in results.Evaluation.load(tmp_path).calibrated] == [1, 2, 3]


def test_temperatures_are_not_added_while_a_run_uses_the_folder(calibration, tmp_path):
    write_run(tmp_path)
    before = (tmp_path / "evaluation.json").read_bytes()
    with (
        run_folder.locked(tmp_path),
        pytest.raises(UserError, match="in use by another run"),
    ):
        thresholds.main([f"--workdir={tmp_path}", "--q=0.8", "--calibrate"])
    assert (tmp_path / "evaluation.json").read_bytes() == before


def test_a_trial_elsewhere_leaves_the_run_as_it_is(run, calibration, monkeypatch, capsys):
    """It may be of others, and take no file."""
    before = {path: path.read_bytes() for path in run[0].iterdir()}
    monkeypatch.setattr(results.Evaluation, "save_summary", lambda *_: pytest.fail("written"))
    assert chosen(run[0], "--q=0.8", "--calibrate")["temperatures"] == [1.5, 2.0, 2.5]
    assert "expected calibration error on test images" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in run[0].iterdir()} == before


def test_a_latency_is_kept_by_measured_times(run, monkeypatch, capsys):
    monkeypatch.setattr(thresholds, "_milliseconds", lambda workdir, evaluation: [3.0, 4.0, 9.0])
    result = chosen(run[0], "--latency-ms=5")
    exits = first_exits(run[1].held_out.log_odds, result["thresholds"])
    mean = np.array([3.0, 4.0, 9.0])[exits].mean()
    assert result["chosen_by"]["expected_ms"] == pytest.approx(mean)
    assert 4 < mean <= 5
    assert f"expected: {mean:.2f} ms an image" in capsys.readouterr().out


def test_times_are_those_of_one_image_as_the_run_takes_it(calibrated_run, tmp_path, monkeypatch):
    seen = []

    def watched(model, variables, images):
        seen.append((variables["params"], images))
        return milliseconds_per_exit(model, variables, images, repeats=1)

    milliseconds_per_exit = latency.milliseconds_per_exit
    monkeypatch.setattr(latency, "milliseconds_per_exit", watched)
    output = tmp_path / "thresholds.json"
    result = chosen_in(calibrated_run.workdir, "--latency-ms=1e6", output=output)
    ((params, images),) = seen
    assert (images.shape, images.dtype) == ((1, 8, 8, 3), np.float32)
    jax.tree.map(np.testing.assert_array_equal, params, calibrated_run.network[1]["params"])
    measured = result["chosen_by"]["measured_ms_of_exits"]
    assert len(measured) == 3 and min(measured) > 0
    shares = [result["expected"][f"share_{k}"] for k in (1, 2, 3)]
    assert result["chosen_by"]["expected_ms"] == pytest.approx(np.dot(measured, shares))


def test_images_that_the_run_may_have_been_trained_on_fit_no_temperature(
    calibrated_run, tmp_path, monkeypatch
):
    calibrated_run.find_others(monkeypatch, "train")
    output = tmp_path / "thresholds.json"
    with pytest.raises(UserError, match="'holdout', cut from the same folder, may hold images"):
        chosen_in(calibrated_run.workdir, "--calibrate", "--q=1", output=output)
    assert not output.exists()


@pytest.mark.parametrize("split", ["holdout", "test"])
def test_images_that_the_run_was_not_evaluated_with_fit_no_temperature(
    split, calibrated_run, tmp_path, monkeypatch
):
    """Of a run that was evaluated with images of another folder than its own."""
    calibrated_run.find_others(monkeypatch, split)
    output = tmp_path / "thresholds.json"
    with pytest.raises(UserError, match=f"last evaluation used other images of split '{split}'"):
        chosen_in(calibrated_run.workdir, "--calibrate", "--q=1", output=output)
    assert not output.exists()


def test_a_promise_says_what_it_rests_on(run, capsys):
    result = chosen(run[0], "--risk=0.03", "--confidence=0.9")
    assert result["chosen_by"]["risk"] == 0.03
    assert result["chosen_by"]["p_value"] <= 0.1
    assert result["expected"]["mul_adds"] < 4e6
    lost = run[1].test.correct[-1].mean() - result["test"]["top1"] / 100
    assert lost <= 0.03
    assert "promise: with 90% confidence at most 3 points" in capsys.readouterr().out
    of_file = run[0].parent / "chosen.json"
    assert read_policy(of_file, run[1]).has_promise
    chosen(run[0], "--q=1")
    assert not read_policy(of_file, run[1]).has_promise


def test_a_promise_that_allows_no_early_exit_says_so(tmp_path, capsys):
    evaluation = write_run(tmp_path / "hopeless")
    evaluation.held_out.correct[:2] = False
    evaluation.save(tmp_path / "hopeless")
    result = chosen(tmp_path / "hopeless", "--risk=0.01")
    assert result["thresholds"][:2] == [NOBODY_LEAVES] * 2
    assert result["q"] is None
    assert "no early exit" in capsys.readouterr().out


def test_thresholds_lie_beside_the_checkpoint_and_can_be_read_back(tmp_path, capsys):
    write_run(tmp_path)
    thresholds.main([f"--workdir={tmp_path}", "--q=0.5"])
    path = tmp_path / "thresholds.json"
    evaluation = results.Evaluation.load(tmp_path)
    read = read_policy(path, evaluation)
    assert read.thresholds.tolist() == json.loads(path.read_text())["thresholds"]
    assert read.rule == "log_odds"
    assert str(path) in capsys.readouterr().out


def test_thresholds_of_another_network_are_refused_where_its_step_is_the_same_too(tmp_path):
    write_run(tmp_path / "one", network="one")
    other = write_run(tmp_path / "other", network="other")
    chosen_in(tmp_path / "one", "--risk=0.05")
    path = tmp_path / "one" / "thresholds.json"
    with pytest.raises(UserError, match=r"thresholds\.json is of another network of step 5 than"):
        read_policy(path, other)
    # Who has no checksum, as in files of earlier versions, has a step at least.
    assert read_policy(path, dataclasses.replace(other, network=None))
    of_file = json.loads(path.read_text())
    del of_file["network"]
    (tmp_path / "earlier.json").write_text(json.dumps(of_file))
    assert read_policy(tmp_path / "earlier.json", other)
    with pytest.raises(UserError, match="is of step 5, but the run was last evaluated at step 6"):
        read_policy(path, dataclasses.replace(other, network=None, step=6))


def test_a_file_that_cannot_be_written_is_named(run, tmp_path):
    with pytest.raises(UserError, match=f"--output={tmp_path}: cannot be written"):
        thresholds.main([f"--workdir={run[0]}", "--q=0.5", f"--output={tmp_path}"])


@pytest.mark.parametrize(
    ("wish", "line"),
    [
        (["--mul-adds=900k"], "--mul-adds=900000 is out of reach: .* takes 1M"),
        (["--accuracy=99.9"], "--accuracy=99.9 is out of reach: the most .*%"),
        (["--risk=0.0001"], "--risk=0.0001 .*: 3000 held-out images are too few .* are needed"),
        (["--risk=1e-18"], r"--risk=1e-18 .*: 3000 held-out images are too few .*: \d{19} are"),
        (["--risk=2"], r"--risk=2 .*: risk is 2\.0; it must be at least 1e-300 and below 1"),
        (["--risk=1e-310"], "--risk=1e-310 .*: risk is 1e-310; it must be at least 1e-300 and"),
        (["--risk=0.1", "--confidence=1"], r"--confidence=1: .* is 1\.0; .* between 0 and 1"),
        (["--q=0"], "'0' is not allowed: must be a positive number"),
        (["--q=1k"], "'1k' is not allowed: must be a positive number"),
        (["--accuracy=0.99"], r"--accuracy=0\.99 is not allowed: must be in percent, more than 1"),
        (["--q=1", "--confidence=0.9"], "--confidence: is allowed with --risk only"),
        (["--mul-adds=many"], "'many' is not allowed: .* such as 250000, 300k, 20M"),
        (["--q=1e50"], "--q=1e\\+50 is not allowed: .* must be a positive float32"),
        (["--q=1", "--rule=luck"], "--rule: invalid choice: 'luck' .*patience"),
        ([], "one of the arguments"),
        (["--q=1", "--accuracy=90"], "not allowed with argument"),
    ],
)
def test_wishes_that_cannot_be_fulfilled_are_one_line_and_write_nothing(run, wish, line, tmp_path):
    output = tmp_path / "thresholds.json"
    with pytest.raises(UserError, match=line) as caught:
        thresholds.main([f"--workdir={run[0]}", f"--output={output}", *wish])
    assert "\n" not in str(caught.value)
    assert not output.exists()


def test_a_promise_on_training_images_is_refused(tmp_path):
    write_run(tmp_path, thresholds_from="train")
    with pytest.raises(UserError, match="not trained on"):
        thresholds.main([f"--workdir={tmp_path}", "--risk=0.05"])


def test_folders_that_are_no_evaluated_run_are_named(tmp_path):
    with pytest.raises(UserError, match="not the folder of a run"):
        thresholds.main([f"--workdir={tmp_path}", "--q=1"])
    write_run(tmp_path)
    (tmp_path / "evaluation.json").unlink()
    with pytest.raises(UserError, match="evaluate the run first"):
        thresholds.main([f"--workdir={tmp_path}", "--q=1"])

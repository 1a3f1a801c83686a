"""A run's export answers as the run does, where nothing of this project is."""

import contextlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from exported_networks import check_same, load, stored_images
from PIL import Image
from small_networks import between, thresholds_between
from tiny_run import TinySource, make_config

from l2w_jax import data
from l2w_jax.config import stored
from l2w_jax.data.source import MemorySource
from l2w_jax.early_exit import EarlyExitPredictor
from l2w_jax.early_exit.budget import first_exits
from l2w_jax.errors import UserError
from l2w_jax.evaluation import evaluate
from l2w_jax.interop import export
from l2w_jax.models.preprocessing import channel_statistics, normalize
from l2w_jax.run import checkpoints, restore
from l2w_jax.training import create_train_state

IMAGES = stored_images(300, 8)


@pytest.fixture(scope="module")
def run_folder(tiny_network, tmp_path_factory):
    """A run, evaluated, and its configuration."""
    workdir = tmp_path_factory.mktemp("run")
    network, variables = tiny_network
    config = make_config(network)
    config.dataset.max_pixels = 123_456
    state = create_train_state(config, jax.random.key(0)).replace(step=np.int32(60), **variables)
    with contextlib.closing(checkpoints.CheckpointWriter(workdir, keep=1)) as writer:
        writer.save(state, score=50.0)
    # Training leaves config.json to the command, and JSON has no word for a network of our own.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored, "read_config", lambda folder: config)
        evaluate.evaluate(config, state, TinySource(config), workdir)
        yield workdir, config


def test_a_run_is_exported_and_runs_alone(run_folder, tmp_path, capsys):
    workdir, config = run_folder
    state = restore.restore_best(config, workdir)
    mean, deviation = channel_statistics("digits")
    predictor = EarlyExitPredictor(
        config.model,
        state.variables,
        [0, 0, 0],
        lambda images: normalize(images, mean, deviation),
        batch_sizes=[300],
    )
    predictor = predictor.with_thresholds(thresholds_between(predictor, IMAGES, 0.6))
    chosen, folder = tmp_path / "thresholds.json", tmp_path / "exported"
    chosen.write_text(json.dumps({"thresholds": predictor.thresholds.tolist()}))
    export.main([f"--workdir={workdir}", f"--output={folder}", f"--thresholds={chosen}"])
    assert "3 stages" in capsys.readouterr().out
    about_images = json.loads((folder / "network.json").read_text())["image_format"]
    assert about_images["max_pixels"] == config.dataset.max_pixels

    np.save(tmp_path / "images.npy", IMAGES)
    files = [folder, tmp_path / "images.npy", tmp_path / "answers.npy"]
    alone = Path(__file__).with_name("run_exported_alone.py")
    subprocess.run([sys.executable, "-I", alone, *map(str, files)], check=True)
    decisions = predictor(IMAGES)
    assert set(decisions.exits) == {0, 1, 2}
    check_same(np.load(tmp_path / "answers.npy"), decisions)

    command = [sys.executable, folder / "run_exported.py", tmp_path / "images.npy"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    name = "abcd"[decisions.labels[0]]
    first = f"{name}\t{100 * decisions.confidences[0]:.1f}%\texit {decisions.exits[0] + 1}"
    assert shown.splitlines()[0] == first

    Image.fromarray(IMAGES[0]).save(tmp_path / "image.png")
    command[-1] = tmp_path / "image.png"
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert shown == f"{first}\t{tmp_path / 'image.png'}\n"
    twice = [*command, tmp_path / "image.png"]
    shown = subprocess.run(twice, check=True, capture_output=True, text=True).stdout
    assert shown == 2 * f"{first}\t{tmp_path / 'image.png'}\n"

    np.savez(tmp_path / "several.npz", IMAGES, IMAGES)
    command[-1] = (tmp_path / "several.npz").rename(tmp_path / "several.npy")
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.stderr == f"{command[-1]}: no file of an array that numpy.save wrote\n"
    command[-1] = tmp_path / "image.png"

    damaged = shutil.copytree(folder, tmp_path / "damaged")
    (damaged / "stage_2.jax_export").write_bytes(b"of another export")
    command[1] = damaged / "run_exported.py"
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 1
    assert re.fullmatch(r".*stage_2.jax_export: damaged, or of another export\n", refused.stderr)
    command[1] = folder / "run_exported.py"

    np.save(tmp_path / "small.npy", IMAGES[:, 1:])
    command[-1] = tmp_path / "small.npy"
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 1
    assert re.fullmatch(
        r".*small\.npy: holds uint8 \[.*\], must hold uint8 \[.*\]\n", refused.stderr
    )


def test_that_onnx_is_not_installed_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"onnx is not installed; pip install -e '\.\[onnx\]'"):
        export.writer("onnx")


def test_a_run_is_exported_to_onnx(run_folder, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    workdir, _ = run_folder
    export.main([f"--workdir={workdir}", f"--output={tmp_path}", "--format=onnx"])
    assert capsys.readouterr().out == f"{tmp_path}: 3 stages of step 60, and run_onnx.py\n"
    assert {path.name for path in tmp_path.iterdir()} == {
        "classify.py",
        "cores.py",
        "cut_jpeg.py",
        "exported_files.py",
        "image_files.py",
        "network.json",
        "rgb.py",
        "run_onnx.py",
        "standard_output.py",
        *(f"stage_{k}.onnx" for k in (1, 2, 3)),
    }


def test_as_many_classes_are_given_as_were_asked_for(run_folder, tmp_path):
    export.main([f"--workdir={run_folder[0]}", f"--output={tmp_path}", "--top-k=2"])
    labels, exits, confidences = load(tmp_path, export.LOADER)(IMAGES[:5])
    assert (labels.shape, exits.shape, confidences.shape) == ((5, 2), (5,), (5, 2))


def test_an_export_takes_the_place_of_an_earlier_one(run_folder, tmp_path):
    pytest.importorskip("onnxruntime")
    workdir, _ = run_folder
    (tmp_path / "own.txt").write_text("stays")
    command = [f"--workdir={workdir}", f"--output={tmp_path}"]
    export.main([*command, "--format=onnx"])
    (tmp_path / "stage_4.onnx").write_bytes(b"of a deeper network")
    export.main(command)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"own.txt", "run_exported.py", "stage_3.jax_export"} < names
    assert not {name for name in names if "onnx" in name}
    export.main([*command, "--format=onnx"])
    names = {path.name for path in tmp_path.iterdir()}
    assert {"own.txt", "run_onnx.py", "stage_3.onnx"} < names
    assert not names & {"run_exported.py", "variables.npz", "stage_3.jax_export", "stage_4.onnx"}


@pytest.mark.parametrize(
    ("format_", "loader"), [("onnx", "run_onnx"), ("stablehlo", "run_exported")]
)
def test_each_of_two_exports_in_a_process_is_of_its_own_folder(
    format_, loader, run_folder, tmp_path
):
    pytest.importorskip("onnxruntime")
    workdir, _ = run_folder
    export.main([f"--workdir={workdir}", f"--output={tmp_path / 'a'}", f"--format={format_}"])
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    description = json.loads((tmp_path / "b" / "network.json").read_text())
    description["thresholds"] = [0.25, 0.5, 0.75]
    (tmp_path / "b" / "network.json").write_text(json.dumps(description))
    program = f"""
import runpy, sys
for folder in ("a", "b"):
    sys.path.insert(0, folder)
    network = runpy.run_path(folder + "/{loader}.py")["ExportedNetwork"]
    print(network().description["thresholds"] == [0.25, 0.5, 0.75])
print(network("a").description["thresholds"] == [0.25, 0.5, 0.75])
"""
    command = [sys.executable, "-c", program]
    told = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, check=True)
    assert told.stdout.split() == ["False", "True", "False"]


def test_a_run_is_exported_in_8_bits_with_what_that_costs(run_folder, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    workdir, _ = run_folder
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "open_source", lambda config, known_classes: TinySource(config))
        export.main([f"--workdir={workdir}", f"--output={tmp_path}", "--format=onnx", "--quantize"])
    out = capsys.readouterr().out.splitlines()
    names = [line[:24].strip() for line in out]
    assert names[:5] == [
        "test images",
        *(f"top-1 of exit {k}" for k in (1, 2, 3)),
        "stopping early",
    ]
    # Without convolutions too little becomes 8 bits to change an answer.
    assert all(line.split()[-1] == line.split()[-2] for line in out[1:4])
    assert len(json.loads((tmp_path / "network.json").read_text())["thresholds"]) == 3


def test_faults_are_told_in_one_line(run_folder, tmp_path):
    workdir, _ = run_folder
    with pytest.raises(UserError, match="--output"):
        export.main([f"--workdir={workdir}"])
    with pytest.raises(UserError, match="no such file"):
        none = tmp_path / "none.json"
        export.main([f"--workdir={workdir}", f"--output={tmp_path}", f"--thresholds={none}"])
    with pytest.raises(UserError, match="--quantize: needs --format=onnx, not stablehlo"):
        export.main([f"--workdir={workdir}", f"--output={tmp_path}", "--quantize"])
    with pytest.raises(UserError, match=r"^--top-k=5 is not allowed: must be from 1 to 4, "):
        export.main([f"--workdir={workdir}", f"--output={tmp_path}", "--top-k=5"])
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file" / "inner"):
        with pytest.raises(UserError, match=f"{output}: "):
            export.main([f"--workdir={workdir}", f"--output={output}"])


@pytest.mark.parametrize(
    ("file_format", "loader"), [("stablehlo", export.LOADER), ("onnx", "run_onnx.py")]
)
def test_a_calibrated_run_answers_in_each_format_as_its_thresholds_promise(
    file_format, loader, calibrated_run, tmp_path
):
    if file_format == "onnx":
        pytest.importorskip("onnxruntime")
    command = [f"--workdir={calibrated_run.workdir}", f"--output={tmp_path}"]
    export.main([*command, f"--format={file_format}"])
    description = json.loads((tmp_path / "network.json").read_text())
    assert description["rule"] == "margin"
    assert description["thresholds"] == calibrated_run.chosen["thresholds"]
    assert description["image_format"]["centre_share"] == 1.0
    answers = load(tmp_path, loader)(calibrated_run.splits["test"].images)
    check_same(answers, calibrated_run.decisions("test"))


def test_of_images_that_are_trained_on_in_crops_the_centre_is_classified(
    calibrated_run, tmp_path, monkeypatch
):
    calibrated_run.put_in_place(monkeypatch, augmentation="resized_crop")
    export.main([f"--workdir={calibrated_run.workdir}", f"--output={tmp_path}"])
    description = json.loads((tmp_path / "network.json").read_text())
    assert description["image_format"]["centre_share"] == 0.875


def test_in_8_bits_the_scores_of_held_out_images_are_the_thresholds(calibrated_run, tmp_path):
    onnx = pytest.importorskip("onnx")
    quantize = pytest.importorskip("l2w_jax.interop.quantize")
    scores = calibrated_run.scores("holdout")
    thresholds = between(scores, 0.6)
    before = first_exits(scores, thresholds)
    chosen, folder = tmp_path / "thresholds.json", tmp_path / "exported"
    chosen.write_text(json.dumps(calibrated_run.chosen | {"thresholds": thresholds.tolist()}))
    command = [f"--workdir={calibrated_run.workdir}", f"--thresholds={chosen}"]
    export.main([*command, f"--output={folder}", "--format=onnx", "--quantize"])
    description = json.loads((folder / "network.json").read_text())
    assert description["rule"] == "margin"
    stages = [onnx.load(folder / stage["file"]) for stage in description["stages"]]
    scores = quantize.answers(stages, calibrated_run.splits["holdout"].images).scores
    anew = np.float32(description["thresholds"])
    exits = first_exits(scores, anew)
    np.testing.assert_array_equal(np.bincount(exits, minlength=3), np.bincount(before, minlength=3))
    assert [scores[k, exits == k].min() for k in (0, 1)] == anew[:2].tolist()


def test_in_8_bits_thresholds_are_set_by_the_images_that_the_run_was_last_evaluated_with(
    calibrated_run, tmp_path, monkeypatch
):
    """A run that was begun with held-out images may be evaluated with training images."""
    pytest.importorskip("onnxruntime")
    workdir = shutil.copytree(calibrated_run.workdir, tmp_path / "run")
    summary = json.loads((workdir / "evaluation.json").read_text())
    (workdir / "evaluation.json").write_text(json.dumps(summary | {"thresholds_from": "train"}))
    read, spread_images = [], MemorySource.spread_images
    monkeypatch.setattr(
        MemorySource,
        "spread_images",
        lambda source, split, count: read.append(split) or spread_images(source, split, count),
    )
    export.main(
        [f"--workdir={workdir}", f"--output={tmp_path / 'out'}", "--format=onnx", "--quantize"]
    )
    assert read == ["train", "test"]


def test_in_8_bits_the_promise_of_thresholds_is_not_kept_and_that_is_told(
    calibrated_run, tmp_path, monkeypatch, capsys
):
    export_onnx = pytest.importorskip("l2w_jax.interop.export_onnx")
    monkeypatch.setattr(export_onnx, "export_quantized", lambda *_: [])
    command = [f"--workdir={calibrated_run.workdir}", "--format=onnx", "--quantize"]
    told = "the promise of --risk is not kept: it is of other thresholds, in float32"
    for chosen_by in ({"risk": 0.1}, {"q": 1}):
        chosen = tmp_path / "thresholds.json"
        chosen.write_text(json.dumps(calibrated_run.chosen | {"chosen_by": chosen_by}))
        export.main([*command, f"--output={tmp_path / 'out'}", f"--thresholds={chosen}"])
        assert (told in capsys.readouterr().out.splitlines()) == ("risk" in chosen_by)


def test_without_held_out_images_nothing_is_set_in_8_bits(calibrated_run, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(calibrated_run.source, "num_holdout", 0)
    command = [f"--workdir={calibrated_run.workdir}", f"--output={tmp_path}", "--format=onnx"]
    with pytest.raises(UserError, match=r"^--quantize: sets thresholds anew by held-out images, "):
        export.main([*command, "--quantize"])


def test_images_that_the_run_may_have_been_trained_on_set_nothing_in_8_bits(
    calibrated_run, tmp_path, monkeypatch
):
    pytest.importorskip("onnxruntime")
    calibrated_run.find_others(monkeypatch, "train")
    command = [f"--workdir={calibrated_run.workdir}", f"--output={tmp_path}", "--format=onnx"]
    with pytest.raises(UserError, match="'holdout', cut from the same folder, may hold images"):
        export.main([*command, "--quantize"])
    assert not list(tmp_path.iterdir())


def test_images_that_the_run_was_not_evaluated_with_set_nothing_in_8_bits(
    calibrated_run, tmp_path, monkeypatch
):
    """Of a run that was evaluated with images of another folder than its own."""
    pytest.importorskip("onnxruntime")
    command = [f"--workdir={calibrated_run.workdir}", f"--output={tmp_path}", "--format=onnx"]
    calibrated_run.find_others(monkeypatch, "holdout")
    with pytest.raises(UserError, match="its last evaluation used other images of split 'holdout'"):
        export.main([*command, "--quantize"])
    assert not list(tmp_path.iterdir())
    # Test images set nothing, and both networks are told by the same ones.
    calibrated_run.find_others(monkeypatch, "test")
    export.main([*command, "--quantize"])

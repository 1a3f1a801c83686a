"""An exported network answers as the one it came from, where nothing of this project is."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import golden_files
import jax
import numpy as np
import pytest
from conftest import TinyNetwork
from PIL import Image
from small_networks import between, scores_of, thresholds_between
from tiny_run import TinySource, make_config, train_and_evaluate

from l2w_jax import data
from l2w_jax.config import stored
from l2w_jax.data.source import MemorySource
from l2w_jax.early_exit import EarlyExitPredictor, rules
from l2w_jax.early_exit.budget import first_exits
from l2w_jax.early_exit.calibration import calibrated
from l2w_jax.errors import UserError
from l2w_jax.interop import export
from l2w_jax.interop.exported_folder import load_program
from l2w_jax.models import create_model, initial_variables
from l2w_jax.models.preprocessing import channel_statistics, normalize
from l2w_jax.run import restore

_RNG = np.random.default_rng(7)
IMAGES = _RNG.integers(0, 200, (300, 1, 1, 3)) + _RNG.integers(0, 56, (300, 8, 8, 3))
IMAGES = IMAGES.astype(np.uint8)
FORMAT = export.ImageFormat(8, 1.0, [0.4, 0.5, 0.6], [0.2, 0.25, 0.3])


def preprocess(images):
    return normalize(images, np.float32(FORMAT.mean), np.float32(FORMAT.deviation))


def load(folder, loader=export.LOADER):
    return load_program(folder, loader).ExportedNetwork(folder)


def check_same(exported, decisions):
    np.testing.assert_array_equal(exported[0], decisions.labels)
    np.testing.assert_array_equal(exported[1], decisions.exits)
    np.testing.assert_allclose(exported[2], decisions.confidences, rtol=1e-5)


@pytest.fixture(scope="module")
def tiny_folder(tiny_network, tmp_path_factory):
    """The tiny network exported, and what it was made from."""
    predictor = EarlyExitPredictor(*tiny_network, [0, 0, 0], preprocess)
    predictor = predictor.with_thresholds(thresholds_between(predictor, IMAGES, 0.6))
    folder = tmp_path_factory.mktemp("exported")
    export.export_network(folder, *tiny_network, predictor.thresholds, FORMAT, "abcd")
    return folder, predictor


@pytest.mark.parametrize("count", [0, 1, 3, 33, 300])
def test_answers_are_those_of_the_predictor_for_any_number_of_images(tiny_folder, count):
    folder, predictor = tiny_folder
    decisions = predictor(IMAGES[:count])
    assert count < 300 or set(decisions.exits) == {0, 1, 2}
    check_same(load(folder)(IMAGES[:count]), decisions)


def test_a_network_with_a_carry_of_its_own_type_runs_from_plain_lists(tmp_path):
    config = golden_files.config_of(golden_files.load("models")["ranet_tiny"]["config"])
    model = create_model(config.model)
    images = np.random.default_rng(5).integers(0, 256, (8, 32, 32, 3)).astype(np.uint8)
    variables = initial_variables(model, jax.random.key(0), preprocess(images[:1]), train=False)
    predictor = EarlyExitPredictor(model, variables, [0, 0, 0], preprocess, batch_sizes=[8])
    predictor = predictor.with_thresholds(thresholds_between(predictor, images, 0.6))
    image_format = export.ImageFormat(32, 1.0, FORMAT.mean, FORMAT.deviation)
    arguments = (predictor.thresholds, image_format, list("abcdefghij"), [8])
    export.export_network(tmp_path, model, variables, *arguments)
    decisions = predictor(images)
    assert len(set(decisions.exits)) > 1
    check_same(load(tmp_path)(images), decisions)


def test_a_calibrated_network_is_left_when_exits_agree(tiny_network, tmp_path):
    model, variables = calibrated(tiny_network[0], [0.5, 2, 3]), tiny_network[1]
    scores = scores_of("patience", model.apply(variables, preprocess(IMAGES), train=False))
    thresholds = between(scores, 0.6)
    predictor = EarlyExitPredictor(
        model, variables, thresholds, preprocess, [300], rule=rules.patience
    )
    arguments = (thresholds, FORMAT, "abcd", [300])
    export.export_network(tmp_path, model, variables, *arguments, rule=rules.patience)
    decisions = predictor(IMAGES)
    assert set(decisions.exits) == {0, 1, 2}
    check_same(load(tmp_path)(IMAGES), decisions)
    assert json.loads((tmp_path / "network.json").read_text())["rule"] == "patience"


def test_thresholds_may_be_infinite(tiny_network, tmp_path):
    export.export_network(tmp_path, *tiny_network, [np.inf, np.inf, 0], FORMAT, "abcd")
    assert set(load(tmp_path)(IMAGES[:5])[1]) == {2}


def test_each_variable_is_stored_once_and_for_the_stages_that_read_it(tiny_folder):
    description = json.loads((tiny_folder[0] / "network.json").read_text())
    names = [name for stage in description["stages"] for name in stage["variables"]]
    with np.load(tiny_folder[0] / "variables.npz") as arrays:
        assert sorted(names) == sorted(arrays)
    assert "params/head_2/kernel" in description["stages"][2]["variables"]
    assert description["image_format"]["mean"] == FORMAT.mean


@pytest.mark.parametrize(
    ("field", "value", "fault"),
    [
        ("format", 0, "is not of format 2; export again"),
        ("stages", None, "damaged: 'stages' is missing; export again"),
        ("stages", 3, "'stages' must be a list of objects, not empty"),
        ("stages", [], "'stages' must be a list of objects, not empty"),
        ("stages", [{}], r"damaged: 'stages\[0\].file' is missing; export again"),
        ("stages", [{"file": "a"}], r"damaged: 'stages\[0\].variables' is missing; export again"),
        ("class_names", ["a", "b", "c"], "'class_names' must be 4 texts, one for each class"),
        ("class_names", {}, "'class_names' must be 4 texts, one for each class"),
        ("num_classes", "4", "'num_classes' must be a whole number from 0"),
        ("image_format", 8, "'image_format' must be an object"),
        ("image_format", {}, "damaged: 'image_format.size' is missing; export again"),
        ("image_format", {"size": 0}, "'image_format.size' must be a whole number from 1"),
        (
            "image_format",
            {"size": 8, "centre_share": 2},
            "'image_format.centre_share' must be above 0, at most 1",
        ),
        (
            "image_format",
            {"size": 8, "centre_share": 1},
            "damaged: 'image_format.max_pixels' is missing; export again",
        ),
        (
            "batch_sizes",
            [8, 1],
            "'batch_sizes' must be a list of ascending whole numbers from 1, not empty",
        ),
        ("cpu_compiler_options", 3, "'cpu_compiler_options' must be an object or null"),
        ("thresholds", "high", "'thresholds' must be 3 numbers, one for each stage"),
        ("thresholds", [None, 1.0, 0.0], "'thresholds' must be 3 numbers, one for each stage"),
        ("thresholds", [float("nan"), 1, 0], "'thresholds' must be 3 numbers, one for each stage"),
        ("thresholds", [True, 1.0, 0.0], "'thresholds' must be 3 numbers, one for each stage"),
        ("thresholds", [0.5, 0.5], "'thresholds' must be 3 numbers, one for each stage"),
    ],
)
def test_a_description_that_was_changed_wrongly_is_refused(
    tiny_folder, tmp_path, field, value, fault
):
    folder = shutil.copytree(tiny_folder[0], tmp_path / "changed")
    description = json.loads((folder / "network.json").read_text())
    description[field] = value
    if value is None:
        del description[field]
    (folder / "network.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match=rf"network\.json: {fault}$"):
        load(folder)


def test_a_description_or_a_list_of_checksums_that_is_damaged_is_told(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder[0], tmp_path / "damaged")
    content = (folder / "network.json").read_bytes()
    (folder / "network.json").write_bytes(content + b"\xff")
    with pytest.raises(ValueError, match=r"network\.json: damaged: .*utf-8"):
        load(folder)
    description = json.loads(content)
    del description["sha256"]["variables.npz"]
    (folder / "network.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match=r"variables\.npz: damaged, or of another export"):
        load(folder)


def test_a_network_whose_answer_is_not_finite_is_refused(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder[0], tmp_path / "broken")
    with np.load(folder / "variables.npz") as arrays:
        arrays = dict(arrays)
    arrays["params/head_0/bias"][0] = np.nan
    np.savez(folder / "variables.npz", **arrays)
    with pytest.raises(ValueError, match=r"variables.npz: damaged, or of another export"):
        load(folder)
    description = json.loads((folder / "network.json").read_text())
    content = (folder / "variables.npz").read_bytes()
    description["sha256"]["variables.npz"] = hashlib.sha256(content).hexdigest()
    (folder / "network.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match="exit 1 is not finite"):
        load(folder)(IMAGES[:3])


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run, trained and evaluated, and its configuration."""
    workdir = tmp_path_factory.mktemp("run")
    config = make_config(TinyNetwork())
    config.checkpoint.every_epochs = config.optimizer.epochs
    config.dataset.max_pixels = 123_456
    # Training leaves config.json to the command, and JSON has no word for a network of our own.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored, "read_config", lambda folder: config)
        train_and_evaluate(config, TinySource(config), workdir)
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
        "cut_jpeg.py",
        "exported_files.py",
        "image_files.py",
        "network.json",
        "rgb.py",
        "run_onnx.py",
        *(f"stage_{k}.onnx" for k in (1, 2, 3)),
    }


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


def test_a_run_is_exported_in_8_bits_with_what_that_costs(run_folder, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    workdir, _ = run_folder
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "open_source", TinySource)
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


def test_images_that_the_run_may_have_been_trained_on_set_nothing_in_8_bits(
    calibrated_run, tmp_path, monkeypatch
):
    pytest.importorskip("onnxruntime")
    calibrated_run.train_on_others(monkeypatch)
    command = [f"--workdir={calibrated_run.workdir}", f"--output={tmp_path}", "--format=onnx"]
    with pytest.raises(UserError, match="'holdout', cut from the same folder, may hold some"):
        export.main([*command, "--quantize"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("file_format", "loader"), [("stablehlo", export.LOADER), ("onnx", "run_onnx.py")]
)
def test_an_image_whose_score_is_the_threshold_leaves(file_format, loader, tiny_network, tmp_path):
    if file_format == "onnx":
        pytest.importorskip("onnxruntime")
    model, variables = tiny_network
    # Says the same of every class, whatever it is shown: a margin of nothing.
    undecided = jax.tree.map(np.zeros_like, variables["params"]["head_0"])
    variables = {**variables, "params": {**variables["params"], "head_0": undecided}}
    write, _ = export.writer(file_format)
    write(tmp_path, model, variables, [0, 0, 0], FORMAT, "abcd", rule=rules.margin)
    _, exits, _ = load(tmp_path, loader)(IMAGES[:5])
    assert exits.tolist() == [0] * 5

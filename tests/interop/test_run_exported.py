"""An exported network answers as the one it came from, or says what is wrong with its folder."""

import hashlib
import json
import shutil

import golden_files
import jax
import numpy as np
import pytest
from exported_networks import check_same, image_format, load, preprocess, stored_images
from small_networks import between, no_number, scores_of, thresholds_between

from l2w_jax.early_exit import EarlyExitPredictor, rules
from l2w_jax.early_exit.calibration import calibrated
from l2w_jax.interop import export
from l2w_jax.interop.exported_folder import NetworkToExport
from l2w_jax.models import create_model, initial_variables

IMAGES, FORMAT = stored_images(300, 8), image_format(8)


@pytest.fixture(scope="module")
def tiny_folder(tiny_network, tmp_path_factory):
    """The tiny network exported, and what it was made from."""
    predictor = EarlyExitPredictor(*tiny_network, [0, 0, 0], preprocess)
    predictor = predictor.with_thresholds(thresholds_between(predictor, IMAGES, 0.6))
    folder = tmp_path_factory.mktemp("exported")
    network = NetworkToExport(*tiny_network, predictor.thresholds, FORMAT, "abcd")
    export.export_network(folder, network)
    return folder, predictor


@pytest.mark.parametrize("count", [0, 1, 3, 33, 300])
def test_answers_are_those_of_the_predictor_for_any_number_of_images(tiny_folder, count):
    folder, predictor = tiny_folder
    decisions = predictor(IMAGES[:count])
    assert count < 300 or set(decisions.exits) == {0, 1, 2}
    check_same(load(folder, export.LOADER)(IMAGES[:count]), decisions)


def test_a_network_with_a_carry_of_its_own_type_runs_from_plain_lists(tmp_path):
    config = golden_files.config_of(golden_files.load("models")["ranet_tiny"]["config"])
    model = create_model(config.model)
    images = np.random.default_rng(5).integers(0, 256, (8, 32, 32, 3)).astype(np.uint8)
    variables = initial_variables(model, jax.random.key(0), preprocess(images[:1]), train=False)
    predictor = EarlyExitPredictor(model, variables, [0, 0, 0], preprocess, batch_sizes=[8])
    predictor = predictor.with_thresholds(thresholds_between(predictor, images, 0.6))
    arguments = (predictor.thresholds, image_format(32), list("abcdefghij"))
    export.export_network(tmp_path, NetworkToExport(model, variables, *arguments), [8])
    decisions = predictor(images)
    assert len(set(decisions.exits)) > 1
    check_same(load(tmp_path, export.LOADER)(images), decisions)


def test_a_calibrated_network_is_left_when_exits_agree(tiny_network, tmp_path):
    model, variables = calibrated(tiny_network[0], [0.5, 2, 3]), tiny_network[1]
    scores = scores_of("patience", model.apply(variables, preprocess(IMAGES), train=False))
    thresholds = between(scores, 0.6)
    predictor = EarlyExitPredictor(
        model, variables, thresholds, preprocess, [300], rule=rules.patience
    )
    arguments = (thresholds, FORMAT, "abcd", rules.patience)
    export.export_network(tmp_path, NetworkToExport(model, variables, *arguments), [300])
    decisions = predictor(IMAGES)
    assert set(decisions.exits) == {0, 1, 2}
    check_same(load(tmp_path, export.LOADER)(IMAGES), decisions)
    assert json.loads((tmp_path / "network.json").read_text())["rule"] == "patience"


def test_thresholds_may_be_infinite(tiny_network, tmp_path):
    network = NetworkToExport(*tiny_network, [np.inf, np.inf, 0], FORMAT, "abcd")
    export.export_network(tmp_path, network)
    assert set(load(tmp_path, export.LOADER)(IMAGES[:5])[1]) == {2}


@pytest.mark.parametrize(
    ("file_format", "loader"), [("stablehlo", export.LOADER), ("onnx", "run_onnx.py")]
)
@pytest.mark.parametrize("top_k", [1, 3])
def test_the_most_probable_classes_are_those_of_the_predictor(
    top_k, file_format, loader, tiny_folder, tiny_network, tmp_path
):
    if file_format == "onnx":
        pytest.importorskip("onnxruntime")
    thresholds = tiny_folder[1].thresholds
    predictor = EarlyExitPredictor(*tiny_network, thresholds, preprocess, [300], top_k=top_k)
    write, _ = export.writer(file_format)
    write(tmp_path, NetworkToExport(*tiny_network, thresholds, FORMAT, "abcd", top_k=top_k))
    exported = load(tmp_path, loader)
    check_same(exported(IMAGES), predictor(IMAGES))
    for answer, of_predictor in zip(exported(IMAGES[:0]), predictor(IMAGES[:0]), strict=True):
        assert answer.shape == of_predictor.shape


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
    write(tmp_path, NetworkToExport(model, variables, [0, 0, 0], FORMAT, "abcd", rules.margin))
    _, exits, _ = load(tmp_path, loader)(IMAGES[:5])
    assert exits.tolist() == [0] * 5


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
        ("stages", [{"file": "/a"}], r"'stages\[0\].file' must be the name of a file beside it"),
        ("stages", [{"file": "../a"}], r"'stages\[0\].file' must be the name of a file beside it"),
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
        ("thresholds", [10**400, 1, 0], "'thresholds' must be 3 numbers, one for each stage"),
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
        load(folder, export.LOADER)


@pytest.mark.parametrize(
    ("file_format", "loader"), [("stablehlo", export.LOADER), ("onnx", "run_onnx.py")]
)
def test_an_image_size_that_the_stages_do_not_take_is_refused(
    file_format, loader, tiny_network, tmp_path
):
    if file_format == "onnx":
        pytest.importorskip("onnxruntime")
    write, _ = export.writer(file_format)
    write(tmp_path, NetworkToExport(*tiny_network, [0, 0, 0], FORMAT, "abcd"))
    description = json.loads((tmp_path / "network.json").read_text())
    description["image_format"]["size"] = 10**9
    (tmp_path / "network.json").write_text(json.dumps(description))
    with pytest.raises(
        ValueError, match=r"network\.json: 'image_format\.size' must be 8, the size"
    ):
        load(tmp_path, loader)


def test_a_description_or_a_list_of_checksums_that_is_damaged_is_told(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder[0], tmp_path / "damaged")
    content = (folder / "network.json").read_bytes()
    for damaged, fault in ((content + b"\xff", "utf-8"), (b"[" * 100_000, "recursion")):
        (folder / "network.json").write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"network\.json: damaged: .*{fault}"):
            load(folder, export.LOADER)
    description = json.loads(content)
    del description["sha256"]["variables.npz"]
    (folder / "network.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match=r"variables\.npz: damaged, or of another export"):
        load(folder, export.LOADER)


def test_a_network_whose_answer_is_not_finite_is_refused(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder[0], tmp_path / "broken")
    with np.load(folder / "variables.npz") as arrays:
        arrays = dict(arrays)
    arrays["params/head_0/bias"][0] = np.nan
    np.savez(folder / "variables.npz", **arrays)
    with pytest.raises(ValueError, match=r"variables.npz: damaged, or of another export"):
        load(folder, export.LOADER)
    description = json.loads((folder / "network.json").read_text())
    content = (folder / "variables.npz").read_bytes()
    description["sha256"]["variables.npz"] = hashlib.sha256(content).hexdigest()
    (folder / "network.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match="exit 1 is not finite"):
        load(folder, export.LOADER)(IMAGES[:3])


def test_a_rule_that_gives_no_number_is_refused(tiny_network, tmp_path):
    network = NetworkToExport(*tiny_network, [np.inf, np.inf, 0], FORMAT, "abcd", no_number)
    export.export_network(tmp_path, network)
    with pytest.raises(ValueError, match="answer at exit 1 is not finite"):
        load(tmp_path, export.LOADER)(IMAGES[:3])

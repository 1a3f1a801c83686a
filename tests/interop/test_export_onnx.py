"""What is exported to ONNX answers as the network it came from, where nothing of JAX is."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import onnx
import onnxruntime
import pytest
from exported_networks import image_format, preprocess, stored_images
from PIL import Image
from small_networks import (
    OneLayer,
    between,
    lively_variables,
    network,
    no_number,
    scores_of,
    thresholds_between,
)

from l2w_jax.early_exit import EarlyExitPredictor, rules
from l2w_jax.early_exit.budget import NOBODY_LEAVES
from l2w_jax.early_exit.calibration import calibrated
from l2w_jax.errors import UserError
from l2w_jax.interop import export_onnx
from l2w_jax.interop.exported_folder import NetworkToExport, load_program

CLASSES = [f"class {i}" for i in range(10)]

# Runs the loader where nothing of this project nor what it is made with can be imported.
ALONE = Path(__file__).with_name("without_packages.py")


def own_network():
    """The one of the README."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    imports, definitions = re.search(
        r"```python\n(import jax\n.*?)(class ResidualBlock.*?)digits = ", readme, re.DOTALL
    ).groups()
    names = {"__name__": __name__}
    exec(imports.replace("from sklearn.datasets import load_digits\n", "") + definitions, names)
    return names["MultiExitResNet"]()


def exported(model, variables, images, folder, rule=rules.confidence):
    """The predictor whose images leave at all exits, and its export."""
    predictor = EarlyExitPredictor(model, variables, np.zeros(model.num_exits), preprocess, [150])
    thresholds = thresholds_between(predictor, images, 0.6)
    predictor = predictor.with_thresholds(thresholds)
    if rule is rules.log_odds:
        thresholds = rules.log_odds_of_confidences(thresholds)
    arguments = (thresholds, image_format(images.shape[1], 0.875), CLASSES, rule)
    export_onnx.export_network(folder, NetworkToExport(model, variables, *arguments))
    return predictor


def check_answers(folder, decisions, images):
    """Labels and exits are equal, whatever the number of images that come at once."""
    run = load_program(folder, export_onnx.LOADER).ExportedNetwork(folder)
    for size in (1, 7, 256, 1000):
        # One at a time, some are enough.
        count = 20 if size == 1 else len(images)
        parts = [run(images[start : start + size]) for start in range(0, count, size)]
        labels, exits, confidences = map(np.concatenate, zip(*parts, strict=True))
        np.testing.assert_array_equal(labels, decisions.labels[:count])
        np.testing.assert_array_equal(exits, decisions.exits[:count])
        np.testing.assert_allclose(confidences, decisions.confidences[:count], rtol=1e-4)


@pytest.mark.parametrize("kind", ["msdnet", "imagenet", "ranet", "imta"])
def test_labels_and_exits_are_those_of_the_predictor(kind, tmp_path):
    model, images = network(kind), stored_images(1000, 32)
    variables = lively_variables(model, preprocess(images[:1]))
    decisions = exported(model, variables, images, tmp_path)(images)
    assert set(decisions.exits) == set(range(model.num_exits))
    check_answers(tmp_path, decisions, images)


@pytest.mark.parametrize("rule", rules.RULES)
def test_a_calibrated_network_is_left_by_any_rule(rule, tiny_network, tmp_path):
    model, variables = calibrated(tiny_network[0], [0.5, 2, 3]), tiny_network[1]
    images = stored_images(256, 8)
    scores = scores_of(rule, model.apply(variables, preprocess(images), train=False))
    function, thresholds = rules.RULES[rule], between(scores, 0.6)
    decisions = EarlyExitPredictor(model, variables, thresholds, preprocess, [256], rule=function)(
        images
    )
    assert set(decisions.exits) == {0, 1, 2}
    arguments = (thresholds, image_format(8), CLASSES[:4], function)
    export_onnx.export_network(tmp_path, NetworkToExport(model, variables, *arguments))
    check_answers(tmp_path, decisions, images)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The network of the README, exported, and its predictor."""
    folder = tmp_path_factory.mktemp("exported")
    model, images = own_network(), stored_images(1000, 8)
    variables = lively_variables(model, preprocess(images[:1]))
    return folder, exported(model, variables, images, folder, rules.log_odds)


def test_a_users_own_network_answers_as_the_predictor_does(folder):
    folder, predictor = folder
    images = stored_images(1000, 8)
    decisions = predictor(images)
    assert set(decisions.exits) == {0, 1, 2}
    check_answers(folder, decisions, images)


def test_no_stage_goes_on_spinning_while_another_runs(folder):
    run = load_program(folder[0], export_onnx.LOADER).ExportedNetwork(folder[0])
    for stage, *_ in run._stages:
        options = stage.get_session_options()
        assert options.get_session_config_entry("session.force_spinning_stop") == "1"


def test_stages_are_sound_and_say_what_they_are(folder):
    for path in sorted(folder[0].glob("stage_*.onnx")):
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        about = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
        assert about["class_names"] == CLASSES
        assert about["image_format"]["mean"] == [0.4, 0.5, 0.6]
        assert len(about["thresholds"]) == 3


def test_no_features_change_their_layout_between_convolutions(tmp_path):
    model, images = network("msdnet"), stored_images(1, 32)
    variables = lively_variables(model, preprocess(images))
    arguments = ([0] * model.num_exits, image_format(32), CLASSES)
    export_onnx.export_network(tmp_path, NetworkToExport(model, variables, *arguments))
    nodes = [
        node.op_type
        for k in range(model.num_exits)
        for node in onnx.load(tmp_path / f"stage_{k + 1}.onnx").graph.node
    ]
    # That of the images themselves.
    assert nodes.count("Transpose") == 1
    assert nodes.count("Conv") > 20
    assert not {"BatchNormalization", "Reciprocal"} & set(nodes)


def test_what_a_stage_need_not_join_is_joined_by_the_next(tmp_path):
    model, images = network("msdnet"), stored_images(1, 32)
    variables = lively_variables(model, preprocess(images))
    arguments = ([0] * model.num_exits, image_format(32), CLASSES)
    export_onnx.export_network(tmp_path, NetworkToExport(model, variables, *arguments))
    for k in range(model.num_exits):
        graph = onnx.load(tmp_path / f"stage_{k + 1}.onnx").graph
        read = {name for node in graph.node for name in node.input}
        joined = {name for node in graph.node if node.op_type == "Concat" for name in node.output}
        assert joined <= read
        # All that is computed is used.
        made = {name for node in graph.node for name in node.output}
        assert made <= read | {output.name for output in graph.output}


def test_files_are_classified_alone(folder, tmp_path):
    folder, predictor = folder
    images = stored_images(30, 8)
    files = [tmp_path / f"{i}.png" for i in range(len(images))]
    for image, file in zip(images, files, strict=True):
        # The centre is what the network sees.
        Image.fromarray(np.pad(image, ((1, 1), (0, 0), (0, 0)))).resize((8, 10)).save(file)
    copy = shutil.copytree(folder, tmp_path / "copy")
    description = json.loads((copy / "network.json").read_text())
    description["image_format"]["centre_share"] = 1.0
    (copy / "network.json").write_text(json.dumps(description))
    (tmp_path / "broken.png").write_bytes(b"no image")
    Image.new("1", (10_000, 9000)).save(tmp_path / "large.png")
    others = [tmp_path / "broken.png", tmp_path / "large.png"]
    command = [sys.executable, "-I", ALONE, copy / "run_onnx.py", *files, *others]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert re.fullmatch(
        r".*broken.png: cannot be read as an image: .*\n"
        r".*large.png: cannot be read as an image: 10000 x 9000 pixels are more than the 89478485 "
        r"that network.json's image_format.max_pixels allows\n",
        done.stderr,
    )
    assert done.returncode == 1
    decisions = predictor(images)
    assert done.stdout.splitlines() == [
        f"{CLASSES[label]}\t{100 * confidence:.1f}%\texit {exit_index + 1}\t{file}"
        for label, exit_index, confidence, file in zip(*decisions, files, strict=True)
    ]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("damaged", "stage_2.onnx: damaged, or of another export"),
        (
            "unknown",
            f"stage_2.onnx: onnxruntime {onnxruntime.__version__} cannot load it: "
            "[ONNXRuntimeError] : 7 : INVALID_PROTOBUF : Failed to load model because protobuf "
            "parsing failed.",
        ),
        ("missing", "stage_2.onnx: No such file or directory; the folder needs it"),
        ("format", "network.json: is not of format 2; export again"),
        ("stage", "network.json: damaged: 'stages[1].sha256' is missing; export again"),
        ("cut", "network.json: damaged: Unterminated string starting at: line 1 column 2 (char 1)"),
    ],
)
def test_faults_are_told_in_one_line(folder, fault, message, tmp_path):
    copy = shutil.copytree(folder[0], tmp_path / "copy")
    stage, about = copy / "stage_2.onnx", copy / "network.json"
    if fault == "damaged":
        content = bytearray(stage.read_bytes())
        content[len(content) // 2] ^= 1
        stage.write_bytes(content)
    elif fault == "unknown":
        stage.write_bytes(b"of a later version")
        description = json.loads(about.read_text())
        description["stages"][1]["sha256"] = hashlib.sha256(stage.read_bytes()).hexdigest()
        about.write_text(json.dumps(description))
    elif fault == "missing":
        stage.unlink()
    elif fault == "stage":
        description = json.loads(about.read_text())
        del description["stages"][1]["sha256"]
        about.write_text(json.dumps(description))
    elif fault == "cut":
        about.write_text('{"for')
    else:
        about.write_text(json.dumps(json.loads(about.read_text()) | {"format": 1}))
    done = subprocess.run(
        [sys.executable, copy / "run_onnx.py", "image.png"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr == f"{copy}/{message}\n"


class SortingNetwork(OneLayer):
    def stage(self, k, carry, train):
        return self.head(jax.numpy.sort(carry.mean(axis=(1, 2)))), ()


def test_an_operation_without_a_word_is_named(tmp_path):
    model, images = SortingNetwork(), stored_images(1, 8)
    variables = lively_variables(model, preprocess(images))
    with pytest.raises(UserError, match="stage 1 of this network needs the operation 'sort'"):
        network = NetworkToExport(model, variables, [0], image_format(8), CLASSES)
        export_onnx.export_network(tmp_path, network)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("broken", [0, 1])
def test_a_network_whose_answer_is_not_finite_is_refused(broken, tiny_network, tmp_path):
    model, variables = tiny_network
    head = jax.tree.map(lambda value: np.full_like(value, np.nan), variables["params"]["head_1"])
    variables = {**variables, "params": {**variables["params"], f"head_{broken}": head}}
    arguments = ([NOBODY_LEAVES] * 3, image_format(8), CLASSES[:4])
    export_onnx.export_network(tmp_path, NetworkToExport(model, variables, *arguments))
    run = load_program(tmp_path, export_onnx.LOADER).ExportedNetwork(tmp_path)
    with pytest.raises(ValueError, match=f"answer at exit {broken + 1} is not finite"):
        run(stored_images(3, 8))


def test_a_rule_that_gives_no_number_is_refused(tiny_network, tmp_path):
    arguments = ([NOBODY_LEAVES] * 3, image_format(8), CLASSES[:4], no_number)
    export_onnx.export_network(tmp_path, NetworkToExport(*tiny_network, *arguments))
    run = load_program(tmp_path, export_onnx.LOADER).ExportedNetwork(tmp_path)
    with pytest.raises(ValueError, match="answer at exit 1 is not finite"):
        run(stored_images(3, 8))

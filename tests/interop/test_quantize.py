"""Eight bits change the answers a little and the thresholds with them."""

import dataclasses
import json

import numpy as np
import onnx
import pytest
from full_disk import fill_temporary_folder
from onnx import numpy_helper
from small_networks import between, lively_variables, network

from l2w_jax.early_exit import rules
from l2w_jax.early_exit.budget import NOBODY_LEAVES, first_exits
from l2w_jax.errors import UserError
from l2w_jax.interop import export_onnx, quantize
from l2w_jax.interop.export_onnx import LOADER, export_quantized
from l2w_jax.interop.exported_folder import ImageFormat, NetworkToExport, load_program
from l2w_jax.interop.onnx_stages import onnx_stages

IMAGE_FORMAT = ImageFormat(32, 1.0, [0.5] * 3, [0.25] * 3)
SMALL_FORMAT = dataclasses.replace(IMAGE_FORMAT, size=8)


def stored_images(count, seed):
    generator = np.random.default_rng(seed)
    bright = generator.integers(0, 200, (count, 1, 1, 3))
    return (bright + generator.integers(0, 56, (count, 32, 32, 3))).astype(np.uint8)


def stages_of(model, variables, image_format=IMAGE_FORMAT, top_k=None):
    thresholds, names = [0] * model.num_exits, "abcdefghij"
    return onnx_stages(
        NetworkToExport(model, variables, thresholds, image_format, names, rules.log_odds, top_k)
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A network in 8 bits, what was told of it, itself, and the thresholds that it had."""
    folder = tmp_path_factory.mktemp("quantized")
    model = network("msdnet")
    variables = lively_variables(model, np.zeros((1, 32, 32, 3), np.float32))
    test = stored_images(40, 1), np.arange(40, dtype=np.int32) % 10
    of_test = quantize.answers(stages_of(model, variables), test[0])
    thresholds = between(of_test.scores, 0.5)
    names = [str(i) for i in range(10)]
    exported = NetworkToExport(model, variables, thresholds, IMAGE_FORMAT, names, rules.log_odds)
    lines = export_quantized(folder, exported, stored_images(128, 0), test, [1e6, 2e6])
    return folder, lines, (model, variables), thresholds


def test_what_is_written_runs_and_says_what_it_costs(written):
    folder, lines, *_ = written
    network = load_program(folder, LOADER).ExportedNetwork(folder)
    labels, exits, _ = network(stored_images(40, 1))
    assert set(exits) == {0, 1}
    assert lines[0].split() == ["test", "images", "float32", "8", "bits"]
    assert lines[1].startswith("top-1 of exit 1 ")
    top1 = 100 * (labels == np.arange(40) % 10).mean()
    mul_adds = np.take([1.0, 2.0], exits).mean()
    (stopping,) = [line for line in lines if line.startswith("stopping early")]
    assert stopping.endswith(f" {top1:.2f}% {mul_adds:.1f}M")
    assert lines[-1].count(" ms") == 2


def test_answers_in_8_bits_are_near(written):
    _, _, (model, variables), _ = written
    stages = stages_of(model, variables)
    images = stored_images(128, 2)
    in_8_bits = quantize.quantized(stages, images)
    kinds = [node.op_type for stage in in_8_bits for node in stage.graph.node]
    assert kinds.count("QuantizeLinear") > 20
    before, after = (quantize.answers(of, images) for of in (stages, in_8_bits))
    assert (before.labels == after.labels).mean() > 0.95
    spread = before.scores.std(axis=1)
    assert (np.abs(before.scores - after.scores).mean(axis=1) < 0.3 * spread).all()
    assert sum(s.ByteSize() for s in in_8_bits) < 0.4 * sum(s.ByteSize() for s in stages)


def test_of_several_classes_the_first_is_compared_with_the_true_one(tiny_network):
    images = stored_images(70, 0)[:, :8, :8]
    of_one, of_three = (
        quantize.answers(stages_of(*tiny_network, SMALL_FORMAT, top_k), images)
        for top_k in (None, 3)
    )
    assert len(set(of_one.labels.ravel())) > 1
    np.testing.assert_array_equal(of_three.labels, of_one.labels)


def test_each_output_channel_of_a_convolution_has_its_own_scale_and_seven_of_eight_bits(written):
    """Sums of eight bits overflow on processors without VNNI."""
    folder, *_ = written
    convolutions = 0
    for path in folder.glob("stage_*.onnx"):
        graph = onnx.load(path).graph
        arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        made_by = {name: node for node in graph.node for name in node.output}
        for node in graph.node:
            if node.op_type != "Conv":
                continue
            weights, scales, *_ = (arrays.get(name) for name in made_by[node.input[1]].input)
            convolutions += 1
            assert weights.dtype == np.int8 and np.abs(weights).max() <= 64
            assert scales.shape == weights.shape[:1]
    assert convolutions > 10


def test_thresholds_are_written_by_which_as_many_held_out_images_leave(written):
    folder, _, (model, variables), thresholds = written
    held_out = stored_images(128, 0)
    before = quantize.answers(stages_of(model, variables), held_out)
    left = np.bincount(first_exits(before.scores, thresholds), minlength=2)
    assert left.min() > 10
    network = load_program(folder, LOADER).ExportedNetwork(folder)
    _, exits, _ = network(held_out)
    np.testing.assert_array_equal(np.bincount(exits, minlength=2), left)
    assert json.loads((folder / "network.json").read_text())["thresholds"] != list(thresholds)


# Of 180, 113 / 180 is a little less than 113 images in float32.
@pytest.mark.parametrize("count", [500, 180])
def test_as_many_images_leave_at_thresholds_that_are_set_anew(count):
    generator = np.random.default_rng(0)
    labels = np.zeros((3, count), np.int32)
    before = quantize.Answers(labels, generator.normal(0, 1, (3, count)).astype(np.float32))
    if count == 180:
        before.scores[0] = np.where(np.arange(count) < 113, 1, -1)
    # Less sure of everything, and in another way.
    after = quantize.Answers(labels, 0.5 * generator.normal(-1, 1, (3, count)).astype(np.float32))
    thresholds = np.float32([0.8, NOBODY_LEAVES, 0])
    anew = quantize.thresholds_as_before(thresholds, before, after)
    left = np.bincount(first_exits(before.scores, thresholds), minlength=3)
    np.testing.assert_array_equal(np.bincount(first_exits(after.scores, anew), minlength=3), left)


def test_limits_are_taken_from_images_of_all_over_the_held_out_ones(
    tiny_network, tmp_path, monkeypatch
):
    taken = []

    def watched(stages, images):
        taken.append(images)
        return stages

    monkeypatch.setattr(quantize, "quantized", watched)
    # As in a folder, in order: by class, and here each in a brightness of its own.
    count = 2 * quantize.CALIBRATION_IMAGES + 100
    shades = np.linspace(0, 256, count, endpoint=False).astype(np.uint8)
    held_out = np.broadcast_to(shades[:, None, None, None], (count, 8, 8, 3))
    test = held_out[::100], np.zeros(len(held_out[::100]), np.int32)
    exported = NetworkToExport(*tiny_network, [0, 0, 0], SMALL_FORMAT, "abcd", rules.log_odds)
    export_quantized(tmp_path, exported, held_out, test, [1e6, 2e6, 3e6])
    (images,) = taken
    assert quantize.CALIBRATION_IMAGES <= len(images) < 2 * quantize.CALIBRATION_IMAGES
    assert set(images[:, 0, 0, 0].tolist()) == set(range(256))


def test_a_network_that_resizes_to_the_same_size_runs_in_8_bits():
    one_scale = {"scale_list": (1, 1), "growth_factors": (2, 1), "bottleneck_factors": (2, 1)}
    model = network("ranet").clone(**one_scale)
    variables = lively_variables(model, np.zeros((1, 8, 8, 3), np.float32))
    stages = stages_of(model, variables, SMALL_FORMAT)
    images = stored_images(8, 0)[:, :8, :8]
    in_8_bits = quantize.quantized(stages, images)
    assert quantize.answers(in_8_bits, images).labels.shape == (model.num_exits, 8)


def test_files_of_the_tools_that_find_no_room_are_told_in_one_line(tiny_network, monkeypatch):
    stages = stages_of(*tiny_network, SMALL_FORMAT)
    fill_temporary_folder(monkeypatch)
    with pytest.raises(UserError, match=r"^TMPDIR=.*: No space left on device$"):
        quantize.quantized(stages, np.zeros((8, 8, 8, 3), np.uint8))


def test_the_time_before_is_told_before_the_time_in_8_bits(tiny_network, tmp_path, monkeypatch):
    in_8_bits = []

    def quantized(stages, images):
        in_8_bits.extend(stages)
        return in_8_bits

    monkeypatch.setattr(quantize, "quantized", quantized)
    monkeypatch.setattr(
        quantize, "full_network", lambda stages: 2.0 if stages is in_8_bits else 8.0
    )
    monkeypatch.setattr(export_onnx, "milliseconds", lambda ways, images, repeats: np.array(ways))
    images = np.zeros((4, 8, 8, 3), np.uint8)
    exported = NetworkToExport(*tiny_network, [0, 0, 0], SMALL_FORMAT, "abcd", rules.log_odds)
    lines = export_quantized(
        tmp_path, exported, images, (images, np.zeros(4, np.int32)), [1e6, 2e6, 3e6]
    )
    assert lines[0].split() == ["test", "images", "float32", "8", "bits"]
    assert lines[-1].split()[-4:] == ["8.000", "ms", "2.000", "ms"]


def test_held_out_answers_set_the_thresholds_of_the_curve_that_is_told():
    rng = np.random.default_rng(0)
    labels = np.zeros((2, 50), np.int32)
    held_out = quantize.Answers(labels, rng.random((2, 50)).astype(np.float32))
    # Surer than any held-out image, so that all leave at the first exit.
    test = quantize.Answers(labels, 1 + rng.random((2, 50)).astype(np.float32))
    true_classes = np.repeat(np.int32([0, 1]), [40, 10])
    rows = dict(quantize.outcome(held_out, test, true_classes, np.float32([9, 0]), [1e6, 2e6]))
    of_curve = [value for name, value in rows.items() if name.startswith("q = ")]
    assert of_curve == ["80.00% 1.0M"] * len(quantize.CURVE_QS_SHOWN)
    assert rows["stopping early"] == "80.00% 2.0M"

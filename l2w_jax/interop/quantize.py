"""Stages in 8 bits: what they are calibrated with, and what that costs and saves.

Weights and features become whole numbers between two limits (static quantisation), by ONNX
Runtime's own tools. A quantised network is another network: its confidences differ, so its
thresholds are set anew, from its own answers to images that it is not judged by.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process

from l2w_jax.early_exit.budget import (
    budgeted_curve_from_confidences,
    find_thresholds,
    first_exits,
    operating_point,
)
from l2w_jax.files import temporary_folder
from l2w_jax.interop.onnx_stages import ANSWERS

# Points of the budgeted curve that the summary shows.
CURVE_QS_SHOWN = (0.3, 0.6, 1.0, 1.5)

# Images from which the limits of every feature are taken.
CALIBRATION_IMAGES = 512

_BATCH = 64

# Convolutions and what lies between them, since each would otherwise convert. The linear layers, a
# hundredth of the work, stay as they are: the tools turn their biases into what does not run.
_OPERATIONS = ["Conv", "Relu", "Concat", "Split", "MaxPool", "AveragePool"]


class Answers(NamedTuple):
    """A network's answers to N images at all K exits: labels int [K, N], scores float32 [K, N]."""

    labels: NDArray[np.int32]
    scores: NDArray[np.float32]


def quantized(
    stages: Sequence[onnx.ModelProto], images: NDArray[np.uint8]
) -> list[onnx.ModelProto]:
    """The stages with 8-bit weights and features.

    Args:
        stages: of `onnx_stages`.
        images: uint8 [N, H, W, 3], that the limits are taken from.

    Returns:
        Stages with the same inputs and outputs.

    Raises:
        UserError: there is no room for the files of the tools.
    """
    sessions = _sessions(stages)

    def inputs_of(k: int) -> Iterator[dict[str, NDArray[Any]]]:
        # Computed again for each stage: kept all at once, features of large images fill the memory.
        for batch in _batches(images):
            taken, _ = next(itertools.islice(_run(sessions, batch), k, None))
            yield taken

    return [_quantized(stage, inputs_of(k)) for k, stage in enumerate(stages)]


def _quantized(
    stage: onnx.ModelProto, inputs: Iterator[dict[str, NDArray[Any]]]
) -> onnx.ModelProto:
    with temporary_folder() as folder:
        onnx.save(stage, folder / "float.onnx")
        # Joins a convolution with its addition, which would be rounded between them.
        quant_pre_process(folder / "float.onnx", folder / "joined.onnx", skip_symbolic_shape=True)
        quantization.quantize_static(
            folder / "joined.onnx",
            folder / "quantized.onnx",
            _Inputs(inputs),
            op_types_to_quantize=_OPERATIONS,
            per_channel=True,
            # With all 8 bits, sums overflow on processors without VNNI.
            reduce_range=True,
            # ONNX Runtime 1.32 cannot make this adjustment where each channel has its own scale.
            extra_options={"QDQDisableWeightAdjustForInt32Bias": True},
        )
        return onnx.load(folder / "quantized.onnx")


class _Inputs(quantization.CalibrationDataReader):
    """Inputs of a stage, batch by batch, as the tools ask for them."""

    def __init__(self, inputs: Iterator[dict[str, NDArray[Any]]]):
        self._left = inputs

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """The next batch, or None after the last one."""
        return next(self._left, None)


def answers(stages: Sequence[onnx.ModelProto], images: NDArray[np.uint8]) -> Answers:
    """What every exit says of images uint8 [N, H, W, 3], none of which leaves."""
    sessions, labels, scores = _sessions(stages), [], []
    for batch in _batches(images):
        given = [outputs for _, outputs in _run(sessions, batch)]
        # The first of several classes is the most probable one.
        labels.append([outputs["labels"].reshape(len(batch), -1)[:, 0] for outputs in given])
        scores.append([outputs["scores"] for outputs in given])
    return Answers(np.concatenate(labels, axis=1), np.concatenate(scores, axis=1))


def full_network(stages: Sequence[onnx.ModelProto]) -> Callable[[NDArray[np.uint8]], None]:
    """The network as a function of images, to be timed: no image leaves, nothing is kept."""
    sessions = _sessions(stages)

    def run(images: NDArray[np.uint8]) -> None:
        for _ in _run(sessions, images):
            pass

    return run


def thresholds_as_before(
    thresholds: NDArray[np.float32], before: Answers, after: Answers
) -> NDArray[np.float32]:
    """Thresholds at which as many images leave at each exit as with another network at its own.

    Args:
        thresholds: T_k [K] of the network before.
        before, after: answers of both to the same images, which set the thresholds.
    """
    left_at = first_exits(before.scores, thresholds)
    counts = np.bincount(left_at, minlength=len(thresholds))
    # Half an image more, which rounding down to whole images drops again, despite rounding errors.
    shares = np.minimum((counts + 0.5) / len(left_at), 1)
    return find_thresholds(after.scores, shares)


def outcome(
    held_out: Answers,
    test: Answers,
    labels: NDArray[np.int32],
    thresholds: NDArray[np.float32],
    mul_adds: Sequence[float],
) -> list[tuple[str, str]]:
    """What a network makes of test images, as rows of a name and a value.

    Args:
        held_out: answers to the images that set thresholds.
        test: answers to the test images.
        labels: true classes of the test images [N].
        thresholds: T_k [K].
        mul_adds: of stopping at each exit [K].
    """
    correct = test.labels == labels
    exits = [
        (f"top-1 of exit {k}", f"{top1:.2f}%")
        for k, top1 in enumerate(100 * correct.mean(axis=1), start=1)
    ]
    chosen = operating_point(first_exits(test.scores, thresholds), correct, mul_adds)
    curve = budgeted_curve_from_confidences(held_out.scores, test.scores, correct, mul_adds)
    shown = [point for point in curve if any(np.isclose(point["q"], q) for q in CURVE_QS_SHOWN)]
    return [
        *exits,
        ("stopping early", _readable(chosen.row())),
        *((f"q = {point['q']:g}", _readable(point)) for point in shown),
    ]


def _readable(point: Mapping[str, float]) -> str:
    return f"{point['top1']:.2f}% {point['mul_adds'] / 1e6:.1f}M"


def summary_lines(
    before: Sequence[tuple[str, str]],
    after: Sequence[tuple[str, str]],
    milliseconds: Sequence[float],
) -> list[str]:
    """What quantising costs and saves, for a person to read.

    Args:
        before, after: from `outcome`.
        milliseconds: of the full network for an image, before and after.
    """
    times = [f"{time:.3f} ms" for time in milliseconds]
    rows = [
        ("test images", "float32", "8 bits"),
        *((name, value, other) for (name, value), (_, other) in zip(before, after, strict=True)),
        ("full network, an image", *times),
    ]
    return [f"{name:<24}{value:>20}{other:>20}" for name, value, other in rows]


def _batches(images: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    for start in range(0, len(images), _BATCH):
        yield images[start : start + _BATCH]


def _sessions(stages: Sequence[onnx.ModelProto]) -> list[onnxruntime.InferenceSession]:
    return [
        onnxruntime.InferenceSession(stage.SerializeToString(), providers=["CPUExecutionProvider"])
        for stage in stages
    ]


def _run(
    sessions: Sequence[onnxruntime.InferenceSession], images: NDArray[np.uint8]
) -> Iterator[tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]]:
    """What each stage takes and what it gives, when no image leaves."""
    arrays: dict[str, NDArray[Any]] = {"images": images}
    for session in sessions:
        taken = {array.name: arrays[array.name] for array in session.get_inputs()}
        names = [array.name for array in session.get_outputs()]
        given = dict(zip(names, session.run(names, taken), strict=True))
        yield taken, given
        arrays |= {name: array for name, array in given.items() if name not in ANSWERS}

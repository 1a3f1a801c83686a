"""Inference that really stops early, for any batch.

The network runs stage by stage. After each exit the images whose score there reaches its threshold
leave with their answer, and the features of the others are packed together, so that the next stage
runs on a smaller batch. Batches have one of a few fixed sizes, filled up with copies of one of
their rows: each stage is compiled once for each size, and never again.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from l2w_jax.early_exit import rules
from l2w_jax.early_exit.stages import Stages, answer_of
from l2w_jax.models import MultiExitNetwork

# On a CPU a stage's time is proportional to the rows of its batch, padding included, from two rows
# on; the third of the 5-exit CIFAR network takes, in ms of one core for each row,
#
#     rows     1    2    4    8    12   16   24   32   48   64   96   128
#     ms a row 2.2  1.6  1.4  1.5  1.4  1.5  1.3  1.3  1.4  1.4  1.5  1.8
#
# Each further size has to be compiled. With these, padding is on average 15% of the rows for 9 to
# 64 images, all numbers equally likely, and 11% for 9 to 256; without 24 and 48, 24% and 13%.
BATCH_SIZES: tuple[int, ...] = (1, 2, 4, 8, 16, 24, 32, 48, *range(64, 257, 32))

# A row of a packed batch that holds no image, or one that has left.
EMPTY = -1


class Decisions(NamedTuple):
    """What became of N images.

    Attributes:
        labels: the most probable class, int32 [N], or the `top_k` most probable ones, if they were
            asked for, int32 [N, top_k].
        exits: where the image left, from 0, int32 [N].
        confidences: the probability of that class or these at that exit, float32 as labels.
    """

    labels: NDArray[np.int32]
    exits: NDArray[np.int32]
    confidences: NDArray[np.float32]


class EarlyExitPredictor:
    """Classifies images with a multi-exit network, each with as much of the network as it takes.

    The answers are those that `first_exits` gives from the full network's, up to the rounding that
    another batch size causes. Threads may share a predictor.

    Attributes:
        thresholds: T_k, float32 [K].
    """

    def __init__(
        self,
        model: MultiExitNetwork,
        variables: Mapping[str, Any],
        thresholds: ArrayLike,
        preprocess: Callable[[jax.Array], jax.Array] | None = None,
        batch_sizes: Sequence[int] = BATCH_SIZES,
        rule: rules.Rule = rules.confidence,
        top_k: int | None = None,
        image: jax.ShapeDtypeStruct | None = None,
    ):
        """Copies the variables; the first images put them on the default device.

        Args:
            model: the network.
            variables: its {"params", "batch_stats"}.
            thresholds: T_k [K], from `find_thresholds`; at the last exit everybody leaves.
            preprocess: from stored to network input, computed on the device. Without it images
                must be what the network takes.
            batch_sizes: what stages are compiled for; larger batches are cut.
            rule: the scores that the thresholds are for; a file of thresholds names it, see RULES.
            top_k: how many classes to give for each image; without it only the most probable one.
            image: shape and type of one image, as [H, W, 3]; all others are then refused. Without
                it any are taken that the network can be run on, whatever it was trained for.

        Raises:
            ValueError: the thresholds are not one number for each exit or above all scores of the
                rule, a size or `top_k` is not positive, or the rule is no function.
        """
        if not batch_sizes or min(batch_sizes) < 1:
            raise ValueError(f"batch_sizes are {tuple(batch_sizes)}; positive sizes are expected")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k is {top_k}; a positive number of classes is expected")
        if not callable(rule):
            allowed = ", ".join(rules.RULES)
            raise ValueError(
                f"rule is {rule!r}; a function is expected, of l2w_jax.early_exit one of {allowed}"
            )
        self.thresholds = rules.thresholds_for(rule, thresholds, model.num_exits)
        self._rule = rule
        self._stages = Stages(model, variables, preprocess, rule, answer_of(top_k))
        self._image = image
        self._shape_of_answer = (top_k,) if top_k else ()
        self._takes_stored_images = preprocess is not None
        self._batch_sizes = tuple(sorted(set(batch_sizes)))

    def with_thresholds(self, thresholds: ArrayLike) -> "EarlyExitPredictor":
        """The same network with other thresholds; what is compiled is shared.

        Raises:
            ValueError: the thresholds are not one number for each exit or above all scores of the
                rule.
        """
        other = copy.copy(self)
        other.thresholds = rules.thresholds_for(self._rule, thresholds, len(self.thresholds))
        return other

    def __call__(self, images: ArrayLike) -> Decisions:
        """Classifies images [N, ...], of any number and of a shape that the network takes.

        Raises:
            ValueError: the images have another shape or type, are no numbers, or one holds NaN or
                infinity; `top_k` is more than there are classes; an answer or a score of the rule
                is not finite; or the network hands on an array whose first axis is not the
                images'.
        """
        images = self._checked(images)
        shape = (len(images), *self._shape_of_answer)
        decisions = Decisions(
            labels=np.empty(shape, np.int32),
            exits=np.empty(len(images), np.int32),
            confidences=np.empty(shape, np.float32),
        )
        largest = self._batch_sizes[-1]
        for start in range(0, len(images), largest):
            part = slice(start, start + largest)
            self._decide(images[part], Decisions(*(array[part] for array in decisions)))
        return decisions

    def warm_up(
        self, image_shape: Sequence[int] | None = None, dtype: DTypeLike | None = None
    ) -> None:
        """Compiles every stage for every batch size, so that no later call does.

        After `l2w_jax.compiled_programs.keep()` the next process finds what this one compiled.

        Args:
            image_shape: of one image, as [H, W, 3]; needed where the predictor was not told.
            dtype: of the images to come; without it what the predictor was told, else float32.

        Raises:
            ValueError: no shape is known, or as for images of this shape and type.
        """
        told = self._image
        if image_shape is None:
            if told is None:
                raise ValueError("image_shape is None; that of one image is expected, as (H, W, 3)")
            image_shape = told.shape
        if dtype is None:
            dtype = np.float32 if told is None else told.dtype
        for size in self._batch_sizes:
            features: Any = self._checked(np.zeros((size, *image_shape), dtype))
            for k in range(len(self.thresholds)):
                *_, features = self._stages(k, features)
                for smaller in self._batch_sizes:
                    if smaller < size and features is not None:
                        _pack(features, np.zeros(smaller, np.int32))

    def _decide(self, images: NDArray[Any], decisions: Decisions) -> None:
        """Fills in the decisions on at most one full batch of images."""
        rows = self._padded(np.arange(len(images)))
        # The image that each row of the batch holds; padding repeats one and does not count.
        image_of_row = np.where(np.arange(len(rows)) < len(images), rows, EMPTY)
        features = images[rows]
        for k, threshold in enumerate(self.thresholds):
            *answers, features = self._stages(k, features)
            labels, confidences, scores = _on_host(answers)
            in_use = image_of_row != EMPTY
            if not np.isfinite(confidences[in_use]).all():
                raise ValueError(f"the network's answer at exit {k + 1} is not finite")
            # It would not leave at the last exit either, and have no answer.
            if not (np.abs(scores[in_use]) < rules.NOBODY_LEAVES).all():
                raise ValueError(
                    f"the rule's score at exit {k + 1} is NaN or infinite, or 1e8 or more"
                )
            leaving = in_use & (scores >= threshold)
            image = image_of_row[leaving]
            decisions.labels[image] = labels[leaving]
            decisions.exits[image] = k
            decisions.confidences[image] = confidences[leaving]

            staying = np.flatnonzero(in_use & ~leaving)
            if not staying.size:
                return
            rows = self._padded(staying)
            if len(rows) < len(image_of_row):
                features = _pack(features, rows)
                in_front = np.arange(len(rows)) < len(staying)
                image_of_row = np.where(in_front, image_of_row[rows], EMPTY)
            else:
                # Moving features would save nothing: images that left go on as padding.
                image_of_row[leaving] = EMPTY

    def _padded(self, rows: NDArray[np.integer]) -> NDArray[np.int32]:
        """The rows, the last one repeated up to the next batch size."""
        size = next(size for size in self._batch_sizes if size >= len(rows))
        # `np.pad` takes ten times as long, at every exit.
        padded = np.empty(size, np.int32)
        padded[: len(rows)] = rows
        padded[len(rows) :] = rows[-1]
        return padded

    def _checked(self, images: ArrayLike) -> NDArray[Any]:
        images = np.asarray(images)
        # Compiled programs take numbers of either byte order as the machine's own.
        images = images.astype(images.dtype.newbyteorder("="), copy=False)
        if images.ndim < 2:
            raise ValueError(f"images have shape {images.shape}; [N, ...], N images, is expected")
        if self._image is not None:
            _check_are_of(self._image, images)
        if not jnp.issubdtype(images.dtype, jnp.floating):
            if not (jnp.issubdtype(images.dtype, jnp.number) or images.dtype == bool):
                raise ValueError(f"images are {images.dtype}; numbers are expected")
            if not self._takes_stored_images:
                raise ValueError(
                    f"images are {images.dtype}; without a preprocess function the network takes "
                    "normalised floating-point images"
                )
            return images
        # Checked as JAX takes them: a finite float64 may be infinite in float32.
        with np.errstate(over="ignore"):
            images = images.astype(jax.dtypes.canonicalize_dtype(images.dtype), copy=False)
        broken = np.flatnonzero(~np.isfinite(images).all(axis=tuple(range(1, images.ndim))))
        if broken.size:
            raise ValueError(f"image {broken[0]} of {len(images)} holds NaN or infinity")
        return images


def _check_are_of(image: jax.ShapeDtypeStruct, images: NDArray[Any]) -> None:
    """Raises ValueError where images [N, ...] have another shape or type than this one."""
    if images.dtype != image.dtype or images.shape[1:] != image.shape:
        expected = ", ".join(map(str, image.shape))
        raise ValueError(
            f"images are {images.dtype} {list(images.shape)}; {image.dtype} [N, {expected}] is "
            "expected"
        )


def _pack(features: Any, rows: NDArray[np.int32]) -> Any:
    """The given rows of every array."""
    # NumPy is as fast on a CPU, and need not be compiled for each pair of batch sizes.
    if all(map(_is_plain_on_cpu, jax.tree.leaves(features))):
        return jax.tree.map(lambda x: np.asarray(x)[rows], features)
    return _pack_on_device(features, rows)


def _on_host(arrays: Sequence[jax.Array]) -> list[NDArray[Any]]:
    """The arrays as NumPy's, all of which an accelerator copies at once."""
    for array in arrays:
        # There is nothing to copy on a CPU, where to ask for it costs time with single images.
        if not _lies_on_cpu(array):
            array.copy_to_host_async()
    return [np.asarray(array) for array in arrays]


def _lies_on_cpu(array: jax.Array) -> bool:
    return all(device.platform == "cpu" for device in array.devices())


def _is_plain_on_cpu(array: jax.Array) -> bool:
    """Whether it lies on a CPU and has a type of NumPy's, which has no weak types and no keys."""
    return (
        _lies_on_cpu(array)
        and not jax.typeof(array).weak_type
        and not jnp.issubdtype(array.dtype, jax.dtypes.extended)
    )


@jax.jit
def _pack_on_device(features: Any, rows: jax.Array) -> Any:
    return jax.tree.map(lambda x: x[rows], features)

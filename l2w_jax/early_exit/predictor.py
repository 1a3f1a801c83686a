"""Inference that really stops early, for any batch.

The network runs stage by stage. After each exit the images that are confident enough leave with
their answer, and the features of the others are packed together, so that the next stage runs on a
smaller batch. Batches have one of a few fixed sizes, filled up with copies of a row that is there:
each stage is compiled once for each size, and never again.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from l2w_jax.early_exit.budget import checked_thresholds
from l2w_jax.models import MultiExitNetwork

# Small sizes for the few that are left; above, multiples of 32: powers of two alone would waste up
# to half of a batch, more sizes would have to be compiled.
BATCH_SIZES: tuple[int, ...] = (1, 2, 4, 8, 16, *range(32, 257, 32))

# A row of a packed batch that holds no image, or one that has left.
EMPTY = -1


class Decisions(NamedTuple):
    """What became of N images.

    Attributes:
        labels: the most probable class, int32 [N].
        exits: where the image left, from 0, int32 [N].
        confidences: the probability of that class at that exit, float32 [N].
    """

    labels: NDArray[np.int32]
    exits: NDArray[np.int32]
    confidences: NDArray[np.float32]


class EarlyExitPredictor:
    """Classifies images with a multi-exit network, each with as much of it as it takes.

    The answers are those of the full network looked at afterwards (`first_exits`), up to the
    rounding with which another batch size computes.

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
    ):
        """Puts the network on the default device.

        Args:
            model: the network.
            variables: its {"params", "batch_stats"}.
            thresholds: T_k [K], from `find_thresholds`; at the last exit everybody leaves.
            preprocess: from stored to network input, computed on the device. Without it images
                must be what the network takes.
            batch_sizes: what stages are compiled for; larger batches are cut.

        Raises:
            ValueError: the thresholds are not one number for each exit, or a size is not positive.
        """
        if not batch_sizes or min(batch_sizes) < 1:
            raise ValueError(f"batch_sizes are {tuple(batch_sizes)}; positive sizes are expected")
        self.thresholds = checked_thresholds(thresholds, model.num_exits)
        self._model = model
        self._variables = jax.device_put(variables)
        self._preprocess = preprocess
        self._batch_sizes = tuple(sorted(set(batch_sizes)))

    def __call__(self, images: ArrayLike) -> Decisions:
        """Classifies images [N, H, W, 3], of any number.

        Raises:
            ValueError: the images have another shape or type, or one holds NaN or infinity.
        """
        images = self._checked(images)
        decisions = Decisions(
            labels=np.empty(len(images), np.int32),
            exits=np.empty(len(images), np.int32),
            confidences=np.empty(len(images), np.float32),
        )
        largest = self._batch_sizes[-1]
        for start in range(0, len(images), largest):
            part = slice(start, start + largest)
            self._decide(images[part], Decisions(*(array[part] for array in decisions)))
        return decisions

    def warm_up(self, image_shape: Sequence[int], dtype: np.dtype | type = np.float32) -> None:
        """Compiles every stage for every batch size, so that no later call does.

        Args:
            image_shape: [H, W, 3].
            dtype: of the images to come.
        """
        for size in self._batch_sizes:
            carry = self._first_carry(np.zeros((size, *image_shape), dtype))
            for k in range(self._model.num_exits):
                _, _, next_carry = _stage(self._model, k, self._variables, carry)
                for smaller in self._batch_sizes:
                    if smaller < size and next_carry is not None:
                        _pack(next_carry, np.zeros(smaller, np.int32))
                carry = next_carry

    def _decide(self, images: NDArray[Any], decisions: Decisions) -> None:
        """Fills in the decisions on at most one full batch of images."""
        rows = self._padded(np.arange(len(images)))
        # The image that each row of the batch holds; padding repeats one, and counts for nothing.
        image_of_row = np.where(np.arange(len(rows)) < len(images), rows, EMPTY)
        carry = self._first_carry(images[rows])
        for k, threshold in enumerate(self.thresholds):
            labels, confidences, carry = _stage(self._model, k, self._variables, carry)
            labels, confidences = np.asarray(labels), np.asarray(confidences)
            in_use = image_of_row != EMPTY
            if not np.isfinite(confidences[in_use]).all():
                raise ValueError(f"the network's answer at exit {k + 1} is not finite")
            leaving = in_use & (confidences >= threshold)
            image = image_of_row[leaving]
            decisions.labels[image] = labels[leaving]
            decisions.exits[image] = k
            decisions.confidences[image] = confidences[leaving]

            staying = np.flatnonzero(in_use & ~leaving)
            if not staying.size:
                return
            rows = self._padded(staying)
            if len(rows) < len(image_of_row):
                carry = _pack(carry, rows)
                in_front = np.arange(len(rows)) < len(staying)
                image_of_row = np.where(in_front, image_of_row[rows], EMPTY)
            else:
                # Nothing to save by moving features about: who left goes on as padding.
                image_of_row[leaving] = EMPTY

    def _padded(self, rows: NDArray[np.integer]) -> NDArray[np.int32]:
        """The rows, the last one repeated up to the next batch size."""
        size = next(size for size in self._batch_sizes if size >= len(rows))
        return np.pad(rows, (0, size - len(rows)), mode="edge").astype(np.int32)

    def _first_carry(self, images: NDArray[Any]) -> Any:
        return _first_carry(self._model, self._preprocess, self._variables, images)

    def _checked(self, images: ArrayLike) -> NDArray[Any]:
        images = np.asarray(images)
        if images.ndim != 4:
            raise ValueError(f"images have shape {images.shape}; [N, height, width, 3] is expected")
        if not jnp.issubdtype(images.dtype, jnp.floating):
            if self._preprocess is None:
                raise ValueError(
                    f"images are {images.dtype}; without a preprocess function the network takes "
                    "normalised floating-point images"
                )
            return images
        broken = np.flatnonzero(~np.isfinite(images).all(axis=(1, 2, 3)))
        if broken.size:
            raise ValueError(f"image {broken[0]} of {len(images)} holds NaN or infinity")
        return images


@functools.partial(jax.jit, static_argnames=("model", "preprocess"))
def _first_carry(
    model: MultiExitNetwork,
    preprocess: Callable[[jax.Array], jax.Array] | None,
    variables: Mapping[str, Any],
    images: jax.Array,
) -> Any:
    if preprocess is not None:
        images = preprocess(images)
    return model.apply(variables, images, train=False, method="init_carry")


@functools.partial(jax.jit, static_argnames=("model", "k"))
def _stage(
    model: MultiExitNetwork, k: int, variables: Mapping[str, Any], carry: Any
) -> tuple[jax.Array, jax.Array, Any]:
    """Labels int32 [n] and confidences float32 [n] of exit k, and what stage k + 1 starts from."""
    logits, carry = model.apply(variables, k, carry, train=False, method="stage")
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    confidences = jax.nn.softmax(logits).max(axis=-1).astype(jnp.float32)
    is_last = k == model.num_exits - 1
    return logits.argmax(axis=-1).astype(jnp.int32), confidences, None if is_last else carry


@jax.jit
def _pack(carry: Any, rows: jax.Array) -> Any:
    """The given rows of every array."""
    return jax.tree.map(lambda x: x[rows], carry)

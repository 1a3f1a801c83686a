"""What one sample costs at one exit, and how sure the network is of it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from l2w_jax.models import MultiExitNetwork

Batch = dict[str, jax.Array]


def cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Cross-entropy l[i, k] of sample i at exit k.

    With smoothing s it is (1 - s) · CE + s · mean over the classes of -log softmax (Szegedy et al.,
    CVPR 2016, section 7).

    Args:
        logits: [K, N, C].
        labels: [N], integers.
        label_smoothing: s, in [0, 1).

    Returns:
        [N, K] in at least float32.
    """
    log_probs = jax.nn.log_softmax(at_least_float32(logits))
    losses = -jnp.take_along_axis(log_probs, labels[None, :, None], axis=-1)[..., 0]
    if label_smoothing:
        losses = (1 - label_smoothing) * losses - label_smoothing * log_probs.mean(axis=-1)
    return losses.T


def confidences_of_logits(logits: jax.Array) -> jax.Array:
    """Confidence c[i, k], the largest softmax probability: [K, N, C] -> [N, K]."""
    return jax.nn.softmax(at_least_float32(logits)).max(axis=-1).T


def correctness(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """1 where the most probable class is the label, else 0: [K, N, C], [N] -> [N, K]."""
    return (logits.argmax(axis=-1) == labels).astype(jnp.float32).T


def at_least_float32(x: jax.Array) -> jax.Array:
    """`x` in float32, or as it is where it is wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


@dataclasses.dataclass(frozen=True)
class TrainingLosses:
    """The losses of a network in training mode, as a function of its parameters.

    Attributes:
        model: the network; its batch statistics are those of the batch over `model.axis_name`.
        label_smoothing: s of `cross_entropy`.
    """

    model: MultiExitNetwork
    label_smoothing: float

    def __call__(
        self, params: Any, batch_stats: Any, batch: Batch
    ) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        """Losses [N, K], with the logits [K, N, C] and the moved running statistics."""
        logits, moved = self.model.apply(
            {"params": params, "batch_stats": batch_stats},
            batch["image"],
            train=True,
            mutable=["batch_stats"],
        )
        losses = cross_entropy(logits, batch["label"], self.label_smoothing)
        return losses, (logits, moved.get("batch_stats", {}))

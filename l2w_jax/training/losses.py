"""What one sample costs at one exit and how sure the network is of it, as functions of θ."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from l2w_jax.arrays import array_type
from l2w_jax.models import MultiExitNetwork
from l2w_jax.models.multi_exit import apply_in_training
from l2w_jax.models.precision import at_least_float32

# "image", [N, ...], and "label", [N]; with the pipelined schedule also "previous", another batch.
Batch = dict[str, Any]


def cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Cross-entropy l[i, k] of sample i at exit k.

    With smoothing s it is (1 - s) · CE + s · mean over the classes of -log softmax (Szegedy et al.,
    CVPR 2016, section 7).

    Args:
        logits: [K, N, C].
        labels: [N], integers.
        label_smoothing: s, in [0, 1).

    Returns:
        [N, K] in at least float32; NaN where a label is not one of 0 to C - 1.

    Raises:
        ValueError: the labels are not N integers.
    """
    _check_labels(labels, logits.shape[1])
    log_probs = jax.nn.log_softmax(at_least_float32(logits))
    of_labels = jnp.take_along_axis(
        log_probs, labels[None, :, None], axis=-1, wrap_negative_indices=False
    )
    losses = -of_labels[..., 0]
    if label_smoothing:
        losses = (1 - label_smoothing) * losses - label_smoothing * log_probs.mean(axis=-1)
    return losses.T


def _check_labels(labels: jax.Array, num_samples: int) -> None:
    """Raises ValueError where the labels are not `num_samples` integers."""
    if labels.shape != (num_samples,) or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"labels are {array_type(labels)}; integers [N] are expected, for the "
            f"N = {num_samples} images of a pass"
        )


def weighted_loss(weights: jax.Array, losses: jax.Array) -> jax.Array:
    """Training loss Σ_k mean_i w[i, k]·l[i, k] of this device's samples, both [N, K]."""
    return (weights * losses).mean(axis=0).sum()


def confidences_of_logits(logits: jax.Array) -> jax.Array:
    """Confidence c[i, k], the largest softmax probability: [K, N, C] -> [N, K]."""
    return jax.nn.softmax(at_least_float32(logits)).max(axis=-1).T


def correctness(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """1 where the most probable class is the label, else 0: [K, N, C], [N] -> [N, K]."""
    return (logits.argmax(axis=-1) == labels).astype(jnp.float32).T


@dataclasses.dataclass(frozen=True)
class Distillation:
    """One-for-all distillation (Li et al., ICCV 2019): the deepest exit teaches.

    Attributes:
        share: γ, in [0, 1): weight of the teacher's term at every exit but the last, where that of
            the cross-entropy is 1 - γ.
        temperature: T, which divides the logits of teacher and exits.
    """

    share: float
    temperature: float

    def label_shares(self, num_exits: int) -> np.ndarray:
        """Weight of the cross-entropy at each exit, [K]: 1 - γ, and 1 at the last."""
        return np.array([1 - self.share] * (num_exits - 1) + [1.0])

    def loss(self, logits: jax.Array, teacher: jax.Array) -> jax.Array:
        """Σ_{k<K} γ·T²·KL(softmax(teacher/T) || softmax(logits_k/T)).

        The divergence is a mean over samples and over classes. No gradient reaches the teacher.

        Args:
            logits: [K, N, C].
            teacher: logits [N, C].
        """
        teacher = jax.lax.stop_gradient(teacher)
        wanted = jax.nn.log_softmax(at_least_float32(teacher) / self.temperature)
        given = jax.nn.log_softmax(at_least_float32(logits[:-1]) / self.temperature)
        divergences = (jnp.exp(wanted) * (wanted - given)).mean(axis=(1, 2))
        return self.share * self.temperature**2 * divergences.sum()


def create_distillation(config: ConfigDict) -> Distillation | None:
    """What `config.imta` describes; None without distillation, or without that section."""
    imta = config.get("imta", {})
    if not imta.get("distillation", 0):
        return None
    return Distillation(imta.distillation, imta.get("temperature", 1.0))


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingLosses:
    """The losses of a network in training mode, as a function of its parameters.

    An object's forward pass is traced and differentiated once, however often it is used.

    Attributes:
        model: the network; its batch statistics are taken over all devices of `model.axis_name`.
        label_smoothing: s of `cross_entropy`.
        distillation: what the exits learn from a teacher, which `model.with_teacher` gives.
    """

    model: MultiExitNetwork
    label_smoothing: float
    distillation: Distillation | None = None

    @property
    def label_shares(self) -> float | np.ndarray:
        """Weight of the cross-entropy at each exit: 1, or [K] where the exits have a teacher."""
        if self.distillation is None:
            return 1.0
        return self.distillation.label_shares(self.model.num_exits)

    def __call__(
        self, params: Any, batch_stats: Any, batch: Batch
    ) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        """Losses [N, K], with the logits [K, N, C] and the moved running statistics."""
        (losses, _), outputs = self.with_distilled(params, batch_stats, batch)
        return losses, outputs

    @functools.partial(jax.jit, static_argnums=0)
    def with_distilled(
        self, params: Any, batch_stats: Any, batch: Batch
    ) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, Any]]:
        """As a call, with the loss of distillation (0 where there is none) beside the losses."""
        method = "with_teacher" if self.distillation else "__call__"
        variables = {"params": params, "batch_stats": batch_stats}
        outputs, moved = apply_in_training(self.model, variables, batch["image"], method)
        logits, teacher = outputs if self.distillation else (outputs, None)
        losses = cross_entropy(logits, batch["label"], self.label_smoothing)
        distilled = jnp.zeros((), losses.dtype)
        if self.distillation:
            distilled = self.distillation.loss(logits, teacher)
        return (losses, distilled), (logits, moved)


@dataclasses.dataclass(frozen=True, eq=False)
class LossesInParts(TrainingLosses):
    """The same losses, of a batch that is too large for one forward pass (gradient accumulation).

    The batch is taken in parts, one after the other. A gradient computes each part's forward pass
    again, so that memory holds what one part leaves, at the price of one more forward pass for each
    gradient. Losses, logits and gradients are those of the whole batch except for batch norm, which
    normalises each part by its own mean and variance. The running statistics move once, by the mean
    over the parts; so their means are those of the whole batch, and their variances leave out how
    the parts' means differ.

    Attributes:
        num_parts: parts that the samples of a device are taken in.
    """

    num_parts: int = 1

    @functools.partial(jax.jit, static_argnums=0)
    def with_distilled(
        self, params: Any, batch_stats: Any, batch: Batch
    ) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, Any]]:
        """As `TrainingLosses.with_distilled`.

        Raises:
            ValueError: the samples cannot be divided into `num_parts`, or the labels are not one
                integer for each.
        """
        num_samples = len(batch["image"])
        _check_labels(batch["label"], num_samples)
        if num_samples % self.num_parts:
            raise ValueError(
                f"config.optimizer.accumulation: {self.num_parts} is not allowed: must divide the "
                f"{num_samples} samples of a device"
            )
        parts = jax.tree.map(lambda x: x.reshape(self.num_parts, -1, *x.shape[1:]), batch)

        @functools.partial(jax.checkpoint, prevent_cse=False)
        def of_part(params, part):
            return TrainingLosses.with_distilled(self, params, batch_stats, part)

        _, ((losses, distilled), (logits, moved)) = jax.lax.scan(
            lambda _, part: (None, of_part(params, part)), None, parts
        )
        losses = losses.reshape(num_samples, -1)
        logits = jnp.concatenate(list(logits), axis=1)
        moved = jax.tree.map(lambda statistics: statistics.mean(axis=0), moved)
        return (losses, distilled.mean()), (logits, moved)


def create_losses(
    config: ConfigDict, model: MultiExitNetwork
) -> tuple[TrainingLosses, TrainingLosses]:
    """The losses that train θ in a run, and those that judge it, for the meta loss.

    Gradient equilibrium and distillation are part of how θ learns; the result is judged by its
    plain loss, with the true gradient. Without them both are the same object.
    """
    judging = _of_labels_alone(config, model.clone(gradient_equilibrium=False))
    distillation = create_distillation(config)
    if distillation is None and not model.gradient_equilibrium:
        return judging, judging
    training = _of_labels_alone(config, model)
    return dataclasses.replace(training, distillation=distillation), judging


def _of_labels_alone(config: ConfigDict, model: MultiExitNetwork) -> TrainingLosses:
    smoothing, num_parts = config.optimizer.label_smoothing, config.optimizer.accumulation
    if num_parts < 1:
        raise ValueError(
            f"config.optimizer.accumulation: {num_parts} is not allowed: must be >= 1 here, where "
            "nobody looks how many parts fit; `run.parts` does"
        )
    if num_parts == 1:
        return TrainingLosses(model, smoothing)
    return LossesInParts(model, smoothing, num_parts=num_parts)

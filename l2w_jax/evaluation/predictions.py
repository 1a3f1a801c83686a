"""A network's answers to the images of a split, reduced on the devices to a few numbers each.

So a million images of a thousand classes fit into memory.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict
from numpy.typing import NDArray

from l2w_jax.data import Source
from l2w_jax.early_exit import rules
from l2w_jax.errors import UserError, told_if_memory_is_short
from l2w_jax.models import MultiExitNetwork
from l2w_jax.models.compiler_options import cpu_compiler_options
from l2w_jax.models.preprocessing import channel_statistics, normalize
from l2w_jax.progress import Progress
from l2w_jax.training.losses import cross_entropy

Arrays = Mapping[str, NDArray[Any]]


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What is kept of a network's answers to N images at K exits, in the order of the data.

    Attributes:
        positions: place of each image in its split, ascending, int32 [N]. Images that could not be
            read are left out.
        labels: true classes, int32 [N].
        losses: cross-entropy in nats, float32 [K, N].
        confidences: largest softmax probability, float32 [K, N].
        predicted: most probable classes, int32 [K, N].
        correct: whether the most probable class is the true one, bool [K, N].
        correct_top5: whether the true class is among the five most probable, bool [K, N].
        log_odds: of the confidences, without their saturation, float32 [K, N]. In an evaluation
            that has only confidences they are computed from these.
        other_scores: by rule, those of `stored_rules` that have no field here, float32 [K, N] each;
            in an evaluation of an earlier version, those that it knew.
        smoothed_losses: the losses with training's label smoothing, which is what the
            weight-prediction network reads, float32 [K, N]; None where training has none.
    """

    positions: NDArray[np.int32]
    labels: NDArray[np.int32]
    losses: NDArray[np.float32]
    confidences: NDArray[np.float32]
    predicted: NDArray[np.int32]
    correct: NDArray[np.bool_]
    correct_top5: NDArray[np.bool_]
    log_odds: NDArray[np.float32] | None = None
    other_scores: Mapping[str, NDArray[np.float32]] = dataclasses.field(default_factory=dict)
    smoothed_losses: NDArray[np.float32] | None = None

    def __post_init__(self):
        if self.log_odds is None:
            odds = rules.log_odds_of_confidences(self.confidences)
            object.__setattr__(self, "log_odds", odds)

    def scores(self, rule: str) -> NDArray[np.float32]:
        """The scores by the rule of that name, float32 [K, N].

        Raises:
            UserError: an evaluation of an earlier version does not have them.
        """
        if rule == "confidence":
            return self.confidences
        if rule == "patience":
            return rules.patience_of_predictions(self.predicted, self.log_odds)
        if rule == "log_odds":
            return self.log_odds
        if rule not in self.other_scores:
            raise UserError(
                f"rule {rule!r}: the run was evaluated by a version that did not know it; evaluate "
                "the run again (python -m l2w_jax.main with its --config and --workdir, "
                "--mode=evaluate)"
            )
        return self.other_scores[rule]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All arrays by the names under which they are stored; a rule's scores by the rule's."""
        arrays: dict[str, NDArray[Any]] = {}
        for name, value in vars(self).items():
            arrays |= value if name == "other_scores" else {name: value}
        return {name: array for name, array in arrays.items() if array is not None}

    @classmethod
    def of_arrays(cls, arrays: Arrays) -> Self:
        """The predictions that have these `arrays()`.

        Raises:
            TypeError: one is missing.
        """
        fields = {field.name for field in dataclasses.fields(cls)}
        return cls(
            **{name: array for name, array in arrays.items() if name in fields},
            other_scores={name: array for name, array in arrays.items() if name not in fields},
        )

    @property
    def top1(self) -> NDArray[np.float64]:
        """Accuracy of each exit in percent [K]."""
        return (100.0 * self.correct).mean(axis=1)


def stored_rules() -> list[str]:
    """Names of the rules whose scores are stored: all but those that other arrays give."""
    return [name for name in rules.RULES if name not in ("confidence", "patience")]


def predict_all(
    config: ConfigDict,
    model: MultiExitNetwork,
    variables: Mapping[str, Any],
    source: Source,
    split: str,
) -> Predictions:
    """The network's answers to every image of a split, with all devices of all processes.

    Each process reads its part of the split in batches that its devices share; padding is
    masked, and the answers are put in order by the images' places in the split. So the result is
    the same for any batch size and any number of devices.

    Args:
        config: its dataset and eval_batch_size (images of all processes together) are used.
        model: the network.
        variables: {"params", "batch_stats"}.
        source: the data.
        split: "test", "holdout" or "train".

    Returns:
        The same in all processes.

    Raises:
        UserError: the split has no images, or an answer is not finite.
        RunFailed: a device's memory does not hold a batch.
    """
    mesh = Mesh(np.array(jax.local_devices()), ("batch",))
    by_image = NamedSharding(mesh, PartitionSpec("batch"))
    on_all = NamedSharding(mesh, PartitionSpec())
    # Through the host: what training returns may lie on the devices of all processes.
    variables = jax.device_put(jax.device_get(dict(variables)), on_all)
    mean, std = channel_statistics(config.dataset.name)
    batch_size = _batch_size(config, source, split, jax.process_count())
    batches = source.evaluation_batches(split, batch_size, jax.process_index(), jax.process_count())
    if jax.process_index() == 0:
        of_all, total = batch_size * jax.process_count(), getattr(source, f"num_{split}")
        batches = Progress(
            lambda count: f"{split}: {min(count * of_all, total):,} of {total:,} images evaluated"
        ).of(batches)

    smoothing = config.optimizer.label_smoothing
    collected: list[Arrays] = []
    running = None
    with told_if_memory_is_short(
        "evaluation: a batch",
        lambda: (
            f"try a --config.dataset.eval_batch_size below {config.dataset.eval_batch_size}, with "
            "which the same command goes on"
        ),
    ):
        for host_batch in batches:
            batch = jax.device_put(_pad(host_batch, mesh.size), by_image)
            answers = _compiled_answers()(
                model, variables, mean, std, batch["image"], batch["label"], smoothing
            )
            answers |= {name: batch[name] for name in ("label", "mask", "index")}
            # Fetching only the batch before keeps the devices busy, and just two batches in memory.
            if running is not None:
                collected.append(jax.device_get(running))
            running = answers
        if running is None:
            raise UserError(
                f"evaluation: the split {split!r} of {config.dataset.name} has no images"
            )
        collected.append(jax.device_get(running))

    rows = {name: np.concatenate([part[name] for part in collected]) for name in collected[0]}
    if jax.process_count() > 1:
        rows = multihost_utils.process_allgather(rows, tiled=True)
    return _predictions(rows, split, getattr(source, f"num_{split}"))


def logits_of(
    config: ConfigDict,
    model: MultiExitNetwork,
    variables: Mapping[str, Any],
    source: Source,
    positions: NDArray[np.integer],
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """The logits themselves of some held-out images, by this process alone.

    Args:
        config: its dataset and eval_batch_size are used.
        model: the network.
        variables: {"params", "batch_stats"}.
        source: the data.
        positions: of the images in their split [n]; those that cannot be read are left out.

    Returns:
        Logits [K, n, C] and labels [n].
    """
    mean, std = channel_statistics(config.dataset.name)
    placed = jax.device_put(variables)
    logits, labels = [], []
    size = _batch_size(config, source, "holdout", 1)
    for batch in source.images_at("holdout", positions, size):
        of_batch = jax.device_get(_logits(model, placed, mean, std, batch["image"]))
        logits.append(of_batch[:, batch["mask"]].astype(np.float32))
        labels.append(batch["label"][batch["mask"]])
    return np.concatenate(logits, axis=1), np.concatenate(labels)


def _batch_size(config: ConfigDict, source: Source, split: str, process_count: int) -> int:
    """Images of one process in an evaluation batch: eval_batch_size, if there are that many.

    It is the same for the held-out and the test images, so that the network is compiled once.
    """
    images = max(source.num_holdout, source.num_test, getattr(source, f"num_{split}"))
    return max(1, min(config.dataset.eval_batch_size // process_count, -(-images // process_count)))


@functools.partial(jax.jit, static_argnames="model")
def _logits(
    model: MultiExitNetwork,
    variables: Mapping[str, Any],
    mean: jax.Array,
    std: jax.Array,
    images: jax.Array,
) -> jax.Array:
    """[K, N, C]."""
    return model.apply(variables, normalize(images, mean, std), train=False)


@functools.cache
def _compiled_answers() -> Callable[..., dict[str, jax.Array]]:
    """`_answers`, compiled once for each network; made late, as its options take a device."""
    static = ("model", "label_smoothing")
    return jax.jit(_answers, static_argnames=static, compiler_options=cpu_compiler_options())


def _answers(
    model: MultiExitNetwork,
    variables: Mapping[str, Any],
    mean: jax.Array,
    std: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    label_smoothing: float,
) -> dict[str, jax.Array]:
    """What `Predictions` keeps, images first: arrays [N, K]."""
    logits = _logits(model, variables, mean, std, images)
    smoothed = {}
    if label_smoothing:
        losses = cross_entropy(logits, labels, label_smoothing)
        smoothed["smoothed_loss"] = losses.astype(jnp.float32)
    return {
        **smoothed,
        "loss": cross_entropy(logits, labels).astype(jnp.float32),
        "confidence": rules.finite_confidence(logits).T,
        **{name: rules.RULES[name](logits).astype(jnp.float32).T for name in stored_rules()},
        "predicted": logits.argmax(axis=-1).astype(jnp.int32).T,
        "rank": _rank_of_label(logits, labels).T,
    }


def _rank_of_label(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """How many classes come before the label, of equals the lower index first: int32 [K, N].

    This needs no sorting: the label is among a network's n best where the rank is below n.
    """
    classes = jnp.arange(logits.shape[-1])
    of_label = jnp.take_along_axis(logits, labels[None, :, None], axis=-1)
    before = (logits > of_label) | ((logits == of_label) & (classes < labels[:, None]))
    return before.sum(axis=-1, dtype=jnp.int32)


def _pad(batch: Arrays, multiple: int) -> dict[str, NDArray[Any]]:
    """The batch, lengthened by masked copies of its last image to a multiple of the devices."""
    missing = -len(batch["mask"]) % multiple
    padded = {
        name: np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) if missing else array
        for name, array in batch.items()
    }
    if missing:
        padded["mask"][-missing:] = False
    return padded


def _predictions(rows: Arrays, split: str, num_images: int) -> Predictions:
    """Drops padding and puts the images, which arrive process by process, in order.

    Raises:
        UserError: no image could be read, or an answer is not finite.
        RuntimeError: an image is missing or counted twice.
    """
    # An image that could not be read comes with a false mask, but it does come.
    complete = np.array_equal(np.unique(rows["index"]), np.arange(num_images))
    rows = {name: array[rows["mask"]] for name, array in rows.items()}
    positions, order = np.unique(rows["index"], return_index=True)
    if not complete or len(positions) < len(rows["index"]):
        raise RuntimeError(f"the batches of split {split!r} do not hold every image exactly once")
    if not len(positions):
        raise UserError(
            f"evaluation: no image of split {split!r} can be used; the lines above name what "
            "is wrong with them"
        )
    finite = np.isfinite(rows["loss"]) & np.isfinite(rows["confidence"])
    if not finite.all():
        exits = np.flatnonzero(~finite.all(axis=0)) + 1
        raise UserError(
            f"evaluation: for {np.count_nonzero(~finite.all(axis=1)):,} of {len(order):,} images "
            f"of split {split!r} the network's answer is not finite (exits {exits.tolist()}); "
            "these parameters cannot be used"
        )
    scores = {name: rows[name][order].T for name in stored_rules()}
    return Predictions(
        positions=positions,
        labels=rows["label"][order],
        losses=rows["loss"][order].T,
        confidences=rows["confidence"][order].T,
        log_odds=scores.pop("log_odds"),
        other_scores=scores,
        predicted=rows["predicted"][order].T,
        correct=rows["rank"][order].T < 1,
        correct_top5=rows["rank"][order].T < 5,
        smoothed_losses=rows["smoothed_loss"][order].T if "smoothed_loss" in rows else None,
    )

"""Evaluation of a trained network: every exit by itself, and with images leaving early.

The network's answers are reduced on the devices to a few numbers per image and exit, so that a
million images of a thousand classes fit into memory.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict
from numpy.typing import NDArray

from l2w_jax import plots
from l2w_jax.data import Source
from l2w_jax.early_exit import exit_shares, find_thresholds, mul_adds_per_exit
from l2w_jax.early_exit.budget import budgeted_curve_from_confidences
from l2w_jax.errors import UserError
from l2w_jax.examples import read_examples
from l2w_jax.files import write_arrays, write_atomically, write_csv, write_json
from l2w_jax.models import MultiExitNetwork, create_network
from l2w_jax.preprocessing import channel_statistics, normalize
from l2w_jax.training.losses import confidences_of_logits, cross_entropy
from l2w_jax.training.state import TrainState
from l2w_jax.training.weighting import create_weighting

Arrays = Mapping[str, NDArray[Any]]

# How many images the learned weights are shown for: more dots would hide one another.
MAX_IMAGES_WEIGHTED = 5000


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
    """

    positions: NDArray[np.int32]
    labels: NDArray[np.int32]
    losses: NDArray[np.float32]
    confidences: NDArray[np.float32]
    predicted: NDArray[np.int32]
    correct: NDArray[np.bool_]
    correct_top5: NDArray[np.bool_]

    @property
    def top1(self) -> NDArray[np.float64]:
        """Accuracy of each exit in percent [K]."""
        return (100.0 * self.correct).mean(axis=1)


def predict_all(
    config: ConfigDict,
    model: MultiExitNetwork,
    variables: Mapping[str, Any],
    source: Source,
    split: str,
) -> Predictions:
    """The network's answers to every image of a split, with all devices of all processes.

    Each process reads its part of the split in batches that its devices share; padding is
    masked, and what comes back is gathered by the images' places in the split. So the result is
    the same for any batch size and any number of devices.

    Args:
        config: its dataset and eval_batch_size (images of all processes together) are used.
        model: the network.
        variables: {"params", "batch_stats"}.
        source: the data.
        split: "test", "holdout" or "train".

    Returns:
        All processes get the same.

    Raises:
        UserError: the split has no images, or an answer is not finite.
    """
    mesh = Mesh(np.array(jax.local_devices()), ("batch",))
    by_image = NamedSharding(mesh, PartitionSpec("batch"))
    on_all = NamedSharding(mesh, PartitionSpec())
    # Through the host: what training returns may lie on the devices of all processes.
    variables = jax.device_put(jax.device_get(dict(variables)), on_all)
    mean, std = channel_statistics(config.dataset.name)
    batches = source.evaluation_batches(
        split,
        max(1, config.dataset.eval_batch_size // jax.process_count()),
        jax.process_index(),
        jax.process_count(),
    )

    collected: list[Arrays] = []
    running = None
    for host_batch in batches:
        batch = jax.device_put(_pad(host_batch, mesh.size), by_image)
        answers = _answers(model, variables, mean, std, batch["image"], batch["label"])
        answers |= {name: batch[name] for name in ("label", "mask", "index")}
        # Fetching the batch before keeps the devices busy and two batches, not all, in memory.
        if running is not None:
            collected.append(jax.device_get(running))
        running = answers
    if running is None:
        raise UserError(f"evaluation: the split {split!r} of {config.dataset.name} has no images")
    collected.append(jax.device_get(running))

    rows = {name: np.concatenate([part[name] for part in collected]) for name in collected[0]}
    if jax.process_count() > 1:
        rows = multihost_utils.process_allgather(rows, tiled=True)
    return _predictions(rows, split, getattr(source, f"num_{split}"))


def evaluate(
    config: ConfigDict, state: TrainState, source: Source, workdir: str | Path
) -> dict[str, Any]:
    """Evaluates a state on the test images and leaves the results in the workdir.

    Written by the first process, each file atomically: anytime.csv (exit, mul_adds, top1, top5,
    loss), budgeted.csv (q, mul_adds, top1, share_1 to share_K), for a long-tailed data set
    shots.csv (`shots_table`), evaluation.json (the same numbers
    and which images they come from), evaluation.npz (`Predictions` of the test images as test_*, of
    those that set the thresholds as thresholds_*; `sample_weights` as weighted_*; test images that
    leave at each exit, when about as many leave at each, as examples_*) and plots/*.png.
    Percentages are 0 to 100, shares 0 to 1, losses in nats.

    Args:
        config: a run's configuration.
        state: its parameters, statistics and weight-prediction network.
        source: the data.
        workdir: the folder of the run.

    Returns:
        What evaluation.json holds.

    Raises:
        UserError: there are no images to set thresholds from, or an answer is not finite.
    """
    thresholds_split = config.dataset.thresholds_from
    if thresholds_split == "holdout" and source.num_holdout == 0:
        raise UserError(
            "dataset.thresholds_from: 'holdout' needs held-out images, but dataset.holdout is 0; "
            "set it, or take thresholds from 'train'"
        )
    model = create_network(config)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    test = predict_all(config, model, variables, source, "test")
    held_out = predict_all(config, model, variables, source, thresholds_split)
    mul_adds = mul_adds_per_exit(model, config.dataset.image_size)

    results = {
        "step": int(state.step),
        "dataset": config.dataset.name,
        "class_names": list(source.class_names),
        "test_images": len(test.labels),
        "thresholds_from": thresholds_split,
        "thresholds_images": len(held_out.labels),
        "anytime": anytime_table(test, mul_adds),
        "budgeted": budgeted_curve_from_confidences(
            held_out.confidences, test.confidences, test.correct, mul_adds
        ),
    }
    if config.dataset.imbalance_factor:
        results["shots"] = shots_table(test, source.train_class_counts)
    weighted = sample_weights(config, model, state, held_out)
    if jax.process_index() == 0:
        even_thresholds = find_thresholds(held_out.confidences, exit_shares(1, model.num_exits))
        examples = read_examples(source, vars(test), even_thresholds)
        groups = {
            "test": vars(test),
            "thresholds": vars(held_out),
            "weighted": weighted,
            "examples": examples,
        }
        _write(Path(workdir), results, groups)
    return results


def anytime_table(
    predictions: Predictions, mul_adds: NDArray[np.floating]
) -> list[dict[str, float]]:
    """One row for each exit: exit (from 1), mul_adds, top1 and top5 in percent, mean loss."""
    return [
        {
            "exit": k + 1,
            "mul_adds": float(mul_adds[k]),
            "top1": float(predictions.top1[k]),
            "top5": float((100.0 * predictions.correct_top5[k]).mean()),
            "loss": float(predictions.losses[k].mean(dtype=np.float64)),
        }
        for k in range(len(predictions.losses))
    ]


def shots_table(
    predictions: Predictions, class_counts: NDArray[np.integer]
) -> list[dict[str, float | None]]:
    """Accuracy of each exit on frequent and on rare classes (Liu et al., CVPR 2019, section 5).

    Args:
        predictions: of the test images.
        class_counts: training images of each class [C].

    Returns:
        One row for each exit: exit (from 1); many, medium and few, top-1 in percent on the classes
        with over 100, 20 to 100 and under 20 training images; None where there are none.
    """
    counts = class_counts[predictions.labels]
    groups = {"many": counts > 100, "medium": (counts >= 20) & (counts <= 100), "few": counts < 20}
    return [
        {"exit": k + 1}
        | {
            name: 100 * float(correct[members].mean()) if members.any() else None
            for name, members in groups.items()
        }
        for k, correct in enumerate(predictions.correct)
    ]


def sample_weights(
    config: ConfigDict, model: MultiExitNetwork, state: TrainState, predictions: Predictions
) -> dict[str, NDArray[np.float32]]:
    """Weights that training with this state would give some of these images, as one batch.

    Args:
        config: a run's configuration.
        model: its network.
        state: with the parameters of the weight-prediction network.
        predictions: of the images, of which at most MAX_IMAGES_WEIGHTED are chosen at random.

    Returns:
        losses and weights of the chosen images, each [n, K]; empty for plain training.
    """
    if config.weighting.kind == "none":
        return {}
    chosen = np.random.default_rng(0).permutation(len(predictions.labels))[:MAX_IMAGES_WEIGHTED]
    losses = predictions.losses[:, chosen].T
    weighting = create_weighting(config.weighting, model, axis_name=None)
    wpn_params = jax.device_get(state.wpn_params)
    weights = weighting(wpn_params, losses, predictions.confidences[:, chosen].T)
    return {"losses": losses, "weights": np.asarray(weights, dtype=np.float32)}


def summary_lines(results: Mapping[str, Any]) -> list[str]:
    """The results for a person to read: the anytime table, and the best of the budgeted curve."""
    lines = ["exit  mul-adds [M]  top-1 [%]  top-5 [%]  loss"]
    for row in results["anytime"]:
        lines.append(
            f"{row['exit']:4d}  {row['mul_adds'] / 1e6:12.2f}  {row['top1']:9.2f}  "
            f"{row['top5']:9.2f}  {row['loss']:.4f}"
        )
    last = results["anytime"][-1]
    best = max(results["budgeted"], key=lambda row: (row["top1"], -row["mul_adds"]))
    lines.append(
        f"images leaving early: up to {best['top1']:.2f}% with {best['mul_adds'] / 1e6:.2f} M "
        f"mul-adds ({100 * best['mul_adds'] / last['mul_adds']:.0f}% of the last exit's), "
        f"thresholds from {results['thresholds_images']} images of "
        f"{results['thresholds_from']!r}"
    )
    return lines


@functools.partial(jax.jit, static_argnames="model")
def _answers(
    model: MultiExitNetwork,
    variables: Mapping[str, Any],
    mean: jax.Array,
    std: jax.Array,
    images: jax.Array,
    labels: jax.Array,
) -> dict[str, jax.Array]:
    """What `Predictions` keeps, images first: arrays [N, K]."""
    logits = model.apply(variables, normalize(images, mean, std), train=False)
    return {
        "loss": cross_entropy(logits, labels).astype(jnp.float32),
        "confidence": confidences_of_logits(logits).astype(jnp.float32),
        "predicted": logits.argmax(axis=-1).astype(jnp.int32).T,
        "rank": _rank_of_label(logits, labels).T,
    }


def _rank_of_label(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """How many classes come before the label, of equals the lower index first: int32 [K, N].

    No sorting: a network is right among its n best where the rank is below n.
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
        UserError: an answer is not finite.
        RuntimeError: an image is missing or counted twice.
    """
    # An image that could not be read comes with a false mask, but it does come.
    complete = np.array_equal(np.unique(rows["index"]), np.arange(num_images))
    rows = {name: array[rows["mask"]] for name, array in rows.items()}
    positions, order = np.unique(rows["index"], return_index=True)
    if not complete or len(positions) < len(rows["index"]):
        raise RuntimeError(f"the batches of split {split!r} do not hold every image exactly once")
    finite = np.isfinite(rows["loss"]) & np.isfinite(rows["confidence"])
    if not finite.all():
        exits = np.flatnonzero(~finite.all(axis=0)) + 1
        raise UserError(
            f"evaluation: for {np.count_nonzero(~finite.all(axis=1))} of {len(order)} images of "
            f"split {split!r} the network's answer is not finite (exits {exits.tolist()}); these "
            "parameters are of no use"
        )
    return Predictions(
        positions=positions,
        labels=rows["label"][order],
        losses=rows["loss"][order].T,
        confidences=rows["confidence"][order].T,
        predicted=rows["predicted"][order].T,
        correct=rows["rank"][order].T < 1,
        correct_top5=rows["rank"][order].T < 5,
    )


def _write(workdir: Path, results: Mapping[str, Any], groups: Mapping[str, Arrays]) -> None:
    write_csv(workdir / "anytime.csv", results["anytime"])
    write_csv(workdir / "budgeted.csv", results["budgeted"])
    if "shots" in results:
        write_csv(workdir / "shots.csv", results["shots"])
    write_arrays(
        workdir / "evaluation.npz",
        {
            f"{group}_{field}": array
            for group, fields in groups.items()
            for field, array in fields.items()
        },
    )
    figures = {
        "accuracy": plots.accuracy_figure(results["anytime"], results["budgeted"]),
        "exits": plots.exit_shares_figure(results["budgeted"]),
    }
    if weighted := groups["weighted"]:
        figures["weights"] = plots.weights_figure(weighted["losses"], weighted["weights"])
    for name, figure in figures.items():
        write_atomically(workdir / "plots" / f"{name}.png", plots.png(figure))
    # Last: whoever finds it finds the others too.
    write_json(workdir / "evaluation.json", results)

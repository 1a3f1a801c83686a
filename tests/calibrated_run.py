"""A run of the tiny network on disk, and by hand who leaves where by its calibrated thresholds."""

import copy
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from tiny_images import all_log_probs, images_of, make_config

from l2w_jax import data, thresholds
from l2w_jax.config import stored
from l2w_jax.data.source import LabelledImages, MemorySource
from l2w_jax.early_exit.budget import first_exits
from l2w_jax.early_exit.predictor import Decisions
from l2w_jax.evaluation import evaluate
from l2w_jax.run import checkpoints, images
from l2w_jax.training import create_train_state

STEP = 7


class CalibratedRun(NamedTuple):
    """A run folder, what it was made of, and what its thresholds.json holds."""

    workdir: Path
    config: ConfigDict
    source: MemorySource
    network: tuple[Any, Any]
    splits: dict[str, LabelledImages]
    chosen: dict[str, Any]

    def put_in_place(self, patch, **dataset):
        """Has commands find the run: JSON has no word for its network, no disk has its data."""
        config = self.config.copy_and_resolve_references()
        config.dataset.update(dataset)
        patch.setattr(stored, "read_config", lambda workdir: config)
        patch.setattr(data, "open_source", lambda config, known_classes: self.source)

    def find_others(self, patch, split):
        """Has commands find other images of a split than the run was trained and evaluated with."""
        others = copy.copy(self.source)
        others.digests = {**self.source.digests, split: "of others"}
        patch.setattr(data, "open_source", lambda config, known_classes: others)

    def scores(self, split):
        """Margins of the calibrated network, by hand: [K, N]."""
        highest = np.sort(self.log_probs(split), axis=-1)
        return highest[..., -1] - highest[..., -2]

    def decisions(self, split):
        """What becomes of the images of a split, by hand."""
        exits = first_exits(self.scores(split), self.chosen["thresholds"])
        log_probs = self.log_probs(split)[exits, np.arange(len(exits))]
        probs = np.asarray(jax.nn.softmax(log_probs))
        return Decisions(probs.argmax(axis=-1), exits, probs.max(axis=-1))

    def log_probs(self, split):
        """Of the calibrated network, by hand, up to what is the same for all classes: [K, N, C]."""
        log_probs = all_log_probs(self.network, self.splits[split].images)
        return log_probs / np.reshape(self.chosen["temperatures"], (-1, 1, 1))


def labelled_images(network, seed, count):
    """Images of which each exit is right about some and wrong about others."""
    unlabelled = images_of(seed, count).images
    rng = np.random.default_rng(seed)
    predicted = all_log_probs(network, unlabelled).argmax(axis=-1)
    by_an_exit = predicted[rng.integers(0, 3, count), np.arange(count)]
    labels = np.where(rng.random(count) < 0.8, by_an_exit, rng.integers(0, 4, count))
    return LabelledImages(unlabelled, labels.astype(np.int32))


def write(workdir, network, patch):
    """Leaves a run as training, evaluation and thresholds --calibrate --rule=margin do."""
    model, variables = network
    config = ConfigDict({**dict(make_config()), "model": model})
    # As many of each: operations are compiled for a number of images.
    splits = {
        split: labelled_images(network, seed, 90)
        for seed, split in enumerate(("train", "holdout", "test"))
    }
    source = MemorySource(config, splits, ("a", "b", "c", "d"))
    source.digests = {split: f"of {split}" for split in splits}
    state = create_train_state(config, jax.random.key(0)).replace(
        step=np.int32(STEP), params=variables["params"], batch_stats=variables["batch_stats"]
    )
    writer = checkpoints.CheckpointWriter(workdir, 1, images.identity(source))
    writer.save(state, score=50.0)
    writer.close()
    evaluate.evaluate(config, state, source, workdir)
    run = CalibratedRun(workdir, config, source, network, splits, {})
    run.put_in_place(patch)
    thresholds.main([f"--workdir={workdir}", "--calibrate", "--rule=margin", "--q=1"])
    return run._replace(chosen=json.loads((workdir / "thresholds.json").read_text()))

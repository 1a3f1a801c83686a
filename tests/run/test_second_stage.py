"""Exits that collaborate start from the best network of an earlier run, and leave it as it is."""

import jax
import numpy as np
import pytest
from pytrees import assert_bit_identical
from small_networks import ConvNetwork

from l2w_jax.config import default_config, stored
from l2w_jax.data.source import LabelledImages, MemorySource
from l2w_jax.errors import UserError
from l2w_jax.run import loop, restore, start


@pytest.fixture(scope="module")
def first_config():
    config = default_config(ConvNetwork())
    config.dataset.update(
        name="digits", image_size=8, batch_size=16, eval_batch_size=16, holdout=16
    )
    config.dataset.augmentation = "none"
    config.weighting.kind = "none"
    config.optimizer.update(epochs=1, learning_rate=0.1)
    config.imta.gradient_equilibrium = True
    return config


@pytest.fixture(scope="module")
def source(first_config):
    generator = np.random.default_rng(0)

    def images(count):
        pixels = generator.integers(0, 256, (count, 8, 8, 3)).astype(np.uint8)
        return LabelledImages(pixels, generator.integers(0, 10, count).astype(np.int32))

    splits = {"train": images(32), "holdout": images(16), "test": images(16)}
    return MemorySource(first_config, splits, tuple("0123456789"))


@pytest.fixture(scope="module")
def first_stage(first_config, source, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("first_stage")
    loop.train(first_config, source, workdir)
    return workdir


@pytest.fixture
def second_config(first_config, first_stage, monkeypatch):
    # A network that is no section of fields has no place in config.json.
    monkeypatch.setattr(stored, "read_config", lambda _: first_config)
    config = first_config.copy_and_resolve_references()
    config.imta.update(collaboration=True, distillation=0.1, checkpoint=str(first_stage))
    return config


def test_second_stage_trains_new_exits_on_the_network_of_the_first(
    first_config, second_config, first_stage, source, tmp_path
):
    trained = restore.restore_best(first_config, first_stage)
    end = loop.train(second_config, source, tmp_path)
    assert int(end.step) == 2
    jax.tree.map(np.testing.assert_array_equal, end.params["net"], trained.params)
    restored = restore.restore_best(second_config, tmp_path)
    assert jax.tree.structure(restored) == jax.tree.structure(end)
    again = loop.train(second_config, source, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, again, end)


@pytest.mark.parametrize("kind", ["none", "frozen"])
def test_a_new_run_starts_from_the_whole_network_of_the_first_stage_whatever_weighs_its_losses(
    kind, first_config, second_config, first_stage, tmp_path, monkeypatch
):
    monkeypatch.setattr(start, "_with_trained_predictor", lambda _, state: state)
    second_config.weighting.kind = kind
    trained = restore.restore_best(first_config, first_stage)
    state = start.create_or_restore(second_config, tmp_path)
    assert_bit_identical(state.params["net"], trained.params)
    assert_bit_identical(state.batch_stats["net"], trained.batch_stats)


def test_folder_without_a_run_is_refused(second_config, source, tmp_path):
    second_config.imta.checkpoint = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"^config\.imta\.checkpoint: .* must be the workdir of"):
        loop.train(second_config, source, tmp_path)


def test_run_with_another_network_is_refused_by_the_first_array_that_differs(
    second_config, source, tmp_path
):
    with second_config.ignore_type():
        second_config.model = ConvNetwork(num_classes=9)
    with pytest.raises(UserError, match=r"^config\.imta\.checkpoint: .* is float32\[10\] there"):
        loop.train(second_config, source, tmp_path)

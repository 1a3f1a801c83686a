"""A run starts from what fits of an earlier one, and says what does not."""

import shutil

import jax
import numpy as np
import pytest
from pytrees import assert_bit_identical
from small_networks import ConvNetwork

from l2w_jax.config import default_config, stored, to_json
from l2w_jax.data import open_source
from l2w_jax.data.source import LabelledImages, MemorySource
from l2w_jax.errors import UserError
from l2w_jax.evaluation.predictions import predict_all
from l2w_jax.run import checkpoints, loop, restore, start
from l2w_jax.training import create_train_state
from l2w_jax.training.state import untrained_state

STEP_ON_DEVICES = loop.step_on_devices


def make_config(num_classes=10, epochs=2):
    config = default_config(ConvNetwork(num_classes=num_classes))
    config.dataset.update(
        name="digits", image_size=16, batch_size=32, eval_batch_size=64, holdout=100
    )
    config.dataset.num_classes = num_classes
    config.dataset.augmentation = "none"
    config.weighting.hidden = 8
    config.optimizer.update(epochs=epochs, learning_rate=0.1)
    return config


def digits_below(num_classes):
    """The digits 0 to num_classes - 1."""
    whole = open_source(make_config())
    splits = {}
    for split in ("train", "holdout", "test"):
        batches = list(whole.evaluation_batches(split, 64))
        images, labels, mask = (
            np.concatenate([batch[name] for batch in batches])
            for name in ("image", "label", "mask")
        )
        chosen = mask & (labels < num_classes)
        splits[split] = LabelledImages(images[chosen], labels[chosen])
    return MemorySource(make_config(num_classes), splits, tuple("0123456789"[:num_classes]))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on the first five digits."""
    workdir = tmp_path_factory.mktemp("trained")
    loop.train(make_config(num_classes=5, epochs=8), digits_below(5), workdir)
    return workdir


@pytest.fixture(scope="module")
def step_on_devices():
    """That of the loop, which compiles once for runs that differ in nothing but their start."""
    steps = {}

    def once(config, total_steps):
        key = config.dataset.num_classes, total_steps
        if key not in steps:
            steps[key] = STEP_ON_DEVICES(config, total_steps)
        return steps[key]

    return once


@pytest.fixture
def config(trained, step_on_devices, monkeypatch):
    monkeypatch.setattr(loop, "step_on_devices", step_on_devices)
    # A network that is no section of fields has no place in config.json.
    first_config = make_config(num_classes=5)
    monkeypatch.setattr(stored, "read_config", lambda _: first_config)
    config = make_config()
    config.init.checkpoint = str(trained)
    return config


def top1(config, state, source):
    answers = predict_all(config, config.model, state.variables, source, "test")
    return answers.top1.max()


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("optimizer.learning_rate", 0.5, "optimizer.learning_rate: 0.8 -> 0.5"),
        ("log.every_steps", 7, "log.every_steps: 20 -> 7"),
        ("dataset.data_dir", "/elsewhere", None),
        ("init.checkpoint", "/elsewhere", None),
    ],
)
def test_processes_with_another_config_are_refused_but_for_paths(field, value, told, monkeypatch):
    config, other = default_config(), default_config()
    other.update_from_flattened_dict({field: value})
    monkeypatch.setattr(start.processes, "of_all", lambda here: [here, here, to_json(other)])
    if told is None:
        start.check_same_config_in_all_processes(config)
    else:
        with pytest.raises(UserError, match=f"process 2 was given .* the same: {told}$"):
            start.check_same_config_in_all_processes(config)


class _OtherProcess:
    """Process 1, which sees a file from its third look on, or never."""

    def __init__(self, monkeypatch, ever):
        self.looks = 0
        self.ever = ever
        monkeypatch.setattr(start.processes, "of_all", lambda here: [here, self.look()])
        monkeypatch.setattr(start.time, "sleep", lambda seconds: None)

    def look(self):
        self.looks += 1
        return self.ever and self.looks > 2


def test_a_folder_that_another_process_sees_late_is_waited_for(tmp_path, monkeypatch):
    (tmp_path / "config.json").touch()
    other = _OtherProcess(monkeypatch, ever=True)
    start.check_seen_by_all_processes(tmp_path)
    assert other.looks == 3


def test_a_folder_that_another_process_does_not_see_is_refused(tmp_path, monkeypatch):
    (tmp_path / "config.json").touch()
    other = _OtherProcess(monkeypatch, ever=False)
    with pytest.raises(UserError, match=r"process 1 does not see .* that all hosts of the run sha"):
        start.check_seen_by_all_processes(tmp_path)
    assert other.looks > 60


def test_fine_tuning_to_twice_the_classes_is_better_than_starting_anew(config, tmp_path, capsys):
    source = digits_below(10)
    tuned = loop.train(config, source, tmp_path / "tuned")
    warning = f"config.init.checkpoint: {config.init.checkpoint} was trained on"
    assert warning in capsys.readouterr().out, "these digits were divided in another way"
    config.init.checkpoint = ""
    anew = loop.train(config, source, tmp_path / "anew")
    assert top1(config, tuned, source) > top1(config, anew, source) + 5


def test_what_fits_is_taken_and_what_does_not_is_said(config, trained, tmp_path, capsys):
    earlier = restore.restore_best(make_config(num_classes=5), trained)
    state = start.create_or_restore(config, tmp_path)
    for part in ("convolutions_0", "convolutions_1"):
        jax.tree.map(np.testing.assert_array_equal, state.params[part], earlier.params[part])
    jax.tree.map(np.testing.assert_array_equal, state.batch_stats, earlier.batch_stats)
    jax.tree.map(np.testing.assert_array_equal, state.wpn_params, earlier.wpn_params)
    assert state.params["heads_0"]["kernel"].shape == (6, 10)
    assert int(state.step) == 0
    said = capsys.readouterr().out
    assert "of another shape: params/heads_0/bias [5] -> [10], params/heads_0/kernel" in said
    assert "\n" not in said.strip()


def test_another_number_of_exits_names_whole_branches():
    there = {"params": {"a": {"k": np.ones(2), "b": np.ones(1)}, "c": {"d": {"k": np.ones(3)}}}}
    here = {"params": {"a": {"k": np.zeros(2), "b": np.zeros(1)}, "e": {"f": {"k": np.zeros(3)}}}}
    merged, differences = start.take_what_fits(there, here)
    np.testing.assert_array_equal(merged["params"]["a"]["k"], 1)
    np.testing.assert_array_equal(merged["params"]["e"]["f"]["k"], 0)
    assert differences == ["new: params/e", "left out: params/c"]


def test_what_is_taken_has_the_precision_of_the_network_that_takes_it():
    there = {"a": np.float32([1, 1.001]), "b": np.float16([1])}
    here = {"a": np.zeros(2, np.float16), "b": np.zeros(1, np.float32)}
    merged, differences = start.take_what_fits(there, here)
    assert (merged["a"].dtype, merged["b"].dtype) == (np.float16, np.float32)
    np.testing.assert_array_equal(merged["a"], np.float16([1, 1.001]))
    assert differences == []


def test_strict_allows_no_difference(config, tmp_path):
    config.init.strict = True
    with pytest.raises(UserError, match=r"^config\.init\.checkpoint: .* must fit exactly, but new"):
        start.create_or_restore(config, tmp_path)


def test_strict_takes_the_same_network(config, trained, tmp_path, capsys):
    same = make_config(num_classes=5)
    same.init.update(checkpoint=str(trained), strict=True)
    start.create_or_restore(same, tmp_path)
    assert "all of it fits" in capsys.readouterr().out


def test_a_network_of_which_nothing_fits_is_refused():
    assert start.take_what_fits({"a": np.ones(2)}, {"b": np.ones(2)})[0] is None


def test_a_folder_without_a_run_is_refused(config, tmp_path):
    config.init.checkpoint = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"^config\.init\.checkpoint: .* must be the workdir of"):
        start.create_or_restore(config, tmp_path)


def test_a_run_whose_folder_a_network_was_imported_into_says_that_it_starts_from_it(
    tmp_path, capsys
):
    config = make_config()
    imported = create_train_state(config, jax.random.key(7))
    writer = checkpoints.CheckpointWriter(tmp_path, config.checkpoint.keep)
    writer.save(imported)
    writer.wait()
    writer.close()
    capsys.readouterr()
    state = start.create_or_restore(config, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, state.params, imported.params)
    said = capsys.readouterr().out
    assert said == f"starts from the network that was imported into {tmp_path}\n"


def test_a_run_that_has_begun_goes_on_from_its_own_checkpoint(config, tmp_path, capsys):
    end = loop.train(config, digits_below(10), tmp_path)
    capsys.readouterr()
    again = start.create_or_restore(config, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, again.params, end.params)
    assert "starts from" not in capsys.readouterr().out


def test_a_run_that_goes_on_needs_the_earlier_one_no_more(config, tmp_path, capsys):
    source = digits_below(10)
    end = loop.train(config, source, tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / str(checkpoints.saved_steps(tmp_path)[-1]))
    config.init.checkpoint = str(tmp_path / "moved")
    capsys.readouterr()
    assert_bit_identical(loop.train(config, source, tmp_path), end)
    assert "config.init.checkpoint" not in capsys.readouterr().out


def test_a_predictor_that_reads_something_else_begins_anew(config, tmp_path, capsys):
    config.weighting.input = "confidence"
    config.init.strict = False
    state = start.create_or_restore(config, tmp_path)
    assert "new: wpn_params" in capsys.readouterr().out
    fresh = untrained_state(config, jax.random.key(config.seed))
    jax.tree.map(np.testing.assert_array_equal, state.wpn_params, fresh.wpn_params)


@pytest.fixture
def trained_run(tmp_path):
    """The folder of a small MSDNet's run with a checkpoint, its configuration and its state."""
    config = default_config()
    config.model.update(num_exits=2, channels=4, growth_rate=4)
    config.weighting.hidden = 6
    state = create_train_state(config, jax.random.key(7))
    folder = tmp_path / "trained"
    folder.mkdir()
    (folder / "config.json").write_text(to_json(config))
    writer = checkpoints.CheckpointWriter(folder, keep=1)
    writer.save(state)
    writer.wait()
    writer.close()
    return folder, config, state


def test_a_frozen_predictor_is_that_of_the_named_run(trained_run, tmp_path, monkeypatch):
    folder, config, trained = trained_run
    monkeypatch.setenv("HOME", str(folder.parent))
    for checkpoint in (str(folder), f"~/{folder.name}"):
        config.weighting.update(kind="frozen", checkpoint=checkpoint)
        state = start.create_or_restore(config, tmp_path / "new")
        assert_bit_identical(state.wpn_params, trained.wpn_params)
        assert jax.tree.leaves(state.wpn_opt_state) == []


def test_a_frozen_predictor_of_another_shape_or_of_no_run_is_refused(trained_run, tmp_path):
    folder, config, _ = trained_run
    config.weighting.update(kind="frozen", checkpoint=str(folder), hidden=5)
    with pytest.raises(UserError, match=r"float32\[6\] there and float32\[5\]"):
        start.create_or_restore(config, tmp_path / "new")
    config.weighting.update(hidden=6, input="confidence")
    with pytest.raises(UserError, match=r"weighting.input: 'confidence' .* must be 'loss', which"):
        start.create_or_restore(config, tmp_path / "new")
    config.weighting.checkpoint = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match="must be the workdir of a run that has a checkpoint"):
        start.create_or_restore(config, tmp_path / "new")

"""A checkpoint is either exactly what was saved, or it is not used and the run says so."""

import os
import re
import resource
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct
from programs import PATIENCE

from l2w_jax.errors import RunFailed, RunInterrupted, UserError
from l2w_jax.run import checkpoints


@struct.dataclass
class State:
    """As varied as a training state: nested, two float types, an integer, an empty branch."""

    step: Any
    params: Any
    opt_state: Any
    wpn_params: Any


def make_state(step, seed=0, width=300):
    params = {
        "conv": {"kernel": jax.random.normal(jax.random.key(seed + step), (50, width))},
        "dense": {"bias": jnp.full((7,), step, jnp.bfloat16)},
    }
    optimizer = optax.chain(
        optax.add_decayed_weights(1e-4), optax.sgd(optax.constant_schedule(0.1), momentum=0.9)
    )
    return State(jnp.int32(step), params, optimizer.init(params), {})


def save(workdir, scores, keep=3):
    writer = checkpoints.CheckpointWriter(workdir, keep)
    for step, score in scores.items():
        writer.save(make_state(step), score)
    writer.wait()
    writer.close()


def steps_in(folder):
    return sorted(int(path.name) for path in folder.iterdir())


def assert_same(restored, state):
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


@pytest.fixture(scope="module")
def saved_run(tmp_path_factory):
    """A run folder with good checkpoints of steps 10, 20 and 30; copy it before harming it."""
    workdir = tmp_path_factory.mktemp("saved")
    save(workdir, {10: 0.5, 20: 0.9, 30: 0.7})
    return workdir


@pytest.fixture
def run_copy(saved_run, tmp_path):
    return shutil.copytree(saved_run, tmp_path / "run")


def test_restores_what_was_saved(saved_run):
    assert_same(checkpoints.restore_newest(saved_run, make_state(0)), make_state(30))


def test_evaluation_takes_the_best(saved_run):
    assert_same(checkpoints.restore_highest_scored(saved_run, make_state(0)), make_state(20))


def test_nothing_saved_is_no_state(tmp_path):
    assert not checkpoints.has_checkpoint(tmp_path)
    assert checkpoints.restore_newest(tmp_path, make_state(0)) is None
    assert checkpoints.restore_highest_scored(tmp_path, make_state(0)) is None


def test_a_relative_folder_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(Path("run"), {10: None})
    assert_same(checkpoints.restore_newest(Path("run"), make_state(0)), make_state(10))


def test_saving_survives_donation_of_the_state(tmp_path):
    writer = checkpoints.CheckpointWriter(tmp_path, 3)
    state = make_state(1)
    expected = jax.tree.map(np.array, state)
    writer.save(state)
    jax.tree.map(lambda array: array.delete(), state)
    writer.wait()
    writer.close()
    assert_same(checkpoints.restore_newest(tmp_path, make_state(0)), expected)


def test_keeps_the_newest_and_the_best_over_a_restart(tmp_path):
    save(tmp_path, {10: 0.9, 20: 0.5, 30: 0.6, 40: None}, keep=2)
    assert steps_in(tmp_path / "checkpoints") == [10, 30, 40]
    save(tmp_path, {50: 0.7, 60: 0.9}, keep=2)
    assert steps_in(tmp_path / "checkpoints") == [50, 60], "the newer of two best ones stays"
    save(tmp_path, {70: 0.2, 80: 0.3}, keep=2)
    assert steps_in(tmp_path / "checkpoints") == [60, 70, 80]


def test_one_that_may_be_the_best_is_kept_and_told_once(run_copy, warnings):
    record = run_copy / "checkpoints" / "20" / "record"
    record.rename(run_copy / "hidden")
    writer = checkpoints.CheckpointWriter(run_copy, keep=1)
    assert len(warnings) == 1
    assert "The checkpoint of step 20 is kept, for it may be the best: its record" in warnings[0]
    (run_copy / "hidden").rename(record)
    for step in (40, 50):
        writer.save(make_state(step))
    writer.close()
    assert steps_in(run_copy / "checkpoints") == [20, 30, 50]
    save(run_copy, {60: None}, keep=1)
    assert steps_in(run_copy / "checkpoints") == [20, 60]
    assert len(warnings) == 1


def flip_one_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def largest_file(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=os.path.getsize)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty_folder(folder):
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGE = {
    "one byte flipped": lambda step: flip_one_byte(largest_file(step / "state")),
    "truncated": lambda step: truncate(largest_file(step / "state")),
    "file emptied": lambda step: largest_file(step / "state").write_bytes(b""),
    "file deleted": lambda step: largest_file(step / "state").unlink(),
    "state deleted": lambda step: shutil.rmtree(step / "state"),
    "step emptied": empty_folder,
    "record deleted": lambda step: shutil.rmtree(step / "record"),
    "record flipped": lambda step: flip_one_byte(step / "record" / "metadata"),
    "record truncated": lambda step: truncate(step / "record" / "metadata"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_and_replaced(run_copy, warnings, damage):
    DAMAGE[damage](run_copy / "checkpoints" / "30")
    assert_same(checkpoints.restore_newest(run_copy, make_state(0)), make_state(20))
    assert len(warnings) == 1
    assert "step 30" in warnings[0]
    if damage == "one byte flipped":
        assert re.search("(params/conv|opt_state/.*)/kernel", warnings[0]), "names the array"
    assert steps_in(run_copy / "damaged_checkpoints") == [30]
    save(run_copy, {30: 0.7})
    assert_same(checkpoints.restore_newest(run_copy, make_state(0)), make_state(30))


def test_a_step_that_is_damaged_twice_is_put_aside_twice(run_copy, warnings):
    for _ in range(2):
        DAMAGE["one byte flipped"](run_copy / "checkpoints" / "30")
        assert_same(checkpoints.restore_newest(run_copy, make_state(0)), make_state(20))
        save(run_copy, {30: 0.7})
    assert steps_in(run_copy / "damaged_checkpoints") == [30]
    assert len(warnings) == 2


@pytest.mark.parametrize("damage", ["one byte flipped", "record deleted"])
def test_evaluation_passes_over_a_damaged_best_and_leaves_it(run_copy, warnings, damage):
    DAMAGE[damage](run_copy / "checkpoints" / "20")
    assert_same(checkpoints.restore_highest_scored(run_copy, make_state(0)), make_state(30))
    assert len(warnings) == 1
    assert "step 20" in warnings[0]
    assert steps_in(run_copy / "checkpoints") == [10, 20, 30]


def test_no_flipped_byte_anywhere_goes_unnoticed(saved_run, tmp_path):
    """Of every file, one byte: what is restored is right, whichever step it comes from."""
    damaged = saved_run / "checkpoints" / "30"
    files = sorted(path.relative_to(damaged) for path in damaged.rglob("*") if path.is_file())
    assert len(files) > 5
    for index, file in enumerate(files):
        workdir = shutil.copytree(saved_run, tmp_path / str(index))
        flip_one_byte(workdir / "checkpoints" / "30" / file)
        restored = checkpoints.restore_newest(workdir, make_state(0))
        assert_same(restored, make_state(int(restored.step)))


def test_good_checkpoints_are_not_told_damaged_where_their_path_is_not_utf_8(saved_run, tmp_path):
    workdir = shutil.copytree(saved_run, tmp_path / os.fsdecode(b"lat\xfcn"))
    template = make_state(0)
    for use in (
        lambda: checkpoints.restore_highest_scored(workdir, template),
        lambda: checkpoints.restore_newest(workdir, template),
        lambda: checkpoints.CheckpointWriter(workdir, keep=1),
    ):
        with pytest.raises(UserError, match=r"must be UTF-8; rename the folder"):
            use()
    assert steps_in(workdir / "checkpoints") == [10, 20, 30]


def test_all_checkpoints_damaged_is_an_error(run_copy):
    for step in (10, 20, 30):
        DAMAGE["one byte flipped"](run_copy / "checkpoints" / str(step))
    for restore in (checkpoints.restore_newest, checkpoints.restore_highest_scored):
        with pytest.raises(UserError, match=r"every checkpoint is damaged.*step 10.*--workdir"):
            restore(run_copy, make_state(0))
    assert steps_in(run_copy / "checkpoints") == [10, 20, 30], "nothing is thrown away"


@pytest.mark.parametrize(
    "restore", [checkpoints.restore_newest, checkpoints.restore_highest_scored]
)
@pytest.mark.parametrize(
    ("damage", "of_another_process", "told"),
    [
        (None, "its record cannot be read", "process 1 cannot use it: its record cannot be read; "),
        ("step emptied", "", "process 0 cannot use it: its record cannot be read (FileNotFound"),
    ],
)
def test_what_another_process_reads_well_is_not_taken_for_damaged(
    restore, damage, of_another_process, told, run_copy, warnings, monkeypatch
):
    for step in (10, 20, 30):
        if damage:
            DAMAGE[damage](run_copy / "checkpoints" / str(step))

    def of_both(value):
        return [value, value if isinstance(value, list) else of_another_process]

    monkeypatch.setattr(checkpoints.processes, "of_all", of_both)
    with pytest.raises(RunFailed) as failure:
        restore(run_copy, make_state(0))
    assert told in str(failure.value)
    assert "the same command goes on from there" in str(failure.value)
    assert "damaged" not in str(failure.value)
    assert not warnings
    assert steps_in(run_copy / "checkpoints") == [10, 20, 30]
    assert not (run_copy / "damaged_checkpoints").exists()


@pytest.mark.parametrize(
    "restore", [checkpoints.restore_newest, checkpoints.restore_highest_scored]
)
def test_all_processes_try_the_checkpoints_in_the_order_of_the_first(
    restore, run_copy, monkeypatch
):
    def of_both(value):
        return [[10, 20] if isinstance(value, list) else value, value]

    monkeypatch.setattr(checkpoints.processes, "of_all", of_both)
    assert_same(restore(run_copy, make_state(0)), make_state(10))


def test_a_checkpoint_of_another_network_is_refused(saved_run):
    with pytest.raises(UserError, match=r"kernel is float32\[50, 300\] there and float32\[50, 8\]"):
        checkpoints.restore_newest(saved_run, make_state(0, width=8))
    with pytest.raises(UserError, match="or other code: wpn_params/bias is missing there"):
        checkpoints.restore_newest(
            saved_run, make_state(0).replace(wpn_params={"bias": jnp.zeros(3)})
        )


def test_a_state_that_is_not_finite_is_not_saved(run_copy):
    writer = checkpoints.CheckpointWriter(run_copy, 3)
    state = make_state(40)
    state.params["conv"]["kernel"] = state.params["conv"]["kernel"].at[3, 4].set(jnp.nan)
    with pytest.raises(RunFailed, match=r"step 40: params/conv/kernel is not finite.*of step 30"):
        writer.save(state)
    writer.close()
    assert steps_in(run_copy / "checkpoints") == [10, 20, 30]


# Of the other arrays that Orbax was writing when it gave up on the first.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_save_that_fails_says_so_and_leaves_the_last_good_one(run_copy):
    """A file size limit stands for the full disk: writing fails half way."""
    writer = checkpoints.CheckpointWriter(run_copy, 3)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        writer.save(make_state(40))
        # The run goes on meanwhile, and looks now and then.
        deadline = time.monotonic() + PATIENCE
        with pytest.raises(RunFailed, match=r"of step 40 could not be saved.*of step 30"):
            while time.monotonic() < deadline:
                writer.check()
                time.sleep(0.01)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    writer.close()
    assert_same(checkpoints.restore_newest(run_copy, make_state(0)), make_state(30))
    save(run_copy, {40: 0.1})
    assert_same(checkpoints.restore_newest(run_copy, make_state(0)), make_state(40))


def test_a_save_that_failed_is_told_under_its_own_step_by_the_next_one(run_copy, monkeypatch):
    writer = checkpoints.CheckpointWriter(run_copy, 3)
    writer.save(make_state(40))
    wait_until_finished = writer._manager.wait_until_finished
    failures = [OSError(28, "No space left on device")]

    def wait():
        if failures:
            raise failures.pop()
        wait_until_finished()

    monkeypatch.setattr(writer._manager, "wait_until_finished", wait)
    with pytest.raises(RunFailed, match=r"^the checkpoint of step 40 could not be saved \(OSError"):
        writer.save(make_state(50))
    writer.close()


def test_a_look_at_a_save_that_is_under_way_does_not_wait_for_it(run_copy, monkeypatch):
    writer = checkpoints.CheckpointWriter(run_copy, 3)
    with monkeypatch.context() as patch:
        patch.setattr(writer._manager, "is_saving_in_progress", lambda: True)
        patch.setattr(writer._manager, "wait_until_finished", pytest.fail)
        writer.check()
    writer.close()


@pytest.mark.parametrize("waits", ["wait", "resume_advice"])
def test_what_stops_the_run_while_it_saves_is_not_taken_for_a_failed_save(
    run_copy, monkeypatch, waits
):
    writer = checkpoints.CheckpointWriter(run_copy, 3)
    interruptions = [RunInterrupted("stopped at once")]

    def wait_until_finished():
        if interruptions:
            raise interruptions.pop()

    monkeypatch.setattr(writer._manager, "wait_until_finished", wait_until_finished)
    with pytest.raises(RunInterrupted, match=r"^stopped at once$"):
        getattr(writer, waits)()
    writer.close()


def test_a_checkpoint_says_how_many_images_it_was_trained_on(run_copy):
    images = {"num_train": 45, "train_digest": "of them", "class_names": ["cat", "dog"]}
    assert checkpoints.trained_on(run_copy, 30) == dict.fromkeys(images)
    writer = checkpoints.CheckpointWriter(run_copy, 3, images)
    writer.save(make_state(40))
    writer.wait()
    writer.close()
    assert checkpoints.trained_on(run_copy, 40) == images
    assert_same(checkpoints.restore_newest(run_copy, make_state(0)), make_state(40))

"""What the system does not let be read now is told apart from what is damaged."""

import gc
import os
import shutil

import numpy as np
import orbax.checkpoint as ocp
import pytest
from tiny_restore import TinyState, make_state
from unreadable_files import let_reads_fail

from l2w_jax.run.checkpoints import CheckpointWriter
from l2w_jax.run.saved_state import DamagedCheckpoint, UnreadableCheckpoint, read_record, read_state


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("saved")
    writer = CheckpointWriter(workdir, keep=1)
    writer.save(make_state(10))
    writer.close()
    return workdir / "checkpoints" / "10"


@pytest.fixture
def step(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "10")


def test_reads_what_was_saved(step):
    assert (read_state(step, make_state(0)).kernel == make_state(10).kernel).all()
    assert read_record(step)["score"] is None


def test_a_file_that_fails_to_be_read_is_named_and_not_called_damaged(saved, tmp_path):
    files = [path.relative_to(saved) for path in saved.rglob("*") if path.is_file()]
    told = set()
    for index, file in enumerate(files):
        step = shutil.copytree(saved, tmp_path / str(index))
        let_reads_fail(step / file)
        try:
            read_state(step, make_state(0))
        except UnreadableCheckpoint as error:
            assert str(error) == f"{step / file} cannot be read now (Input/output error)"
            told.add(file.parts[0])
    assert {"record", "state"} <= told, "not all files are needed, but some of each are"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("path", [".", "record", "state", "record/metadata", "state/_METADATA"])
def test_what_the_user_may_not_read_is_named_and_not_called_damaged(step, path):
    mode = (step / path).stat().st_mode
    (step / path).chmod(0)
    try:
        with pytest.raises(UnreadableCheckpoint, match=r"cannot be read now \(Permission denied"):
            read_state(step, make_state(0))
    finally:
        (step / path).chmod(mode)
    assert read_state(step, make_state(0)).step == 10


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (MemoryError(), "Cannot allocate memory"),
        (OSError(24, "Too many open files"), "Too many open files"),
        (ValueError("UNKNOWN: Failed to open: Stale [os_error_code='116']"), "Stale file handle"),
    ],
)
def test_what_fails_by_the_system_and_only_for_orbax_is_not_called_damaged(
    failure, reason, step, monkeypatch
):
    def restore(*arguments, **keywords):
        raise failure

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", restore)
    with pytest.raises(UnreadableCheckpoint) as told:
        read_state(step, make_state(0))
    assert str(told.value) == f"{step / 'state'} cannot be read now ({reason})"


def test_where_no_file_can_be_opened_any_more_nothing_is_called_damaged(step, monkeypatch):
    """Neither by Orbax, whatever it makes of that, nor plainly."""

    def restore(*arguments, **keywords):
        raise ValueError("NOT_FOUND")

    def listdir(path):
        raise OSError(24, os.strerror(24), path)

    monkeypatch.setattr(ocp.Checkpointer, "restore", restore)
    monkeypatch.setattr(os, "listdir", listdir)
    with pytest.raises(UnreadableCheckpoint, match=rf"^{step} cannot be .*Too many open files\)$"):
        read_record(step)


def damage_record(step):
    (step / "record" / "metadata").write_text("{")


def lose_record(step):
    (step / "record" / "metadata").unlink()


def lead_nowhere(step):
    lose_record(step)
    (step / "record" / "metadata").symlink_to(step / "nowhere")


def make_record_a_folder(step):
    lose_record(step)
    (step / "record" / "metadata").mkdir()


def make_state_a_file(step):
    shutil.rmtree(step / "state")
    (step / "state").write_text("")


def lose_all(step):
    shutil.rmtree(step)


@pytest.mark.parametrize(
    "damage",
    [damage_record, lose_record, lead_nowhere, make_record_a_folder, make_state_a_file, lose_all],
)
def test_what_can_be_read_but_is_not_what_was_saved_is_damaged(step, damage):
    damage(step)
    with pytest.raises(DamagedCheckpoint):
        read_state(step, make_state(0))


# Else what other threads print as their last words becomes a warning of pytest's.
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_nothing_is_printed_where_many_arrays_are_damaged(tmp_path, capfd, caplog):
    rng = np.random.default_rng(0)
    state = {str(index): rng.random((64, 64), dtype=np.float32) for index in range(60)}
    writer = CheckpointWriter(tmp_path, keep=1)
    writer.save(TinyState(np.int32(1), state))
    writer.close()
    step = tmp_path / "checkpoints" / "1"
    files = [path for path in (step / "state").rglob("*") if path.is_file()]
    max(files, key=os.path.getsize).write_bytes(b"")
    caplog.clear()
    for _ in range(10):
        with pytest.raises(DamagedCheckpoint):
            read_state(step, TinyState(np.int32(0), state))
    gc.collect()
    assert caplog.text == ""
    assert capfd.readouterr() == ("", "")


def test_damage_is_told_without_a_wait_for_who_writes_into_a_pipe(step):
    damage_record(step)
    os.mkfifo(step / "state" / "pipe")
    with pytest.raises(DamagedCheckpoint):
        read_state(step, make_state(0))

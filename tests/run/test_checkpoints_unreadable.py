"""A checkpoint that cannot be read at the moment is waited for: no run goes on without it."""

import pytest
from tiny_restore import make_state
from unreadable_files import let_reads_fail

from l2w_jax.errors import RunFailed
from l2w_jax.run import checkpoints


@pytest.fixture
def workdir(tmp_path):
    """A run folder with checkpoints of steps 10, 20 and 30, of which 20 is the best."""
    writer = checkpoints.CheckpointWriter(tmp_path, keep=3)
    for step, score in {10: 0.5, 20: 0.9, 30: 0.7}.items():
        writer.save(make_state(step), score)
    writer.close()
    return tmp_path


NEEDED = [
    (checkpoints.restore_newest, "30/record/metadata"),
    (checkpoints.restore_newest, "30/state/_METADATA"),
    (checkpoints.restore_highest_scored, "20/state/_METADATA"),
    # What may be the best is needed to tell which is.
    (checkpoints.restore_highest_scored, "10/record/metadata"),
]


@pytest.mark.parametrize(("restore", "file"), NEEDED)
def test_what_cannot_be_read_now_stops_the_run_and_stays_for_it_to_go_on(
    restore, file, workdir, warnings
):
    path = workdir / "checkpoints" / file
    content = path.read_bytes()
    let_reads_fail(path)
    with pytest.raises(RunFailed) as failure:
        restore(workdir, make_state(0))
    assert str(failure.value) == (
        f"{workdir / 'checkpoints' / file.partition('/')[0]}: {path} cannot be read now "
        "(Input/output error); nothing was moved: once it can be read, the same command goes on "
        "from there"
    )
    assert not warnings
    assert checkpoints.saved_steps(workdir) == [10, 20, 30]
    path.unlink()
    path.write_bytes(content)
    step = 30 if restore is checkpoints.restore_newest else 20
    assert restore(workdir, make_state(0)).step == step


@pytest.mark.parametrize("is_damaged_here", [True, False])
def test_what_one_process_cannot_read_now_is_damaged_for_none(
    is_damaged_here, workdir, warnings, monkeypatch
):
    record = workdir / "checkpoints" / "30" / "record" / "metadata"
    if is_damaged_here:
        record.write_text("{")
    else:
        let_reads_fail(record)

    def of_both(value):
        there = {bool: not value, str: "what the other says"}
        return [value, there.get(type(value), value)]

    monkeypatch.setattr(checkpoints.processes, "of_all", of_both)
    with pytest.raises(RunFailed, match=r"; what the other says; nothing was moved: once it can"):
        checkpoints.restore_newest(workdir, make_state(0))
    assert not warnings
    assert checkpoints.saved_steps(workdir) == [10, 20, 30]


def test_what_one_was_trained_on_is_not_unknown_where_it_cannot_be_read_now(workdir):
    let_reads_fail(workdir / "checkpoints" / "30" / "record" / "metadata")
    with pytest.raises(RunFailed, match=r"record/metadata cannot be read now .Input/output error"):
        checkpoints.trained_on(workdir, 30)


def test_a_run_that_fails_says_so_too_where_its_checkpoints_cannot_be_listed(workdir, monkeypatch):
    writer = checkpoints.CheckpointWriter(workdir, keep=3)

    def saved_steps(folder):
        raise RunFailed(f"{folder}: cannot be listed now")

    monkeypatch.setattr(checkpoints, "saved_steps", saved_steps)
    assert writer.resume_advice() == f"{workdir}: cannot be listed now"
    writer.close()

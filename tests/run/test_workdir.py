"""A run folder is used by one configuration and one process, or the user hears why not."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from programs import ENVIRONMENT

from l2w_jax.config import default_config, to_json
from l2w_jax.errors import RunFailed, UserError
from l2w_jax.run import workdir as run_folder


def write_run(config, folder):
    """What a run leaves at its first checkpoint."""
    (folder / "config.json").write_text(to_json(config))
    (folder / "checkpoints" / "5").mkdir(parents=True)


def test_a_second_run_is_refused_until_the_first_is_gone(tmp_path):
    with subprocess.Popen(
        [sys.executable, Path(__file__).with_name("hold_the_folder.py"), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(UserError, match=f"in use by another run.*{holder.pid}"),
            run_folder.exclusive_use(default_config(), tmp_path),
        ):
            pass
        holder.send_signal(signal.SIGKILL)
    with run_folder.exclusive_use(default_config(), tmp_path):
        pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_a_run_goes_on_with_one_warning(number, tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with run_folder.exclusive_use(default_config(), tmp_path):
        assert (tmp_path / "config.json").exists()
    (warning,) = caplog.messages
    assert str(tmp_path) in warning
    assert os.strerror(number) in warning
    assert "no second run" in warning


def test_the_config_is_written_once(tmp_path):
    config = default_config()
    with run_folder.exclusive_use(config, tmp_path / "new" / "run"):
        written = (tmp_path / "new" / "run" / "config.json").read_text()
        assert written == to_json(config)
        (tmp_path / "new" / "run" / "checkpoints" / "5").mkdir(parents=True)
    config.log.every_steps += 1
    with run_folder.exclusive_use(config, tmp_path / "new" / "run"):
        assert (tmp_path / "new" / "run" / "config.json").read_text() == written


def test_another_config_is_refused_with_the_fields_that_differ(tmp_path):
    config = default_config()
    write_run(config, tmp_path)
    run_folder.check(config, tmp_path)
    config.weighting.q += 0.25
    config.optimizer.epochs += 1
    with pytest.raises(UserError, match=r"optimizer.epochs: 300 -> 301, weighting.q: 0.75 -> 1.0"):
        run_folder.check(config, tmp_path)


def test_another_config_is_refused_also_where_it_came_after_the_first_look(tmp_path):
    config = default_config()
    run_folder.check(config, tmp_path)
    with run_folder.exclusive_use(default_config(), tmp_path):
        write_run(default_config(), tmp_path)
    config.seed += 1
    with (
        pytest.raises(UserError, match="seed: 0 -> 1"),
        run_folder.exclusive_use(config, tmp_path),
    ):
        pass


@pytest.mark.parametrize("kept", ["checkpoints/5/", "evaluation.json"])
def test_a_folder_belongs_to_a_run_by_its_checkpoints_or_its_evaluation(kept, tmp_path):
    """Checkpoints may be deleted afterwards to save space."""
    (tmp_path / "config.json").write_text(to_json(default_config()))
    path = tmp_path / kept
    path.parent.mkdir(exist_ok=True)
    path.mkdir() if kept.endswith("/") else path.touch()
    config = default_config()
    config.seed += 1
    with pytest.raises(UserError, match="belongs to a run"):
        run_folder.check(config, tmp_path)


def test_a_run_that_was_killed_before_its_first_checkpoint_leaves_its_folder(tmp_path):
    """Nobody could take config.json away there: the mended command does not stumble over it."""
    (tmp_path / "config.json").write_text(to_json(default_config()))
    (tmp_path / "checkpoints").mkdir()
    config = default_config()
    config.seed += 1
    run_folder.check(config, tmp_path)
    with run_folder.exclusive_use(config, tmp_path):
        assert (tmp_path / "config.json").read_text() == to_json(config)


def test_what_is_no_folder_of_a_step_is_no_checkpoint(tmp_path):
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    (tmp_path / "checkpoints" / "²").mkdir()
    (tmp_path / "checkpoints" / "7").touch()
    assert run_folder.saved_steps(tmp_path) == [5]


def test_checkpoints_that_cannot_be_listed_are_not_taken_for_none(tmp_path, monkeypatch):
    write_run(default_config(), tmp_path)

    def scandir(folder):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)

    monkeypatch.setattr(run_folder.os, "scandir", scandir)
    with pytest.raises(RunFailed, match=r"checkpoints: cannot be listed now \(Permission denied\)"):
        run_folder.check(default_config(), tmp_path)


def test_a_longer_run_is_shown_how_to_start_from_this_one(tmp_path):
    config = default_config()
    write_run(config, tmp_path)
    config.optimizer.epochs += 1
    with pytest.raises(UserError, match=rf"to train longer, .*init\.checkpoint={tmp_path} "):
        run_folder.check(config, tmp_path)


def test_what_changes_no_number_may_change(tmp_path):
    config = default_config()
    write_run(config, tmp_path)
    config.log.profile = True
    config.checkpoint.keep += 1
    config.dataset.data_dir = "/elsewhere"
    config.dataset.eval_batch_size *= 2
    config.dataset.thresholds_from = "train"
    run_folder.check(config, tmp_path)


@pytest.mark.parametrize("section", ["init", "weighting", "imta"])
def test_an_earlier_run_may_be_called_from_another_folder_and_be_moved(
    section, tmp_path, monkeypatch
):
    """Relative names count from where a command runs, and a run with a checkpoint reads none."""
    for name in ("runs/a", "runs/b", "runs/c", "other"):
        (tmp_path / name).mkdir(parents=True)
    config = default_config()

    def check(earlier):
        config[section].checkpoint = earlier
        run_folder.check(config, tmp_path / "runs" / "b")

    monkeypatch.chdir(tmp_path)
    config[section].checkpoint = "runs/a"
    write_run(config, tmp_path / "runs" / "b")
    check("./runs/a/")
    check(str(tmp_path / "runs" / "a"))
    for another in ("runs/c", "runs/misspelt", ""):
        with pytest.raises(UserError, match=rf"{section}\.checkpoint: 'runs/a' -> '{another}'"):
            check(another)
    monkeypatch.chdir(tmp_path / "other")
    check("../runs/a")
    (tmp_path / "runs" / "a").rename(tmp_path / "other" / "a")
    check("a")
    with pytest.raises(UserError, match=f"{section}.checkpoint: 'runs/a' -> ''"):
        check("")


def test_without_a_checkpoint_the_earlier_run_is_read_and_must_be_the_same(tmp_path):
    config = default_config()
    config.init.checkpoint = str(tmp_path / "moved")
    (tmp_path / "config.json").write_text(to_json(config))
    (tmp_path / "evaluation.json").touch()
    config.init.checkpoint = str(tmp_path)
    with pytest.raises(UserError, match=r"init\.checkpoint: "):
        run_folder.check(config, tmp_path)


def test_a_file_is_refused(tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        run_folder.check(default_config(), path)
    with (
        pytest.raises(UserError, match="cannot be written to"),
        run_folder.exclusive_use(default_config(), path / "below"),
    ):
        pass
    assert path.read_text() == "mine"


def test_a_path_that_is_not_utf_8_is_refused_since_no_checkpoint_could_be_there(
    tmp_path, monkeypatch
):
    latin = tmp_path / os.fsdecode(b"lat\xfcn")
    latin.mkdir()
    with pytest.raises(UserError, match=r"^--workdir=.*: the path .*lat\\udcfcn' must be UTF-8"):
        run_folder.check(default_config(), latin)
    monkeypatch.chdir(latin)
    with pytest.raises(UserError, match=r"^--workdir=run: .*lat\\udcfcn/run' must be UTF-8"):
        run_folder.check(default_config(), Path("run"))
    run_folder.check(default_config(), tmp_path / "latün")


def test_checkpoints_of_an_unknown_run_are_refused(tmp_path):
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    with pytest.raises(UserError, match=r"what a run left, but not its config\.json"):
        run_folder.check(default_config(), tmp_path)


def test_a_run_that_fails_before_its_first_checkpoint_leaves_its_folder_to_any_other(tmp_path):
    config = default_config()
    config.init.checkpoint = "misspelt"
    with pytest.raises(UserError, match="not there"), run_folder.exclusive_use(config, tmp_path):
        raise UserError("config.init.checkpoint: not there")
    with run_folder.exclusive_use(default_config(), tmp_path):
        write_run(default_config(), tmp_path)
    # Now it belongs to a run.
    with pytest.raises(UserError, match="belongs to a run"):
        run_folder.check(config, tmp_path)


def test_parts_that_were_found_count_where_there_is_a_checkpoint(tmp_path):
    found, asked = default_config(), default_config()
    found.optimizer.accumulation, asked.optimizer.accumulation = 4, 0
    (tmp_path / "config.json").write_text(to_json(found))
    assert run_folder.with_parts_found(asked, tmp_path).optimizer.accumulation == 0
    write_run(found, tmp_path)
    assert run_folder.with_parts_found(asked, tmp_path).optimizer.accumulation == 4

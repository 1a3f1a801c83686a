"""What the command line answers to every mistake: one clear line, status 2, nothing written."""

import io
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
from image_folders import write_split
from programs import ENVIRONMENT, PATIENCE, left_unread

from l2w_jax import main
from l2w_jax.config import from_json
from l2w_jax.data import open_source
from l2w_jax.errors import UserError
from l2w_jax.evaluation import evaluate
from l2w_jax.run import checkpoints, images, log, start
from l2w_jax.run import workdir as run_folder
from l2w_jax.training import create_train_state

ROOT = Path(__file__).parents[1]
DIGITS = str(ROOT / "configs" / "digits_msdnet.py")


SMALL = ("--config.model.num_exits=2", "--config.model.channels=4", "--config.model.growth_rate=2")


def run_main(*arguments):
    return main.main(["main", *arguments])


@pytest.fixture(autouse=True)
def _fresh_config_module(monkeypatch):
    """A second configuration file would be executed in the module of the first."""
    monkeypatch.delitem(sys.modules, "config_config", raising=False)


@pytest.fixture(scope="module", autouse=True)
def _compiled_programs(tmp_path_factory):
    """Neither are the user's found nor does another process write them meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        yield


@pytest.fixture
def workdir(tmp_path):
    return tmp_path / "run"


MISTAKES = {
    "no config": ([], r"--config=configs/NAME.py is required"),
    "empty config": (["--config="], r"^--config=: must not be empty$"),
    "empty workdir": (
        [f"--config={DIGITS}", "--workdir="],
        r"^--workdir='' is not allowed: must not be empty$",
    ),
    "two configs": (
        [f"--config={DIGITS}", "-config", f"{DIGITS}:baseline"],
        r"^--config: must be given once, .*digits_msdnet.py and .*digits_msdnet.py:baseline$",
    ),
    "config file missing": (
        [f"--config={ROOT}/configs/digits_msdnett.py"],
        r"no file .*digits_msdnett.py; the nearest that exists is .*digits_msdnet.py",
    ),
    "config folder missing": (["--config=nowhere/x.py"], "no file nowhere/x.py"),
    "unknown variant": ([f"--config={DIGITS}:bseline"], "'bseline'.*baseline"),
    "unknown section": (
        [f"--config={DIGITS}", "--config.optimiser.epochs=3"],
        r"--config.optimiser.epochs: unknown field: the nearest that exists is "
        r"--config.optimizer.epochs",
    ),
    "unknown field": (
        [f"--config={DIGITS}", "--config.optimizer.epoch=3"],
        r"--config.optimizer.epochs",
    ),
    "field without its section": (
        [f"--config={DIGITS}", "--config.epochs=3"],
        r"--config.epochs: unknown field: the nearest that exists is --config.optimizer.epochs",
    ),
    "no field of a similar name": (
        [f"--config={DIGITS}", "--config.optimizer.lr=3"],
        r"--config.optimizer.lr: unknown field: config.optimizer has .*learning_rate, ",
    ),
    "section instead of a field": (
        [f"--config={DIGITS}", "--config.dataset=digits"],
        r"--config.dataset: must name one of its fields, such as dataset\.",
    ),
    "unknown boolean field": (
        [f"--config={DIGITS}", "--noconfig.log.profil"],
        r"--config.log.profile",
    ),
    "not a number": (
        [f"--config={DIGITS}", "--config.optimizer.epochs=many"],
        r"^config.optimizer.epochs: 'many' is not allowed: must be a whole number$",
    ),
    "neither true nor false": (
        [f"--config={DIGITS}", "--config.imta.collaboration=maybe"],
        r"^config.imta.collaboration: 'maybe' is not allowed: must be True or False$",
    ),
    "config is a folder": ([f"--config={ROOT}/configs"], r"is a folder"),
    "config is no program": ([f"--config={ROOT}/README.md"], r"must be a Python file"),
    "not whole": ([f"--config={DIGITS}", "--config.optimizer.epochs=1.5"], r"epochs.*1\.5"),
    "section as value": ([f"--config={DIGITS}", "--config.model=3"], r"config.model"),
    "value out of range": ([f"--config={DIGITS}", "--config.weighting.q=-1"], r"weighting.q: -1"),
    "odd batch": ([f"--config={DIGITS}", "--config.dataset.batch_size=63"], r"batch_size: 63"),
    "too much held out": ([f"--config={DIGITS}", "--config.dataset.holdout=99999"], r"holdout"),
    "run folder elsewhere": (
        [f"--config={DIGITS}", "--workdir=gs://bucket/run"],
        r"--workdir=gs://bucket/run is not allowed: .*mount",
    ),
    "data elsewhere": (
        [f"--config={DIGITS}", "--config.dataset.data_dir=s3://bucket"],
        r"config.dataset.data_dir: 's3://bucket' is not allowed: .*mount",
    ),
    "unknown mode": ([f"--config={DIGITS}", "--mode=trian"], r"--mode=trian.*train"),
    "unknown flag": ([f"--config={DIGITS}", "--wrkdir=x"], r"wrkdir.*workdir"),
    "stray argument": ([f"--config={DIGITS}", "train"], r"'train': unexpected argument"),
    "nothing to evaluate": ([f"--config={DIGITS}", "--mode=evaluate"], r"no checkpoint.*train"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_clear_line(mistake, workdir, capsys, monkeypatch):
    monkeypatch.chdir(workdir.parent)
    arguments, expected = MISTAKES[mistake]
    started = time.monotonic()
    assert run_main(f"--workdir={workdir}", *arguments) == 2
    assert time.monotonic() - started < 20
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert "Error" not in captured.err
    assert re.search(expected, captured.err), captured.err
    assert list(workdir.parent.iterdir()) == [], "nothing is written"


BAD_CONFIG_FILES = {
    "syntax": ("def get_config(:\n", r"own.py: line 1"),
    "no get_config": ("x = 1\n", r"own.py: must define get_config\(variant\)$"),
    "raises": ("def get_config():\n    raise ValueError('boom')\n", r"boom"),
    "returns nothing": ("def get_config():\n    pass\n", r"get_config"),
    "imports what is not there": ("import not_there\n", r"not_there"),
    "lacks fields": (
        "import ml_collections\ndef get_config():\n    return ml_collections.ConfigDict()\n",
        r"config.dataset: missing",
    ),
    "holds a network, which no run folder can": (
        "from l2w_jax.config import default_config\nfrom small_networks import OneLayer\n"
        "def get_config():\n    return default_config(model=OneLayer())\n",
        r"^config.model: 'OneLayer' is not allowed: must be a section of fields, .*\n$",
    ),
}


@pytest.mark.parametrize("fault", BAD_CONFIG_FILES)
def test_a_bad_config_file_is_named(fault, tmp_path, workdir, capsys):
    text, expected = BAD_CONFIG_FILES[fault]
    path = tmp_path / "own.py"
    path.write_text(text)
    assert run_main(f"--config={path}", f"--workdir={workdir}") == 2
    error = capsys.readouterr().err
    assert re.search(expected, error), error
    assert "Traceback" not in error
    assert not workdir.exists()


def test_each_fault_has_its_line(workdir, capsys):
    overrides = ["--config.weighting.q=0", "--config.optimizer.epochs=0"]
    assert run_main(f"--config={DIGITS}", f"--workdir={workdir}", *overrides) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    for field in ("weighting.q", "optimizer.epochs"):
        assert sum(f"config.{field}: 0" in line for line in lines) == 1
    assert not workdir.exists()


def test_a_workdir_that_is_a_file_stays_as_it_is(workdir, capsys):
    workdir.write_text("mine")
    assert run_main(f"--config={DIGITS}", f"--workdir={workdir}") == 2
    assert "is a file" in capsys.readouterr().err
    assert workdir.read_text() == "mine"


def test_a_workdir_of_another_config_is_refused(workdir, capsys):
    arguments = main.parse(["main", f"--config={DIGITS}", f"--workdir={workdir}"])
    with run_folder.exclusive_use(arguments.config, workdir):
        (workdir / "checkpoints" / "5").mkdir(parents=True)
    before = (workdir / "config.json").read_text()
    assert run_main(f"--config={DIGITS}:baseline", f"--workdir={workdir}") == 2
    error = capsys.readouterr().err
    assert "weighting.kind: 'meta' -> 'none'" in error
    assert len(error.splitlines()) == 1
    assert (workdir / "config.json").read_text() == before


def test_a_workdir_in_use_is_refused(workdir, capsys):
    arguments = main.parse(["main", f"--config={DIGITS}", f"--workdir={workdir}"])
    with run_folder.exclusive_use(arguments.config, workdir):
        assert run_main(f"--config={DIGITS}", f"--workdir={workdir}") == 2
    assert "in use by another run" in capsys.readouterr().err


def test_what_a_run_tells_is_printed_in_any_encoding(monkeypatch):
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, "ascii"))
    assert run_main() == 2
    log.say("gr\xfcn")
    assert printed.getvalue() == rb"gr\xfcn" + b"\n"


@pytest.mark.parametrize("optimized", [(), ("-OO",)])
def test_help_is_help(optimized):
    command = [sys.executable, *optimized, "-m", "l2w_jax.main", "--help"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "--config=configs/NAME.py" in printed


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """A whole run of the command line, small enough for a test."""
    folder = tmp_path_factory.mktemp("cli")
    command = [
        sys.executable,
        *("-m", "l2w_jax.main", f"--config={DIGITS}", f"--workdir={folder / 'run'}"),
        *SMALL,
        *("--config.optimizer.epochs=2", "--config.checkpoint.every_epochs=1"),
    ]

    def run(*more):
        return subprocess.run([*command, *more], cwd=ROOT, capture_output=True, text=True)

    return run, folder / "run", run()


def test_training_ends_with_its_evaluation(small_run):
    _, workdir, completed = small_run
    assert completed.returncode == 0, completed.stderr
    assert completed.stderr == ""
    written = {path.name for path in workdir.iterdir()}
    assert {
        "config.json",
        "metrics.jsonl",
        "anytime.csv",
        "budgeted.csv",
        "plots",
        "report.html",
    } <= written
    assert from_json((workdir / "config.json").read_text()).model.num_exits == 2
    assert len((workdir / "anytime.csv").read_text().splitlines()) == 3
    assert len((workdir / "budgeted.csv").read_text().splitlines()) == 40


def test_evaluating_again_gives_the_same_files(small_run):
    run, workdir, _ = small_run
    names = ("anytime.csv", "budgeted.csv", "evaluation.json")
    before = [(workdir / name).read_bytes() for name in names]
    for name in names:
        (workdir / name).unlink()
    completed = run("--mode=evaluate")
    assert completed.returncode == 0, completed.stderr
    assert [(workdir / name).read_bytes() for name in names] == before


def test_a_damaged_checkpoint_is_one_line_too(small_run):
    run, workdir, _ = small_run
    evaluated = json.loads((workdir / "evaluation.json").read_text())["step"]
    state = workdir / "checkpoints" / str(evaluated) / "state"
    max((path for path in state.rglob("*") if path.is_file()), key=os.path.getsize).unlink()
    completed = run("--mode=evaluate")
    assert completed.returncode == 0, completed.stderr
    assert f"The checkpoint of step {evaluated} is not used" in completed.stderr
    assert len(completed.stderr.splitlines()) == 1


def test_a_folder_that_not_all_processes_see_is_refused_before_training(
    workdir, capsys, monkeypatch
):
    def refuse(folder):
        raise UserError(f"{folder} is not seen")

    monkeypatch.setattr(start, "check_seen_by_all_processes", refuse)
    assert run_main(f"--config={DIGITS}", f"--workdir={workdir}", *SMALL) == 2
    assert capsys.readouterr().err == f"{workdir} is not seen\n"
    assert not (workdir / "checkpoints").exists()


@pytest.fixture
def run_on_folder(tmp_path, workdir):
    """The arguments that evaluate a run on tmp_path/data, which holds training images alone."""
    write_split(tmp_path / "data" / "train", 10, 0)
    dataset = {
        "name": "image_folder",
        "data_dir": tmp_path / "data",
        "num_classes": 3,
        "holdout": 6,
        "batch_size": 8,
    }
    arguments = [
        *(f"--config={DIGITS}", f"--workdir={workdir}", "--mode=evaluate"),
        *(f"--config.dataset.{field}={value}" for field, value in dataset.items()),
        *(
            "--config.model.num_exits=1",
            "--config.model.channels=4",
            "--config.weighting.kind=none",
        ),
    ]
    config = main.parse(["main", *arguments]).config
    with run_folder.exclusive_use(config, workdir):
        writer = checkpoints.CheckpointWriter(workdir, 1, images.identity(open_source(config)))
        writer.save(create_train_state(config, jax.random.key(0)))
        writer.close()
    return arguments


@pytest.fixture
def _evaluated_in_a_word(monkeypatch):
    """What would be evaluated is told by its test images and classes alone."""

    def evaluated(config, state, source, workdir):
        raise UserError(f"evaluated: {source.num_test} {' '.join(source.class_names)}")

    monkeypatch.setattr(evaluate, "evaluate", evaluated)


@pytest.mark.usefixtures("_evaluated_in_a_word")
def test_a_run_is_not_judged_by_images_that_it_may_have_been_trained_on(
    run_on_folder, tmp_path, capsys
):
    arguments = run_on_folder
    assert run_main(*arguments) == 2
    assert capsys.readouterr().err == "evaluated: 6 blue green red\n"
    blue = tmp_path / "data" / "train" / "blue"
    (blue / "00.jpg").rename(blue / "zz.jpg")
    assert run_main(*arguments) == 2
    error = capsys.readouterr().err
    assert "'holdout' and 'test', cut from the same folder, may hold" in error
    assert len(error.splitlines()) == 1


@pytest.mark.usefixtures("_evaluated_in_a_word")
def test_test_images_alone_are_judged_by_the_classes_of_the_run(run_on_folder, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.rmtree(data / "train")
    write_split(data / "test", 3, 0)
    shutil.rmtree(data / "test" / "blue")
    assert run_main(*run_on_folder) == 2
    assert capsys.readouterr().err.endswith("evaluated: 6 blue green red\n")
    (data / "test" / "red").rename(data / "test" / "pink")
    assert run_main(*run_on_folder) == 2
    error = capsys.readouterr().err
    assert "'pink': not among the classes trained on, 'blue', 'green', 'red'" in error
    assert len(error.splitlines()) == 1


def test_training_needs_training_images_and_says_so(tmp_path, workdir, capsys):
    write_split(tmp_path / "data" / "val", 1, 0)
    status = run_main(
        f"--config={DIGITS}",
        f"--workdir={workdir}",
        "--config.dataset.name=image_folder",
        f"--config.dataset.data_dir={tmp_path / 'data'}",
        "--config.dataset.num_classes=3",
    )
    assert status == 2
    assert f"{tmp_path / 'data'}: split 'train' is missing" in capsys.readouterr().err
    assert not workdir.exists()


def test_a_run_whose_output_nobody_reads_saves_when_it_is_stopped(workdir):
    """As where its terminal was closed."""
    command = (sys.executable, "-m", "l2w_jax.main", f"--config={DIGITS}", *SMALL)
    arguments = ("--config.optimizer.epochs=1000", f"--workdir={workdir}")
    process = left_unread([*command, *arguments], pty.openpty, b"first step after", cwd=ROOT)
    try:
        process.send_signal(signal.SIGHUP)
        assert process.wait(timeout=PATIENCE) == 75
    finally:
        process.kill()
        process.wait()
    assert any((workdir / "checkpoints").iterdir())


def test_a_signal_that_comes_as_the_program_ends_does_not_change_its_status():
    """As where one process of several has ended, and its scheduler sends the others SIGTERM."""
    lines = (
        "import atexit, os, runpy, signal, sys; "
        "atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM)); "
        "sys.argv = ['main', 'stray']; runpy.run_module('l2w_jax.main', run_name='__main__')"
    )
    completed = subprocess.run([sys.executable, "-c", lines], env=ENVIRONMENT, cwd=ROOT)
    assert completed.returncode == 2

"""What commands share: how they read quantities, print the names of files, and end."""

import argparse
import math
import subprocess
import sys
from pathlib import Path

import pytest
from programs import ENVIRONMENT, unread

from l2w_jax import command_line
from l2w_jax.errors import UserError


def test_quantities_are_read_as_people_write_them():
    for text, value in {
        "250000": 250e3,
        "1.5e6": 1.5e6,
        "300k": 3e5,
        "20M": 2e7,
        "1.2G": 1.2e9,
    }.items():
        assert math.isclose(command_line.quantity(text), value)


@pytest.mark.parametrize("text", ["1e308G", "1e308k", "inf", "-20M", "0k", "nan", "M", "many", ""])
def test_what_is_no_positive_finite_quantity_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match=f"^{text!r} is not allowed: must be a"):
        command_line.quantity(text)


def test_an_argument_that_is_a_path_is_one_of_this_machine():
    parser = command_line.ArgumentParser("program", "")
    parser.add_argument("--workdir", type=Path)
    parser.add_argument("images", type=Path, nargs="*")
    assert parser.parse_args(["--workdir=runs/a", "b"]).workdir == Path("runs/a")
    for address in ("--workdir=gs://bucket/run", "s3://bucket/cat.png"):
        with pytest.raises(UserError, match=r"argument .*://bucket/.* is not allowed: .*mount"):
            parser.parse_args([address])
    for argument in ("--workdir=", ""):
        with pytest.raises(UserError, match=r"^argument .*: '' is not allowed: must not be empty$"):
            parser.parse_args([argument])


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("no backend"), "no backend"),
        (AssertionError(), "there is no such platform here"),
        # Of python -O.
        (AttributeError("None has no 'devices'"), "there is no such platform here"),
    ],
)
def test_what_fails_without_devices_says_so_in_one_line(error, reason, monkeypatch, capsys):
    def fail(*_):
        raise error

    monkeypatch.setattr(command_line, "set_up_libraries", lambda: None)
    monkeypatch.setattr(sys, "argv", ["program"])
    monkeypatch.setenv("JAX_PLATFORMS", "quantum")
    with monkeypatch.context() as without_devices:
        without_devices.setattr("jax.devices", fail)
        with pytest.raises(SystemExit) as end:
            command_line.run(fail)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("JAX cannot use the devices of this process, with JAX_PLATFORMS=quantum")
    assert line.endswith(f": {reason}")
    # With devices it has another reason.
    with pytest.raises(type(error)):
        command_line.run(fail)


@pytest.mark.parametrize("command", ["benchmark.__main__", "compare", "main", "report.__main__"])
def test_commands_draw_whatever_display_a_notebook_has_handed_on(command):
    completed = subprocess.run(
        [sys.executable, "-c", f"import l2w_jax.{command}, matplotlib"],
        env=ENVIRONMENT | {"MPLBACKEND": "of_a_notebook"},
        capture_output=True,
        text=True,
    )
    assert completed.returncode == 0, completed.stderr


def test_an_interrupted_command_ends_in_one_line(monkeypatch, capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line, "set_up_libraries", lambda: None)
    with pytest.raises(SystemExit) as end:
        command_line.run(interrupted)
    assert end.value.code == 130
    assert capsys.readouterr().err == "stopped by SIGINT\n"


def test_a_fault_is_a_line_on_standard_error_and_status_2(capsys):
    def fail(argv):
        raise UserError("a: wrong")

    with pytest.raises(SystemExit) as caught:
        command_line.run(fail)
    assert caught.value.code == 2
    assert capsys.readouterr().err == "a: wrong\n"


def test_the_status_of_a_fault_is_2_also_where_nobody_reads_the_line():
    program = (
        "from l2w_jax import command_line, errors\n"
        "def fail(argv): raise errors.UserError('a: wrong')\n"
        "command_line.run(fail)"
    )
    with unread() as output:
        completed = subprocess.run(
            [sys.executable, "-c", program], env=ENVIRONMENT, stdout=output, stderr=output
        )
    assert completed.returncode == 2


def test_what_a_command_has_yet_to_print_to_a_full_disk_is_told():
    program = "from l2w_jax import command_line; command_line.run(lambda _: print('x'))"
    with open("/dev/full", "wb") as full:
        completed = subprocess.run(
            [sys.executable, "-c", program],
            env=ENVIRONMENT | {"PYTHONUNBUFFERED": ""},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert completed.stderr == "standard output: cannot be written: No space left on device\n"
    assert completed.returncode == 1


@pytest.mark.parametrize(
    ("encoding", "printed"),
    [
        ("utf-8:strict", b"gr\xfcn \xe6\x97\xa5.jpg\n"),
        ("latin-1", rb"gr\udcfcn \u65e5.jpg" + b"\n"),
        ("ascii", rb"gr\udcfcn \u65e5.jpg" + b"\n"),
    ],
)
def test_names_of_any_letters_are_printed_in_any_encoding(encoding, printed):
    name = "gr\\udcfcn \\u65e5.jpg"
    program = f"from l2w_jax import command_line; command_line.run(lambda _: print('{name}'))"
    completed = subprocess.run(
        [sys.executable, "-c", program],
        env=ENVIRONMENT | {"PYTHONIOENCODING": encoding},
        capture_output=True,
    )
    assert completed.stdout == printed, completed.stderr

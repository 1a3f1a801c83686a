"""What is printed where the disk is full, where nobody reads it, and where there is no output."""

import os
import pty
import subprocess
import sys

import pytest
from programs import ENVIRONMENT, unread

from l2w_jax import standard_output


def run(lines, output):
    """The status of a program that prints to an open file, and what it says of it."""
    program = (
        "import sys; from l2w_jax import standard_output; standard_output.prepare()\n"
        f"with standard_output.faults_told(): {lines}"
    )
    completed = subprocess.run(
        [sys.executable, "-c", program],
        # Python is to keep what it prints until it has more.
        env=ENVIRONMENT | {"PYTHONUNBUFFERED": ""},
        stdout=output,
        stderr=subprocess.PIPE,
        text=True,
    )
    return completed.returncode, completed.stderr


# At once, when the program ends, and what is more than Python keeps until then.
@pytest.mark.parametrize("lines", ["print('x', flush=True)", "print('x')", "print('x' * 99_999)"])
def test_a_full_disk_is_told_in_one_line(lines):
    with open("/dev/full", "wb") as full:
        told = "standard output: cannot be written: No space left on device\n"
        assert run(lines, full) == (1, told)


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ("print('x', flush=True)", 0),
        ("print('x')", 0),
        ("print('x'); sys.exit(3)", 3),
    ],
)
def test_where_nobody_reads_any_more_a_program_ends_without_a_word(lines, status):
    with unread() as output:
        assert run(lines, output) == (status, "")


def test_a_closed_output_takes_all_that_is_printed():
    program = (
        "import sys; from l2w_jax import standard_output; standard_output.prepare(); "
        "print('x'); sys.stdout.flush(); sys.stdout.fileno()"
    )
    completed = subprocess.run(
        ["sh", "-c", 'exec "$0" -c "$1" >&-', sys.executable, program],
        env=ENVIRONMENT,
        capture_output=True,
    )
    assert (completed.returncode, completed.stderr) == (0, b"")


def test_the_fault_of_a_file_is_not_taken_for_one_of_the_output():
    lines = "raise OSError(28, 'No space left on device', 'a.txt')"
    _, told = run(lines, subprocess.DEVNULL)
    assert told.endswith("No space left on device: 'a.txt'\n")


def test_a_terminal_is_told_nothing_that_it_would_obey(capsys):
    standard_output.tell("a\x1b[2J\x07\r\x9b1m\nb \u732b\u00e9")
    assert capsys.readouterr().err == "a\\x1b[2J\\x07\\r\\x9b1m\nb \u732b\u00e9\n"
    assert standard_output.in_one_line("a\nb") == "a\\nb"


def test_what_is_closed_is_not_given_to_the_next_file():
    program = (
        "import os, sys; from l2w_jax import standard_output; standard_output.prepare(); "
        "print('x', file=sys.stderr, flush=True); sys.exit(0 if os.open('.', 0) > 2 else 1)"
    )
    for closed in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
        command = ["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, program]
        assert subprocess.run(command, env=ENVIRONMENT).returncode == 0, closed


@pytest.mark.parametrize("opened", [os.pipe, pty.openpty])
@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ("standard_output.tell('x'); sys.exit(3)", 3),
        ("logging.warning('x'); sys.exit(3)", 3),
        ("sys.exit('x')", 1),
        ("1 / 0", 1),
        ("print('x'); sys.exit(3)", 3),
        ("print('x'); standard_output.end_at_once('y', 75)", 75),
    ],
)
def test_a_status_stays_where_nobody_reads_what_is_said_of_it(lines, status, opened):
    program = (
        "import logging, sys; from l2w_jax import standard_output; standard_output.prepare(); "
    )
    with unread(opened) as output:
        completed = subprocess.run(
            [sys.executable, "-c", program + lines],
            env=ENVIRONMENT | {"PYTHONUNBUFFERED": ""},
            stdout=output,
            stderr=output,
        )
    assert completed.returncode == status

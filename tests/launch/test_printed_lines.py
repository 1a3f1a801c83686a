"""The launcher prints what its processes print, and never keeps them from going on."""

import os
import pty
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from programs import PATIENCE, unread

from launch import processes

ROOT = Path(__file__).parents[2]


def run_printing(lines):
    """Runs a program as `processes.run` does, but no longer than it may take."""
    (process,) = processes.start(1, [sys.executable, "-c", lines])
    printer = threading.Thread(target=processes.print_prefixed, args=("[0] ", process.stdout))
    printer.start()
    try:
        return process.wait(timeout=PATIENCE)
    finally:
        process.kill()
        printer.join()


def test_a_process_that_prints_other_bytes_than_utf_8_ends_all_the_same(capfd):
    assert run_printing("import sys; sys.stdout.buffer.write(b'caf\\xe9\\n')") == 0
    assert capfd.readouterr().out == "[0] caf\\xe9\n"


def launched(lines, stdout=subprocess.PIPE, redirection=""):
    """Runs the launcher of one process, which prints, to its end."""
    program = (
        "import sys; from launch import processes; "
        f'sys.exit(processes.run(1, [sys.executable, "-c", "import sys; {lines}"]))'
    )
    completed = subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" {redirection}', sys.executable, program],
        cwd=ROOT,
        # Python is to try again at its end what it could not print, as it does by itself.
        env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUNBUFFERED": ""},
        stdout=stdout,
        stderr=subprocess.PIPE,
        timeout=PATIENCE,
    )
    assert completed.stderr == b""
    return completed


# More than a pipe holds.
MANY_LINES = "[print('x' * 99) for _ in range(2000)]; sys.exit(3)"


@pytest.mark.parametrize("redirection", [">/dev/full", ">&-"])
def test_a_full_disk_or_a_closed_output_keeps_no_process_from_ending(redirection):
    assert launched(MANY_LINES, redirection=redirection).returncode == 3


def test_neither_does_a_pipe_that_nobody_reads():
    with unread() as output:
        assert launched(MANY_LINES, output).returncode == 3


@pytest.mark.parametrize("opened", [os.pipe, pty.openpty])
def test_the_status_is_that_of_the_process_where_nobody_reads_whose_it_was(opened):
    lines = (
        "import os, sys, time; os.environ['JAX_PROCESS_ID'] == '0' and sys.exit(75); time.sleep(60)"
    )
    program = (
        "import sys; from launch import processes; "
        f'sys.exit(processes.run(2, [sys.executable, "-c", "{lines}"]))'
    )
    with unread(opened) as output:
        completed = subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            stdout=output,
            stderr=output,
            timeout=PATIENCE,
        )
    assert completed.returncode == 75


def test_letters_are_printed_to_any_encoding():
    completed = launched("sys.stdout.buffer.write('gr\\xfcn'.encode())")
    assert (completed.returncode, completed.stdout) == (0, b"[0] gr\\xfcn")


def test_what_a_process_printed_before_it_died_is_all_there(capfd):
    lines = "import os, sys; print('begun'); print('fault', file=sys.stderr); os._exit(3)"
    assert run_printing(lines) == 3
    assert capfd.readouterr().out == "[0] begun\n[0] fault\n"

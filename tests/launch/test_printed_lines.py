"""The launcher prints what its processes print, and never keeps them from going on."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from launch import processes

ROOT = Path(__file__).parents[2]


def run_printing(lines):
    """Runs a program as `processes.run` does, but no longer than it may take."""
    (process,) = processes.start(1, [sys.executable, "-c", lines])
    printer = threading.Thread(target=processes.print_prefixed, args=("[0] ", process.stdout))
    printer.start()
    try:
        return process.wait(timeout=30)
    finally:
        process.kill()
        printer.join()


# What is raised where nobody reads, and where the disk is full.
@pytest.mark.parametrize("error", [BrokenPipeError, OSError(errno.ENOSPC, "No space left")])
def test_a_process_that_cannot_be_printed_or_that_prints_other_bytes_ends_all_the_same(
    error, capfd
):
    # More than a pipe holds.
    lines = "import sys; sys.stdout.buffer.write(b'caf\\xe9\\n' * 20_000)"
    assert run_printing(lines) == 0
    assert capfd.readouterr().out.startswith("[0] caf\\xe9\n")

    class Unwritable:
        def write(self, _):
            raise error

        flush = write

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", Unwritable())
        assert run_printing(lines) == 0


def test_letters_are_printed_to_any_encoding_and_to_no_output_at_all():
    lines = "import sys; sys.stdout.buffer.write('gr\\xfcn'.encode())"
    program = (
        "import sys; from launch import processes; "
        f'sys.exit(processes.run(1, [sys.executable, "-c", "{lines}"]))'
    )
    for redirection, printed in (("", b"[0] gr\\xfcn"), (">&-", b"")):
        completed = subprocess.run(
            ["sh", "-c", f'exec "$0" -c "$1" {redirection}', sys.executable, program],
            cwd=ROOT,
            env=os.environ | {"PYTHONIOENCODING": "ascii"},
            capture_output=True,
        )
        assert (completed.returncode, completed.stdout, completed.stderr) == (0, printed, b"")


def test_what_a_process_printed_before_it_died_is_all_there(capfd):
    lines = "import os, sys; print('begun'); print('fault', file=sys.stderr); os._exit(3)"
    assert run_printing(lines) == 3
    assert capfd.readouterr().out == "[0] begun\n[0] fault\n"

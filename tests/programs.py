"""Programs that tests start, with this checkout and its tests to import from."""

import contextlib
import os
import subprocess
from pathlib import Path

_TESTS = Path(__file__).parent

# Else a program would import what is installed, which may be another checkout.
THIS_CHECKOUT = {"PYTHONPATH": f"{_TESTS.parent}{os.pathsep}{_TESTS}"}

# Seconds to wait at most for what takes a moment: a virtual machine may stand still for a minute.
PATIENCE = 150

# What such a program is started with, unless a test has it run without the project.
# It compiles as the tests do, see conftest.py.
ENVIRONMENT = os.environ | THIS_CHECKOUT | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


@contextlib.contextmanager
def unread(opened=os.pipe):
    """A file that nobody reads, for a program to print to; `opened` as for `left_unread`."""
    reading, writing = opened()
    os.close(reading)
    with open(writing, "wb") as file:
        yield file


def ended(running):
    """The statuses and the outputs of programs that run side by side, once all have ended."""
    outputs = [process.communicate(timeout=300)[0] for process in running]
    return [process.returncode for process in running], outputs


def left_unread(command, opened, text, **settings):
    """Starts a program whose output nobody reads any more once it has printed a text.

    Args:
        command: the program and its arguments.
        opened: gives the two ends of the output: `os.pipe`, or `pty.openpty` for a terminal.
        text: some of the output, in bytes.
        settings: of `subprocess.Popen`.
    """
    reading, writing = opened()
    process = subprocess.Popen(command, stdout=writing, stderr=writing, **settings)
    os.close(writing)
    seen = b""
    while text not in seen:
        more = os.read(reading, 1000)
        assert more, seen
        seen += more
    os.close(reading)
    return process

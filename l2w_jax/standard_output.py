"""Standard output and error of any encoding, closed, full, or unread; copied beside exports."""

import atexit
import codecs
import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import NoReturn, TextIO

_FULL = (errno.ENOSPC, errno.EDQUOT)

# What a terminal obeys instead of showing it, such as "\x1b[2J", and how it is written in Python.
_CONTROLS = {code: ascii(chr(code))[1:-1] for code in (*range(32), *range(127, 160))}


def prepare() -> None:
    """Makes standard output take any letter; what is printed to a closed stream goes nowhere.

    To be called before files are opened: a file would take the descriptor of a closed stream, and
    receive what libraries in C++ print there.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # The system gives it the first free descriptor, which is that of the closed stream.
            nowhere = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(nowhere, mode, errors="backslashreplace"))
    atexit.register(_drop_what_nobody_takes)
    # A file's name need not be UTF-8; in UTF-8 it is printed as it is on the disk. Other encodings
    # lack letters, on which surrogateescape would fail.
    is_utf8 = codecs.lookup(sys.stdout.encoding).name == "utf-8"
    sys.stdout.reconfigure(errors="surrogateescape" if is_utf8 else "backslashreplace")


def in_one_line(text: str) -> str:
    """The text with its control characters, which the name of a file or a class may hold, spelled.

    A terminal would obey them, and what follows a line break would pass for a line of the program.
    """
    return text.translate(_CONTROLS)


def tell(lines: str) -> None:
    """Prints lines on standard error; where they cannot be written, the program goes on without."""
    with contextlib.suppress(OSError):
        print("\n".join(map(in_one_line, lines.split("\n"))), file=sys.stderr, flush=True)


def end_at_once(line: str, status: int) -> NoReturn:
    """Ends the process after a line, whatever its threads do, and whoever reads what it prints."""
    try:
        tell(line)
        sys.stdout.flush()
    finally:
        os._exit(status)


def discard(stream: TextIO) -> None:
    """What is printed from now on goes nowhere, also what Python has yet to write as it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _drop_what_nobody_takes() -> None:
    """For the program's end: Python would else try once more to print, and exit with status 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            discard(stream)


@contextlib.contextmanager
def faults_told() -> Iterator[None]:
    """Ends the block as soon as nobody reads what it prints.

    Raises:
        SystemExit: the disk under the output is full; Python prints a line that says so, status 1.
    """
    try:
        with _faults_of_writing_told():
            yield
    finally:
        with _faults_of_writing_told():
            sys.stdout.flush()


@contextlib.contextmanager
def _faults_of_writing_told() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        # Whoever reads the output, such as `head`, has seen enough.
        discard(sys.stdout)
    except OSError as error:
        # An error with a file's name is about that file.
        if error.errno not in _FULL or error.filename is not None:
            raise
        discard(sys.stdout)
        sys.exit(f"standard output: cannot be written: {error.strerror}")

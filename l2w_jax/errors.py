"""The exceptions that a user of the command line is meant to read."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

# Names in a message that may have any number of them.
_MOST_NAMES = 10


class UserError(Exception):
    """Bad input, reported in one clear line per fault.

    Each line names the field or file, what was wrong and what is allowed. The command line prints
    the lines on standard error and exits with status 2. Nothing that was there before is changed,
    and a run that was not begun leaves its folder free for any other.
    """

    exit_status = 2


class RunFailed(UserError):
    """A run that was under way and cannot go on.

    The line names what happened and the checkpoint from which the same command goes on. The command
    line exits with status 1; everything that was saved before stays.
    """

    exit_status = 1


class Incomplete(UserError):
    """A command that did what it could, while some of its input was bad.

    The command line exits with status 1.
    """

    exit_status = 1


class RunInterrupted(UserError):
    """A run that was asked to stop, and has saved its state.

    The command line exits with status 75 (EX_TEMPFAIL of sysexits.h, "try again later"), which
    tells a scheduler to start the same command again.
    """

    exit_status = 75


@contextlib.contextmanager
def told_if_memory_is_short(what: str, advice: Callable[[], str]) -> Iterator[None]:
    """Makes the error of a device's compiler or allocator about memory say what to do about it.

    Args:
        what: what does not fit.
        advice: what needs less, and how to go on.

    Raises:
        RunFailed: a device's memory is too small.
    """
    try:
        yield
    except RuntimeError as error:  # jax.errors.JaxRuntimeError is one.
        if not is_of_memory(error):
            raise
        raise RunFailed(
            f"{what} does not fit into a device's memory ({first_line(error)}); {advice()}"
        ) from error


def is_of_memory(error: RuntimeError) -> bool:
    """Whether a device's compiler or allocator says that its memory is too small."""
    return "RESOURCE_EXHAUSTED" in str(error)


def first_line(error: BaseException) -> str:
    """What an error says, in one line: the first of its message, or its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def some(names: Sequence[str]) -> str:
    """Names for a message, no more than a person would read."""
    shown = ", ".join(map(repr, names[:_MOST_NAMES]))
    return shown + (f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else "")

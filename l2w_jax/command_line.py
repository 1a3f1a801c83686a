"""What the smaller commands have in common: arguments, and faults told in one line."""

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from l2w_jax.errors import UserError


class ArgumentParser(argparse.ArgumentParser):
    """Argparse's, but a wrong argument is a UserError: one line, without a page of usage."""

    def error(self, message: str) -> NoReturn:
        """Raises UserError."""
        raise UserError(message)


def run(main: Callable[[], None]) -> NoReturn:
    """Runs a command; ends the process with its exit status, after the lines of a UserError."""
    try:
        main()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_status)
    sys.exit(0)


def quantity(text: str) -> float:
    """A positive number as people write it: 250000, 1.5e6, 300k, 20M, 1.2G.

    Raises:
        argparse.ArgumentTypeError: the text is no such number.
    """
    factor = {"k": 1e3, "m": 1e6, "g": 1e9}.get(text[-1:].lower(), 1)
    try:
        value = factor * float(text[:-1] if factor > 1 else text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not allowed: must be a positive number such as 250000, 300k, 20M or 1.2G"
        )
    return value

"""What the commands have in common: set-up, arguments, and faults reported in one line."""

import argparse
import contextlib
import gc
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from l2w_jax import compiled_programs, standard_output
from l2w_jax.config import paths
from l2w_jax.errors import UserError

# Keeps notices of TensorFlow, which only reads data here, out of what a command prints. Libraries
# read these variables as they are loaded, so they are set here: commands import this module first.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
# A notebook's kernel hands on the name of its own display. Matplotlib refuses to load where that is
# not installed, and no command shows anything.
os.environ["MPLBACKEND"] = "agg"


class ArgumentParser(argparse.ArgumentParser):
    """Argparse's, but a wrong argument is a UserError: one line, without a page of usage.

    An argument of `type=Path` has to be on this machine.
    """

    def __init__(self, command: str, description: str, **settings: Any):
        super().__init__(
            prog=f"python -m l2w_jax.{command}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **settings,
        )
        self.register("type", Path, _local_path)

    def error(self, message: str) -> NoReturn:
        """Raises UserError."""
        raise UserError(message)


def _local_path(text: str) -> Path:
    try:
        return paths.local_path(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def set_up_libraries() -> None:
    """Keeps compiled programs from one start of a command to the next; quiets Orbax."""
    from absl import logging as absl_logging

    # First of all, because it loads JAX, which the freeze below then keeps from being searched too.
    compiled_programs.keep()

    # `checkpoints` reports a damaged checkpoint or a failed save in one line. Orbax adds pages of
    # tracebacks to it, and leaves reads behind that find their event loop closed.
    absl_logging.get_absl_logger().addFilter(lambda record: "orbax" not in record.pathname)
    sys.unraisablehook = _ignore_closed_loop

    # Tracing a network makes millions of objects that stay. Searching them and those of the
    # libraries for cycles after every 700 new ones takes a seventh of the time of tracing.
    gc.freeze()
    gc.set_threshold(100_000)


def _ignore_closed_loop(unraisable: "sys.UnraisableHookArgs") -> None:
    if "Event loop is closed" not in str(unraisable.exc_value):
        sys.__unraisablehook__(unraisable)


def run(main: Callable[[Sequence[str]], None]) -> NoReturn:
    """Runs a command; ends the process with its exit status, after the lines of a UserError.

    The status is 130 where SIGINT stopped it, as in shells.

    Args:
        main: a function of the arguments, without the program's name.
    """
    standard_output.prepare()
    set_up_libraries()
    with standard_output.faults_told():
        try:
            with _told_if_without_devices():
                main(sys.argv[1:])
        except UserError as error:
            standard_output.tell(str(error))
            sys.exit(error.exit_status)
        except KeyboardInterrupt:
            standard_output.tell("stopped by SIGINT")
            sys.exit(130)
    sys.exit(0)


@contextlib.contextmanager
def _told_if_without_devices() -> Iterator[None]:
    """Makes what fails because JAX cannot use its devices, taken when first used, say so.

    Raises:
        UserError: that is why something failed.
    """
    try:
        yield
    except (RuntimeError, AssertionError, AttributeError):
        from l2w_jax.run.processes import check_devices

        check_devices()
        raise


def add_top_k(parser: argparse.ArgumentParser) -> None:
    """Adds --top-k, to be checked by `check_top_k`."""
    parser.add_argument(
        "--top-k", type=int, metavar="N", help="give the N most probable classes of each image"
    )


def check_top_k(top_k: int | None, class_names: Sequence[str]) -> None:
    """Checks --top-k against the classes that there are.

    Raises:
        UserError: there are fewer, or it is not positive.
    """
    if top_k is not None and not 1 <= top_k <= len(class_names):
        raise UserError(
            f"--top-k={top_k} is not allowed: must be from 1 to {len(class_names)}, the classes of "
            "the run"
        )


def positive(text: str) -> float:
    """A positive number.

    Raises:
        argparse.ArgumentTypeError: the text is no such number.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed: must be a positive number")
    return value


def quantity(text: str) -> float:
    """A positive number as people write it: 250000, 1.5e6, 300k, 20M, 1.2G.

    Raises:
        argparse.ArgumentTypeError: the text is no such number.
    """
    factor = {"k": 1e3, "m": 1e6, "g": 1e9}.get(text[-1:].lower(), 1)
    try:
        # With the factor, which may make it infinite.
        return positive(str(factor * float(text[:-1] if factor > 1 else text)))
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not allowed: must be a positive number such as 250000, 300k, 20M or 1.2G"
        ) from error

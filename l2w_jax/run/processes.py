"""Runs of several processes, each with its own devices, on one host or many.

A launcher gives every process the same command and sets JAX_COORDINATOR_ADDRESS (host:port of
process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID, or, where JAX finds these out by itself (TPU pods,
Slurm), L2W_DISTRIBUTED=auto. All processes need the same view of the run folder.
"""

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from l2w_jax.errors import RunInterrupted, UserError, first_line

# A process that died is noticed after this many seconds.
_HEARTBEAT_TIMEOUT = 30


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Joins the other processes of the run, if there are any; before any computation.

    Of several processes one that fails inside ends at once, with its error as the last line, and
    the others notice within a minute. In an orderly end JAX would wait for them, and they for it.

    Raises:
      UserError: the launcher's settings are incomplete, or the other processes do not answer.
    """
    _join()
    try:
        yield
    except RunInterrupted:
        # All processes stop at the same step.
        raise
    except Exception as error:
        if jax.process_count() == 1:
            raise
        if isinstance(error, UserError):
            print(error, file=sys.stderr)
        elif isinstance(error, jax.errors.JaxRuntimeError):
            print(
                f"process {jax.process_index()}: another process is gone, or a device failed "
                f"({first_line(error)}); the same command in all processes goes on from "
                "the last checkpoint",
                file=sys.stderr,
            )
        else:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(error.exit_status if isinstance(error, UserError) else 1)


def is_first() -> bool:
    """Whether this process is the one that prints and writes results."""
    return jax.process_index() == 0


@contextlib.contextmanager
def held_by_first(context: contextlib.AbstractContextManager[None]) -> Iterator[None]:
    """Enters a context in the first process only, for all of them.

    Raises:
      UserError: in every process, where entering raises it in the first one.
    """
    refusal = UserError("the first process of this run could not go on; its line says why")
    with contextlib.ExitStack() as stack:
        entered = not is_first()
        if is_first():
            try:
                stack.enter_context(context)
                entered = True
            except UserError as error:
                refusal = error
        if not _all_succeed(entered):
            raise refusal
        yield


def wait_for_all() -> None:
    """Returns when every process has come here."""
    _all_succeed(True)


def _all_succeed(succeeded: bool) -> bool:
    if jax.process_count() == 1:
        return succeeded
    return bool(np.all(multihost_utils.process_allgather(np.asarray(succeeded))))


def asked_to_stop(step: int) -> bool:
    """Whether any process was sent SIGTERM, told to all at the same step.

    Call it in every process after every step. Always false in a run of one process, where JAX does
    not listen for the signal.
    """
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step)


def _join() -> None:
    if os.environ.get("L2W_DISTRIBUTED") == "auto":
        settings = {}
    elif "JAX_NUM_PROCESSES" in os.environ:
        settings = _settings_of_launcher()
    else:
        return
    # What CPU devices of several processes need to average over; other devices ignore it.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT, **settings)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the processes of this run did not find each other: {first_line(error)}"
        ) from error


def _settings_of_launcher() -> dict[str, str | int]:
    try:
        return {
            "coordinator_address": os.environ["JAX_COORDINATOR_ADDRESS"],
            "num_processes": int(os.environ["JAX_NUM_PROCESSES"]),
            "process_id": int(os.environ["JAX_PROCESS_ID"]),
        }
    except (KeyError, ValueError) as error:
        raise UserError(
            "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID: all three must be set, "
            f"the last two to whole numbers, or none ({error})"
        ) from error

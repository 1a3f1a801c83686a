"""Runs of several processes, each with its own devices, on one host or many.

A launcher gives every process the same command and sets JAX_COORDINATOR_ADDRESS (host:port of
process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID, or, where JAX finds these out by itself (TPU pods,
Slurm), L2W_DISTRIBUTED=auto. All processes need the same view of the run folder.
L2W_HEARTBEAT_TIMEOUT is after how many seconds of silence a process counts as dead, 30 if not set.
"""

import collections
import contextlib
import ipaddress
import json
import os
import re
import socket
import traceback
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from l2w_jax import standard_output
from l2w_jax.errors import RunFailed, RunInterrupted, UserError, first_line
from l2w_jax.run import slurm, stop_signals

# Seconds. A machine that stands still for longer, as a virtual one may, has its run ended.
_HEARTBEAT_TIMEOUT = 30
_HEARTBEAT_TIMEOUTS = range(1, 24 * 3600 + 1)

# How XLA's message on a computation that could not end begins: with the name of a status.
_FAILED_COMPUTATION = re.compile(
    "(ABORTED|CANCELLED|DATA_LOSS|DEADLINE_EXCEEDED|INTERNAL|UNAVAILABLE|UNKNOWN): "
)

# Of Gloo, which connects CPUs: processes find each other by the names of their hosts.
_GLOO_FAILED = "Gloo context initialization failed"

_LAUNCHERS_SETTINGS = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")

_sigterm_listener: stop_signals.Listener | None = None


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Joins the other processes of the run, if there are any; before any computation.

    Inside, SIGTERM and SIGINT end the process at once, until training has something to save.

    If one of several processes fails inside, it ends at once, with its error as the last line, and
    the others notice within the heartbeat timeout at the latest. In an orderly end JAX would wait
    for them, and they for it.

    Raises:
        UserError: the launcher's settings are incomplete or wrong, the other processes do not
            answer, JAX cannot use its devices, or not all processes have equally many.
    """
    _join()
    try:
        check_devices()
        _check_numbers_of_devices()
        # Again, though the command may have done so: JAX has put its own handler in place.
        with stop_signals.ending_at_once():
            yield
    except RunInterrupted:
        # All processes stop at the same step.
        raise
    except Exception as error:
        if not jax.distributed.is_initialized():
            raise
        status = error.exit_status if isinstance(error, UserError) else RunFailed.exit_status
        standard_output.end_at_once(_last_words(error), status)


def _last_words(error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    if _GLOO_FAILED in str(error) and (address := _loopback_of_this_host()):
        return (
            f"process {jax.process_index()}: the name of this host, {socket.gethostname()!r}, "
            f"stands for {address} here (see /etc/hosts), where CPUs of other hosts do not reach "
            f"it; it must stand for an address that they reach ({first_line(error)})"
        )
    if _is_of_devices(error):
        return (
            f"process {jax.process_index()}: another process is gone, or a device failed "
            f"({first_line(error)}); the same command in all processes goes on from the last "
            "checkpoint"
        )
    return "".join(traceback.format_exception(error)).rstrip()


def _loopback_of_this_host() -> str:
    """The address that this host's name stands for, if only the host itself reaches it; or ""."""
    try:
        address = socket.gethostbyname(socket.gethostname())
    except OSError:
        return ""
    return address if ipaddress.ip_address(address).is_loopback else ""


def _is_of_devices(error: Exception) -> bool:
    """Whether a computation of all processes together, or one on a device, raised an error.

    If a computation has ended before JAX returns from starting it, its error is a ValueError.
    """
    return isinstance(error, jax.errors.JaxRuntimeError) or (
        isinstance(error, ValueError) and bool(_FAILED_COMPUTATION.match(str(error)))
    )


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
        if not all(of_all(entered)):
            raise refusal
        yield


def wait_for_all() -> None:
    """Returns when every process has called it."""
    of_all(None)


def of_all(value: Any) -> list[Any]:
    """The values that all processes of the run call this with, in the order of their numbers.

    A value is anything that JSON holds, and is sent as its bytes: JAX would keep only 32 bits of
    each number of an array.
    """
    if jax.process_count() == 1:
        return [value]
    content = np.frombuffer(json.dumps(value).encode(), np.uint8)
    longest = multihost_utils.process_allgather(np.int32(len(content))).max()
    padded = np.pad(content, (0, longest - len(content)), constant_values=ord(" "))
    return [json.loads(bytes(row)) for row in multihost_utils.process_allgather(padded)]


def sigterm_listener() -> stop_signals.Listener | None:
    """JAX's handling of SIGTERM, see `asked_to_stop`; None in a run of one process.

    JAX listens also in a joined process that is alone, but then has nobody to tell.
    """
    return _sigterm_listener if jax.process_count() > 1 else None


def asked_to_stop(step: int) -> bool:
    """Whether any process was sent SIGTERM; all get to know at the same step.

    Call it in every process after every step. JAX has to receive the signal, see
    `sigterm_listener`; always false in a run of one process.
    """
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step)


def _join() -> None:
    global _sigterm_listener
    if os.environ.get("L2W_DISTRIBUTED") == "auto":
        settings = _settings_of_cluster()
    elif any(name in os.environ for name in _LAUNCHERS_SETTINGS):
        settings = _settings_of_launcher()
    else:
        return
    # What CPU devices of several processes need to average over; other devices ignore it.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=_heartbeat_timeout(), **settings)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{_failure_to_join(error)}: {first_line(error)}") from error
    _sigterm_listener = stop_signals.Listener()


def _heartbeat_timeout() -> int:
    value = os.environ.get("L2W_HEARTBEAT_TIMEOUT", str(_HEARTBEAT_TIMEOUT))
    if not (value.isdecimal() and int(value) in _HEARTBEAT_TIMEOUTS):
        raise UserError(
            f"L2W_HEARTBEAT_TIMEOUT: {value!r} is not allowed: must be a whole number of seconds "
            f"from {_HEARTBEAT_TIMEOUTS[0]} to {_HEARTBEAT_TIMEOUTS[-1]}"
        )
    return int(value)


def _failure_to_join(error: Exception) -> str:
    if isinstance(error, RuntimeError):
        return "the processes of this run did not find each other"
    if "JAX_NUM_PROCESSES" in os.environ:
        return "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID do not go together"
    return (
        "L2W_DISTRIBUTED=auto: neither a TPU slice nor a step of Slurm, nor another cluster that "
        "JAX knows, was found here; set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and "
        "JAX_PROCESS_ID instead, or none of these to run one process"
    )


def check_devices() -> None:
    """Makes JAX take its devices into use.

    Raises:
        UserError: it cannot; the line names the settings that say which devices those are.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError, AttributeError) as error:
        names = ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES", "JAX_LOCAL_DEVICE_IDS")
        settings = ", ".join(f"{name}={os.environ.get(name, '(not set)')}" for name in names)
        # All that JAX says of a platform whose plugin is not installed is a bare assertion; under
        # python -O, which drops it, that None has no devices.
        is_said = str(error) and not isinstance(error, AttributeError)
        reason = first_line(error) if is_said else "there is no such platform here"
        raise UserError(
            f"JAX cannot use the devices of this process, with {settings}: {reason}"
        ) from error


def _check_numbers_of_devices() -> None:
    """Raises UserError unless all processes have equally many, as where one of a host's failed."""
    numbers = collections.Counter(device.process_index for device in jax.devices())
    fewest, most = (choose(numbers, key=numbers.__getitem__) for choose in (min, max))
    if numbers[fewest] != numbers[most]:
        raise UserError(
            "the processes of this run must have equally many devices: "
            f"process {fewest} has {numbers[fewest]}, process {most} has {numbers[most]}"
        )


def _settings_of_cluster() -> dict[str, Any]:
    """The settings that JAX does not find out by itself where it finds out the rest."""
    devices = slurm.local_device_ids(os.environ)
    return {} if devices is None else {"local_device_ids": devices}


def _settings_of_launcher() -> dict[str, Any]:
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

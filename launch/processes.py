# Assigned, because it is what --help prints: python -OO drops docstrings, but not this.
__doc__ = """Runs one command of this project as N processes on this machine.

    python launch/processes.py N --config=configs/NAME.py [...]

The processes share each batch, as on N hosts. Their output is prefixed with their number. The first
that fails ends all; so do SIGTERM, SIGINT and SIGHUP, which every process gets. The exit status is
the first failure's. Device settings (JAX_PLATFORMS, XLA_FLAGS) are each process's own.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import IO

from l2w_jax import standard_output

# How long the others have to end once one process failed. After a signal they may take their time.
SECONDS_TO_END = 30
SECONDS_BETWEEN_LOOKS = 0.1


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit status."""
    if argv[1:] in (["--help"], ["-h"]):
        with standard_output.faults_told():
            print(__doc__)
        return 0
    if len(argv) < 2 or not argv[1].isdecimal() or int(argv[1]) < 1:
        standard_output.tell("usage: python launch/processes.py N --config=configs/NAME.py ...")
        return 2
    return run(int(argv[1]), [sys.executable, "-m", "l2w_jax.main", *argv[2:]])


def run(count: int, command: Sequence[str]) -> int:
    """Runs a command as `count` processes to its end; returns the exit status."""
    standard_output.prepare()
    processes: list[subprocess.Popen[str]] = []
    received: list[int] = []

    def forward(number: int, frame: object) -> None:
        del frame
        received.append(number)
        for process in processes:
            process.send_signal(number)

    # Before the first starts: a signal that ended this process alone would leave them behind.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # Under `nohup` SIGHUP is ignored.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, forward)
    for process in start(count, command):
        processes.append(process)
        for number in received:
            process.send_signal(number)
    printers = [
        threading.Thread(target=print_prefixed, args=(f"[{index}] ", process.stdout))
        for index, process in enumerate(processes)
    ]
    for printer in printers:
        printer.start()
    status = wait_for_all(processes)
    for printer in printers:
        printer.join()
    return status


def start(count: int, command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """Starts the processes one by one, which find each other at a free port of this machine.

    The first holds the port from its start on: only seconds later JAX listens there, and the system
    might give it to another program meanwhile.
    """
    with socket.socket() as port:
        # JAX listens with gRPC, which shares a port with whoever agrees to that.
        port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        port.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{port.getsockname()[1]}"
        for index in range(count):
            environment = os.environ | {
                "JAX_COORDINATOR_ADDRESS": address,
                # By itself JAX takes whoever calls at this port of any of the machine's addresses.
                "JAX_COORDINATOR_BIND_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(count),
                "JAX_PROCESS_ID": str(index),
                "PYTHONUNBUFFERED": "1",
            }
            yield subprocess.Popen(
                command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                # A file's name need not be UTF-8.
                errors="backslashreplace",
                # A Ctrl-C of the terminal reaches them through this process only.
                start_new_session=True,
                pass_fds=[] if index else [port.fileno()],
            )


def print_prefixed(prefix: str, stream: IO[str]) -> None:
    """Prints the lines of a process until it ends.

    Where they can be printed no more, as nobody reads them or the disk is full, they are read on
    nevertheless: the process would wait else.
    """
    for line in stream:
        try:
            print(prefix + line, end="", flush=True)
        except OSError:
            standard_output.discard(sys.stdout)


def wait_for_all(processes: Sequence[subprocess.Popen[str]]) -> int:
    """Waits until all have ended, and ends the rest after a failure.

    Returns:
        The exit status of the first that failed, of a signal 128 plus its number. Of those that
        failed within a moment it is the one that the others followed, see `_order_of_failure`.
    """
    running = dict(enumerate(processes))
    failed = {}
    while running and not failed:
        time.sleep(SECONDS_BETWEEN_LOOKS)
        failed = _remove_ended(running)
    if not failed:
        return 0
    if all(status == -signal.SIGABRT for status in failed.values()):
        time.sleep(SECONDS_BETWEEN_LOOKS)
        failed |= _remove_ended(running)
    index, status = min(failed.items(), key=_order_of_failure)
    followed = running or len(set(failed.values())) > 1
    status = status if status > 0 else 128 - status
    if followed:
        standard_output.tell(
            f"process {index} ended with status {status}; the others are ended too"
        )
    for other in running.values():
        other.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + SECONDS_TO_END
    while running and time.monotonic() < deadline:
        time.sleep(SECONDS_BETWEEN_LOOKS)
        _remove_ended(running)
    for other in running.values():
        other.kill()
        other.wait()
    return status


def _remove_ended(running: dict[int, subprocess.Popen[str]]) -> dict[int, int]:
    """Takes the processes that ended out of `running`; returns the status of those that failed."""
    ended = {index: process.poll() for index, process in running.items()}
    ended = {index: status for index, status in ended.items() if status is not None}
    for index in ended:
        del running[index]
    return {index: status for index, status in ended.items() if status}


def _order_of_failure(failure: tuple[int, int]) -> tuple[int, int]:
    """Where a failure stands among those of one moment; the first one caused the others.

    A process that something kills does not say why the others then fail. One that loses its
    coordinator aborts, so an abort comes after everything else.
    """
    index, status = failure
    if status == -signal.SIGABRT:
        return 2, index
    return (0 if status < 0 else 1), index


if __name__ == "__main__":
    sys.exit(main(sys.argv))

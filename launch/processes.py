"""Runs one command of this project as N processes on this machine.

    python launch/processes.py N --config=configs/NAME.py [...]

The processes share each batch, as on N hosts. Their output is prefixed with their number. The first
that fails ends all; so do SIGTERM and SIGINT, which every process gets. The exit status is the
first one that is not 0. Device settings (JAX_PLATFORMS, XLA_FLAGS) are each process's own.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO

# How long the others have to end once one process failed. After a signal they may take their time.
SECONDS_TO_END = 30


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit status."""
    if len(argv) < 2 or not argv[1].isdigit() or int(argv[1]) < 1:
        print("usage: python launch/processes.py N --config=configs/NAME.py ...", file=sys.stderr)
        return 2
    return run(int(argv[1]), [sys.executable, "-m", "l2w_jax.main", *argv[2:]])


def run(count: int, command: Sequence[str]) -> int:
    """Runs a command as `count` processes to its end; returns the exit status."""
    processes = start(count, command)
    printers = [
        threading.Thread(target=print_prefixed, args=(f"[{index}] ", process.stdout))
        for index, process in enumerate(processes)
    ]
    for printer in printers:
        printer.start()

    def forward(number: int, frame: object) -> None:
        del frame
        for process in processes:
            process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, forward)
    status = wait_for_all(processes)
    for printer in printers:
        printer.join()
    return status


def start(count: int, command: Sequence[str]) -> list[subprocess.Popen[str]]:
    """Starts the processes, which find each other at a free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    processes = []
    for index in range(count):
        environment = os.environ | {
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": str(count),
            "JAX_PROCESS_ID": str(index),
            "PYTHONUNBUFFERED": "1",
        }
        processes.append(
            subprocess.Popen(
                command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                # A Ctrl-C of the terminal reaches them through this process only.
                start_new_session=True,
            )
        )
    return processes


def print_prefixed(prefix: str, stream: IO[str]) -> None:
    """Prints the lines of a process until it ends."""
    for line in stream:
        print(prefix + line, end="", flush=True)


def wait_for_all(processes: Sequence[subprocess.Popen[str]]) -> int:
    """Waits until all have ended, and ends the rest after a failure.

    Returns:
      The first exit status that was not 0, of a signal 128 plus its number.
    """
    failure = 0
    deadline = float("inf")
    running = dict(enumerate(processes))
    while running:
        # One that a signal ended comes first: those that ended since the last look may have done so
        # because of it.
        for index, process in sorted(running.items(), key=lambda item: (item[1].poll() or 0) >= 0):
            status = process.poll()
            if status is None:
                continue
            del running[index]
            if status and not failure:
                failure = status if status > 0 else 128 - status
                deadline = time.monotonic() + SECONDS_TO_END
                if running:
                    print(
                        f"process {index} ended with status {failure}; the others are ended too",
                        file=sys.stderr,
                        flush=True,
                    )
                    for other in running.values():
                        other.send_signal(signal.SIGTERM)
        if time.monotonic() > deadline:
            for process in running.values():
                process.kill()
        time.sleep(0.1)
    return failure


if __name__ == "__main__":
    sys.exit(main(sys.argv))

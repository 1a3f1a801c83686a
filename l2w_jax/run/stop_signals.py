"""SIGTERM, SIGINT, SIGHUP: a run with something to save saves it first, any other ends at once.

Python runs a signal's handler between two of its own instructions, and so not while XLA compiles,
which takes longer than many machines wait before they send SIGKILL. Python's C code, however,
writes the number of each signal into a pipe right away, and a thread that reads the pipe can end
the process.
"""

import contextlib
import ctypes
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

from l2w_jax import standard_output
from l2w_jax.errors import RunInterrupted

_NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

# Room for the C library's `struct sigaction`; more than any system's takes.
_ACTION_BYTES = 512


class StopSignals:
    """What the signals do, and which ones came.

    Attributes:
        received: the names of those that came since `defer`, or so shortly before it that `watch`
            had not yet ended the process.
    """

    def __init__(self) -> None:
        self.received: list[str] = []
        self._deferred = False

    def defer(self, listener: "Listener | None" = None) -> None:
        """From now on there is something to save: signals are noted, to stop after saving.

        A second SIGINT raises RunInterrupted: what the run waits for may never come.

        Args:
            listener: receives SIGTERM in place of this object; other signals are turned into one.
        """
        self._deferred = True
        if listener is not None:
            listener.listen()
            if self.received:
                # The processes stop together at one step, which the listener tells all of them.
                self.received.clear()
                signal.raise_signal(signal.SIGTERM)
            for number in _handled():
                if number != signal.SIGTERM:
                    signal.signal(number, lambda *_: signal.raise_signal(signal.SIGTERM))

    def note(self, number: int, frame: Any) -> None:
        """Python's handler. Before `defer`, it is `watch` that ends the process."""
        del frame
        name = signal.Signals(number).name
        if self._deferred and number == signal.SIGINT and name in self.received:
            raise RunInterrupted(
                "stopped at once by a second SIGINT; the same command goes on from the last "
                "checkpoint"
            )
        self.received.append(name)

    def watch(self, pipe: int) -> None:
        """Ends the process by the first signal before `defer`; returns when the pipe is closed."""
        while numbers := os.read(pipe, 64):
            for number in numbers:
                if number in _NUMBERS and not self._deferred:
                    _end(signal.Signals(number).name)


@contextlib.contextmanager
def ending_at_once() -> Iterator[StopSignals]:
    """Inside, these signals end the process in a moment, with status 75, until `defer`.

    For the main thread only, since Python lets no other set handlers. Of nested contexts the
    innermost counts.
    """
    signals = StopSignals()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    previous_pipe = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    previous = {number: signal.signal(number, signals.note) for number in _handled()}
    watcher = threading.Thread(target=signals.watch, args=(reading,), daemon=True)
    watcher.start()
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(previous_pipe)
        os.close(writing)
        watcher.join()
        os.close(reading)


def _handled() -> list[signal.Signals]:
    """The signals; not SIGHUP under `nohup`, which has it ignored."""
    hangs_up = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
    return [number for number in _NUMBERS if hangs_up or number != signal.SIGHUP]


class Listener:
    """What SIGTERM does now, even if that is a function in C, which Python does not know of."""

    def __init__(self) -> None:
        self._action = ctypes.create_string_buffer(_ACTION_BYTES)
        ctypes.CDLL(None).sigaction(signal.SIGTERM, None, self._action)

    def listen(self) -> None:
        """Makes SIGTERM do the same again."""
        ctypes.CDLL(None).sigaction(signal.SIGTERM, self._action, None)


def _end(name: str) -> None:
    """Ends the process without Python's orderly end, which waits for what is under way."""
    standard_output.end_at_once(
        f"stopped by {name} with nothing to save; the same command starts again, from the last "
        "checkpoint where there is one",
        RunInterrupted.exit_status,
    )

"""A signal ends what has nothing to save at once, also while a function in C does not return."""

import contextlib
import ctypes
import os
import pty
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from programs import PATIENCE, left_unread

from l2w_jax.run import stop_signals

ROOT = Path(__file__).parents[2]

# It compiles for twice the PATIENCE at least.
PROGRAM = (sys.executable, "-m", "tests.run.slow_compilation")

# Of a processor's seconds, since a busy machine takes its time: what compiles on uses them all.
SOON = 30


@contextlib.contextmanager
def ending_soon():
    """Checks that programs which end inside have taken little of the processor's time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    yield
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime - before.ru_utime < SOON


def start(*arguments, before=()):
    """Starts a program that compiles slowly, and returns it when it does."""
    process = subprocess.Popen(
        [*before, *PROGRAM, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "compiling\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_with_nothing_to_save_a_signal_ends_a_compilation(number):
    with ending_soon(), start() as process:
        process.send_signal(number)
        try:
            output, error = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert process.returncode == 75
    assert output == ""
    assert error.startswith(f"stopped by {number.name} with nothing to save; ")
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("opened", [os.pipe, pty.openpty])
def test_so_it_does_where_nobody_reads_the_output_or_the_terminal_is_closed(opened, number):
    with ending_soon():
        process = left_unread(PROGRAM, opened, b"compiling", cwd=ROOT)
        try:
            process.send_signal(number)
            assert process.wait(timeout=PATIENCE) == 75
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_with_something_to_save_a_signal_is_noted(number):
    with start("later") as process:
        process.send_signal(number)
        output, error = process.communicate()
    assert (process.returncode, output, error) == (0, f"{number.name}\n", "")


def test_under_nohup_a_terminal_that_closes_stops_nothing():
    with start(before=["nohup"]) as process:
        process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=1)
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate()
    assert process.returncode == 75
    assert error.splitlines()[-1].startswith("stopped by SIGTERM with nothing to save; ")


def test_the_handlers_from_before_are_back_afterwards():
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        with stop_signals.ending_at_once() as outer:
            outer.defer()
            with stop_signals.ending_at_once() as inner:
                inner.defer()
                signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
            assert (outer.received, inner.received, heard) == (["SIGTERM"], ["SIGTERM"], [])
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]
    assert signal.set_wakeup_fd(-1) == -1


def test_a_listener_in_c_hears_sigterm_again():
    before = signal.getsignal(signal.SIGTERM)
    # As JAX sets its own, past Python.
    ctypes.CDLL(None).signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        listener = stop_signals.Listener()
        with stop_signals.ending_at_once() as signals:
            signals.defer(listener)
            signal.raise_signal(signal.SIGTERM)
            assert signals.received == []
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_signal_that_comes_just_before_there_is_something_to_save_is_noted():
    signals = stop_signals.StopSignals()
    signals.note(signal.SIGINT, None)
    signals.defer()
    assert signals.received == ["SIGINT"]


def test_a_listener_hears_of_a_signal_that_came_just_before_it():
    heard = []
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}

    class Listener:
        def listen(self):
            signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))

    signals = stop_signals.StopSignals()
    try:
        signals.defer(Listener())
        assert heard == []
        signals.note(signal.SIGTERM, None)
        signals.defer(Listener())
        assert heard == [signal.SIGTERM]
        # Else this process alone would stop at a step that it does not agree on with the others.
        assert signals.received == []
        signal.raise_signal(signal.SIGHUP)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert heard == [signal.SIGTERM, signal.SIGTERM]

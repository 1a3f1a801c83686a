"""The launcher of several processes: what it passes on, when it ends them, and what it says."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
from programs import ended

from launch import processes

pytestmark = pytest.mark.usefixtures("this_checkout")

ROOT = Path(__file__).parents[2]


def test_a_terminal_interrupts_the_launcher_alone():
    (process,) = processes.start(1, [sys.executable, "-c", "input()"])
    try:
        assert os.getsid(process.pid) != os.getsid(0)
    finally:
        process.kill()
        process.communicate()


def test_under_nohup_a_hang_up_is_ignored_and_else_it_is_passed_on():
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        for before in (signal.SIG_IGN, signal.SIG_DFL):
            signal.signal(signal.SIGHUP, before)
            assert processes.run(1, ["true"]) == 0
            ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert ignored == (before == signal.SIG_IGN)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_a_signal_leaves_none_behind_that_starts_later(monkeypatch):
    handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    start, started_all = processes.start, []

    def start_interrupted(count, command):
        signal.raise_signal(signal.SIGTERM)
        for process in start(count, command):
            started_all.append(process)
            yield process

    monkeypatch.setattr(processes, "start", start_interrupted)
    try:
        status = processes.run(3, [sys.executable, "-c", "import time; time.sleep(60)"])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert status == 128 + signal.SIGTERM
    assert [process.poll() for process in started_all] == [-signal.SIGTERM] * 3


def test_help_is_printed_for_whoever_asks():
    command = [sys.executable, str(ROOT / "launch" / "processes.py"), "--help"]
    completed = subprocess.run(command, capture_output=True, text=True)
    assert (completed.returncode, completed.stderr) == (0, "")
    assert "python launch/processes.py N --config" in completed.stdout


@pytest.mark.parametrize("number", ["two", "0", "\N{SUPERSCRIPT TWO}"])
def test_a_wrong_number_is_refused(number):
    completed = subprocess.run(
        [sys.executable, str(ROOT / "launch" / "processes.py"), number],
        capture_output=True,
        text=True,
    )
    assert completed.returncode == 2
    assert completed.stderr.startswith("usage: ")


# The second is one only for two devices, which the processes know of after they found each other.
@pytest.mark.parametrize("mistake", ["weighting.q=-1", "dataset.batch_size=126"])
def test_a_mistake_ends_all_processes_with_its_line(mistake, tmp_path):
    completed = subprocess.run(
        [
            *(sys.executable, str(ROOT / "launch" / "processes.py"), "2"),
            *(f"--config={ROOT}/configs/digits_msdnet.py", f"--config.{mistake}"),
            f"--workdir={tmp_path / 'run'}",
        ],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert completed.returncode == 2, completed
    assert mistake.replace("=", ": ") in completed.stdout
    assert not (tmp_path / "run").exists()


def test_what_a_process_tells_the_others_arrives_exactly(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    command = [sys.executable, str(Path(__file__).with_name("tell_others.py"))]
    statuses, outputs = ended(list(processes.start(2, command)))
    assert statuses == [0, 0], outputs
    assert all(output.endswith("the same\n") for output in outputs), outputs


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_no_other_machine_reaches_the_processes_of_one():
    """Whoever reaches the one that brings them together can end the run, or take part in it."""
    command = [sys.executable, str(Path(__file__).with_name("tell_listening.py"))]
    statuses, outputs = ended(list(processes.start(2, command)))
    assert statuses == [0, 0], outputs
    addresses = re.findall("^at (.*)$", "".join(outputs), re.MULTILINE)
    assert addresses
    assert all(address.strip("0") for address in addresses), addresses


def test_no_other_program_is_given_the_port_before_the_processes_listen_at_it():
    both = list(processes.start(2, ["sh", "-c", "echo $JAX_COORDINATOR_ADDRESS; exec sleep 60"]))
    try:
        host, number = both[0].stdout.readline().split(":")
        with socket.socket() as other, pytest.raises(OSError, match="Address already in use"):
            other.bind((host, int(number)))
    finally:
        for process in both:
            process.kill()
            process.communicate()


def started(commands):
    return [subprocess.Popen(["sh", "-c", command]) for command in commands]


def assert_ends_with(running, first, status, capfd):
    assert processes.wait_for_all(running) == status
    assert all(process.returncode is not None for process in running)
    message = f"process {first} ended with status {status}; the others are ended too"
    assert capfd.readouterr().err == ("" if first is None else message + "\n")


@pytest.mark.parametrize(
    ("commands", "first", "status"),
    [
        (["exit 0", "exit 0"], None, 0),
        (["exit 0", "exit 3"], None, 3),
        (["exit 2", "exit 2"], None, 2),
        (["kill -ABRT $$", "exit 2"], 1, 2),
        (["exit 1", "kill -KILL $$"], 1, 128 + signal.SIGKILL),
        (["kill -ABRT $$", "kill -KILL $$"], 1, 128 + signal.SIGKILL),
    ],
)
def test_of_failures_in_one_moment_that_is_named_which_the_others_followed(
    commands, first, status, capfd
):
    running = started(commands)
    for process in running:
        process.wait()
    assert_ends_with(running, first, status, capfd)


@pytest.mark.parametrize(
    ("commands", "first", "status"),
    [
        (["kill -ABRT $$", "sleep 60"], 0, 128 + signal.SIGABRT),
        (["sleep 60", "exit 3"], 1, 3),
    ],
)
def test_a_failure_ends_the_others_and_is_named(commands, first, status, capfd):
    assert_ends_with(started(commands), first, status, capfd)


def test_a_failure_that_is_seen_a_moment_after_the_abort_it_caused_is_named(capfd, monkeypatch):
    commands = (["sh", "-c", "kill -ABRT $$"], ["sh", "-c", "read line; exit 2"])
    both = [subprocess.Popen(command, stdin=subprocess.PIPE) for command in commands]
    pauses = []

    def sleep(seconds):
        process = both[len(pauses)]
        process.communicate(b"\n")
        pauses.append(seconds)

    monkeypatch.setattr(
        processes, "time", types.SimpleNamespace(sleep=sleep, monotonic=time.monotonic)
    )
    assert_ends_with(both, 1, 2, capfd)
    assert pauses == [processes.SECONDS_BETWEEN_LOOKS] * 2

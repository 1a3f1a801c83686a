"""What processes say that cannot join a run, or lose it: the setting, or the cause, in one line."""

import io
import socket
import sys
import types

import jax
import pytest

from l2w_jax.errors import UserError
from l2w_jax.run import processes


@pytest.fixture(autouse=True)
def _automatic(monkeypatch):
    monkeypatch.setenv("L2W_DISTRIBUTED", "auto")
    # Which is to stay what it is for other tests.
    monkeypatch.setattr(jax.config, "update", lambda *_: None)


def test_a_slurm_task_joins_with_its_own_gpus(monkeypatch):
    for name, value in {
        "SLURM_JOB_ID": "17",
        "SLURM_STEP_NODELIST": "node1",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": "1",
        "SLURM_LOCALID": "1",
        "SLURM_GPUS_PER_TASK": "1",
        "CUDA_VISIBLE_DEVICES": "0",
    }.items():
        monkeypatch.setenv(name, value)
    given = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda **settings: given.update(settings))
    with processes.joined():
        pass
    assert given["local_device_ids"] == [0]
    assert not given.keys() & {"coordinator_address", "num_processes", "process_id"}
    monkeypatch.setattr(processes, "_sigterm_listener", None)


def test_outside_of_any_cluster_the_settings_are_named(monkeypatch):
    for name in ("SLURM_JOB_ID", "JAX_NUM_PROCESSES"):
        monkeypatch.delenv(name, raising=False)

    def fail(**_):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with (
        pytest.raises(UserError, match=r"^L2W_DISTRIBUTED=auto: .*set JAX_COORDINATOR_ADDRESS"),
        processes.joined(),
    ):
        pytest.fail("joined nobody")


def test_devices_that_jax_cannot_use_are_one_line_with_the_settings(monkeypatch):
    monkeypatch.delenv("L2W_DISTRIBUTED")
    monkeypatch.delenv("JAX_NUM_PROCESSES", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")

    def fail():
        raise RuntimeError("Unable to initialize backend 'cuda': no such device\nmore")

    monkeypatch.setattr(jax, "devices", fail)
    with (
        pytest.raises(UserError, match=r"CUDA_VISIBLE_DEVICES=7, .*: Unable .* no such device$"),
        processes.joined(),
    ):
        pytest.fail("joined without a device")


def test_processes_with_more_devices_than_others_are_refused(monkeypatch):
    monkeypatch.delenv("L2W_DISTRIBUTED")
    monkeypatch.delenv("JAX_NUM_PROCESSES", raising=False)
    devices = [types.SimpleNamespace(process_index=index) for index in (0, 0, 1, 2, 2)]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    with (
        pytest.raises(UserError, match="devices: process 1 has 1, process 0 has 2"),
        processes.joined(),
    ):
        pytest.fail("joined them")


def test_settings_of_a_launcher_that_lack_some_are_refused(monkeypatch):
    for name in ("L2W_DISTRIBUTED", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1234")
    with pytest.raises(UserError, match="all three must be set"), processes.joined():
        pytest.fail("ran alone")


@pytest.mark.parametrize(("setting", "seconds"), [(None, 30), ("150", 150)])
def test_silence_for_as_long_as_is_set_makes_a_process_dead(setting, seconds, monkeypatch):
    monkeypatch.delenv("L2W_HEARTBEAT_TIMEOUT", raising=False)
    if setting:
        monkeypatch.setenv("L2W_HEARTBEAT_TIMEOUT", setting)
    given = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda **settings: given.update(settings))
    with processes.joined():
        pass
    assert given["heartbeat_timeout_seconds"] == seconds
    monkeypatch.setattr(processes, "_sigterm_listener", None)


@pytest.mark.parametrize("setting", ["", "0", "-1", "1.5", "86401", "half a minute"])
def test_an_impossible_heartbeat_timeout_is_refused(setting, monkeypatch):
    monkeypatch.setenv("L2W_HEARTBEAT_TIMEOUT", setting)
    allowed = f"^L2W_HEARTBEAT_TIMEOUT: '{setting}' is not allowed: .* seconds from 1 to 86400$"
    with pytest.raises(UserError, match=allowed), processes.joined():
        pytest.fail("joined")


@pytest.fixture
def statuses(monkeypatch):
    """Those that one of several processes, which this one is taken for, would end with at once."""
    for name in ("L2W_DISTRIBUTED", "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("JAX_PROCESS_ID", raising=False)
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    found = []
    monkeypatch.setattr(processes.os, "_exit", found.append)
    return found


@pytest.mark.parametrize(
    ("error", "is_of_another"),
    [
        (jax.errors.JaxRuntimeError("INTERNAL: connection reset"), True),
        (ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer"), True),
        (ValueError("operands could not be broadcast together"), False),
    ],
)
def test_only_what_a_computation_raises_is_told_as_the_end_of_another_process(
    error, is_of_another, statuses, capsys
):
    with processes.joined():
        raise error
    assert statuses == [1]
    told = capsys.readouterr().err
    assert told.startswith("process 0: another process is gone") == is_of_another
    assert told.startswith("Traceback") != is_of_another


@pytest.mark.parametrize(("address", "is_told"), [("127.0.1.1", True), ("10.9.0.1", False)])
def test_a_host_whose_name_leads_back_to_itself_is_told_so(
    address, is_told, statuses, capsys, monkeypatch
):
    monkeypatch.setattr(socket, "gethostname", lambda: "node7")
    monkeypatch.setattr(socket, "gethostbyname", {"node7": address}.get)
    with processes.joined():
        raise jax.errors.JaxRuntimeError(
            "UNKNOWN: Gloo context initialization failed: timed out connecting"
        )
    assert statuses == [1]
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert (f"'node7', stands for {address} here (see /etc/hosts)" in told) == is_told
    assert ("another process is gone" in told) != is_told


class _Unread(io.StringIO):
    def write(self, text):
        raise BrokenPipeError


@pytest.mark.parametrize(("error", "status"), [(UserError("a: wrong"), 2), (KeyError("a"), 1)])
def test_a_process_that_fails_ends_at_once_also_where_nobody_reads_why(
    error, status, statuses, monkeypatch
):
    monkeypatch.setattr(sys, "stderr", _Unread())
    with processes.joined():
        raise error
    assert statuses == [status]

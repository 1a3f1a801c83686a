"""A process that may use a part of the machine counts that part, not the machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from programs import ENVIRONMENT

from l2w_jax.data import cores
from l2w_jax.data.cores import available_cores

# What a process finds: its groups, the files of limits, and how many of 128 cores it may use.
GROUPS = {
    "no limit": ("0::/user.slice\n", {"user.slice/cpu.max": "max 100000"}, 128),
    "a container of 2 cores": ("0::/\n", {"cpu.max": "200000 100000"}, 2),
    "two and a half": ("0::/\n", {"cpu.max": "250000 100000"}, 3),
    "less than one": ("0::/\n", {"cpu.max": "10000 100000"}, 1),
    "a limit around the group": (
        "0::/slurm/job_1/task_0\n",
        {"slurm/job_1/cpu.max": "400000 100000", "slurm/job_1/task_0/cpu.max": "max 100000"},
        4,
    ),
    "version 1": (
        "5:memory:/job\n4:cpu,cpuacct:/job\n",
        {"cpu/job/cpu.cfs_quota_us": "300000\n", "cpu/job/cpu.cfs_period_us": "100000\n"},
        3,
    ),
    "version 1 without a limit": (
        "4:cpuacct,cpu:/\n0::/\n",
        {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
        128,
    ),
    "paths of the host": ("0::/kubepods/pod1\n", {"cpu.max": "500000 100000"}, 5),
    "no control groups": (None, {}, 128),
}


@pytest.mark.parametrize("found", GROUPS)
def test_control_groups_limit_cores(found, tmp_path, monkeypatch):
    own_groups, limits, expected = GROUPS[found]
    if own_groups is not None:
        (tmp_path / "own").write_text(own_groups)
    for name, content in limits.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    monkeypatch.setattr(cores, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(cores, "_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(cores, "_bound_cores", lambda: 128)
    assert available_cores() == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux binds processes")
def test_a_process_bound_to_one_core_has_one():
    program = [sys.executable, Path(__file__).with_name("cores_when_bound.py")]
    completed = subprocess.run(program, env=ENVIRONMENT, capture_output=True, text=True)
    assert completed.stdout == "1\n", completed.stderr


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux binds processes")
def test_one_core_does_not_wait_for_itself():
    program = [sys.executable, Path(__file__).with_name("decode_when_bound.py")]
    completed = subprocess.run(
        program, env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )
    assert completed.stdout == "3\n", completed.stderr

"""A run that is killed twenty times, also while it saves, ends as the one that nobody touched."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from programs import THIS_CHECKOUT


def newest_state(workdir):
    step = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    with ocp.StandardCheckpointer() as checkpointer:
        state = checkpointer.restore((workdir / "checkpoints" / str(step) / "state").absolute())
    return [np.asarray(array).tobytes() for array in jax.tree.leaves(state)]


@pytest.mark.slow
def test_a_killed_run_ends_as_if_nothing_had_happened(tmp_path):
    tests = Path(__file__).parents[1]
    completed = subprocess.run(
        [sys.executable, str(tests / "killed_runs.py"), str(tmp_path), "20"],
        cwd=tests.parent,
        env=os.environ
        | THIS_CHECKOUT
        | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert completed.returncode == 0, completed.stderr
    assert "killed 20 times" in completed.stdout
    assert "goes on after step" in completed.stdout
    for name in ("anytime.csv", "budgeted.csv"):
        killed, undisturbed = tmp_path / "killed" / name, tmp_path / "undisturbed" / name
        assert killed.read_bytes() == undisturbed.read_bytes()
    assert newest_state(tmp_path / "killed") == newest_state(tmp_path / "undisturbed")

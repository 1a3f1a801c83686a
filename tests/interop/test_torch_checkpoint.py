"""What is written for the authors' programs, where PyTorch need not be installed."""

import errno
import json
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from l2w_jax.errors import UserError
from l2w_jax.interop import torch_checkpoint
from l2w_jax.interop.export_torch import with_extras
from l2w_jax.interop.torch_checkpoint import TorchCheckpoint, write_torch_checkpoint

CHECKPOINT = TorchCheckpoint({"a": np.zeros(2, np.float32)}, {"b": np.ones(2, np.float32)})
EXTRAS = {"prefixed": True, "counters": {"norm.counter": 7}, "has_predictor": False}


def save(content, file):
    """As torch.save: to a path or to an open file."""
    if isinstance(file, Path):
        file.write_bytes(pickle.dumps(content))
    else:
        pickle.dump(content, file)


@pytest.fixture(autouse=True)
def without_torch(monkeypatch):
    stands_in = SimpleNamespace(tensor=np.asarray, save=save)
    monkeypatch.setattr(torch_checkpoint, "_import_torch", lambda: stands_in)


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "theirs.pth.tar"
    write_torch_checkpoint(path, CHECKPOINT)
    before = path.read_bytes()
    assert list(pickle.loads(before)) == ["state_dict", "meta_state_dict"]

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match=r"tar: cannot be written: No space left on device"):
        write_torch_checkpoint(path, CHECKPOINT._replace(predictor={}))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_what_was_imported_comes_back_and_a_predictor_that_has_learned_stays(tmp_path):
    path = tmp_path / "torch_extras.json"
    assert with_extras(CHECKPOINT, path, step=0) is CHECKPOINT
    path.write_text(json.dumps(EXTRAS))
    fresh, trained = (with_extras(CHECKPOINT, path, step) for step in (0, 1))
    assert fresh.prefixed and fresh.network["norm.counter"] == 7 and fresh.predictor == {}
    assert trained.predictor == CHECKPOINT.predictor


@pytest.mark.parametrize(
    "content",
    [
        b"{half",
        b"\xff",
        b"3",
        b"{}",
        json.dumps(EXTRAS | {"counters": [1]}).encode(),
        json.dumps(EXTRAS | {"counters": {"a": "b"}}).encode(),
        json.dumps(EXTRAS | {"counters": {"a": 10**20}}).encode(),
        b"[" * 100_000,
        json.dumps(EXTRAS | {"prefixed": "yes"}).encode(),
    ],
)
def test_damage_in_what_an_import_left_is_told_in_a_line(content, tmp_path):
    path = tmp_path / "torch_extras.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"torch_extras\.json: is damaged \(.*\); import") as error:
        with_extras(CHECKPOINT, path, step=0)
    assert "\n" not in str(error.value)

import json
import os
from pathlib import Path

import pytest

from l2w_jax.files import write_atomically, write_csv, write_json


def test_a_table_has_a_header_and_the_numbers_in_full(tmp_path):
    write_csv(tmp_path / "new" / "t.csv", [{"q": 0.05, "top1": 100 / 3}, {"q": 0.1, "top1": 50}])
    text = (tmp_path / "new" / "t.csv").read_text()
    assert text == f"q,top1\n0.05,{100 / 3!r}\n0.1,50\n"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "t.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="Out of range"):
        write_json(path, {"a": float("nan")})

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "half")
    assert json.loads(path.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["t.json"]


def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path):
    link, target = tmp_path / "link", tmp_path / "new" / "t.txt"
    link.symlink_to(Path("new") / "t.txt")
    for content in ("first", "second"):
        write_atomically(link, content)
        assert link.is_symlink()
        assert target.read_text() == content
    assert os.listdir(target.parent) == ["t.txt"]


@pytest.mark.parametrize("name", ["pipe", "link"])
def test_what_is_no_regular_file_stays_and_is_written_into(name, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(pipe)
    # Open for both, and without blocking, so that neither end waits for the other.
    with open(os.open(pipe, os.O_RDWR | os.O_NONBLOCK), "rb", buffering=0) as reader:
        write_atomically(tmp_path / name, "content")
        assert pipe.is_fifo()
        assert reader.read(100) == b"content"
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe"]


def test_other_users_may_read_a_result(tmp_path):
    write_atomically(tmp_path / "t.txt", b"x")
    assert (tmp_path / "t.txt").stat().st_mode & 0o777 == 0o644

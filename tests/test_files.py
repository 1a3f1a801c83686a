import json
import os
import re
import tempfile
from pathlib import Path

import pytest
from full_disk import fill_disk

from l2w_jax.errors import UserError
from l2w_jax.files import (
    csv_text,
    replace_together,
    temporary_folder,
    told_if_unwritable,
    write_atomically,
    write_json,
)


def test_a_table_has_a_header_and_the_numbers_in_full():
    text = csv_text([{"q": 0.05, "top1": 100 / 3}, {"q": 0.1, "top1": 50}])
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


@pytest.fixture
def three_files(tmp_path):
    """Files "old", of which the second is to be no more, and what replaces them."""
    before = {tmp_path / name: "old" for name in ("rows", "gone", "about")}
    for path, content in before.items():
        path.write_text(content)
    rows, gone, about = before
    return before, {rows: b"new", gone: None, about: "new"}


def contents(folder):
    return {path: path.read_text() for path in folder.iterdir()}


def test_files_are_replaced_together(tmp_path, three_files):
    _, after = three_files
    replace_together(after)
    assert contents(tmp_path) == {tmp_path / "rows": "new", tmp_path / "about": "new"}


@pytest.mark.parametrize("full", ["rows", "about"])
def test_a_full_disk_replaces_none_of_the_files(tmp_path, three_files, monkeypatch, full):
    before, after = three_files
    fill_disk(monkeypatch, full)
    with pytest.raises(OSError, match="No space left"):
        replace_together(after)
    assert contents(tmp_path) == before


def test_the_file_that_tells_of_the_others_is_gone_while_they_are_replaced(
    tmp_path, three_files, monkeypatch
):
    _, after = three_files
    replace, there = os.replace, []

    def replace_and_look(source, target):
        there.append((tmp_path / "about").exists())
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_and_look)
    replace_together(after)
    assert there == [False, False]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_what_others_may_do_with_a_result_is_said_by_the_umask(umask, mode, tmp_path):
    before = os.umask(umask)
    try:
        # Anew, and in place of another.
        for _ in range(2):
            write_atomically(tmp_path / "t.txt", b"x")
            assert (tmp_path / "t.txt").stat().st_mode & 0o777 == mode
    finally:
        os.umask(before)


def test_a_full_disk_under_temporary_files_is_told_of_them_and_not_of_the_output():
    folder = re.escape(tempfile.gettempdir())
    with (
        pytest.raises(UserError, match=f"^TMPDIR={folder}: cannot be written: No space left on "),
        told_if_unwritable(Path("out"), "--output="),
        temporary_folder() as folder,
    ):
        (folder / "file").symlink_to("/dev/full")
        write_atomically(folder / "file", "content")
    assert not folder.exists()


def test_where_no_folder_takes_temporary_files_it_is_said_where_they_were_tried(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc/none"])
    with pytest.raises(UserError, match=r"^TMPDIR: No usable .* found in \['/proc/none'\]$"):
        temporary_folder().__enter__()

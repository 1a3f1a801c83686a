"""Which files of a folder are images: to the bottom, through links, and counted otherwise."""

import os
from collections import Counter

import pytest
from image_folders import refuse_folder

from l2w_jax.data import walk
from l2w_jax.errors import UserError


@pytest.fixture
def folder(tmp_path):
    for name in ("b.jpg", "a/deep/er/c.PNG", "a/d.webp", "a/notes.txt", "a/README", ".hidden.jpg"):
        path = tmp_path / "top" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "top"


def found(folder, skipped=None) -> list[str]:
    paths = walk.image_files(folder, Counter() if skipped is None else skipped)
    return [os.path.relpath(path, folder) for path in paths]


def test_folders_are_walked_to_the_bottom_in_alphabetical_order(folder):
    assert found(folder) == ["a/d.webp", "a/deep/er/c.PNG", "b.jpg"]


@pytest.mark.parametrize("name", [".ipynb_checkpoints", "__MACOSX", "@eaDir"])
def test_folders_that_systems_make_are_left_out(name, folder):
    (folder / "a" / name).mkdir()
    (folder / "a" / name / "thumbnail.jpg").touch()
    assert found(folder) == ["a/d.webp", "a/deep/er/c.PNG", "b.jpg"]
    assert [entry.name for entry in walk.entries(folder / "a")] == [
        "README",
        "d.webp",
        "deep",
        "notes.txt",
    ]


def test_an_ending_is_shown_in_one_line_and_moves_no_cursor():
    assert walk.ending("a.\n\x1b[2J") == r".\n\x1b[2j"


def test_what_is_no_image_is_counted_by_its_ending(folder):
    (folder / "more.TXT").touch()
    skipped = Counter()
    found(folder, skipped)
    assert skipped == {".txt": 2, "without an ending": 1}
    assert walk.skipped_line(skipped) == (
        "skipped files that are not images: 2 .txt, 1 without an ending"
    )


def test_links_to_files_and_folders_are_followed(folder, tmp_path):
    (tmp_path / "elsewhere" / "in").mkdir(parents=True)
    (tmp_path / "elsewhere" / "in" / "e.gif").touch()
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "z.jpg").symlink_to(tmp_path / "elsewhere" / "in" / "e.gif")
    assert found(folder)[-2:] == ["link/in/e.gif", "z.jpg"]


def test_links_in_a_circle_end(folder, tmp_path):
    (folder / "a" / "up").symlink_to(folder)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "o.png").touch()
    (tmp_path / "other" / "back").symlink_to(folder / "a")
    (folder / "a" / "to_other").symlink_to(tmp_path / "other")
    assert found(folder) == ["a/d.webp", "a/deep/er/c.PNG", "a/to_other/o.png", "b.jpg"]


def test_a_link_to_what_the_folder_is_in_is_not_followed(folder):
    (folder / "a" / "data").symlink_to(folder.parent)
    (folder / "a" / "top").symlink_to("/")
    assert found(folder / "a") == ["d.webp", "deep/er/c.PNG"]


def test_a_link_to_itself_is_left_to_its_reader(folder):
    (folder / "itself.png").symlink_to(folder / "itself.png")
    assert "itself.png" in found(folder)


def test_a_link_that_leads_nowhere_is_left_to_its_reader_and_a_pipe_is_not(folder):
    (folder / "gone.jpg").symlink_to(folder / "nowhere")
    (folder / "gone.txt").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "pipe.jpg")
    skipped = Counter()
    assert "gone.jpg" in found(folder, skipped)
    assert skipped == {".txt": 2, "without an ending": 1, ".jpg": 1}


def test_a_folder_that_cannot_be_read_is_one_line(folder, monkeypatch):
    monkeypatch.setattr(
        os, "scandir", lambda path: (_ for _ in ()).throw(PermissionError(13, "no"))
    )
    with pytest.raises(UserError, match="top: cannot be read: no"):
        found(folder)


def test_folders_that_cannot_be_read_may_be_left_out(folder, monkeypatch):
    refuse_folder(monkeypatch, "deep")
    unreadable = []
    paths = list(walk.image_files(folder, Counter(), unreadable))
    assert [os.path.relpath(path, folder) for path in paths] == ["a/d.webp", "b.jpg"]
    assert [str(error) for error in unreadable] == [
        f"{folder}/a/deep: cannot be read: Permission denied"
    ]

"""A disk without room for one of the files."""

import tempfile

from l2w_jax import files


def fill_disk(monkeypatch, name):
    """Has a file of this name find no room; all others find some."""
    write = files._write_temporary

    def write_where_room_is(path, content):
        if path.name == name:
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(files, "_write_temporary", write_where_room_is)


def fill_temporary_folder(monkeypatch):
    """Has no folder for temporary files find room."""

    def refuse(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)

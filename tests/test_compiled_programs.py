"""Compiled programs are kept, and one that was cut short is compiled anew and kept again."""

import os
import resource
import signal
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from l2w_jax import compiled_programs

SETTINGS = (
    "jax_enable_compilation_cache",
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


def no_home():
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.parametrize("home", [no_home, lambda: Path(os.devnull)])
def test_without_a_home_to_write_to_programs_are_not_kept_and_one_line_says_so(
    home, monkeypatch, capsys
):
    monkeypatch.setattr(Path, "home", home)
    assert compiled_programs._users_folder() is None
    (line,) = capsys.readouterr().err.splitlines()
    assert "JAX_COMPILATION_CACHE_DIR" in line


def test_programs_are_kept_in_the_users_home(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = compiled_programs._users_folder()
    assert Path(folder).is_relative_to(tmp_path)
    assert list(Path(folder).iterdir()) == []
    assert capsys.readouterr().err == ""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where programs are kept during a test, of any size and however soon they are compiled."""
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr(compiled_programs, "_users_folder", lambda: str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        compiled_programs.keep()
        # Which a benchmark that was tested before in this process has put out.
        jax.config.update("jax_enable_compilation_cache", True)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        reset_cache()
        yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)
    reset_cache()


def compile_at_a_new_start(size: int = 3) -> None:
    """Compiles the program `jit_doubled`, or takes it from where it is kept."""

    def doubled(numbers):
        return 2 * numbers

    jax.jit(doubled).lower(jax.ShapeDtypeStruct((size,), np.float32)).compile()


def kept(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("jit_doubled-*-cache")}


@pytest.mark.parametrize("length", [0, 100])
def test_a_program_that_was_cut_short_is_replaced_and_one_line_says_so(folder, length, caplog):
    compile_at_a_new_start()
    ((name, whole),) = kept(folder).items()
    compile_at_a_new_start(4)
    others = ["jit_doubled-notes-cache", f"jit_doubled_too{name.removeprefix('jit_doubled')}"]
    for other in others:
        (folder / other).write_bytes(b"no program")
    (folder / name).write_bytes(whole[:length])
    untouched = {path: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != name}

    compile_at_a_new_start()
    (line,) = caplog.messages
    assert line.startswith(f"{folder}: compiled program jit_doubled cannot be read (")
    assert line.endswith("what there was of it is removed")
    assert len(kept(folder)[name]) > length
    assert {path: path.stat().st_mtime_ns for path in untouched} == untouched
    compile_at_a_new_start()
    assert len(caplog.messages) == 1


def test_a_program_that_has_no_room_leaves_nothing_behind(folder, caplog):
    compile_at_a_new_start(4)
    before = kept(folder)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        compile_at_a_new_start()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    (line,) = caplog.messages
    assert "compiled program jit_doubled cannot be written (OSError: [Errno 27]" in line
    assert kept(folder) == before
    compile_at_a_new_start()
    assert len(kept(folder)) == 2


def test_where_nothing_can_be_removed_the_line_says_what_to_do(folder, caplog, monkeypatch):
    compile_at_a_new_start()
    (name,) = kept(folder)
    (folder / name).write_bytes(b"")

    def read_only(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", read_only)
    compile_at_a_new_start()
    (line,) = caplog.messages
    assert "delete this folder or name another in JAX_COMPILATION_CACHE_DIR" in line
    assert kept(folder) == {name: b""}


@pytest.mark.usefixtures("folder")
def test_other_warnings_are_shown_as_ever(monkeypatch, caplog):
    shown = []
    monkeypatch.setattr(compiled_programs, "_show_other_warning", lambda *seen: shown.append(seen))
    warnings.warn("something else", UserWarning, stacklevel=1)
    ((message, category, *_),) = shown
    assert (str(message), category) == ("something else", UserWarning)
    assert caplog.messages == []

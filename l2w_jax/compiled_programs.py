"""Compiled programs, kept from one start of a command to the next; those cut short are removed."""

import contextlib
import logging
import os
import re
import tempfile
import warnings
from pathlib import Path
from typing import Any

from l2w_jax import standard_output

_logger = logging.getLogger(__name__)

# JAX's warning about a kept program; it names no file.
_FAULT = re.compile(r"Error (reading|writing) persistent compilation cache entry for '(.*)': (.*)")

_show_other_warning = warnings.showwarning


def keep() -> None:
    """Has JAX keep what it compiles in JAX_COMPILATION_CACHE_DIR, or else in the user's home."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", _users_folder())
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    warnings.showwarning = _show_warning


def _users_folder() -> str | None:
    """The user's folder for compiled programs; None, with a warning, where there can be none.

    No other folder takes its place: programs in one that everybody can write to might be anybody's.
    """
    try:
        folder = Path.home() / ".cache" / "l2w_jax" / "compiled"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return str(folder)
    except (OSError, RuntimeError) as error:
        standard_output.tell(
            f"compiled programs are not kept, so that every start compiles anew ({error}); name a "
            "folder for them in JAX_COMPILATION_CACHE_DIR"
        )
        # Matplotlib finds itself another folder, and would say so in two more lines.
        logging.getLogger("matplotlib").setLevel(logging.ERROR)
        return None


def _show_warning(message: Warning | str, *arguments: Any, **settings: Any) -> None:
    """Shows a warning; if JAX's about a kept program, removes its file and logs one line instead.

    JAX replaces no file: one that a kill or a full disk has cut short would stay, and its program
    be compiled anew at every start. After the warning JAX compiles the program and writes it.
    """
    import jax

    fault = _FAULT.match(str(message))
    if not fault:
        _show_other_warning(message, *arguments, **settings)
        return
    verb, program, reason = fault.groups()
    folder = jax.config.jax_compilation_cache_dir
    # Logged, because that never raises: no run fails for this.
    _logger.warning(
        "%s: compiled program %s cannot be %s (%s), so it is compiled anew; %s",
        folder,
        program,
        {"reading": "read", "writing": "written"}[verb],
        reason,
        "what there was of it is removed"
        if _remove_cut_short(Path(folder), program)
        else "if every start says so, delete this folder or name another in "
        "JAX_COMPILATION_CACHE_DIR",
    )


def _remove_cut_short(folder: Path, program: str) -> bool:
    """Removes files of a program that cannot be decompressed; returns whether there was any.

    A program has a file for each of its shapes and devices, all under its name. A file that another
    process is writing right now may be taken for cut short: the next start writes it again.
    """
    try:
        # How JAX compresses depends on which libraries are there. It has no public way to ask.
        from jax._src.compilation_cache import decompress_executable
    except ImportError:
        return False

    removed = False
    for path in folder.glob("*-cache"):
        if not re.fullmatch(re.escape(program) + "-[0-9a-f]{64}-cache", path.name):
            continue
        with contextlib.suppress(OSError):
            content = path.read_bytes()
            try:
                decompress_executable(content)
            except Exception:
                path.unlink()
                removed = True
    return removed

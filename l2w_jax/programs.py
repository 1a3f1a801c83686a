"""The compiled training step, kept from one start of a run to the next and read while it is traced.

Before JAX's own cache can look a program up, the step has to be traced; only then is the program
loaded, which for a full network takes XLA:CPU longer still. But which program a run will need is
nearly certain: the one that the last run with this configuration needed. So that one is read in a
thread from the start on, and used if the trace, once it is done, proves to be the same.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import platform
import zlib
from pathlib import Path
from typing import Any

import jax
from absl import logging
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

from l2w_jax.files import write_atomically
from l2w_jax.training.step import CompiledTrainStep

# The number tells forms of the files apart.
_FOLDER = "l2w_jax_2"


def kept(step: CompiledTrainStep, run: str) -> CompiledTrainStep:
    """`step`, whose first call takes its program from disk, or leaves it there.

    Without JAX's compilation cache in a folder of this machine, and anywhere but on a single CPU
    device, `step` itself: elsewhere its program is in JAX's cache.

    Args:
        step: with a jitted update.
        run: what the program depends on; runs of which this is equal nearly always share it.
    """
    cache = jax.config.jax_compilation_cache_dir
    enabled = cache and "://" not in cache and jax.config.jax_enable_compilation_cache
    if not enabled or jax.default_backend() != "cpu" or jax.device_count() > 1:
        return step
    return dataclasses.replace(step, update=_KeptUpdate(step, run, Path(cache) / _FOLDER))


@dataclasses.dataclass(frozen=True)
class LoadedProgram:
    """A program from disk, which knows the leaves of its arguments and results but not the trees.

    Has what is used here of a `jax.stages.Compiled`.
    """

    on_leaves: jax.stages.Compiled
    out_tree: Any

    def __call__(self, *args: Any) -> Any:
        """Runs the program."""
        return jax.tree.unflatten(self.out_tree, self.on_leaves(*jax.tree.leaves(args)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.on_leaves, name)


class _KeptUpdate:
    """An update of a `CompiledTrainStep` for arguments of one structure and shape.

    Like a jitted function it can be lowered, and what that gives compiled.
    """

    def __init__(self, step: CompiledTrainStep, run: str, folder: Path):
        self._jitted = step.update
        self._environment = _environment(step.compiler_options)
        self._folder = folder
        # Holds the name of the program that such a run used last.
        self._pointer = folder / f"{_digest(run, self._environment)}.latest"
        self._expected = _read_text(self._pointer)
        if self._expected:
            thread = concurrent.futures.ThreadPoolExecutor(max_workers=1)
            self._reading = thread.submit(_read_program, folder / self._expected)
            thread.shutdown(wait=False)
        self._program = None

    def __call__(self, *args: Any) -> Any:
        if self._program is None:
            self._program = self.lower(*args).compile()
        return self._program(*args)

    def lower(self, *args: Any) -> "_KeptLowering":
        return _KeptLowering(self, self._jitted.lower(*args))

    def program_of(self, lowered: jax.stages.Lowered) -> jax.stages.Compiled | LoadedProgram:
        """The program of `lowered`: the one read ahead if that is it, or from disk, or compiled."""
        name = _digest(lowered.as_text(), self._environment) + ".program"
        found = name == self._expected
        on_leaves = self._reading.result() if found else _read_program(self._folder / name)
        if on_leaves is not None:
            if not found:
                _write(self._pointer, name)
            return LoadedProgram(on_leaves, lowered.out_tree)
        compiled = _compile_anew(lowered)
        if _write(self._folder / name, _serialize(compiled)):
            _write(self._pointer, name)
        return compiled


@dataclasses.dataclass(frozen=True)
class _KeptLowering:
    update: _KeptUpdate
    lowered: jax.stages.Lowered

    def compile(self) -> jax.stages.Compiled | LoadedProgram:
        return self.update.program_of(self.lowered)


def _environment(compiler_options: dict[str, str] | None) -> str:
    """What a program depends on beside the function: libraries, settings and the processor."""
    settings = {name: os.environ[name] for name in os.environ if name.startswith(("JAX_", "XLA_"))}
    return json.dumps(
        [jax.__version__, jax.lib.__version__, compiler_options, settings, _processor()],
        sort_keys=True,
    )


def _processor() -> str:
    """What the processor can do, for which XLA:CPU compiles; its computer, where that is unsaid."""
    for line in _read_text(Path("/proc/cpuinfo")).splitlines():
        if line.lower().startswith(("flags", "features")):
            return line
    return f"{platform.node()} {platform.processor()}"


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def _compile_anew(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compiles past JAX's cache, since XLA:CPU cannot serialise in full what came from there."""
    _enable_cache(False)
    try:
        return lowered.compile()
    finally:
        _enable_cache(True)


def _enable_cache(enabled: bool) -> None:
    jax.config.update("jax_enable_compilation_cache", enabled)
    # JAX remembers whether its cache was enabled when it was first looked at.
    compilation_cache.reset_cache()


def _serialize(compiled: jax.stages.Compiled) -> bytes:
    """The numbers of leaves of arguments and results, and the program, compressed.

    What is damaged does not decompress: zlib has a checksum of all.
    """
    program, in_tree, out_tree = serialize_executable.serialize(compiled)
    header = f"{in_tree.num_leaves} {out_tree.num_leaves}\n".encode()
    return zlib.compress(header + program, level=1)


def _read_program(path: Path) -> jax.stages.Compiled | None:
    """A program, to be called with leaves; None where there is none or the file is damaged."""
    try:
        header, program = zlib.decompress(path.read_bytes()).split(b"\n", 1)
        num_arguments, num_results = map(int, header.split())
        return serialize_executable.deserialize_and_load(
            program,
            in_tree=jax.tree.structure(((0,) * num_arguments, {})),
            out_tree=jax.tree.structure((0,) * num_results),
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:
        # Whatever the libraries raise at a damaged file; a new one will take its place.
        logging.warning("%s: compiled anew, since it cannot be read: %s", path, error)
        return None


def _read_text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def _write(path: Path, content: str | bytes) -> bool:
    """Whether the file could be written: a run goes on without it."""
    try:
        write_atomically(path, content)
    except OSError as error:
        logging.warning("%s: the compiled program is not kept: %s", path, error.strerror)
        return False
    return True

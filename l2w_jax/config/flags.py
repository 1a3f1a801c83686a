"""The command line of a configuration: its file, fields set to other values, the run folder."""

import ast
import difflib
import re
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from l2w_jax.config.choices import is_network, not_allowed, type_name
from l2w_jax.config.defaults import default_config
from l2w_jax.config.paths import local_path
from l2w_jax.config.stored import fields
from l2w_jax.errors import UserError


class Arguments(NamedTuple):
    """What the command line says."""

    config: ConfigDict
    workdir: Path
    mode: str


def parse(argv: Sequence[str]) -> Arguments:
    """Reads the command line.

    Raises:
        UserError: a flag, the configuration file or an override in it is wrong.
    """
    config_argument, others = _config_and_others(argv)
    _check_config_file(config_argument)
    _check_overrides(others)
    # ml_collections wants --config before the overrides, which stand anywhere on other command
    # lines.
    argv = [argv[0], f"--config={config_argument}", *others]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    flags.DEFINE_string("workdir", None, "The run folder.", flag_values=values)
    flags.DEFINE_enum("mode", "train", ["train", "evaluate"], "What to do.", flag_values=values)
    try:
        surplus = values(argv)[1:]
    except UserError:
        raise
    except flags.IllegalFlagValueError as error:
        fault = _of_wrong_type(others) or _of_config_file(config_argument, error)
        raise UserError(fault or _last_line(error)) from error
    except flags.Error as error:
        raise UserError(_last_line(error)) from error
    except SyntaxError as error:
        raise UserError(f"{error.filename}: line {error.lineno}: {error.msg}") from error
    except AttributeError as error:
        lacks = "get_config" in str(error)
        reason = "must define get_config(variant)" if lacks else _last_line(error)
        fault = _of_config_file(config_argument, error)
        raise UserError(fault or f"--config={config_argument}: {reason}") from error
    except Exception as error:
        fault = _of_config_file(config_argument, error)
        raise UserError(fault or f"--config={config_argument}: {_last_line(error)}") from error
    if not isinstance(values.config, ConfigDict):
        raise UserError(f"--config={config_argument}: get_config() must return a ConfigDict")
    model = values.config.get("model")
    if is_network(model):
        allowed = "a section of fields, which a run's folder can hold"
        raise UserError(not_allowed("model", type(model).__name__, allowed))
    if surplus:
        raise UserError(f"{surplus[0]!r}: unexpected argument; all begin with --")
    return Arguments(
        config=values.config,
        workdir=(
            _default_workdir(config_argument)
            if values.workdir is None
            else local_path(values.workdir, "--workdir=")
        ),
        mode=values.mode,
    )


def _config_and_others(argv: Sequence[str]) -> tuple[str, list[str]]:
    """The value of --config, and the arguments beside it, without the program's name.

    Raises:
        UserError: there is no --config, or more than one.
    """
    given, others = [], []
    arguments = iter(argv[1:])
    for argument in arguments:
        if match := re.fullmatch(r"--?config(?:=(.*))?", argument, re.DOTALL):
            given.append(next(arguments, "") if match[1] is None else match[1])
        else:
            others.append(argument)
    if not given:
        raise UserError("--config=configs/NAME.py is required")
    if len(given) > 1:
        raise UserError(f"--config: must be given once, is given as {' and '.join(given)}")
    return given[0], others


def _check_config_file(config_argument: str) -> None:
    """Raises UserError where --config names no Python file."""
    path = Path(config_argument.split(":", 1)[0])
    if not config_argument:
        fault = "must not be empty"
    elif path.is_dir():
        fault = "is a folder; must be a file in it"
    elif not path.is_file():
        fault = f"there is no file {path}{_similar_file(path)}"
    elif path.suffix != ".py":
        fault = "must be a Python file, its name ending in .py"
    else:
        return
    raise UserError(f"--config={config_argument}: {fault}")


def _similar_file(path: Path) -> str:
    names = [str(other) for other in sorted(path.parent.glob("*.py"))]
    nearest = difflib.get_close_matches(str(path), names, n=1, cutoff=0)
    return f"; the nearest that exists is {nearest[0]}" if nearest else ""


def _check_overrides(arguments: Sequence[str]) -> None:
    """Names the nearest field for each override of one that does not exist.

    Raises:
        UserError: there is such an override.
    """
    known = [name for name, _ in fields(default_config())]
    faults = []
    for argument in arguments:
        match = re.match(r"--?(?:no)?config\.([^=]*)", argument)
        section = [name for name in known if match and name.startswith(f"{match[1]}.")]
        if section:
            faults.append(f"--config.{match[1]}: must name one of its fields, such as {section[0]}")
        elif match and match[1] not in known:
            faults.append(f"--config.{match[1]}: unknown field: {_similar_field(match[1], known)}")
    if faults:
        raise UserError("\n".join(faults))


def _similar_field(name: str, known: Sequence[str]) -> str:
    """Says which fields there are where one of this name was looked for."""
    name = name.lower()
    section, _, _ = name.rpartition(".")
    beside = [
        other.removeprefix(f"{section}.") for other in known if other.startswith(f"{section}.")
    ]
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.8 if beside else 0)
    if nearest:
        return f"the nearest that exists is --config.{nearest[0]}"
    return f"config.{section} has {', '.join(beside)}"


def _of_wrong_type(arguments: Sequence[str]) -> str:
    """A line for each override that cannot be of its field's type."""
    defaults = dict(fields(default_config()))
    faults = []
    for argument in arguments:
        match = re.fullmatch(r"--?config\.([^=]*)=(.*)", argument, re.DOTALL)
        if match and not _is_like(defaults[match[1]], match[2]):
            faults.append(not_allowed(match[1], match[2], type_name(defaults[match[1]])))
    return "\n".join(faults)


def _is_like(default: Any, text: str) -> bool:
    """Whether the text of an override can be read as a value of the default's type."""
    try:
        if isinstance(default, bool):
            return text.lower() in ("true", "t", "1", "false", "f", "0")
        if isinstance(default, tuple):
            ast.literal_eval(text)
        else:
            type(default)(text)
    except (ValueError, SyntaxError):
        return False
    return True


def _of_config_file(config_argument: str, error: BaseException) -> str:
    """Says at which line the code of the configuration file failed, and how; "" where it did not.

    absl raises anew what that code raises as a TypeError or ValueError.
    """
    path = config_argument.partition(":")[0]
    raised: BaseException | None = error
    while raised is not None:
        frames = traceback.extract_tb(raised.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == path]
        if lines:
            what = "".join(traceback.format_exception_only(raised))
            return f"{path}: line {lines[-1]}: {' '.join(what.split())}"
        raised = raised.__context__
    return ""


def _default_workdir(config_argument: str) -> Path:
    path, _, variant = config_argument.partition(":")
    name = Path(path).stem + (f"_{variant}" if variant else "")
    return Path("runs") / re.sub(r"[^\w.=-]+", "_", name)


def _last_line(error: BaseException) -> str:
    """The line of an error that says what is wrong; absl appends it to a whole traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__

"""The command line of a configuration: its file, fields set to other values, the run folder."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from l2w_jax.config.choices import not_allowed, type_name
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
    argv = _with_config_first(argv)
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=list(argv))
    flags.DEFINE_string("workdir", "", "The run folder.", flag_values=values)
    flags.DEFINE_enum("mode", "train", ["train", "evaluate"], "What to do.", flag_values=values)
    config_argument = _config_argument(argv)
    _check_overrides(argv)
    try:
        surplus = values(list(argv))[1:]
    except UserError:
        raise
    except flags.IllegalFlagValueError as error:
        raise UserError(_of_wrong_type(argv) or _last_line(error)) from error
    except flags.Error as error:
        raise UserError(_last_line(error)) from error
    except SyntaxError as error:
        raise UserError(f"{error.filename}: line {error.lineno}: {error.msg}") from error
    except AttributeError as error:
        lacks = "get_config" in str(error)
        reason = "must define get_config(variant)" if lacks else _last_line(error)
        raise UserError(f"--config={config_argument}: {reason}") from error
    except Exception as error:
        # Whatever the code in the configuration file raises.
        raise UserError(f"--config={config_argument}: {_last_line(error)}") from error
    if not isinstance(values.config, ConfigDict):
        raise UserError(f"--config={config_argument}: get_config() must return a ConfigDict")
    if surplus:
        raise UserError(f"{surplus[0]!r}: unexpected argument; all begin with --")
    return Arguments(
        config=values.config,
        workdir=(
            local_path(values.workdir, "--workdir=")
            if values.workdir
            else _default_workdir(config_argument)
        ),
        mode=values.mode,
    )


def _with_config_first(argv: Sequence[str]) -> list[str]:
    """The arguments with --config before the others, where ml_collections wants it.

    An override can then stand anywhere, as on other command lines.
    """
    program, *others = argv
    named, rest = [], []
    while others:
        argument = others.pop(0)
        if re.fullmatch(r"--?config", argument):
            named += [argument, *others[:1]]
            del others[:1]
        elif re.match(r"--?config=", argument):
            named.append(argument)
        else:
            rest.append(argument)
    return [program, *named, *rest]


def _config_argument(argv: Sequence[str]) -> str:
    """The value of --config, whose file exists."""
    for index, argument in enumerate(argv):
        if match := re.fullmatch(r"--?config(=(.*))?", argument):
            following = argv[index + 1] if index + 1 < len(argv) else ""
            value = match[2] if match[1] else following
            path = Path(value.split(":", 1)[0])
            if path.is_dir():
                raise UserError(f"--config={value}: is a folder; must be a file in it")
            if not path.is_file():
                raise UserError(f"--config={value}: there is no file {path}{_similar_file(path)}")
            if path.suffix != ".py":
                raise UserError(f"--config={value}: must be a Python file, its name ending in .py")
            return value
    raise UserError("--config=configs/NAME.py is required")


def _similar_file(path: Path) -> str:
    names = [str(other) for other in sorted(path.parent.glob("*.py"))]
    nearest = difflib.get_close_matches(str(path), names, n=1, cutoff=0)
    return f"; the nearest that exists is {nearest[0]}" if nearest else ""


def _check_overrides(argv: Sequence[str]) -> None:
    """Names the nearest field for each override of one that does not exist.

    Raises:
        UserError: there is such an override.
    """
    known = [name for name, _ in fields(default_config())]
    faults = []
    for argument in argv:
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
    section, _, _ = name.rpartition(".")
    beside = [
        other.removeprefix(f"{section}.") for other in known if other.startswith(f"{section}.")
    ]
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.8 if beside else 0)
    if nearest:
        return f"the nearest that exists is --config.{nearest[0]}"
    return f"config.{section} has {', '.join(beside)}"


def _of_wrong_type(argv: Sequence[str]) -> str:
    """A line for each override that cannot be of its field's type."""
    defaults = dict(fields(default_config()))
    faults = []
    for argument in argv:
        match = re.fullmatch(r"--?config\.([^=]*)=(.*)", argument)
        default = defaults[match[1]] if match else None
        if isinstance(default, bool):
            is_wrong = match[2].lower() not in ("true", "t", "1", "false", "f", "0")
        else:
            is_wrong = isinstance(default, int | float) and not _is_a(type(default), match[2])
        if is_wrong:
            faults.append(not_allowed(match[1], match[2], type_name(default)))
    return "\n".join(faults)


def _is_a(number: type[int] | type[float], text: str) -> bool:
    try:
        number(text)
    except ValueError:
        return False
    return True


def _default_workdir(config_argument: str) -> Path:
    path, _, variant = config_argument.partition(":")
    name = Path(path).stem + (f"_{variant}" if variant else "")
    return Path("runs") / re.sub(r"[^\w.=-]+", "_", name)


def _last_line(error: BaseException) -> str:
    """The line of an error that says what is wrong; absl appends it to a whole traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__

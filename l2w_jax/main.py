"""Trains a multi-exit network with learned sample weights, and evaluates it.

    python -m l2w_jax.main --config=configs/NAME.py[:VARIANT] [--config.a.b=VALUE ...]
        [--workdir=FOLDER] [--mode=train|evaluate]

The same command again goes on where the run stopped. Training ends with the evaluation that
--mode=evaluate does by itself: of the checkpoint with the best held-out top-1 at the last exit.

Exit status: 0 done; 1 the run failed; 2 bad input, and nothing was written; 75 stopped by SIGTERM
or SIGINT after saving, to be started again.
"""

import difflib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from l2w_jax import command_line
from l2w_jax import config as run_config
from l2w_jax import workdir as run_folder
from l2w_jax.errors import UserError


class Arguments(NamedTuple):
    """What the command line says."""

    config: ConfigDict
    workdir: Path
    mode: str


def main(argv: Sequence[str]) -> int:
    """Runs the command line.

    Args:
      argv: program name and arguments.

    Returns:
      The exit status.
    """
    if {"--help", "-h"} & set(argv):
        print(__doc__)
        return 0
    try:
        run(parse(argv))
    except UserError as error:
        print(error, file=sys.stderr, flush=True)
        return error.exit_status
    return 0


def parse(argv: Sequence[str]) -> Arguments:
    """Reads the command line.

    Raises:
      UserError: a flag, the configuration file or an override in it is wrong.
    """
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
    except flags.Error as error:
        raise UserError(_last_line(error)) from error
    except SyntaxError as error:
        raise UserError(f"{error.filename}: line {error.lineno}: {error.msg}") from error
    except Exception as error:
        # Whatever the code in the configuration file raises.
        raise UserError(f"--config={config_argument}: {_last_line(error)}") from error
    if not isinstance(values.config, ConfigDict):
        raise UserError(f"--config={config_argument}: get_config() must return a ConfigDict")
    if surplus:
        raise UserError(f"{surplus[0]!r}: not understood; arguments begin with --")
    return Arguments(
        config=values.config,
        workdir=Path(values.workdir) if values.workdir else _default_workdir(config_argument),
        mode=values.mode,
    )


def run(arguments: Arguments) -> None:
    """Trains or evaluates, together with the other processes of the run if there are any.

    Raises:
      UserError: see `errors`.
    """
    run_config.validate(arguments.config)
    run_folder.check(arguments.config, arguments.workdir)
    # From here on what is imported takes seconds, so what can be wrong without it comes before.
    command_line.set_up_libraries()
    from l2w_jax import processes

    with processes.joined():
        _train_or_evaluate(arguments)


def _train_or_evaluate(arguments: Arguments) -> None:
    import jax

    from l2w_jax import checkpoints, data, processes

    config, workdir, mode = arguments
    run_config.validate(config, jax.device_count(), jax.process_count())
    if mode == "evaluate" and not checkpoints.has_checkpoint(workdir):
        raise UserError(f"--workdir={workdir}: no checkpoint to evaluate; train first")
    source = data.open_source(config)

    from l2w_jax import evaluate, loop, report

    with processes.held_by_first(run_folder.exclusive_use(config, workdir)):
        if mode == "train":
            loop.train(config, source, workdir)
        state = loop.restore_best(config, workdir)
        results = evaluate.evaluate(config, state, source, workdir)
        if processes.is_first():
            page = report.write_report([workdir])
            print("\n".join(evaluate.summary_lines(results)))
            print(f"written to {workdir}; open {page}")


def _config_argument(argv: Sequence[str]) -> str:
    """The value of --config, whose file exists."""
    for index, argument in enumerate(argv):
        if match := re.fullmatch(r"--?config(=(.*))?", argument):
            following = argv[index + 1] if index + 1 < len(argv) else ""
            value = match[2] if match[1] else following
            path = Path(value.split(":", 1)[0])
            if not path.is_file():
                raise UserError(f"--config={value}: there is no file {path}{_similar_file(path)}")
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
    known = _field_names(run_config.default_config())
    faults = []
    for argument in argv:
        match = re.match(r"--?(?:no)?config\.([^=]*)", argument)
        if match and match[1] not in known:
            nearest = difflib.get_close_matches(match[1], known, n=1, cutoff=0)[0]
            faults.append(
                f"--config.{match[1]}: unknown field: the nearest that exists is --config.{nearest}"
            )
    if faults:
        raise UserError("\n".join(faults))


def _field_names(config: ConfigDict, prefix: str = "") -> list[str]:
    names = []
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            names += _field_names(value, f"{prefix}{name}.")
        else:
            names.append(f"{prefix}{name}")
    return names


def _default_workdir(config_argument: str) -> Path:
    path, _, variant = config_argument.partition(":")
    name = Path(path).stem + (f"_{variant}" if variant else "")
    return Path("runs") / re.sub(r"[^\w.=-]+", "_", name)


def _last_line(error: BaseException) -> str:
    """The line of an error that says what is wrong; absl appends it to a whole traceback."""
    return [line for line in str(error).splitlines() if line.strip()][-1].strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv))

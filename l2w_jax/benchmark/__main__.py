"""Measures what a training step costs on this machine, and prints it as JSON.

    python -m l2w_jax.benchmark --config=configs/NAME.py[:VARIANT] [--config.a.b=VALUE ...]
        [--steps=N] [--no-cache] [--compare=OLD.json]

Two ways to update the configuration's network on the same number of images are compared: "plain",
an SGD step on half the batch, and "weighted", a half-step of what the configuration says, meta
update included. Reported are XLA's counts of floating-point operations, of temporary memory and of
kernels (instructions of the compiled program that compute or move), the median time of an update,
and the seconds from the start of the program to the end of the first update, with what they were
spent on. Images are random: no data set is read.

--no-cache compiles anew. --compare prints the ratio of each number to that of an earlier output.

    python -m l2w_jax.benchmark --config=configs/NAME.py[:VARIANT] --topology=v5e:2x2|h100:8
        [--against=plain]

compiles the step for a slice of TPUs or the GPUs of a machine, which need not be there, and prints
what it holds, moves and computes on each; of GPUs, what it holds and moves. --against=plain does
the same for plain training on as many images, and prints the ratios. The compilers come with
`pip install -e '.[tpu]'` and `'.[cuda]'`.

    python -m l2w_jax.benchmark --early-exit --workdir=RUN [--runtime=jax,onnx,onnx_1_thread]

times, on test images of an evaluated run, the full network, each exit and stopping early along the
budgeted curve, one image at a time and in batches; RUN/latency.json and RUN/plots/latency.png show
it, and so does the run's next report. "jax", the default, is this package's predictor, "onnx" what
it exports to ONNX, "onnx_1_thread" the same with one thread, "torch" and "torch_channels_last" an
MSDNet in PyTorch; of several, each is timed by turns.

    python -m l2w_jax.benchmark --input [--steps=N]

makes a folder of JPEGs of ImageNet's size and times N batches of random crops from it, beside what
decoding the same crops alone takes on the same cores.
"""

import argparse
import functools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from l2w_jax import command_line, standard_output
from l2w_jax.config import flags, validate
from l2w_jax.errors import UserError

# The options that each kind of benchmark takes besides the one that asks for it and its config, and
# those of the benchmark of an update, which no option asks for.
_OPTIONS = {
    "early_exit": ("workdir", "runtime"),
    "input": ("steps",),
    "topology": ("against",),
}
_OF_UPDATE = ("steps", "no_cache", "compare")


def main(argv: Sequence[str], started: float) -> None:
    """Runs the command.

    Args:
        started: `time.monotonic()` when the program began.

    Raises:
        UserError: an argument, the configuration or the file to compare with is wrong.
    """
    arguments, config_arguments = _parser().parse_known_args(argv)
    _check_options(arguments)
    if arguments.steps < 1:
        raise UserError(f"--steps: {arguments.steps} is not allowed: must be at least 1")
    if arguments.early_exit:
        if arguments.workdir is None or config_arguments:
            raise UserError("--early-exit: needs --workdir=RUN and takes no --config")
        from l2w_jax.benchmark.early_exit import (
            LATENCY_PICTURE,
            benchmark_early_exit,
            write_latency,
        )
        from l2w_jax.benchmark.runtimes import checked_runtimes
        from l2w_jax.evaluation import results

        runtimes = checked_runtimes(arguments.runtime.split(","))
        latency = benchmark_early_exit(arguments.workdir, runtimes)
        # Printed before it is written: another user's folder may take no file.
        print(json.dumps(latency, indent=2), flush=True)
        write_latency(arguments.workdir, latency)
        files = [arguments.workdir / results.LATENCY_FILE, arguments.workdir / LATENCY_PICTURE]
        standard_output.tell("written to {} and {}".format(*files))
        return
    if arguments.input:
        if config_arguments:
            raise UserError("--input: takes no --config")
        if arguments.steps < 2:
            raise UserError("--steps: 1 is not allowed: must be at least 2 with --input")
        from l2w_jax.benchmark.input import benchmark_input

        print(json.dumps(benchmark_input(arguments.steps), indent=2))
        return
    config = flags.parse(["benchmark", *config_arguments]).config
    if arguments.topology is not None:
        from l2w_jax.benchmark.topology import find_slice, measure_on

        chips = find_slice(arguments.topology)
        validate(config, len(chips.devices))
        report = measure_on(config, chips, arguments.against == "plain")
        print(json.dumps(report, indent=2))
        return
    old = _read(arguments.compare) if arguments.compare else None
    import jax

    from l2w_jax.benchmark.update import measure, ratios

    if arguments.no_cache:
        jax.config.update("jax_enable_compilation_cache", False)
    validate(config, jax.device_count())
    report = measure(config, arguments.steps, started)
    if old is not None:
        report["ratio_to_old"] = ratios(report, old)
    print(json.dumps(report, indent=2))


def _check_options(arguments: argparse.Namespace) -> None:
    """Raises UserError where an option belongs to another kind of benchmark than the one asked."""
    defaults = _parser().parse_args([])
    kind = next((kind for kind in _OPTIONS if getattr(arguments, kind) not in (None, False)), None)
    heeded = {kind, *_OPTIONS.get(kind, _OF_UPDATE)}
    for name, value in vars(arguments).items():
        if value == getattr(defaults, name) or name in heeded:
            continue
        of_others = [other for other in _OPTIONS if name in _OPTIONS[other]]
        where = f"without --{of_others[0]}" if of_others and kind is None else f"with --{kind}"
        raise UserError(f"--{name}: is not allowed {where}".replace("_", "-"))


def _read(path: Path) -> dict[str, Any]:
    try:
        report = json.loads(path.read_text())
        if not isinstance(report, dict):
            raise ValueError("no object")
        # Every report on updates has these.
        if not isinstance(report.get("plain"), dict) or "seconds" not in report["plain"]:
            raise ValueError("it has no 'plain' with 'seconds' of an update")
        return report
    except OSError as error:
        raise UserError(f"--compare={path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"--compare={path}: not the output of this command: {error}") from error


def _parser() -> argparse.ArgumentParser:
    parser = command_line.ArgumentParser("benchmark", __doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--steps", type=int, default=10, help="updates or batches to time; default: 10")
    add("--no-cache", action="store_true", help="compile anew")
    add("--compare", type=Path, help="a file of earlier output, to print ratios to it")
    add("--topology", help="TPUs or GPUs to compile for, such as v5e:2x2 or h100:8")
    add("--against", choices=["plain"], help="compile plain training beside it")
    add("--early-exit", action="store_true", help="time leaving early, of an evaluated run")
    add(
        "--runtime",
        default="jax",
        help="what runs the network, names with commas between; default: jax",
    )
    add("--input", action="store_true", help="time reading images")
    add("--workdir", type=Path, help="folder of an evaluated run, for --early-exit")
    return parser


if __name__ == "__main__":
    _started = time.monotonic()
    command_line.run(functools.partial(main, started=_started))

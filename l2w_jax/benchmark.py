"""Measures what a training step costs on this machine, and prints it as JSON.

    python -m l2w_jax.benchmark --config=configs/NAME.py[:VARIANT] [--config.a.b=VALUE ...]
        [--steps=N] [--no-cache] [--compare=OLD.json]

Two ways to update the configuration's network on the same number of images are compared: "plain",
an SGD step on half the batch, and "weighted", a half-step of what the configuration says, meta
update included. Reported are XLA's counts of floating-point operations, of temporary memory and of
kernels (instructions of the compiled program that compute or copy), the median time of an update,
and the seconds from the start of the program to the end of the first update, with what they were
spent on. Images are random: no data set is read.

--no-cache compiles anew. --compare prints the ratio of each number to that of an earlier output.

    python -m l2w_jax.benchmark --early-exit --workdir=RUN

times, on test images of an evaluated run, the full network, each exit and stopping early along the
budgeted curve, one image at a time and in batches; RUN/latency.json and RUN/plots/latency.png show
it, and so does the run's next report.

    python -m l2w_jax.benchmark --input [--steps=N]

makes a folder of JPEGs of ImageNet's size and times N batches of random crops from it, beside what
decoding the same crops alone takes on the same cores.
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from l2w_jax import command_line
from l2w_jax import config as run_config
from l2w_jax import main as training_command
from l2w_jax.errors import UserError

_WITHOUT_KERNEL = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast")

# A run so long that its learning rates do not fall while it is measured.
_TOTAL_STEPS = 1_000_000


def main(argv: Sequence[str], started: float) -> None:
    """Runs the command.

    Args:
        argv: arguments without the program's name.
        started: `time.monotonic()` when the program began.

    Raises:
        UserError: an argument, the configuration or the file to compare with is wrong.
    """
    arguments, config_arguments = _parser().parse_known_args(argv)
    if arguments.steps < 1:
        raise UserError(f"--steps: {arguments.steps} is not allowed: must be at least 1")
    if arguments.early_exit:
        if arguments.workdir is None or config_arguments:
            raise UserError("--early-exit: --workdir=RUN is required, and no other argument")
        from l2w_jax.early_exit_benchmark import benchmark_early_exit

        print(json.dumps(benchmark_early_exit(arguments.workdir), indent=2))
        return
    if arguments.input:
        if config_arguments or arguments.workdir:
            raise UserError("--input: takes no other argument than --steps")
        if arguments.steps < 2:
            raise UserError("--steps: 1 is not allowed: must be at least 2 with --input")
        from l2w_jax.input_benchmark import benchmark_input

        print(json.dumps(benchmark_input(arguments.steps), indent=2))
        return
    config = training_command.parse(["benchmark", *config_arguments]).config
    old = _read(arguments.compare) if arguments.compare else None
    import jax

    if arguments.no_cache:
        jax.config.update("jax_enable_compilation_cache", False)
    run_config.validate(config, jax.device_count())
    report = measure(config, arguments.steps, started)
    if old is not None:
        report["ratio_to_old"] = ratios(report, old)
    print(json.dumps(report, indent=2))


def measure(config: ConfigDict, num_steps: int, started: float) -> dict[str, Any]:
    """The report on both steps.

    Args:
        config: a run's configuration, checked.
        num_steps: steps to time.
        started: `time.monotonic()` when the program began.
    """
    import jax

    halved = config.weighting.kind != "none"
    batch_size = config.dataset.batch_size
    weighted = measure_update(config, batch_size, num_steps, started)
    report = {
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
        "images_per_update": batch_size // 2 if halved else batch_size,
    }
    if not halved:
        return report | {"plain": weighted}
    plain_config = config.copy_and_resolve_references()
    plain_config.weighting.kind = "none"
    plain = measure_update(plain_config, batch_size // 2, num_steps, time.monotonic())
    compared = ("gigaflops", "temporary_megabytes", "kernels", "seconds")
    return report | {
        "plain": plain,
        "weighted": weighted,
        "ratio": {name: weighted[name] / plain[name] for name in compared},
    }


def measure_update(
    config: ConfigDict, batch_size: int, num_steps: int, started: float
) -> dict[str, float]:
    """What one update over all devices costs and how long it takes to get there.

    Args:
        config: a run's configuration.
        batch_size: images of an iteration, over all devices.
        num_steps: updates to time.
        started: when the seconds to the first update began, by `time.monotonic()`.

    Returns:
        gigaflops, temporary_megabytes and kernels of one device, seconds (median) of an update,
        images_per_second of all devices, and seconds_to_first_step, of which seconds_tracing and
        seconds_compiling (or reading from the cache).
    """
    import jax
    import numpy as np

    from l2w_jax.devices import device_batches, place_replicated, step_on_devices, with_previous
    from l2w_jax.training import create_train_state
    from l2w_jax.training.weighting import is_pipelined

    step = step_on_devices(config, _TOTAL_STEPS)
    state = place_replicated(create_train_state(config, jax.random.key(config.seed)))
    batches = device_batches(_random_batches(config, batch_size))
    if is_pipelined(config.weighting):
        unpaired = batches
        batches = with_previous(lambda step: unpaired, first_step=0)
    batch = next(batches)
    first = np.int32(0)

    start = time.monotonic()
    lowered = step.update.lower(state, batch, first)
    traced = time.monotonic()
    compiled = lowered.compile()
    compiled_at = time.monotonic()
    state, metrics = compiled(state, batch, first)
    jax.block_until_ready((state, metrics))
    first_step_done = time.monotonic()

    durations = []
    for _ in range(num_steps):
        batch = next(batches)
        begun = time.monotonic()
        state, metrics = compiled(state, batch, first)
        jax.block_until_ready((state, metrics))
        durations.append(time.monotonic() - begun)
    batches.close()
    seconds = float(np.median(durations))
    return {
        "gigaflops": compiled.cost_analysis()["flops"] / 1e9,
        "temporary_megabytes": compiled.memory_analysis().temp_size_in_bytes / 1e6,
        "kernels": float(num_kernels(compiled.as_text())),
        "seconds": seconds,
        "images_per_second": batch_size / step.num_updates / seconds,
        "seconds_to_first_step": first_step_done - started,
        "seconds_tracing": traced - start,
        "seconds_compiling": compiled_at - traced,
    }


def num_kernels(compiled_text: str) -> int:
    """Instructions of a compiled program that compute or copy something, each fusion one.

    What a loop or a condition holds counts once.

    Args:
        compiled_text: the program as XLA prints it, one instruction a line.
    """
    computations = {
        match["name"]: match["body"]
        for match in re.finditer(
            r"^(?:ENTRY )?%(?P<name>\S+) .*\{\n(?P<body>(?: .*\n)*)\}", compiled_text, re.MULTILINE
        )
    }
    entry = re.search(r"^ENTRY %(\S+)", compiled_text, re.MULTILINE)[1]

    def count(name: str) -> int:
        body = computations[name]
        operations = re.findall(
            r"^ +(?:ROOT )?\S+ = (?:\(.*?\)|\S+) ([\w\-]+)\(", body, re.MULTILINE
        )
        called = re.findall(
            r"(?:body|condition|true_computation|false_computation)=%([\w.\-]+)", body
        )
        for branches in re.findall(r"branch_computations=\{(.*?)\}", body):
            called += re.findall(r"%([\w.\-]+)", branches)
        own = sum(operation not in _WITHOUT_KERNEL for operation in operations)
        return own + sum(count(name) for name in called)

    return count(entry)


def ratios(new: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """new / old for every number that both hold, nested as they are."""
    result: dict[str, Any] = {}
    for name in new.keys() & old.keys():
        if isinstance(new[name], Mapping):
            result[name] = ratios(new[name], old[name])
        elif isinstance(new[name], float) and old[name]:
            result[name] = new[name] / old[name]
    return dict(sorted(result.items()))


def _random_batches(config: ConfigDict, batch_size: int):
    import numpy as np

    generator = np.random.default_rng(0)
    size = config.dataset.image_size
    batch = {
        "image": generator.integers(0, 256, (batch_size, size, size, 3), np.uint8),
        "label": generator.integers(0, config.dataset.num_classes, batch_size, np.int32),
    }
    while True:
        yield batch


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"--compare={path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"--compare={path}: not the output of this command: {error}") from error


def _parser() -> argparse.ArgumentParser:
    parser = command_line.ArgumentParser(
        prog="python -m l2w_jax.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--no-cache", action="store_true")
    parser.add_argument("--compare", type=Path)
    parser.add_argument("--early-exit", action="store_true")
    parser.add_argument("--input", action="store_true")
    parser.add_argument("--workdir", type=Path)
    return parser


if __name__ == "__main__":
    _started = time.monotonic()
    command_line.run(lambda: main(sys.argv[1:], _started))

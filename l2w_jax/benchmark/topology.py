"""What a training step would cost on TPUs or GPUs that are not there, by their own compilers."""

import os
import re
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from ml_collections import ConfigDict

from l2w_jax.benchmark.program import (
    collectives,
    estimated_cycles,
    has_loops,
    memory_traffic,
    num_convolutions,
    num_copies,
    num_kernels,
)
from l2w_jax.benchmark.update import TOTAL_STEPS, plain_training
from l2w_jax.config.choices import updates_per_iteration
from l2w_jax.errors import UserError, first_line
from l2w_jax.run.devices import step_on_stored
from l2w_jax.run.parts import numbers_of_parts, with_parts
from l2w_jax.training import pmap_train_step
from l2w_jax.training.state import abstract_state
from l2w_jax.training.weighting import is_pipelined


class Chip(NamedTuple):
    """A chip's published figures.

    Attributes:
        flops: bfloat16 operations a second, in which TPUs multiply float32 by default too.
        bandwidth: bytes a second between the chip and its memory.
        memory: bytes of a GPU's memory that JAX takes unless it is told otherwise; None of a TPU,
            whose compiler refuses what does not fit.
    """

    flops: float
    bandwidth: float
    memory: float | None = None


# https://docs.cloud.google.com/tpu/docs/v5e, and the same address for the others, "Key chip
# specifications".
TPUS = {
    "v5e": Chip(197e12, 819e9),
    "v5p": Chip(459e12, 2765e9),
    "v6e": Chip(918e12, 1638e9),
}

# https://www.nvidia.com/en-us/data-center/h100/, SXM, without sparsity.
GPUS = {"h100": Chip(989e12, 3350e9, 0.75 * 84_929_347_584)}

# What XLA's compiler must know of a GPU that it cannot query: figures of the device's driver.
_DRIVERS_FIGURES = {
    "h100": """
        platform_name: "CUDA"
        device_description_str: "NVIDIA H100 80GB HBM3"
        dnn_version_info { major: 9 minor: 12 }
        runtime_version { major: 13 }
        gpu_device_info {
          cuda_compute_capability { major: 9 }
          core_count: 132
          fpus_per_core: 128
          threads_per_warp: 32
          threads_per_block_limit: 1024
          threads_per_core_limit: 2048
          registers_per_core_limit: 65536
          registers_per_block_limit: 65536
          shared_memory_per_core: 233472
          shared_memory_per_block: 49152
          shared_memory_per_block_optin: 232448
          block_dim_limit_x: 2147483647
          block_dim_limit_y: 65535
          block_dim_limit_z: 65535
          clock_rate_ghz: 1.98
          l2_cache_size: 52428800
          memory_bandwidth: 3352320000000
          device_memory_size: 84929347584
        }
    """
}

# Else libtpu asks the machine what TPUs it has, for minutes where it has none, and complains, and
# it refuses a second process. These settings do not affect what it compiles for.
_WITHOUT_TPUS = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}

_PER_IMAGE = ("gigaflops", "gigabytes_moved", "gigabytes_of_memory", "megacycles")
_AS_A_WHOLE = ("temporary_gigabytes", "kernels", "copies", "seconds_tracing", "seconds_compiling")


class Slice(NamedTuple):
    """Chips that work together.

    Attributes:
        name: kind and arrangement, such as "v5e:2x2".
        chip: what each is.
        devices: the chips, to compile for.
        compiler_options: to compile with.
    """

    name: str
    chip: Chip
    devices: list[jax.Device]
    compiler_options: dict[str, Any] | None = None


def measure_on(config: ConfigDict, chips: Slice, against_plain: bool) -> dict[str, Any]:
    """The report on an update of the configuration's step, compiled for a slice.

    Args:
        config: a run's configuration, checked for as many devices.
        chips: what to compile for.
        against_plain: whether to compile plain training on as many images beside it.

    Returns:
        What was measured, "step" by `measure_compiled`, and "plain" with the "ratio" of both; where
        the step does not fit also "step_that_fits", with the accumulation that it takes.
    """
    if not config.optimizer.accumulation:
        config = with_parts(config, 1)
    # The time to compile is part of the answer.
    jax.config.update("jax_enable_compilation_cache", False)
    halved = updates_per_iteration(config.weighting.kind) == 2
    batch_size = config.dataset.batch_size
    report = {
        "topology": chips.name,
        "chips": len(chips.devices),
        "jax": jax.__version__,
        "images_per_update": batch_size // 2 if halved else batch_size,
        "step": measure_compiled(config, batch_size, chips),
    }
    if not report["step"]["fits"]:
        report["step_that_fits"] = _in_parts(config, batch_size, chips)
    if not (against_plain and halved):
        return report
    plain = measure_compiled(plain_training(config), batch_size // 2, chips)
    report["plain"] = plain
    # Both train on as many images, so that these are the ratios per image as well.
    report["ratio"] = {
        name: report["step"][name] / plain[name]
        for name in (*_PER_IMAGE, *_AS_A_WHOLE)
        if report["step"].get(name) and plain.get(name)
    }
    return report


def _in_parts(config: ConfigDict, batch_size: int, chips: Slice) -> dict[str, Any] | None:
    """The same step with the least accumulation, a power of two more, with which it fits.

    Returns:
        optimizer.accumulation and the report of `measure_compiled`; None if no number will do.
    """
    first = 2 * config.optimizer.accumulation
    for parts in numbers_of_parts(config, len(chips.devices), first):
        report = measure_compiled(with_parts(config, parts), batch_size, chips)
        if report["fits"]:
            return {"optimizer.accumulation": parts, **report}
    return None


def measure_compiled(config: ConfigDict, batch_size: int, chips: Slice) -> dict[str, Any]:
    """What one update costs each chip, by its compiled program.

    Args:
        config: a run's configuration.
        batch_size: images of an iteration, over all chips.
        chips: what to compile for.

    Returns:
        fits, seconds_tracing and seconds_compiling; where it compiles also, of one chip:
        argument_gigabytes, temporary_gigabytes, kernels, copies, prefetches, collectives by kind,
        gigabytes_of_memory (read from and written to the chip's main memory) and
        milliseconds_of_memory, in which it can move them; for TPUs only, as a GPU's compiler does
        not count and leaves convolutions to libraries, megacycles (`estimated_cycles`),
        `num_convolutions` and, for a step in one part, since the compiler counts one pass of a
        loop, gigaflops, gigabytes_moved (also within the chip) and milliseconds_of_arithmetic.
        Where a TPU's compiler finds that it does not fit, only needed_gigabytes.
    """
    step = pmap_train_step(step_on_stored(config, TOTAL_STEPS, chips.devices), chips.devices)
    state = abstract_state(config)
    batch = _shapes_of_batch(config, len(chips.devices), batch_size)
    start = time.monotonic()
    lowered = step.update.lower(state, batch, np.int32(0))
    traced = time.monotonic()
    try:
        # A TPU's compiler refuses what does not fit the chip, arguments included.
        compiled = lowered.compile(chips.compiler_options)
    except jax.errors.JaxRuntimeError as error:
        needed = re.search(r"Ran out of memory.*?([\d.]+)G", str(error))
        if needed is None:
            raise
        return {
            "fits": False,
            "needed_gigabytes": float(needed[1]) * 2**30 / 1e9,
            "seconds_tracing": traced - start,
            "seconds_compiling": time.monotonic() - traced,
        }
    compiled_at = time.monotonic()
    memory, text = compiled.memory_analysis(), compiled.as_text()
    # The state is donated, and what comes back takes its place.
    needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return {
        "fits": chips.chip.memory is None or needed <= chips.chip.memory,
        **_counted(compiled.cost_analysis() or {}, text, chips.chip),
        "argument_gigabytes": memory.argument_size_in_bytes / 1e9,
        "temporary_gigabytes": memory.temp_size_in_bytes / 1e9,
        "kernels": num_kernels(text),
        **num_copies(text),
        "collectives": collectives(text),
        "seconds_tracing": traced - start,
        "seconds_compiling": compiled_at - traced,
    }


def _counted(cost: dict[str, float], text: str, chip: Chip) -> dict[str, float]:
    """Operations and bytes of a program, where counted, and the least time that each takes."""
    traffic = memory_traffic(text)
    counted = {
        "gigabytes_of_memory": traffic / 1e9,
        "milliseconds_of_memory": 1e3 * traffic / chip.bandwidth,
    }
    if "flops" not in cost:
        return counted
    counted |= {"megacycles": estimated_cycles(text) / 1e6, **num_convolutions(text)}
    if not has_loops(text):
        counted["gigaflops"] = cost["flops"] / 1e9
        counted["milliseconds_of_arithmetic"] = 1e3 * cost["flops"] / chip.flops
        counted["gigabytes_moved"] = cost["bytes accessed"] / 1e9
    return counted


def find_slice(name: str) -> Slice:
    """The chips of a slice, which need not be there.

    Args:
        name: kind and arrangement, such as "v5e:2x2", or of GPUs in one machine their number, such
            as "h100:8".

    Raises:
        UserError: there is no such slice, or no compiler for it.
    """
    kind, _, arrangement = name.partition(":")
    if kind in TPUS and re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", arrangement):
        for name_of_setting, setting in _WITHOUT_TPUS.items():
            os.environ.setdefault(name_of_setting, setting)
        return Slice(name, TPUS[kind], _devices_of(name, "tpu", name))
    if kind not in GPUS or not re.fullmatch(r"[1-9]\d*", arrangement):
        raise UserError(
            f"--topology: {name!r} is not allowed: must be one of {', '.join(TPUS)} and the "
            f"arrangement of its chips, such as 'v5e:2x2', or of {', '.join(GPUS)} and the number "
            "of GPUs, such as 'h100:8'"
        )
    devices = _devices_of(
        name, "cuda", kind, target_config=_DRIVERS_FIGURES[kind], topology=f"1x1x{arrangement}"
    )
    # Without a GPU nothing can be tried out.
    return Slice(name, GPUS[kind], devices, {"xla_gpu_autotune_level": 0})


def _devices_of(name: str, platform: str, *arguments: str, **options: str) -> list[jax.Device]:
    """Devices to compile for, of `get_topology_desc` with these arguments."""
    try:
        topology = topologies.get_topology_desc(*arguments, platform=platform, **options)
    except Exception as error:
        # Without the compiler, or for an impossible arrangement, JAX raises errors of any kind.
        raise UserError(
            f"--topology={name}: the compiler (pip install -e '.[{platform}]') says: "
            f"{first_line(error)}"
        ) from error
    return list(topology.devices)


def _shapes_of_batch(config: ConfigDict, num_devices: int, batch_size: int) -> dict[str, Any]:
    """Types of a batch of stored images, [devices, n, ...]."""
    leading, size = (num_devices, batch_size // num_devices), config.dataset.image_size
    batch: dict[str, Any] = {
        "image": jax.ShapeDtypeStruct((*leading, size, size, 3), np.uint8),
        "label": jax.ShapeDtypeStruct(leading, np.int32),
    }
    return {**batch, "previous": batch} if is_pipelined(config.weighting) else batch

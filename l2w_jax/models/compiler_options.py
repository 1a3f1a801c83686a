"""The options with which XLA compiles a network for a CPU, in training and in early exit."""

import functools

import jax


@functools.cache
def cpu_compiler_options() -> dict[str, str] | None:
    """On a CPU whose XLA has the choice: leaves convolutions and products to XLA itself.

    XLA:CPU hands these and sums to YNNPACK. Only sums get faster by that, and much so, while each
    of a step's more than a thousand calls costs time when the program is loaded and first runs.

    Returns:
        For `jax.jit(..., compiler_options=...)`; None on another device, and where XLA does not
        know the option.
    """
    options = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}
    if jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:
        return None
    return options


def cpu_options_for_a_single_run() -> dict[str, bool | int] | None:
    """On a CPU: the machine code is made quickly, because it runs no more than once.

    Returns:
        For `jax.jit(..., compiler_options=...)`; None on another device.
    """
    if jax.default_backend() != "cpu":
        return None
    return {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}

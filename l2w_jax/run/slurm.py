"""Which GPUs of a node a Slurm task may use, from the variables that Slurm sets.

By itself JAX takes, of the GPUs that a process sees, the one with the task's number on its node.
That one does not exist if Slurm shows each task only its own GPUs (--gpus-per-task); and if a task
is to use several, the others would lie idle.
"""

import re
from collections.abc import Mapping

from l2w_jax.errors import UserError

# The variables by which JAX finds the other processes of a step.
_OF_STEP = (
    "SLURM_JOB_ID",
    "SLURM_STEP_NODELIST",
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "SLURM_LOCALID",
)


def local_device_ids(environment: Mapping[str, str]) -> list[int] | None:
    """The task's GPUs, as positions among those that it sees; None where JAX is to decide.

    Args:
        environment: of a process that is to find the others by itself.

    Raises:
        UserError: it is not a task of a step, or its node's tasks cannot share the GPUs evenly.
    """
    if "SLURM_JOB_ID" not in environment:
        return None
    if missing := [name for name in _OF_STEP if name not in environment]:
        raise UserError(
            f"L2W_DISTRIBUTED=auto: this process is in a Slurm job but {', '.join(missing)} is not "
            "set: start it with srun, as launch/slurm.sbatch does, or unset L2W_DISTRIBUTED to run "
            "one process"
        )
    visible = environment.get("CUDA_VISIBLE_DEVICES", environment.get("ROCR_VISIBLE_DEVICES", ""))
    tasks = _tasks_of_node(environment)
    if not visible or tasks is None or "JAX_LOCAL_DEVICE_IDS" in environment:
        return None
    count = len(visible.split(","))
    if _are_its_own(count, environment):
        return list(range(count))
    if count % tasks:
        raise UserError(
            f"Slurm: {tasks} tasks on a node with {count} of its GPUs: the tasks must share them "
            f"evenly: set --ntasks-per-node={count}, or --gpus-per-node to a multiple of {tasks}"
        )
    share = count // tasks
    first = share * int(environment["SLURM_LOCALID"])
    return list(range(first, first + share))


def _are_its_own(count: int, environment: Mapping[str, str]) -> bool:
    """Whether Slurm shows this task the `count` GPUs that no other task sees."""
    # The value may name the kind of GPU, as in "a100:2".
    per_task = environment.get("SLURM_GPUS_PER_TASK", "").rpartition(":")[2]
    if per_task == str(count):
        return True
    # The step's GPUs; from older versions of Slurm, which do not tell them, the job's.
    if of_step := environment.get("SLURM_STEP_GPUS"):
        return count < len(of_step.split(","))
    on_node = environment.get("SLURM_GPUS_ON_NODE", "")
    return on_node.isdigit() and count < int(on_node)


def _tasks_of_node(environment: Mapping[str, str]) -> int | None:
    """Tasks of this step on this node, from a text such as "8(x2),4" for three nodes."""
    counts = []
    for part in environment.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        if match := re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part):
            counts += [int(match[1])] * int(match[2] or 1)
    node = int(environment.get("SLURM_NODEID", "0"))
    return counts[node] if node < len(counts) else None

"""A Slurm task uses the GPUs that are its own, or names the setting that is missing."""

import pytest

from l2w_jax.errors import UserError
from l2w_jax.run.slurm import local_device_ids


def task(local_id=0, **more):
    """The environment of a task of a step, by default of the only one on the only node."""
    return {
        "SLURM_JOB_ID": "17",
        "SLURM_STEP_NODELIST": "node[1-2]",
        "SLURM_STEP_TASKS_PER_NODE": "1",
        "SLURM_NTASKS": "1",
        "SLURM_PROCID": str(local_id),
        "SLURM_LOCALID": str(local_id),
        "SLURM_NODEID": "0",
        **more,
    }


def two_tasks(local_id, **more):
    return task(local_id, SLURM_NTASKS="2", SLURM_STEP_TASKS_PER_NODE="2", **more)


@pytest.mark.parametrize("local_id", [0, 1])
def test_what_slurm_shows_one_task_alone_is_its_own(local_id):
    """--gpus-per-task=1: each task sees one, whose number is 0 to it."""
    per_task = {"SLURM_GPUS_PER_TASK": "1", "SLURM_GPUS_ON_NODE": "2"}
    bound = two_tasks(local_id, CUDA_VISIBLE_DEVICES="0", **per_task)
    assert local_device_ids(bound) == [0]
    of_a_kind = per_task | {"SLURM_GPUS_PER_TASK": "a100:1"}
    assert local_device_ids(two_tasks(local_id, CUDA_VISIBLE_DEVICES="3", **of_a_kind)) == [0]
    # --gpu-bind=single:1
    bound = two_tasks(local_id, CUDA_VISIBLE_DEVICES=str(local_id), SLURM_GPUS_ON_NODE="2")
    assert local_device_ids(bound) == [0]


@pytest.mark.parametrize("local_id", [0, 1])
def test_what_all_tasks_see_is_shared_evenly(local_id):
    """--gpus-per-node=2 (4) --ntasks-per-node=2."""
    seen = {"CUDA_VISIBLE_DEVICES": "2,5", "SLURM_GPUS_ON_NODE": "2"}
    assert local_device_ids(two_tasks(local_id, **seen)) == [local_id]
    seen = {"CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_GPUS_ON_NODE": "4"}
    assert local_device_ids(two_tasks(local_id, **seen)) == [2 * local_id, 2 * local_id + 1]


def test_a_step_may_have_a_part_of_the_jobs_gpus():
    seen = {"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_GPUS_ON_NODE": "8", "SLURM_STEP_GPUS": "4,5"}
    assert local_device_ids(two_tasks(1, **seen)) == [1]
    bound = seen | {"CUDA_VISIBLE_DEVICES": "1"}
    assert local_device_ids(two_tasks(1, **bound)) == [0]


def test_one_task_uses_all_that_it_sees():
    assert local_device_ids(task(CUDA_VISIBLE_DEVICES="0,1,2,3,4,5,6,7")) == list(range(8))


def test_tasks_are_those_of_the_tasks_own_node():
    nodes = {"SLURM_STEP_TASKS_PER_NODE": "4(x2),2", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    assert local_device_ids(task(1, SLURM_NODEID="1", **nodes)) == [1]
    assert local_device_ids(task(1, SLURM_NODEID="2", **nodes)) == [2, 3]


@pytest.mark.parametrize(("gpus", "tasks"), [("0,1", "8"), ("0,1,2,3,4,5,6,7", "3"), ("0", "2")])
def test_tasks_that_cannot_share_evenly_name_the_settings(gpus, tasks):
    count = gpus.count(",") + 1
    environment = task(CUDA_VISIBLE_DEVICES=gpus, SLURM_STEP_TASKS_PER_NODE=tasks)
    with pytest.raises(
        UserError,
        match=rf"{tasks} tasks on a node with {count} .*--ntasks-per-node={count}, or --gpus-per-",
    ):
        local_device_ids(environment)


def test_a_job_without_a_step_is_told_to_use_srun():
    environment = task()
    del environment["SLURM_STEP_NODELIST"]
    with pytest.raises(UserError, match="SLURM_STEP_NODELIST is not set: start it with srun"):
        local_device_ids(environment)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"CUDA_VISIBLE_DEVICES": "0,1"},
        task(),
        task(CUDA_VISIBLE_DEVICES=""),
        task(CUDA_VISIBLE_DEVICES="0,1", JAX_LOCAL_DEVICE_IDS="1"),
    ],
)
def test_elsewhere_jax_decides(environment):
    assert local_device_ids(environment) is None

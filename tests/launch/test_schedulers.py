"""What Slurm and Kubernetes are told: the same command, several processes, start again after 75."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from kubeflow_trainer_api.models import JobsetV1alpha2JobSet

from l2w_jax import main
from l2w_jax.errors import UserError

ROOT = Path(__file__).parents[2]


def submit(tmp_path, status, arguments):
    """Runs the batch script with stand-ins for srun and scontrol; returns it and their calls."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, script in {
        "srun": f'echo "srun $L2W_DISTRIBUTED $SRUN_CPUS_PER_TASK $*" >> "$CALLS"; exit {status}',
        "scontrol": 'echo "scontrol $*" >> "$CALLS"',
    }.items():
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    script = shutil.copy(ROOT / "launch" / "slurm.sbatch", tmp_path)
    completed = subprocess.run(
        ["bash", script, *arguments],
        env=os.environ
        | {
            "PATH": f"{tools}:{os.environ['PATH']}",
            "CALLS": str(tmp_path / "calls"),
            "SLURM_SUBMIT_DIR": str(ROOT),
            "SLURM_JOB_ID": "17",
            "SLURM_CPUS_PER_TASK": "6",
        },
        capture_output=True,
        text=True,
    )
    return completed, (tmp_path / "calls").read_text().splitlines()


@pytest.mark.parametrize(
    ("status", "requeues"), [(0, []), (1, []), (2, []), (75, ["scontrol requeue 17"])]
)
def test_slurm_starts_an_interrupted_run_again_and_no_other(tmp_path, status, requeues):
    arguments = ["--config=configs/digits_msdnet.py", "--config.model.growth_factors=(1, 2)"]
    completed, calls = submit(tmp_path, status, arguments)
    assert completed.returncode == status
    assert calls[0].startswith("srun auto 6 --kill-on-bad-exit=1 ")
    assert calls[0].endswith(" -m l2w_jax.main " + " ".join(arguments))
    assert calls[1:] == requeues


def test_slurm_has_a_run_save_before_its_time_is_up_and_starts_it_again_when_preempted():
    script = (ROOT / "launch" / "slurm.sbatch").read_text()
    options = re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", script, re.MULTILINE)
    assert len(options) == script.count("#SBATCH")
    # To the run's processes, not with "B:" to the shell, which waits for them to start them again.
    assert dict(options)["signal"] == "TERM@120"
    assert ("requeue", "") in options
    # Of what was printed before it was preempted nothing is lost.
    assert ("open-mode", "append") in options
    # One core would read the images of a process.
    assert int(dict(options)["cpus-per-task"]) > 1
    # After the first command Slurm reads no more options.
    assert script.rindex("#SBATCH") < script.index("\nset ")


def assert_part_of(part, whole):
    """Every field of `part` is in `whole`, with the same value."""
    if isinstance(part, dict):
        assert part.keys() <= whole.keys()
        for name, value in part.items():
            assert_part_of(value, whole[name])
    elif isinstance(part, list):
        assert len(part) == len(whole)
        for ours, theirs in zip(part, whole, strict=True):
            assert_part_of(ours, theirs)
    else:
        assert part == whole


def test_the_job_set_agrees_with_the_schema_of_its_api():
    # Models made from JobSet's and Kubernetes' own definitions: a field of the wrong type is an
    # error, one that they do not know is dropped.
    manifest = yaml.safe_load((ROOT / "launch" / "jobset.yaml").read_text())
    assert_part_of(manifest, JobsetV1alpha2JobSet.from_dict(manifest).to_dict())


def test_the_job_set_starts_one_process_a_host_with_arguments_that_main_takes(monkeypatch):
    manifest = yaml.safe_load((ROOT / "launch" / "jobset.yaml").read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (job,) = manifest["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    chips = 1
    for side in pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"):
        chips *= int(side)
    hosts = chips // container["resources"]["limits"]["google.com/tpu"]
    assert spec["parallelism"] == spec["completions"] == hosts
    assert pod["restartPolicy"] == "Never", "the set is started again as a whole"
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert rule["onExitCodes"]["values"] == [UserError.exit_status], "bad input is not tried again"
    (of_set,) = manifest["spec"]["failurePolicy"]["rules"]
    assert of_set["action"] == "FailJobSet", "what fails by that rule fails for good"
    assert of_set["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert spec["backoffLimit"] == 0, "no host is tried again without the others"
    assert pod["terminationGracePeriodSeconds"] >= 120, "as long as under Slurm to save"
    assert {"name": "L2W_DISTRIBUTED", "value": "auto"} in container["env"]
    monkeypatch.chdir(ROOT)
    arguments = main.parse(["main", *container["args"]])
    (mount,) = container["volumeMounts"]
    assert arguments.workdir.is_relative_to(mount["mountPath"])

"""What the TPU script asks of gcloud, with a stand-in that keeps the state of one slice."""

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

STAND_IN = """#!/usr/bin/env bash
echo "$*" | tr '\\n' ';' >> "$SLICE/calls"
echo >> "$SLICE/calls"
case "$*" in
    *" describe "*) cat "$SLICE/state" 2>/dev/null || exit 1 ;;
    *" create "*)
        if [ -s "$SLICE/no_room" ]; then
            sed -i 1d "$SLICE/no_room"
            exit 1
        fi
        echo READY > "$SLICE/state"
        ;;
    *" delete "*) rm "$SLICE/state" ;;
    *" scp "*)
        cp "$5" "$SLICE/archive"
        if [ -e "$SLICE/lost_while_copying" ]; then
            rm "$SLICE/lost_while_copying"
            echo PREEMPTED > "$SLICE/state"
            exit 255
        fi
        ;;
    *L2W_DISTRIBUTED*)
        outcome=$(head -n 1 "$SLICE/outcomes")
        sed -i 1d "$SLICE/outcomes"
        if [ "$outcome" = preempted ]; then
            echo PREEMPTED > "$SLICE/state"
            exit 255
        fi
        exit "$outcome"
        ;;
esac
"""
SLICE_FLAGS = ("--name=pod", "--zone=z", "--type=v5litepod-16", "--bucket=mine")
TRAIN = ("--", "--config=configs/digits_msdnet.py", "--config.model.growth_factors=(1, 2)")


@pytest.fixture
def pod(tmp_path):
    """Runs the script in a clone with the stand-in; returns the result and what gcloud was told."""
    clone = tmp_path / "clone"
    shutil.copytree(ROOT / "launch", clone / "launch")
    (tmp_path / "bin").mkdir()
    stand_in = tmp_path / "bin" / "gcloud"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)

    def launch(*arguments, outcomes=("0",), state=None):
        for name in ("state", "calls"):
            (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / "outcomes").write_text("".join(f"{outcome}\n" for outcome in outcomes))
        if state:
            (tmp_path / "state").write_text(f"{state}\n")
        completed = subprocess.run(
            ["bash", str(clone / "launch" / "tpu_pod.sh"), *arguments],
            env=os.environ
            | {
                "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
                "SLICE": str(tmp_path),
                "SECONDS_TO_SETTLE": "0",
            },
            capture_output=True,
            text=True,
        )
        calls = tmp_path / "calls"
        return completed, calls.read_text().splitlines() if calls.exists() else []

    return launch


def verbs(calls):
    """What was done to the slice, in order: "train" for the command that starts the run."""
    found = []
    for call in calls:
        if "L2W_DISTRIBUTED" in call:
            found.append("train")
        elif "tpu-vm" in call:
            found.append(call.split()[3])
        else:
            found.append(call.split()[0])
    return found


def test_creates_installs_trains_fetches_deletes(pod):
    completed, calls = pod(*SLICE_FLAGS, *TRAIN)
    assert completed.returncode == 0, completed.stderr
    expected = ["describe", "create", "scp", "ssh", "train", "storage", "delete"]
    assert verbs(calls) == expected
    training = calls[expected.index("train")]
    assert "--worker=all" in training
    assert "--config=configs/digits_msdnet.py" in training
    assert r"--config.model.growth_factors=\(1\,\ 2\)" in training, "quoted for the shell there"


def test_every_host_gets_the_clone_without_what_is_of_this_machine(pod, tmp_path):
    for name in ("runs/old/log.txt", ".venv/bin/python", ".git/config", "l2w_jax/data/runs/x.py"):
        path = tmp_path / "clone" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    _, calls = pod(*SLICE_FLAGS, *TRAIN)
    (copying,) = [call for call in calls if " scp " in call]
    assert copying.endswith(" pod:l2w_jax.tar.gz --zone=z --worker=all;")
    with tarfile.open(tmp_path / "archive") as archive:
        names = {os.path.normpath(member.name) for member in archive if member.isfile()}
    assert names >= {"launch/tpu_pod.sh", "launch/local.sh", "l2w_jax/data/runs/x.py"}
    assert not [name for name in names if name.startswith(("runs", ".venv", ".git"))]


@pytest.mark.parametrize("bucket", ["mine", "gs://mine", "gs://mine/"])
def test_hosts_write_to_the_bucket_and_this_machine_reads_from_it(bucket, pod):
    _, calls = pod(*SLICE_FLAGS, f"--bucket={bucket}", *TRAIN)
    installing, training, fetching = (
        call for call in calls if " ssh " in call or call.startswith("storage")
    )
    assert " gcsfuse --implicit-dirs mine l2w_jax/runs;" in installing
    assert fetching == "storage rsync --recursive gs://mine runs;"
    for call in (installing, training):
        assert "EXTRAS=tpu " in call and "--worker=all" in call


def test_a_slice_that_is_there_is_used_and_can_be_kept(pod):
    _, calls = pod(*SLICE_FLAGS, "--keep", *TRAIN, state="READY")
    assert verbs(calls) == ["describe", "scp", "ssh", "train", "storage"]


def test_goes_on_after_each_preemption(pod):
    completed, calls = pod(*SLICE_FLAGS, *TRAIN, outcomes=("preempted", "preempted", "0"))
    assert completed.returncode == 0, completed.stderr
    assert verbs(calls).count("train") == 3
    assert verbs(calls).count("create") == 3
    assert verbs(calls)[-2:] == ["storage", "delete"]


def test_waits_where_a_lost_slice_cannot_be_made_at_once(pod, tmp_path):
    (tmp_path / "no_room").write_text("once\ntwice\n")
    completed, calls = pod(*SLICE_FLAGS, *TRAIN, outcomes=("preempted", "0"), state="READY")
    assert completed.returncode == 0, completed.stderr
    assert verbs(calls).count("create") == 3
    assert verbs(calls).count("train") == 2


def test_a_slice_that_was_never_made_is_a_failure(pod, tmp_path):
    (tmp_path / "no_room").write_text("once\n")
    completed, calls = pod(*SLICE_FLAGS, *TRAIN)
    assert completed.returncode == 1
    assert verbs(calls) == ["describe", "create"]


def test_goes_on_where_the_slice_is_lost_before_the_run_begins(pod, tmp_path, monkeypatch):
    (tmp_path / "lost_while_copying").touch()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    completed, calls = pod(*SLICE_FLAGS, *TRAIN)
    assert completed.returncode == 0, completed.stderr
    assert verbs(calls).count("train") == 1
    assert verbs(calls).count("create") == 2
    assert list((tmp_path / "temporary").iterdir()) == [], "no copy of the clone is left"


def test_a_run_that_fails_is_not_repeated_and_the_slice_stays(pod):
    completed, calls = pod(*SLICE_FLAGS, *TRAIN, outcomes=("1",))
    assert completed.returncode == 1
    assert "ended with status 1" in completed.stderr
    assert verbs(calls).count("train") == 1
    assert "delete" not in verbs(calls)


def test_a_dry_run_prints_every_command_and_does_nothing(pod):
    completed, calls = pod(*SLICE_FLAGS, "--spot", "--dry-run", *TRAIN)
    assert completed.returncode == 0, completed.stderr
    assert calls == []
    for part in (" create pod --zone=z ", "--spot", " scp ", " ssh ", "storage rsync", " delete "):
        assert part in completed.stdout


def test_help_is_the_whole_description(pod):
    completed, calls = pod("--help")
    assert completed.returncode == 0, completed.stderr
    assert calls == []
    for option in ("--name=", "--version=", "--spot", "--keep", "--dry-run"):
        assert option in completed.stdout
    assert "set -euo" not in completed.stdout


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((*SLICE_FLAGS[1:], *TRAIN), "--name=... is required"),
        (SLICE_FLAGS, "-- --config=configs/NAME.py is required"),
        ((*SLICE_FLAGS, "--bucket=gs://mine/runs", *TRAIN), "must be a whole bucket's name"),
        ((*SLICE_FLAGS, "--bucket=mine; reboot", *TRAIN), "must be a whole bucket's name"),
        ((*SLICE_FLAGS, "--config=x"), "main's arguments follow --"),
    ],
)
def test_a_mistake_is_one_line(pod, arguments, complaint):
    completed, calls = pod(*arguments)
    assert completed.returncode == 2
    assert complaint in completed.stderr
    assert completed.stderr.count("\n") == 1
    assert calls == []

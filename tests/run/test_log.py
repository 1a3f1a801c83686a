"""What is written of a run is what its iterations gave: means over the window, in percent."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from clocks import standing_clock
from programs import ENVIRONMENT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

from l2w_jax.config import default_config
from l2w_jax.data.cores import available_cores
from l2w_jax.errors import RunFailed, RunInterrupted
from l2w_jax.run import log
from l2w_jax.run.log import RunLog

STEPS_PER_EPOCH = 4
EPOCHS = 2


@pytest.fixture
def config():
    config = default_config()
    config.dataset.batch_size = 10
    config.optimizer.epochs = EPOCHS
    config.log.update(every_steps=3, histogram_every_steps=0)
    return config


def iteration(number, meta_loss=np.nan):
    """Metrics of an iteration with two exits, all of them different."""
    return {
        "loss": np.array([2.0, 1.0]) / number,
        "top1": np.array([0.1, 0.125]) * number,
        "weighted_loss": np.float32(3 * number),
        "meta_loss": np.float32(meta_loss),
        "learning_rate": np.float32(0.5**number),
        "meta_learning_rate": np.float32(0.25**number),
        "weights": np.ones((10, 2)),
    }


def opened_log(config, workdir, first_step=0, total_steps=EPOCHS * STEPS_PER_EPOCH):
    return RunLog(workdir, config, SimpleNamespace(num_bad=7), first_step, total_steps)


def write_log(config, workdir, first_step, iterations):
    """Logs the iterations after `first_step`; returns all lines of metrics.jsonl."""
    with opened_log(config, workdir, first_step) as log:
        log.start_clock()
        for step, metrics in enumerate(iterations, first_step + 1):
            log.add_step(step, metrics)
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_line_holds_the_means_of_its_window_in_percent(config, tmp_path):
    (line,) = write_log(config, tmp_path, 0, map(iteration, (1, 2, 4)))
    assert line["step"] == 3
    assert line["epoch"] == 0.75
    # Means of 1, 1/2, 1/4 and of 1, 2, 4.
    np.testing.assert_allclose(line["loss"], [2 * 7 / 12, 7 / 12], rtol=1e-5)
    np.testing.assert_allclose(line["top1"], [10 * 7 / 3, 12.5 * 7 / 3], rtol=1e-5)
    assert line["weighted_loss"] == 7
    assert line["bad_images"] == 7


def test_learning_rates_are_those_of_the_last_iteration(config, tmp_path):
    (line,) = write_log(config, tmp_path, 0, map(iteration, (1, 2, 4)))
    assert line["learning_rate"] == 0.5**4
    assert line["meta_learning_rate"] == 0.25**4


def scalars(workdir):
    """Of TensorBoard: what each tag holds, as {step: value}."""
    events = EventAccumulator(str(workdir)).Reload()
    return {
        tag: {
            event.step: tensor_util.make_ndarray(event.tensor_proto)
            for event in events.Tensors(tag)
        }
        for tag in events.Tags()["tensors"]
    }


def test_tensorboard_holds_the_same_numbers(config, tmp_path):
    metrics = [iteration(number, meta_loss=5 + number) for number in (1, 2, 4)]
    (line,) = write_log(config, tmp_path, 0, metrics)
    written = scalars(tmp_path)
    for name in ("weighted_loss", "meta_loss", "learning_rate", "meta_learning_rate"):
        assert written[f"train/{name}"] == {3: pytest.approx(line[name])}
    for name in ("loss", "top1"):
        for k in range(2):
            assert written[f"train/exit_{k + 1}/{name}"] == {
                3: pytest.approx(line[name][k], rel=1e-5)
            }


def test_a_person_reads_the_mean_loss_of_the_exits_and_percent(config, tmp_path, capsys):
    write_log(config, tmp_path, 0, map(iteration, (1, 2, 4)))
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("step "))
    # The losses are 14/12 and 7/12.
    assert line.startswith("step 3/8  epoch 0.8  loss 0.8750  top-1 23.3 29.2 %")


def test_accuracy_on_held_out_images_is_told_in_percent(config, tmp_path, capsys):
    with opened_log(config, tmp_path) as run_log:
        run_log.add_holdout(4, np.array([81.5, 92.25]))
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line) == {"step": 4, "holdout_top1": [81.5, 92.25]}
    written = scalars(tmp_path)
    assert written["holdout/exit_1/top1"] == {4: 81.5}
    assert written["holdout/exit_2/top1"] == {4: 92.25}
    assert "held-out images after step 4: top-1 81.5 92.2 %" in capsys.readouterr().out


def test_the_weights_of_each_exit_have_a_histogram(config, tmp_path):
    config.log.histogram_every_steps = 2
    weights = np.linspace([0, 10], [1, 13], 10)
    write_log(config, tmp_path, 0, [iteration(k) | {"weights": weights} for k in (1, 2, 3)])
    written = scalars(tmp_path)
    for tag, (least, largest) in {"exit_1": (0, 1), "exit_2": (10, 13)}.items():
        ((step, buckets),) = written[f"weights/{tag}"].items()
        left, right, counts = np.array(buckets)[buckets[:, 2] > 0].T
        assert (step, left.min(), right.max()) == (2, least, largest)
        assert counts.sum() == 10


@pytest.mark.parametrize(("first_step", "asked"), [(0, True), (100, True), (0, False)])
def test_a_profile_is_begun_once_and_not_while_the_first_step_compiles(
    first_step, asked, config, tmp_path, monkeypatch
):
    config.log.profile = asked
    # Does not run: the profiler takes seconds.
    monkeypatch.setattr("clu.periodic_actions.profiler.start", lambda logdir: begun.append(logdir))
    monkeypatch.setattr("clu.periodic_actions.profiler.stop", lambda: ended.append(step))
    begun, ended, after = [], [], {}
    with opened_log(config, tmp_path, first_step, total_steps=first_step + 12) as run_log:
        for step in range(first_step + 1, first_step + 13):
            run_log.add_step(step, iteration(1))
            after[step] = len(begun)
    assert begun == asked * [str(tmp_path)]
    assert after[first_step + 1] == 0
    assert ended == asked * [first_step + 10]


@pytest.mark.parametrize(("left", "is_taken"), [(9, False), (10, True)])
def test_a_run_too_short_for_a_profile_says_so_and_begins_none(
    left, is_taken, config, tmp_path, monkeypatch, caplog
):
    config.log.profile = True
    monkeypatch.setattr("clu.periodic_actions.profiler.start", lambda logdir: begun.append(logdir))
    monkeypatch.setattr("clu.periodic_actions.profiler.stop", lambda: ended.append(step))
    begun, ended = [], []
    with opened_log(config, tmp_path, 7, total_steps=7 + left) as run_log:
        for step in range(8, 8 + left):
            run_log.add_step(step, iteration(1))
    assert (len(begun), len(ended)) == (is_taken, is_taken)
    told = ["config.log.profile: no profile: 9 iterations are left, and it needs 10"]
    assert caplog.messages == ([] if is_taken else told)


@pytest.fixture
def clock(monkeypatch):
    return standing_clock(monkeypatch, log)


def test_speed_and_waiting_are_those_of_the_iterations_alone(config, tmp_path, clock, capsys):
    """Of 2 s for 10 images half a second goes by waiting; what is done between counts nothing."""
    with opened_log(config, tmp_path) as run_log:
        for step in range(1, 7):
            run_log.start_clock()
            with run_log.waiting():
                clock.seconds += 0.5
            clock.seconds += 1.5
            run_log.add_step(step, iteration(step))
            run_log.stop_clock()
            with run_log.waiting():
                clock.seconds += 100
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [line["step"] for line in written] == [3, 6]
    assert [line["images_per_second"] for line in written] == [5, 5]
    assert [line["waiting_for_data"] for line in written] == [25, 25]
    # Of eight iterations five are left, and then two.
    assert [line.partition("%  ")[2] for line in told] == [
        "5 images/s  10 s left",
        "5 images/s  4 s left",
    ]
    events = EventAccumulator(str(tmp_path)).Reload()
    for tag, value in {"images_per_second": 5, "waiting_for_data": 25}.items():
        of_tag = [tensor_util.make_ndarray(event.tensor_proto) for event in events.Tensors(tag)]
        assert of_tag == [value, value]


@pytest.mark.parametrize(
    ("seconds", "left"), [(9, "45 s"), (18, "1 min 30 s"), (1500, "2 h 5 min")]
)
def test_the_time_left_is_told_in_hours_minutes_and_seconds(
    seconds, left, config, tmp_path, clock, capsys
):
    """Of eight iterations five are left."""
    with opened_log(config, tmp_path) as run_log:
        run_log.start_clock()
        for step in (1, 2, 3):
            clock.seconds += seconds
            run_log.add_step(step, iteration(step))
    assert capsys.readouterr().out.endswith(f"  {left} left\n")


def test_iterations_before_the_clock_starts_have_no_speed(config, tmp_path, clock, capsys):
    """The first compiles."""
    with opened_log(config, tmp_path) as run_log:
        for step in range(1, 7):
            clock.seconds += 2 if step > 4 else 100
            run_log.add_step(step, iteration(step))
            if step == 4:
                run_log.start_clock()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["images_per_second"] for line in lines] == [None, 5]
    assert [line["waiting_for_data"] for line in lines] == [None, 0]
    first, second = (line for line in capsys.readouterr().out.splitlines() if line[:5] == "step ")
    assert first.endswith(" %")
    assert second.endswith(" %  5 images/s  4 s left")


def test_the_meta_loss_is_that_of_the_iterations_that_had_one(config, tmp_path):
    metrics = [iteration(1), iteration(2, 6.0), iteration(3, 3.0), *map(iteration, (4, 5, 6))]
    some, none = write_log(config, tmp_path, 0, metrics)[:2]
    assert some["meta_loss"] == 4.5
    assert none["meta_loss"] is None


def test_a_line_is_on_disk_before_the_next_iteration(config, tmp_path):
    """A killed run goes on from its last checkpoint, and does no steps before that again."""
    with opened_log(config, tmp_path) as run_log:
        for step in (1, 2, 3):
            run_log.add_step(step, iteration(step))
        (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["step"] == 3


def test_the_last_iteration_is_written_though_its_window_is_not_full(config, tmp_path):
    lines = write_log(config, tmp_path, 0, map(iteration, range(1, 9)))
    assert [line["step"] for line in lines] == [3, 6, 8]
    assert lines[-1]["weighted_loss"] == 3 * 7.5
    assert lines[-1]["epoch"] == EPOCHS


def test_a_resumed_run_drops_the_lines_of_steps_that_it_does_again(config, tmp_path):
    write_log(config, tmp_path, 0, map(iteration, range(1, 8)))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 7, "lo')
    lines = write_log(config, tmp_path, 4, map(iteration, range(5, 9)))
    assert [line["step"] for line in lines] == [3, 6, 8]
    # Of the window that was cut, the iterations since the resumption are there.
    assert lines[1]["weighted_loss"] == 3 * 5.5
    assert [line["steps"] for line in lines] == [3, 2, 2]


def test_of_a_run_that_stops_and_goes_on_every_iteration_is_in_a_line(config, tmp_path):
    with opened_log(config, tmp_path) as run_log:
        for step in range(1, 6):
            run_log.add_step(step, iteration(step))
        run_log.write_rest(5)
        run_log.write_rest(5)
    lines = write_log(config, tmp_path, 5, map(iteration, (6, 7, 8)))
    assert [(line["step"], line["steps"]) for line in lines] == [(3, 3), (5, 2), (6, 1), (8, 2)]
    assert [line["weighted_loss"] for line in lines] == [3 * 2, 3 * 4.5, 3 * 6, 3 * 7.5]


def test_a_run_that_goes_on_after_a_line_keeps_it(config, tmp_path):
    begun = write_log(config, tmp_path, 0, map(iteration, range(1, 8)))
    lines = write_log(config, tmp_path, 6, map(iteration, (7, 8)))
    assert [line["step"] for line in lines] == [3, 6, 8]
    assert lines[:2] == begun


def test_damaged_lines_are_dropped_with_a_warning(config, tmp_path, caplog):
    write_log(config, tmp_path, 0, map(iteration, range(1, 8)))
    path = tmp_path / "metrics.jsonl"
    first, *others = path.read_text().splitlines(keepends=True)
    damaged = (b"\0\0\xff", b"[3]", b'{"step": Infinity}', b"[" * 100_000)
    path.write_bytes(
        b"\n".join([first.encode() + damaged[0], *damaged[1:], "".join(others).encode()])
    )
    lines = write_log(config, tmp_path, 7, [iteration(8)])
    assert [line["step"] for line in lines] == [3, 6, 8]
    assert "metrics.jsonl: 4 lines that cannot be read are dropped." in caplog.text


def test_metrics_that_cannot_be_opened_are_one_line(config, tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(RunFailed, match=r"metrics\.jsonl: cannot be written: Is a directory; the"):
        write_log(config, tmp_path, 0, [iteration(1)])


def test_tensorflow_leaves_cores_and_accelerators_alone_also_where_only_the_log_needs_it(tmp_path):
    program = (
        "import sys; from pathlib import Path; from l2w_jax.run import log; "
        "log._TensorBoard(Path(sys.argv[1]), False, 1, 0).writer.close(); "
        "import tensorflow as tf; print(tf.config.threading.get_intra_op_parallelism_threads())"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    completed = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    # 0 is TensorFlow's own choice.
    assert completed.stdout == f"{available_cores()}\n", completed.stderr


class _FullDisk:
    """As clu's writer: what fails in its thread is raised by a later call."""

    hooks = ()

    @property
    def writer(self):
        return self

    def write_scalars(self, *_):
        raise RuntimeError("asynchronous") from OSError(28, "No space left on device")

    close = write_scalars


def test_events_that_cannot_be_written_end_the_run_with_a_line(config, tmp_path, monkeypatch):
    monkeypatch.setattr(log, "_TensorBoard", lambda *_: _FullDisk())
    with pytest.raises(RunFailed, match=r"TensorBoard's events cannot be written: .*No space left"):
        write_log(config, tmp_path, 0, map(iteration, (1, 2, 4)))


class _FullFile:
    """A file whose last lines do not fit on the disk."""

    name = "metrics.jsonl"

    def close(self):
        raise OSError(28, "No space left on device")


def test_metrics_that_cannot_be_written_to_the_end_are_one_line(config, tmp_path):
    told = pytest.raises(RunFailed, match=r"metrics.jsonl: cannot be written: No space left")
    with told, opened_log(config, tmp_path) as run_log:
        run_log._json_lines = _FullFile()
    with pytest.raises(RunFailed, match="before"), opened_log(config, tmp_path) as run_log:
        run_log._json_lines = _FullFile()
        raise RunFailed("before")


def test_a_run_goes_on_where_nobody_reads_its_lines_any_more():
    lines = (
        "import sys; from l2w_jax.run.log import say; say('first'); sys.stdin.readline(); "
        "[say('more') for _ in range(3)]; print('on', file=sys.stderr)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", lines],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as process:
        assert process.stdout.readline() == "first\n"
        process.stdout.close()
        process.stdin.write("go on\n")
        process.stdin.close()
        assert process.stderr.read() == "on\n"
    assert process.returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
def test_a_run_goes_on_where_the_disk_under_its_lines_is_full():
    lines = (
        "import sys; from l2w_jax.run.log import say; "
        "[say('more') for _ in range(3)]; print('on', file=sys.stderr)"
    )
    with open("/dev/full", "w") as full:
        process = subprocess.run(
            [sys.executable, "-c", lines],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )
    assert (process.returncode, process.stderr) == (0, "on\n")


def test_what_ends_the_run_first_is_told(config, tmp_path, monkeypatch):
    monkeypatch.setattr(log, "_TensorBoard", lambda *_: _FullDisk())
    with pytest.raises(RunInterrupted, match="by hand"), opened_log(config, tmp_path):
        raise RunInterrupted("by hand")

"""What is read of a run for its page; `test_page` has what is written."""

import json
import tracemalloc

import pytest
from written_runs import write_run

from l2w_jax.report.write import read_runs


@pytest.fixture
def folder(tmp_path):
    return write_run(tmp_path / "run")


def write_metrics(folder, lines):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_loss_that_was_no_number_is_no_damage(folder):
    write_metrics(folder, [{"step": 20, "loss": [1.0, None]}, {"step": 40, "loss": [0.5, 0.3]}])
    of_last_exit = [{"step": 20, "loss": [None]}, {"step": 40, "loss": [0.3]}]
    assert read_runs([folder])[0].metrics == of_last_exit


def test_of_the_metrics_of_a_long_run_only_what_is_shown_is_in_memory(folder):
    line = {"loss": [0.123456] * 100, "top1": [12.3456] * 100, "weighted_loss": 0.123456}
    write_metrics(folder, ({"step": step, **line} for step in range(3000)))
    tracemalloc.start()
    try:
        assert len(read_runs([folder])[0].metrics) == 3000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < (folder / "metrics.jsonl").stat().st_size

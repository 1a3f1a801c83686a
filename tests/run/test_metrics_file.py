"""What a run that goes on does with the metrics that it finds; `test_log` has the rest."""

import json
import tracemalloc

from l2w_jax.run import metrics_file


def test_the_lines_of_a_long_run_are_never_in_memory_together(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss": [0.5] * 100}) + "\n" for step in range(5000)]
    path.write_text("".join(lines))
    tracemalloc.start()
    try:
        with metrics_file.reopened(path, 4000) as file:
            file.write(lines[0])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert path.read_text() == "".join([*lines[:4001], lines[0]])
    assert peak < path.stat().st_size / 4

"""The benchmark of a step counts what XLA compiles, and compares like with like."""

import time

import pytest
from small_networks import ConvNetwork

from l2w_jax.benchmark import __main__ as command
from l2w_jax.benchmark import update as benchmark
from l2w_jax.config import default_config
from l2w_jax.errors import UserError


@pytest.fixture
def config():
    config = default_config(model=ConvNetwork())
    config.dataset.update(image_size=8, batch_size=16)
    config.weighting.hidden = 8
    return config


@pytest.mark.parametrize("schedule", ["exact", "pipelined"])
def test_report_has_both_steps_and_their_ratios(config, schedule):
    config.weighting.schedule = schedule
    report = benchmark.measure(config, num_steps=2, started=time.monotonic())
    assert report["images_per_update"] == 8
    for name in ("gigaflops", "temporary_megabytes", "kernels", "seconds"):
        expected = report["weighted"][name] / report["plain"][name]
        assert report["ratio"][name] == pytest.approx(expected)
    for step in ("weighted", "plain"):
        # Both updates are on half of a batch: that of a weighted iteration makes two.
        images = report[step]["images_per_second"] * report[step]["seconds"]
        assert images == pytest.approx(report["images_per_update"])
    assert 2 < report["ratio"]["gigaflops"] < 4
    assert report["weighted"]["kernels"] > 1.5 * report["plain"]["kernels"] > 0
    spent = report["weighted"]["seconds_tracing"] + report["weighted"]["seconds_compiling"]
    assert spent < report["weighted"]["seconds_to_first_step"]


def test_plain_recipe_is_measured_alone(config):
    config.weighting.kind = "none"
    report = benchmark.measure(config, num_steps=1, started=time.monotonic())
    assert "weighted" not in report and "ratio" not in report
    assert report["images_per_update"] == 16
    images = report["plain"]["images_per_second"] * report["plain"]["seconds"]
    assert images == pytest.approx(report["images_per_update"])


def test_ratios_are_of_the_numbers_that_both_have():
    old = {"plain": {"seconds": 2.0, "gone": 1.0}, "device": "cpu", "images": 3}
    new = {"plain": {"seconds": 1.0, "added": 1.0}, "device": "cpu", "images": 3}
    assert benchmark.ratios(new, old) == {"plain": {"seconds": 0.5}}
    for other in ({"plain": 3.0}, {"plain": {"seconds": "x"}}):
        assert not any(benchmark.ratios(new, other).values())


def test_what_is_no_report_is_refused_before_anything_is_measured(tmp_path):
    (tmp_path / "old.json").write_text("[1]")
    with pytest.raises(UserError, match=r"old\.json: not the output of this command: no object"):
        command.main(
            ["--config=configs/digits_msdnet.py", f"--compare={tmp_path / 'old.json'}"], started=0.0
        )

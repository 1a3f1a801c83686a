"""The benchmark of a step counts what XLA compiles, and compares like with like."""

import json
import time
from types import SimpleNamespace

import jax
import pytest
from small_networks import ConvNetwork

from l2w_jax.benchmark import __main__ as command
from l2w_jax.benchmark import update as benchmark
from l2w_jax.config import default_config, to_json
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


def test_of_a_step_in_parts_no_operations_are_told_as_xla_counts_one_part_only(config):
    config.optimizer.accumulation = 2
    report = benchmark.measure(config, num_steps=1, started=time.monotonic())
    assert "gigaflops" not in {**report["weighted"], **report["plain"], **report["ratio"]}
    assert report["ratio"]["kernels"] > 1


class Compiled(SimpleNamespace):
    """Stands in for a program that takes so long each time, by a clock that only it moves."""

    def __call__(self, state, batch, step):
        self.clock.now += self.seconds.pop(0)
        return state, {}

    cost_analysis = staticmethod(lambda: {"flops": 1e9})
    memory_analysis = staticmethod(lambda: SimpleNamespace(temp_size_in_bytes=1e6))
    as_text = staticmethod(str)


def test_seconds_are_told_apart_by_what_they_were_spent_on(config, monkeypatch):
    clock = SimpleNamespace(now=100.0)
    clock.monotonic = lambda: clock.now

    def passed(seconds, result):
        clock.now += seconds
        return result

    def step(config, total_steps):
        compiled = Compiled(clock=clock, seconds=[7.0, 4.0, 1.0, 2.0])
        lowered = SimpleNamespace(compile=lambda: passed(5, compiled))
        update = SimpleNamespace(lower=lambda *_: passed(3, lowered))
        return SimpleNamespace(num_updates=1, update=update)

    monkeypatch.setattr(benchmark, "time", clock)
    monkeypatch.setattr(benchmark, "step_on_devices", step)
    monkeypatch.setattr(benchmark, "num_kernels", lambda text: 1)
    report = benchmark.measure(config, num_steps=3, started=80.0)
    for name, before in (("weighted", 20), ("plain", 0)):
        assert report[name]["seconds_tracing"] == 3
        assert report[name]["seconds_compiling"] == 5
        # Of the program's own start only what is measured first knows.
        assert report[name]["seconds_to_first_step"] == before + 3 + 5 + 7
        assert report[name]["seconds"] == 2, "the median of those after the first"


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


def test_the_command_tells_how_much_longer_it_takes_than_before(monkeypatch, tmp_path, capsys):
    (tmp_path / "old.json").write_text('{"plain": {"seconds": 4.0}}')
    monkeypatch.setattr(benchmark, "measure", lambda *_: {"plain": {"seconds": 1.0}})
    command.main(
        ["--config=configs/digits_msdnet.py", f"--compare={tmp_path / 'old.json'}"], started=0.0
    )
    report = json.loads(capsys.readouterr().out)
    assert report["plain"]["seconds"] == 1
    assert report["ratio_to_old"] == {"plain": {"seconds": 0.25}}


@pytest.mark.parametrize(("options", "reads"), [([], True), (["--no-cache"], False)])
def test_compiled_programs_are_read_back_unless_asked_otherwise(options, reads, monkeypatch):
    found = []

    def measured(*_):
        found.append(jax.config.jax_enable_compilation_cache)
        return {}

    monkeypatch.setattr(benchmark, "measure", measured)
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", True)
    try:
        command.main(["--config=configs/digits_msdnet.py", *options], started=0.0)
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
    assert found == [reads]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[1]", "no object"),
        (to_json(default_config()), "it has no 'plain' with 'seconds' of an update"),
        ('{"plain": 1.0}', "it has no 'plain' with 'seconds' of an update"),
        # As another kind of benchmark writes it.
        ('{"plain": {"kernels": 5}}', "it has no 'plain' with 'seconds' of an update"),
    ],
)
def test_what_is_no_report_is_refused_before_anything_is_measured(tmp_path, monkeypatch, text, why):
    monkeypatch.setattr(benchmark, "measure", lambda *_: pytest.fail("measured"))
    (tmp_path / "old.json").write_text(text)
    with pytest.raises(UserError, match=rf"old\.json: not the output of this command: {why}"):
        command.main(
            ["--config=configs/digits_msdnet.py", f"--compare={tmp_path / 'old.json'}"], started=0.0
        )

"""A step is compiled for a slice of TPUs that is not there, and what it costs is told."""

import subprocess
import sys

import jax
import pytest
from programs import ENVIRONMENT
from small_networks import ConvNetwork

from l2w_jax.benchmark import __main__ as command
from l2w_jax.benchmark import topology
from l2w_jax.config import default_config
from l2w_jax.errors import UserError


@pytest.fixture
def config():
    config = default_config(model=ConvNetwork())
    config.dataset.update(image_size=8, batch_size=16, eval_batch_size=16)
    config.weighting.hidden = 8
    return config


@pytest.mark.parametrize(
    "name", ["v1:2x2", "2x2", "", "v5e", "v5e:0x0", "h100", "h100:2x2", "h100:0"]
)
def test_a_slice_of_unknown_chips_is_one_line(name):
    with pytest.raises(UserError, match=r"--topology: '.*' is not allowed: must be one of v5e, "):
        topology.find_slice(name)


def test_a_slice_without_a_name_is_one_line_on_the_command_line():
    with pytest.raises(UserError, match=r"--topology: '' is not allowed: must be one of v5e, "):
        command.main(["--config=configs/digits_msdnet.py", "--topology="], started=0.0)


def test_without_a_slice_there_is_nothing_to_compile_against():
    with pytest.raises(UserError, match="--against: is not allowed without --topology"):
        command.main(["--config=configs/digits_msdnet.py", "--against=plain"], started=0.0)


@pytest.mark.parametrize(
    ("message", "reason"), [("\nno library\nand a page more", "no library"), ("", "RuntimeError")]
)
def test_without_the_compiler_one_line_says_how_to_install_it(message, reason, monkeypatch):
    def without_compiler(name, platform, **options):
        raise RuntimeError(message)

    monkeypatch.setattr(topology.topologies, "get_topology_desc", without_compiler)
    with pytest.raises(UserError, match=rf"pip install -e '\.\[tpu\]'\) says: {reason}$"):
        topology.find_slice("v5e:2x2")
    with pytest.raises(UserError, match=rf"pip install -e '\.\[cuda\]'\) says: {reason}$"):
        topology.find_slice("h100:8")


def test_a_step_that_needs_too_much_memory_is_told_with_what_it_needs(config, monkeypatch):
    monkeypatch.setattr(topology, "pmap_train_step", lambda step, devices: _TooLarge())
    chips = topology.Slice("v5e:2x2", topology.TPUS["v5e"], devices=jax.devices() * 4)
    report = topology.measure_compiled(config, 16, chips)
    assert report["fits"] is False
    assert report["needed_gigabytes"] == pytest.approx(20 * 1.024**3)


@pytest.mark.parametrize(("memory", "fits"), [(None, True), (1e9, True), (1e3, False)])
def test_what_compiles_fits_unless_it_is_more_than_jax_takes_of_a_gpu(config, memory, fits):
    chip = topology.GPUS["h100"]._replace(memory=memory)
    report = topology.measure_compiled(config, 16, topology.Slice("h100:1", chip, jax.devices()))
    assert report["fits"] is fits
    assert report["temporary_gigabytes"] > 0


@pytest.mark.parametrize(("parts", "counted"), [(1, True), (2, False)])
def test_what_a_compiler_counts_in_one_pass_of_a_loop_is_left_out(config, parts, counted):
    config.optimizer.accumulation = parts
    chips = topology.Slice("v5e:1x1", topology.TPUS["v5e"], jax.devices())
    report = topology.measure_compiled(config, 16, chips)
    for name in ("gigaflops", "milliseconds_of_arithmetic", "gigabytes_moved"):
        assert (name in report) is counted
    assert report["gigabytes_of_memory"] > 0


@pytest.mark.parametrize(("fitting", "found"), [(2, 2), (3, None)])
def test_where_a_step_does_not_fit_the_parts_that_do_are_found(config, monkeypatch, fitting, found):
    """Of 16 images, two halves on four chips of two samples each, which are two parts at most."""
    measured = []

    def measure(config, batch_size, chips):
        measured.append(config.optimizer.accumulation)
        return {"fits": measured[-1] >= fitting}

    monkeypatch.setattr(topology, "measure_compiled", measure)
    chips = topology.Slice("v5e:2x2", topology.TPUS["v5e"], devices=jax.devices() * 4)
    report = topology.measure_on(config, chips, against_plain=False)
    assert measured == [1, 2]
    in_parts = {"optimizer.accumulation": found, "fits": True}
    assert report["step_that_fits"] == (in_parts if found else None)
    assert config.optimizer.accumulation == 1


def test_the_step_of_a_run_is_measured_beside_plain_training(config):
    pytest.importorskip("libtpu")
    report = topology.measure_on(config, topology.find_slice("v5e:2x2"), against_plain=True)
    assert report["chips"] == 4
    assert report["images_per_update"] == 8
    step, plain = report["step"], report["plain"]
    assert step["fits"] and plain["fits"]
    # Gradients and batch statistics are averaged over the chips.
    assert step["collectives"]["all-reduce"]["count"] > plain["collectives"]["all-reduce"]["count"]
    for name in ("gigaflops", "gigabytes_moved", "gigabytes_of_memory", "megacycles", "kernels"):
        assert step[name] > plain[name] > 0
        assert report["ratio"][name] == step[name] / plain[name]
    # So small a network stays within the chip.
    assert step["gigabytes_of_memory"] < step["gigabytes_moved"] / 4
    floor = 1e3 * 1e9 * step["gigabytes_of_memory"] / topology.TPUS["v5e"].bandwidth
    assert step["milliseconds_of_memory"] == pytest.approx(floor)
    # The weights of the network and of the predictor, and SGD's and Adam's buffers.
    assert 0 < step["argument_gigabytes"] < 0.01


def test_two_processes_compile_at_the_same_time():
    pytest.importorskip("libtpu")
    program = (
        "from l2w_jax.benchmark import topology\n"
        "print(len(topology.find_slice('v5e:2x2').devices), flush=True)\n"
        "input()"
    )
    command = [sys.executable, "-c", program]
    options = {"text": True, "env": ENVIRONMENT, "stdin": subprocess.PIPE}
    with subprocess.Popen(command, stdout=subprocess.PIPE, **options) as first:
        assert first.stdout.readline() == "4\n"
        options.pop("stdin")
        second = subprocess.run(command, input="\n", capture_output=True, check=False, **options)
        first.communicate("\n")
    assert second.stdout == "4\n", second.stderr


def test_the_passes_of_an_exact_step_share_most_of_their_convolutions():
    """A TPU's compiler compiles those once that are the same at θ, at θ̂ and when made again."""
    pytest.importorskip("libtpu")
    config = default_config()
    config.dataset.update(image_size=16, batch_size=64)
    config.model.update(
        num_exits=1, growth_factors=(1, 2), bottleneck_factors=(1, 2), dtype="bfloat16"
    )
    config.weighting.constraint = "mat"
    report = topology.measure_compiled(config, 64, topology.find_slice("v5e:2x2"))
    # 0.58 with θ̂ made in kernels of x2, 0.64 with parameters that some passes cast and others do
    # not, 0.67 with the two sums of a norm made in either order.
    assert report["distinct_convolutions"] < 0.57 * report["convolutions"]


class _TooLarge:
    """Stands in for a compiled step and its lowered update."""

    @property
    def update(self):
        return self

    def lower(self, *_):
        return self

    def compile(self, options):
        raise topology.jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (20.00G) exceeds available HBM (15.75G)."
        )

"""A step is taken in as few parts as fit, found once for the whole run."""

from types import SimpleNamespace

import jax
import pytest
from conftest import TinyNetwork
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import TOTAL_STEPS, make_config

from l2w_jax.config import default_config, to_json
from l2w_jax.errors import UserError
from l2w_jax.run import parts
from l2w_jax.run import workdir as run_folder
from l2w_jax.training import create_train_state


@pytest.fixture
def asking():
    config = make_config(TinyNetwork())
    config.optimizer.accumulation = 0
    return config


def test_the_fewest_parts_that_fit_are_taken(asking, monkeypatch, capsys):
    """Batches of 16 on one device: halves of 8."""
    needs = {1: 90.0, 2: 60.0, 4: 45.0, 8: 40.0}
    monkeypatch.setattr(parts, "_needs", lambda config, _: needs[config.optimizer.accumulation])
    for limit, found in [(100.0, 1), (60.0, 2), (59.0, 4), (40.0, 8)]:
        monkeypatch.setattr(parts, "memory_of_device", lambda limit=limit: limit)
        config = parts.with_parts_that_fit(asking, TOTAL_STEPS)
        assert config.optimizer.accumulation == found
        begun, told = capsys.readouterr().out.splitlines()
        assert begun.startswith("optimizer.accumulation=0: compiles")
        assert told.startswith(f"optimizer.accumulation={found}: ")
    assert asking.optimizer.accumulation == 0
    monkeypatch.setattr(parts, "memory_of_device", lambda: 39.0)
    with pytest.raises(UserError, match=r"accumulation: 0 is not allowed: in 8 parts, the most"):
        parts.with_parts_that_fit(asking, TOTAL_STEPS)


def test_a_number_that_is_given_is_kept_and_nothing_compiled(asking, monkeypatch):
    monkeypatch.setattr(parts, "memory_of_device", pytest.fail)
    asking.optimizer.accumulation = 2
    assert parts.with_parts_that_fit(asking, TOTAL_STEPS) is asking


def test_where_no_limit_is_known_it_is_one_part(asking, monkeypatch, capsys):
    monkeypatch.setattr(parts, "_needs", pytest.fail)
    assert parts.memory_of_device() is None
    assert parts.with_parts_that_fit(asking, TOTAL_STEPS).optimizer.accumulation == 1
    (told,) = capsys.readouterr().out.splitlines()
    assert told.startswith("optimizer.accumulation=1: JAX knows no limit")


@pytest.mark.parametrize(("elsewhere", "found"), [(8, 7), (5, 5)])
def test_the_limit_is_what_jax_may_take_of_the_smallest_device_of_all_processes(
    elsewhere, found, monkeypatch
):
    statistics = [{"bytes_limit": 9, "bytes_in_use": 1}, {"bytes_limit": 7, "bytes_in_use": 2}]
    devices = [SimpleNamespace(memory_stats=lambda told=told: told) for told in statistics]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert parts.memory_of_device() == 7
    monkeypatch.setattr(parts, "of_all", lambda ours: [ours, elsewhere])
    assert parts.memory_of_device() == found
    devices.append(SimpleNamespace(memory_stats=lambda: None))
    assert parts.memory_of_device() is None


@pytest.mark.parametrize("schedule", ["exact", "pipelined"])
def test_a_step_needs_what_its_program_holds(asking, schedule):
    asking.weighting.schedule = schedule
    needed = parts._needs(parts.with_parts(asking, 2), TOTAL_STEPS)
    state = create_train_state(asking, jax.random.key(0))
    batches = 1 if schedule == "exact" else 2
    arguments = sum(array.nbytes for array in jax.tree.leaves(state)) + batches * 16 * 8 * 8 * 3
    # Weighted updates keep at least the features of a part of four images.
    assert needed > arguments + 16 * 4 * batches + 4 * 8 * 8 * 3


def test_a_step_needs_its_arguments_and_what_it_makes_but_its_state_once(asking, monkeypatch):
    class Compiled:
        """Stands in for the update of a step, also lowered."""

        lower = staticmethod(lambda *_: Compiled)
        compile = staticmethod(lambda: Compiled)
        memory_analysis = staticmethod(
            lambda: SimpleNamespace(
                argument_size_in_bytes=300,
                temp_size_in_bytes=50,
                output_size_in_bytes=280,
                alias_size_in_bytes=280,
            )
        )

    monkeypatch.setattr(parts, "step_on_devices", lambda *_: SimpleNamespace(update=Compiled))
    assert parts._needs(parts.with_parts(asking, 1), TOTAL_STEPS) == 350


def test_what_the_compiler_refuses_does_not_fit_and_other_faults_are_told(asking, monkeypatch):
    class Refused:
        message = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm"

        def compile(self):
            raise jax.errors.JaxRuntimeError(self.message)

    class Step:
        class update:
            lower = staticmethod(lambda *_: Refused())

    monkeypatch.setattr(parts, "step_on_devices", lambda *_: Step)
    config = parts.with_parts(asking, 1)
    assert parts._needs(config, TOTAL_STEPS) == float("inf")
    monkeypatch.setattr(Refused, "message", "INTERNAL: something else")
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        parts._needs(config, TOTAL_STEPS)


@given(st.integers(1, 64), st.integers(1, 8), st.integers(1, 3), st.booleans())
def test_parts_divide_what_a_device_trains_on(samples, num_devices, first, weighted):
    config = default_config()
    config.weighting.kind = "meta" if weighted else "none"
    config.dataset.batch_size = samples * num_devices * (2 if weighted else 1)
    numbers = list(parts.numbers_of_parts(config, num_devices, first))
    assert all(samples % number == 0 for number in numbers)
    assert numbers == [first * 2**i for i in range(len(numbers))]
    assert samples % (first * 2 ** len(numbers))


def test_a_run_goes_on_with_the_parts_that_it_found(tmp_path):
    asking = parts.with_parts(default_config(), 0)
    found = parts.with_parts(asking, 4)
    assert run_folder.with_parts_found(asking, tmp_path) is asking
    (tmp_path / "config.json").write_text(to_json(found))
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    again = run_folder.with_parts_found(asking, tmp_path)
    assert again.optimizer.accumulation == 4
    run_folder.check(again, tmp_path)
    # Of an imported network, in which nobody has looked yet.
    (tmp_path / "config.json").write_text(to_json(asking))
    run_folder.check(found, tmp_path)
    (tmp_path / "config.json").write_text(to_json(found))
    other = parts.with_parts(asking, 2)
    assert run_folder.with_parts_found(other, tmp_path) is other
    with pytest.raises(UserError, match=r"optimizer\.accumulation: 4 -> 2"):
        run_folder.check(other, tmp_path)

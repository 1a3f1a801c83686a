"""A kept program is the one that would be compiled; whatever happens to it, a run goes on."""

import threading

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

from l2w_jax import programs
from l2w_jax.training.step import CompiledTrainStep


@flax.struct.dataclass
class State:
    """What the update carries on."""

    params: dict[str, jax.Array]
    step: jax.Array


@pytest.fixture
def cache(tmp_path):
    """JAX's compilation cache, in a folder of its own."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    _update_config(settings)
    yield tmp_path
    _update_config(before)


@pytest.fixture
def compilations(monkeypatch):
    """A list that grows by one with each program that is compiled anew."""
    done = []

    def compile_anew(lowered):
        done.append(lowered)
        return compile_as_before(lowered)

    compile_as_before = programs._compile_anew
    monkeypatch.setattr(programs, "_compile_anew", compile_anew)
    return done


def _update_config(settings):
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def new_state():
    return State({"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3)}, jnp.int32(0))


def update(state, batch, i, factor=0.5):
    features = jnp.sort(batch["image"] @ state.params["kernel"] + state.params["bias"], axis=0)
    features = jnp.concatenate([features, features[::-1]])
    params = jax.tree.map(lambda p: p - factor * features.mean() * p, state.params)
    metrics = {"weights": features, "losses": features, "loss": features.mean() + i}
    return State(params, state.step + i), metrics


BATCH = {"image": jnp.linspace(0.0, 1.0, 8).reshape(4, 2)}


def start(function=update, run="a run", compiler_options=None):
    """The update as a process that has just started would make it."""
    jitted = jax.jit(lambda *args: function(*args), donate_argnums=0)
    step = CompiledTrainStep(jitted, num_updates=2, compiler_options=compiler_options)
    return programs.kept(step, run)


def trajectory(step):
    """What three iterations from the first state leave and report, as NumPy arrays."""
    state, reports = new_state(), []
    for _ in range(3):
        state, metrics = step(state, BATCH)
        reports.append(metrics)
    return jax.device_get((state, reports))


def assert_equal(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def wanted(function=update):
    return trajectory(CompiledTrainStep(jax.jit(function), num_updates=2))


def test_the_second_start_compiles_nothing_and_computes_the_same(cache, compilations):
    assert_equal(trajectory(start()), wanted())
    assert len(compilations) == 1
    assert_equal(trajectory(start()), wanted())
    assert len(compilations) == 1


def test_the_state_is_donated_by_a_program_from_disk_too(cache):
    for _ in range(2):
        state = new_state()
        start()(state, BATCH)
        assert state.params["kernel"].is_deleted()


def test_the_program_is_read_while_the_update_is_traced(cache, monkeypatch):
    trajectory(start())
    reading = threading.Event()
    deserialize = serialize_executable.deserialize_and_load

    def deserialize_and_tell(*args, **kwargs):
        reading.set()
        return deserialize(*args, **kwargs)

    def traced_when_read(*args):
        assert reading.wait(timeout=60)
        return update(*args)

    monkeypatch.setattr(serialize_executable, "deserialize_and_load", deserialize_and_tell)
    assert_equal(trajectory(start(traced_when_read)), wanted())


def test_a_changed_update_never_gets_the_program_of_the_old_one(cache, compilations):
    def changed(*args):
        return update(*args, factor=0.25)

    trajectory(start())
    assert_equal(trajectory(start(changed)), wanted(changed))
    assert len(compilations) == 2
    # From now on it is the one that is expected.
    assert_equal(trajectory(start(changed)), wanted(changed))
    assert_equal(trajectory(start()), wanted())
    assert len(compilations) == 2


def test_large_constants_tell_programs_apart(cache, compilations):
    def added(value):
        table = np.zeros((4, 25_000), np.float32)
        table[2, 12_345] = value

        def function(state, batch, i):
            state, metrics = update(state, batch, i)
            return state, metrics | {"loss": metrics["loss"] + jnp.asarray(table).sum()}

        return function

    first, second = added(1.0), added(2.0)
    assert_equal(trajectory(start(first)), wanted(first))
    assert_equal(trajectory(start(second)), wanted(second))
    assert len(compilations) == 2


def test_other_runs_share_a_program_that_is_the_same(cache, compilations):
    trajectory(start(run="seed 0"))
    assert_equal(trajectory(start(run="seed 1")), wanted())
    assert len(compilations) == 1


def test_another_environment_gets_a_program_of_its_own(cache, compilations, monkeypatch):
    trajectory(start())
    start(compiler_options={"an": "option"})(new_state(), BATCH)
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    start()(new_state(), BATCH)
    monkeypatch.setattr(programs, "_processor", lambda: "flags: fewer")
    start()(new_state(), BATCH)
    assert len(compilations) == 4


def test_what_jax_cached_before_does_not_get_into_the_kept_program(cache, compilations):
    jitted = jax.jit(lambda *args: update(*args), donate_argnums=0)
    jitted.lower(new_state(), BATCH, np.int32(0)).compile()
    assert list(cache.glob("jit__lambda*-cache"))
    jax.clear_caches()
    for _ in range(2):
        assert_equal(trajectory(start()), wanted())
    assert len(compilations) == 1


def test_a_kept_program_that_was_lost_is_made_again(cache, compilations):
    # What the state is made with is compiled first, by JAX's cache, as in a process that starts.
    jax.clear_caches()
    trajectory(start())
    assert not list(cache.glob("jit__lambda*-cache")), "not compiled past JAX's cache"
    (path,) = cache.glob("*/*.program")
    path.unlink()
    for _ in range(2):
        jax.clear_caches()
        assert_equal(trajectory(start()), wanted())
    assert len(compilations) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: b"no program",
        lambda content: content[:2] + bytes([content[2] ^ 1]) + content[3:],
        lambda content: content[:200] + bytes([content[200] ^ 1]) + content[201:],
    ],
    ids=["empty", "half", "text", "an early bit", "a later bit"],
)
def test_a_damaged_program_is_named_and_replaced(cache, compilations, caplog, damage):
    trajectory(start())
    (path,) = cache.glob("*/*.program")
    path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level("WARNING"):
        assert_equal(trajectory(start()), wanted())
    assert [str(path) in record.getMessage() for record in caplog.records] == [True]
    assert_equal(trajectory(start()), wanted())
    assert len(compilations) == 2


def test_a_damaged_pointer_costs_no_more_than_the_reading_ahead(cache, compilations):
    trajectory(start())
    (path,) = cache.glob("*/*.latest")
    path.write_bytes(b"\xff" + path.read_bytes())
    assert_equal(trajectory(start()), wanted())
    assert len(compilations) == 1


def test_a_run_goes_on_where_programs_cannot_be_written(cache, caplog):
    (cache / programs._FOLDER).write_text("a file where the folder should be")
    with caplog.at_level("WARNING"):
        assert_equal(trajectory(start()), wanted())
    (record,) = caplog.records
    assert f"{cache / 'l2w_jax'}" in record.getMessage()
    assert "the compiled program is not kept" in record.getMessage()


@pytest.mark.parametrize("folder", [None, "gs://bucket/cache"])
def test_without_a_cache_on_this_machine_the_step_is_left_as_it_is(cache, folder):
    _update_config({"jax_compilation_cache_dir": folder})
    step = CompiledTrainStep(jax.jit(update), num_updates=2)
    assert programs.kept(step, "a run") is step


def test_with_the_cache_switched_off_the_step_is_left_as_it_is(cache):
    step = CompiledTrainStep(jax.jit(update), num_updates=2)
    _update_config({"jax_enable_compilation_cache": False})
    try:
        assert programs.kept(step, "a run") is step
    finally:
        _update_config({"jax_enable_compilation_cache": True})
    assert programs.kept(step, "a run") is not step

"""A compiled step is the step, and asks a CPU's compiler for what is fastest there."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2w_jax.training import (
    DEVICE_AXIS,
    create_train_state,
    jit_train_step,
    make_train_step,
    pmap_train_step,
)
from l2w_jax.training.step import TrainStep


def test_one_device_by_itself_does_the_same_iteration(small_config, make_batch, x64):
    step = make_train_step(small_config, 100)
    state, batch = create_train_state(small_config, jax.random.key(0)), make_batch(0, 8)
    expected = jax.jit(step)(state, batch)
    found = jit_train_step(step)(state, jax.tree.map(lambda x: x[None], batch))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9), found, expected)


def test_on_a_cpu_only_sums_are_computed_by_another_library():
    def update(state, batch, i):
        return {"product": state["product"] @ state["product"]}, batch["image"].sum(axis=0)

    state, batch = {"product": jnp.ones((256, 256))}, {"image": jnp.ones((1, 4096, 64))}
    compiled = jit_train_step(TrainStep(update, num_updates=1)).update.lower(state, batch, 0)
    text = compiled.compile().as_text()
    assert len(re.findall(r"= \S+ fusion\(.*__ynn_fusion", text)) == 1
    assert re.search(r" dot\(", text[text.index("ENTRY") :])


def do_nothing(state, batch, i):
    return state, {}


@pytest.mark.parametrize(("axis_name", "num_devices"), [(None, 2), ("devices", 2), ("devices", 1)])
def test_a_step_that_would_not_average_over_the_devices_is_refused(axis_name, num_devices):
    step = TrainStep(do_nothing, num_updates=1, axis_name=axis_name)
    with pytest.raises(ValueError) as raised:
        pmap_train_step(step, jax.devices()[:1] * num_devices)
    assert str(raised.value) == (
        f"axis_name: {axis_name!r} is not allowed for a step over {num_devices} "
        f"device{'s' * (num_devices > 1)}: must be DEVICE_AXIS, 'batch', where make_train_step "
        "makes it"
    )


def test_a_step_of_several_devices_is_refused_on_one_by_itself(small_config):
    step = make_train_step(small_config, 100, axis_name=DEVICE_AXIS)
    with pytest.raises(ValueError, match=r"^axis_name: 'batch' is not allowed .* must be None"):
        jit_train_step(step)


@pytest.mark.parametrize("over_devices", [jit_train_step, pmap_train_step])
def test_a_batch_that_is_not_divided_among_devices_is_refused(over_devices):
    step = over_devices(TrainStep(do_nothing, num_updates=1))
    several, one = (
        {"image": np.zeros((count, 8, 8, 3), np.float32), "label": np.zeros(count, np.int32)}
        for count in (4, 1)
    )
    where = "must be [1, n, ...], the leading axis being that of the devices"
    for batch, array in (
        (several, "image of a batch is float32[4, 8, 8, 3]"),
        (one, "label of a batch is int32[1]"),
        ({"previous": several}, "previous/image of a batch is float32[4, 8, 8, 3]"),
    ):
        with pytest.raises(ValueError, match=re.escape(f"{array}: {where}")):
            step({}, batch)

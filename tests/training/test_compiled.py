"""A compiled step is the step, and asks a CPU's compiler for what is fastest there."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from l2w_jax.training import create_train_state, jit_train_step, make_train_step
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

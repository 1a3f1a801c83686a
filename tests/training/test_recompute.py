"""A step that makes a forward pass twice learns what one that keeps it does, in less memory."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2w_jax.config.defaults import default_config, use_small_msdnet
from l2w_jax.run.devices import step_on_stored
from l2w_jax.training import create_train_state, make_train_step
from l2w_jax.training.compiled import CompiledTrainStep


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"optimizer.accumulation": 3},
        {"imta.gradient_equilibrium": True},
        {"weighting.schedule": "pipelined"},
    ],
    ids=lambda fields: "".join(fields) or "exact",
)
def test_it_learns_the_same(small_config, make_batch, x64, fields):
    small_config.update_from_flattened_dict(fields)
    batches = [make_batch(seed, 12) for seed in range(3)]

    def after_iterations(recompute):
        step = make_train_step(small_config, 100, recompute=recompute)
        step = CompiledTrainStep(jax.jit(step.update), step.num_updates)
        state = create_train_state(small_config, jax.random.key(0))
        for batch in batches:
            state, metrics = step(state, {**batch, "previous": batches[0]})
        return jax.device_get((state.params, state.wpn_params, state.batch_stats, metrics))

    kept, recomputed = after_iterations(False), after_iterations(True)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-11), kept, recomputed
    )


def test_it_takes_less_memory(temporary_bytes):
    kept, recomputed = (temporary_bytes(recompute=recompute) for recompute in (False, True))
    assert recomputed < 0.9 * kept


def test_only_tpus_make_it_twice_for_msdnet_where_every_iteration_learns(small_config, x64):
    msdnet = default_config()
    msdnet.dataset.image_size = 16
    use_small_msdnet(msdnet)

    def operations(config, platform):
        size = config.dataset.image_size
        state = create_train_state(config, jax.random.key(0))
        batch = {"image": jnp.zeros((4, size, size, 3), jnp.uint8), "label": jnp.zeros(4, int)}
        step = step_on_stored(config, 100, [SimpleNamespace(platform=platform)])
        return jax.jit(step.update).lower(state, batch, jnp.int32(0)).cost_analysis()["flops"]

    assert operations(msdnet, "gpu") == operations(msdnet, "cpu")
    assert 1.05 < operations(msdnet, "tpu") / operations(msdnet, "cpu") < 1.15
    assert operations(small_config, "tpu") == operations(small_config, "cpu")
    msdnet.weighting.interval = 2
    assert operations(msdnet, "tpu") == operations(msdnet, "cpu")

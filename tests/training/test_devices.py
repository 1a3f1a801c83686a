"""Eight devices compute what one does on the same global batch."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from programs import ENVIRONMENT

from l2w_jax.config import default_config
from l2w_jax.models import create_model
from l2w_jax.models.layers import BatchNorm


@pytest.fixture(scope="module")
def result():
    flags = "--xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("eight_devices.py")],
        env=ENVIRONMENT | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("schedule", ["global", "pipelined"])
@pytest.mark.parametrize("what", ["theta", "Theta", "statistics"])
def test_eight_devices_learn_what_one_does(result, schedule, what):
    assert result[schedule][what] <= 1e-6


@pytest.mark.parametrize("schedule", ["global", "pipelined"])
def test_metrics_are_those_of_the_global_batch(result, schedule):
    assert result[schedule]["metrics"] <= 1e-9


@pytest.mark.parametrize("setting", ["global", "device", "pipelined"])
def test_replicas_agree_on_state_and_metrics(result, setting):
    assert result[setting]["spread"] <= 1e-12


@pytest.mark.parametrize("what", ["theta", "Theta"])
def test_scope_device_is_another_update(result, what):
    assert result["device"][what] > 1e-3


def test_scope_device_is_the_mean_of_what_each_device_learns_by_itself(result):
    assert result["device"]["by_hand"] <= 1e-6


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_batch_norm_takes_one_exchange_and_its_gradient_two(result, dtype):
    assert result["exchanges"][dtype] == [1, 2]


@pytest.mark.parametrize("name", ["msdnet", "ranet"])
def test_every_batch_norm_of_a_network_averages_over_the_devices(name):
    config = default_config()
    config.model.name = name
    if name == "ranet":
        config.model.update(step_mode="lg", growth_factors=(4, 2, 1), bottleneck_factors=(4, 2, 1))
    model = create_model(config.model).clone(axis_name="device")
    axes = []

    def note_axis(call, args, kwargs, context):
        if isinstance(context.module, BatchNorm):
            axes.append(context.module.options.axis_name)
        return call(*args, **kwargs)

    with nn.intercept_methods(note_axis):
        jax.eval_shape(
            lambda key: model.init(key, jnp.zeros((1, 32, 32, 3)), train=True), jax.random.key(0)
        )
    assert len(axes) > 50
    assert set(axes) == {"device"}

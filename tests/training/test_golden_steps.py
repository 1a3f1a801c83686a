"""Whole iterations against what the method's original authors' modules compute, in float64."""

import jax
import numpy as np
import pytest
from golden_files import config_of, images, labels, load, named_tensor

from l2w_jax.interop import variables_from_torch, variables_to_torch, wpn_from_torch, wpn_to_torch
from l2w_jax.models import create_model
from l2w_jax.training import create_train_state, jit_train_step, make_train_step

GOLDEN = load("l2w_steps")
# So many iterations that the cosine does not fall below 1 - 1e-20 in the first few.
CONSTANT_RATE_STEPS = 10**11


def golden_config(case):
    config = config_of(case["config"])
    config.model.dtype = "float64"
    config.weighting.update(
        input={"conf": "confidence"}.get(case["input_type"], case["input_type"]),
        constraint=case["constraint"],
        magnitude=case["epsilon"],
        q=case["q"],
        hidden=case["wpn_hidden"],
        interval=case["meta_interval"],
        objective="vanilla" if case["vanilla_meta"] else "allocated",
        learning_rate=case["meta_lr"],
        weight_decay=case["meta_weight_decay"],
    )
    config.optimizer.update(
        learning_rate=case["lr"], momentum=case["momentum"], weight_decay=case["weight_decay"]
    )
    return config


def golden_state(case, config):
    """The state whose every tensor has the golden value, and those tensors by PyTorch name."""
    model = create_model(config.model)
    state = create_train_state(config, jax.random.key(0))
    ours = variables_to_torch(model, state.variables)
    tensors = {name: named_tensor(name, value.shape) for name, value in ours.items()}
    wpn = {name: named_tensor("wpn." + name, np.shape(v)) for name, v in case["wpn_after"].items()}
    state = state.replace(**variables_from_torch(model, tensors), wpn_params=wpn_from_torch(wpn))
    return model, state, tensors, wpn


def run_golden_iterations(case, config, state):
    step = jit_train_step(make_train_step(config, CONSTANT_RATE_STEPS))
    metrics = []
    for s in range(case["steps"]):
        seed = case["data_seed"] + 10 * s
        batch = {
            "image": images(seed, case["batch"], config.dataset.image_size),
            "label": labels(seed, case["batch"], config.dataset.num_classes),
        }
        state, of_step = step(state, jax.tree.map(lambda x: x[None], batch))
        metrics.append(of_step)
    return state, metrics


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_iterations_equal_the_authors(name, x64):
    case = GOLDEN[name]
    config = golden_config(case)
    model, state, tensors, wpn = golden_state(case, config)
    state, metrics = run_golden_iterations(case, config, state)

    for s, of_step in enumerate(metrics):
        halves = [half for half in case["halves"] if half["step"] == s]
        weights = np.concatenate([half["weights"] for half in halves])
        np.testing.assert_allclose(of_step["weights"], weights, rtol=1e-6)
        weighted = np.mean([half["weighted_loss"] for half in halves])
        np.testing.assert_allclose(of_step["weighted_loss"], weighted, rtol=1e-6)
        if s % case["meta_interval"] == 0:
            meta_loss = np.mean([half["meta_loss"] for half in halves])
            np.testing.assert_allclose(of_step["meta_loss"], meta_loss, rtol=1e-6)
        else:
            assert np.isnan(of_step["meta_loss"])

    after = variables_to_torch(model, state.variables)
    for tensor, (norm, probe) in case["theta_update_norm_and_probe"].items():
        update = after[tensor] - tensors[tensor]
        assert np.linalg.norm(update) == pytest.approx(norm, rel=1e-6), tensor
        inner = np.vdot(update, named_tensor("probe." + tensor, update.shape))
        assert inner == pytest.approx(probe, abs=1e-6 * norm), tensor
    for tensor, probe in case["running_mean_probe"].items():
        value = after[tensor]
        inner = np.vdot(value, named_tensor("probe." + tensor, value.shape))
        assert inner == pytest.approx(probe, abs=1e-6 * np.linalg.norm(value)), tensor
    for tensor, value in wpn_to_torch(state.wpn_params).items():
        change = np.abs(np.array(case["wpn_after"][tensor]) - wpn[tensor]).max()
        np.testing.assert_allclose(value, case["wpn_after"][tensor], rtol=0, atol=1e-6 * change)

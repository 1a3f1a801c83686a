"""Gradient equilibrium, collaboration and distillation against what their authors' modules compute.

In float64; Li et al., ICCV 2019.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import config_of, images, labels, load, named_tensor

from l2w_jax.interop import variables_from_torch, variables_to_torch
from l2w_jax.models import create_network
from l2w_jax.training.losses import TrainingLosses, create_distillation, weighted_loss

GOLDEN = load("imta")


@pytest.fixture(params=sorted(GOLDEN))
def case(request, x64):
    return GOLDEN[request.param]


def batch_of(case, config):
    return {
        "image": images(case["data_seed"], case["batch"], config.dataset.image_size),
        "label": labels(case["data_seed"], case["batch"], config.dataset.num_classes),
    }


def golden_variables(model, shapes):
    return variables_from_torch(model, {name: named_tensor(name, shapes[name]) for name in shapes})


def training_loss_and_gradients(network, variables, batch):
    """Loss, logits, moved statistics, and gradients by PyTorch name, with nothing frozen."""

    @jax.jit
    def compute(variables, batch):
        def loss_of(params):
            (losses, distilled), outputs = network.with_distilled(
                params, variables["batch_stats"], batch
            )
            return weighted_loss(network.label_shares, losses) + distilled, outputs

        return jax.value_and_grad(loss_of, has_aux=True)(variables["params"])

    (loss, (logits, statistics)), gradients = compute(variables, batch)
    gradients = variables_to_torch(network.model, {"params": gradients})
    return loss, logits, statistics, gradients


def assert_gradients(gradients, expected):
    for name, (norm, probe) in expected.items():
        gradient = gradients.pop(name)
        assert np.linalg.norm(gradient) == pytest.approx(norm, rel=1e-6, abs=1e-12), name
        inner = np.vdot(gradient, named_tensor("probe." + name, gradient.shape))
        assert inner == pytest.approx(probe, abs=max(1e-6 * norm, 1e-12)), name
    for name, gradient in gradients.items():
        assert not gradient.any(), name


def test_gradient_equilibrium_equals_the_authors(case):
    config = config_of(case["config"])
    config.model.dtype = "float64"
    config.imta.gradient_equilibrium = True
    model = create_network(config)
    shapes = {
        name.removeprefix("net."): shape
        for name, shape in case["isc_shapes"].items()
        if name.startswith("net.")
    }
    loss, _, _, gradients = training_loss_and_gradients(
        TrainingLosses(model, 0.0), golden_variables(model, shapes), batch_of(case, config)
    )
    assert loss == pytest.approx(case["ge_loss"], rel=1e-9)
    assert_gradients(gradients, case["ge_grad_norm_and_probe"])


def test_collaboration_and_distillation_equal_the_authors(case):
    config = config_of(case["config"])
    config.model.dtype = "float64"
    config.imta.update(
        gradient_equilibrium=True,
        collaboration=True,
        distillation=case["gamma"],
        temperature=case["T"],
    )
    model = create_network(config)
    batch = batch_of(case, config)
    variables = golden_variables(model, case["isc_shapes"])
    loss, logits, statistics, gradients = training_loss_and_gradients(
        TrainingLosses(model, 0.0, create_distillation(config)), variables, batch
    )
    np.testing.assert_allclose(logits, case["isc_train_logits"], rtol=0, atol=1e-9)
    assert loss == pytest.approx(case["ofa_loss"], rel=1e-9)
    assert_gradients(gradients, case["ofa_grad_norm_and_probe"])

    evaluate = jax.jit(lambda variables, x: model.apply(variables, x, train=False))
    moved = {"params": variables["params"], "batch_stats": statistics}
    logits = evaluate(moved, batch["image"])
    scale = np.abs(case["isc_eval_logits"]).max()
    np.testing.assert_allclose(logits, case["isc_eval_logits"], rtol=0, atol=2e-3 * scale)
    unmoved = evaluate(variables, jnp.asarray(batch["image"]))
    assert np.abs(unmoved - logits).max() > 1e-2 * scale

"""The PyTorch network that ours is timed beside: it is the authors', and stops as ours does."""

import numpy as np
import pytest
from golden_files import config_of, images, load, named_tensor

from l2w_jax.benchmark.runtimes import RUNTIMES
from l2w_jax.early_exit.budget import NOBODY_LEAVES
from l2w_jax.early_exit.latency import all_leave_at
from l2w_jax.errors import UserError
from l2w_jax.interop import variables_from_torch
from l2w_jax.interop.exported_folder import ImageFormat
from l2w_jax.models import create_model

torch = pytest.importorskip("torch")
torch_msdnet = pytest.importorskip("l2w_jax.benchmark.torch_msdnet")

GOLDEN = load("models")


def made(name):
    case = GOLDEN[name]
    model = create_model(config_of(case["config"], case["image_size"]).model)
    return case, model, {key: named_tensor(key, shape) for key, shape in case["shapes"].items()}


@pytest.mark.parametrize("name", ["msdnet_tiny", "msdnet_cifar100", "msdnet_imagenet_step4"])
def test_logits_are_those_of_the_authors(name):
    case, model, tensors = made(name)
    network = torch_msdnet.TorchMSDNet(model).double()
    network.load_state_dict({key: torch.tensor(value) for key, value in tensors.items()})
    pixels = images(case["image_seed"], case["batch"], case["image_size"])
    logits = torch.stack(network(torch.tensor(pixels.transpose(0, 3, 1, 2)).double())).numpy()
    if "eval_logits" in case:
        np.testing.assert_allclose(logits, case["eval_logits"], rtol=1e-5, atol=1e-6)
    else:
        few = np.float64(case["eval_logits_first20"])
        np.testing.assert_allclose(logits[..., :20], few, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["torch", "torch_channels_last"])
def test_stops_where_the_predictor_does(name):
    _, model, tensors = made("msdnet_tiny")
    variables = variables_from_torch(model, {k: np.float32(v) for k, v in tensors.items()})
    mean, deviation = np.float32([0.5] * 3), np.float32([0.25] * 3)
    runtime = RUNTIMES[name](model, variables, ImageFormat(32, 1.0, mean, deviation))
    pixels = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3)).astype(np.uint8)
    full = runtime.full_network(pixels)
    confidences = full[0].max(-1).astype(np.float64)
    middle = float(np.median(np.log(confidences / (1 - confidences))))
    in_jax = RUNTIMES["jax"](model, variables, ImageFormat(32, 1.0, mean, deviation))
    ours = in_jax.with_thresholds([middle, NOBODY_LEAVES])(pixels)
    labels, exits = runtime.with_thresholds([middle, NOBODY_LEAVES])(pixels)
    assert np.bincount(exits).tolist() == [20, 20]
    np.testing.assert_array_equal(exits, ours.exits)
    np.testing.assert_array_equal(labels, ours.labels)
    np.testing.assert_array_equal(
        runtime.with_thresholds(all_leave_at(1, 2))(pixels)[0], full[1].argmax(-1)
    )


def test_other_networks_are_told_apart(tiny_network):
    with pytest.raises(UserError, match="--runtime=torch: runs MSDNets only"):
        RUNTIMES["torch"](*tiny_network, ImageFormat(8, 1.0, [0.5] * 3, [0.25] * 3))

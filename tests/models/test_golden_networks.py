"""Networks against the figures of their authors' modules, and their stages against the whole."""

import jax
import numpy as np
import pytest
from golden_files import config_of, images, load, named_tensor

from l2w_jax.interop import variables_from_torch
from l2w_jax.models import create_model

GOLDEN = load("models")


def golden_network(case):
    model = create_model(config_of(case["config"], case["image_size"]).model)
    tensors = {name: named_tensor(name, shape) for name, shape in case["shapes"].items()}
    x = images(case["image_seed"], case["batch"], case["image_size"]).astype(np.float32)
    return model, variables_from_torch(model, tensors), x


def logits_of(model, variables, x, train):
    apply = jax.jit(lambda v, x: model.apply(v, x, train=train, mutable=["batch_stats"])[0])
    return np.asarray(apply(variables, x))


def assert_close_per_exit(logits, expected):
    for ours, theirs in zip(logits, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.parametrize("name", sorted(n for n, case in GOLDEN.items() if "eval_logits" in case))
def test_logits_equal_the_authors(name):
    case = GOLDEN[name]
    logits = logits_of(*golden_network(case), train=False)
    assert_close_per_exit(logits, np.array(case["eval_logits"]))


def test_logits_of_the_imagenet_network_equal_the_authors():
    case = GOLDEN["msdnet_imagenet_step4"]
    logits = logits_of(*golden_network(case), train=False)
    assert_close_per_exit(logits[..., :20], np.array(case["eval_logits_first20"]))
    assert_close_per_exit(logits.sum(axis=-1), np.array(case["eval_logits_sum"]))


# What training mode changes is in every layer of the small ones too.
@pytest.mark.parametrize(
    "name",
    [
        name if name.endswith("tiny") else pytest.param(name, marks=pytest.mark.slow)
        for name in sorted(n for n, case in GOLDEN.items() if "train_logits" in case)
    ],
)
def test_training_mode_logits_equal_the_authors(name):
    case = GOLDEN[name]
    logits = logits_of(*golden_network(case), train=True)
    assert_close_per_exit(logits, np.array(case["train_logits"]))


@pytest.mark.parametrize("name", ["msdnet_tiny", "ranet_tiny"])
def test_stages_in_order_give_the_logits_of_the_whole(name):
    model, variables, x = golden_network(GOLDEN[name])

    @jax.jit
    def both_ways(variables, x):
        carry = model.apply(variables, x, False, method="init_carry")
        of_stages = []
        for k in range(model.num_exits):
            logits, carry = model.apply(variables, k, carry, False, method="stage")
            of_stages.append(logits)
        return model.apply(variables, x, train=False), of_stages, carry

    expected, of_stages, carry = both_ways(variables, x)
    np.testing.assert_array_equal(of_stages, expected)
    assert jax.tree.leaves(carry) == []

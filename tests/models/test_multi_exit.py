"""Gradient equilibrium: the same forward pass, and a share of the gradient for each exit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_networks import ConvNetwork

from l2w_jax.models import RANet, initial_variables
from l2w_jax.models.multi_exit import MultiExitNetwork, scale_gradient


def test_scaled_gradient_leaves_every_bit_of_the_value():
    x = jnp.array([0.1, -0.0, 3e38, jnp.inf, jnp.nan])
    assert np.asarray(scale_gradient(x, 0.3)).tobytes() == np.asarray(x).tobytes()


def test_gradient_is_scaled_in_both_modes():
    x, t = jnp.array([1.0, -2.0]), jnp.array([0.5, 3.0])
    _, forward = jax.jvp(lambda x: scale_gradient(x, 0.25), (x,), (t,))
    _, pull_back = jax.vjp(lambda x: scale_gradient(x, 0.25), x)
    np.testing.assert_array_equal(forward, 0.25 * t)
    np.testing.assert_array_equal(pull_back(t)[0], 0.25 * t)


def test_forward_pass_is_unchanged():
    images = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
    variables = initial_variables(ConvNetwork(), jax.random.key(1), images, train=False)
    plain, balanced = (
        jax.jit(lambda v, x, model=model: model.apply(v, x, train=False))(variables, images)
        for model in (ConvNetwork(), ConvNetwork(gradient_equilibrium=True))
    )
    np.testing.assert_array_equal(plain, balanced)


@pytest.fixture(scope="module")
def ranet_gradients():
    """Gradients on the first kernel of block 0, of three functions, without and with equilibrium.

    The functions: the logits of exits 0 and 1, and what block 0 hands to the next sub-network last.
    """
    model = RANet(
        first_blocks=2,
        block_step=1,
        step=1,
        step_mode="even",
        channels=4,
        growth_rate=4,
        growth_factors=(2, 1),
        bottleneck_factors=(2, 1),
        scale_list=(1, 2),
        reduction=0.5,
        compress_factor=0.25,
        stem="cifar",
        num_classes=3,
    )
    images = jax.random.normal(jax.random.key(0), (4, 16, 16, 3))
    variables = initial_variables(model, jax.random.key(1), images, train=False)
    return model.num_exits, *(
        gradients_on_block_0(on, variables, images)
        for on in (model, model.clone(gradient_equilibrium=True))
    )


def gradients_on_block_0(model, variables, images):
    @jax.jit
    def gradient(chosen, variables, images):
        def functions(params):
            of_params = {**variables, "params": params}
            carry = model.apply(of_params, images, False, method="init_carry")
            first, carry = model.apply(of_params, 0, carry, False, method="stage")
            handed = carry.features[0][-1]
            second, _ = model.apply(of_params, 1, carry, False, method="stage")
            return chosen @ jnp.stack([(x**2).sum() for x in (first, second, handed)])

        return jax.grad(functions)(variables["params"])["blocks_0_0"]

    blocks = [gradient(chosen, variables, images) for chosen in jnp.eye(3)]
    return [block["layer_0_normal"]["reduce"]["conv"]["kernel"] for block in blocks]


def test_every_exit_of_a_sub_network_has_an_equal_share_of_the_gradient(ranet_gradients):
    num_exits, plain, balanced = ranet_gradients
    for k in (0, 1):
        scale = np.abs(plain[k]).max()
        assert scale > 0
        np.testing.assert_allclose(balanced[k], plain[k] / num_exits, atol=1e-5 * scale)


def test_sub_network_that_reads_an_exits_features_has_the_share_of_later_blocks(ranet_gradients):
    num_exits, plain, balanced = ranet_gradients
    expected = plain[2] * (num_exits - 1) / num_exits
    np.testing.assert_allclose(balanced[2], expected, atol=1e-5 * np.abs(plain[2]).max())


def test_network_without_a_stage_says_what_it_must_define():
    class Nothing(MultiExitNetwork):
        pass

    with pytest.raises(NotImplementedError, match=r"Nothing must define stage\(k, carry, train\)"):
        Nothing().apply({}, 0, (), False, method="stage")


def test_number_of_exits_may_be_a_field_or_a_property():
    class WithField(MultiExitNetwork):
        num_exits: int

    class WithProperty(MultiExitNetwork):
        num_blocks: int

        @property
        def num_exits(self):
            return self.num_blocks

    assert WithField(3).num_exits == WithProperty(3).num_exits == 3
    assert WithField(3).clone(axis_name="device").axis_name == "device"

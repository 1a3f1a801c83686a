"""A convolution is lax's, and so are its derivatives, on a CPU all in the layout of a CPU."""

import collections
import functools
import re

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from pytrees import assert_close
from small_networks import ConvNetwork

from l2w_jax.config import default_config
from l2w_jax.models.convolution import convolve, convolve_in_layout
from l2w_jax.training import create_train_state, make_train_step


def of_lax(x, kernel, stride, padding):
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@pytest.fixture(scope="module", autouse=True)
def _x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_and_its_gradients_are_those_of_lax(size, stride):
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (2, 7, 6, 5))
    kernel = jax.random.normal(keys[1], (size, size, 5, 4))

    def value_and_gradients(function):
        y, pull_back = jax.vjp(function, x, kernel)
        return y, pull_back(y)

    assert_close(
        value_and_gradients(lambda x, kernel: convolve(x, kernel, stride)),
        value_and_gradients(lambda x, kernel: of_lax(x, kernel, stride, (size - 1) // 2)),
    )


@pytest.mark.parametrize(
    ("image_size", "kernel_size", "stride"),
    [
        ((8, 8), 3, 2),
        ((9, 12), 7, 2),
        ((11, 7), 5, 3),
        # Windows that do not fit into the output, and into the image.
        ((4, 4), 3, 2),
        ((2, 5), 3, 1),
    ],
)
def test_derivatives_up_to_the_second_are_those_of_lax(image_size, kernel_size, stride):
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(2, *image_size, 3), (kernel_size, kernel_size, 3, 4)]
    primals, tangents = (
        tuple(jax.random.normal(key, shape) for key, shape in zip(pair, shapes, strict=True))
        for pair in (keys[:2], keys[2:])
    )

    @functools.partial(jax.jit, static_argnums=0)
    def derivatives(convolution):
        def loss(x, kernel):
            return jnp.sin(convolution(x, kernel, stride, kernel_size // 2)).sum()

        def along_tangents(x, kernel):
            return sum(map(jnp.vdot, tangents, gradient(x, kernel)))

        gradient = jax.grad(loss, argnums=(0, 1))
        forward_over_reverse = jax.jvp(gradient, primals, tangents)
        return forward_over_reverse, jax.grad(along_tangents, argnums=(0, 1))(*primals)

    assert_close(derivatives(convolve_in_layout), derivatives(of_lax))


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (3, 2)])
def test_platform_that_is_compiled_for_decides(size, stride):
    """1x1 windows, and windows that do not fit into 2x2 pixels: products on a CPU alone."""
    shapes = [
        jax.ShapeDtypeStruct((2, 4, 4, 3), "f4"),
        jax.ShapeDtypeStruct((size,) * 2 + (3, 5), "f4"),
    ]

    def gradients(x, kernel):
        y, pull_back = jax.vjp(lambda *a: convolve_in_layout(*a, stride, size // 2), x, kernel)
        return pull_back(y)

    def operations(platform):
        lowered = jax.jit(gradients).trace(*shapes).lower(lowering_platforms=(platform,))
        return collections.Counter(re.findall(r"stablehlo\.(\w+)", lowered.as_text()))

    of_tpu = operations("tpu")
    assert of_tpu["convolution"] == 3
    assert not of_tpu.keys() & {"dot_general", "pad", "slice", "reshape"}
    assert operations("cpu")["dot_general"] == (3 if size == 1 else 1)


def test_many_kernels_and_images_at_once_are_those_of_lax():
    x = jax.random.normal(jax.random.key(0), (5, 2, 6, 6, 3))
    kernels = jax.random.normal(jax.random.key(1), (3, 3, 3, 4, 5))

    @functools.partial(jax.jit, static_argnums=0)
    def gradients(convolution):
        def loss(x, kernel):
            return jnp.sin(convolution(x, kernel, 2, 1)).sum()

        return jax.vmap(jax.grad(loss, argnums=(0, 1)), in_axes=(0, -1))(x, kernels)

    assert_close(gradients(convolve_in_layout), gradients(of_lax))


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_of_no_images_nothing_is_computed(size, stride):
    x, kernel = jnp.zeros((0, 4, 4, 5)), jnp.ones((size, size, 5, 3))
    y, pull_back = jax.vjp(functools.partial(convolve, stride=stride), x, kernel)
    of_x, of_kernel = pull_back(y)
    assert y.shape == (0, 4 // stride, 4 // stride, 3) and of_x.shape == x.shape
    assert of_kernel.shape == kernel.shape and not of_kernel.any()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_derivatives_have_the_type_of_the_computation(dtype):
    x, kernel = jnp.ones((1, 4, 4, 2), dtype), jnp.ones((3, 3, 2, 2), dtype)
    y, pull_back = jax.vjp(lambda x, kernel: convolve_in_layout(x, kernel, 1, 1), x, kernel)
    assert {y.dtype, *(g.dtype for g in pull_back(y))} == {jnp.dtype(dtype)}


def test_all_convolutions_of_a_meta_update_have_the_layout():
    config = default_config(model=ConvNetwork())
    config.dataset.image_size = 8
    config.weighting.hidden = 8
    step = make_train_step(config, total_steps=10)
    with jax.enable_x64(False):
        state = create_train_state(config, jax.random.key(0))
        batch = {"image": jnp.ones((8, 8, 8, 3)), "label": jnp.arange(8)}
        text = jax.jit(step.update).lower(state, batch, jnp.int32(0)).as_text()
    layouts = re.findall(r"stablehlo\.convolution.*?dim_numbers = (.*?), window", text)
    assert len(layouts) > 5
    assert set(layouts) == {"[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"}

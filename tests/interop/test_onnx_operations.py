"""What a user's network may be made of means the same in ONNX, whatever the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from flax import linen as nn
from jax import export, lax

from l2w_jax.interop.onnx_graph import Graph, Tensor, Unsupported
from l2w_jax.interop.onnx_operations import convert
from l2w_jax.models.layers import convolve
from l2w_jax.models.resize import resize_align_corners

X = np.random.default_rng(0).normal(size=(5, 6, 7, 8)).astype(np.float32)
KERNEL = np.random.default_rng(1).normal(size=(3, 3, 8, 6)).astype(np.float32)
CHANNELS = np.arange(8, dtype=np.float32)


def convolved(x, kernel=KERNEL, **options):
    layout = options.pop("layout", ("NHWC", "HWIO", "NHWC"))
    options = {"window_strides": (1, 1), "padding": "SAME", **options}
    return lax.conv_general_dilated(x, kernel, dimension_numbers=layout, **options)


def layer_norm(x):
    mean = x.mean(axis=-1, keepdims=True)
    return (x - mean) * lax.rsqrt(x.var(axis=-1, keepdims=True) + 1e-3) * CHANNELS


def of_last_axes(x, matrix):
    """Products of the last axis of x and that of a matrix."""
    return lax.dot_general(x, matrix, (((x.ndim - 1,), (1,)), ((), ())))


def joined(results):
    return jnp.concatenate([result.astype(jnp.float32) for result in results], -1)


ORDERS = (jnp.less, jnp.less_equal, jnp.greater, jnp.greater_equal)

FUNCTIONS = {
    "own convolution": lambda x: convolve(x, KERNEL, 2),
    "1x1 convolution": lambda x: convolve(x, KERNEL[:1, :1]) + 1,
    "dilated convolution": lambda x: convolved(x, rhs_dilation=(2, 2)),
    "uneven padding": lambda x: convolved(x, padding=((0, 1), (2, 0)), window_strides=(2, 1)),
    "grouped convolution": lambda x: convolved(x, KERNEL[:, :, :4], feature_group_count=2),
    "channels first": lambda x: convolved(
        x.transpose(0, 3, 1, 2), layout=("NCHW", "HWIO", "NCHW")
    ).transpose(0, 2, 3, 1),
    "residual": lambda x: nn.relu(convolved(x, KERNEL.repeat(2, 3)[..., :8]) + x),
    "joined": lambda x: nn.relu(jnp.concatenate([convolved(x), x, convolved(x)], -1) - 0.5),
    "parts of a convolution": lambda x: jnp.subtract(
        *jnp.split(nn.relu(convolved(x) + CHANNELS[:6]), 2, axis=-1)
    ),
    "parts": lambda x: jnp.split(convolved(x), [2, 3], axis=-1)[2] * 2,
    "part of the rows": lambda x: lax.slice(
        convolved(x), (0, 1, 0, 0), (x.shape[0], 5, 7, 6), (1, 2, 3, 1)
    ),
    "max pool": lambda x: nn.max_pool(convolved(x), (3, 2), (2, 2), ((1, 1), (0, 1))),
    "average pool": lambda x: nn.avg_pool(x, (2, 2), (2, 2), ((1, 0), (0, 0))),
    "resize": lambda x: resize_align_corners(convolved(x), 11, 4),
    "layer norm": lambda x: layer_norm(convolved(x, KERNEL.repeat(2, 3)[..., :8])),
    "parts of a grouped convolution": lambda x: jnp.subtract(
        *jnp.split(convolved(x, KERNEL[:, :, :4], feature_group_count=2), 2, axis=-1)
    ),
    "flattened": lambda x: (
        convolved(x).reshape(x.shape[0], -1) @ np.ones((6 * 7 * 6, 3), np.float32)
    ),
    "linear map of pixels": lambda x: jnp.dot(x, KERNEL[0, 0]) + 1,
    "linear map by rows": lambda x: of_last_axes(x, KERNEL[0, :2].reshape(12, 8)),
    "linear map by rows of what is no image": lambda x: of_last_axes(
        x.max(1), KERNEL[0, :2].reshape(12, 8)
    ),
    "linear map that is computed": lambda x: x.swapaxes(2, 3) @ x.max((0, 1)),
    "linear map by rows that are computed": lambda x: of_last_axes(x, x.max((0, 1))),
    "mean and deviation": lambda x: jnp.concatenate([x.mean((1, 2)), x.std((1, 2))], -1),
    "soft": lambda x: nn.softmax(x.mean((1, 2))) + nn.log_softmax(x.max((1, 2))),
    "gates": lambda x: nn.gelu(x) + nn.silu(x) * nn.sigmoid(x) + nn.softplus(x) + jnp.expm1(x),
    "numbers": lambda x: jnp.clip(x, -0.5, 0.5) ** 3 + jnp.log1p(x**2) + jnp.square(x) / 3,
    "cases": lambda x: jnp.where(x > 0, jnp.floor(x), -jnp.inf) * jnp.sign(x),
    "finite": lambda x: jnp.isfinite(jnp.log(x)).astype(jnp.float32),
    "comparisons": lambda x: joined(
        [compare(jnp.floor(x), 0) for compare in (*ORDERS, jnp.equal, jnp.not_equal)]
    ),
    "comparisons of two": lambda x: joined(
        [compare(jnp.floor(x), jnp.ceil(x - 1.5)) for compare in ORDERS]
    ),
    "logic": lambda x: joined([(x > 0) & (x < 1), (x > 0) | (x < -1), ~(x > 0)]),
    "roundings": lambda x: joined([jnp.abs(x), jnp.ceil(x), jnp.floor(x), jnp.sign(x), -x]),
    "curves": lambda x: joined(
        [lax.erf(x), jnp.tanh(x), lax.logistic(x), jnp.sin(x), jnp.cos(x), jnp.exp(x), jnp.exp2(x)]
    ),
    "roots and powers": lambda x: joined(
        [f(jnp.abs(x) + 0.1) for f in (jnp.sqrt, lax.rsqrt, jnp.log, lambda y: lax.pow(y, x))]
    ),
    "the larger and the smaller": lambda x: joined(
        [
            f(x, y)
            for f in (jnp.maximum, jnp.minimum)
            for y in (
                *(0.0, 0.5, CHANNELS - 4, x.mean(1, keepdims=True)),
                # What JAX begins to look for a maximum from, of some channels alone.
                np.where(CHANNELS > 3, 0, -np.inf).astype(np.float32),
            )
        ]
    ),
    "both orders": lambda x: joined(
        [
            f(*of)
            for f in (jnp.subtract, jnp.divide)
            for y in (2.0, CHANNELS + 1, jnp.exp(x))
            for of in ((x, y), (y, x))
        ]
    ),
    # Where limits cross, the upper one holds.
    "limits of each channel": lambda x: lax.clamp(
        jnp.broadcast_to(CHANNELS - 4, x.shape), x, jnp.broadcast_to(2 - CHANNELS, x.shape)
    ),
    "reductions": lambda x: joined([x.max((1, 2)), x.min((1, 2)), x.sum((1, 2))]),
    # With ties, of which the first ones count.
    "the largest and their places": lambda x: joined(lax.top_k(jnp.floor(x), 3)),
    "the largest of another axis": lambda x: joined(lax.top_k(convolved(x).swapaxes(1, 3), 2)),
    "one of each": lambda x: jax.nn.one_hot(x.mean((1, 2)).argmax(-1), 8) + CHANNELS,
    "repeated": lambda x: jnp.broadcast_to(x.mean((1, 2), keepdims=True), x.shape).sum((1, 2)),
}


def graph_of(function):
    """The model of a function of x, for any batch."""
    (batch,) = export.symbolic_shape("batch")
    shape = (batch, *X.shape[1:])
    jaxpr = jax.make_jaxpr(function)(jax.ShapeDtypeStruct(shape, jnp.float32))
    graph = Graph("graph")
    x = Tensor("x", shape, (0, 1, 2, 3), shape, np.dtype(np.float32))
    (result,) = convert(graph, jaxpr, [x])
    return graph.model([x], {"y": graph.laid_out(result)}, [])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_give_what_they_give_in_jax(name):
    model = graph_of(FUNCTIONS[name])
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for count in (1, 5):
        (found,) = session.run(None, {"x": X[:count]})
        expected = np.asarray(FUNCTIONS[name](X[:count]))
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_logarithms_near_1_keep_their_digits():
    model = graph_of(lambda x: jnp.log1p(jnp.exp(x)))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    x = np.linspace(-60, 100, X.size, dtype=np.float32).reshape(X.shape)
    (found,) = session.run(None, {"x": x})
    # From 1e-26 to infinity.
    with np.errstate(over="ignore"):
        expected = np.log1p(np.exp(x))
    assert expected.min() < 1e-25 and np.isinf(expected.max())
    np.testing.assert_allclose(found, expected, rtol=2e-6)


def operations(function):
    """What a function is made of, but for how its argument and its result lie and are named."""
    names = {node.op_type for node in graph_of(function).graph.node}
    return sorted(names - {"Transpose", "Identity"})


def test_a_convolution_that_is_cut_is_computed_in_parts():
    assert operations(FUNCTIONS["parts of a convolution"]) == ["Add", "Conv", "Relu", "Sub"]
    # Rows are no channels, and channels that others were added to no convolution's own.
    for whole, axis in (
        (convolved, 1),
        (lambda x: convolved(x) + lax.slice_in_dim(x, 0, 6, axis=3), 3),
    ):
        parts = operations(lambda x, whole=whole, axis=axis: sum(jnp.split(whole(x), 2, axis)))
        assert "Split" in parts


def test_a_mean_of_pixels_is_not_multiplied_and_divided():
    assert operations(FUNCTIONS["average pool"]) == ["AveragePool"]


def test_limits_are_one_operation():
    assert operations(lambda x: lax.clamp(-1.0, x, 2.0)) == ["Clip"]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: jnp.sort(x), "'sort'"),
        (lambda x: jnp.cumsum(x, axis=1), "'cumsum'"),
        (lambda x: lax.conv_transpose(x, KERNEL, (2, 2), "SAME"), "'conv_general_dilated'"),
        (lambda x: x @ x.swapaxes(2, 3), "'dot_general'"),
        (lambda x: lax.fori_loop(0, 3, lambda i, y: 2 * y + 1, x), "'scan'"),
        (lambda x: lax.scan(lambda y, _: (2 * y, None), x, None, length=4)[0], "'scan'"),
        (lambda x: x.astype(jnp.int32) & 3, "'and' on bits"),
        (lambda x: x - x.mean(axis=0), "over images|'.*'"),
    ],
)
def test_what_has_no_word_is_named(function, message):
    with pytest.raises(Unsupported, match=message):
        graph_of(function)

"""An ONNX graph in the making, whose tensors may be stored in another layout than JAX's.

JAX's features are [N, H, W, C], ONNX's convolutions take [N, C, H, W]. A `Tensor` remembers in
which order its axes lie, so that what follows a convolution stays in its layout, and axes are
moved only where a network's layout begins or ends.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

# Old enough for runtimes of the last years, new enough for reductions whose axes are an input.
OPSET, IR_VERSION = 18, 8

# A number, or a symbolic expression that holds the batch.
Dimension = Any
Shape = tuple[Dimension, ...]


class Unsupported(Exception):
    """Something that this export cannot write in ONNX; the message names the operation."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A value that a graph computes.

    Attributes:
        name: in the graph.
        stored: the shape of what the graph holds, with its axes in JAX's order.
        axes: axis i of what the graph holds is axis axes[i] of `stored`.
        shape: the shape that JAX gives it, with the same elements in the same order: a matrix
            [N·H·W, C], whose rows are pixels, may still be stored as an image.
        dtype: of the elements.
    """

    name: str
    stored: Shape
    axes: tuple[int, ...]
    shape: Shape
    dtype: np.dtype

    @property
    def is_plain(self) -> bool:
        """Whether its shape is that of what is stored, apart from the order of axes."""
        return same_shape(self.shape, self.stored)

    def spoken_of_as(self, shape: Shape) -> "Tensor":
        """The same elements in another shape."""
        return dataclasses.replace(self, shape=tuple(shape))


@dataclasses.dataclass(frozen=True)
class Joined:
    """Tensors side by side along an axis, which the graph need not join before they are needed so.

    An operation on each element is applied to each part: so it directly follows the convolution
    that made the part, and runtimes make one operation of both.
    """

    parts: tuple[Tensor, ...]
    axis: int
    shape: Shape

    @property
    def dtype(self) -> np.dtype:
        """The type of the elements."""
        return self.parts[0].dtype


Value = Tensor | Joined

# A value known while the graph is made. An axis of one element stands for any number of equal ones.
Known = np.ndarray


class Graph:
    """Nodes and constants, in the order in which they are made.

    Args:
        name: begins the names of what it computes, so that graphs can hand their tensors on.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._nodes: list[onnx.NodeProto] = []
        self._made_by: dict[str, onnx.NodeProto] = {}
        self._constants: dict[tuple[Any, ...], onnx.TensorProto] = {}
        self._emitted: dict[tuple[Any, ...], Any] = {}
        self._joined: dict[tuple[Any, ...], Tensor] = {}

    def emit(self, operation: str, inputs: Sequence[str], outputs: int = 1, **attributes) -> Any:
        """Adds a node unless there is one like it; returns the name or names of its outputs."""
        key = (operation, *inputs, outputs, str(sorted(attributes.items())))
        if key in self._emitted:
            return self._emitted[key]
        count = len(self._nodes)
        names = [
            f"{self._name}/{operation.lower()}_{count}" + f"_{i}" * (outputs > 1)
            for i in range(outputs)
        ]
        node = helper.make_node(operation, list(inputs), names, **attributes)
        self._nodes.append(node)
        self._made_by.update(dict.fromkeys(names, node))
        self._emitted[key] = names[0] if outputs == 1 else names
        return self._emitted[key]

    def constant(self, array: NDArray[Any]) -> str:
        """The name under which the graph holds an array; equal arrays are held once."""
        array = np.ascontiguousarray(array)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = numpy_helper.from_array(array, f"c_{len(self._constants)}")
        return self._constants[key].name

    def laid_out(self, value: Value, axes: Sequence[int] | None = None) -> Tensor:
        """The value with the axes of its shape in this order; without `axes`, in their own."""
        axes = tuple(range(len(value.shape)) if axes is None else axes)
        tensor = self.plain(value)
        if tensor.axes == axes:
            return tensor
        order = [tensor.axes.index(axis) for axis in axes]
        name = self.emit("Transpose", [tensor.name], perm=order)
        return dataclasses.replace(tensor, name=name, axes=axes)

    def plain(self, value: Value) -> Tensor:
        """The value in one piece, stored in its own shape."""
        if isinstance(value, Joined):
            return self._join(value)
        if value.is_plain:
            return value
        moved = self._in_order(value)
        name = self.emit("Reshape", [moved.name, self._shape(value.shape)])
        return Tensor(name, value.shape, tuple(range(len(value.shape))), value.shape, value.dtype)

    def _in_order(self, tensor: Tensor) -> Tensor:
        """The tensor with its elements in the order of those of `stored`."""
        long = [axis for axis in tensor.axes if not is_one(tensor.stored[axis])]
        if long == sorted(long):
            # Axes of one element may lie anywhere.
            return tensor
        return self.laid_out(tensor.spoken_of_as(tensor.stored))

    def _join(self, joined: Joined) -> Tensor:
        key = (*(part.name for part in joined.parts), joined.axis)
        if key not in self._joined:
            axes = self.plain(joined.parts[0]).axes
            parts = [self.laid_out(part, axes) for part in joined.parts]
            names = [part.name for part in parts]
            name = self.emit("Concat", names, axis=axes.index(joined.axis))
            self._joined[key] = Tensor(name, joined.shape, axes, joined.shape, joined.dtype)
        return self._joined[key]

    def join(self, values: Sequence[Value], axis: int, shape: Shape) -> Value:
        """The values side by side along an axis."""
        parts: list[Tensor] = []
        for value in values:
            if isinstance(value, Joined) and value.axis == axis and not self._is_made(value):
                parts.extend(value.parts)
            else:
                parts.append(self.plain(value))
        return Joined(tuple(parts), axis, tuple(shape))

    def simplest(self, value: Value) -> Value:
        """The value as it is: in one piece, or in parts where nothing has joined them."""
        if isinstance(value, Joined) and not self._is_made(value):
            return value
        return self.plain(value)

    def _is_made(self, joined: Joined) -> bool:
        return (*(part.name for part in joined.parts), joined.axis) in self._joined

    def _shape(self, shape: Shape) -> str:
        """A constant for Reshape; the batch is whatever is left."""
        sizes = [size if isinstance(size, int) else -1 for size in shape]
        if sizes.count(-1) > 1:
            raise Unsupported("reshape to a shape that holds the batch twice")
        return self.constant(np.array(sizes, np.int64))

    def inputs_of(self, name: str, operation: str) -> Sequence[str] | None:
        """What the node that computes `name` takes; None if that is another operation."""
        node = self._made_by.get(name)
        return list(node.input) if node is not None and node.op_type == operation else None

    def part(self, name: str, axis: int, start: int, end: int) -> str | None:
        """Part of a convolution's channels, with its bias and rectifier, computed separately.

        Cutting the whole would move it through memory once more, out of the layout that runtimes
        give to convolutions.

        Args:
            name: of the whole.
            axis: the axis to cut.
            start: the first index of the part.
            end: one past its last index.

        Returns:
            The part's name; None if the whole is made in another way.
        """
        node = self._made_by.get(name)
        if node is None or node.op_type not in ("Relu", "Add", "Conv"):
            return None
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        operand, *others = node.input
        if node.op_type == "Conv":
            if axis != 1 or attributes.get("group", 1) != 1:
                return None
            return self.emit("Conv", [operand, self._cut(others[0], 0, start, end)], **attributes)
        others = [self._cut(other, axis, start, end) for other in others]
        cut = None if None in others else self.part(operand, axis, start, end)
        return None if cut is None else self.emit(node.op_type, [cut, *others], **attributes)

    def _cut(self, name: str, axis: int, start: int, end: int) -> str | None:
        """A constant's part along an axis, or all of it if it has one element there."""
        constants = [c for c in self._constants.values() if c.name == name]
        if not constants:
            return None
        array = numpy_helper.to_array(constants[0])
        if array.ndim <= axis or array.shape[axis] == 1:
            return name if array.size == 1 or array.ndim > axis else None
        return self.constant(array[(slice(None),) * axis + (slice(start, end),)])

    def makes(self, tensor: Tensor) -> bool:
        """Whether the tensor is computed here, and not an input."""
        return tensor.name in self._made_by

    def reads(self, tensor: Tensor) -> bool:
        """Whether an operation here takes the tensor."""
        return any(tensor.name in node.input for node in self._nodes)

    def model(
        self,
        inputs: Sequence[Tensor],
        answers: Mapping[str, Tensor],
        features: Sequence[Tensor],
    ) -> onnx.ModelProto:
        """The graph as a model that `onnx.checker` has passed.

        Args:
            inputs: what it takes, under the tensors' own names.
            answers: what it gives, by the names to give it under.
            features: what else it gives, under the tensors' own names.
        """
        renamed = [
            helper.make_node("Identity", [tensor.name], [name]) for name, tensor in answers.items()
        ]
        outputs = {**answers, **{tensor.name: tensor for tensor in features}}
        nodes, read = [], set(outputs)
        for node in reversed([*self._nodes, *renamed]):
            if read.intersection(node.output):
                nodes.insert(0, node)
                read.update(node.input)
        graph = helper.make_graph(
            nodes,
            self._name,
            [_declared(tensor, tensor.name) for tensor in inputs],
            [_declared(tensor, name) for name, tensor in outputs.items()],
            [constant for constant in self._constants.values() if constant.name in read],
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="l2w_jax",
        )
        onnx.checker.check_model(model, full_check=True)
        return model


def _declared(tensor: Tensor, name: str) -> onnx.ValueInfoProto:
    shape = [tensor.stored[axis] for axis in tensor.axes]
    sizes = [size if isinstance(size, int) else "batch" for size in shape]
    return helper.make_tensor_value_info(name, element_type(tensor.dtype), sizes)


def element_type(dtype: Any) -> int:
    """ONNX's number for a type of elements."""
    try:
        return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    except (KeyError, TypeError, ValueError) as error:
        raise Unsupported(f"the type {dtype}") from error


def is_one(size: Dimension) -> bool:
    """Whether an axis has a single element, whatever the batch."""
    return isinstance(size, int) and size == 1


def same_shape(shape: Shape, other: Shape) -> bool:
    """Whether two shapes are equal, whatever the batch."""
    return len(shape) == len(other) and all(a == b for a, b in zip(shape, other, strict=True))

"""A network with early exits as ONNX models, one for each stage, for any batch size."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from jax import export

from l2w_jax.errors import UserError
from l2w_jax.interop.exported_folder import NetworkToExport
from l2w_jax.interop.onnx_graph import Graph, Joined, Tensor, Unsupported, Value
from l2w_jax.interop.onnx_operations import convert

# What each stage gives beside features.
ANSWERS = ("labels", "confidences", "scores")


def onnx_stages(network: NetworkToExport) -> list[onnx.ModelProto]:
    """Each stage as an ONNX model, batch norms folded, computed in float32 whatever its type.

    The first takes "images" uint8 [n, H, W, 3]; a later one takes, by name, the features of earlier
    stages that it reads, with one row for each image. Each gives labels int32 and confidences
    float32, [n] or [n, top_k], scores float32 [n], and those of its own features that a later stage
    reads.

    Raises:
        UserError: the network does something that cannot be written this way.
    """
    network = dataclasses.replace(network, model=network.model.clone(dtype=jnp.float32))
    (batch,) = export.symbolic_shape("batch")
    images, variables = network.stored_images(batch), network.folded_variables()
    inputs: list[Value] = [Tensor("images", images.shape, (0, 1, 2, 3), images.shape, images.dtype)]
    features: Any = images
    stages = []
    for k in range(network.model.num_exits):
        function = network.stage_function(k)
        try:
            graph, answers, outputs = _converted(k, function, variables, features, inputs)
        except Unsupported as error:
            raise UserError(
                f"--format=onnx: stage {k + 1} of this network needs {error}, which the export to "
                "ONNX does not know; --format=stablehlo exports any network"
            ) from error
        stages.append((graph, inputs, answers, outputs))
        *_, features = jax.eval_shape(function, variables, features)
        inputs = outputs
    return _models(stages)


def _converted(
    k: int, function: Any, variables: Mapping[str, Any], features: Any, inputs: Sequence[Value]
) -> tuple[Graph, list[Tensor], list[Value]]:
    """The graph of stage k, its answers, and the features that it leaves.

    Features that nothing has joined yet stay in parts: images that leave here are spared the work.
    """
    leaves, structure = jax.tree.flatten(variables)
    feature_leaves, feature_structure = jax.tree.flatten(features)

    def of_leaves(leaves: Sequence[Any], feature_leaves: Sequence[Any]) -> Any:
        return function(
            jax.tree.unflatten(structure, leaves),
            jax.tree.unflatten(feature_structure, feature_leaves),
        )

    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    jaxpr = jax.make_jaxpr(of_leaves)(shapes, feature_leaves)
    graph = Graph(f"stage_{k + 1}")
    # Images are transposed while they are bytes; normalising is faster in the new layout too.
    arguments = [graph.laid_out(tensor, (0, 3, 1, 2)) for tensor in inputs] if k == 0 else inputs
    results = convert(graph, jaxpr, [*map(np.asarray, leaves), *arguments])
    if any(isinstance(result, np.ndarray) for result in results):
        raise Unsupported("features or answers that do not depend on the image")
    answers, features = results[: len(ANSWERS)], results[len(ANSWERS) :]
    return graph, list(map(graph.plain, answers)), list(map(graph.simplest, features))


def _models(stages: Sequence[Any]) -> list[onnx.ModelProto]:
    """The models, each with only those inputs and outputs that something reads."""
    models: list[onnx.ModelProto] = []
    read_later: set[str] = set()
    for graph, inputs, answers, outputs in reversed(stages):
        read = {tensor.name: tensor for tensor in _parts(inputs) if graph.reads(tensor)}
        made = {tensor.name: tensor for tensor in _parts(outputs) if graph.makes(tensor)}
        handed = [tensor for name, tensor in made.items() if name in read_later]
        named = dict(zip(ANSWERS, answers, strict=True))
        models.append(graph.model(list(read.values()), named, handed))
        read_later = (read_later - set(made)) | set(read)
    return models[::-1]


def _parts(values: Sequence[Value]) -> list[Tensor]:
    """The tensors that the values consist of."""
    return [
        part for value in values for part in (value.parts if isinstance(value, Joined) else [value])
    ]

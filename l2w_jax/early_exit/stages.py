"""A network with early exits as the functions that run it, one for each stage."""

import functools
import threading
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import ScopeParamShapeError
from jax.extend import core

from l2w_jax.early_exit import rules
from l2w_jax.errors import first_line
from l2w_jax.models import MultiExitNetwork
from l2w_jax.models.compiler_options import cpu_compiler_options
from l2w_jax.models.folding import fold_batch_norms
from l2w_jax.models.precision import at_least_float32

# From logits [n, C] to labels int32 and confidences float32, of one class [n] or several [n, k].
Answer = Callable[[jax.Array], tuple[jax.Array, jax.Array]]

# Labels and confidences, as from `Answer`, scores float32 [n] and further features.
StageAnswer = tuple[jax.Array, jax.Array, jax.Array, Any]

# From variables and features.
StageFunction = Callable[[Mapping[str, Any], Any], StageAnswer]

# Held while the first features are used to prepare a stage. All networks share it, since stages can
# be copied and pickled, and a lock cannot.
_FIRST_USE = threading.RLock()


def most_probable(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The most probable class and its `rules.finite_confidence`, [n] each."""
    return logits.argmax(axis=-1).astype(jnp.int32), rules.finite_confidence(logits)


def most_probable_classes(logits: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The `count` most probable classes, falling, and their probabilities, [n, count] each.

    The probabilities are NaN where `rules.has_answer` says that there is no answer.

    Raises:
        ValueError: there are fewer classes.
    """
    if count > logits.shape[-1]:
        raise ValueError(f"top_k is {count}; the network has {logits.shape[-1]} classes")
    logits = at_least_float32(logits)
    largest, labels = jax.lax.top_k(logits, count)
    probabilities = jnp.exp(largest - jax.nn.logsumexp(logits, axis=-1, keepdims=True))
    has_answer = rules.has_answer(logits)[..., None]
    return labels, jnp.where(has_answer, probabilities, jnp.nan).astype(jnp.float32)


def answer_of(top_k: int | None) -> Answer:
    """What exits say: the `top_k` most probable classes, or without it the most probable one."""
    if top_k is None:
        return most_probable
    return functools.partial(most_probable_classes, count=top_k)


def stage_function(
    model: MultiExitNetwork,
    k: int,
    preprocess: Callable[[jax.Array], jax.Array] | None,
    rule: rules.Rule,
    answer: Answer = most_probable,
) -> StageFunction:
    """Stage k with its exit; the first takes images, the last hands on no features.

    Features are the network's, and what the rule remembers. The function raises ValueError where
    the network hands on an array whose first axis is not that of the images.
    """

    def function(variables: Mapping[str, Any], features: Any) -> StageAnswer:
        if k == 0:
            images = features if preprocess is None else preprocess(features)
            features = model.apply(variables, images, False, method="init_carry")
            remembered = None
        else:
            features, remembered = features
        logits, features = model.apply(variables, k, features, False, method="stage")
        labels, confidences = answer(logits)
        scores, remembered = rules.follow(rule, logits, remembered)
        further = None
        if k < model.num_exits - 1:
            _check_follows_images(k, features, logits.shape[0])
            further = features, remembered
        return labels, confidences, scores.astype(jnp.float32), further

    return function


def _check_follows_images(k: int, carry: Any, batch_size: int) -> None:
    """Raises ValueError where not every array of a stage's carry has a row for each image."""
    for leaf in jax.tree.leaves(carry):
        if jnp.shape(leaf)[:1] != (batch_size,):
            raise ValueError(
                f"stage(k={k}) hands on an array of shape {jnp.shape(leaf)} with a batch of "
                f"{batch_size}; its first axis must be the images'"
            )


def narrowed(
    function: StageFunction, variables: Mapping[str, Any], features: Any
) -> tuple[list[int], Callable[[list[jax.Array], Any], Any]]:
    """A stage as a function of only those variables that it reads, whatever the batch.

    Handing all of a network's hundreds of arrays to a compiled function takes longer than a small
    stage takes on one image.

    Args:
        function: the stage.
        variables: all of the network's.
        features: what the stage starts from; shapes and types are enough.

    Returns:
        Which leaves of the variables the stage's operations take, and the function of a list of
        these and of features.
    """
    leaves, structure = jax.tree.flatten(variables)

    def from_leaves(leaves: list[jax.Array | None], features: Any) -> Any:
        return function(jax.tree.unflatten(structure, leaves), features)

    jaxpr = jax.make_jaxpr(from_leaves)(leaves, features).jaxpr
    taken = {
        var
        for variables in (jaxpr.outvars, *(eqn.invars for eqn in jaxpr.eqns))
        for var in variables
        if isinstance(var, core.Var)
    }
    read = [i for i, var in enumerate(jaxpr.invars[: len(leaves)]) if var in taken]

    def from_read(read_leaves: list[jax.Array], features: Any) -> Any:
        leaves: list[jax.Array | None] = [None] * structure.num_leaves
        for i, leaf in zip(read, read_leaves, strict=True):
            leaves[i] = leaf
        return from_leaves(leaves, features)

    return read, from_read


def folded_variables(
    model: MultiExitNetwork,
    variables: Mapping[str, Any],
    preprocess: Callable[[jax.Array], jax.Array] | None,
    images: Any,
) -> dict[str, Any]:
    """`fold_batch_norms` for a network that takes stored images through `preprocess`."""
    images = jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype)
    taken = images if preprocess is None else jax.eval_shape(preprocess, images)
    return fold_batch_norms(model, variables, taken)


class Stages:
    """A network's stages with their exits, on the default device, batch norms folded.

    The variables are those that were given; they are folded and placed with the first images, whose
    shape that takes. Threads may share the stages, from the first images on.
    """

    def __init__(
        self,
        model: MultiExitNetwork,
        variables: Mapping[str, Any],
        preprocess: Callable[[jax.Array], jax.Array] | None,
        rule: rules.Rule,
        answer: Answer = most_probable,
    ):
        self._model = model
        # Copies on the host, until the first images are there: by then the caller may have given
        # the arrays to a training step, which reuses their memory.
        self._variables = jax.tree.map(np.array, dict(variables))
        self._preprocess, self._rule, self._answer = preprocess, rule, answer
        self._compiled: list[_Stage] = []
        self._shapes: set[tuple[int, ...]] = set()

    def __call__(self, k: int, features: Any) -> StageAnswer:
        """Stage k (from 0) and its exit; stage 0, on images, comes first.

        Raises:
            ValueError: the network does not take images of this shape, or hands on an array whose
                first axis is not the images'.
        """
        if k == 0 and features.shape[1:] not in self._shapes:
            with _FIRST_USE:
                if features.shape[1:] not in self._shapes:
                    self._prepare(features)
        return self._compiled[k](features)

    def _prepare(self, images: Any) -> None:
        """Checks that the network takes images of this shape; the first images make the stages."""
        try:
            # The network's layers are found by tracing it, which takes the size of the images.
            folded = folded_variables(self._model, self._variables, self._preprocess, images)
        except (ScopeParamShapeError, TypeError, ValueError) as error:
            shape = ", ".join(map(str, images.shape[1:]))
            raise ValueError(
                f"images have shape [N, {shape}], which the network does not take: "
                f"{first_line(error)}"
            ) from error
        if not self._compiled:
            self._variables = jax.device_put(folded)
            functions = (
                stage_function(self._model, k, self._preprocess, self._rule, self._answer)
                for k in range(self._model.num_exits)
            )
            self._compiled = [_Stage(function, self._variables) for function in functions]
        self._shapes.add(images.shape[1:])


class _Stage:
    """A compiled stage, with only those variables that it reads."""

    def __init__(self, function: StageFunction, variables: Mapping[str, Any]):
        self._function = function
        self._leaves = jax.tree.leaves(variables)
        self._variables: Mapping[str, Any] | None = variables
        self._compiled: Callable[[list[jax.Array], Any], Any] | None = None

    def __call__(self, features: Any) -> StageAnswer:
        if self._compiled is None:
            with _FIRST_USE:
                if self._compiled is None:
                    self._prepare(features)
        return self._compiled(self._leaves, features)

    def _prepare(self, features: Any) -> None:
        """Finds out which variables are read, for which it needs the first features."""
        # Traced with another batch size: an array without an axis of images may happen to be as
        # long as the batch at hand, and would pass for one that has it.
        features_of_others = _with_other_batch_size(features)
        read, function = narrowed(self._function, self._variables, features_of_others)
        self._leaves = [self._leaves[i] for i in read]
        self._variables = None
        # Last, since other threads take it as the sign that the rest is there.
        self._compiled = jax.jit(function, compiler_options=cpu_compiler_options())


def _with_other_batch_size(features: Any) -> Any:
    """Shapes and types of the features for a single image, or for two if these are for one."""

    def shape_of_others(leaf: jax.Array) -> jax.ShapeDtypeStruct:
        other = 2 if leaf.shape[0] == 1 else 1
        return jax.ShapeDtypeStruct((other, *leaf.shape[1:]), leaf.dtype)

    return jax.tree.map(shape_of_others, features)

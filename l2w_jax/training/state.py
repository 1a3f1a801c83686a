"""What training carries from one iteration to the next."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict
from numpy.typing import NDArray

from l2w_jax.config.checks import validate_training
from l2w_jax.config.choices import EARLIER_RUNS, PREDICTED_KINDS, not_allowed
from l2w_jax.errors import some
from l2w_jax.models import create_network, initial_variables
from l2w_jax.models.precision import parameter_dtype
from l2w_jax.training.optimizers import adam, network_optimizer
from l2w_jax.training.weighting import create_predictor, is_pipelined, predictor_inputs

# Images, or their shape and type alone.
Images = jax.ShapeDtypeStruct | jax.Array | NDArray[Any]


@flax.struct.dataclass
class TrainState:
    """A pytree without a device axis: the same on every device.

    Attributes:
        step: iterations done, int32.
        params, batch_stats: θ and the running statistics of batch norm.
        opt_state: SGD's momentum buffer.
        wpn_params, wpn_opt_state: Θ, empty where there is no predictor, and Adam's moments, empty
            where it does not learn.
        previous_params: θ as it was one half-step before, for the pipelined schedule; else empty.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    wpn_params: Any
    wpn_opt_state: optax.OptState
    previous_params: Any = ()

    @property
    def variables(self) -> dict[str, Any]:
        """What the network is applied with: {"params", "batch_stats"}."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def create_train_state(
    config: ConfigDict, rng: jax.Array, images: Images | None = None
) -> TrainState:
    """The state before the first iteration, its values drawn from `rng`.

    Θ is drawn too where `config.weighting.kind` is "frozen": put a trained one in, as `wpn_params`.

    Args:
        config: a run's configuration; `config.model` may be a module.
        rng: a `jax.random` key.
        images: what the network will take, [N, ...] for any N; without them, square images of
            `config.dataset.image_size` pixels and three channels.

    Raises:
        ValueError: a field of the configuration is not possible (`validate_training`), or names an
            earlier run to start from; or the network has no part that it says is frozen.
    """
    validate_training(config)
    for field in EARLIER_RUNS:
        section, name = field.split(".")
        if run := config.get(section, {}).get(name, ""):
            allowed = "'' here, where nobody reads it; `run.start.create_or_restore` does"
            raise ValueError(not_allowed(field, run, allowed))
    return untrained_state(config, rng, images)


def untrained_state(config: ConfigDict, rng: jax.Array, images: Images | None = None) -> TrainState:
    """As `create_train_state`, for callers that then put in what an earlier run has learned."""
    model = create_network(config)
    model_rng, wpn_rng = jax.random.split(rng)
    dtype = parameter_dtype(model.dtype)
    if images is None:
        size = config.dataset.image_size
        images = jax.ShapeDtypeStruct((1, size, size, 3), dtype)
    image = jax.eval_shape(lambda images: images[:1], images)
    variables = initial_variables(model, model_rng, image, train=False)
    params = variables["params"]
    if unknown := [name for name in model.frozen if name not in params]:
        raise ValueError(
            f"{type(model).__name__}.frozen: {some(unknown)} is not allowed: must be among the "
            f"network's top-level parts, {some(sorted(params))}"
        )

    filled = filled_fields(config.weighting)
    wpn_params, wpn_opt_state = {}, ()
    if "wpn_params" in filled:
        predictor = create_predictor(config.weighting, model)
        of_exits = jax.ShapeDtypeStruct((1, model.num_exits), jnp.float32)
        read = functools.partial(predictor_inputs, config.weighting.input)
        inputs = jax.eval_shape(read, of_exits, of_exits)
        wpn_params = initial_variables(predictor, wpn_rng, inputs)["params"]
    if "wpn_opt_state" in filled:
        wpn_opt_state = initial_opt_state(adam(config.weighting.weight_decay), wpn_params)
    optimizer = network_optimizer(config.optimizer, model.frozen)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=optax.tree.cast(variables.get("batch_stats", {}), dtype),
        opt_state=initial_opt_state(optimizer, params),
        wpn_params=wpn_params,
        wpn_opt_state=wpn_opt_state,
        # Copies, since the step is given the buffers of both to reuse.
        previous_params=jax.tree.map(jnp.copy, params) if "previous_params" in filled else (),
    )


def abstract_state(config: ConfigDict) -> TrainState:
    """Shapes and types of `untrained_state`, as `jax.ShapeDtypeStruct`s: nothing is drawn."""
    return jax.eval_shape(lambda rng: untrained_state(config, rng), jax.random.key(config.seed))


def filled_fields(weighting: ConfigDict) -> tuple[str, ...]:
    """The fields of a `TrainState` that are empty unless `config.weighting` needs them."""
    is_needed = {
        "wpn_params": weighting.kind in PREDICTED_KINDS,
        "wpn_opt_state": weighting.kind == "meta",
        "previous_params": is_pipelined(weighting),
    }
    return tuple(name for name, needed in is_needed.items() if needed)


def check_filled(state: TrainState, names: Sequence[str]) -> None:
    """Raises ValueError where one of the fields with these names is empty."""
    for name in names:
        if not jax.tree.leaves(getattr(state, name)):
            raise ValueError(
                f"state.{name} is empty; must be as create_train_state makes it with the "
                "step's config.weighting (`replace` then puts in a trained network's params and "
                "batch_stats)"
            )


def initial_opt_state(optimizer: optax.GradientTransformation, params: Any) -> optax.OptState:
    """`optimizer.init(params)` of an optimiser that starts from zeros, without a compilation."""
    abstract = jax.eval_shape(optimizer.init, params)
    return jax.device_put(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract))

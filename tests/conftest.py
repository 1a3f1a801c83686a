"""A multi-exit network that compiles in a blink, for tests of what is done with a network."""

import gc

import hypothesis
import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from l2w_jax.models import MultiExitNetwork

# To make machine code fast takes a third of the time of compiling, and networks here are small.
jax.config.update("jax_disable_most_optimizations", True)

# As the commands do: to look for cycles takes a seventh of the time of tracing.
gc.freeze()
gc.set_threshold(100_000)

# The first example of a test compiles, which takes longer than hypothesis waits by default.
hypothesis.settings.register_profile("compiling", deadline=None)
hypothesis.settings.load_profile("compiling")


class TinyNetwork(MultiExitNetwork):
    """Three exits, four classes; its carry is a pytree of two arrays."""

    dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.blocks = [nn.Dense(6, name=f"block_{k}") for k in range(3)]
        self.norms = [nn.BatchNorm(name=f"norm_{k}", axis_name=self.axis_name) for k in range(3)]
        self.heads = [nn.Dense(4, name=f"head_{k}") for k in range(3)]

    @property
    def num_exits(self):
        return 3

    def init_carry(self, images, train):
        return {"pooled": images.mean(axis=(1, 2)), "spread": images.std(axis=(1, 2))}

    def stage(self, k, carry, train):
        features = jnp.concatenate([carry["pooled"], carry["spread"]], axis=-1)
        hidden = nn.relu(self.norms[k](self.blocks[k](features), use_running_average=not train))
        return self.heads[k](hidden), {"pooled": hidden, "spread": carry["spread"]}


@pytest.fixture(scope="session")
def tiny_network():
    """The network, and variables of it with which answers and confidences vary."""
    model = TinyNetwork()
    images = jax.random.normal(jax.random.key(1), (64, 8, 8, 3))

    @jax.jit
    def variables_that_have_seen(images):
        variables = model.init(jax.random.key(0), images, train=False)
        _, moved = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return {"params": variables["params"], **moved}

    return model, variables_that_have_seen(images)


@pytest.fixture(scope="session")
def written_calibrated_run(tiny_network, tmp_path_factory):
    # Imported here: it brings Orbax, which takes seconds.
    import calibrated_run

    with pytest.MonkeyPatch.context() as patch:
        return calibrated_run.write(tmp_path_factory.mktemp("calibrated"), tiny_network, patch)


@pytest.fixture
def calibrated_run(written_calibrated_run, monkeypatch):
    """A run whose thresholds.json has temperatures and the rule "margin", where commands look."""
    written_calibrated_run.put_in_place(monkeypatch)
    return written_calibrated_run

"""What the command that writes the authors' checkpoints refuses."""

import re

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from l2w_jax.config import default_config, stored
from l2w_jax.errors import UserError
from l2w_jax.interop import export_torch
from l2w_jax.run import restore
from l2w_jax.training import create_train_state


class NormalizedPredictor(nn.Module):
    """A weight predictor of another kind."""

    @nn.compact
    def __call__(self, inputs):
        return nn.tanh(nn.Dense(2)(nn.LayerNorm()(inputs)))


def test_a_weight_predictor_that_the_authors_do_not_have_is_told_in_one_line(tmp_path, monkeypatch):
    config = default_config()
    config.model.update(num_exits=2, channels=8, growth_rate=4)
    predictor = NormalizedPredictor().init(jax.random.key(0), jnp.zeros((1, 2)))["params"]
    state = create_train_state(config, jax.random.key(0)).replace(wpn_params=predictor)
    monkeypatch.setattr(stored, "read_config", lambda _: config)
    monkeypatch.setattr(restore, "restore_best", lambda *_: state)
    file = tmp_path / "ours.pth.tar"
    with pytest.raises(UserError) as error:
        export_torch.main([str(file), f"--workdir={tmp_path}"])
    assert re.fullmatch(
        rf"{re.escape(str(tmp_path))}: the weight predictor is none that the authors' programs "
        r"have: its layer '(Dense|LayerNorm)_0' must be one of hidden_0, hidden_1, … and output",
        str(error.value),
    )
    assert not file.exists()

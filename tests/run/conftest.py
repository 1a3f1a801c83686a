"""What tests of the loop share: one compiled iteration, and a run that nobody touched."""

import pytest
import scripted_run
from absl import logging

from l2w_jax.run import loop


@pytest.fixture(scope="session")
def scripted_config(tiny_network):
    return scripted_run.make_config(tiny_network[0])


@pytest.fixture(scope="session")
def scripted_step(scripted_config):
    """The iteration of all scripted runs."""
    return scripted_run.STEP_ON_DEVICES(scripted_config, scripted_run.TOTAL_STEPS)


@pytest.fixture(scope="session")
def undisturbed(scripted_config, scripted_step, tmp_path_factory):
    """The folder and the last state of a run that nobody touched."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "step_on_devices", lambda *_: scripted_step)
        source = scripted_run.scripted_source(scripted_config)
        return workdir, loop.train(scripted_config, source, workdir)


@pytest.fixture
def config(scripted_config, scripted_step, monkeypatch):
    """That of the scripted runs, which the loop takes through the iteration compiled before."""
    monkeypatch.setattr(loop, "step_on_devices", lambda *_: scripted_step)
    return scripted_config


@pytest.fixture
def warnings(monkeypatch):
    """The lines that are warned of, as they come."""
    lines = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: lines.append(text % values))
    return lines

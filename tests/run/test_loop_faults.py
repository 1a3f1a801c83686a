"""What goes wrong in training ends the run with one line, and never spoils what is saved."""

import shutil

import jax
import numpy as np
import pytest
from scripted_run import (
    STEPS_PER_EPOCH,
    TOTAL_STEPS,
    checkpoint_steps,
    metric_lines,
    scripted_source,
    train,
    with_other_results,
)

from l2w_jax.errors import RunFailed, UserError
from l2w_jax.run import loop


@pytest.mark.parametrize("bad_step", [8, 10, TOTAL_STEPS])
def test_a_loss_that_is_not_finite_stops_the_run(config, tmp_path, monkeypatch, bad_step):
    """In mid-epoch, at a step that would be saved, at the last step."""
    with_other_results(
        monkeypatch,
        bad_step,
        lambda state, metrics: (state, metrics | {"loss": metrics["loss"] * np.nan}),
    )
    last_good = STEPS_PER_EPOCH * ((bad_step - 1) // STEPS_PER_EPOCH)
    with pytest.raises(
        RunFailed,
        match=rf"step {bad_step}: the loss is not finite .*learning rate 0\.\d+ and meta learning "
        rf"rate \d.*last good checkpoint is of step {last_good}",
    ) as failure:
        train(config, tmp_path)
    assert failure.value.exit_status == 1
    assert "warmup" not in str(failure.value)
    assert checkpoint_steps(tmp_path)[-1] == last_good
    logged = [line["step"] for line in metric_lines(tmp_path) if "loss" in line]
    assert logged[-1] == 2 * ((bad_step - 1) // 2), "metrics are flushed"


@pytest.mark.parametrize("bad_step", [3, STEPS_PER_EPOCH])
def test_a_loss_that_is_not_finite_in_the_first_epoch_advises_warm_up(
    config, tmp_path, monkeypatch, bad_step
):
    with_other_results(
        monkeypatch,
        bad_step,
        lambda state, metrics: (state, metrics | {"loss": metrics["loss"] * np.nan}),
    )
    images = config.dataset.batch_size // 2
    with pytest.raises(
        RunFailed,
        match=rf"step {bad_step}: .* no good checkpoint yet; in the first epoch, try "
        rf".*warmup_epochs=5 \(now 0\).* linear rule gives {0.1 * images / 64:.3g} for updates of "
        rf"{images} images",
    ):
        train(config, tmp_path)


def test_a_state_that_is_not_finite_is_never_saved(config, tmp_path, monkeypatch):
    """As when a gradient overflowed whose loss was finite still."""

    def spoil(state, metrics):
        wpn_params = jax.tree.map(lambda array: array * np.inf, state.wpn_params)
        return state.replace(wpn_params=wpn_params), metrics

    with_other_results(monkeypatch, 10, spoil)
    with pytest.raises(RunFailed, match=r"step 10: wpn_params/.* is not finite.*of step 5"):
        train(config, tmp_path)
    assert checkpoint_steps(tmp_path) == [5]


def test_a_network_that_is_not_finite_fails_at_the_step_that_is_scored(
    config, tmp_path, monkeypatch
):
    def spoil(state, metrics):
        return state.replace(params=jax.tree.map(lambda x: x * np.inf, state.params)), metrics

    with_other_results(monkeypatch, 10, spoil)
    with pytest.raises(RunFailed, match=r"^step 10: .* not finite .* checkpoint is of step 5: "):
        train(config, tmp_path)


def test_a_run_does_not_go_on_with_other_images(config, undisturbed, tmp_path):
    workdir = shutil.copytree(undisturbed[0], tmp_path / "run")
    source = scripted_source(config)
    trained_on = source.num_train
    source.num_train -= 1
    with pytest.raises(
        UserError, match=rf"trained on {trained_on} images up to step \d+, but split"
    ):
        loop.train(config, source, workdir)


@pytest.mark.parametrize(
    ("first_step", "advice"),
    [
        (3, r"try {settings}, or more devices; there is no good checkpoint yet"),
        (
            8,
            r"try more devices; the last good checkpoint is of step 5: the same command goes on "
            r"from there; with {settings} it would be another run, which "
            r"--config.init.checkpoint={workdir} and a new --workdir start from this one's network",
        ),
    ],
)
def test_a_step_that_memory_does_not_hold_is_told_with_what_helps(
    config, tmp_path, monkeypatch, first_step, advice
):
    def exhaust(state, metrics):
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Used 20.0G of 15.7G hbm.\nA page more"
        )

    with_other_results(monkeypatch, first_step, exhaust)
    settings = (
        r"--config.optimizer.accumulation=2 \(now 1\), --config.model.dtype=bfloat16 or a smaller "
        "--config.dataset.batch_size"
    )
    advice = advice.format(settings=settings, workdir=tmp_path)
    with pytest.raises(
        RunFailed,
        match=r"^a step does not fit into a device's memory \(RESOURCE_EXHAUSTED: Used 20.0G of "
        rf"15.7G hbm.\); {advice}$",
    ):
        train(config, tmp_path)


def test_devices_that_no_longer_agree_stop_the_run(config, tmp_path, monkeypatch):
    checked = config.copy_and_resolve_references()
    checked.log.check_replicas = 4
    train(checked, tmp_path / "agreeing")
    steps = []
    monkeypatch.setattr(
        loop,
        "diverged_devices",
        lambda state: steps.append(int(state.step)) or [1] * (len(steps) > 1),
    )
    with pytest.raises(RunFailed, match=r"step 8: device 1 of .* no longer holds .* of step 5"):
        train(checked, tmp_path / "diverging")
    assert steps == [4, 8]

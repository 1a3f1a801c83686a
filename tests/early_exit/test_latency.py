import numpy as np
import pytest
from clocks import standing_clock

from l2w_jax.early_exit import latency
from l2w_jax.early_exit.latency import milliseconds, milliseconds_per_exit


@pytest.fixture
def clock(monkeypatch):
    return standing_clock(monkeypatch, latency)


def test_functions_take_turns_and_times_are_per_image_without_the_first_round(clock):
    calls = []

    def slow(images):
        clock.seconds += 0.5 if not calls else 0.02
        calls.append(("slow", len(images)))

    def quick(images):
        clock.seconds += 0.004
        calls.append(("quick", len(images)))

    found = milliseconds([slow, quick], np.zeros((4, 1)), repeats=1)
    assert found == pytest.approx([5, 1])
    assert calls == [("slow", 4), ("quick", 4)] * 2


def test_the_median_round_counts(clock):
    seconds = iter([100, 1, 9, 2, 3, 30])  # the first round is not timed

    def takes_seconds(images):
        clock.seconds += next(seconds)

    (found,) = milliseconds([takes_seconds], np.zeros((4, 1)), repeats=5)
    assert found == 1000 * 3 / 4


def test_every_exit_is_timed(tiny_network):
    images = np.zeros((4, 8, 8, 3), np.float32)
    measured = milliseconds_per_exit(*tiny_network, images, repeats=2)
    assert measured.shape == (3,)
    assert (measured > 0).all()


def test_what_is_timed_of_an_exit_is_images_that_stop_there(tiny_network, monkeypatch):
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
    stopped = []

    def exits_instead(functions, images, repeats):
        stopped.extend(function(images).exits.tolist() for function in functions)
        return np.zeros(len(functions))

    monkeypatch.setattr(latency, "milliseconds", exits_instead)
    milliseconds_per_exit(*tiny_network, images)
    assert stopped == [[0] * 4, [1] * 4, [2] * 4]

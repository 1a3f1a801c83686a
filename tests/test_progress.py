"""What takes minutes says how far it has come; what does not says nothing."""

import pytest
from clocks import standing_clock

from l2w_jax import progress


@pytest.fixture
def clock(monkeypatch):
    return standing_clock(monkeypatch, progress)


def test_a_line_comes_every_half_a_minute_and_counts_all_that_passed(clock, capsys):
    counted = progress.Progress("{} things".format)
    passed = []
    for items in (range(50), range(50)):
        for item in counted.of(items):
            passed.append(item)
            clock.seconds += 1
    assert passed == [*range(50), *range(50)]
    printed = capsys.readouterr()
    assert printed.err.splitlines() == ["30 things", "60 things", "90 things"]
    assert not printed.out, "results are printed there"


def test_nothing_is_said_of_what_is_quick(clock, capsys):
    for _ in progress.Progress("{} things".format).of(range(1000)):
        clock.seconds += 0.02
    assert not capsys.readouterr().err

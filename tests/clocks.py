"""A clock for what a module times."""

from types import SimpleNamespace


def standing_clock(monkeypatch, module):
    """The clock that a module reads; it stands still until a test moves its `seconds`."""
    clock = SimpleNamespace(seconds=1000.0)
    clock.monotonic = clock.perf_counter = lambda: clock.seconds
    monkeypatch.setattr(module, "time", clock)
    return clock

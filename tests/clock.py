"""A clock for what looks at the time: nothing in a test depends on how busy the machine is."""

import importlib

import pytest


class Clock:
    """Stands in for the module `time`: it moves by `tick_s` with every look at it, and when it is told to."""

    def __init__(self, tick_s: float = 0.0) -> None:
        self.now, self.tick_s = 0.0, tick_s

    def perf_counter(self) -> float:
        """Return the seconds now."""
        self.now += self.tick_s
        return self.now

    monotonic = perf_counter

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


def install(patch: pytest.MonkeyPatch, *modules: str, tick_s: float = 0.0) -> Clock:
    """Give the clock of every `edgeopt.solve`, and of further modules, into a test's hands."""
    clock = Clock(tick_s)
    for name in ("edgeopt.solve", *modules):
        patch.setattr(importlib.import_module(name), "time", clock)
    return clock

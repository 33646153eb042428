"""Tests here run with one thread of torch."""

from tests.one_thread import one_thread

__all__ = ["one_thread"]

"""Ctrl-C that is noted instead of raised, so that it finds what has been computed so far in one piece."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_noted = False  # signals belong to the process, and so does this


@contextmanager
def interrupts_noted() -> Iterator[None]:
    """Note the first Ctrl-C in the block, for `interrupted` to tell; further ones are raised as usual.

    Raised wherever it comes, Ctrl-C would leave results behind half made, and compiled code turns it into other errors.
    Python hands signals to the main thread alone: in other threads the block changes nothing. Nor does it where Ctrl-C
    is not Python's own: whoever handles it, an outer block of this kind included, goes on doing so.
    """
    global _noted
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    _noted = False
    signal.signal(signal.SIGINT, _note)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is _note:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        _noted = False


def interrupted() -> bool:
    """Return whether Ctrl-C has been noted for the calling thread, in a block of `interrupts_noted`."""
    return _noted and threading.current_thread() is threading.main_thread()


def is_interrupt(error: BaseException | None) -> bool:
    """Return whether an exception is Ctrl-C.

    When the signal comes inside a compiled kernel, numba raises SystemError with KeyboardInterrupt as its cause, and
    another one with that as its cause for every kernel around it.
    """
    while isinstance(error, SystemError):
        error = error.__cause__
    return isinstance(error, KeyboardInterrupt)


def _note(number: int, frame: FrameType | None) -> None:
    global _noted
    if _noted:
        signal.default_int_handler(number, frame)
    _noted = True

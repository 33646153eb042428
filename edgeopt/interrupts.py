"""Ctrl-C that is noted instead of raised, so that it finds what has been computed so far in one piece."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Noted:
    """What a block of `interrupts_noted` knows: whether Ctrl-C was `pressed` in it."""

    pressed = False


_block: Noted | None = None  # signals belong to the process, and so does this


@contextmanager
def interrupts_noted() -> Iterator[Noted]:
    """Note the first Ctrl-C in the block, for `interrupted` to tell; further ones are raised as usual.

    Raised wherever it comes, Ctrl-C would leave results behind half made, and compiled code turns it into other errors.
    Python hands signals to the main thread alone: in other threads the block changes nothing. Nor does it where Ctrl-C
    is not Python's own: whoever handles it goes on doing so. A block within a block is part of it.
    """
    global _block
    if threading.current_thread() is not threading.main_thread():
        yield Noted()
        return
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield _block or Noted()
        return
    _block = noted = Noted()
    signal.signal(signal.SIGINT, _note)
    try:
        yield noted
    finally:
        if signal.getsignal(signal.SIGINT) is _note:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        _block = None


def interrupted() -> bool:
    """Return whether Ctrl-C has been noted for the calling thread, in a block of `interrupts_noted`."""
    return _block is not None and _block.pressed and threading.current_thread() is threading.main_thread()


def is_interrupt(error: BaseException | None) -> bool:
    """Return whether an exception is Ctrl-C.

    When the signal comes inside a compiled kernel, numba raises SystemError with KeyboardInterrupt as its cause, and
    another one with that as its cause for every kernel around it.
    """
    while isinstance(error, SystemError):
        error = error.__cause__
    return isinstance(error, KeyboardInterrupt)


def _note(number: int, frame: FrameType | None) -> None:
    if _block is None or _block.pressed:
        signal.default_int_handler(number, frame)
    else:
        _block.pressed = True

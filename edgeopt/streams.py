"""Standard output and error of programs: nothing that was computed is lost because of them, a message takes one line."""

import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def say(message: object) -> None:
    """Write one line on standard error."""
    print(" ".join(f"edgeopt: {message}".split()), file=sys.stderr)


@contextmanager
def one_line_messages() -> Iterator[None]:
    """Show warnings, of Python and of loggers, as one line each.

    Errors that are logged are not shown: whoever logs them also ends in a row or an exception that says so. Neither are
    matplotlib's warnings, which are of where it keeps fonts.
    """
    handler = _OneLine(logging.WARNING)
    root = logging.getLogger()
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: say(message)
        root.addHandler(handler)
        try:
            yield
        finally:
            root.removeHandler(handler)


class _OneLine(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.ERROR and record.name.partition(".")[0] != "matplotlib":
            say(record.getMessage())


def prepare_streams() -> None:
    """Make standard output take everything: what its encoding cannot hold is escaped, and a closed one is no error."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - until the process ends
    stream: Any = sys.stdout
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")


def discard_output() -> None:
    """Give up a standard output that cannot be written, or Python would complain of it at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def reserve_stdout() -> None:
    """From here to the end of the process, let only Python's `sys.stdout` reach standard output.

    Native code and child processes print to file descriptor 1, whatever `sys.stdout` is. It becomes standard error, and
    `sys.stdout` keeps the real one under another number, which children do not inherit. For the start of a command: where
    `sys.stdout` is not file descriptor 1 (a notebook, a captured test, a second call) nothing happens.
    """
    try:
        if sys.stdout.fileno() != 1:
            return
    except (AttributeError, OSError, ValueError):  # none, no file, closed
        return
    sys.stdout.flush()
    encoding, errors, at_once = sys.stdout.encoding, sys.stdout.errors, sys.stdout.isatty()
    try:
        os.fstat(2)
    except OSError:  # standard error is closed: this takes its place
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    real = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = io.TextIOWrapper(open(real, "wb"), encoding, errors, line_buffering=at_once)  # noqa: SIM115 - until exit

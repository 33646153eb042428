"""Keep standard output for what a command itself prints."""

import io
import os
import sys


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

"""Keep pytest from importing the root folders a second time: they are edgeopt.problems, edgeopt.solvers, ..."""

import os
import signal

collect_ignore = ["problems", "solvers", "evaluation"]


def pytest_configure():
    """Let worker processes hear Ctrl-C, which they are started to ignore: tests interrupt themselves."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        signal.signal(signal.SIGINT, signal.default_int_handler)

"""Keep pytest from importing the root folders a second time, and say how property tests draw their examples."""

import os
import signal

from hypothesis import HealthCheck, settings

collect_ignore = ["problems", "solvers", "evaluation"]  # they are edgeopt.problems, edgeopt.solvers, ...

# No clock decides about a test. The examples are always the same; `make explore` draws others.
settings.register_profile(
    "repeat", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True, print_blob=True
)
settings.register_profile("explore", settings.get_profile("repeat"), derandomize=False, max_examples=500)
settings.load_profile("repeat")


def pytest_configure():
    """Let worker processes hear Ctrl-C, which they are started to ignore: tests interrupt themselves."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        signal.signal(signal.SIGINT, signal.default_int_handler)

"""Keep pytest from importing the root folders a second time, and say how property tests draw their examples."""

import gc
import os
import signal
import sys
from zlib import crc32

import pytest
from hypothesis import HealthCheck, settings

collect_ignore = ["problems", "solvers", "evaluation"]  # they are edgeopt.problems, edgeopt.solvers, ...

# No clock decides about a test. The examples are always the same; `make explore` draws others.
_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow], "print_blob": True}
settings.register_profile("repeat", derandomize=True, **_COMMON)
settings.register_profile("explore", derandomize=False, max_examples=500, **_COMMON)
settings.load_profile("repeat")


def pytest_configure():
    """Prepare worker processes: a thread each, as they wait for each other's, and Ctrl-C, which they are started to ignore."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.update(dict.fromkeys(("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))
        signal.signal(signal.SIGINT, signal.default_int_handler)  # tests interrupt themselves


@pytest.hookimpl(tryfirst=True)  # before pytest looks at what is slow
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of the cases of a test marked ``sampled(n)``, call all slow but about one in n: the same ones every time."""
    for item in items:
        if (sampled := item.get_closest_marker("sampled")) and crc32(item.name.encode()) % sampled.args[0]:
            item.add_marker("slow")


@pytest.hookimpl(tryfirst=True)  # before fixtures
def pytest_runtest_setup():
    """Let torch draw the same numbers for a test whatever ran before it; numpy's generators are seeded where they are made."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


def pytest_collection_finish():
    """Keep the collector of garbage from looking at twelve thousand tests, and at all that they import, time and again."""
    gc.freeze()

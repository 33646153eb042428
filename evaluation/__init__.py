"""Comparing solvers: rows, bounds and profiles, pictures, a report, a library of instances.

Everything loads on first use, so that importing this package loads neither pandas nor matplotlib.
"""

import importlib
from typing import TYPE_CHECKING, Any

if __name__ != "edgeopt.evaluation":  # one module object only: the root folder is edgeopt.evaluation
    raise ImportError("import edgeopt.evaluation, not " + __name__)

from edgeopt.evaluation.compare import compare as compare  # at once: the function must win over its module's name
from edgeopt.evaluation.compare import comparison_rows as comparison_rows

if TYPE_CHECKING:
    from edgeopt.evaluation.library import best_known as best_known
    from edgeopt.evaluation.library import library_names as library_names
    from edgeopt.evaluation.library import load_instance as load_instance
    from edgeopt.evaluation.profiles import performance_profile as performance_profile
    from edgeopt.evaluation.profiles import summarise as summarise
    from edgeopt.evaluation.report import write_report as write_report
    from edgeopt.evaluation.rows import read_rows as read_rows
    from edgeopt.evaluation.rows import rows_frame as rows_frame

_LAZY = {
    "best_known": "library",
    "library_names": "library",
    "load_instance": "library",
    "performance_profile": "profiles",
    "summarise": "profiles",
    "write_report": "report",
    "read_rows": "rows",
    "rows_frame": "rows",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'edgeopt.evaluation' has no attribute {name!r}")
    return getattr(importlib.import_module(f"edgeopt.evaluation.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])

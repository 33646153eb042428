"""Comparing solvers: rows, bounds and profiles, pictures, a report, a library of instances.

Everything loads on first use, so that importing this package loads neither pandas nor matplotlib.
"""

import importlib
from typing import TYPE_CHECKING, Any

if __name__ != "edgeopt.evaluation":  # one module object only: the root folder is edgeopt.evaluation
    raise ImportError("import edgeopt.evaluation, not " + __name__)

from edgeopt.evaluation.compare import compare as compare  # at once: the function must win over its module's name
from edgeopt.evaluation.compare import comparison_rows as comparison_rows
from edgeopt.evaluation.what_if import what_if as what_if  # likewise

if TYPE_CHECKING:
    from edgeopt.evaluation.compare.performance import performance_profile as performance_profile
    from edgeopt.evaluation.compare.performance import summarise as summarise
    from edgeopt.evaluation.compare.rows import read_rows as read_rows
    from edgeopt.evaluation.compare.rows import rows_frame as rows_frame
    from edgeopt.evaluation.instances import best_known as best_known
    from edgeopt.evaluation.instances import library_names as library_names
    from edgeopt.evaluation.instances import load_instance as load_instance
    from edgeopt.evaluation.report import write_report as write_report

_LAZY = {
    "best_known": "instances",
    "library_names": "instances",
    "load_instance": "instances",
    "performance_profile": "compare.performance",
    "summarise": "compare.performance",
    "write_report": "report",
    "read_rows": "compare.rows",
    "rows_frame": "compare.rows",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'edgeopt.evaluation' has no attribute {name!r}")
    return getattr(importlib.import_module(f"edgeopt.evaluation.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])

"""Import HiGHS and CP-SAT so that both live in one process."""

import contextlib
import functools
import importlib
import importlib.metadata
import os
import sys
from typing import Any

from edgeopt.errors import SolverError
from edgeopt.modelling import silent

_CURE = "import highspy (or solve once with HiGHS) before ortools is imported"


@functools.cache
def highs_module() -> Any:
    """Return the module `highspy`.

    OR-Tools brings an older HiGHS under the library name that highspy uses, too, before 1.16, and the first one loaded
    serves both (google/or-tools issue 5246). So highspy must come first.

    Raises
    ------
    SolverError
        If OR-Tools came first.
    """
    try:
        import highspy
    except ImportError as error:
        raise SolverError(f"HiGHS cannot be loaded: {error}; {_CURE}") from error
    found, wanted = silent(highspy.Highs)().version(), importlib.metadata.version("highspy")
    if found.split(".")[:2] != wanted.split(".")[:2]:
        raise SolverError(f"highspy {wanted} would run on HiGHS {found} of another package; {_CURE}")
    return highspy


@functools.cache
def highs_class() -> Any:
    """Return the class `highspy.Highs`, silent from the start. Make every HiGHS by it."""
    return silent(highs_module().Highs)


def cp_model_module() -> Any:
    """Return the module `ortools.sat.python.cp_model`.

    HiGHS is loaded first, see `highs_module`. OR-Tools then does not find a function of its own HiGHS that CP-SAT
    never calls; it loads nevertheless when functions are looked up at their first call instead of at once.
    """
    return _ortools("ortools.sat.python.cp_model")  # late: it takes a second to import, pandas included


def knapsack_module() -> Any:
    """Return the module `ortools.algorithms.python.knapsack_solver`, loaded as `cp_model_module` does."""
    return _ortools("ortools.algorithms.python.knapsack_solver")


def _ortools(module: str) -> Any:
    if module not in sys.modules:
        with contextlib.suppress(SolverError):  # OR-Tools came first: nothing is lost for it
            highs_module()
    flags = sys.getdlopenflags() if hasattr(sys, "getdlopenflags") else None
    if flags is not None:
        sys.setdlopenflags(os.RTLD_LAZY)
    try:
        return importlib.import_module(module)
    finally:
        if flags is not None:
            sys.setdlopenflags(flags)

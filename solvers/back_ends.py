"""Import HiGHS and CP-SAT so that both live in one process."""

import contextlib
import functools
import importlib.metadata
import os
import sys
from typing import Any

from edgeopt.errors import SolverError

_CURE = "import highspy (or solve once with HiGHS) before ortools is imported"


@functools.cache
def highs_module() -> Any:
    """Return the module `highspy`.

    OR-Tools brings an older HiGHS under the same library name, and the first one loaded serves both
    (google/or-tools issue 5246). So highspy must come first.

    Raises
    ------
    SolverError
        If OR-Tools came first.
    """
    try:
        import highspy
    except ImportError as error:
        raise SolverError(f"HiGHS cannot be loaded: {error}; {_CURE}") from error
    found, wanted = highspy.Highs().version(), importlib.metadata.version("highspy")
    if found.split(".")[:2] != wanted.split(".")[:2]:
        raise SolverError(f"highspy {wanted} would run on HiGHS {found} of another package; {_CURE}")
    return highspy


def cp_model_module() -> Any:
    """Return the module `ortools.sat.python.cp_model`.

    HiGHS is loaded first, see `highs_module`. OR-Tools then does not find a function of its own HiGHS that CP-SAT
    never calls; it loads nevertheless when functions are looked up at their first call instead of at once.
    """
    if "ortools.sat.python.cp_model" not in sys.modules:
        with contextlib.suppress(SolverError):  # OR-Tools came first: nothing is lost for CP-SAT
            highs_module()
    flags = sys.getdlopenflags() if hasattr(sys, "getdlopenflags") else None
    if flags is not None:
        sys.setdlopenflags(os.RTLD_LAZY)
    try:
        from ortools.sat.python import cp_model  # late: it takes a second to import, pandas included
    finally:
        if flags is not None:
            sys.setdlopenflags(flags)
    return cp_model

"""What the solvers `generic` share: HiGHS on a model in cvxpy, within the limits of a run."""

import math
from typing import Any

from edgeopt.modelling import GenericModel, cvxpy_module, solve_quietly
from edgeopt.solvers.highs import own_scheduler

TOLERANCE = 1e-9  # of HiGHS on rows and integers


def solve_by_highs(model: GenericModel[Any], seconds: float = math.inf) -> str:
    """Solve a mixed-integer linear model in the current thread for at most so many seconds; return how that ended.

    ``optimal``, ``infeasible``, ``stopped``, or what HiGHS says. Presolve is left out if HiGHS fails with it.
    """
    cp: Any = cvxpy_module()
    limit = {"time_limit": max(seconds, 0.0)} if math.isfinite(seconds) else {}
    tolerances = dict.fromkeys(("mip_feasibility_tolerance", "primal_feasibility_tolerance"), TOLERANCE)
    said = ""
    for presolve in ("choose", "off"):
        try:
            with own_scheduler():
                solve_quietly(
                    model.problem,
                    solver=cp.HIGHS,
                    mip_rel_gap=0.0,
                    mip_abs_gap=0.0,
                    threads=1,
                    presolve=presolve,
                    **tolerances,
                    **limit,
                )
        except cp.error.SolverError as error:
            said = str(error)
        else:
            status = str(model.problem.status)
            if status == cp.OPTIMAL:
                return "optimal"
            if status in (cp.INFEASIBLE, "infeasible_or_unbounded"):
                return "infeasible"
            said = status
        if limit:
            return "stopped"
    return said

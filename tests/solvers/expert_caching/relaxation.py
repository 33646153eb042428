"""The linear relaxation of expert caching, which no solver needs: what bounds are compared with."""

from edgeopt.problems import ExpertCaching
from edgeopt.solvers.ending import End
from edgeopt.solvers.expert_caching.milp import build_model
from edgeopt.solvers.highs import end_of_run, new_highs, own_scheduler


def lp_bound(problem: ExpertCaching) -> float:
    """Return the value of the relaxation of `MilpModel`, an upper bound on the optimum for every K and latency."""
    model = build_model(problem)
    highs = new_highs(model.arguments(relaxed=True), {})
    with own_scheduler():
        ending = end_of_run(highs)
    assert ending.end is End.OPTIMAL, ending.message
    return ending.objective / model.objective_scale

"""Solvers of client selection, one algorithm per file."""

from edgeopt.solve import Solver
from edgeopt.solvers.client_selection.blind_matching import BlindMatching as BlindMatching
from edgeopt.solvers.client_selection.fastest import Fastest as Fastest
from edgeopt.solvers.client_selection.matching import Matching as Matching
from edgeopt.solvers.client_selection.past_planner import PastPlanner as PastPlanner
from edgeopt.solvers.client_selection.planner import SelectionPlanner as SelectionPlanner
from edgeopt.solvers.client_selection.power_of_choice import PowerOfChoice as PowerOfChoice
from edgeopt.solvers.client_selection.random_picks import RandomPicks as RandomPicks
from edgeopt.solvers.client_selection.reservation import Reservation as Reservation
from edgeopt.solvers.client_selection.rl import RlCrp as RlCrp
from edgeopt.solvers.client_selection.rl import RlCrpPlain as RlCrpPlain
from edgeopt.solvers.client_selection.rl import RlNoCrp as RlNoCrp
from edgeopt.solvers.client_selection.rl import RlNoFairness as RlNoFairness
from edgeopt.solvers.client_selection.round_robin import RoundRobin as RoundRobin
from edgeopt.solvers.client_selection.trained_policy import TrainedPolicy as TrainedPolicy

SOLVERS: tuple[Solver, ...] = (
    RlCrp(),
    RlCrpPlain(),
    RlNoCrp(),
    RlNoFairness(),
    Reservation(),
    Matching(),
    BlindMatching(),
    PowerOfChoice(),
    RoundRobin(),
    Fastest(),
    RandomPicks(),
)

"""Client selection: which clients each of several federated servers asks, round by round."""

from edgeopt.problems.client_selection.plan import SelectionPlan as SelectionPlan
from edgeopt.problems.client_selection.problem import ClientSelection as ClientSelection
from edgeopt.problems.client_selection.report import SelectionReport as SelectionReport

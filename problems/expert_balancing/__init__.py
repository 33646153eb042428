"""Expert balancing: replicas of experts on the devices that serve a mixture of experts, so that no device has too much load."""

from edgeopt.problems.expert_balancing.problem import ExpertBalancing as ExpertBalancing
from edgeopt.problems.expert_balancing.replicas import Replicas as Replicas
from edgeopt.problems.expert_balancing.report import BalanceReport as BalanceReport

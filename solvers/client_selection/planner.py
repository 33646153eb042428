"""`SelectionPlanner`: client selection as the planner of a training run, every server deciding alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgeopt.display import one_line
from edgeopt.errors import InvalidProblemError
from edgeopt.problems import ClientSelection
from edgeopt.problems.client_selection.environment import ServerView
from edgeopt.schedule import Feedback, RoundPlan
from edgeopt.solvers.client_selection.policy import Policy
from edgeopt.storage import Arrays
from edgeopt.validate import bool_array, int_array

_HEARD = ("client", "server", "completed", "conflict")
_MEMORY = ("last", "picked", "delivered", "outcome")


@dataclass(slots=True)
class SelectionPlanner:
    """Let one policy per server pick the clients of each round, from what the rounds before told that server.

    A pick whose update arrived counts as delivered; feedback says which picks conflicted. A server's view holds nothing of
    the others' entries. `state` and `restore` carry it over a checkpoint, with new policies of the same seeds.

    Parameters
    ----------
    problem : coverage, numbers of picks, compute times, rates.
    policies : one per server, as `TrainedPolicy.policy` or the ``policy`` of a solver gives them.
    latency_s : called with the number of a round, returns the measured seconds of an undisturbed update, [S, C]. Default:
        what the rates of the problem say, without fading.

    Examples
    --------
    >>> from edgeopt.solvers.client_selection import RoundRobin
    >>> problem = ClientSelection.random(num_servers=2, num_clients=8, picks=2, seed=1)
    >>> planner = SelectionPlanner(problem, [RoundRobin().policy(server, seed=0) for server in range(2)])
    >>> planner.plan(0, None).server.tolist()
    [0, 0, 1, 1]
    """

    problem: ClientSelection
    policies: Sequence[Policy]
    latency_s: Callable[[int], NDArray[np.float64]] | None = None
    _heard: list[Feedback | None] = field(init=False, default_factory=list, repr=False)
    _memory: Arrays = field(init=False, repr=False)

    __repr__ = one_line

    def __post_init__(self) -> None:
        if len(self.policies) != self.problem.num_servers:
            raise InvalidProblemError(
                f"policies: expected one per server ({self.problem.num_servers}), got {len(self.policies)}"
            )
        shape = self.problem.coverage.shape
        self._memory = {
            "last": np.full(shape, -1, np.int32),
            "picked": np.zeros(shape, np.int32),
            "delivered": np.zeros(shape, np.int32),
            "outcome": np.full(shape, -1, np.int8),
        }

    def plan(self, round: int, feedback: Feedback | None = None) -> RoundPlan:
        """Return who trains with which server in a round; rounds come one after another, from 0."""
        if round != len(self._heard):
            raise InvalidProblemError(f"round = {round}: expected {len(self._heard)}, rounds come one after another")
        self._memory["outcome"].fill(-1)  # of the round before, of which there may be no feedback
        if feedback is not None:
            self._remember(feedback)
        self._heard.append(feedback)
        latency = self._usual_latency_s(round) if self.latency_s is None else self.latency_s(round)
        chosen = [policy.pick(self._view(s, round, latency[s])) for s, policy in enumerate(self.policies)]
        server = np.repeat(np.arange(len(chosen), dtype=np.int32), [len(clients) for clients in chosen])
        return RoundPlan(client=np.concatenate(chosen), server=server)

    def state(self) -> Arrays:
        """Return what every round so far was told: all that the next plans depend on, besides the parameters."""
        given = [feedback for feedback in self._heard if feedback is not None]
        plans = [feedback.plan for feedback in given]
        return {
            "given": np.array([feedback is not None for feedback in self._heard], np.bool_),
            "size": np.array([len(plan) for plan in plans], np.int64),
            "client": np.concatenate([np.empty(0, np.int32), *(plan.client for plan in plans)]),
            "server": np.concatenate([np.empty(0, np.int32), *(plan.server for plan in plans)]),
            "completed": np.concatenate([np.empty(0, np.bool_), *(feedback.completed for feedback in given)]),
            "conflict": np.concatenate([np.empty(0, np.bool_), *(feedback.conflict for feedback in given)]),
        }

    def restore(self, state: Arrays) -> None:
        """Play the rounds of `state` again, so that a new planner with new policies goes on from there."""
        if self._heard:
            raise InvalidProblemError(f"this planner has planned {len(self._heard)} rounds: restore a new one")
        if missing := [name for name in ("given", "size", *_HEARD) if name not in state]:
            raise InvalidProblemError(f"state: {missing[0]}: array is missing")
        told = bool_array("given", state["given"], (None,))
        size = int_array("size", state["size"], (int(told.sum()),), low=0, dtype=np.int64)
        shape = (sum(size.tolist()),)
        clients, servers = self.problem.num_clients, self.problem.num_servers
        state = {
            "client": int_array("client", state["client"], shape, low=0, high=clients - 1),
            "server": int_array("server", state["server"], shape, low=0, high=servers - 1),
            "completed": bool_array("completed", state["completed"], shape),
            "conflict": bool_array("conflict", state["conflict"], shape),
        }
        ends, at = np.cumsum(size), 0
        for round, given in enumerate(told.tolist()):
            feedback = None
            if given:
                own = slice(ends[at] - size[at], ends[at])
                plan = RoundPlan(client=state["client"][own], server=state["server"][own])
                completed, conflict = state["completed"][own], state["conflict"][own]
                feedback = Feedback(round=round - 1, plan=plan, seconds=0.0, completed=completed, conflict=conflict)
                at += 1
            self.plan(round, feedback)

    def _remember(self, feedback: Feedback) -> None:
        memory, plan = self._memory, feedback.plan
        entries = (plan.server, plan.client)
        memory["outcome"][entries] = feedback.conflict
        memory["picked"][entries] += 1
        arrived = (plan.server[feedback.completed], plan.client[feedback.completed])
        memory["delivered"][arrived] += 1
        memory["last"][arrived] = len(self._heard) - 1

    def _usual_latency_s(self, round: int) -> NDArray[np.float64]:
        problem = self.problem
        rate = problem.rate_at(min(round, problem.rounds - 1))
        seconds = np.full(rate.shape, np.inf)
        np.divide(problem.payload_bits, rate, out=seconds, where=rate > 0)
        return np.asarray(problem.compute_s + seconds)

    def _view(self, server: int, round: int, latency_s: NDArray[np.float64]) -> ServerView:
        problem = self.problem
        clients = np.flatnonzero(problem.coverage[server])
        last, picked, delivered, outcome = (self._memory[name][server, clients] for name in _MEMORY)
        return ServerView(
            server=server,
            round=round,
            num_picks=int(problem.picks[server]),
            clients=clients,
            latency_s=latency_s[clients],
            last=last,
            picked=picked,
            delivered=delivered,
            outcome=outcome,
        )

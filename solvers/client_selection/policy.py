"""Decentralised play: one policy per server, each of which sees only its own server's view."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeopt.problem import Problem
from edgeopt.problems import ClientSelection, SelectionPlan
from edgeopt.problems.client_selection.environment import SelectionEnvironment, ServerView
from edgeopt.result import Result
from edgeopt.solve import Run, SolveOptions, Solver


class Policy(Protocol):
    """How one server picks in one episode; it may remember the views it was given."""

    def pick(self, view: ServerView) -> NDArray[np.integer[Any]]:
        """Return the ids of ``view.num_picks`` different clients among ``view.clients``."""
        ...


class SelectionSolver(Solver, Protocol):
    """A solver of client selection."""

    def policies(self, problem: ClientSelection, seed: int) -> Sequence[Policy] | None:
        """Return how each server picks in one episode, for picks round by round; a solver that learns does so first.

        None where a coordinator that sees all servers picks for them.
        """
        ...


class PolicySource(Protocol):
    """What has a policy for every server: a solver whose servers decide alone, or what was learnt."""

    def policy(self, server: int, seed: int) -> Policy:
        """Return the policy of one server for one episode."""
        ...


class LocalSolver(SelectionSolver, PolicySource, Protocol):
    """A solver whose servers decide alone."""


def supports_client_selection(problem: Problem) -> str | None:
    """Return None for a `ClientSelection` problem, else what was expected."""
    return None if isinstance(problem, ClientSelection) else f"expected a client-selection problem, got {problem.kind}"


def play_alone(solver: LocalSolver, problem: ClientSelection, options: SolveOptions) -> Result[Any]:
    """Solve by letting every server play its own policy; one iteration is one round."""
    with Run[SelectionPlan](solver, problem, options) as run:
        policies = one_each(solver, problem, run.seed)
        play(run, problem, lambda environment: picks_of(policies, environment))
    return run.result()


def one_each(source: PolicySource, problem: ClientSelection, seed: int) -> list[Policy]:
    """Return one policy for each server."""
    return [source.policy(server, seed) for server in range(problem.num_servers)]


def picks_of(policies: Sequence[Policy], environment: SelectionEnvironment) -> NDArray[np.int32]:
    """Return the picks [S, M] of one policy per server in the coming round of episode 0, each from its own view."""
    picks = np.full((len(policies), environment.problem.max_picks), -1, np.int32)
    for server, policy in enumerate(policies):
        chosen = policy.pick(environment.view(server))
        picks[server, : len(chosen)] = chosen
    return picks


def play(
    run: Run[SelectionPlan], problem: ClientSelection, choose: Callable[[SelectionEnvironment], NDArray[np.int32]]
) -> bool:
    """Play the problem's own episode, ``choose`` giving the picks [S, M] of each round; offer the plan.

    The rounds after a limit are filled with `cyclic_plan`. Returns whether all rounds were played.
    """
    with run.building():
        environment = SelectionEnvironment(problem)
        picks = cyclic_plan(problem)
    try:
        while not environment.done and not run.stopped():
            now = environment.now
            picks[now] = choose(environment)
            environment.step(picks[now : now + 1])
            run.step()
    finally:  # what has been played is the solution also after an interrupt
        run.offer(SelectionPlan(picks))
    return environment.done


def cyclic_plan(problem: ClientSelection) -> NDArray[np.int32]:
    """Return picks [T, S, M]: every server goes through its clients by their ids, over and over."""
    picks = np.full((problem.rounds, problem.num_servers, problem.max_picks), -1, np.int32)
    for server, count in enumerate(problem.picks.tolist()):
        clients = np.flatnonzero(problem.coverage[server])
        turns = np.arange(problem.rounds * count).reshape(problem.rounds, count)
        picks[:, server, :count] = clients[turns % len(clients)]
    return picks

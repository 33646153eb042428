"""What every solver of every kind must do, on every tiny instance of its kind: added to SOLVERS, tested here."""

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import edgeopt
from edgeopt.errors import InvalidProblemError, UnsupportedProblemError
from edgeopt.problems import PROBLEMS, DownloadPlan, Placement, Problem, Replicas, SelectionPlan, SplitPlan
from edgeopt.result import Exact, Ratio, Result, Status
from edgeopt.solve import Solver, configure
from edgeopt.solvers import KINDS, get_solver, solvers_of
from edgeopt.solvers.client_selection import RlCrp
from edgeopt.solvers.client_selection.policy import cyclic_plan
from edgeopt.solvers.expert_caching import Lagrangian, MaxConvolution
from edgeopt.stop import Limit, MaxIterations
from tests.solvers.client_selection import instances as client_selection
from tests.solvers.doubles import Foreign, Stop
from tests.solvers.expert_balancing import instances as expert_balancing
from tests.solvers.expert_caching import instances as expert_caching
from tests.solvers.model_download import instances as model_download
from tests.solvers.split_training import instances as split_training
from tests.solvers.tiny import by_name

Wrong = tuple[Any, str]
"""An initial solution, and what the message says is wrong with it."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of problem, and what its solvers are tried on.

    Parameters
    ----------
    tiny : instances with their optima by enumeration.
    few : names of those that stand for all where a test need not try all.
    start : a feasible solution of each instance, most often not the best.
    wrong : initial solutions of the instance `wrong_for` that are refused.
    too_large : asks the enumeration for too much; None where it knows no limit.
    relative : optima are compared by their size alone, whatever their unit.
    done_at_once : some solvers do not look at the clock.
    """

    tiny: tuple[Any, ...]
    few: tuple[str, ...]
    start: Callable[[Any], Any]
    wrong_for: str
    wrong: tuple[Wrong, ...]
    too_large: Callable[[], Any] | None = None
    relative: bool = False
    done_at_once: bool = False

    def named(self, name: str) -> Any:
        """Return an instance by its name."""
        return by_name(self.tiny, name)


def one_expert(problem: Any) -> Placement:
    """Return a placement of one expert on the server with the most storage, if it fits."""
    cached = np.zeros((problem.num_servers, problem.num_experts), bool)
    server = int(problem.storage_bytes.argmax())
    cached[server, 0] = problem.expert_bytes[0] <= problem.storage_bytes[server]
    return Placement(cached)


def largest_batches(problem: Any) -> SplitPlan:
    """Return the plan of the largest batches at cut 1, which reaches a target that can be reached."""
    cuts = np.ones(problem.num_devices, int)
    return SplitPlan(batch_size=problem.batch_limit[:, 0], cut_layer=cuts, aggregation_interval=problem.min_interval)


def one_replica_each(problem: Any) -> Replicas:
    """Return a placement with as few replicas as there may be, of groups on the first devices that have room."""
    experts = np.full((problem.num_layers, problem.num_devices, int(problem.slots.max())), -1)
    used = np.zeros(problem.num_devices, int)
    for group in np.unique(problem.expert_group):
        members = np.flatnonzero(problem.expert_group == group)
        for devices in (np.flatnonzero(problem.device_group == node) for node in np.unique(problem.device_group)):
            if (problem.slots[devices] - used[devices]).sum() >= members.size:
                break
        for expert in members:
            device = devices[np.flatnonzero(used[devices] < problem.slots[devices])[0]]
            experts[:, device, used[device]] = expert
            used[device] += 1
    return Replicas(experts)


def download(model: list[int], bandwidth_hz: list[float], frequency_hz: list[float]) -> DownloadPlan:
    return DownloadPlan(model=model, bandwidth_hz=bandwidth_hz, frequency_hz=frequency_hz)


def split(batch_size: list[int], cut_layer: list[int]) -> SplitPlan:
    return SplitPlan(batch_size=batch_size, cut_layer=cut_layer)


TABLE = {
    "expert-caching": Kind(
        tiny=expert_caching.TINY,
        few=("greedy gadget", "two sizes", "unreachable", "K = 1, devices, two models", "K = 2, mix", "K = 3, max"),
        start=one_expert,
        wrong_for="greedy gadget",
        wrong=(
            (Placement(np.zeros((3, 2), bool)), "expected shape [2, 2], got [3, 2]"),
            ([[True, False], [False, False]], "expected a Placement"),
            (Placement([[True, True], [False, False]]), "server 0 holds 2 bytes of experts, its storage is 1"),
        ),
        too_large=lambda: expert_caching.brute_force(
            edgeopt.problems.ExpertCaching.from_facility(np.ones((1, 5)), np.ones((1, 5)), 1, np.ones(5))
        ),
    ),
    "model-download": Kind(
        tiny=model_download.TINY,
        few=("one large", "energy", "concave, blocks, rewards", "levels and energy"),
        start=lambda problem: DownloadPlan.refuse_all(problem.num_users),
        wrong_for="exactly the band",
        wrong=(
            (DownloadPlan.refuse_all(3), "model: expected shape [2], got [3]"),
            ([0, 0], "expected a DownloadPlan"),
            (download([0, 0], [8.0, 8.0], [1.0] * 4), "users get 16 Hz, the bandwidth is 8"),
        ),
        too_large=lambda: model_download.brute_force(edgeopt.problems.ModelDownload.random(num_users=20)),
        done_at_once=True,
    ),
    "split-training": Kind(
        tiny=split_training.TINY,
        few=("interval against drift", "memory forbids the fast cut", "any 39", "varied 13"),
        start=largest_batches,
        wrong_for="any 39",
        wrong=(
            (split([1, 1], [1, 1]), "expected shape [3], got [2]"),
            ([1, 1, 1], "expected a SplitPlan"),
            (split([1] * 3, [1, 1, 3]), "cut_layer[2] = 3: expected an integer from 1 to 2"),
            (split([99, 1, 1], [1] * 3), "batch_size[0] = 99"),
        ),
        relative=True,
    ),
    "client-selection": Kind(
        tiny=client_selection.TINY,
        few=("shared client", "one client, fail", "fail, regimes", "share, regimes"),
        start=lambda problem: SelectionPlan(cyclic_plan(problem)),
        wrong_for="shared client",
        wrong=(
            (SelectionPlan(np.zeros((3, 2, 1), int)), "picks: expected shape [2, 2, any], got [3, 2, 1]"),
            ([[[0], [1]], [[0], [1]]], "expected a SelectionPlan"),
            (
                SelectionPlan([[[0], [1]], [[0], [0]]]),
                "round 1: server 1 picks client 0, which it does not cover",
            ),
        ),
        too_large=lambda: client_selection.brute_force(
            client_selection.instance("fail, regimes").problem.replace(rounds=9)
        ),
    ),
    "expert-balancing": Kind(
        tiny=expert_balancing.TINY,
        few=("one replica more", "groups", "moves pay", "all of it"),
        start=one_replica_each,
        wrong_for="two layers",
        wrong=(
            (Replicas([[[0, 1], [2, 0]]]), "experts: expected shape [2, 2, any], got [1, 2, 2]"),
            ([[[0, 1], [2, 0]]] * 2, "expected Replicas"),
            (Replicas([[[0, 1], [2, 3]]] * 2), "experts: found expert 3, expected at most 2"),
            (Replicas([[[0, 1, 2], [2, 0, -1]]] * 2), "layer 0: device 0 has 3 replicas, its slots are 2"),
            (Replicas([[[0, 1], [1, 0]]] * 2), "layer 0: expert 2 has no replica"),
        ),
        too_large=lambda: expert_balancing.brute_force(edgeopt.problems.ExpertBalancing.random()),
    ),
}


BRIEF: dict[type[Solver], dict[str, Any]] = {
    RlCrp: {"iterations": 2, "episodes": 2},
    Lagrangian: {"bound_steps": 8},
    MaxConvolution: {"bound_steps": 4},
}


@functools.cache
def solvers(kind: str) -> tuple[Any, ...]:
    """Return the registered solvers; those that learn or bound step by step do so for a moment: what must hold does not depend on how long."""
    return tuple(
        configure(solver, **next((options for cls, options in BRIEF.items() if isinstance(solver, cls)), {}))
        for solver in solvers_of(kind)
    )


def pairs(instances: Callable[[Kind], Iterable[Any]]) -> Any:
    """Parametrise over every solver with every instance of its kind that it supports."""
    return pytest.mark.parametrize(
        ("kind", "solver", "tiny"),
        [
            pytest.param(TABLE[kind], solver, tiny, id=f"{kind}-{solver.name}-{tiny.name}")
            for kind in KINDS
            for solver in solvers(kind)
            for tiny in instances(TABLE[kind])
            if solver.supports(tiny.problem) is None
        ],
    )


on_every_pair = pairs(lambda kind: kind.tiny)
on_few_pairs = pairs(lambda kind: map(kind.named, kind.few))
every_kind = pytest.mark.parametrize("kind", KINDS)
every_solver = pytest.mark.parametrize(
    ("kind", "solver"),
    [pytest.param(kind, solver, id=f"{kind}-{solver.name}") for kind in KINDS for solver in solvers(kind)],
)


@functools.cache
def solved(solver: Solver, kind: str, name: str) -> Result[Any]:
    """Return the result of a plain solve, made once for all tests that look at it."""
    return edgeopt.solve(TABLE[kind].named(name).problem, solver)


def check(result: Result[Any], kind: Kind, tiny: Any) -> None:
    """Check what holds for every result whatever ended the run."""
    sign = 1 if tiny.problem.sense == "max" else -1
    size = tiny.optimum if kind.relative else 1.0
    assert result.status in (Status.OPTIMAL, Status.FEASIBLE), result.message
    assert result.feasible
    assert tiny.problem.violations(result.solution) == ()
    assert result.objective == tiny.problem.objective(result.solution)
    assert sign * result.objective <= sign * tiny.optimum + 1e-9 * size
    assert sign * result.bound >= sign * tiny.optimum - 1e-9 * max(size, tiny.optimum)
    if result.status is Status.OPTIMAL:
        assert result.objective == pytest.approx(tiny.optimum, rel=1e-7, abs=0.0 if kind.relative else 1e-9)


@pytest.mark.parametrize(
    ("kind", "tiny"),
    [pytest.param(kind, tiny, id=f"{name}-{tiny.name}") for name, kind in TABLE.items() for tiny in kind.tiny],
)
def test_instances_have_their_derived_optimum(kind: Kind, tiny: Any):
    """The optimum derived by hand is the one found by enumeration, and the problem agrees on the best solution."""
    rounding = {"rel": 1e-12} if kind.relative else {"abs": 1e-12}
    if tiny.derived is not None:
        assert tiny.optimum == pytest.approx(tiny.derived, **rounding)
    assert tiny.problem.violations(tiny.best) == ()
    assert tiny.problem.objective(tiny.best) == pytest.approx(tiny.optimum, **rounding)


@pytest.mark.sampled(3)
@on_every_pair
def test_result_and_guarantee(kind: Kind, solver: Any, tiny: Any):
    """Feasible, objective as the problem computes it, a valid bound, and the run finishes by itself.

    Exact solvers prove the enumerated optimum; a ratio alpha means at least alpha times the optimum.
    """
    result = solved(solver, tiny.problem.kind, tiny.name)
    check(result, kind, tiny)
    assert result.limit is None
    assert result.solver == solver.name
    guarantee = solver.guarantee_for(tiny.problem)
    assert result.guarantee == guarantee
    if isinstance(guarantee, Exact):
        assert result.status is Status.OPTIMAL
    elif isinstance(guarantee, Ratio):
        assert tiny.problem.sense == "max"
        assert result.objective >= guarantee.alpha * tiny.optimum - 1e-9


@pytest.mark.sampled(3)
@on_few_pairs
def test_same_seed_same_solution(kind: Kind, solver: Any, tiny: Any):
    """Two deterministic runs with one seed give the same solution and the same bound."""
    first, second = (edgeopt.solve(tiny.problem, solver, seed=7, deterministic=True) for _ in range(2))
    assert first.solution == second.solution
    assert first.bound == second.bound
    assert first.seed == 7


@on_few_pairs
def test_no_time_still_gives_a_result(kind: Kind, solver: Any, tiny: Any):
    """A time limit of zero is no error: the best solution so far comes back."""
    result = edgeopt.solve(tiny.problem, solver, time_limit=0)
    check(result, kind, tiny)
    if result.status is not Status.OPTIMAL:  # else there was nothing to do, and a certificate
        assert result.limit is Limit.TIME or (kind.done_at_once and result.limit is None)


@pytest.mark.sampled(4)
@on_every_pair
def test_warm_start_is_never_worse(kind: Kind, solver: Any, tiny: Any):
    """Starting from the optimum returns the optimum, starting from another solution at least its value."""
    result = edgeopt.solve(tiny.problem, solver, initial_solution=tiny.best)
    check(result, kind, tiny)
    rounding = {"rel": 1e-12} if kind.relative else {"abs": 1e-9}
    assert result.objective == pytest.approx(tiny.optimum, **rounding)
    start = kind.start(tiny.problem)
    result = edgeopt.solve(tiny.problem, solver, initial_solution=start)
    check(result, kind, tiny)
    sign = 1 if tiny.problem.sense == "max" else -1
    assert sign * result.objective >= sign * tiny.problem.objective(start)


@pytest.mark.sampled(3)
@on_few_pairs
@pytest.mark.parametrize("event", ["best", "iteration"])
@pytest.mark.parametrize("interrupt", [False, True], ids=["stop", "Ctrl-C"])
def test_stopping_keeps_the_incumbent(kind: Kind, solver: Any, tiny: Any, event: str, interrupt: bool):
    """A callback that returns False, or Ctrl-C raised by one, ends the run with its incumbent and the right limit.

    The callback hears the end once.
    """
    callback = Stop(event, interrupt=interrupt)
    result = edgeopt.solve(tiny.problem, solver, callback=callback)
    check(result, kind, tiny)
    assert callback.ended == 1
    if event == "best":  # not every solver iterates
        assert result.limit is (Limit.INTERRUPT if interrupt else Limit.CALLBACK)


@every_kind
def test_interrupt_at_the_warm_start(kind: str):
    """Ctrl-C while the initial solution is evaluated returns it with the limit `interrupt`."""
    tiny, callback = TABLE[kind].named(TABLE[kind].few[0]), Stop("best", interrupt=True)
    try:
        result = edgeopt.solve(tiny.problem, solvers(kind)[-1], initial_solution=tiny.best, callback=callback)
    except KeyboardInterrupt:  # pytest would take it for its own
        pytest.fail("the interrupt went through")
    assert result.limit is Limit.INTERRUPT


@on_few_pairs
def test_iteration_limit(kind: Kind, solver: Any, tiny: Any):
    """A limit of one iteration is no error."""
    result = edgeopt.solve(tiny.problem, solver, stop=MaxIterations(1))
    check(result, kind, tiny)
    assert result.limit in (Limit.ITERATION, None)


@every_solver
def test_refuses_other_problems(kind: str, solver: Any):
    """A foreign problem is refused with a sentence that names both kinds."""
    reason = solver.supports(Foreign())
    assert reason is not None
    assert kind in reason
    assert "foreign" in reason
    with pytest.raises(UnsupportedProblemError, match=solver.name):
        edgeopt.solve(Foreign(), solver)


@every_solver
def test_refuses_bad_initial_solutions(kind: str, solver: Any):
    """Warm starts of the wrong shape or type, or that break a limit, are refused before any work."""
    problem = TABLE[kind].named(TABLE[kind].wrong_for).problem
    for solution, message in TABLE[kind].wrong:
        with pytest.raises(InvalidProblemError) as found:
            edgeopt.solve(problem, solver, initial_solution=solution)
        assert message in str(found.value)


@every_solver
def test_result_as_plain_values(kind: str, solver: Any):
    """`to_json` has the documented keys and never an infinite number; the solution reads back."""
    name = TABLE[kind].wrong_for
    result, problem = solved(solver, kind, name), TABLE[kind].named(name).problem
    document = result.to_json()
    wanted = {"problem", "solver", "seed", "sense", "status", "limit", "objective", "bound", "gap", "guarantee"}
    assert wanted | {"feasible", "seconds", "message"} == set(document)
    assert all(math.isfinite(value) for value in document.values() if isinstance(value, float))
    assert problem.solution_from_json(result.solution.to_json()) == result.solution


@every_solver
def test_found_by_name(kind: str, solver: Any):
    """The name on the command line finds a solver of the same class."""
    assert type(get_solver(kind, solver.name)) is type(solver)


@pytest.mark.parametrize("kind", [name for name, kind in TABLE.items() if kind.too_large is not None])
def test_enumeration_refuses_large_problems(kind: str):
    """The enumeration says when it is asked for too much."""
    with pytest.raises(ValueError, match="too many to enumerate"):
        TABLE[kind].too_large()  # type: ignore[misc]


@every_kind
def test_names_are_unique(kind: str):
    """No two solvers of a kind share a name."""
    assert len({solver.name for solver in solvers(kind)}) == len(solvers(kind))


def test_every_kind_is_here():
    """The table has each kind of problem that there is, and each kind has solvers."""
    assert list(TABLE) == list(KINDS) == [problem.kind for problem in PROBLEMS]
    assert all(issubclass(problem, Problem) and solvers(problem.kind) for problem in PROBLEMS)

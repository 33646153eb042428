"""What every kind of problem declares: reading solutions back, and a tiny problem to warm solvers up on."""

import json
from pathlib import Path
from typing import Any

import pytest

import edgeopt
from edgeopt.problem import Problem
from edgeopt.problems import PROBLEMS, ExpertCaching
from edgeopt.solvers import KINDS, solvers_of
from tests.solvers.doubles import Foreign


@pytest.mark.parametrize("kind", PROBLEMS, ids=lambda kind: kind.kind)
def test_a_tiny_problem_of_every_kind(kind: Any, tmp_path: Path):
    """It is of the same kind, far smaller on disk, and solutions of it can be written and read back."""
    large = kind.random(seed=1)
    tiny = large.tiny_like()
    assert type(tiny) is kind
    for name, problem in (("large.json", large), ("tiny.json", tiny)):
        problem.save(tmp_path / name)
    assert (tmp_path / "tiny.json").stat().st_size < (tmp_path / "large.json").stat().st_size / 2
    solver = solvers_of(kind.kind)[-1]
    solution = edgeopt.solve(tiny, solver).solution
    again = tiny.solution_from_json(json.loads(json.dumps(solution.to_json())))
    assert tiny.objective(again) == tiny.objective(solution)


@pytest.mark.parametrize(("latency", "theta"), [("sum", 0.5), ("max", 0.5), ("mix", 0.25)])
def test_the_tiny_problem_takes_the_same_branches(latency: Any, theta: float):
    """Latencies are added up as in the problem itself, so that the warm-up compiles what the run needs."""
    tiny = ExpertCaching.random(num_servers=6, num_users=30, latency=latency, theta=theta).tiny_like()
    assert (tiny.latency, tiny.theta) == (latency, theta)


def test_what_a_kind_need_not_offer():
    """A problem of a user's own has no warm-up, and says that its solutions cannot be read back."""
    problem: Problem = Foreign()
    assert problem.tiny_like() is None
    with pytest.raises(edgeopt.EdgeOptError, match=f"solutions of {problem.kind} cannot be read back"):
        problem.solution_from_json({})


def test_kinds_are_those_of_the_problems():
    """Solvers are asked for by the kinds that there are."""
    assert [kind.kind for kind in PROBLEMS] == list(KINDS)
    assert all(solvers_of(kind) for kind in KINDS)

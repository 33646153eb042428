"""What a training run under contention for clients has measured, against what the problem says of its picks."""

from collections.abc import Sequence

import numpy as np
import pytest

from edgeopt.problems import ClientSelection, SelectionPlan
from edgeopt.training import History, RoundRecord


def plan_of(problem: ClientSelection, records: Sequence[RoundRecord]) -> SelectionPlan:
    """Return the picks that were trained, as a plan of the problem."""
    servers = range(problem.num_servers)
    return SelectionPlan.from_lists([[record.plan.of_server(s).client.tolist() for s in servers] for record in records])


def assert_as_reported(problem: ClientSelection, records: Sequence[RoundRecord], history: History) -> None:
    """Check that the rounds measured what the problem reports, and that rewards made of it have the objective as mean."""
    report = problem.report(plan_of(problem, records))
    shape = (problem.rounds, problem.num_servers)
    round_s, conflicts = np.zeros(shape), np.zeros(shape, int)
    deliveries, reward = np.zeros(problem.num_clients, int), np.zeros(shape)
    last = np.full(problem.coverage.shape, -1)
    for t, record in enumerate(records):
        assert record.row["round_seconds"] == report.round_s[t].max()
        assert record.row["conflicts"] == report.conflicts[t].sum()
        for s, (picked, covered) in enumerate(zip(problem.picks, problem.num_covered, strict=True)):
            own = np.flatnonzero(record.plan.server == s)
            got = record.plan.client[own[record.completed[own]]]
            round_s[t, s], conflicts[t, s] = record.client_seconds[own].max(), record.conflict[own].sum()
            fair = sum(1.0 if last[s, c] < 0 else min(1.0, (t - last[s, c]) * picked / covered) for c in got)
            last[s, got] = t
            np.add.at(deliveries, got, 1)
            reward[t, s] = problem.fairness_weight * fair / picked
            reward[t, s] -= problem.latency_weight * round_s[t, s] / problem.timeout_s
            reward[t, s] -= problem.conflict_weight * conflicts[t, s] / picked
    assert np.array_equal(round_s, report.round_s)
    assert np.array_equal(conflicts, report.conflicts)
    assert np.array_equal(deliveries, report.deliveries)
    assert conflicts.sum() / (problem.rounds * problem.picks.sum()) == report.conflict_rate
    assert reward.mean() == pytest.approx(report.mean_reward, rel=1e-12, abs=1e-12)
    assert history.rows[-1]["seconds"] == pytest.approx(report.round_s.max(axis=1).sum(), rel=1e-12)

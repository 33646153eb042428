"""Plans of rounds, planners and feedback: checked, kept on disk, played back."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.convergence import ConvergenceEstimate, Estimate
from edgeopt.errors import EdgeOptError, InvalidFileError, InvalidProblemError
from edgeopt.schedule import (
    COLUMNS,
    MEASURED,
    ClientPlan,
    Feedback,
    LinkBudget,
    Planner,
    RoundPlan,
    Schedule,
    StatefulPlanner,
    StaticPlanner,
)

TWO_SERVERS = RoundPlan(
    client=[3, 0, 3],
    server=[0, 1, 1],
    batch_size=[8, 4, 2],
    cut_layer=[1, 2, 5],
    local_steps=[1, 2, 3],
    local_epochs=[0, 1, 2],
    budget_bytes=[1e3, np.inf, 0.5],
    rank=[2, 0, 4],
    experts=[0, 1, 3],
    aggregate=False,
)

# --- plans --------------------------------------------------------------------------------------------------------


def test_entries_by_hand():
    """Arrays, items and iteration show the same entries; scalars stand for every entry; defaults leave things open."""
    assert len(TWO_SERVERS) == 3
    assert list(TWO_SERVERS) == [TWO_SERVERS[i] for i in range(3)]
    assert TWO_SERVERS[1] == ClientPlan(
        client=0,
        server=1,
        batch_size=4,
        cut_layer=2,
        local_steps=2,
        local_epochs=1,
        budget_bytes=np.inf,
        rank=0,
        experts=1,
    )
    assert type(TWO_SERVERS[1].client) is type(next(iter(TWO_SERVERS)).client) is int
    assert type(TWO_SERVERS[0].budget_bytes) is float
    plan = RoundPlan(client=[5, 2], batch_size=16)
    assert list(plan) == [ClientPlan(5, 0, 16, 0, 1), ClientPlan(2, 0, 16, 0, 1)]
    assert plan.aggregate is True


def test_conflicts_and_servers():
    """A client that two servers picked is a conflict; each server's part is its own entries, in their order."""
    assert TWO_SERVERS.conflicts.tolist() == [3]
    assert [c.client for c in TWO_SERVERS.of_server(1)] == [0, 3]
    assert TWO_SERVERS.of_server(1).conflicts.size == 0
    assert TWO_SERVERS.of_server(1).aggregate is False
    assert len(TWO_SERVERS.of_server(7)) == 0


def test_empty_round():
    """Nobody trains: a plan without entries, which iterates, compares and has no conflicts."""
    plan = RoundPlan(client=[])
    assert list(plan) == []
    assert plan.conflicts.size == 0
    assert plan == RoundPlan(client=[])


def test_plans_are_frozen():
    """Arrays are read-only copies of what was given."""
    clients = np.array([1, 2])
    plan = RoundPlan(client=clients)
    clients[0] = 9
    assert plan.client.tolist() == [1, 2]
    with pytest.raises(ValueError, match="read-only"):
        plan.client[0] = 9
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.aggregate = False  # type: ignore[misc]


def test_plans_and_entries_have_the_columns_of_the_table():
    """The table, the fields of a plan and those of an entry are the same, in the same order, with the same defaults."""
    names = [column.name for column in COLUMNS]
    assert [field.name for field in dataclasses.fields(RoundPlan)] == [*names, "aggregate"]
    assert [field.name for field in dataclasses.fields(ClientPlan)] == names
    plan = RoundPlan(client=[3])
    assert plan[0] == ClientPlan(3)
    for name, dtype, default, *_ in COLUMNS:
        assert getattr(plan, name).dtype == dtype
        assert name == "client" or getattr(plan[0], name) == default


@pytest.mark.parametrize("name", [*(column.name for column in COLUMNS), "aggregate"])
def test_every_field_counts_for_equality(name: str):
    """Plans that differ anywhere are unequal; so are plans and other things."""
    changed = not TWO_SERVERS.aggregate if name == "aggregate" else getattr(TWO_SERVERS, name) + np.array([0, 0, 4])
    assert TWO_SERVERS.replace(**{name: changed}) != TWO_SERVERS
    assert TWO_SERVERS.replace() == TWO_SERVERS
    assert TWO_SERVERS != "plan"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"client": [0, -1]}, r"client\[1\] = -1: expected an integer >= 0"),
        ({"client": [0, 1.5]}, r"client\[1\] = 1.5"),
        ({"client": [0, np.nan]}, r"client\[1\] = nan"),
        ({"client": [0, 1], "batch_size": [4]}, r"batch_size: expected shape \[2\], got \[1\]"),
        ({"client": [0], "batch_size": -1}, r"batch_size\[0\] = -1"),
        ({"client": [0], "local_steps": 0}, r"local_steps\[0\] = 0: expected an integer >= 1"),
        ({"client": [0], "local_epochs": -1}, r"local_epochs\[0\] = -1: expected an integer >= 0"),
        (
            {"client": [0, 1], "budget_bytes": [1, -2.5]},
            r"budget_bytes\[1\] = -2.5: expected a non-negative number or inf",
        ),
        ({"client": [0], "budget_bytes": np.nan}, r"budget_bytes\[0\] = nan"),
        ({"client": [0], "rank": 1.5}, r"rank\[0\] = 1.5"),
        ({"client": [0], "experts": "all"}, "experts = 'all': expected an integer >= 0"),
        ({"client": [0], "aggregate": 2}, "aggregate = 2: expected True or False"),
        ({"client": [1, 0, 1]}, r"client\[2\] = 1: expected a client at most once for each server, server 0"),
        ({"client": [1, 0, 1], "server": [2, 0, 2]}, "server 2 has it twice"),
    ],
)
def test_bad_plans(fields: dict[str, Any], message: str):
    """Errors name field, index, value and what was expected."""
    with pytest.raises(InvalidProblemError, match=message):
        RoundPlan(**fields)


# --- planners -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interval", [1, 2, 5])
def test_static_planner(interval: int):
    """The plan repeats; exactly every interval-th round aggregates, the first time after `interval` rounds."""
    planner: Planner = StaticPlanner(TWO_SERVERS, interval)
    plans = [planner.plan(round, None) for round in range(10)]
    assert [round for round, plan in enumerate(plans) if plan.aggregate] == list(range(interval - 1, 10, interval))
    assert all(plan.replace(aggregate=False) == TWO_SERVERS for plan in plans)
    assert not isinstance(planner, StatefulPlanner)


def test_static_planner_refuses():
    """An interval below one round is an error."""
    with pytest.raises(InvalidProblemError, match="interval = 0: expected an integer >= 1"):
        StaticPlanner(TWO_SERVERS, 0)


class Links:
    """Uplinks that double in every round; that of the last entry is not measured."""

    def rates(self, round: int, plan: RoundPlan) -> dict[str, Any]:
        rates = 8e3 * 2**round * (1.0 + plan.client)
        return {"uplink_bps": np.where(np.arange(len(plan)) == len(plan) - 1, np.nan, rates)}


def test_link_budget_is_what_the_uplink_carries_in_a_slot():
    """By hand, rate * slot / 8, never above the budget that is there, and no limit where no rate is known."""
    planner = LinkBudget(StaticPlanner(RoundPlan(client=[0, 2, 1], budget_bytes=[np.inf, 100.0, 70.0])), Links(), 0.05)
    assert planner.plan(0).budget_bytes.tolist() == [50.0, 100.0, 70.0]
    assert planner.plan(1).budget_bytes.tolist() == [100.0, 100.0, 70.0]
    assert planner.plan(1).replace(budget_bytes=np.inf) == RoundPlan(client=[0, 2, 1])
    assert LinkBudget(StaticPlanner(RoundPlan(client=[])), Links(), 1.0).plan(0) == RoundPlan(client=[])
    for slot in (0, -1.0, np.nan, np.inf):
        with pytest.raises(InvalidProblemError, match="slot_s = "):
            LinkBudget(planner, Links(), slot)


def test_link_budget_remembers_for_the_planner_inside():
    """Feedback reaches the other planner, and its memory is that of the whole."""

    class Counting:
        seen = 0

        def plan(self, round: int, feedback: Feedback | None) -> RoundPlan:
            self.seen += feedback is not None
            return RoundPlan(client=[0])

        def state(self) -> dict[str, Any]:
            return {"seen": np.array(self.seen)}

        def restore(self, state: dict[str, Any]) -> None:
            self.seen = int(state["seen"])

    planner = LinkBudget(inside := Counting(), Links(), 1.0)
    assert isinstance(planner, StatefulPlanner)
    planner.plan(0, Feedback(round=0, plan=RoundPlan(client=[0]), seconds=1.0))
    assert inside.seen == 1
    other = LinkBudget(Counting(), Links(), 1.0)
    other.restore(planner.state())
    assert other.inner.seen == 1
    assert LinkBudget(StaticPlanner(TWO_SERVERS), Links(), 1.0).state() == {}


def test_schedule_plays_back():
    """A schedule gives the plans it holds and names the round that it does not have."""
    schedule = Schedule([TWO_SERVERS, RoundPlan(client=[])])
    assert schedule.plan(0) == TWO_SERVERS
    assert len(schedule.plan(1)) == 0
    for round in (2, -1):
        with pytest.raises(EdgeOptError, match=f"round {round}: the schedule has 2 rounds"):
            schedule.plan(round)


# --- files --------------------------------------------------------------------------------------------------------


@st.composite
def round_plans(draw: st.DrawFn) -> RoundPlan:
    pairs = draw(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2)), unique=True, max_size=5))
    columns = [draw(st.lists(st.integers(1, 2**31 - 1), min_size=len(pairs), max_size=len(pairs))) for _ in range(3)]
    return RoundPlan(
        client=[c for c, _ in pairs], server=[s for _, s in pairs], batch_size=columns[0], cut_layer=columns[1],
        local_steps=columns[2], rank=columns[0], budget_bytes=[b / 7 for b in columns[1]] if pairs else [],
        aggregate=draw(st.booleans()),
    )  # fmt: skip


@pytest.mark.parametrize("suffix", [".json", ".npz"])
@settings(max_examples=25)
@given(plans=st.lists(round_plans(), max_size=4), data=st.data())
def test_files_round_trip(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, plans: list[RoundPlan], data: st.DataObject
):
    """Whatever the rounds are, empty and repeated ones too, a schedule comes back equal."""
    if plans:
        plans += [plans[i] for i in data.draw(st.lists(st.integers(0, len(plans) - 1), max_size=4))]
    path = tmp_path_factory.mktemp("schedule") / f"s{suffix}"
    Schedule(plans).save(path)
    assert list(Schedule.load(path).rounds) == plans


def test_equal_rounds_are_written_once(tmp_path: Path):
    """A thousand rounds of a static plan take two plans in the file, and come back as two objects."""
    planner = StaticPlanner(RoundPlan(client=np.arange(1000), batch_size=8), 10)
    Schedule([planner.plan(round) for round in range(1000)]).save(tmp_path / "s.json")
    document = json.loads((tmp_path / "s.json").read_text())
    assert len(document["arrays"]["client"]) == 2000
    loaded = Schedule.load(tmp_path / "s.json")
    assert len({id(plan) for plan in loaded.rounds}) == 2
    assert [plan.aggregate for plan in loaded.rounds] == [(round + 1) % 10 == 0 for round in range(1000)]


def test_files_of_the_first_version(tmp_path: Path):
    """A file from before the later columns is read, and leaves them open."""
    path = tmp_path / "s.json"
    late = ("local_epochs", "budget_bytes", "rank", "experts")
    plan = TWO_SERVERS.replace(local_epochs=0, budget_bytes=np.inf, rank=0, experts=0)
    Schedule([plan]).save(path)
    document = json.loads(path.read_text())
    document["schema_version"] = 1
    document["arrays"] = {name: value for name, value in document["arrays"].items() if name not in late}
    path.write_text(json.dumps(document))
    assert Schedule.load(path).plan(0) == plan


def _set(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["arrays"].update({name: value})


DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "kind": (lambda d: d.update(kind="expert-caching"), "kind = 'expert-caching': expected 'schedule'"),
    "version": (lambda d: d.update(schema_version=3), "schema_version = 3: expected an integer from 1 to 2"),
    "no version": (lambda d: d.update(schema_version=True), "schema_version = True: expected an integer from 1 to 2"),
    "late": (lambda d: d["arrays"].pop("rank"), "rank: array is missing"),
    "missing": (lambda d: d["arrays"].pop("server"), "server: array is missing"),
    "short": (_set("server", [0]), r"server: expected shape \[3\], got \[1\]"),
    "round": (_set("plan_of_round", [0, 1]), r"plan_of_round\[1\] = 1: expected an integer from 0 to 0"),
    "indptr": (_set("indptr", [0, 2]), "indptr: expected starts ascending from 0 to 3"),
    "descending": (_set("indptr", [0, 3, 1, 3]), "indptr: expected starts ascending from 0 to 3"),
    "negative": (_set("batch_size", [1, -1, 1]), r"batch_size\[1\] = -1"),
    "budget": (_set("budget_bytes", [1, -1, 1]), r"budget_bytes\[1\] = -1.0"),
    "huge": (_set("cut_layer", [1, 2**40, 1]), r"cut_layer\[1\] = 1099511627776"),
    "text": (_set("client", ["a", "b", "c"]), "client: not a rectangular array of numbers"),
    "flag": (_set("aggregate", [1]), "aggregate: expected booleans"),
    "twice": (_set("server", [1, 1, 1]), "server 1 has it twice"),
    "nothing": (_set("indptr", []), "indptr: expected starts"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files(tmp_path: Path, damage: str):
    """A file that is no schedule, or holds impossible numbers, is an error that starts with its path."""
    path = tmp_path / "s.json"
    Schedule([TWO_SERVERS]).save(path)
    document = json.loads(path.read_text())
    change, message = DAMAGES[damage]
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(InvalidFileError, match=message) as error:
        Schedule.load(path)
    assert str(error.value).startswith(str(path))


# --- feedback -----------------------------------------------------------------------------------------------------


def test_feedback_defaults():
    """What is not given counts as not measured, as arrived and as free of conflict."""
    feedback = Feedback(round=0, plan=TWO_SERVERS, seconds=2.5)
    assert feedback.completed.tolist() == [True] * 3
    assert feedback.conflict.tolist() == [False] * 3
    for name in MEASURED:
        assert np.isnan(getattr(feedback, name)).tolist() == [True] * 3


def test_feedback_with_gaps():
    """Some clients measured, others not; the arrays are copies."""
    rates = np.array([1e6, np.nan, 2e6])
    feedback = Feedback(round=1, plan=TWO_SERVERS, seconds=0.0, uplink_bps=rates, completed=[True, False, True])
    rates[0] = 7.0
    np.testing.assert_array_equal(feedback.uplink_bps, [1e6, np.nan, 2e6])
    with pytest.raises(ValueError, match="read-only"):
        feedback.uplink_bps[0] = 1.0


def test_a_server_sees_its_own():
    """A server's feedback is the same whatever happens at the others, the length of the whole round included."""
    estimate = Estimate(np.ones(1), np.ones(1), np.ones(1))
    constants = ConvergenceEstimate(
        gradient_variance=estimate, gradient_second_moment=estimate, smoothness=None, confidence=0.95
    )
    quiet = Feedback(
        round=4, plan=TWO_SERVERS, seconds=3.0, client_seconds=[9.0, 1.0, 3.0], conflict=[True, False, True],
        completed=[False, True, False], uplink_bps=[1.0, 2.0, 3.0], client_peak_bytes=[7.0, 5.0, 6.0],
    )  # fmt: skip
    busy = Feedback(
        round=4, plan=TWO_SERVERS.replace(client=[2, 0, 3]), seconds=8.0, client_seconds=[8.0, 1.0, 3.0],
        conflict=[False, False, True], completed=[True, True, False], uplink_bps=[9.0, 2.0, 3.0], constants=constants,
        client_peak_bytes=[8.0, 5.0, 6.0],
    )  # fmt: skip
    one, two = quiet.of_server(1), busy.of_server(1)
    assert one.plan == two.plan == TWO_SERVERS.of_server(1)
    assert one.seconds == two.seconds == 3.0
    for name in ("completed", "conflict", *MEASURED):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert two.constants is None
    assert quiet.of_server(5).seconds == 0.0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"round": -1}, "round = -1: expected an integer >= 0"),
        ({"seconds": np.nan}, "seconds = nan"),
        ({"seconds": -1.0}, "seconds = -1.0: expected a non-negative number"),
        ({"uplink_bps": [1.0, 0.0, 1.0]}, r"uplink_bps\[1\] = 0.0: expected a positive number \(bit/s\)"),
        ({"device_flops": [1.0, np.inf, 1.0]}, r"device_flops\[1\] = inf"),
        ({"client_peak_bytes": [1.0, 0.0, 1.0]}, r"client_peak_bytes\[1\] = 0.0: expected a positive number \(byte\)"),
        ({"client_seconds": [1.0]}, r"client_seconds: expected shape \[3\], got \[1\]"),
        ({"completed": [1, 1, 0]}, "completed: expected booleans"),
        ({"downlink_bps": ["a"] * 3}, r"downlink_bps\[0\] = 'a': expected a positive number"),
    ],
)
def test_bad_feedback(fields: dict[str, Any], message: str):
    """Errors name field, index, value and what was expected."""
    with pytest.raises(InvalidProblemError, match=message):
        Feedback(**{"round": 0, "plan": TWO_SERVERS, "seconds": 1.0} | fields)

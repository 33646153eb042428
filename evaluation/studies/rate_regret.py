"""What not knowing the future of links costs: planners of client selection on rate traces, beside one that knows it.

``edgeopt study rate-regret --out out/rate-regret``; on a trace of one's own ``--tasks file --set trace=rates.npz``

Forty clients hold an update each; in every round K of them compute and send one to the server, and the round lasts until
the slowest has. What they send follows a rate trace in virtual time (`EdgeTiming`). Planners are told what the rounds before
have measured of the clients that took part, ``probing`` the rates of all at the start of the round, and ``clairvoyant`` the
trace. Regret is the time that a planner needs for all rounds beyond what ``clairvoyant`` needs.

``clairvoyant`` picks in each round those who are done first, which is best for the time of all rounds, and not just of the
round: who begins to compute and send later is never done earlier, whatever the trace. So if rounds 1 to r end no later
than under some other picks, the K-th of all clients to be done in round r + 1, who ends it, is no later either.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.evaluation.compare.rows import Row
from edgeopt.evaluation.studies.claims import Always, Claim, Difference, Level
from edgeopt.evaluation.studies.study import Found, Picture, Study, StudyCell
from edgeopt.evaluation.studies.tables import plus_minus
from edgeopt.problems import ClientSelection
from edgeopt.problems.client_selection.replay import jain_index
from edgeopt.rng import stream
from edgeopt.schedule import Feedback, Planner, RoundPlan
from edgeopt.series import KINDS, TimeSeries
from edgeopt.solvers.client_selection import Fastest, PowerOfChoice, RandomPicks, RoundRobin
from edgeopt.solvers.client_selection.past_planner import PastPlanner
from edgeopt.training.costs.timing import EdgeTiming, Traffic
from edgeopt.training.messages import CATEGORIES

PAST: dict[str, tuple[Any, str]] = {
    "ageing": (Fastest(), "ageing"),
    "last": (Fastest(), "last"),
    "mean": (Fastest(), "mean"),
    "optimistic": (Fastest(), "optimistic"),
    "power-of-choice": (PowerOfChoice(), "last"),
    "round-robin": (RoundRobin(), "last"),
    "random": (RandomPicks(), "last"),
}
"""Planners that know the past: a solver of client selection, and how it forecasts."""
PROBING, CLAIRVOYANT = "probing", "clairvoyant"
FILE = "file"
COMPUTE_S = (0.1, 1.0)  # range of the clients' seconds of work


@dataclass(frozen=True, slots=True)
class Setting:
    """What all runs have in common.

    Parameters
    ----------
    clients, picks, rounds : sizes; on a trace of one's own, its columns are the clients.
    megabits : of an update.
    duration_s : of a random trace, which then begins again.
    trace : file of the task ``file``, as `TimeSeries.save` wrote it; the seed decides which second is the first.
    """

    clients: int = 40
    picks: int = 5
    rounds: int = 200
    megabits: float = 20.0
    duration_s: float = 1800.0
    trace: str = ""

    def timing(self, task: str, seed: int) -> EdgeTiming:
        """Return the clients and their links, as they are from the start of the run on."""
        if task == FILE:
            rates = TimeSeries.load(self.trace, "rate")
            start = float(stream(seed, "start").uniform(0, rates.period_s.max()))
        else:
            rates = TimeSeries.random(task, clients=self.clients, duration_s=self.duration_s, seed=seed)
            start = 0.0
        compute = stream(seed, "compute").uniform(*COMPUTE_S, rates.num_columns)
        unused: Any = 1.0
        return EdgeTiming(
            device_flops=1 / compute, uplink_bps=unused, downlink_bps=unused, fed_uplink_bps=unused, fed_downlink_bps=unused,
            server_flops=1.0, server_fed_uplink_bps=1.0, server_fed_downlink_bps=1.0, uplink=rates, now_s=start,
        )  # fmt: skip


def update_seconds(timing: EdgeTiming, bits: float, *, future: bool) -> NDArray[np.float64]:
    """Return float64 [N], what an update of each client takes from now on, by the trace or by the rates of this moment."""
    rates, work = timing.uplink, 1 / timing.device_flops
    assert rates is not None
    if future:
        return np.asarray(work + rates.seconds(bits, timing.now_s + work))
    now = rates.at(timing.now_s)
    return np.asarray(work + np.divide(bits, now, out=np.full_like(now, np.inf), where=now > 0))


@dataclass(frozen=True, slots=True)
class Knowing:
    """A planner that knows more than the past: it picks who is done first.

    Parameters
    ----------
    timing : the links; it has the trace.
    bits : of an update.
    picks : K.
    future : whether it knows the trace, or only the rates at the start of each round.
    """

    timing: EdgeTiming
    bits: float
    picks: int
    future: bool

    def plan(self, round: int, feedback: Feedback | None = None) -> RoundPlan:
        """Return the plan of a round."""
        now = self.timing if feedback is None else self.timing.at(feedback.now_s)
        seconds = update_seconds(now, self.bits, future=self.future)
        return RoundPlan(client=np.argsort(seconds, kind="stable")[: self.picks].astype(np.int32))


def planner_of(variant: str, timing: EdgeTiming, setting: Setting, seed: int) -> Planner:
    """Return the planner of a name."""
    if variant in (PROBING, CLAIRVOYANT):
        return Knowing(timing, 1e6 * setting.megabits, setting.picks, variant == CLAIRVOYANT)
    solver, rule = PAST[variant]
    fields: dict[str, Any] = {"picks": setting.picks, "compute_s": 1.0, "rate_bps": 1.0}
    coverage = np.ones((1, timing.num_clients), bool)
    problem = ClientSelection(coverage=coverage, payload_bits=1.0, timeout_s=1.0, rounds=setting.rounds, **fields)
    return PastPlanner(problem, [solver.policy(0, seed)], rule)


def play(planner: Planner, timing: EdgeTiming, rounds: int, bits: float) -> tuple[list[float], NDArray[np.int64]]:
    """Return when each round ends, in seconds from the start, and how often each client was picked."""
    start, feedback, ends = timing.now_s, None, []
    picked = np.zeros(timing.num_clients, np.int64)
    for number in range(rounds):
        plan = planner.plan(number, feedback)
        now = timing if feedback is None else timing.at(feedback.now_s)
        count = len(plan)
        up = np.zeros((count, len(CATEGORIES)), np.int64)
        up[:, CATEGORIES.index("weights")] = round(bits / 8)
        traffic = Traffic(
            entry=np.arange(count), down_bytes=np.zeros_like(up), up_bytes=up, flops=np.ones(count), served=np.arange(count),
            server_flops=np.zeros(count), lost=np.zeros(count, bool),
        )  # fmt: skip
        phase = now.phase(number, plan, "update", 0.0, traffic)
        measured: Any = now.rates(number, plan)
        feedback = Feedback(
            round=number, plan=plan, seconds=phase.seconds, client_seconds=phase.client_s, now_s=now.now_s + phase.seconds,
            **measured,
        )  # fmt: skip
        picked[plan.client] += 1
        ends.append(feedback.now_s - start)
    return ends, picked


def run(cell: StudyCell[Setting]) -> Row:
    """Play a planner, and the one that knows the future, on the same trace."""
    setting, bits = cell.setting, 1e6 * cell.setting.megabits
    timing = setting.timing(cell.task, cell.seed)
    ends, picked = play(planner_of(cell.variant, timing, setting, cell.seed), timing, setting.rounds, bits)
    best, _ = play(planner_of(CLAIRVOYANT, timing, setting, cell.seed), timing, setting.rounds, bits)
    half = setting.rounds // 2
    later, best_later = ends[-1] - ends[half - 1], best[-1] - best[half - 1]
    return {
        "seconds": ends[-1],
        "best_seconds": best[-1],
        "regret_s": ends[-1] - best[-1],
        "regret": ends[-1] / best[-1] - 1,
        "later_regret": later / best_later - 1,
        "jain_index": float(jain_index(picked)),
        "regret_curve": [float(a - b) for a, b in zip(ends, best, strict=True)],
    }


def tables(found: Found[Setting]) -> dict[str, list[Row]]:
    """Return regret of each planner on each kind of trace, means over seeds, and every run."""
    summary: list[Row] = []
    for variant in found.variants():
        row: Row = {"planner": variant}
        for task in found.tasks:
            if own := found.of(variant=variant, task=task):
                row[f"{task}, %"] = plus_minus([100 * one["regret"] for one in own])
        row["Jain"] = plus_minus([one["jain_index"] for one in found.of(variant=variant)])
        summary.append(row)
    hidden = ("regret_curve",)
    runs = [{name: value for name, value in row.items() if name not in hidden} for row in found.rows]
    return {"summary": summary, "runs": runs}


def pictures(found: Found[Setting]) -> dict[str, Picture]:
    """Return the regret of each planner against rounds, for each kind of trace."""
    return {
        task: Picture(f"Regret against rounds, {task}: mean over seeds", partial(draw, found, task))
        for task in found.tasks
        if found.of(task=task)
    }


def draw(found: Found[Setting], task: str) -> Any:
    """Draw mean regret against rounds, of those who have any."""
    from edgeopt.evaluation.plots.style import by_height, curve_styles, legend_outside, new_axes, plain_log_ticks

    ax, drawn = new_axes(), {}
    for variant, style in curve_styles(found.variants(task)).items():
        curves = [row["regret_curve"] for row in found.of(variant=variant, task=task)]
        mean = np.mean(curves, axis=0)
        if not (mean > 0).any():
            continue
        (line,) = ax.plot(range(1, mean.size + 1), mean, label=variant, **style)
        drawn[variant] = float(mean[-1]), line
    ax.set_yscale("log", nonpositive="mask")
    plain_log_ticks(ax.yaxis)
    ax.set_xlabel("rounds")
    ax.set_ylabel("regret, s")
    legend_outside(ax, by_height(drawn))
    return ax


def _regret(task: str, first: str, second: str) -> Difference:
    return Difference(metric="regret", first=first, second=second, below=0.0, task=task)


CLAIMS = (
    Claim(
        text="Nobody is faster than the planner that knows the future",
        source="ours",
        test=Always(metric="regret", variants=(*PAST, PROBING), above=-1e-9),
    ),
    Claim(
        text="On steady rates there is next to nothing to regret once everybody was tried: less than 1 % in the second half",
        source="ours",
        test=Level(metric="later_regret", variant="last", below=0.01, task="steady"),
    ),
    Claim(
        text="Where rates fade anew every second, the mean of the past is a better forecast than the last value",
        source="ours",
        test=_regret("fading", "mean", "last"),
    ),
    Claim(
        text="Where rates walk, the last value is a better forecast than the mean",
        source="ours",
        test=_regret("walk", "last", "mean"),
    ),
    *(
        Claim(
            text=f"Where rates walk, a last value that comes back to the mean as it ages is better than the {name} alone",
            source="ours",
            test=_regret("walk", "ageing", name),
        )
        for name in ("last", "mean")
    ),
    Claim(
        text="Where rates walk, optimism pays: less regret than by the mean",
        source="ours",
        test=_regret("walk", "optimistic", "mean"),
    ),
    Claim(
        text="Where rates walk, knowing the present of all is nearly as good as knowing the future: less than 5 % of regret",
        source="ours",
        test=Level(metric="regret", variant=PROBING, below=0.05, task="walk"),
    ),
    Claim(
        text="In tunnels, measuring all links before a round leaves less regret than any memory: less than ageing",
        source="ours",
        test=_regret("tunnels", PROBING, "ageing"),
    ),
    *(
        Claim(
            text=f"Whoever looks at the past is better off than random picks: {name} on all traces",
            source="ours",
            test=Difference(metric="regret", first=name, second="random", below=0.0),
        )
        for name in ("last", "mean", "optimistic", "ageing")
    ),
)

STUDY = Study(
    name="rate-regret",
    title="What not knowing the future of links costs planners of client selection",
    system="ageing",
    baselines=tuple(name for name in PAST if name != "ageing"),
    ablations=(PROBING, CLAIRVOYANT),
    tasks=KINDS,
    on_demand=(FILE,),
    seeds=10,
    full=Setting(),
    quick=Setting(clients=10, picks=2, rounds=20, duration_s=200.0),
    measure=run,
    claims=CLAIMS,
    tables=tables,
    pictures=pictures,
)

"""LEED: whether agents that learn together, each by itself, learn sooner from demonstrations of instructions carried out.

``edgeopt study leed --jobs 2 --out out/leed``

Agents on a grid of roads (4, 12, 24 and 48), agents that cover landmarks (simple_spread), and servers that pick clients. Beside
the system: independent PPO (``ippo``), the same with critics that see all (``central``), cloning of demonstrations (``clone``),
and cloning before independent PPO (``clone-then-ppo``). Ablations: other weights of the expert loss (``fixed``, ``return``,
``distance``), and planners that err, under the falling weight and under a fixed one.
"""

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from edgeopt.evaluation.compare.rows import Row
from edgeopt.evaluation.studies.claims import Claim, Difference, Ratio
from edgeopt.evaluation.studies.study import Found, Picture, Study, StudyCell, finished
from edgeopt.evaluation.studies.tables import plus_minus
from edgeopt.problems import ClientSelection
from edgeopt.rl import Demonstrations, Leed, NoisyPlanner, ScriptedPlanner, carried_out, learn_together, play
from edgeopt.rl.environments import Routing, Spread, Team, grid
from edgeopt.rng import stream
from edgeopt.solvers.client_selection.team import SelectionTeam

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROUTES = {"route-4": 6, "route-12": 7, "route-24": 7, "route-48": 8}
"""Crossings along a side of the grid, by task."""
TASKS = (*ROUTES, "spread-3", "selection-5")
SYSTEM = "leed"
BASELINES = ("ippo", "central", "clone", "clone-then-ppo")
ABLATIONS = ("fixed", "return", "distance", "noise-0.15", "noise-0.4", "fixed-noise-0.4")
NOISE = {"noise-0.15": 0.15, "noise-0.4": 0.4, "fixed-noise-0.4": 0.4}
WINDOW = 5
"""Updates whose returns are averaged to say whether a share of the planner's has been reached."""
SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Setting:
    """What all runs have in common.

    Parameters
    ----------
    updates : of every run.
    episodes : played in an update; four times as many on the plane.
    held_out : episodes on which the planner and untrained agents are judged.
    """

    updates: int = 40
    episodes: int = 8
    held_out: int = 64


def team_of(task: str) -> Team:
    """Return the environment of a task; seeds share it, and draw weights and episodes of their own."""
    kind, _, count = task.partition("-")
    if kind == "route":
        return Routing(grid(ROUTES[task]), int(count), seed=1)
    if kind == "spread":
        return Spread(int(count))
    return SelectionTeam(ClientSelection.random(num_servers=int(count), rounds=25, seed=1))


def learner_of(task: str, variant: str, setting: Setting) -> Leed:
    """Return how agents learn; what an environment asks for is the same in all variants."""
    kind = task.partition("-")[0]
    base = Leed(
        episodes=setting.episodes, hidden=32, learning_rate=3e-3, imitation=1.0, decay=max(1, setting.updates // 2)
    )
    if kind == "spread":  # every episode has other landmarks: more of them, and new demonstrations in every update
        base = dataclasses.replace(base, episodes=4 * setting.episodes, hidden=64, gather_every=1)
    elif kind == "selection":
        base = dataclasses.replace(base, hidden=16, learning_rate=1e-2, discount=0.9)
    changes: dict[str, dict[str, object]] = {
        "ippo": {"weight": "none"},
        "central": {"weight": "none", "critic": "all"},
        "clone": {"weight": "none", "cloning": setting.updates},
        "clone-then-ppo": {"weight": "none", "cloning": max(1, setting.updates // 5)},
        "fixed": {"weight": "fixed"},
        "fixed-noise-0.4": {"weight": "fixed"},
        "return": {"weight": "return"},
        "distance": {"weight": "distance"},
    }
    return dataclasses.replace(base, **changes.get(variant, {}))  # type: ignore[arg-type]


def run(cell: StudyCell[Setting]) -> Row:
    """Learn, and say how soon and how much."""
    setting, team = cell.setting, team_of(cell.task)
    learner = learner_of(cell.task, cell.variant, setting)
    source = NoisyPlanner(NOISE[cell.variant]) if cell.variant in NOISE else ScriptedPlanner()
    history = finished(learn_together(team, learner, Demonstrations(source), updates=setting.updates, seed=cell.seed))
    held_out = [int(seed) for seed in stream(0, "held out").integers(2**62, size=setting.held_out)]
    planner = carried_out(team, ScriptedPlanner(), held_out)[0].returns.mean()
    noise, start = stream(0, "untrained"), learner.start(team, cell.seed)
    parameters = start["parameters"]
    untrained = play(
        team, held_out,
        lambda seen, step: learner.act(team, parameters, seen, noise.random(seen.allowed.shape, np.float32)),  # type: ignore[arg-type]
    ).returns.mean()  # fmt: skip
    returns = history.returns.mean(axis=1)
    share = (returns - untrained) / (planner - untrained)
    last = share[-max(1, setting.updates // 5) :]
    return {
        "planner": float(planner),
        "untrained": float(untrained),
        "return": float(returns[-len(last) :].mean()),
        "final": float(last.mean()),
        "on_the_way": float(share.mean()),
        "updates": reached(share, own=cell.variant in (SYSTEM, *ABLATIONS)),
        "curve": [
            {"update": update + 1, "share": float(value), "weight": row["weight"]}
            for update, (value, row) in enumerate(zip(share, history.rows, strict=True))
        ],
    }


def reached(share: np.ndarray, *, own: bool) -> int | None:
    """Return the update in the middle of the first `WINDOW` whose mean share of the planner's return is at least `SHARE`.

    Where there are none: None for the system and its ablations, which then show nothing; all updates for a baseline, which is in
    its favour.
    """
    mean = np.convolve(share, np.ones(WINDOW) / WINDOW, "valid") if len(share) >= WINDOW else share[:0]
    first = np.flatnonzero(mean >= SHARE)
    if first.size:
        return int(first[0]) + 1 + WINDOW // 2
    return None if own else len(share)


def tables(found: Found[Setting]) -> dict[str, list[Row]]:
    """Return a row per task and variant, means over seeds with half of their 95 % intervals; and every run."""
    rows: list[Row] = []
    for task in found.tasks:
        for variant in found.variants(task):
            own = found.of(task=task, variant=variant)
            row: Row = {"task": task, "variant": variant}
            for name in ("updates", "final", "on_the_way", "return", "planner", "untrained"):
                row[name] = plus_minus([run[name] for run in own if run[name] is not None])
            there = sum(max(point["share"] for point in run["curve"]) >= SHARE for run in own)
            rows.append(row | {"runs that touched 80 %": f"{there} of {len(own)}"})
    runs = [{name: value for name, value in row.items() if name != "curve"} for row in found.rows]
    return {"summary": rows, "runs": runs}


def pictures(found: Found[Setting]) -> dict[str, Picture]:
    """Return a picture for each task: share of the planner's return against updates."""
    return {
        f"{task}-share": Picture(f"Share of the planner's return on {task}", partial(draw, found, task))
        for task in found.tasks
        if found.variants(task)
    }


def draw(found: Found[Setting], task: str) -> "Axes":
    """Draw means over seeds of every variant."""
    from edgeopt.evaluation.plots.training.curves import plot_training_curves

    curves = {
        variant: [
            [{"seconds": point["update"], "share": point["share"]} for point in run["curve"]]
            for run in found.of(task=task, variant=variant)
        ]
        for variant in found.variants(task)
    }
    ax = plot_training_curves(curves, y="share")
    ax.set_xlabel("updates")
    ax.set_ylabel("share of the way from untrained to planner")
    return ax


def _sooner(task: str, other: str, below: float, text: str) -> Claim:
    return Claim(
        text=f"{text} on {task}",
        source="reported",
        test=Ratio(metric="updates", first=SYSTEM, second=other, below=below, task=task),
    )


def _above(
    text: str, first: str, second: str, above: float = 0.0, task: str | None = None, metric: str = "final"
) -> Claim:
    return Claim(
        text=text, source="ours", test=Difference(metric=metric, first=first, second=second, above=above, task=task)
    )


CLAIMS = (
    *(_sooner(task, "ippo", 0.5, "LEED reaches 80 % of the planner's return in at most half the updates of independent PPO") for task in ROUTES),
    *(_sooner(task, "central", 1.0, "LEED reaches 80 % of the planner's return before PPO with critics that see all") for task in ROUTES),
    *(_above(f"In the end LEED is at most 2 points below independent PPO on {task}", SYSTEM, "ippo", -0.02, task) for task in TASKS),
    *(_above(f"In the end LEED is above cloning on {task}", SYSTEM, "clone", 0.0, task) for task in TASKS),
    *(_above(f"Along the way LEED is above independent PPO on {task}", SYSTEM, "ippo", 0.0, task, "on_the_way") for task in ("spread-3", "selection-5")),
    *(_above(f"Along the way LEED is above cloning before PPO on {task}", SYSTEM, "clone-then-ppo", 0.0, task, "on_the_way") for task in TASKS),
    _above("A planner that errs in 15 % of its instructions costs at most 3 points in the end on route-12", "noise-0.15", SYSTEM, -0.03, "route-12"),
    _above("A planner that errs in 40 % of its instructions costs at most 5 points in the end on route-12", "noise-0.4", SYSTEM, -0.05, "route-12"),
    _above("With 40 % errors, a weight that falls ends above a fixed one on route-12", "noise-0.4", "fixed-noise-0.4", 0.0, "route-12"),
    _above("A weight by the distance of trajectories learns more along the way than one that falls by itself on route-24", "distance", SYSTEM, 0.0, "route-24", "on_the_way"),
    _above("A weight by returns learns more along the way than one that falls by itself on route-24", "return", SYSTEM, 0.0, "route-24", "on_the_way"),
)  # fmt: skip

STUDY = Study(
    name="leed",
    title="Demonstrations of instructions for agents that learn together, each by itself",
    system=SYSTEM,
    baselines=BASELINES,
    ablations=ABLATIONS,
    tasks=TASKS,
    seeds=5,
    full=Setting(),
    quick=Setting(updates=6, episodes=2, held_out=8),
    quick_tasks=("route-4",),
    measure=run,
    claims=CLAIMS,
    tables=tables,
    pictures=pictures,
)

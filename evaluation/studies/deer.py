"""DEER: learning from replay in worlds that change in mid-run.

``edgeopt study deer --jobs 2 --out out/deer``

Agents learn with one and the same replay buffer, an even one, until they are good at their task. Then the buffer is
exchanged for that of the variant, which starts with all transitions so far, and at a step that nobody is told of, each
agent's world changes: the laws of CartPole, Acrobot or Pendulum by 50, 100 or 200 %, the laws in a part of the state
space only, the reward only; in client selection for one server, the habit of its neighbour, or which of its clients are
busy. A cell is a few agents, each with a change of its own; all variants of a seed share agents, changes and chance.

``level`` is the mean return of the episodes of an agent's last steps before the change, ``area`` that of all steps after
it, as a share of what the agents had gained over acting at random before: 1 is as good as before the change, 0 as bad
as at the very beginning. ``drop`` is how far the running mean falls, in the same unit; ``recovery`` are the steps until 90 %
of that is made up for, all that there are where it never is. ``found``: the share of agents whose change is found;
``delay``: the steps that takes; ``false_alarms`` before the change and ``later_alarms`` after it was found, in 1,000
steps.
"""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.evaluation.compare.rows import Row
from edgeopt.evaluation.studies.claims import Claim, Difference, Level, Ordering, Source
from edgeopt.evaluation.studies.study import Found, Picture, Study, StudyCell, finished
from edgeopt.evaluation.studies.tables import plus_minus
from edgeopt.rl import (
    ChangeDetector,
    Deer,
    DeerReplay,
    Dqn,
    Learner,
    PrioritisedReplay,
    Replay,
    Sac,
    TrueChange,
    learn,
)
from edgeopt.rl.environments import (
    Acrobot,
    CartPole,
    Change,
    Environment,
    Pendulum,
    SelectionChange,
    ServerBesideNeighbour,
)
from edgeopt.rl.loop import returns_of
from edgeopt.rng import stream

SHIFTS = {"50": 1.5, "100": 2.0, "200": 3.0}
"""By what a change of so many per cent multiplies."""
BASELINES = ("uniform", "per", "recency", "flush-true", "flush-detected")
ABLATIONS = ("true-change", "no-fork", "no-doe", "no-cap")
TASKS = (
    *(f"cart-pole-{shift}" for shift in SHIFTS),
    "cart-pole-part",
    "cart-pole-reward",
    "pendulum-100",
    "selection-habit",
    "selection-busy",
)
ON_DEMAND = (*(f"acrobot-{shift}" for shift in SHIFTS), "pendulum-50", "pendulum-200")
MEASURED = ("area", "drop", "recovery", "recovered", "found", "delay", "false_alarms", "later_alarms")
_DETECTING = ("deer", "flush-detected", "no-fork", "no-doe", "no-cap")
_BIN = 100  # steps of a point of a curve
_RUNNING = 200  # steps of a running mean
_LEVEL = 500  # steps before the change whose mean is the level
_CAPACITY = 20_000


@dataclass(frozen=True, slots=True)
class Setting:
    """What all runs have in common.

    Parameters
    ----------
    agents : of a cell.
    start : steps until the buffers are exchanged, as a share of those of the task.
    quiet : the least steps from then to a change, and the most.
    after : steps after a change.
    batch, every : transitions of an update, and steps between two updates.
    window : of the recency baseline.
    detector_window, block : of the detector.
    """

    agents: int = 3
    start: float = 1.0
    quiet: tuple[int, int] = (450, 750)
    after: int = 1800
    batch: int = 64
    every: int = 2
    window: int = 1000
    detector_window: int = 200
    block: int = 20


@dataclass(frozen=True, slots=True)
class Base:
    """A task before its change: who learns, for how many steps, with an update in every so many."""

    make: Callable[..., Environment]
    learner: Learner
    steps: int
    every: int


BASES: dict[str, Base] = {
    "cart-pole": Base(CartPole, Dqn(explore_steps=1500), 8000, 2),
    "acrobot": Base(Acrobot, Dqn(explore_steps=3000), 12_000, 2),
    "pendulum": Base(Pendulum, Sac(hidden=(48, 48), learning_rate=2e-3, discount=0.95), 5000, 1),
    "selection": Base(ServerBesideNeighbour, Dqn(discount=0.8, explore_steps=1500), 3000, 2),
}
_CONSTANTS = {
    "cart-pole": ("gravity", "half_length", "force"),
    "acrobot": ("mass",),
    "pendulum": ("gravity", "torque"),  # its mass alone would make it too heavy for its motor
}
"""What a change of the laws multiplies."""
_PART = 2.0  # by what a change of a part of the state space multiplies


def base_of(task: str) -> tuple[str, str]:
    """Return the task before its change, and which change it is."""
    base, kind = task.rsplit("-", 1)
    return base, kind


def environment(task: str, seeds: Sequence[int], at: Sequence[int] | None) -> Environment:
    """Return copies of a task's environment that change at these steps; None is never."""
    base, kind = base_of(task)
    make = BASES[base].make
    if at is None:
        return make(seeds)
    if base == "selection":
        return make(seeds, change=SelectionChange(at=at, habit=kind == "habit", busy=kind == "busy"))
    if kind == "reward":
        return make(seeds, change=Change(at=at, reward=True))
    factor = _PART if kind == "part" else SHIFTS[kind]
    return make(seeds, change=Change(at=at, factors=dict.fromkeys(_CONSTANTS[base], factor), partly=kind == "part"))


def buffer(variant: str, setting: Setting, at: Sequence[int]) -> Replay:
    """Return the replay buffer of a variant."""
    detector = ChangeDetector(window=setting.detector_window, block=setting.block)
    variants: dict[str, Callable[[], Replay]] = {
        "deer": lambda: DeerReplay(_CAPACITY, trigger=detector),
        "uniform": lambda: Replay(_CAPACITY),
        "per": lambda: PrioritisedReplay(_CAPACITY),
        "recency": lambda: Replay(_CAPACITY, window=setting.window),
        "flush-true": lambda: Replay(_CAPACITY, trigger=TrueChange(at)),
        "flush-detected": lambda: Replay(_CAPACITY, trigger=detector),
        "true-change": lambda: DeerReplay(_CAPACITY, trigger=TrueChange(at)),
        "no-fork": lambda: DeerReplay(_CAPACITY, trigger=detector, deer=Deer(fork=False)),
        "no-doe": lambda: DeerReplay(_CAPACITY, trigger=detector, deer=Deer(discrepancy=False)),
        "no-cap": lambda: DeerReplay(_CAPACITY, trigger=detector, deer=Deer(cap_least=1.0)),
    }
    return variants[variant]()


def run(cell: StudyCell[Setting]) -> Row:
    """Let agents go on from a common start with the buffer of a variant, through a change."""
    setting, (base, _) = cell.setting, base_of(cell.task)
    seeds = tuple(1000 * cell.seed + g for g in range(setting.agents))
    steps = round(setting.start * BASES[base].steps)
    rng = stream(cell.seed, "deer", cell.task)
    at = (steps + rng.integers(*setting.quiet, size=setting.agents)).tolist()
    total = steps + setting.quiet[1] + setting.after
    kept = cell.keep(f"{base}-{cell.seed}.safetensors", partial(start, base, seeds, steps, setting))
    replay = buffer(cell.variant, setting, at)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.safetensors"
        shutil.copyfile(kept, path)
        history = finished(
            learn(
                environment(cell.task, seeds, at), BASES[base].learner, replay, steps=total, seeds=seeds,
                batch=setting.batch, learn_every=setting.every, row_every=total, checkpoint=path,
                checkpoint_every=total, resume=True,
            )
        )  # fmt: skip
    found = measured(history.reward, history.ended, at, steps, setting.after)
    if cell.variant in _DETECTING:
        found |= detected(replay.changes, at, steps, total)
    return found


def start(base: str, seeds: Sequence[int], steps: int, setting: Setting, path: Path) -> None:
    """Train the agents that all variants start from, and write them to a file."""
    own = BASES[base]
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        finished(
            learn(
                own.make(seeds), own.learner, Replay(_CAPACITY), steps=steps, seeds=seeds, batch=setting.batch,
                learn_every=own.every, learn_after=min(500, steps), row_every=steps, checkpoint=made,
                checkpoint_every=steps,
            )
        )  # fmt: skip
        made.replace(path)


def measured(reward: NDArray[np.float32], ended: NDArray[np.bool_], at: Sequence[int], steps: int, after: int) -> Row:
    """Return what agents have made of the change: means over agents, and the curve around it.

    Parameters
    ----------
    reward, ended : [T, G], of every step.
    at : step of each agent's change.
    steps : at which the variant took over.
    after : steps that count after a change.
    """
    returns = returns_of(reward, ended)
    levels = [returns[change - min(_LEVEL, change - steps) : change, g].mean() for g, change in enumerate(at)]
    random, level = returns[: max(1, steps // 20)].mean(), np.mean(levels)
    rows: list[Row] = []
    curves = []
    for g, change in enumerate(at):
        gained = (returns[:, g] - random) / max(level - random, 1e-9)
        own = float((levels[g] - random) / max(level - random, 1e-9))
        since = gained[change : change + after]
        smooth = np.convolve(since, np.ones(min(_RUNNING, after)) / min(_RUNNING, after), mode="valid")
        lowest = int(smooth.argmin())
        made_up = np.flatnonzero(smooth[lowest:] >= smooth[lowest] + 0.9 * (own - smooth[lowest]))
        rows.append(
            {
                "level": float(levels[g]),
                "area": float(since.mean()),
                "drop": own - float(smooth[lowest]),
                "recovery": float(lowest + made_up[0] if made_up.size else after),
                "recovered": float(made_up.size > 0),
            }
        )
        before = min(change - steps, _LEVEL) // _BIN * _BIN
        curves.append(gained[change - before : change + after // _BIN * _BIN].reshape(-1, _BIN).mean(axis=1))
    shortest = min(len(curve) for curve in curves)
    mean = np.mean([curve[len(curve) - shortest :] for curve in curves], axis=0)
    first = after // _BIN - shortest
    curve = [{"step": (first + k) * _BIN + _BIN // 2, "gained": float(value)} for k, value in enumerate(mean)]
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]} | {"curve": curve}


def detected(changes: Sequence[tuple[int, int, int]], at: Sequence[int], steps: int, total: int) -> Row:
    """Return how changes were found: means over agents; ``delay`` is None where some agent's never was.

    Parameters
    ----------
    changes : (step, agent, entry that the new world is said to begin with).
    """
    found, delay, false, later = [], [], 0, 0
    for g, change in enumerate(at):
        own = [now for now, agent, _ in changes if agent == g]
        right = [now for now in own if now > change]
        found.append(bool(right))
        delay += [right[0] - change] if right else []
        false += len(own) - len(right)
        later += max(0, len(right) - 1)
    quiet, after = sum(change - steps for change in at), sum(total - change for change in at)
    return {
        "found": float(np.mean(found)),
        "delay": float(np.mean(delay)) if all(found) else None,
        "false_alarms": 1000 * false / quiet,
        "later_alarms": 1000 * later / after,
    }


def tables(found: Found[Setting]) -> dict[str, list[Row]]:
    """Return means over seeds, and every run."""
    summary: list[Row] = []
    for task in found.tasks:
        for variant in found.variants(task):
            own = found.of(task=task, variant=variant)
            numbers = {name: plus_minus([row[name] for row in own if row.get(name) is not None]) for name in MEASURED}
            summary.append({"task": task, "variant": variant, **numbers})
    runs = [{name: value for name, value in row.items() if name != "curve"} for row in found.rows]
    return {"summary": summary, "runs": runs}


def pictures(found: Found[Setting]) -> dict[str, Picture]:
    """Return a picture for each task: returns around the change."""
    return {
        task: Picture(f"Returns on {task} around the change, 1 is as before it", partial(draw, found, task))
        for task in found.tasks
        if found.of(task=task)
    }


def draw(found: Found[Setting], task: str) -> Any:
    """Draw the curves of the variants of a task, medians over seeds; the ablations are left out."""
    from edgeopt.evaluation.plots.training.curves import plot_training_curves

    shown = (STUDY.system, *BASELINES)
    ax = plot_training_curves(
        {
            variant: [
                [{"seconds": point["step"], "gained": point["gained"]} for point in row["curve"]]
                for row in found.of(task=task, variant=variant)
            ]
            for variant in found.variants(task)
            if variant in shown
        },
        y="gained",
    )
    ax.axvline(0, color="0.5", linewidth=1)
    ax.set_xlim(left=min(row["curve"][0]["step"] for row in found.of(task=task)))
    ax.set_xlabel("steps after the change")
    ax.set_ylabel("return, share of that before")
    return ax


def _more(second: str, task: str | None = None, above: float = 0.0, first: str = "deer") -> Difference:
    return Difference(metric="area", first=first, second=second, above=above, task=task)


_BESIDE: tuple[tuple[str, str, Source], ...] = (
    ("uniform", "uniform replay", "reported"),
    ("per", "prioritised replay", "reported"),
    ("recency", "a window of the last 1,000 transitions", "reported"),
    ("flush-detected", "forgetting all that was before the change that its detector finds", "ours"),
)
_CHANGES: tuple[tuple[str, str, Source], ...] = (
    *((f"cart-pole-{shift}", f"CartPole whose laws change by {shift} %", "reported") for shift in SHIFTS),
    ("pendulum-100", "Pendulum whose laws change by 100 %", "reported"),
    ("cart-pole-reward", "CartPole whose reward changes", "ours"),
    ("selection-habit", "client selection whose neighbour changes its habit", "ours"),
    ("selection-busy", "client selection whose busy clients are others", "ours"),
)

CLAIMS = (
    *(
        Claim(
            text=f"Over all tasks, DEER keeps more of the return after a change than {words}",
            source=source,
            test=_more(second),
        )
        for second, words, source in _BESIDE
    ),
    *(
        Claim(text=f"On {words}, DEER keeps more than prioritised replay", source=source, test=_more("per", task))
        for task, words, source in _CHANGES
    ),
    Claim(
        text="Where laws change in a part of the state space only, DEER keeps more than forgetting what was before",
        source="ours",
        test=_more("flush-detected", "cart-pole-part"),
    ),
    Claim(
        text="Over all tasks, DEER is within 0.05 of forgetting at the true change, which knows when that is",
        source="ours",
        test=_more("flush-true", above=-0.05),
    ),
    *(
        Claim(text=f"Over all tasks, {words}", source="ours", test=_more(second))
        for second, words in (
            ("no-fork", "the fork of the critic pays"),
            ("no-doe", "the discrepancy of values pays"),
            ("no-cap", "the cap on what is from before pays"),
        )
    ),
    Claim(
        text="Over all tasks, the detector costs at most 0.05 beside knowing the true change",
        source="ours",
        test=_more("true-change", above=-0.05),
    ),
    Claim(
        text="Over all tasks, forgetting at the true change keeps most, then at the change that is found, then uniform replay",
        source="ours",
        test=Ordering(metric="area", variants=("flush-true", "flush-detected", "uniform")),
    ),
    Claim(
        text="Over all tasks, DEER recovers in fewer steps than prioritised replay",
        source="reported",
        test=Difference(metric="recovery", first="deer", second="per", below=0.0),
    ),
    Claim(
        text="Over all tasks, returns fall less with DEER than with prioritised replay",
        source="reported",
        test=Difference(metric="drop", first="deer", second="per", below=0.0),
    ),
    Claim(
        text="Over all tasks, the detector finds at least nine of ten changes",
        source="ours",
        test=Level(metric="found", variant="deer", above=0.9),
    ),
    *(
        Claim(
            text=f"On {words}, the detector takes fewer than 300 steps",
            source="ours",
            test=Level(metric="delay", variant="deer", below=300.0, task=task),
        )
        for task, words in (
            ("cart-pole-200", "CartPole whose laws change by 200 %"),
            ("selection-habit", "client selection whose neighbour changes its habit"),
        )
    ),
    Claim(
        text="Before the change, the detector errs less often than once in 2,000 steps, over all tasks",
        source="ours",
        test=Level(metric="false_alarms", variant="deer", below=0.5),
    ),
)

STUDY = Study(
    name="deer",
    title="DEER: replay in worlds that change, beside forgetting, recency and priorities",
    system="deer",
    baselines=BASELINES,
    ablations=ABLATIONS,
    tasks=TASKS,
    on_demand=ON_DEMAND,
    full=Setting(),
    quick=Setting(agents=2, start=0.1, quiet=(100, 200), after=300, batch=16, every=4, detector_window=50, block=10),
    quick_tasks=("cart-pole-200", "pendulum-100", "selection-habit"),
    measure=run,
    claims=CLAIMS,
    tables=tables,
    pictures=pictures,
)

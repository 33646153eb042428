"""Several servers train on shared clients: what choosing the clients well is worth, in accuracy.

``edgeopt study client-selection --out out/client-selection``

Five servers with overlapping coverage train a small CNN each on the digits, which sixty clients hold unevenly. In every
round each server picks four clients: at random, the fastest, by beliefs of who is busy or taken (with phases by rule, one
or four), by a coordinator's matching with and without sight of who is busy, or by a learned policy. Conflicts, losses, times and payloads are those of a client-selection
problem built from the model. Each seed has data and chance of its own; policies learn on other episodes than those that
they are used in. The learned policies are kept beside the rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

import edgeopt
from edgeopt import EdgeNetwork, Feedback, RoundPlan
from edgeopt.data import digits
from edgeopt.data.partition import dirichlet
from edgeopt.evaluation.compare.rows import Row
from edgeopt.evaluation.studies.claims import Always, Claim, Difference, Ratio
from edgeopt.evaluation.studies.study import Found, Picture, Study, StudyCell, finished
from edgeopt.evaluation.studies.tables import plus_minus
from edgeopt.models.small import model_for
from edgeopt.problems import ClientSelection, SelectionPlan
from edgeopt.problems.client_selection.scenario import held_out_seeds
from edgeopt.schedule import Planner
from edgeopt.solvers.client_selection import (
    Fastest,
    RandomPicks,
    Reservation,
    RlCrp,
    RlCrpPlain,
    RlNoCrp,
    SelectionPlanner,
    TrainedPolicy,
)
from edgeopt.training import RoundRecord, Sgd, Task, train
from edgeopt.training.algorithms.multi_server import MultiServerFedAvg
from edgeopt.training.costs.selection_timing import SelectionTiming, selection_schedule, update_cost

LEARNERS: dict[str, type[RlCrp]] = {"rl-no-crp": RlNoCrp, "rl-crp-plain": RlCrpPlain, "rl-crp": RlCrp}
ALONE: dict[str, Any] = {"random": RandomPicks(), "fastest": Fastest(), "reservation": Reservation()}
ALONE |= {f"reservation-{phases}": Reservation(phases=phases) for phases in (1, 4)}
COORDINATORS = ("matching", "blind-matching")
BATCH, STEPS, RATE = 8, 3, 0.2  # of local training
DEVICE_FLOPS = (3e8, 3e9)  # small devices for a small model: work and sending take about equally long
EVALUATED_EVERY = 2
COSTS = {
    "seconds": "virtual time, s",
    "server_seconds": "time that a server waits for its own picks, s",
    "megabytes": "sent by clients, MB",
}


@dataclass(frozen=True, slots=True)
class Setting:
    """What all runs have in common.

    Parameters
    ----------
    mode : what a client taken twice means.
    target : accuracy whose time and bytes are reported.
    alpha : of the Dirichlet distribution of labels over clients.
    rounds, servers, clients, picks : sizes.
    iterations, episodes : of learning.
    trainings : of each learner; seeds use them in turn.
    """

    mode: Literal["fail", "share"] = "fail"
    target: float = 0.85
    alpha: float = 0.5
    rounds: int = 100
    servers: int = 5
    clients: int = 60
    picks: int = 4
    iterations: int = 100
    episodes: int = 8
    trainings: int = 1

    def task(self, seed: int) -> Task:
        """Return the digits, spread over the clients, and the model."""
        data = digits(seed)
        shape = tuple(data.train.inputs.shape[1:])
        return Task(
            model=model_for("small-cnn", num_classes=data.train.num_classes, input_shape=shape, width=16, seed=seed),
            train=data.train,
            partition=dirichlet(data.train.labels, self.clients, self.alpha, seed=seed, min_samples=BATCH),
            test=data.test,
            seed=seed,
        )

    def problem(self, task: Task) -> ClientSelection:
        """Return the problem whose updates are those of the task; regimes and fading as in `ClientSelection.random`."""
        cost = update_cost(task, batch_size=BATCH, local_steps=STEPS)
        return ClientSelection.from_network(
            EdgeNetwork.random(self.servers, self.clients, seed=0, device_flops=DEVICE_FLOPS),
            picks=self.picks,
            work_flops=cost.work_flops,
            payload_bits=cost.payload_bits,
            rounds=self.rounds,
            rate_sigma=0.3,
            regime_transition=((0.97, 0.03), (0.06, 0.94)),
            busy_probability=(0.05, 0.75),
            mode=self.mode,
        )


@dataclass(frozen=True, slots=True)
class Steady:
    """A planner whose clients all take the same number of local steps."""

    planner: Planner
    local_steps: int = STEPS

    def plan(self, round: int, feedback: Feedback | None) -> RoundPlan:
        """Return the other planner's plan with these local steps."""
        plan = self.planner.plan(round, feedback)
        return plan.replace(local_steps=np.full(len(plan), self.local_steps))


@dataclass(slots=True)
class Watch:
    """Notes what the rounds of a run have cost so far, and the picks."""

    timing: SelectionTiming
    curve: list[Row] = field(default_factory=list)
    picks: list[list[list[int]]] = field(default_factory=list)
    waited_s: float = 0.0
    sent: int = 0

    def __call__(self, record: RoundRecord) -> None:
        """Note a round."""
        plan, problem = record.plan, self.timing.problem
        own = [plan.server == server for server in range(problem.num_servers)]
        self.waited_s += float(np.mean([record.client_seconds[entries].max(initial=0.0) for entries in own]))
        self.sent += int((~self.timing.picks(record.number, plan).busy).sum())
        self.picks.append([plan.client[entries].tolist() for entries in own])
        self.curve.append(
            {
                "round": record.number + 1,
                "seconds": record.row["seconds"],
                "server_seconds": self.waited_s,
                "megabytes": self.sent * problem.payload_bits / 8e6,
                "accuracy": record.row["accuracy"],
            }
        )


def learned(cell: StudyCell[Setting]) -> TrainedPolicy | None:
    """Return the policy of a learner that the seed of the cell uses, None for what does not learn."""
    if cell.variant not in LEARNERS:
        return None
    number = cell.seed % max(1, cell.setting.trainings)
    return TrainedPolicy.load(cell.keep(f"{cell.variant}-{number}.safetensors", partial(learn, cell, number)))


def learn(cell: StudyCell[Setting], number: int, path: Path) -> None:
    """Train a policy on the episodes of the problem that a seed does not play, and write it to a file."""
    setting = cell.setting
    solver = LEARNERS[cell.variant](iterations=setting.iterations, episodes=setting.episodes)
    policy = solver.train(setting.problem(setting.task(0)), seed=number)
    if policy.facts["iterations"] < solver.iterations:
        raise KeyboardInterrupt  # which training answers with what it has learned so far
    policy.save(path)


def run(cell: StudyCell[Setting]) -> Row:
    """Train under one solver's picks, with the data and the chance of a seed."""
    setting, seed = cell.setting, cell.seed
    task = setting.task(seed)
    problem = setting.problem(task).replace(seed=held_out_seeds(seed, 1)[0])
    timing = SelectionTiming(problem=problem)
    watch = Watch(timing)
    history = finished(
        train(
            task,
            MultiServerFedAvg(setting.servers, Sgd(RATE), batch_size=BATCH),
            Steady(planner_of(cell.variant, timing, seed, learned(cell))),
            timing,
            rounds=setting.rounds,
            evaluate_every=EVALUATED_EVERY,
            on_round=watch,
        )
    )
    curve = [row for row in watch.curve if not math.isnan(row["accuracy"])]
    reached = next((row for row in curve if row["accuracy"] >= setting.target), None)
    report = problem.report(SelectionPlan.from_lists(watch.picks))
    return {
        "accuracy": curve[-1]["accuracy"],
        **{f"target_{cost}": None if reached is None else reached[cost] for cost in ("round", *COSTS)},
        **{cost: curve[-1][cost] for cost in COSTS},
        "energy_j": history.rows[-1]["energy_j"],
        **{f"{kind}_rate": getattr(report, f"{kind}_rate") for kind in ("conflict", "collision", "busy", "delivery")},
        "jain_index": report.jain_index,
        "mean_staleness": report.mean_staleness,
        "megabytes_wasted": report.bytes_wasted / 1e6,
        "reward": report.mean_reward,
        "curve": curve,
        "picks": watch.picks,
    }


def planner_of(name: str, timing: SelectionTiming, seed: int, policy: TrainedPolicy | None) -> Planner:
    """Return who picks: one policy per server, or the coordinator's plan."""
    problem = timing.problem
    servers = range(problem.num_servers)
    if policy is not None:
        trained = policy.on(problem)
        return SelectionPlanner(problem, [trained.policy(server, seed) for server in servers], timing.latency_s)
    if name in COORDINATORS:
        solution: Any = edgeopt.solve(problem, name, seed=seed).raise_for_status().solution
        return selection_schedule(solution)
    return SelectionPlanner(problem, ALONE[name].policies(problem, seed), timing.latency_s)


def summary(rows: Sequence[Row], target: float) -> list[Row]:
    """Return a row per variant: means over seeds, with half of the 95 % interval."""
    found: list[Row] = []
    for name in dict.fromkeys(row["variant"] for row in rows):
        own = [row for row in rows if row["variant"] == name]
        reached = [row for row in own if row["target_round"] is not None]
        found.append(
            {
                "solver": name,
                "final accuracy, %": _cell(own, "accuracy", 100),
                f"runs that reach {100 * target:g} %": f"{len(reached)} of {len(own)}",
                "rounds to it": _cell(reached, "target_round"),
                "s to it": _cell(reached, "target_seconds"),
                "s of a server": _cell(reached, "target_server_seconds"),
                "MB to it": _cell(reached, "target_megabytes"),
                "conflicts, %": _cell(own, "conflict_rate", 100),
                "taken twice, %": _cell(own, "collision_rate", 100),
                "delivered, %": _cell(own, "delivery_rate", 100),
                "Jain": _cell(own, "jain_index"),
                "staleness": _cell(own, "mean_staleness"),
                "energy, J": _cell(own, "energy_j"),
            }
        )
    return found


def _cell(rows: Sequence[Row], name: str, factor: float = 1.0) -> str:
    return plus_minus([factor * row[name] for row in rows])


def tables(found: Found[Setting]) -> dict[str, list[Row]]:
    """Return means over seeds, and every run."""
    drawn = ("curve", "picks")
    return {
        "summary": summary(found.rows, found.setting.target),
        "runs": [{name: value for name, value in row.items() if name not in drawn} for row in found.rows],
    }


def pictures(found: Found[Setting]) -> dict[str, Picture]:
    """Return accuracy against each cost, and who delivers how often under the first seed."""
    if not found.rows:
        return {}
    drawn = {
        cost.replace("_", "-"): Picture(f"Accuracy against {label}", partial(draw_curves, found, cost))
        for cost, label in COSTS.items()
    }
    return drawn | {"fairness": Picture("Deliveries of every client", partial(draw_fairness, found))}


def draw_curves(found: Found[Setting], cost: str) -> Any:
    """Draw accuracy against one of `COSTS`."""
    from edgeopt.evaluation.plots.training.curves import plot_training_curves

    ax = plot_training_curves(
        {
            variant: [
                [{"seconds": row[cost], "accuracy": row["accuracy"]} for row in run["curve"]]
                for run in found.of(variant=variant)
            ]
            for variant in found.variants()
        }
    )
    ax.set_xlabel(COSTS[cost])
    return ax


def draw_fairness(found: Found[Setting]) -> Any:
    """Draw the deliveries of every client under the first seed of which there are runs."""
    from edgeopt.evaluation.plots.selection.fairness import plot_selection_fairness

    seed = found.rows[0]["seed"]
    problem = found.setting.problem(found.setting.task(seed)).replace(seed=held_out_seeds(seed, 1)[0])
    plans = {row["variant"]: SelectionPlan.from_lists(row["picks"]) for row in found.of(seed=seed)}
    return plot_selection_fairness(problem, plans)


FIFTH = 0.8
"""A fifth less than random picks need: the goal of choosing better."""

CLAIMS = (
    Claim(
        text="Forecasts of conflicts avoid some: fewer picks of rl-crp-plain than of rl-no-crp are in conflict",
        source="paper",
        test=Difference(metric="conflict_rate", first="rl-crp-plain", second="rl-no-crp", below=0.0),
    ),
    Claim(
        text="Beliefs of phases avoid more: fewer picks of rl-crp than of rl-crp-plain are in conflict",
        source="ours",
        test=Difference(metric="conflict_rate", first="rl-crp", second="rl-crp-plain", below=0.0),
    ),
    Claim(
        text="Without training, too: fewer picks of reservation than of rl-crp-plain are in conflict",
        source="ours",
        test=Difference(metric="conflict_rate", first="reservation", second="rl-crp-plain", below=0.0),
    ),
    Claim(
        text="rl-crp needs fewer rounds to the target accuracy than random picks",
        source="paper",
        test=Ratio(metric="target_round", first="rl-crp", second="random", below=1.0),
    ),
    Claim(
        text="rl-crp-plain needs fewer rounds to the target accuracy than random picks",
        source="paper",
        test=Ratio(metric="target_round", first="rl-crp-plain", second="random", below=1.0),
    ),
    Claim(
        text="rl-crp needs fewer rounds to the target accuracy than random picks, by a fifth",
        source="ours",
        test=Ratio(metric="target_round", first="rl-crp", second="random", below=FIFTH),
    ),
    Claim(
        text="reservation needs fewer rounds to the target accuracy than random picks, by a fifth",
        source="ours",
        test=Ratio(metric="target_round", first="reservation", second="random", below=FIFTH),
    ),
    Claim(
        text="reservation with four phases needs fewer rounds to the target accuracy than random picks, by a fifth",
        source="ours",
        test=Ratio(metric="target_round", first="reservation-4", second="random", below=FIFTH),
    ),
    Claim(
        text="rl-crp reaches the target accuracy in less virtual time than random picks, by a fifth",
        source="ours",
        test=Ratio(metric="target_seconds", first="rl-crp", second="random", below=FIFTH),
    ),
    Claim(
        text="reservation reaches the target accuracy in less virtual time than random picks, by a fifth",
        source="ours",
        test=Ratio(metric="target_seconds", first="reservation", second="random", below=FIFTH),
    ),
    Claim(
        text="A coordinator that does not see who is busy needs fewer rounds than random picks, by a fifth",
        source="ours",
        test=Ratio(metric="target_round", first="blind-matching", second="random", below=FIFTH),
    ),
    Claim(
        text="A coordinator that does not see who is busy takes less virtual time than random picks, by a fifth",
        source="ours",
        test=Ratio(metric="target_seconds", first="blind-matching", second="random", below=FIFTH),
    ),
    Claim(
        text="Phases are worth rounds: reservation with four needs fewer to the target accuracy than with one",
        source="ours",
        test=Ratio(metric="target_round", first="reservation-4", second="reservation-1", below=1.0),
    ),
    Claim(
        text="rl-crp sends fewer bytes up to the target accuracy than random picks",
        source="paper",
        test=Ratio(metric="target_megabytes", first="rl-crp", second="random", below=1.0),
    ),
    Claim(
        text="rl-crp ends with a higher accuracy than random picks",
        source="ours",
        test=Difference(metric="accuracy", first="rl-crp", second="random", above=0.0),
    ),
    Claim(
        text="rl-crp needs fewer rounds to the target accuracy than rl-no-crp",
        source="paper",
        test=Ratio(metric="target_round", first="rl-crp", second="rl-no-crp", below=1.0),
    ),
    Claim(
        text="Servers wait less for their own picks of rl-crp than for random ones until the target accuracy",
        source="ours",
        test=Ratio(metric="target_server_seconds", first="rl-crp", second="random", below=1.0),
    ),
    Claim(
        text="Servers wait less for their own picks of reservation than for random ones until the target accuracy",
        source="ours",
        test=Ratio(metric="target_server_seconds", first="reservation", second="random", below=1.0),
    ),
    Claim(
        text="A coordinator has no conflicts at all",
        source="ours",
        test=Always(metric="conflict_rate", variants=("matching",), below=1e-12),
    ),
    Claim(
        text="A coordinator reaches the target accuracy in less than a third of the virtual time of random picks",
        source="ours",
        test=Ratio(metric="target_seconds", first="matching", second="random", below=1 / 3),
    ),
)

STUDY = Study(
    name="client-selection",
    title="Several servers train on shared clients: what choosing the clients well is worth",
    system="rl-crp",
    baselines=("random", "fastest", "reservation", "blind-matching", "matching"),
    ablations=("rl-crp-plain", "rl-no-crp", "reservation-1", "reservation-4"),
    tasks=("digits",),
    full=Setting(),
    quick=Setting(target=0.2, rounds=10, servers=2, clients=12, picks=2, iterations=2, episodes=2),
    measure=run,
    claims=CLAIMS,
    tables=tables,
    pictures=pictures,
)

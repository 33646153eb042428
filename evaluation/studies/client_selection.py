"""Several servers train on shared clients: what choosing the clients well is worth, in accuracy.

``python -m edgeopt.evaluation.studies.client_selection --out out/client-selection``

Five servers with overlapping coverage train a small CNN each on the digits, which sixty clients hold unevenly. In every
round each server picks four clients: at random, the fastest, by a coordinator's matching, or by a policy that was
learned with or without forecasts of conflicts. Conflicts, losses, times and payloads are those of a client-selection
problem built from the model. Each seed has data and chance of its own; policies learn on other episodes than those that
they are used in. With ``--out`` the learned policies are kept there, and a second run takes them from there.
"""

import argparse
import math
import multiprocessing
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import edgeopt
from edgeopt import EdgeNetwork, Feedback, RoundPlan, storage
from edgeopt.data import digits
from edgeopt.data.partition import dirichlet
from edgeopt.evaluation.compare.executors import SerialExecutor, init_worker
from edgeopt.evaluation.studies.common import Row, parser, quiet_threads, to_csv, write
from edgeopt.evaluation.studies.selection_quality import held_out_seeds, interval
from edgeopt.models.small import model_for
from edgeopt.problems import ClientSelection, SelectionPlan
from edgeopt.schedule import Planner
from edgeopt.solvers.client_selection import Fastest, RandomPicks, RlCrp, RlNoCrp, SelectionPlanner, TrainedPolicy
from edgeopt.training import RoundRecord, Sgd, Task, train
from edgeopt.training.algorithms.multi_server import MultiServerFedAvg
from edgeopt.training.costs.selection_timing import SelectionTiming, selection_schedule, update_cost

LEARNERS: dict[str, type[RlCrp]] = {"rl-no-crp": RlNoCrp, "rl-crp": RlCrp}
SOLVERS = ("random", "fastest", "matching", *LEARNERS)
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
    """What all runs have in common: how uneven labels are, sizes, and the target; iterations and episodes of learners."""

    mode: str = "fail"
    target: float = 0.85
    alpha: float = 0.5
    rounds: int = 100
    servers: int = 5
    clients: int = 60
    picks: int = 4
    iterations: int = 100
    episodes: int = 8

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
            mode=self.mode,  # type: ignore[arg-type]  # one of the choices of the option
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


@dataclass(frozen=True, slots=True)
class Done:
    """A finished run: its numbers, what each evaluation found, and what was played."""

    row: Row
    curve: list[Row]
    problem: ClientSelection
    plan: SelectionPlan


def learn(setting: Setting, name: str, number: int, folder: Path | None) -> TrainedPolicy:
    """Return a trained policy: from the folder if one of the same problem, seed and length is there."""
    problem = setting.problem(setting.task(0))
    solver = LEARNERS[name](iterations=setting.iterations, episodes=setting.episodes)
    path = None if folder is None else folder / "policies" / f"{name}-{setting.mode}-{number}.safetensors"
    wanted = {"problem": problem.fingerprint(), "seed": number, "iterations": solver.iterations}
    if path is not None and path.exists():
        policy = TrainedPolicy.load(path)
        if wanted.items() <= policy.facts.items():
            return policy
    policy = solver.train(problem, seed=number, display=True)
    if policy.facts["iterations"] < solver.iterations:
        raise KeyboardInterrupt  # which training answers with what it has learned so far
    if path is not None:
        storage.open_folder(path.parent)
        policy.save(path)
    return policy


def run(setting: Setting, name: str, seed: int, policy: TrainedPolicy | None) -> Done:
    """Train under one solver's picks, with the data and the chance of a seed."""
    quiet_threads()
    task = setting.task(seed)
    problem = setting.problem(task).replace(seed=held_out_seeds(seed, 1)[0])
    timing = SelectionTiming(problem=problem)
    watch = Watch(timing)
    history = train(
        task,
        MultiServerFedAvg(setting.servers, Sgd(RATE), batch_size=BATCH),
        Steady(planner_of(name, timing, seed, policy)),
        timing,
        rounds=setting.rounds,
        evaluate_every=EVALUATED_EVERY,
        on_round=watch,
        display=True,
    )
    plan = SelectionPlan.from_lists(watch.picks)
    curve = [{"solver": name, "seed": seed, **row} for row in watch.curve if not math.isnan(row["accuracy"])]
    reached = next((row for row in curve if row["accuracy"] >= setting.target), None)
    report = problem.report(plan)
    row = {
        "solver": name,
        "seed": seed,
        "accuracy": curve[-1]["accuracy"],
        **{f"target_{cost}": math.nan if reached is None else reached[cost] for cost in ("round", *COSTS)},
        **{cost: curve[-1][cost] for cost in COSTS},
        "energy_j": history.rows[-1]["energy_j"],
        **{f"{kind}_rate": getattr(report, f"{kind}_rate") for kind in ("conflict", "collision", "busy", "delivery")},
        "jain_index": report.jain_index,
        "mean_staleness": report.mean_staleness,
        "megabytes_wasted": report.bytes_wasted / 1e6,
        "reward": report.mean_reward,
    }
    return Done(row, curve, problem, plan)


def planner_of(name: str, timing: SelectionTiming, seed: int, policy: TrainedPolicy | None) -> Planner:
    """Return who picks: one policy per server, or the coordinator's plan."""
    problem = timing.problem
    servers = range(problem.num_servers)
    if policy is not None:
        return SelectionPlanner(problem, [policy.policy(server) for server in servers], timing.latency_s)
    if name == "matching":
        solution: Any = edgeopt.solve(problem, name, seed=seed).raise_for_status().solution
        return selection_schedule(solution)
    solver = RandomPicks() if name == "random" else Fastest()
    return SelectionPlanner(problem, [solver.policy(server, seed) for server in servers], timing.latency_s)


def experiment(setting: Setting, seeds: int, trainings: int, folder: Path | None, executor: Executor) -> Iterable[Done]:
    """Train the policies, then yield a run for each seed and solver; seeds use the trainings in turn."""
    learners = [(name, number) for name in LEARNERS for number in range(min(trainings, seeds))]
    calls = {key: executor.submit(learn, setting, *key, folder) for key in learners}
    policies = {key: call.result() for key, call in calls.items()}
    runs = [(name, seed) for seed in range(seeds) for name in SOLVERS]
    started = [executor.submit(run, setting, *key, policies.get((key[0], key[1] % trainings))) for key in runs]
    for (name, seed), call in zip(runs, started, strict=True):
        yield call.result()
        print(f"{name}, seed {seed}: done", file=sys.stderr, flush=True)


def summary(rows: Sequence[Row], target: float) -> list[Row]:
    """Return a row per solver: means over seeds, with half of the 95 % interval."""
    found: list[Row] = []
    for name in dict.fromkeys(row["solver"] for row in rows):
        own = [row for row in rows if row["solver"] == name]
        reached = [row for row in own if not math.isnan(row["target_round"])]
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
    if not rows:
        return "-"
    found = interval(factor * row[name] for row in rows)
    return f"{found.mean:.3g}" + ("" if math.isnan(found.low) else f" ± {found.mean - found.low:.2g}")


def main(argv: Sequence[str] | None = None) -> None:
    """Train, and write tables and pictures."""
    arguments = parser(__doc__, argv, options=_options)
    quiet_threads()
    setting = Setting(arguments.mode, arguments.target, arguments.alpha, arguments.rounds)
    if arguments.quick:
        setting = Setting(arguments.mode, 0.2, arguments.alpha, 10, 2, 12, 2, 2, 2)
    spawn = multiprocessing.get_context("spawn")
    pool = SerialExecutor() if arguments.jobs == 1 else ProcessPoolExecutor(arguments.jobs, spawn, init_worker)
    with pool as executor:
        done = list(experiment(setting, arguments.seeds, max(1, arguments.trainings), arguments.out, executor))
    publish(arguments, setting, done)


def publish(arguments: argparse.Namespace, setting: Setting, done: Sequence[Done]) -> None:
    """Print and write what the runs have found."""
    name = "multi-server" if setting.mode == "fail" else f"multi-server-{setting.mode}"
    rows, curves = [one.row for one in done], [row for one in done for row in one.curve]
    pictures = {f"{name}-{cost.replace('_', '-')}": partial(draw, curves, cost) for cost in COSTS}
    tables = {name: summary(rows, setting.target), f"{name}-runs": rows}
    write(arguments, tables, pictures | {f"{name}-fairness": partial(_draw_fairness, done[: len(SOLVERS)])})
    if arguments.out is not None:
        data = to_csv(curves).encode()
        storage.write_atomic(arguments.out / f"{name}-curves.csv", lambda file: file.write(data))


def _options(options: argparse.ArgumentParser) -> None:
    options.add_argument("--seeds", type=int, default=5, help="runs of each solver, with data and chance of their own")
    options.add_argument("--trainings", type=int, default=1, help="of each learner; seeds use them in turn")
    options.add_argument("--rounds", type=int, default=100, help="rounds of training")
    options.add_argument("--target", type=float, default=0.85, help="accuracy whose time and bytes are reported")
    options.add_argument(
        "--alpha", type=float, default=0.5, help="of the Dirichlet distribution of labels over clients"
    )
    options.add_argument("--mode", choices=("fail", "share"), default="fail", help="what a client taken twice means")
    options.add_argument("--jobs", type=int, default=1, help="processes side by side; the results are the same")
    options.add_argument("--quick", action="store_true", help="a tiny version: does it run at all?")


def draw(curves: Sequence[Row], cost: str) -> Any:
    """Draw accuracy against one of `COSTS`."""
    from edgeopt.evaluation.plots.training.curves import plot_training_curves

    runs: dict[str, dict[int, list[Row]]] = {}
    for row in curves:
        own = runs.setdefault(row["solver"], {}).setdefault(row["seed"], [])
        own.append({"seconds": row[cost], "accuracy": row["accuracy"]})
    ax = plot_training_curves({solver: list(of_seed.values()) for solver, of_seed in runs.items()})
    ax.set_xlabel(COSTS[cost])
    return ax


def _draw_fairness(done: Sequence[Done]) -> Any:
    from edgeopt.evaluation.plots.selection.fairness import plot_selection_fairness

    return plot_selection_fairness(done[0].problem, {one.row["solver"]: one.plan for one in done})


if __name__ == "__main__":
    main()

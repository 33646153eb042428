"""What studies of learning algorithms have in common: tasks, the network, one training run as a row, tables and pictures.

Tasks are named after their data and how labels are spread over the clients: ``digits-0.1`` by a Dirichlet distribution
with alpha 0.1, ``digits-iid`` evenly. The seed of a run decides the split, the spread, the initial weights, the
mini-batches and the network; all algorithms of a seed share them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from edgeopt import EdgeNetwork, RoundPlan, StaticPlanner
from edgeopt.data import dirichlet, iid, load_data
from edgeopt.evaluation.compare.rows import Row
from edgeopt.evaluation.studies.study import Found, Picture, finished
from edgeopt.evaluation.studies.tables import plus_minus
from edgeopt.models import mlp
from edgeopt.schedule import Planner
from edgeopt.training import Algorithm, EdgeTiming, History, Task, train
from edgeopt.training.costs.timing import Timing
from edgeopt.training.history import COLUMNS_OF_ROWS, PERSONAL, SOMETIMES
from edgeopt.training.runners.local import Runner

TASKS = tuple(f"{data}-{spread}" for data in ("digits", "mnist-1d") for spread in ("0.1", "0.5", "iid"))
MIN_SAMPLES = 12  # of a client
LAST = 3  # evaluations at the end whose mean is the accuracy of a run
COSTS = {"round": "rounds", "megabytes": "MB up and down", "seconds": "virtual time, s"}
_HIDDEN = {"digits": (24, 64), "mnist-1d": (64, 64)}


@dataclass(frozen=True, slots=True)
class LearningSetting:
    """How long, and with how many clients; every client takes part in every round.

    Parameters
    ----------
    clients : N.
    rounds, steps : rounds, and mini-batches of a client in each.
    batch, cut : samples of a mini-batch, and layers at a client in split learning.
    every : rounds between two evaluations.
    """

    clients: int = 10
    rounds: int = 200
    steps: int = 1
    batch: int = 16
    cut: int = 1
    every: int = 5

    def plan(self, **columns: Any) -> StaticPlanner:
        """Return who does what in every round; columns of the plan take the place of those of the setting."""
        usual = {"batch_size": self.batch, "cut_layer": self.cut, "local_steps": self.steps}
        return StaticPlanner(RoundPlan(client=np.arange(self.clients, dtype=np.int32), **(usual | columns)))


def learning_task(
    name: str, clients: int, seed: int, *, model: Callable[[tuple[int, ...]], nn.Sequential] | None = None
) -> Task:
    """Return data, their spread over the clients, and a model with the initial weights of a seed.

    Parameters
    ----------
    name : one of `TASKS`.
    model : made for the shape of a sample. Default: a perceptron of two hidden layers.
    """
    source, spread = name.rsplit("-", 1)
    data = load_data(source, seed=seed)
    labels = data.train.labels
    if spread == "iid":
        partition = iid(labels, clients, seed=seed)
    else:
        partition = dirichlet(labels, clients, float(spread), seed=seed, min_samples=MIN_SAMPLES)
    make = partial(mlp, hidden=_HIDDEN[source]) if model is None else model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = make(tuple(data.train.inputs.shape[1:]))
    return Task(model=built, train=data.train, partition=partition, test=data.test, seed=seed)


def radio(clients: int, seed: int, *, rate_sigma: float = 0.0) -> EdgeTiming:
    """Return unequal devices around one server, as slow as the models are small: so work and sending both matter."""
    network = EdgeNetwork.random(
        1, clients, seed=seed, fading=False, uplink_bandwidth_hz=2e6, downlink_bandwidth_hz=4e6,
        device_flops=(5e6, 1e8), server_flops=5e8,
    )  # fmt: skip
    return EdgeTiming.from_network(network, rate_sigma=rate_sigma, seed=seed)


def trained(
    task: Task,
    algorithm: Algorithm,
    setting: LearningSetting,
    seed: int,
    *,
    planner: Planner | None = None,
    timing: Timing | None = None,
    runner: Runner | None = None,
    at_end: Callable[[History], Row] | None = None,
) -> Row:
    """Train, and return what it took and how good it became.

    Parameters
    ----------
    planner : default: `LearningSetting.plan`.
    timing : default: `radio` of the seed.
    at_end : what else there is to say of the run.

    Returns
    -------
    ``accuracy``, ``test_loss``, and where clients have models of their own ``personal_accuracy`` and its worst tenth: means of the last
    `LAST` evaluations. ``megabytes`` up and down, ``megabytes_up``, virtual ``seconds``, ``peak_kilobytes`` of a client.
    What the algorithm measures of its rounds: the mean of each, under its name. ``curve``: a row per evaluation with
    the accuracies and `COSTS` up to there.
    """
    history = finished(
        train(
            task,
            algorithm,
            setting.plan() if planner is None else planner,
            radio(setting.clients, seed) if timing is None else timing,
            rounds=setting.rounds,
            evaluate_every=setting.every,
            runner=runner,
        )
    )
    last, names = history.rows[-1], ("accuracy", *(name for name in PERSONAL if name in history.rows[-1]))
    evaluated = [row for row in history.rows if not math.isnan(row["accuracy"])]
    curve = [
        {
            **{name: row[name] for name in names},
            "round": row["round"] + 1,
            "megabytes": (row["bytes_up"] + row["bytes_down"]) / 1e6,
            "seconds": row["seconds"],
        }
        for row in evaluated
    ]
    own = sorted({name for row in history.rows for name in row} - COLUMNS_OF_ROWS - set(SOMETIMES))
    measured = {name: np.array([row.get(name, np.nan) for row in history.rows], np.float64) for name in own}
    return {
        **{name: float(np.mean([row[name] for row in evaluated[-LAST:]])) for name in (*names, "test_loss")},
        "megabytes": (last["bytes_up"] + last["bytes_down"]) / 1e6,
        "megabytes_up": last["bytes_up"] / 1e6,
        "seconds": last["seconds"],
        "peak_kilobytes": float(np.nanmax([row["client_peak_bytes"] for row in history.rows])) / 1e3,
        **{name: float(np.nanmean(values)) for name, values in measured.items() if not np.isnan(values).all()},
        **({} if at_end is None else at_end(history)),
        "curve": curve,
    }


def summary(found: Found[Any], columns: Sequence[str] = ("accuracy", "personal_accuracy")) -> list[Row]:
    """Return a row per task and variant: means over seeds of some numbers with half of their 95 % intervals, and costs."""
    rows: list[Row] = []
    for task in found.tasks:
        for variant in found.variants(task):
            own = found.of(task=task, variant=variant)
            row: Row = {"task": task, "variant": variant}
            for name in (*columns, "megabytes", "seconds"):
                known = [run[name] for run in own if run.get(name) is not None]
                row[name] = plus_minus(known)
            rows.append(row)
    return rows


def tables(found: Found[Any]) -> dict[str, list[Row]]:
    """Return means over seeds, and every run."""
    runs = [{name: value for name, value in row.items() if name != "curve"} for row in found.rows]
    return {"summary": summary(found), "runs": runs}


def pictures(found: Found[Any], against: Sequence[str] = tuple(COSTS), metric: str = "accuracy") -> dict[str, Picture]:
    """Return a picture for each task and each of some `COSTS`: accuracy, or another column of the curves, against it."""
    return {
        f"{task}-{metric.replace('_', '-')}-{cost}": Picture(
            f"{metric.replace('_', ' ').capitalize()} on {task} against {COSTS[cost]}",
            partial(draw_curves, found, task, cost, metric),
        )
        for task in found.tasks
        for cost in against
        if _curves(found, task, metric)
    }


def draw_curves(found: Found[Any], task: str, cost: str, metric: str = "accuracy") -> Any:
    """Draw a column of the curves of a task against one of `COSTS`."""
    from edgeopt.evaluation.plots.training.curves import plot_training_curves

    curves = _curves(found, task, metric)
    ax = plot_training_curves(
        {
            variant: [[{"seconds": row[cost], metric: row[metric]} for row in curve] for curve in own]
            for variant, own in curves.items()
        },
        y=metric,
    )
    ax.set_xlabel(COSTS[cost])
    return ax


def _curves(found: Found[Any], task: str, metric: str) -> dict[str, list[list[Row]]]:
    """Return the curves of every variant that has the metric."""
    own = {name: [row["curve"] for row in found.of(task=task, variant=name)] for name in found.variants(task)}
    return {name: curves for name, curves in own.items() if all(metric in row for curve in curves for row in curve)}

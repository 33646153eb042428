"""Models trained by several clients, downloaded and run layer by layer, for real, under an allocation of bandwidth.

``edgeopt study model-download --out out/model-download``

Three models of different size are trained by FedAvg on the digits. Users ask for an accuracy within a deadline and share
a band; every solver decides who is served, with which model, over how much of the band. Then each user that ``slide``
admits gets its model over a real connection of this machine, throttled to its rate, and runs each layer when it is
there. What is measured is put beside what the plan says.
"""

import copy
import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import edgeopt
from edgeopt import EdgeNetwork, RoundPlan, StaticPlanner, storage
from edgeopt.data import digits
from edgeopt.data.partition import dirichlet
from edgeopt.evaluation.compare.rows import Row
from edgeopt.evaluation.studies.claims import Always, Claim, Difference, Level
from edgeopt.evaluation.studies.study import Found, Picture, Study, StudyCell, finished
from edgeopt.inference.streaming import layer_bytes, run_over_loopback
from edgeopt.inference.timeline import LayerTimeline
from edgeopt.models.small import model_for
from edgeopt.problems import DownloadPlan, ModelDownload
from edgeopt.rng import stream
from edgeopt.storage import dumps, plain
from edgeopt.training import EdgeTiming, FedAvg, Sgd, Task, train

MODELS = (("mlp", 64), ("small-cnn", 16), ("small-cnn", 64))  # name, width
SYSTEM, BASELINES = "slide", ("download-then-infer", "equal-bandwidth", "smallest-model", "random")
RESERVE = 1.5  # planned compute time over the measured one
TIME_LIMIT_S = 20.0  # of each solver


@dataclass(frozen=True, slots=True)
class Setting:
    """What all runs have in common.

    Parameters
    ----------
    users : who ask for a model.
    mhz : band to share, MHz.
    rounds : of training of each model.
    samples : that each user runs through its model.
    """

    users: int = 24
    mhz: float = 8.0
    rounds: int = 60
    samples: int = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """A model that can be served: its weights are in it; accuracy."""

    name: str
    model: nn.Sequential
    accuracy: float


@lru_cache(maxsize=1)
def trained_models(rounds: int, seed: int) -> tuple[Trained, ...]:
    """Train the models, each by ten clients with uneven data."""
    data = digits()
    partition = dirichlet(data.train.labels, 10, alpha=0.5, seed=seed)
    timing = EdgeTiming.from_network(EdgeNetwork.random(1, 10, seed=seed))
    everybody = RoundPlan(client=np.arange(10, dtype=np.int32), batch_size=np.array(16), local_steps=np.array(5))
    planner = StaticPlanner(everybody)
    found = []
    for name, width in MODELS:
        shape = data.train.inputs.shape[1:]
        model = model_for(name, num_classes=data.train.num_classes, input_shape=shape, width=width, seed=seed)
        task = Task(model=model, train=data.train, partition=partition, test=data.test, seed=seed)
        history = finished(train(task, FedAvg(Sgd(0.1)), planner, timing, rounds=rounds, evaluate_every=rounds))
        model.load_state_dict(history.models[0])
        model.eval()
        found.append(Trained(f"{name}-{width}", model, history.rows[-1]["accuracy"]))
    return tuple(found)


def inputs_of(user: int, seed: int, samples: int) -> torch.Tensor:
    """Return the samples that a user runs: draws from the test images."""
    test = digits().test
    rows = stream(seed, "inputs", user).integers(len(test), size=samples)
    return test.inputs[torch.from_numpy(rows)]


def layer_seconds(model: nn.Sequential, inputs: torch.Tensor, repeats: int = 7) -> NDArray[np.float64]:
    """Return the median seconds of each layer on this machine."""
    seconds = np.zeros((repeats, len(model)))
    with torch.no_grad():
        for repeat in range(repeats):
            value = inputs
            for index, layer in enumerate(model):
                start = time.perf_counter()
                value = layer(value)
                seconds[repeat, index] = time.perf_counter() - start
    return np.asarray(np.median(seconds, axis=0))


def measured_models(setting: Setting, seed: int) -> Row:
    """Return what the problem needs to know of the trained models: sizes, accuracies, seconds of each layer here."""
    models = trained_models(setting.rounds, seed)
    inputs = inputs_of(0, seed, setting.samples)
    return {
        "name": [trained.name for trained in models],
        "layers": [len(trained.model) for trained in models],
        "accuracy": [trained.accuracy for trained in models],
        "layer_bytes": np.concatenate([layer_bytes(trained.model) for trained in models]),
        "layer_s": np.concatenate([layer_seconds(trained.model, inputs) for trained in models]),
    }


def problem_of(models: Row, setting: Setting, seed: int) -> ModelDownload:
    """Return the problem: users with channels, deadlines and wishes of their own, and the models as they were measured."""
    rng = stream(seed, "users")
    accuracy = np.array(models["accuracy"])
    return ModelDownload(
        layer_indptr=np.cumsum([0, *models["layers"]]),
        layer_bits=8.0 * np.array(models["layer_bytes"]),
        layer_flops=np.array(0.0),  # seconds were measured, so that no frequency enters
        layer_fixed_s=RESERVE * np.array(models["layer_s"]),
        model_names=tuple(models["name"]),
        accuracy=accuracy,
        min_accuracy=rng.choice(accuracy - 1e-9, setting.users),
        deadline_s=rng.uniform(0.2, 1.0, setting.users),
        samples=np.array(float(setting.samples)),
        cycles_per_flop=np.array(1.0),
        min_frequency_hz=np.array(1e9),
        max_frequency_hz=np.array(1e9),
        spectral_efficiency=rng.uniform(1.0, 6.0, setting.users),
        bandwidth_hz=1e6 * setting.mhz,
    )


def serve(
    problem: ModelDownload, plan: DownloadPlan, models: Sequence[Trained], seed: int
) -> tuple[list[Row], dict[int, LayerTimeline]]:
    """Serve every admitted user for real; return a row for each, and what was measured layer by layer."""
    rows: list[Row] = []
    measured: dict[int, LayerTimeline] = {}
    planned, rate = problem.simulate(plan), problem.rate_bps(plan.bandwidth_hz)
    for user in np.flatnonzero(plan.admitted).tolist():
        trained = models[plan.model[user]]
        shell = without_weights(trained.model)
        inputs = inputs_of(user, seed, int(problem.samples.flat[0]))
        run = run_over_loopback(trained.model, shell, inputs, rate_bps=float(rate[user]))
        measured[user] = run.timeline
        with torch.no_grad():
            equal = torch.equal(run.output, trained.model(inputs))
        rows.append(
            {
                "user": user,
                "model": trained.name,
                "bandwidth_mhz": float(plan.bandwidth_hz[user]) / 1e6,
                "rate_mbps": float(rate[user]) / 1e6,
                "deadline_s": float(problem.deadline_s[user]),
                "planned_s": float(planned.completion_s[user]),
                "measured_s": run.timeline.total_s,
                "in_time": run.timeline.total_s <= float(problem.deadline_s[user]),
                "equal_output": equal,
            }
        )
    return rows, measured


def without_weights(model: nn.Sequential) -> nn.Sequential:
    """Return a model of the same shape without its weights: what a user has before the download."""
    shell = copy.deepcopy(model)
    with torch.no_grad():
        for value in shell.state_dict().values():
            value.zero_()
    return shell


def run(cell: StudyCell[Setting]) -> Row:
    """Decide who is served; under the system, serve them."""
    setting, seed = cell.setting, cell.seed
    models = storage.read_json(cell.keep(f"models-{seed}.json", partial(_measure, setting, seed)))
    problem = problem_of(models, setting, seed)
    result = edgeopt.solve(problem, cell.variant, seed=seed, time_limit=TIME_LIMIT_S).raise_for_status()
    plan: Any = result.solution
    found: Row = {"admitted": plan.num_admitted, "users": problem.num_users, "bound": result.bound}
    if cell.variant != SYSTEM:
        return found
    served, measured = serve(problem, plan, trained_models(setting.rounds, seed), seed)
    return found | {
        "all_equal": all(row["equal_output"] for row in served),
        "share_in_time": float(np.mean([row["in_time"] for row in served])) if served else None,
        "served": served,
        "models": models,
        "plan": plan.to_json(),
        "timelines": {str(user): _timeline(timeline) for user, timeline in measured.items()},
    }


def _measure(setting: Setting, seed: int, path: Path) -> None:
    """Measure once for all solvers: seconds measured anew would differ, and so would the problems."""
    storage.write_text(path, dumps(measured_models(setting, seed)))


def _timeline(timeline: LayerTimeline) -> Row:
    return {field.name: plain(getattr(timeline, field.name)) for field in dataclasses.fields(timeline)}


def tables(found: Found[Setting]) -> dict[str, list[Row]]:
    """Return who is admitted under every solver, and how each user of the system was served."""
    names = ("seed", "variant", "admitted", "users", "bound")
    served = [{"seed": run["seed"], **row} for run in found.of(variant=SYSTEM) for row in run["served"]]
    return {"admitted": [{name: row[name] for name in names} for row in found.rows], "served": served}


def pictures(found: Found[Setting]) -> dict[str, Picture]:
    """Return what was planned and measured under the first seed."""
    if not (runs := found.of(variant=SYSTEM)):
        return {}
    return {
        "served": Picture("Download and inference of every served user", partial(draw_served, found.setting, runs[0]))
    }


def draw_served(setting: Setting, run: Row) -> Any:
    """Draw a run of the system."""
    from edgeopt.evaluation.plots.download.served_timeline import plot_served_timeline

    problem = problem_of(run["models"], setting, run["seed"])
    timelines = {
        int(user): LayerTimeline(**{**times, "layer_names": tuple(times["layer_names"])})
        for user, times in run["timelines"].items()
    }
    return plot_served_timeline(problem, DownloadPlan.from_json(run["plan"]), timelines)


CLAIMS = (
    Claim(
        text="What a user computes while its model arrives is to the last bit what the whole model computes",
        source="ours",
        test=Always(metric="all_equal", variants=(SYSTEM,), above=0.5),
    ),
    *(
        Claim(
            text=f"{SYSTEM} serves more users than {name}",
            source="paper",
            test=Difference(metric="admitted", first=SYSTEM, second=name, above=0.0),
        )
        for name in BASELINES
    ),
    Claim(
        text="More than 95 % of the users that slide admits are done within their deadlines when they are served for real",
        source="ours",
        test=Level(metric="share_in_time", variant=SYSTEM, above=0.95),
    ),
)

STUDY = Study(
    name="model-download",
    title="Models that run while they are downloaded: how many users are served in time, planned and for real",
    system=SYSTEM,
    baselines=BASELINES,
    tasks=("digits",),
    seeds=5,
    full=Setting(),
    quick=Setting(users=6, rounds=2, samples=256),
    measure=run,
    claims=CLAIMS,
    tables=tables,
    pictures=pictures,
)

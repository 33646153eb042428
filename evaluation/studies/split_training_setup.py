"""What `split_training` trains, and the constants of the convergence bound that a pilot run of it measures."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.func import grad

from edgeopt import EdgeNetwork, RoundPlan, StaticPlanner
from edgeopt.convergence import ConvergenceEstimate
from edgeopt.data import DataSplit, coloured_digits, digits
from edgeopt.data.partition import dirichlet
from edgeopt.evaluation.compare.rows import Row
from edgeopt.evaluation.studies.study import finished
from edgeopt.models.cnn import small_cnn
from edgeopt.storage import Arrays, plain
from edgeopt.training import ArrayData, EdgeTiming, FedAvg, History, Sgd, Task, train
from edgeopt.training.constants import Estimator, GradientEstimator
from edgeopt.training.messages import Tensors

ALPHA = 0.5  # of the Dirichlet distribution of labels over devices
MIN_SAMPLES = 32  # of a device
PILOT_BATCH, PILOT_EVERY = 8, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """A data set, a model for it, and devices that fit the model.

    Speeds and bandwidth are small, as the models are: so computing, sending and the server's work all matter.

    Parameters
    ----------
    data : of a seed.
    channels : of the model's convolutions.
    step_size : of SGD.
    accuracy : to reach.
    rounds : at most.
    evaluate_every : rounds.
    device_flops : least and largest FLOP/s of a device.
    server_flops : FLOP/s of the edge server.
    bandwidth_hz : of each device up; down it is twice that.
    """

    name: str
    data: Callable[[int], DataSplit]
    channels: tuple[int, ...]
    step_size: float
    accuracy: float
    rounds: int
    evaluate_every: int
    device_flops: tuple[float, float]
    server_flops: float
    bandwidth_hz: float

    def task(self, num_devices: int, seed: int) -> Task:
        """Return data, their spread over the devices and the initial weights of a seed."""
        data = self.data(seed)
        channels, size, _ = data.train.inputs.shape[1:]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = small_cnn(in_channels=channels, image_size=size, channels=self.channels)
            for layer in model.modules():
                if isinstance(layer, nn.Conv2d):  # He's; the default of torch is so small that rounds go by in vain
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        return Task(
            model=model,
            train=standardised(data.train),
            partition=dirichlet(data.train.labels, num_devices, ALPHA, seed=seed, min_samples=MIN_SAMPLES),
            test=standardised(data.test),
            seed=seed,
        )

    def shortened(self, rounds: int | None) -> "Setup":
        """Return the same with other most rounds, if there are any."""
        return self if rounds is None else dataclasses.replace(self, rounds=rounds)


def standardised(data: ArrayData) -> ArrayData:
    """Return pictures whose colour channels have mean 0 and variance 1, each picture on its own."""
    inputs = data.inputs
    spread, mean = torch.std_mean(inputs, dim=(2, 3), keepdim=True)  # (n, channels, 1, 1)
    return dataclasses.replace(data, inputs=(inputs - mean) / (spread + 1e-6))


SETUPS = {
    setup.name: setup
    for setup in (
        Setup(
            name="digits", data=digits, channels=(8, 16, 32), step_size=0.1, accuracy=0.8, rounds=300, evaluate_every=2,
            device_flops=(5e6, 1e8), server_flops=5e8, bandwidth_hz=2e6,
        ),
        Setup(
            name="coloured-digits", data=lambda seed: coloured_digits(seed, 2000, 500), channels=(8, 16, 32, 64),
            step_size=0.1, accuracy=0.5, rounds=400, evaluate_every=5,
            device_flops=(1e8, 2e9), server_flops=1e10, bandwidth_hz=4e6,
        ),
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Constants:
    """What the bound needs, from a pilot run up to the target accuracy.

    Parameters
    ----------
    smoothness : largest slope of the gradient between two measurements.
    gradient_variance, gradient_second_moment : float64 [L], means over the run, of one sample within a device.
    initial_gap : training loss at the start, as if the least loss were 0.
    target : mean over the run of the squared norm of the gradient of the devices' mean loss.
    local_norm : mean over the run and the devices of the squared norm of a device's own expected gradient.
    pilot_rounds : of the pilot run.
    accuracy : that it reached.
    """

    smoothness: float
    gradient_variance: NDArray[np.float64]
    gradient_second_moment: NDArray[np.float64]
    initial_gap: float
    target: float
    local_norm: float
    pilot_rounds: int
    accuracy: float

    def rounds(self, setup: Setup, num_devices: int, batch_size: float) -> float:
        """Return the rounds that the bound asks for with equal batches and aggregation in every round; maybe inf."""
        noise = self.smoothness * setup.step_size * float(self.gradient_variance.sum()) / (num_devices * batch_size)
        left = self.target - noise
        return 2 * self.initial_gap / (setup.step_size * left) if left > 0 else np.inf

    def to_json(self) -> Row:
        """Return plain values."""
        found: Row = plain(dataclasses.asdict(self))
        return found

    @classmethod
    def from_json(cls, document: Row) -> "Constants":
        """Return what `to_json` wrote."""
        layers = ("gradient_variance", "gradient_second_moment")
        return cls(**document | {name: np.array(document[name]) for name in layers})

    def row(self) -> Row:
        """Return totals over the layers."""
        return {
            "beta": self.smoothness,
            "sigma2": float(self.gradient_variance.sum()),
            "G2": float(self.gradient_second_moment.sum()),
            "gap": self.initial_gap,
            "epsilon": self.target,
            "own norm2": self.local_norm,
            "pilot rounds": self.pilot_rounds,
            "pilot accuracy": self.accuracy,
        }


@dataclass(slots=True)
class PathEstimator:
    """A `GradientEstimator` that keeps what it finds, and the squared norm of the whole gradient."""

    inner: GradientEstimator
    found: list[ConvergenceEstimate] = field(default_factory=list)
    squared_norms: list[float] = field(default_factory=list)

    def measure(self, task: Task, models: Sequence[Tensors], round: int) -> ConvergenceEstimate | None:
        """Measure as the other does, and the whole gradient in the same rounds."""
        found = self.inner.measure(task, models, round)
        if found is not None:
            self.found.append(found)
            self.squared_norms.append(squared_gradient(task, models[0]))
        return found

    def state(self) -> Arrays:
        """Return the other's state."""
        return self.inner.state()

    def restore(self, state: Arrays) -> None:
        """Continue from the other's state."""
        self.inner.restore(state)


def train_equally(setup: Setup, task: Task, batch_size: int, estimator: Estimator | None = None) -> History:
    """Train with the same batch size for all devices until the target accuracy is reached, or for the most rounds."""
    number = task.num_clients
    plan = RoundPlan(client=np.arange(number, dtype=np.int32), batch_size=np.array(batch_size))
    history = train(
        task,
        FedAvg(Sgd(setup.step_size), weighting="uniform"),  # with aggregation in every round, SplitFed learns the same
        StaticPlanner(plan),
        EdgeTiming.from_network(EdgeNetwork.random(1, number, seed=0)),  # virtual time does not matter here
        rounds=setup.rounds,
        evaluate_every=setup.evaluate_every,
        until_accuracy=setup.accuracy,
        estimator=estimator,
    )
    return finished(history)


def measured_constants(setup: Setup, task: Task) -> Constants:
    """Train with small equal batches until the target accuracy is reached, measuring on the way."""
    estimator = PathEstimator(GradientEstimator(every=PILOT_EVERY, num_clients=task.num_clients))
    history = train_equally(setup, task, PILOT_BATCH, estimator)
    variance, moment = (
        np.mean([getattr(found, name).value for found in estimator.found], axis=0)
        for name in ("gradient_variance", "gradient_second_moment")
    )
    slopes = [float(found.smoothness.value) for found in estimator.found if found.smoothness is not None]
    return Constants(
        smoothness=max(slopes),
        gradient_variance=variance,
        gradient_second_moment=moment,
        initial_gap=task.evaluate(task.initial_weights(), task.train).loss,
        target=float(np.mean(estimator.squared_norms)),
        local_norm=float((moment - variance).sum()),
        pilot_rounds=len(history.rows),
        accuracy=float(history.rows[-1]["accuracy"]),
    )


def squared_gradient(task: Task, weights: Tensors) -> float:
    """Return the squared norm of the gradient of the mean over devices of their mean loss, on all samples."""
    buffers = {name: value for name, value in weights.items() if name not in task.parameters}
    total: dict[str, torch.Tensor] = {}
    for own in task.partition.indices:
        rows = torch.tensor(own)

        def loss(parameters: Tensors, rows: torch.Tensor = rows) -> torch.Tensor:
            return task.batch_loss({**parameters, **buffers}, task.train.inputs[rows], task.train.targets[rows])[0]

        for name, value in grad(loss)(task.trained(weights)).items():
            total[name] = total.get(name, 0.0) + value / task.num_clients
    return float(sum((value**2).sum() for value in total.values()))

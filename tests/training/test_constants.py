"""Constants of the convergence bound, measured on a model in training, against their exact values."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from edgeopt import RoundPlan, StaticPlanner
from edgeopt.errors import InvalidProblemError
from edgeopt.training import ArrayData, EdgeTiming, FedAvg, Partition, Sgd, Task, train
from edgeopt.training.constants import GradientEstimator

CLIENTS, SAMPLES = 30, 12


def squared_error(outputs, targets):
    wanted = (targets[..., None] == torch.arange(outputs.shape[-1])).float()
    return ((outputs - wanted) ** 2).sum(-1).mean()


@pytest.fixture
def task():
    """Two layers, thirty clients of twelve random samples each."""
    generator = torch.Generator().manual_seed(3)
    count = CLIENTS * SAMPLES
    data = ArrayData(
        inputs=torch.randn(count, 5, generator=generator),
        targets=torch.randint(3, (count,), generator=generator),
        num_classes=3,
        name="random",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    indices = tuple(np.arange(i * SAMPLES, (i + 1) * SAMPLES) for i in range(CLIENTS))
    return Task(model=model, train=data, partition=Partition(indices), test=data, loss=squared_error)


def sample_gradients(task, weights):
    """Return the gradient of every sample, one matrix (samples, parameters) per layer, by plain autograd."""

    def loss(parameters, x, y):
        return squared_error(functional_call(task.model, parameters, (x[None],)), y[None])

    found = vmap(grad(loss), in_dims=(None, 0, 0))(weights, task.train.inputs, task.train.targets)
    return [
        torch.cat([found[f"{layer}.{part}"].flatten(1) for part in ("weight", "bias")], 1).double().numpy()
        for layer in range(2)
    ]


def test_moments_cover_the_exact_ones(task):
    """Intervals of 99.9 % hold the exact variance within clients and the exact second moment, averaged over clients."""
    weights = task.initial_weights()
    estimator = GradientEstimator(num_clients=CLIENTS, batch_size=8, confidence=0.999)
    found = estimator.at(task, weights, 0, weights)
    assert found.smoothness is None  # no second point
    for layer, gradients in enumerate(sample_gradients(task, weights)):
        by_client = gradients.reshape(CLIENTS, SAMPLES, -1)
        variance = ((by_client - by_client.mean(1, keepdims=True)) ** 2).sum(2).mean()
        moment = (by_client**2).sum(2).mean()
        for estimate, exact in ((found.gradient_variance, variance), (found.gradient_second_moment, moment)):
            assert estimate.low[layer] <= exact <= estimate.high[layer]
            assert estimate.value[layer] == pytest.approx(exact, rel=0.35)  # it is no empty interval


def test_smoothness_covers_the_slope_of_the_full_gradient(task):
    """The slope between two points agrees with that of the gradient over all samples."""
    before = task.initial_weights()
    after = {name: value + 0.1 * torch.ones_like(value) for name, value in before.items()}
    found = GradientEstimator(num_clients=CLIENTS, batch_size=12, confidence=0.999).at(task, after, 1, before)
    means = [np.concatenate([g.mean(0) for g in sample_gradients(task, w)]) for w in (before, after)]
    distance = np.sqrt(sum(((after[n] - before[n]) ** 2).sum().item() for n in before))
    exact = np.linalg.norm(means[1] - means[0]) / distance
    assert found.smoothness.low <= exact <= found.smoothness.high
    assert found.smoothness.value == pytest.approx(exact, rel=0.2)


def test_it_measures_when_it_is_due_and_resumes(task):
    """Rounds 0, 3, 6 are measured; a restored estimator goes on with equal results; the model is left as it was."""
    estimator, second = GradientEstimator(every=3), GradientEstimator(every=3)
    models = [{n: v + 0.1 * r for n, v in task.initial_weights().items()} for r in range(7)]
    found = [estimator.measure(task, [model], r) for r, model in enumerate(models[:4])]
    assert [estimate is not None for estimate in found] == [True, False, False, True]
    assert found[0].smoothness is None  # nothing has moved yet
    second.restore(estimator.state())
    first, again = (each.measure(task, [models[6]], 6) for each in (estimator, second))
    assert np.array_equal(first.gradient_variance.value, again.gradient_variance.value)
    assert first.smoothness.value == again.smoothness.value


def test_the_order_of_names_does_not_matter(task):
    """Weights from a file, whose names come in any order, give the same slope."""
    before = task.initial_weights()
    after = {name: value + 0.1 * (1 + value**2) for name, value in before.items()}
    estimates = []
    for earlier in (before, dict(reversed(before.items()))):
        estimator = GradientEstimator()
        estimator.restore({name: value.numpy() for name, value in earlier.items()})
        estimates.append(estimator.measure(task, [after], 10))
    assert estimates[0].smoothness.value == estimates[1].smoothness.value


def test_weights_are_remembered_as_a_file_gives_them_back(task):
    """What it keeps of a model whose tensors are turned views is in the usual order, which bits of results depend on."""
    estimator = GradientEstimator(every=1)
    turned = {n: v.t().contiguous().t() if v.dim() == 2 else v for n, v in task.initial_weights().items()}
    estimator.measure(task, [turned], 0)
    for name, kept in estimator.state().items():
        assert kept.flags.c_contiguous, name
        np.testing.assert_array_equal(kept, turned[name])


def test_half_precision_weights_are_remembered(task):
    """Weights in bfloat16, which NumPy lacks, come back with the same bits."""
    half = task.replace(model=nn.Sequential(nn.Linear(5, 4).bfloat16(), nn.Linear(4, 3)), precision="bf16")
    models = [{n: v * (1 + 0.1 * r) for n, v in half.initial_weights().items()} for r in range(2)]
    estimator, second = GradientEstimator(every=1), GradientEstimator(every=1)
    estimator.measure(half, [models[0]], 0)
    second.restore(estimator.state())
    first, again = (each.measure(half, [models[1]], 1) for each in (estimator, second))
    assert first.smoothness.value == again.smoothness.value


def test_layers_that_draw(task):
    """Dropout draws by the seed of the task, the same at both ends of a slope, and leaves torch's generator alone."""
    noisy = task.replace(model=nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5), nn.Linear(4, 3)))
    weights = noisy.initial_weights()
    near = {name: value + 1e-4 for name, value in weights.items()}
    estimates = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        estimates.append(GradientEstimator().at(noisy, near, 10, weights))
        assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(estimates[0].gradient_variance.value, estimates[1].gradient_variance.value)
    assert estimates[0].smoothness.value < 100  # other masks would show as a jump of the gradient


def test_constants_reach_the_planner(task):
    """The loop hands what was measured to the planner of the next round, and training does not depend on it."""
    heard = []

    class Listener(StaticPlanner):
        def plan(self, round, feedback=None):
            heard.append(None if feedback is None else feedback.constants)
            return StaticPlanner.plan(self, round, feedback)

    planner = Listener(RoundPlan(client=range(CLIENTS), batch_size=4))
    timing = EdgeTiming(
        device_flops=np.full(CLIENTS, 1e9), uplink_bps=1e6, downlink_bps=1e6, fed_uplink_bps=1e6, fed_downlink_bps=1e6,
        server_flops=1e12, server_fed_uplink_bps=1e6, server_fed_downlink_bps=1e6,
    )  # fmt: skip
    runs = [
        train(task, FedAvg(Sgd(0.05)), planner, timing, rounds=4, estimator=estimator)
        for estimator in (GradientEstimator(every=2), None)
    ]
    assert [each is not None for each in heard] == [False, True, False, True] + [False] * 4
    assert all(torch.equal(runs[0].models[0][name], value) for name, value in runs[1].models[0].items())


def test_two_clients_are_needed(task):
    """One client with samples gives no interval; the message says so."""
    one = Partition((np.arange(CLIENTS * SAMPLES), np.arange(0)), num_samples=CLIENTS * SAMPLES)
    weights = task.initial_weights()
    with pytest.raises(InvalidProblemError, match="1 clients with samples, expected at least two"):
        GradientEstimator().at(task.replace(partition=one), weights, 0, weights)

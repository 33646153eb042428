"""Joint plans: against every share by brute force, with values that are exact, uncertain, on lines, or of solvers on a network."""

import dataclasses
import itertools
import json
import math
from typing import Any

import numpy as np
import pytest

import edgeopt
from edgeopt.problems import ExpertCaching, ModelDownload, SplitTraining
from edgeopt.profile import model_profile
from edgeopt.solvers.joint import Contender, JointPlan, Shares, Valued
from edgeopt.solvers.joint_network import BANDWIDTH, ENERGY, STORAGE, OnNetwork

TAKES = (("a", ("x",)), ("b", ("x", "y")), ("c", ("y",)))


class Table:
    """A value by blocks that never falls, known exactly or between two ends, with a line above it along the first resource."""

    def __init__(
        self, rng: np.random.Generator, sizes: tuple[int, ...], resources: tuple[str, ...], *, width: float, lines: bool
    ):
        steps = rng.random(tuple(size + 1 for size in sizes)) * (rng.random(tuple(size + 1 for size in sizes)) < 0.6)
        self.value = steps
        for axis in range(len(sizes)):
            self.value = self.value.cumsum(axis=axis)
        for axis in range(len(sizes)):
            np.moveaxis(self.value, axis, 0)[0] = 0.0
        self.sizes, self.resources, self.width, self.lines, self.calls = sizes, resources, width, lines, 0

    def at(self, shares: Shares) -> tuple[int, ...]:
        return tuple(round(shares[name] * size) for name, size in zip(self.resources, self.sizes, strict=True))

    def __call__(self, shares: Shares) -> Valued:
        self.calls += 1
        n = self.at(shares)
        value = float(self.value[n])
        low, high = value * (1 - self.width), value * (1 + self.width)
        if not self.lines:
            return Valued(low=low, high=high)
        # the steepest line from here that stays above, with the others no larger than here
        along = self.value[(slice(None), *n[1:])]
        slope = float(np.diff(along).max(initial=0.0))
        base = max(high, float((along - slope * (np.arange(along.size) - n[0])).max()) * (1 + self.width))
        steep = slope * (1 + self.width) * self.sizes[0]
        return Valued(low=low, high=high, slope={self.resources[0]: steep}, base=base + steep)


def random_plan(
    seed: int, *, width: float = 0.0, lines: bool = False, blocks: range = range(1, 5)
) -> tuple[JointPlan, list[Table]]:
    rng = np.random.default_rng(seed)
    counts = {"x": int(rng.choice(blocks)), "y": int(rng.choice(blocks))}
    tables, contenders = [], []
    for name, resources in TAKES:
        table = Table(rng, tuple(counts[r] for r in resources), resources, width=width, lines=lines)
        tables.append(table)
        contenders.append(Contender(name=name, resources=resources, value=table, weight=float(rng.integers(1, 4))))
    return JointPlan(contenders, counts), tables


def brute_force(plan: JointPlan, tables: list[Any]) -> float:
    """Return the best weighted sum over every way to give out the blocks."""
    best = 0.0
    options = [list(itertools.product(*(range(n) for n in table.shape))) for table in tables]
    for chosen in itertools.product(*options):
        used = dict.fromkeys(plan.blocks, 0)
        for one, n in zip(plan.contenders, chosen, strict=True):
            for name, count in zip(one.resources, n, strict=True):
                used[name] += count
        if all(used[name] <= count for name, count in plan.blocks.items()):
            best = max(best, sum(one.weight * t[n] for one, t, n in zip(plan.contenders, tables, chosen, strict=True)))
    return float(best)


def check_blocks(plan: JointPlan, result: Any) -> None:
    for name, count in plan.blocks.items():
        assert sum(given.get(name, 0) for given in result.blocks.values()) <= count
    weights = {one.name: one.weight for one in plan.contenders}
    assert result.value == pytest.approx(sum(weights[name] * worth for name, worth in result.worth.items()))


@pytest.mark.parametrize("lines", [False, True])
@pytest.mark.parametrize("seed", range(25))
def test_the_optimum_over_every_share(seed: int, lines: bool):
    """With exact values the master closes the gap at the optimum, mostly without looking at every share."""
    plan, tables = random_plan(seed, lines=lines)
    result = plan.solve()
    optimum = brute_force(plan, [table.value for table in tables])
    check_blocks(plan, result)
    assert (result.value, result.bound) == (pytest.approx(optimum), pytest.approx(optimum))
    assert result.evaluations == sum(table.calls for table in tables) <= sum(table.value.size for table in tables)
    assert all(a.bound >= b.bound - 1e-12 for a, b in itertools.pairwise(result.rounds))
    assert all(a.value <= b.value + 1e-12 for a, b in itertools.pairwise(result.rounds))
    assert all(one.value - 1e-9 <= optimum <= one.bound + 1e-9 for one in result.rounds)


@pytest.mark.parametrize("seed", range(5))
def test_fine_shares(seed: int):
    """Coarse steps come first, also where they do not divide the blocks: the optimum all the same."""
    plan, tables = random_plan(300 + seed, blocks=range(6, 12))
    result = plan.solve()
    optimum = brute_force(plan, [table.value for table in tables])
    check_blocks(plan, result)
    assert (result.value, result.bound) == (pytest.approx(optimum), pytest.approx(optimum))
    assert result.evaluations < sum(table.value.size for table in tables) / 2


def test_coarse_steps_spare_values():
    """A smooth trade of two hundred blocks is known to a hundredth after a few of its values, and a plan that is stopped early is a good one."""

    def root(shares: Shares) -> Valued:
        value = shares["x"] ** 0.5
        return Valued(low=value, high=value)

    contenders = [Contender(name=name, resources=("x",), value=root, weight=w) for name, w in (("a", 1.0), ("b", 2.0))]
    plan = JointPlan(contenders, {"x": 200})
    assert plan.solve(most=8).value > 0.95 * 5**0.5
    result = plan.solve(gap=0.01)
    assert result.gap <= 0.01
    assert result.evaluations <= 100


@pytest.mark.parametrize("lines", [False, True])
@pytest.mark.parametrize("seed", range(15))
def test_uncertain_values(seed: int, lines: bool):
    """What is known to 10 % leaves the joint optimum between value and bound, and the gap is that of the values."""
    plan, tables = random_plan(100 + seed, width=0.1, lines=lines)
    result = plan.solve()
    check_blocks(plan, result)
    optimum = brute_force(plan, [table.value for table in tables])
    assert result.value - 1e-9 <= optimum <= result.bound + 1e-9
    assert result.gap <= 1.1 / 0.9 - 1 + 1e-9


@pytest.mark.parametrize("seed", range(10))
def test_baselines(seed: int):
    """Equal shares and one after another are what their rules say, and never better than the joint plan."""
    plan, tables = random_plan(200 + seed)
    equal, joint = plan.equal_shares(), plan.solve()
    check_blocks(plan, equal)
    half = {name: count // 2 for name, count in plan.blocks.items()}
    assert equal.blocks == {name: {r: half[r] for r in resources} for name, resources in TAKES}
    assert equal.worth["c"] == pytest.approx(tables[2].value[half["y"]])
    for order in itertools.permutations("abc"):
        result = plan.one_after_another(order)
        check_blocks(plan, result)
        first = tables["abc".index(order[0])]
        assert result.worth[order[0]] >= 0.99 * first.value.flat[-1] - 1e-12
        assert result.value <= joint.value + 1e-9
    assert equal.value <= joint.value + 1e-9


def test_limits():
    """A gap, a number of evaluations and a time end it early, with bounds that hold."""
    plan, tables = random_plan(7)
    optimum = brute_force(plan, [table.value for table in tables])
    early = plan.solve(most=3)
    assert early.evaluations == 3
    assert early.value <= optimum <= early.bound
    assert plan.solve(time_limit=0).evaluations == 3
    assert plan.solve(gap=0.2).gap <= 0.2
    assert plan.solve().gap <= 1e-12
    json.dumps(plan.solve().to_json(), allow_nan=False)
    assert "value" in plan.solve().summary()


def test_a_value_without_a_bound():
    """The joint bound is then infinite, and the best that is known is returned."""
    plan = JointPlan(
        [Contender(name="a", resources=("x",), value=lambda shares: Valued(low=shares["x"], high=math.inf))], {"x": 3}
    )
    result = plan.solve()
    assert (result.value, result.bound) == (1.0, math.inf)
    assert result.to_json()["bound"] is None


def test_what_counts_nothing_gets_nothing():
    """A contender of weight 0, with however large a bound, leaves the others everything."""
    endless = Contender(name="a", resources=("x",), value=lambda _: Valued(low=1.0, high=math.inf), weight=0.0)
    plain = Contender(name="b", resources=("x",), value=lambda shares: Valued(low=shares["x"], high=shares["x"]))
    for contenders in ([endless, plain], [plain, endless], [endless]):
        plan = JointPlan(contenders, {"x": 3})
        result, equal = plan.solve(), plan.equal_shares()
        assert result.value == result.bound == float(plain in contenders)
        assert equal.value == equal.bound


def test_values_that_contradict_themselves():
    """Ends in the wrong order, and more of a resource that is worth less."""
    plan = JointPlan([Contender(name="a", resources=("x",), value=lambda _: Valued(low=2.0, high=1.0))], {"x": 3})
    with pytest.raises(edgeopt.SolverError, match=r"low = 2\.0, high = 1\.0: expected 0 <= low <= high"):
        plan.solve()

    def falling(shares: Shares) -> Valued:
        return Valued(low=1 - shares["x"], high=1 - shares["x"])

    plan = JointPlan([Contender(name="a", resources=("x",), value=falling)], {"x": 3})
    plan.evaluate(0, (3,))
    with pytest.raises(edgeopt.SolverError, match="expected values that never fall along a share"):
        plan.evaluate(0, (1,))


def test_bad_plans():
    """Each in one line."""
    fine = Contender(name="a", resources=("x",), value=lambda shares: Valued(low=0.0, high=0.0))
    for contenders, blocks, expected in (
        ([], {"x": 2}, "contenders: expected at least one"),
        ([fine, fine], {"x": 2}, "contenders: expected a name for each, got a, a"),
        ([fine], {"y": 2}, "a: 'x' is none of y"),
        ([Contender(name="b", resources=(), value=fine.value)], {"x": 2}, "b: expected a resource that it takes"),
        ([fine], {"x": 0}, r"blocks\[x\] = 0: expected an integer >= 1"),
        ([fine], {"x": 10**7}, "blocks: expected at most"),
        ([Contender(name="b", resources=("x",), value=fine.value, weight=-1.0)], {"x": 2}, "weight of b = -1.0"),
    ):
        with pytest.raises(edgeopt.EdgeOptError, match=expected):
            JointPlan(contenders, blocks)
    with pytest.raises(edgeopt.EdgeOptError, match="blocks: 3 of x are given out, there are 2"):
        JointPlan([fine], {"x": 2}).at({"a": {"x": 3}})


# --- on a network ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> OnNetwork:
    """Return three small decisions that are solved exactly."""
    network = edgeopt.EdgeNetwork.random(
        2, 5, seed=3, area_m=400, coverage_radius_m=2000, server_storage_bytes=1.2e8, uplink_bandwidth_hz=2e6,
        downlink_bandwidth_hz=4e6,
    )  # fmt: skip
    download = ModelDownload.from_profiles(
        ["mobilenetv2", "resnet18"], network, bandwidth_hz=20e6, deadline_s=[4.0, 8.0, 12.0, 20.0, 30.0], samples=20.0,
        accuracy=[0.7, 0.75], min_accuracy=[0.0, 0.75, 0.0, 0.75, 0.0], energy_j=[0.4, 3.0, 0.2, 4.0, 1.0],
    )  # fmt: skip
    return OnNetwork(
        network=network,
        caching=ExpertCaching.random(network=network, num_layers=2, experts_per_layer=6, storage=None, seed=3),
        download=download,
        training=lambda net: SplitTraining.from_profile(model_profile("resnet18"), net, max_batch=8, interval=1),
        weights={"download": 2.0},
        solvers={"caching": "milp"},  # to the end, so that it does not matter how busy the machine is
        time_limit=60.0,
    )


def test_on_a_network_against_every_share(small: OnNetwork):
    """Every share of two blocks of each resource is solved: the joint plan is the best, and its bound holds."""
    blocks = {STORAGE: 2, BANDWIDTH: 2, ENERGY: 2}
    lazy, full = small.plan(blocks), small.plan(blocks)
    result = lazy.solve()
    lows, highs = [], []
    for k, one in enumerate(full.contenders):
        shape = tuple(blocks[name] + 1 for name in one.resources)
        values = [full.evaluate(k, n) for n in itertools.product(*(range(size) for size in shape))]
        lows.append(np.array([value.low for value in values]).reshape(shape))
        highs.append(np.array([value.high for value in values]).reshape(shape))
    best = brute_force(full, lows)
    check_blocks(full, result)
    assert result.value <= best * (1 + 1e-6)
    assert best <= result.bound * (1 + 1e-6)
    assert brute_force(full, highs) <= result.bound * (1 + 1e-6)
    assert result.gap <= 0.01
    assert result.value >= max(full.equal_shares().value, full.one_after_another().value) * (1 - 1e-6)


def test_shares_of_a_network(small: OnNetwork):
    """Storage decides which models are on offer, smallest first; bandwidth and energy scale what they limit."""
    shares = {STORAGE: 0.25, BANDWIDTH: 0.5, ENERGY: 0.5}
    download = small.download_at(shares)
    assert small.download.model_bits[0] / 8 <= 0.25 * 1.2e8 < small.download.model_bits.sum() / 8
    assert download.allowed[:, 0].tolist() == small.download.allowed[:, 0].tolist()
    assert not download.allowed[:, 1].any()
    assert download.bandwidth_hz == 0.5 * small.download.bandwidth_hz
    assert download.energy_j.tolist() == (0.5 * small.download.energy_j).tolist()
    assert small.caching_at(shares).storage_bytes.tolist() == [0.3e8] * 2
    training = small.training_at(shares)
    np.testing.assert_allclose(training.device_flops, small.network.device_flops * 0.5 ** (1 / 3))
    assert (training.uplink_bps < small.training(small.network).uplink_bps).all()


def test_a_decision_that_is_worth_nothing(small: OnNetwork):
    """It is named: no user can be served."""
    hopeless = dataclasses.replace(small, download=small.download.replace(deadline_s=[1e-6] * 5))
    with pytest.raises(edgeopt.EdgeOptError, match="download: it is worth nothing"):
        hopeless.plan({STORAGE: 2, BANDWIDTH: 2, ENERGY: 2})

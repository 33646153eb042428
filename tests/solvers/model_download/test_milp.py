"""`milp` against enumeration over a conic model, against `slide`, and at its limits."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

import edgeopt
from edgeopt.errors import EdgeOptError, UnsupportedProblemError
from edgeopt.problems import DownloadPlan, ExpertCaching, ModelDownload
from edgeopt.progress import Callback
from edgeopt.result import Exact, Status
from edgeopt.solvers.model_download import milp as module
from edgeopt.solvers.model_download.milp import Milp
from edgeopt.solvers.model_download.milp_model import DownloadModel
from edgeopt.stop import Limit, Progress

VARIANTS = [
    "plain", "energy", "weighted", "rewarded", "concave", "concave energy", "blocks", "blocks energy", "levels",
    "levels blocks", "concave levels",
]  # fmt: skip


def small(variant: str, seed: int, num_users: int = 4) -> ModelDownload:
    """Return users who mostly could be served alone, but not all together; two models of two and three layers."""
    rng = np.random.default_rng(seed)
    energy = np.inf
    if "energy" in variant or "levels" in variant or variant in ("weighted", "rewarded"):
        energy = rng.uniform(0.3, 1.4, num_users)
        energy[rng.random(num_users) < 0.2] = np.inf
    rate: dict[str, Any] = {"spectral_efficiency": rng.uniform(1, 6, num_users)}
    if "concave" in variant:
        rate = {"snr_hz": rng.uniform(5e6, 60e6, num_users)}
    return ModelDownload(
        layer_indptr=[0, 2, 5],
        layer_bits=rng.uniform(1e6, 8e6, 5),
        layer_flops=np.where(np.arange(5) == rng.integers(8), 0.0, rng.uniform(0.5e8, 4e8, 5)),
        layer_fixed_s=0.02 * rng.random(5) * rng.integers(0, 2),
        model_names=["a", "b"],
        accuracy=[0.7, 0.9],
        min_accuracy=rng.choice([0.0, 0.8], num_users, p=[0.7, 0.3]),
        model_reward=[0.7, 0.9] if variant == "rewarded" else 1.0,
        user_weight=rng.integers(1, 5, num_users) if variant == "weighted" else 1.0,
        deadline_s=rng.uniform(0.7, 2.5, num_users),
        cycles_per_flop=1.0,
        min_frequency_hz=2e8,
        max_frequency_hz=1e9,
        energy_j=energy,
        energy_coefficient=1e-27,
        receive_j_per_bit=1e-8 * rng.random(num_users),
        bandwidth_hz=4e6 * num_users * rng.uniform(0.15, 0.6),
        resource_block_hz=0.4e6 if "blocks" in variant else None,
        frequency_levels=[0.25, 0.6, 1.0] if "levels" in variant else None,
        **rate,
    )


def conic_hz(problem: ModelDownload, user: int, model: int) -> float:
    """Return the least bandwidth of a user with a model by a conic programme, inf if there is none."""
    import cvxpy as cp

    layers = slice(*problem.layer_indptr[model : model + 2])
    work = problem.cycles_per_layer_flop[user] * problem.layer_flops[layers] / problem.max_frequency_hz[user]
    bits = problem.layer_bits[layers] / 1e6
    megahertz, slow = cp.Variable(), cp.Variable(bits.size)
    if problem.has_concave_rate:
        snr = float(problem.snr_hz[user]) / 1e6
        rate = -cp.rel_entr(megahertz, megahertz + snr) / math.log(2)
    else:
        rate = float(problem.spectral_efficiency[user]) * megahertz
    inverse = cp.inv_pos(rate)
    busy = problem.layer_fixed_s[layers] + cp.multiply(work, slow)
    rows = [bits[: k + 1].sum() * inverse + cp.sum(busy[k:]) <= problem.deadline_s[user] for k in range(bits.size)]
    rows += [slow >= 1.0, slow <= problem.max_frequency_hz[user] / problem.min_frequency_hz[user]]
    if np.isfinite(problem.energy_j[user]):
        full = problem.energy_coefficient[user] * work * problem.max_frequency_hz[user] ** 3
        room = problem.energy_j[user] - problem.receive_j_per_bit[user] * problem.model_bits[model]
        rows.append(full @ cp.power(slow, -2) <= room)
    programme = cp.Problem(cp.Minimize(megahertz), rows)
    programme.solve(solver=cp.CLARABEL)
    if programme.status not in ("optimal", "optimal_inaccurate"):
        return math.inf
    return float(megahertz.value) * 1e6


def level_hz(problem: ModelDownload, user: int, model: int) -> float:
    """Return the least bandwidth of a user with a model by trying all levels of all layers; the recursion confirms it."""
    layers = slice(*problem.layer_indptr[model : model + 2])
    cycles = problem.cycles_per_layer_flop[user] * problem.layer_flops[layers]
    bits = np.cumsum(problem.layer_bits[layers])
    room = problem.energy_j[user] - problem.receive_j_per_bit[user] * bits[-1]
    levels = problem.frequency_levels * problem.max_frequency_hz[user]
    least, best = math.inf, None
    for choice in itertools.product(levels[levels >= problem.min_frequency_hz[user]], repeat=bits.size):
        seconds = problem.layer_fixed_s[layers] + cycles / choice
        left = problem.deadline_s[user] - np.cumsum(seconds[::-1])[::-1]
        is_within = problem.energy_coefficient[user] * cycles @ np.square(choice) <= room and left.min() > 0
        if is_within and (bits / left).max() < least:
            least, best = float((bits / left).max()), choice
    if best is None or least >= problem.rate_ceiling_bps[user]:
        return math.inf
    hz = float(optimize.brentq(lambda hz: float(problem.rate_bps(hz)[user]) / least - 1, 1.0, 1e12, rtol=1e-12))
    only = np.where(np.arange(problem.num_users) == user, model, -1)
    wide = problem.replace(bandwidth_hz=1e12, resource_block_hz=None)
    for share, expected in ((1.0, True), (1 - 1e-6, False)):
        bandwidth = np.where(only >= 0, share * hz, 0.0)
        plan = DownloadPlan(model=only, bandwidth_hz=bandwidth, frequency_hz=np.array(best))
        assert wide.is_feasible(plan) is expected
    return hz


def needs(problem: ModelDownload) -> np.ndarray:
    """Return the least bandwidth of every user with every model [K, I], inf where there is none or it is not allowed."""
    needed = np.full(problem.allowed.shape, np.inf)
    for user, model in np.argwhere(problem.allowed):
        needed[user, model] = (conic_hz if problem.frequency_levels is None else level_hz)(problem, user, model)
    if (block := problem.resource_block_hz) is not None:
        needed = np.ceil(needed / block) * block
    return needed


def enumerate_optimum(problem: ModelDownload) -> float:
    """Return the best value over all choices of models, given what each needs."""
    needed, best = needs(problem), 0.0
    for choice in itertools.product(range(-1, problem.num_models), repeat=problem.num_users):
        users = [k for k, model in enumerate(choice) if model >= 0]
        models = [choice[k] for k in users]
        if needed[users, models].sum() <= problem.bandwidth_limit_hz:
            best = max(best, float(problem.value[users, models].sum()))
    return best


@pytest.mark.sampled(2)
@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_enumeration(variant: str) -> None:
    """The optimum over all choices, with needs from a conic model or from trying all levels, and it is proved."""
    optima = set()
    for seed in range(3):
        problem = small(variant, seed)
        result = edgeopt.solve(problem, Milp())
        assert result.status is Status.OPTIMAL, result.message
        assert result.limit is None
        assert result.feasible
        optima.add(optimum := enumerate_optimum(problem))
        assert result.objective == pytest.approx(optimum, rel=1e-9)
        assert result.bound == result.objective
    assert optima != {0.0}


@pytest.mark.parametrize("variant", ["energy", "concave energy"])
def test_least_bandwidth_equals_the_conic_model(variant: str) -> None:
    """What the tangents converge to: the bandwidth of a user alone, to the accuracy of the conic solver."""
    checked = 0
    for seed in range(3):
        problem = small(variant, seed).replace(bandwidth_hz=1e9)
        needed = needs(problem)
        plan = edgeopt.solve(problem, Milp()).solution
        for user in np.flatnonzero(plan.admitted):
            assert plan.bandwidth_hz[user] == pytest.approx(needed[user, plan.model[user]], rel=2e-5)
            checked += 1
        assert np.isinf(needed[~plan.admitted]).all()
    assert checked >= 6


@pytest.mark.parametrize("variant", ["plain", "energy", "concave energy", "levels"])
def test_bandwidth_that_is_just_enough_is_enough(variant: str) -> None:
    """With what users need alone, added up, all are admitted; with a little less, one is not."""
    problem = small(variant, 1).replace(bandwidth_hz=1e9)
    alone = edgeopt.solve(problem, Milp())
    total = float(alone.solution.bandwidth_hz.sum())
    if variant != "levels":  # there any levels that meet the limits will do while bandwidth is plenty
        enough = edgeopt.solve(problem.replace(bandwidth_hz=total), Milp())
        assert enough.status is Status.OPTIMAL
        assert enough.objective == alone.objective > 1
    least = needs(problem).min(axis=1)
    short = edgeopt.solve(problem.replace(bandwidth_hz=float(least[np.isfinite(least)].sum() * (1 - 1e-4))), Milp())
    assert short.status is Status.OPTIMAL
    assert short.objective < alone.objective


@pytest.mark.parametrize(
    "options",
    [
        {"energy": None}, {}, {"weighted": True}, {"rewarded": True}, {"fixed_power": True},
        {"resource_block_hz": 1e6}, {"frequency_levels": [0.4, 0.7, 1.0]},
    ],
    ids=str,
)  # fmt: skip
def test_equals_slide(options: dict[str, Any]) -> None:
    """The same objective as the closed form, block speeds and sorting of `slide`, on measured models."""
    for seed in range(2):
        problem = ModelDownload.random(num_users=6, num_models=2, seed=seed, bandwidth_hz=40e6, **options)
        exact, slide = edgeopt.solve(problem, Milp()), edgeopt.solve(problem, "slide")
        assert exact.status is Status.OPTIMAL, exact.message
        if isinstance(slide.guarantee, Exact):
            assert slide.objective == pytest.approx(exact.objective, rel=1e-9)
        assert slide.objective <= exact.objective * (1 + 1e-9) <= slide.bound * (1 + 2e-9)


LARGE = ("deadline_s", "energy_j", "bandwidth_hz", "max_frequency_hz", "memory_bytes", "snr_hz", "spectral_efficiency")


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "options",
    [{"energy": None}, {}, {"fixed_power": True}, {"resource_block_hz": 1e6}, {"frequency_levels": [0.4, 1.0]}],
    ids=str,
)  # fmt: skip
def test_no_limit_as_a_large_number(options: dict[str, Any]) -> None:
    """Whatever is so large that it never binds, of one user or of all: what `slide` finds, and no worse than before."""
    problem = ModelDownload.random(num_users=4, num_models=2, seed=0, bandwidth_hz=30e6, **options)
    before = edgeopt.solve(problem, Milp(threads=1)).objective
    for name, large in itertools.product(LARGE, (1e16, 1e20, 1e45)):
        if (value := getattr(problem, name)) is None:
            continue
        for users in [slice(0, 1), slice(None)] if np.ndim(value) else [()]:
            changed = np.array(value, float)
            changed[users] = large
            other = problem.replace(**{name: changed if changed.ndim else float(changed)})
            exact, slide = edgeopt.solve(other, Milp(threads=1)), edgeopt.solve(other, "slide")
            assert exact.status is Status.OPTIMAL, (name, large, exact.message)
            if (
                name != "max_frequency_hz" or "frequency_levels" not in options
            ):  # levels are shares of it, and cost energy
                assert exact.objective >= before * (1 - 1e-9), (name, large)
            if isinstance(slide.guarantee, Exact):
                assert slide.objective == pytest.approx(exact.objective, rel=1e-9), (name, large)
            assert slide.objective <= exact.objective * (1 + 1e-9) <= slide.bound * (1 + 2e-9), (name, large)


def test_a_resource_block_that_is_larger_than_all_the_bandwidth() -> None:
    """Nobody can have one: refusing all is proved optimal, however large it is."""
    for large in (1e10, 1e45):
        result = edgeopt.solve(small("blocks", 0).replace(resource_block_hz=large), Milp())
        assert (result.status, result.objective) == (Status.OPTIMAL, 0.0)


@settings(max_examples=30)
@given(st.sampled_from(VARIANTS), st.integers(0, 10**6), st.data())
def test_no_row_cuts_off_what_is_feasible(variant: str, seed: int, data: Any) -> None:
    """Any user with any model, bandwidth and frequencies that the problem accepts satisfies all rows and tangents."""
    problem = small(variant, seed, num_users=1).replace(bandwidth_hz=1e9)
    model = DownloadModel(problem)
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    for pair in model.pairs:
        layers = pair.bits.size
        fastest = problem.max_frequency_hz[0]
        choice = np.zeros(layers, int)
        frequency = rng.uniform(problem.min_frequency_hz[0], fastest, layers)
        if problem.frequency_levels is not None:
            choice = rng.integers(0, problem.frequency_levels.size, layers)
            frequency = problem.frequency_levels[choice] * fastest
        if pair.energy is None:
            frequency = np.full(layers, fastest)
        hz = float(np.exp(rng.uniform(np.log(1e5), np.log(1e9))))
        if (block := problem.resource_block_hz) is not None:
            hz = math.ceil(hz / block) * block
        if not problem.is_feasible(DownloadPlan(model=[pair.model], bandwidth_hz=[hz], frequency_hz=frequency)):
            continue
        values = point(model, pair, hz, frequency, choice)
        for more in (1.0, 1.7):  # with tangents at and beside it
            at = point(model, pair, more * hz, frequency, choice)
            matrix, lower, upper = model.rows(0)
            rows = matrix @ values
            assert (rows >= lower - 1e-12).all()
            assert (rows <= upper + 1e-12).all()
            at[pair.first + 2 : pair.first + 3 + 2 * layers] *= 0.9  # time and, where it is a column, energy
            assert model.cut(at)


def point(model: DownloadModel, pair: Any, hz: float, frequency: np.ndarray, choice: np.ndarray) -> np.ndarray:
    """Return the values of all columns for one pair served, from the definition of each column."""
    problem, values = model.problem, np.zeros(model.num_columns)
    deadline = problem.deadline_s[0] * (1 + 4e-9)
    first, layers = pair.first, pair.bits.size
    download_s = problem.model_bits[pair.model] / float(problem.rate_bps(hz)[0])
    values[first : first + 3] = 1.0, hz / pair.hz, download_s / deadline
    if pair.energy is None:
        return values
    own = slice(*problem.layer_indptr[pair.model : pair.model + 2])
    cycles = problem.cycles_per_layer_flop[0] * problem.layer_flops[own]
    room = problem.energy_j[0] * (1 + 4e-9) - problem.receive_j_per_bit[0] * problem.model_bits[pair.model]
    seconds = cycles / frequency
    if problem.frequency_levels is None:
        values[first + 3 : first + 3 + layers] = pair.top / frequency
        values[first + 3 + layers : first + 3 + 2 * layers] = (
            problem.energy_coefficient[0] * cycles * frequency**2 / room
        )
        rest = first + 3 + 2 * layers
    else:
        levels = pair.energy.shape[1]
        values[first + 3 + levels * np.arange(layers) + choice - (problem.frequency_levels.size - levels)] = 1.0
        seconds = np.array([pair.time[k, c] for k, c in enumerate(choice)]) * deadline
        rest = first + 3 + levels * layers
    values[rest : rest + layers] = np.cumsum(seconds[::-1])[::-1] / deadline
    return values


@pytest.mark.parametrize(
    "change",
    [
        {"deadline_s": 1e-3}, {"energy_j": 1e-6}, {"memory_bytes": 1.0}, {"min_accuracy": 0.95}, {"bandwidth_hz": 1.0},
        {"task": 1},
    ],
    ids=str,
)  # fmt: skip
def test_users_who_cannot_be_served(change: dict[str, Any]) -> None:
    """When no user can be served, refusing all is proved optimal; one such user does not stop the others."""
    problem = small("energy", 2)
    ((name, value),) = change.items()
    for_all = value if name == "bandwidth_hz" else np.full(4, value)
    result = edgeopt.solve(problem.replace(**{name: for_all}), Milp())
    assert result.status is Status.OPTIMAL
    assert result.solution == DownloadPlan.refuse_all(4)
    assert result.objective == result.bound == 0.0
    if name == "bandwidth_hz":
        return
    values = np.array(getattr(problem, name))
    values[0] = value
    result = edgeopt.solve(problem.replace(**{name: values, "bandwidth_hz": 1e9}), Milp())
    assert result.solution.model[0] == -1
    assert result.objective > 0


def test_rate_above_the_ceiling() -> None:
    """At fixed power the rate stays below snr_hz / ln 2: a user who needs more is refused at any bandwidth."""
    problem = small("concave", 0).replace(bandwidth_hz=1e12, snr_hz=1e5)
    assert edgeopt.solve(problem, Milp()).objective == 0.0


def test_no_time_downloads_before_it_infers() -> None:
    """A time limit of zero returns the plan without overlap and a valid bound: everybody's best model."""
    problem = small("weighted", 0)
    result = edgeopt.solve(problem, Milp(), time_limit=0)
    assert result.limit is Limit.TIME
    assert result.objective == edgeopt.solve(problem, "download-then-infer").objective > 0
    assert result.bound == pytest.approx(problem.value.max(axis=1).sum())


class Stop(Callback):
    """Stops, or interrupts as Ctrl-C does, at the n-th better solution."""

    def __init__(self, best: int, *, interrupt: bool) -> None:
        self.left, self.interrupt = best, interrupt

    def on_best(self, progress: Progress) -> bool:
        self.left -= 1
        if self.left == 0 and self.interrupt:
            raise KeyboardInterrupt
        return self.left != 0


@pytest.mark.parametrize("interrupt", [False, True])
@pytest.mark.parametrize("best", [1, 2])
def test_stopped_on_the_way(interrupt: bool, best: int) -> None:
    """A callback or Ctrl-C, before or during the search, leaves the incumbent and a valid bound."""
    problem = small("rewarded", 0)
    result = edgeopt.solve(problem, Milp(), callback=Stop(best, interrupt=interrupt))
    assert result.limit is (Limit.INTERRUPT if interrupt else Limit.CALLBACK)
    assert result.feasible
    optimum = edgeopt.solve(problem, Milp()).objective
    assert result.objective <= optimum <= result.bound * (1 + 1e-9)


@pytest.mark.parametrize("variant", ["energy", "levels"])
def test_same_seed_same_plan_and_warm_start(variant: str) -> None:
    """Deterministic runs repeat themselves; a warm start is never made worse."""
    problem = small(variant, 3)
    first, second = (edgeopt.solve(problem, Milp(), seed=5, deterministic=True) for _ in range(2))
    assert first.solution == second.solution
    warm = edgeopt.solve(problem, Milp(), initial_solution=first.solution, time_limit=0)
    assert warm.solution == first.solution


def test_a_choice_that_no_plan_carries_out_is_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """What HiGHS finds and no plan carries out is not found twice; the best without it comes back, its value as bound."""
    problem = small("weighted", 0)
    best = edgeopt.solve(problem, Milp())
    user = int(np.where(best.solution.admitted, problem.value[:, 0], 0.0).argmax())
    close = module._Search._close

    def without_the_user(search: Any, values: Any, mailbox: Any) -> None:
        close(search, values, mailbox)
        for index in np.flatnonzero(search._model.user == user).tolist():
            search._served.pop(index, None)

    monkeypatch.setattr(module._Search, "_close", without_the_user)
    result = edgeopt.solve(problem, Milp())
    assert result.status is Status.FEASIBLE
    memory = np.where(np.arange(4) == user, 1.0, np.inf)
    assert result.objective == edgeopt.solve(problem.replace(memory_bytes=memory), Milp()).objective > 0
    assert result.objective < best.objective <= result.bound * (1 + 1e-9)


def test_supports() -> None:
    """Other problems and models that would be too large are refused with the numbers; so are bad parameters."""
    other = ExpertCaching.from_facility(np.ones((1, 1)), np.ones((1, 1)), 1, np.ones(1))
    assert Milp().supports(other) == "expected a model-download problem, got expert-caching"
    with pytest.raises(UnsupportedProblemError, match=r"milp: the model may have [\d,]+ nonzeros, expected at most"):
        edgeopt.solve(small("energy", 0), Milp(max_nonzeros=100))
    with pytest.raises(EdgeOptError, match="threads = 0"):
        Milp(threads=0)
    with pytest.raises(EdgeOptError, match="max_nonzeros = 0"):
        Milp(max_nonzeros=0)

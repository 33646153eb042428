"""The baselines of model download: each is what it says, and none beats `slide`."""

import numpy as np
import pytest

import edgeopt
from edgeopt.problems import ModelDownload
from edgeopt.solvers.model_download.download_then_infer import separate_rates
from tests.solvers.model_download.instances import bisect, hand_made, instance, layers, random_problem, two_sizes

BASELINES = ("download-then-infer", "equal-bandwidth", "fixed-frequency", "smallest-model", "random")


def draw(seed: int) -> ModelDownload:
    """Return a random problem of one of several shapes in which all users are worth the same."""
    rng = np.random.default_rng(seed)
    return random_problem(
        rng, num_users=int(rng.integers(1, 15)), num_models=int(rng.integers(1, 5)), max_layers=6,
        energy=float(rng.choice([0.0, 0.5, 1.0])), concave=bool(rng.random() < 0.3),
        block=0.2 if rng.random() < 0.3 else None, fixed=bool(rng.random() < 0.5), tasks=int(rng.integers(1, 3)),
        band=float(rng.uniform(0.05, 0.6)),
    )  # fmt: skip


def never_beaten(seeds: range) -> None:
    behind = dict.fromkeys(BASELINES, 0)
    for seed in seeds:
        problem = draw(seed)
        best = edgeopt.solve(problem, "slide").solution.num_admitted
        for name in BASELINES:
            result = edgeopt.solve(problem, name, seed=seed)
            assert result.feasible, (seed, name, result.message)
            assert result.solution.num_admitted <= best, (seed, name)
            behind[name] += result.solution.num_admitted < best
    assert all(behind.values()), behind


def test_slide_never_admits_fewer():
    """On 60 random instances no baseline admits more users than `slide`, and each admits fewer on some."""
    never_beaten(range(60))


@pytest.mark.slow
def test_slide_never_admits_fewer_on_many():
    """The same on 1,000 random instances."""
    never_beaten(range(1000, 2000))


def test_download_then_infer_by_hand():
    """8 bits in the one second that two seconds of computing leave: 8 Hz each, twice what overlapping needs."""
    problem = hand_made()
    assert separate_rates(problem)[0].ravel() == pytest.approx([8.0, 8.0])
    assert edgeopt.solve(problem, "download-then-infer").objective == 1.0
    # 2 J / (1 * 2 cycles) is one hertz; half of it slows computing down to 2.83 s
    assert separate_rates(problem.replace(energy_j=[2.0, 1.0]))[0].ravel() == pytest.approx([8.0, 8 / (3 - 8**0.5)])


def test_download_then_infer_is_the_best_without_overlap():
    """No speed, free or a level, does with a lower rate within energy and deadline; the frequency found does it."""
    for seed in range(60):
        rng = np.random.default_rng(seed)
        levels = (0.3, 0.6, 1.0) if seed % 2 else None
        problem = random_problem(rng, energy=0.7, levels=levels, fixed=True)
        rate, speed = separate_rates(problem)
        for k, i in np.ndindex(rate.shape):
            bits, cycles, fixed = layers(problem, k, i)
            budget = problem.energy_j[k] - problem.receive_j_per_bit[k] * sum(bits)
            low, top = problem.min_frequency_hz[k], problem.top_frequency_hz[k]
            tried = np.linspace(low, top, 2001) if levels is None else problem.max_frequency_hz[k] * np.array(levels)
            tried = tried[(tried >= low) & (sum(cycles) * tried**2 <= budget)]
            left = problem.deadline_s[k] - sum(fixed) - sum(cycles) / tried
            best = min((sum(bits) / left[left > 0]), default=np.inf) if problem.allowed[k, i] else np.inf
            assert rate[k, i] <= best * (1 + 1e-9)
            if np.isfinite(rate[k, i]):
                f = speed[k, i]
                assert low <= f <= top
                assert sum(cycles) * f**2 <= budget * (1 + 1e-9)
                time = sum(bits) / rate[k, i] + sum(fixed) + sum(cycles) / f
                assert time <= problem.deadline_s[k] * (1 + 1e-9)
                assert best < np.inf or levels is None


def test_fixed_frequency_by_hand():
    """At full speed two cycles take 2 J: a limit just below shuts the user out, though `slide` serves it."""
    problem = hand_made(energy_j=[2.0, 1.9], bandwidth_hz=20.0)
    result = edgeopt.solve(problem, "fixed-frequency")
    assert result.solution.model.tolist() == [0, -1]
    assert (result.solution.frequency_hz == 1.0).all()
    assert edgeopt.solve(problem, "slide").objective == 2.0


def test_without_energy_limits_fixed_frequency_is_slide():
    """Full speed is then the best there is, so the plans are equal."""
    for seed in range(20):
        problem = random_problem(np.random.default_rng(seed), num_users=8, rewarded=seed % 2 == 0, band=0.3)
        assert edgeopt.solve(problem, "fixed-frequency").solution == edgeopt.solve(problem, "slide").solution


def test_equal_bandwidth_by_hand():
    """Users need 4, 4 and 2 Hz of 9: three shares of 3 Hz are too small, two of 4.5 do; the two of most value get them."""
    problem = hand_made(
        deadline_s=[3.0] * 3, cycles_per_flop=[1.0] * 3, min_frequency_hz=[0.1] * 3, max_frequency_hz=[1.0] * 3,
        spectral_efficiency=[1.0, 1.0, 2.0], bandwidth_hz=9.0,
    )  # fmt: skip
    plan = edgeopt.solve(problem, "equal-bandwidth").solution
    assert plan.bandwidth_hz.tolist() == [4.5, 4.5, 0.0]
    weighted = problem.replace(user_weight=[1.0, 2.0, 3.0])
    assert edgeopt.solve(weighted, "equal-bandwidth").solution.bandwidth_hz.tolist() == [0.0, 4.5, 4.5]
    blocks = edgeopt.solve(problem.replace(resource_block_hz=2.0), "equal-bandwidth").solution
    assert blocks.bandwidth_hz.tolist() == [4.0, 4.0, 0.0]


def test_smallest_model_by_hand():
    """Everybody gets the small model, though a large one is worth more; nobody gets one where it is not allowed."""
    assert edgeopt.solve(two_sizes(model_reward=[1.0, 5.0]), "smallest-model").objective == 3.0
    plan = edgeopt.solve(instance("accuracy").problem, "smallest-model").solution
    assert plan.model.tolist() == [0, -1, 1]


def test_random_depends_on_the_seed():
    """Seeds draw different plans; each drawn model is one that its user can finish."""
    problem = ModelDownload.random(seed=2)
    plans = [edgeopt.solve(problem, "random", seed=seed).solution for seed in range(5)]
    assert len({tuple(plan.model.tolist()) for plan in plans}) > 1
    for plan in plans:
        admitted = np.flatnonzero(plan.admitted)
        assert problem.allowed[admitted, plan.model[admitted]].all()


def test_bisection_of_the_oracle():
    """The oracle's bisection finds thresholds, and says when there is none."""
    assert bisect(lambda x: x >= 0.3) == pytest.approx(0.3, rel=1e-15)
    assert bisect(lambda x: x >= 300.0) == pytest.approx(300.0, rel=1e-15)
    assert bisect(lambda x: False) == 1e12

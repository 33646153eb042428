"""The environments under the interfaces of reinforcement learning: official tests, and equality with the core."""

import builtins
import importlib
import re
import sys
import warnings
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gymnasium")
pytest.importorskip("pettingzoo")

from edgeopt.errors import InvalidProblemError, MissingDependencyError
from edgeopt.problems import ClientSelection
from edgeopt.problems.client_selection.environment import SelectionEnvironment
from edgeopt.solvers.client_selection import Fastest, RandomPicks
from edgeopt.solvers.client_selection.environments import SelectionParallelEnv, SingleServerEnv
from edgeopt.solvers.client_selection.features import FEATURES, local_features
from edgeopt.solvers.client_selection.forecaster import START, ConflictForecaster

PROBLEM = ClientSelection.random(num_servers=3, num_clients=20, picks=2, rounds=30, seed=1)
UNEVEN = PROBLEM.replace(picks=[1, 2, 3], mode="share")


@pytest.mark.parametrize("problem", [PROBLEM, UNEVEN], ids=["even", "uneven"])
def test_pettingzoo_accepts_it(problem: ClientSelection, capsys: pytest.CaptureFixture[str]):
    """PettingZoo's own tests of parallel environments and of their seeds pass without a warning."""
    from pettingzoo.test import parallel_api_test, parallel_seed_test

    parallel_api_test(SelectionParallelEnv(problem), num_cycles=100)
    parallel_seed_test(lambda: SelectionParallelEnv(problem), num_cycles=20)
    assert "Passed" in capsys.readouterr().out


@pytest.mark.parametrize("server", [0, 2])
def test_gymnasium_accepts_it(server: int):
    """Gymnasium's own check of environments passes without a warning."""
    from gymnasium.utils.env_checker import check_env

    check_env(SingleServerEnv(UNEVEN, server), skip_render_check=True)


def scores(rng: np.random.Generator, env: SelectionParallelEnv) -> dict[str, np.ndarray]:
    return {a: rng.uniform(-1, 1, env.action_space(a).shape).astype(np.float32) for a in env.agents}


def test_it_plays_the_core():
    """Rewards, observations and infos are those of the core under the same seed with the picks of highest score."""
    env = SelectionParallelEnv(UNEVEN)
    core = SelectionEnvironment(UNEVEN, [77])
    forecaster = ConflictForecaster(UNEVEN.coverage)
    rng = np.random.default_rng(0)
    observations, _ = env.reset(seed=77)
    while env.agents:
        features = local_features(core, forecaster.probability)[0]
        for s, agent in enumerate(env.agents):
            np.testing.assert_array_equal(observations[agent], features[s, UNEVEN.coverage[s]])
        actions = scores(rng, env)
        picks = np.full((1, 3, 3), -1, np.int32)
        for s, agent in enumerate(env.agents):
            best = np.argsort(-actions[agent])[: UNEVEN.picks[s]]
            picks[0, s, : len(best)] = np.flatnonzero(UNEVEN.coverage[s])[best]
        result = core.step(picks)
        forecaster.update(result.outcome)
        observations, rewards, terminated, truncated, infos = env.step(actions)
        assert list(rewards.values()) == result.reward[0].tolist()
        assert not any(terminated.values())
        assert all(done == core.done for done in truncated.values())
        assert [info["round_s"] for info in infos.values()] == result.round_s[0].tolist()
        assert [info["conflicts"] for info in infos.values()] == result.tally[0, :, 0].tolist()
    assert core.done


def test_the_problems_seed_gives_the_judged_episode():
    """An episode under the problem's seed earns what the problem says of the same picks."""
    env = SelectionParallelEnv(PROBLEM)
    env.reset(seed=PROBLEM.seed)
    picks, earned = [], []
    rng = np.random.default_rng(1)
    while env.agents:
        actions = scores(rng, env)
        picks.append(
            [np.flatnonzero(PROBLEM.coverage[s])[np.argsort(-one)[:2]] for s, one in enumerate(actions.values())]
        )
        earned.append(list(env.step(actions)[1].values()))
    from edgeopt.problems import SelectionPlan

    assert PROBLEM.objective(SelectionPlan(picks)) == pytest.approx(np.mean(earned), abs=1e-12)


def test_later_episodes_are_new_and_repeatable():
    """Resets without a seed draw new episodes, the same ones after the same seeded reset."""
    runs = []
    for _ in range(2):
        env = SelectionParallelEnv(PROBLEM)
        first, _ = env.reset(seed=3)
        second, _ = env.reset()
        runs.append((first["server-0"], second["server-0"]))
    np.testing.assert_array_equal(runs[0], runs[1])
    assert (runs[0][0] != runs[0][1]).any()


def test_every_episode_starts_with_the_models_given():
    """What a forecaster learned in one episode does not leak into the next: seeds repeat."""
    env = SelectionParallelEnv(PROBLEM, ConflictForecaster(PROBLEM.coverage, models=[START] * 3, refit_every=5))
    rewards = []
    for _ in range(2):
        observations, _ = env.reset(seed=4)
        total = 0.0
        while env.agents:
            observations, reward, *_ = env.step({a: -observations[a][:, 0] for a in env.agents})
            total += sum(reward.values())
        rewards.append(total)
    assert rewards[0] == rewards[1]


def test_the_others_play_their_policies():
    """One agent that scores by speed, among servers that play `fastest`, gets what `fastest` gets on that episode."""
    env = SingleServerEnv(PROBLEM, 1, others=Fastest())
    observation, _ = env.reset(seed=PROBLEM.seed)
    total, done = 0.0, False
    while not done:
        observation, reward, _, done, info = env.step(-observation[:, FEATURES.index("latency")])
        total += reward
    import edgeopt

    report = PROBLEM.report(edgeopt.solve(PROBLEM, "fastest").solution)
    assert total == pytest.approx(report.reward[:, 1].sum(), abs=1e-9)
    assert info["round_s"] == report.round_s[-1, 1]


def test_bad_input_is_named():
    with pytest.raises(InvalidProblemError, match="server = 3: expected an integer from 0 to 2"):
        SingleServerEnv(PROBLEM, 3)
    servers = SelectionParallelEnv(PROBLEM)
    with pytest.raises(InvalidProblemError, match="no episode is running: call reset first"):
        servers.step({})
    env = SingleServerEnv(PROBLEM, 0, others=RandomPicks())
    env.reset(seed=0)
    size = int(PROBLEM.num_covered[0])
    for action in (np.zeros(size + 1), np.full(size, np.nan)):
        with pytest.raises(InvalidProblemError, match=re.escape(f"action of server 0: expected {size} numbers")):
            env.step(action)


@pytest.mark.parametrize("missing", ["gymnasium", "pettingzoo"])
def test_what_is_missing_is_named(missing: str, monkeypatch: pytest.MonkeyPatch):
    """Without one of the packages, the import says which extra to install; the solvers work without it."""
    name = "edgeopt.solvers.client_selection.environments"
    real = builtins.__import__

    def refuse(module: str, *arguments: Any, **options: Any) -> Any:
        if module.split(".")[0] == missing:
            raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)
        return real(module, *arguments, **options)

    monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingDependencyError, match=rf"needs {missing}: pip install 'edgeopt\[rl\]'"):
        importlib.import_module(name)


@pytest.mark.slow
def test_stable_baselines_trains():
    """Stable-Baselines3 trains PPO on one server among servers that pick at random, and beats an untrained policy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other people's imports
        sb3 = pytest.importorskip("stable_baselines3")
        torch = pytest.importorskip("torch")
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # the network is tiny: threads would wait for each other
        model = sb3.PPO("MlpPolicy", SingleServerEnv(PROBLEM, 0), n_steps=300, batch_size=100, seed=0, device="cpu")
        means = []
        for steps in (0, 6_000):
            if steps:
                model.learn(steps)
            env, total = SingleServerEnv(PROBLEM, 0), 0.0
            for episode in range(10):
                observation, _ = env.reset(seed=1000 + episode)
                done = False
                while not done:
                    action, _ = model.predict(observation, deterministic=True)
                    observation, reward, _, done, _ = env.step(action)
                    total += float(reward)
            means.append(total)
        torch.set_num_threads(threads)
    assert means[1] > means[0]

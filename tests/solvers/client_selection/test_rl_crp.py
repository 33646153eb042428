"""`rl-crp` with the beliefs of `reservation`: one network for all servers, its views, credit, files, other sizes."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
import edgeopt
from edgeopt.errors import InvalidFileError, UnsupportedProblemError
from edgeopt.problems import ClientSelection
from edgeopt.problems.client_selection.environment import SelectionEnvironment
from edgeopt.rng import stream
from edgeopt.solvers.client_selection import Reservation, RlCrp, RlCrpPlain, SelectionPlanner, TrainedPolicy
from edgeopt.solvers.client_selection.features import FEATURES, covered_features
from edgeopt.solvers.client_selection.learner import Learner, LearnerSettings
from edgeopt.solvers.client_selection.reservation import Beliefs
from edgeopt.solvers.client_selection.reserved_features import (
    RESERVED_FEATURES,
    SHARPNESS,
    own_numbers,
    reserved_features,
    time_credit,
)
from edgeopt.solvers.client_selection.rl import play_policy
from edgeopt.solvers.client_selection.trained_policy import scores_of
from edgeopt.tensors import save_tensors

SMALL = LearnerSettings(episodes=2, hidden=4, epochs=2, minibatches=2, forecasts=False, reserves=True)


@pytest.fixture(scope="module")
def problem() -> ClientSelection:
    return ClientSelection.random(num_servers=3, num_clients=12, picks=2, rounds=12, seed=3)


def trained(problem: ClientSelection, iterations: int = 2) -> TrainedPolicy:
    learner = Learner(problem, SMALL, 0)
    for _ in range(iterations):
        learner.step()
    return learner.policy()


@pytest.mark.parametrize("mode", ["fail", "share"])
def test_a_policy_picks_from_its_views_what_the_network_scores_highest(mode: str):
    """Played from views, the policy is the network on the features of the batch: beliefs, own numbers, worth and all."""
    problem = ClientSelection.random(num_servers=3, num_clients=12, picks=2, rounds=30, seed=3, mode=mode)
    policy = trained(problem)
    plan = play_policy(problem, policy)
    environment, beliefs = SelectionEnvironment(problem), Beliefs(Reservation(), problem, [0])
    own = np.stack([own_numbers(0, s, problem.num_covered.max()) for s in range(3)])[None]
    weights = {name: array[0] for name, array in policy.weights.items()}
    while not environment.done:
        features = reserved_features(beliefs, covered_features(environment), own)
        for s, count in enumerate(problem.num_covered):
            seen = features[0, s, :count]
            score = scores_of(weights, seen) + SHARPNESS * seen[:, -1]
            chosen = np.flatnonzero(problem.coverage[s])[np.argsort(-score, kind="stable")[:2]]
            assert sorted(chosen.tolist()) == plan.picks[environment.now, s].tolist()
        environment.step(plan.picks[environment.now][None])
        beliefs.update(environment)


def test_features_are_what_they_are_called(problem: ClientSelection):
    """Before the first round: half known by hand, the rest from the beliefs; 0 where there is no client."""
    environment, beliefs = SelectionEnvironment(problem), Beliefs(Reservation(), problem, [0])
    own = np.full((1, 3, problem.num_covered.max()), 0.25, np.float32)
    features = reserved_features(beliefs, covered_features(environment), own)
    assert not features[0][~beliefs.filled].any()
    seen = features[0][beliefs.filled]
    named = {name: seen[:, column] for column, name in enumerate(RESERVED_FEATURES)}
    busy = 2 / 3 * 0.1 + 1 / 3 * 0.6
    np.testing.assert_allclose(named["busy"], busy, rtol=1e-6)
    np.testing.assert_allclose(named["taken in this phase"], Reservation().prior, rtol=1e-6)
    np.testing.assert_allclose(named["conflict forecast"], 1 - (1 - busy) * (1 - Reservation().prior), rtol=1e-6)
    assert not named["held in this phase"].any()
    assert (named["a number of its own"] == 0.25).all()
    free = (1 - busy) * (1 - Reservation().prior)
    share = named["latency"]
    arrives = np.where(share >= 1, 0.0, free)
    expected = arrives - Reservation().caution * (1 - free) + np.log(np.maximum(1e-3, arrives)) - share
    np.testing.assert_allclose(named["worth"], expected, rtol=1e-4)
    assert RESERVED_FEATURES[: len(FEATURES)] == FEATURES


def test_a_pick_answers_for_the_time_that_it_adds():
    """The credit of a pick is the time of the round less what it would be without that pick."""
    seconds = np.random.default_rng(0).choice([0.2, 0.5, 0.7, 1.0], size=(50, 4))
    without = np.stack([np.delete(seconds, k, axis=1).max(axis=1) for k in range(4)], axis=1)
    np.testing.assert_allclose(time_credit(seconds), seconds.max(axis=1, keepdims=True) - without)
    assert time_credit(np.array([[0.4]])).tolist() == [[0.4]]


def test_own_rewards_hold_the_time_of_the_pick(problem: ClientSelection):
    """With one pick per server, what the pick brings by itself is the whole reward, time included."""
    learner = Learner(problem.replace(picks=1), SMALL, 0)
    play, _ = learner._play([1, 2])
    np.testing.assert_allclose(play.own[..., 0], play.reward, atol=1e-6)


def test_a_policy_plays_problems_of_other_sizes_weights_and_time_outs(problem: ClientSelection, tmp_path: Path):
    """Train small, play large; read from its file the policy is the same. A plain policy refuses."""
    policy = trained(problem)
    policy.save(tmp_path / "policy.safetensors")
    loaded = TrainedPolicy.load(tmp_path / "policy.safetensors")
    large = ClientSelection.random(num_servers=5, num_clients=40, picks=3, rounds=10, latency_weight=2.0)
    plan = play_policy(large, policy)
    assert large.is_feasible(plan)
    assert plan == play_policy(large, loaded)
    assert plan == edgeopt.solve(large, RlCrp(policy=str(tmp_path / "policy.safetensors"))).solution
    assert loaded.terms == policy.terms
    plain = RlCrpPlain(iterations=1, episodes=1).train(problem)
    with pytest.raises(UnsupportedProblemError, match="trained for 3 servers, the problem has 5"):
        play_policy(large, plain)


def test_a_planner_picks_what_the_environment_plays(problem: ClientSelection):
    """On the problem it was trained on, each server's policy needs nothing but its views."""
    policy = trained(problem)
    planner = SelectionPlanner(problem, [policy.policy(server) for server in range(3)])
    assert len(planner.plan(0)) == 6


def test_a_resumed_training_is_one_long_run(problem: ClientSelection, tmp_path: Path):
    whole, first, second = (Learner(problem, SMALL, 0) for _ in range(3))
    for _ in range(3):
        whole.step()
    first.step()
    first.save(tmp_path / "checkpoint.safetensors")
    second.restore(tmp_path / "checkpoint.safetensors")
    for _ in range(2):
        second.step()
    for name, weight in whole.policy().weights.items():
        np.testing.assert_array_equal(second.policy().weights[name], weight)


def test_large_problems_play_fewer_episodes_at_once():
    learner = Learner(ClientSelection.random(), dataclasses.replace(SMALL, episodes=4096), 0)
    assert learner._episodes == 74  # 100 rounds of 5 x 28 places each


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "other"}, "mode"),
        ({"phases": 0}, "phases"),
        ({"rounds": 0.5}, "rounds"),
        ({"latency_weight": "much"}, "latency_weight"),
    ],
)
def test_files_of_wrong_terms_are_refused(problem: ClientSelection, tmp_path: Path, changes: dict, message: str):
    arrays, values = trained(problem, 1).to_data()
    header = {"kind": "selection-policy", "schema_version": 1, **values, "terms": values["terms"] | changes}
    save_tensors(tmp_path / "policy.safetensors", header, arrays)
    with pytest.raises(InvalidFileError, match=rf"policy\.safetensors: .*{message}"):
        TrainedPolicy.load(tmp_path / "policy.safetensors")


# --- demonstrations ---------------------------------------------------------------------------------------------------------


def test_servers_are_shown_what_matching_picks_and_what_they_would_have_seen():
    """Played by hand: the picks of `matching`, each server's own, beside the features that its beliefs give on the way."""
    picks = np.array([3, 1, 2])
    problem = ClientSelection.random(num_servers=3, num_clients=14, picks=2, rounds=6, seed=3)
    problem = problem.replace(picks=np.minimum(picks, problem.num_covered))
    learner = Learner(problem, dataclasses.replace(SMALL, demonstrations=4), 0)
    shown = learner._shown(lambda: False)
    assert shown.weight == 1.0
    seed = int(stream(0, "demonstrations", 0).integers(2**62, size=2)[1])  # the second episode
    episode = problem.replace(seed=seed)
    plan = edgeopt.solve(episode, "matching").solution
    environment, beliefs = SelectionEnvironment(episode), Beliefs(Reservation(), episode, [seed])
    own = np.stack([own_numbers(seed, s, problem.num_covered.max()) for s in range(3)])[None]
    for t in range(problem.rounds):
        features = reserved_features(beliefs, covered_features(environment), own)[0]
        sample = 2 * t + 1
        for s, count in enumerate(problem.picks):
            np.testing.assert_array_equal(shown.observation[s, sample], features[s])
            named = problem.covered_clients[s][shown.action[s, sample, :count].numpy()]
            assert sorted(named.tolist()) == [client for client in plan.picks[t, s].tolist() if client >= 0]
        environment.step(plan.picks[t][None])
        beliefs.update(environment)


def test_imitation_makes_the_shown_picks_likelier(problem: ClientSelection):
    """After iterations with demonstrations, the picks of `matching` in other episodes are likelier than without any."""
    surprise = {}
    for count in (0, 6):
        learner = Learner(problem, dataclasses.replace(SMALL, demonstrations=count, learning_rate=1e-2), 0)
        for _ in range(6):
            learner.step()
        judge = Learner(problem, dataclasses.replace(SMALL, demonstrations=1), 9)
        judge._scorer.load_state_dict(learner._scorer.state_dict())
        shown = judge._shown(lambda: False)
        surprise[count] = -judge._evaluate(shown.observation, shown.action).logs.mean().item()
    assert surprise[6] < surprise[0] - 0.1


def test_a_training_with_demonstrations_resumes(problem: ClientSelection, tmp_path: Path):
    """Cut between two iterations with demonstrations, it goes on to the same weights."""
    settings = dataclasses.replace(SMALL, demonstrations=3)
    whole, first, second = (Learner(problem, settings, 0) for _ in range(3))
    for _ in range(4):
        whole.step()
    first.step()
    first.save(tmp_path / "checkpoint.safetensors")
    second.restore(tmp_path / "checkpoint.safetensors")
    for _ in range(3):
        second.step()
    for name, weight in whole.policy().weights.items():
        np.testing.assert_array_equal(second.policy().weights[name], weight)

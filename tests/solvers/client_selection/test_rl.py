"""The learner: its networks, that servers learn apart, that runs repeat and resume, and that it learns."""

import dataclasses
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import edgeopt
from edgeopt.errors import EdgeOptError, InvalidFileError, MissingDependencyError, UnsupportedProblemError
from edgeopt.problems import ClientSelection
from edgeopt.problems.client_selection.environment import SelectionEnvironment
from edgeopt.rl import Scorer, ppo
from edgeopt.rng import stream
from edgeopt.schedule import Feedback
from edgeopt.solvers.client_selection import (
    RandomPicks,
    RlCrp,
    RlCrpPlain,
    RlNoCrp,
    RlNoFairness,
    SelectionPlanner,
    TrainedPolicy,
)
from edgeopt.solvers.client_selection.features import local_features, view_features
from edgeopt.solvers.client_selection.forecaster import START
from edgeopt.solvers.client_selection.learner import Learner, LearnerSettings, _Play
from edgeopt.solvers.client_selection.rl import play_policy
from edgeopt.solvers.client_selection.trained_policy import scores_of
from edgeopt.tensors import save_tensors

SMALL = LearnerSettings(episodes=2, hidden=4, epochs=2, minibatches=2)


@pytest.fixture(scope="module")
def problem() -> ClientSelection:
    return ClientSelection.random(num_servers=3, num_clients=12, picks=2, rounds=12, seed=3)


def trained(problem: ClientSelection, iterations: int = 2, seed: int = 0) -> TrainedPolicy:
    learner = Learner(problem, SMALL, seed)
    for _ in range(iterations):
        learner.step()
    return learner.policy()


# --- networks ---------------------------------------------------------------------------------------------------------


def make_scorer(servers: int = 2, features: int = 5, hidden: int = 4) -> Scorer:
    return Scorer(servers, features, hidden, torch.Generator().manual_seed(1))


def test_a_policy_scores_as_its_network(problem: ClientSelection):
    """The policy, which needs no torch, has the scores of the network that was trained."""
    learner = Learner(problem, SMALL, 0)
    learner.step()
    policy = learner.policy()
    rng = np.random.default_rng(0)
    for server, count in enumerate(problem.num_covered):
        seen = rng.random((count, 5), np.float32)
        inputs = torch.zeros(3, 1, int(count), 5)
        inputs[server, 0] = torch.from_numpy(seen)
        score, _ = learner._scorer(inputs, torch.ones(3, int(count), dtype=torch.bool))
        np.testing.assert_allclose(
            scores_of({name: w[server] for name, w in policy.weights.items()}, seen),
            score[server, 0].detach(),
            rtol=1e-4,
            atol=1e-6,
        )


def test_a_view_has_the_features_of_the_environment(problem: ClientSelection):
    """What a server sees in play is what it saw in training, row by row."""
    environment = SelectionEnvironment(problem)
    rng = np.random.default_rng(1)
    while not environment.done:
        features = local_features(environment)
        for server in range(problem.num_servers):
            view = environment.view(server)
            np.testing.assert_allclose(
                view_features(view, problem.timeout_s), features[0, server, view.clients], rtol=1e-6
            )
        picks = [rng.permutation(environment.view(s).clients)[: problem.picks[s]] for s in range(3)]
        environment.step(np.array([picks]))


# --- learning apart -----------------------------------------------------------------------------------------------------


def test_servers_learn_apart(problem: ClientSelection):
    """What server 1 and 2 saw, picked and earned changes nothing about what server 0 learns."""
    learners = [Learner(problem, SMALL, 0) for _ in range(2)]
    play, _ = learners[0]._play([5, 6])
    noise = torch.Generator().manual_seed(0)
    other = _Play(
        features=play.features.clone(), picks=play.picks.clone(), logs=play.logs.clone(), value=play.value.clone(),
        reward=play.reward.clone(), own=play.own.clone(),
    )  # fmt: skip
    for part in (other.features, other.value, other.reward, other.own):
        part[1:] += torch.rand(part[1:].shape, generator=noise)
    learners[0]._learn(play)
    learners[1]._learn(other)
    for name, weight in learners[0].policy().weights.items():
        np.testing.assert_array_equal(weight[0], learners[1].policy().weights[name][0], err_msg=name)
        assert not np.array_equal(weight[1:], learners[1].policy().weights[name][1:])


def test_a_server_sees_only_its_own_history(problem: ClientSelection):
    """Server 0 picks the same whatever happened to server 1, and otherwise when something else happened to itself."""
    policy = trained(problem, 6)

    def picks(outcome_0: int, outcome_1: int) -> list[list[int]]:
        planner = SelectionPlanner(problem, [policy.policy(server) for server in range(3)])
        feedback, found = None, []
        for round in range(8):
            plan = planner.plan(round, feedback)
            found.append(plan.of_server(0).client.tolist())
            conflict = np.where(plan.server == 0, outcome_0, np.where(plan.server == 1, outcome_1, 0)).astype(bool)
            feedback = Feedback(round=round, plan=plan, seconds=1.0, completed=~conflict, conflict=conflict)
        return found

    assert picks(0, 0) == picks(0, 1)
    assert picks(1, 0) == picks(1, 1)
    assert picks(0, 0) != picks(1, 0)


def test_a_planner_plays_as_the_environment_does(problem: ClientSelection):
    """Fed with what the environment says, the planner gives the plan that `play_policy` gives."""
    steady = problem.replace(rate_sigma=0.0)
    policy = trained(steady)
    expected = play_policy(steady, policy)
    planner = SelectionPlanner(steady, [policy.policy(server) for server in range(3)])
    environment, feedback = SelectionEnvironment(steady), None
    for round in range(steady.rounds):
        plan = planner.plan(round, feedback)
        picks = plan.client.reshape(1, 3, 2)
        assert np.sort(picks[0]).tolist() == expected.picks[round].tolist()
        before = environment.delivered.copy()
        result = environment.step(picks)
        arrived = (environment.delivered - before)[0, plan.server, plan.client].astype(bool)
        conflict = result.outcome[0, plan.server, plan.client] == 1
        feedback = Feedback(round=round, plan=plan, seconds=1.0, completed=arrived, conflict=conflict)


def test_a_round_without_feedback_tells_nothing(problem: ClientSelection):
    """Where nothing was measured, servers do not take in the outcomes of an earlier round once more."""

    class Watch:
        def __init__(self):
            self.seen = []

        def pick(self, view):
            self.seen.append(view.outcome.copy())
            return view.clients[: view.num_picks]

    watches = [Watch() for _ in range(3)]
    planner = SelectionPlanner(problem, watches)
    plan = planner.plan(0)
    planner.plan(1, Feedback(round=0, plan=plan, seconds=1.0, conflict=np.ones(len(plan), bool)))
    planner.plan(2, None)
    for watch in watches:
        assert [int((outcome == 1).sum()) for outcome in watch.seen] == [0, 2, 0]
        assert (watch.seen[2] == -1).all()


def test_learning_fits_the_models_to_what_was_seen(problem: ClientSelection):
    """After an iteration each server's model is START fitted to the outcomes that the server saw in its episodes."""
    learner = Learner(problem, SMALL, 0)
    learner.step()
    again = Learner(problem, SMALL, 0)
    seeds = stream(0, "episodes", 0).integers(2**62, size=SMALL.episodes).tolist()
    outcomes, update = [], again._forecaster.update
    again._forecaster.update = lambda outcome: (outcomes.append(outcome), update(outcome))
    again._play(seeds)
    seen = np.stack(outcomes, axis=-1)  # (E, S, C, T)
    for server, model in enumerate(learner.policy().models):
        sequences = seen[:, server, problem.coverage[server]].reshape(-1, problem.rounds)
        expected, _ = START.fit(sequences, iterations=10, prior=1.0)
        assert model != START
        np.testing.assert_allclose(model.transition, expected.transition, atol=1e-12)
        np.testing.assert_allclose(model.emission, expected.emission, atol=1e-12)


@pytest.mark.parametrize("name", ["random", "rl-crp"])
def test_a_restored_planner_goes_on(problem: ClientSelection, name: str):
    """A planner restored after four rounds, one of them without feedback, plans the next four as the first one does."""
    policy = trained(problem) if name == "rl-crp" else RandomPicks()
    first, second = (SelectionPlanner(problem, [policy.policy(s, 9) for s in range(3)]) for _ in range(2))
    feedback = None
    for round in range(8):
        if round == 4:
            second.restore(first.state())
        plan = first.plan(round, feedback)
        if round >= 4:
            assert second.plan(round, feedback) == plan
        conflict = np.arange(len(plan)) % 3 == round % 3
        feedback = Feedback(round=round, plan=plan, seconds=1.0, completed=~conflict, conflict=conflict)
        feedback = None if round == 2 else feedback
    with pytest.raises(edgeopt.InvalidProblemError, match="has planned 8 rounds"):
        first.restore(second.state())


# --- advantages -----------------------------------------------------------------------------------------------------------


def test_value_targets_are_discounted_returns(problem: ClientSelection):
    """With trace 1 the value target of a round is the discounted sum of the rewards from there to the horizon."""
    settings = dataclasses.replace(SMALL, trace=1.0, discount=0.8)
    learner = Learner(problem, settings, 0)
    play, _ = learner._play([1, 2])
    _, target = learner._advantages(play)
    expected = torch.zeros_like(play.reward)
    for t in range(problem.rounds):
        for later in range(t, problem.rounds):
            expected[:, t] += 0.8 ** (later - t) * play.reward[:, later]
    torch.testing.assert_close(target, expected)


def test_advantages_are_standardised_over_the_picks_of_a_server(problem: ClientSelection):
    """Mean zero and variance one over what each server picks, also where another picks more; one pick alone has none."""
    learner = Learner(problem.replace(picks=[1, 2, 6]), SMALL, 0)
    play, _ = learner._play([1, 2])
    gain, _ = learner._advantages(play)
    for server, count in enumerate((1, 2, 6)):
        own = gain[server, ..., :count]
        assert float(own.mean()) == pytest.approx(0.0, abs=1e-5)
        assert float(own.square().mean()) == pytest.approx(1.0, abs=1e-4)
    alone = ClientSelection(
        coverage=[[True, True]], picks=1, compute_s=1.0, payload_bits=1e6, rate_bps=1e6, timeout_s=4.0, rounds=1
    )
    learner = Learner(alone, dataclasses.replace(SMALL, episodes=1), 0)
    learner.step()
    assert all(np.isfinite(weight).all() for weight in learner.policy().weights.values())


def test_own_rewards_are_the_reward_without_latency(problem: ClientSelection):
    """What the picks bring by themselves, less the latency term of the round, is the reward."""
    learner = Learner(problem.replace(latency_weight=0.0), SMALL, 0)
    play, _ = learner._play([1, 2])
    torch.testing.assert_close(play.own.sum(dim=3), play.reward)


# --- runs -------------------------------------------------------------------------------------------------------------------


def test_same_seed_same_policy(problem: ClientSelection):
    """Two trainings of one seed are equal bit by bit; another seed gives another policy."""
    first, again, other = trained(problem), trained(problem), trained(problem, seed=1)
    assert all(np.array_equal(first.weights[name], again.weights[name]) for name in first.weights)
    assert not np.array_equal(first.weights["encode"], other.weights["encode"])
    quick = RlCrp(iterations=2, episodes=2)
    plans = [edgeopt.solve(problem, quick, seed=4).solution for _ in range(2)]
    assert plans[0] == plans[1]


def test_a_resumed_training_is_one_long_run(problem: ClientSelection, tmp_path: Path):
    """Three iterations, a checkpoint, and two more in another learner are equal to five in one."""
    whole, first, second = (Learner(problem, SMALL, 0) for _ in range(3))
    for _ in range(5):
        whole.step()
    for _ in range(3):
        first.step()
    first.save(tmp_path / "checkpoint.safetensors")
    second.restore(tmp_path / "checkpoint.safetensors")
    assert second.rewards == first.rewards
    for _ in range(2):
        second.step()
    assert second.rewards == whole.rewards
    for name, weight in whole.policy().weights.items():
        np.testing.assert_array_equal(second.policy().weights[name], weight)
    for model, other in zip(whole.policy().models, second.policy().models, strict=True):
        np.testing.assert_array_equal(model.transition, other.transition)


def test_solver_resumes_from_its_checkpoint(problem: ClientSelection, tmp_path: Path):
    """A training that stopped after two iterations goes on to four, as if it had not stopped; others are refused."""
    file = str(tmp_path / "checkpoint.safetensors")
    RlCrp(iterations=2, episodes=2, checkpoint=file).train(problem, seed=7)
    resumed = RlCrp(iterations=4, episodes=2, checkpoint=file).train(problem, seed=7)
    whole = RlCrp(iterations=4, episodes=2).train(problem, seed=7)
    assert resumed.facts["iterations"] == 4
    assert all(np.array_equal(resumed.weights[name], whole.weights[name]) for name in whole.weights)
    with pytest.raises(InvalidFileError, match=r"checkpoint.safetensors: seed = 7: this training has 8"):
        RlCrp(iterations=4, episodes=2, checkpoint=file).train(problem, seed=8)
    with pytest.raises(InvalidFileError, match="forecasts = False: this training has True"):
        RlCrpPlain(iterations=4, episodes=2, minibatches=4, learning_rate=3e-3, checkpoint=file).train(problem, seed=7)


def test_an_interrupt_leaves_a_checkpoint_of_whole_iterations(
    problem: ClientSelection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Ctrl-C between two gradient steps of the third iteration: what goes on from the checkpoint is one long run."""
    solver = RlCrp(iterations=4, episodes=2, checkpoint=str(tmp_path / "checkpoint.safetensors"))
    whole = RlCrp(iterations=4, episodes=2).train(problem)
    shorten, steps = ppo.shorten, 0

    def interrupted(gradients: list[torch.Tensor]):
        nonlocal steps
        steps += 1
        if steps == 2 * 16 + 3:  # 16 gradient steps per iteration
            raise KeyboardInterrupt
        shorten(gradients)

    with monkeypatch.context() as patch:
        patch.setattr(ppo, "shorten", interrupted)
        assert solver.train(problem).facts["iterations"] == 2
    resumed = solver.train(problem)
    for name, weight in whole.weights.items():
        np.testing.assert_array_equal(resumed.weights[name], weight)


def test_a_checkpoint_needs_a_folder(problem: ClientSelection, tmp_path: Path):
    """A checkpoint that could never be written is an error before the training, not after it."""
    with pytest.raises(EdgeOptError, match="there is no folder"):
        RlCrp(checkpoint=str(tmp_path / "nowhere" / "checkpoint.safetensors")).train(problem)


def test_patience_ends_a_training(problem: ClientSelection):
    """With a step so small that nothing improves for long, patience ends the training before the last iteration."""
    policy = RlCrp(iterations=60, episodes=1, hidden=2, epochs=1, learning_rate=1e-9, patience=3).train(problem)
    assert 13 <= policy.facts["iterations"] < 60


def test_limits_and_interrupts_play_what_was_learned(problem: ClientSelection, monkeypatch: pytest.MonkeyPatch):
    """Without time, and after Ctrl-C in the second iteration, there is a feasible plan and the limit is named."""
    result = edgeopt.solve(problem, RlCrp(), time_limit=0)
    assert (result.limit, result.feasible) == ("time", True)
    step = Learner.step

    def interrupted(learner: Learner, *arguments):
        if learner.iteration == 1:
            raise KeyboardInterrupt
        return step(learner, *arguments)

    monkeypatch.setattr(Learner, "step", interrupted)
    result = edgeopt.solve(problem, RlCrp(episodes=2))
    assert (result.limit, result.feasible) == ("interrupt", True)
    assert RlCrp(episodes=2).train(problem).facts["iterations"] == 1


def test_ablations_differ_in_what_they_say(problem: ClientSelection):
    """Without forecasts there is no model in the policy; without fairness training is on another reward."""
    options = {"iterations": 2, "episodes": 2}
    full, blind, unfair = (kind(**options).train(problem) for kind in (RlCrpPlain, RlNoCrp, RlNoFairness))
    assert len(full.models) == 3
    assert blind.models == ()
    assert unfair.facts["problem"] == problem.replace(fairness_weight=0.0).fingerprint() != full.facts["problem"]


@pytest.mark.parametrize("asked", [3, 14])
def test_a_limit_within_an_iteration_leaves_everything_as_before(problem: ClientSelection, asked: int):
    """Stopped at the third of twelve rounds or in the second of four minibatches: the next step is as if nothing had been."""
    plain, stopped = Learner(problem, SMALL, 0), Learner(problem, SMALL, 0)
    count = itertools.count(1)
    for learner in (plain, stopped):
        learner.step()
    assert stopped.step(lambda: next(count) >= asked) is None
    assert stopped.iteration == 1
    assert plain.step() == stopped.step()
    for name, weight in plain.policy().weights.items():
        np.testing.assert_array_equal(stopped.policy().weights[name], weight)


# --- files ------------------------------------------------------------------------------------------------------------------


def test_policies_come_back_from_files(problem: ClientSelection, tmp_path: Path):
    """A policy read back plays the same plan, also through the solver's parameter."""
    policy = trained(problem)
    file = tmp_path / "policy.safetensors"
    policy.save(file)
    again = TrainedPolicy.load(file)
    assert again.facts == policy.facts
    assert play_policy(problem, again) == play_policy(problem, policy)
    assert edgeopt.solve(problem, RlCrp(policy=str(file))).solution == play_policy(problem, policy)
    other = ClientSelection.random(num_servers=2, num_clients=8, picks=2, rounds=5, seed=1)
    with pytest.raises(UnsupportedProblemError, match="trained for 3 servers, the problem has 2"):
        play_policy(other, again)


@pytest.mark.parametrize("damage", ["cut", "text", "kind"])
def test_damaged_files_are_refused(problem: ClientSelection, tmp_path: Path, damage: str):
    """A file that is cut short, is something else, or is a checkpoint is an error that names the file."""
    file = tmp_path / "policy.safetensors"
    trained(problem, 1).save(file)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "text":
        file.write_text("nothing of the kind")
    else:
        learner = Learner(problem, SMALL, 0)
        learner.step()
        learner.save(file)
    with pytest.raises(InvalidFileError, match=r"policy\.safetensors: "):
        TrainedPolicy.load(file)


@pytest.mark.parametrize(
    ("array", "value"),
    [("weights.encode", np.zeros((3, 5), np.float32)), ("models.start", np.ones((1, 2)) / 2), ("facts", "text")],
)
def test_policies_of_wrong_shape_are_refused(problem: ClientSelection, tmp_path: Path, array: str, value: object):
    """A file whose parts do not fit together is an error that names the file."""
    arrays, values = trained(problem, 1).to_data()
    header = {"kind": "selection-policy", "schema_version": 1, **values}
    (header if array == "facts" else arrays)[array] = value
    save_tensors(tmp_path / "policy.safetensors", header, arrays)
    with pytest.raises(InvalidFileError, match=r"policy\.safetensors: not a whole policy"):
        TrainedPolicy.load(tmp_path / "policy.safetensors")


def test_without_torch_the_message_says_what_to_install(problem: ClientSelection, monkeypatch: pytest.MonkeyPatch):
    """The learner needs torch; a trained policy and the other solvers do not."""
    policy = trained(problem, 1)
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in ("learner", "plackett_luce", "scorer"):
        monkeypatch.delitem(sys.modules, f"edgeopt.solvers.client_selection.{name}", raising=False)
    with pytest.raises(MissingDependencyError, match=r"rl-crp needs torch: pip install 'edgeopt\[train\]'"):
        edgeopt.solve(problem, RlCrp())
    assert problem.is_feasible(play_policy(problem, policy))
    assert edgeopt.solve(problem, RandomPicks()).feasible


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"iterations": 0}, "iterations = 0"),
        ({"episodes": 1.5}, "episodes = 1.5"),
        ({"learning_rate": float("nan")}, "learning_rate = nan"),
        ({"demonstrations": -1}, "demonstrations = -1"),
        ({"patience": 0}, "patience = 0"),
    ],
)
def test_wrong_parameters(wrong: dict[str, float], message: str):
    """Errors name the parameter, its value and what was expected."""
    with pytest.raises(EdgeOptError, match=message):
        RlCrp(**wrong)


# --- it learns ----------------------------------------------------------------------------------------------------------------


def test_learns_to_keep_away_from_busy_clients():
    """Half of a lone server's clients are always busy: the trained policy hardly picks them, random picks often do."""
    busy = np.zeros((30, 10), bool)
    busy[:, ::2] = True
    problem = ClientSelection(
        coverage=np.ones((1, 10), bool), picks=2, compute_s=1.0, payload_bits=1e6, rate_bps=1e6, timeout_s=4.0,
        rounds=30, busy=busy,
    )  # fmt: skip
    learned = edgeopt.solve(problem, RlCrp(iterations=20, episodes=4), seed=0)
    random = edgeopt.solve(problem, RandomPicks(), seed=0)
    assert problem.report(learned.solution).conflict_rate < 0.25 < problem.report(random.solution).conflict_rate
    assert learned.objective > random.objective


def test_forecasts_start_from_a_model_that_lasts():
    """The model that fitting starts from tells a calm from a contested state, both of which last."""
    assert START.transition.diagonal().min() > 0.8
    assert START.emission[1, 1] > START.emission[0, 1]

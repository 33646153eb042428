"""`Learner`: independent proximal policy optimisation, one learner per server, on many episodes at once. Torch."""

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeopt.errors import EdgeOptError, InvalidFileError, quoted
from edgeopt.fields import Fields, in_file
from edgeopt.npz import Form
from edgeopt.problems import ClientSelection
from edgeopt.problems.client_selection.environment import SelectionEnvironment
from edgeopt.problems.client_selection.kernels import CONFLICTS
from edgeopt.rl.plackett_luce import log_probabilities, sample_top
from edgeopt.rl.ppo import (
    Evaluation,
    Experience,
    Ppo,
    Shown,
    advantages,
    improve,
    mean_by_learner,
    positive_integer,
    standardised,
)
from edgeopt.rl.scorer import Scorer
from edgeopt.rng import stream
from edgeopt.solve import solve
from edgeopt.solvers.client_selection.features import FEATURES, LATENCY, covered_features
from edgeopt.solvers.client_selection.forecaster import START, ConflictForecaster
from edgeopt.solvers.client_selection.matching import Matching
from edgeopt.solvers.client_selection.reservation import Beliefs, Reservation
from edgeopt.solvers.client_selection.reserved_features import (
    RESERVED_FEATURES,
    SHARPNESS,
    own_numbers,
    reserved_features,
    time_credit,
)
from edgeopt.solvers.client_selection.trained_policy import TrainedPolicy, policy_layout, terms_of
from edgeopt.storage import Arrays
from edgeopt.tensors import load_tensors, save_tensors

KIND = "selection-checkpoint"
MOST_EPISODES, MOST_UNITS = 1 << 16, 1 << 12
MOST_NUMBERS = 1 << 20
"""Clients that all servers look at in one iteration of a learner that reserves, unless one episode has more."""
MUCH = 1e6
"""The score of a pick that is given: beyond what noise and networks can reach."""
_ADAM = ("exp_avg", "exp_avg_sq", "step")


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerSettings(Ppo):
    """Hyper-parameters of `Learner`, beside those of `Ppo`.

    Parameters
    ----------
    episodes : played side by side in each iteration, each with chance of its own.
    hidden : width of the networks.
    forecasts : whether servers forecast conflicts by hidden Markov models of their own.
    reserves : whether they keep the beliefs of `reservation` instead, and share one network.
    demonstrations : first iterations in which servers are also shown what `matching` picks, in as many episodes as they
        play; how much it counts falls from 1 to 0 over them.
    """

    episodes: int = 16
    hidden: int = 32
    forecasts: bool = True
    reserves: bool = False
    demonstrations: int = 0

    def __post_init__(self) -> None:
        Ppo.__post_init__(self)  # a class with slots is made anew: super() would look for the first one
        positive_integer("episodes", self.episodes, MOST_EPISODES)
        positive_integer("hidden", self.hidden, MOST_UNITS)
        if not isinstance(self.demonstrations, int) or self.demonstrations < 0:
            raise EdgeOptError(f"demonstrations = {quoted(self.demonstrations)}: expected an integer >= 0")


@dataclass(frozen=True, slots=True)
class Iteration:
    """What an iteration of training played: its number from 1, mean reward per server and round, conflict rate."""

    number: int
    reward: float
    conflict_rate: float


@dataclass(frozen=True, slots=True)
class _Play:
    """What one iteration played; axes S servers, T rounds, E episodes, N covered clients of a server."""

    features: Tensor  # (S, T, E, N, F)
    picks: Tensor  # (S, T, E, M), positions among the covered
    logs: Tensor  # (S, T, E, M), log-probability of each pick
    value: Tensor  # (S, T, E)
    reward: Tensor  # (S, T, E), in units of the largest weight
    own: Tensor  # (S, T, E, M), the part of the reward that each pick brings by itself


class _Stopped(Exception):
    """Leaves an iteration that a limit has cut short."""


class Learner:
    """Trains the servers of one problem side by side; each learns from its own views and rewards alone.

    With ``reserves`` all servers share one network, which learns from what each of them saw and earned: it can then play
    problems of other sizes. In an iteration fewer episodes are played where they would have more than `MOST_NUMBERS`.

    All chance is drawn from the seed and the number of the iteration: a checkpoint needs no random state, and a resumed
    training is equal to one long run. The episodes of training draw chance of their own, never that of the problem's
    seed; only what a table records is the same in all.

    Parameters
    ----------
    problem : what to train on.
    settings : hyper-parameters.
    seed : same seed, same policy.
    """

    def __init__(self, problem: ClientSelection, settings: LearnerSettings, seed: int) -> None:
        self.problem, self.settings, self.seed = problem, settings, seed
        self.rewards: list[float] = []
        """Mean reward of every iteration so far."""
        generator = torch.Generator().manual_seed(int(stream(seed, "scorer").integers(2**63)))
        networks, features = (1, RESERVED_FEATURES) if settings.reserves else (problem.num_servers, FEATURES)
        self._scorer = Scorer(networks, len(features), settings.hidden, generator)
        self._adam = settings.optimizer(self._scorer.parameters())
        models = [START] * problem.num_servers
        self._forecaster = ConflictForecaster(problem.coverage, models=models, refit_every=None, window=problem.rounds)
        self._environment: SelectionEnvironment | None = None
        # of rewards, so that what is learned does not depend on the unit of the weights
        self._unit = max(problem.latency_weight, problem.conflict_weight, problem.fairness_weight) or 1.0
        self._clients = problem.covered_clients
        self._covered = torch.from_numpy(np.arange(self._clients.shape[1]) < problem.num_covered[:, None])
        self._episodes = settings.episodes
        if settings.reserves:
            self._episodes = max(1, min(settings.episodes, MOST_NUMBERS // (problem.rounds * self._clients.size)))
        self._taken = torch.from_numpy(np.arange(problem.max_picks) < problem.picks[:, None])  # (S, M)

    @property
    def iteration(self) -> int:
        """Iterations so far."""
        return len(self.rewards)

    def step(self, stopped: Callable[[], bool] = lambda: False) -> Iteration | None:
        """Play the episodes of one iteration, and learn from them.

        Returns None if `stopped`, which is asked before every round and minibatch, says so; then, and after an interrupt,
        everything is as before.
        """
        before = copy.deepcopy((self._scorer.state_dict(), self._adam.state_dict())), self._forecaster.models
        try:
            with _one_thread():
                seeds = stream(self.seed, "episodes", self.iteration).integers(2**62, size=self._episodes)
                shown = self._shown(stopped) if self.iteration < self.settings.demonstrations else None
                play, report = self._play([int(seed) for seed in seeds], stopped)
                self._learn(play, stopped, shown)
                if self.settings.forecasts:
                    self._forecaster.refit()
        except BaseException as error:
            (weights, adam), models = before
            self._scorer.load_state_dict(weights)
            self._adam.load_state_dict(adam)
            self._forecaster.reset(self.settings.episodes, models=models)
            if isinstance(error, _Stopped):
                return None
            raise
        self.rewards.append(report.reward)
        return report

    def policy(self) -> TrainedPolicy:
        """Return what has been learned so far."""
        models = tuple(model for model in self._forecaster.models if model is not None)
        facts = {"seed": self.seed, "iterations": self.iteration, "problem": self.problem.fingerprint()}
        return TrainedPolicy(
            weights=self._scorer.weights(),
            models=models if self.settings.forecasts else (),
            timeout_s=self.problem.timeout_s,
            terms=terms_of(self.problem) if self.settings.reserves else None,
            facts=facts | asdict(self.settings),
        )

    # --- playing -----------------------------------------------------------------------------------------------

    def _shown(self, stopped: Callable[[], bool]) -> Shown:
        """Return what each server sees while the picks of `matching` are played, and those that are its own.

        That coordinator knows who is busy, so that it shows more than any server could know: what is learned is the mean
        of its picks over all that look the same. [ours, after LEED]
        """
        seeds = [
            int(seed)
            for seed in stream(self.seed, "demonstrations", self.iteration).integers(2**62, size=self._episodes)
        ]
        plans = []
        for seed in seeds:
            if stopped():
                raise _Stopped
            plan = solve(self.problem.replace(seed=seed), Matching()).raise_for_status().solution
            assert plan is not None
            plans.append(plan.picks)
        play, _ = self._play(seeds, stopped, given=np.stack(plans))
        weight = 1 - self.iteration / self.settings.demonstrations
        return Shown(play.features.flatten(1, 2), play.picks.flatten(1, 2), weight)

    def _play(
        self,
        seeds: list[int],
        stopped: Callable[[], bool] = lambda: False,
        given: NDArray[np.int32] | None = None,
    ) -> tuple[_Play, Iteration]:
        """Play episodes by the policies, or by picks that are given: client ids [E, T, S, M], -1 to fill up."""
        problem, settings = self.problem, self.settings
        environment = self._environment = self._environment or SelectionEnvironment(problem, seeds)
        environment.reset(seeds)
        self._forecaster.reset(len(seeds))
        beliefs = Beliefs(Reservation(), problem, seeds) if settings.reserves else None
        own_number = np.zeros((len(seeds), *self._clients.shape), np.float32)
        if beliefs is not None:
            for e, s in np.ndindex(own_number.shape[:2]):
                own_number[e, s] = own_numbers(seeds[e], s, own_number.shape[2])
        noise = stream(self.seed, "picks", self.iteration)
        rows: list[tuple[Any, ...]] = []
        conflicts = 0
        while not environment.done:
            if stopped():
                raise _Stopped
            forecast = self._forecaster.covered_probability if settings.forecasts else None
            seen = covered_features(environment, forecast)  # (E, S, N, F)
            if beliefs is not None:
                seen = reserved_features(beliefs, seen, own_number)
            features = torch.from_numpy(np.ascontiguousarray(seen.swapaxes(0, 1)))  # (S, E, N, F)
            with torch.no_grad():
                score, value = self._score(features)
                drawn = torch.from_numpy(noise.random(score.shape, np.float32)).clamp_(1e-7, 1 - 1e-7)
                if given is not None:  # above all others; those that fill up a draw are not played
                    score = score.masked_fill(self._named(given[:, environment.now]), MUCH)
                picks = sample_top(score, problem.max_picks, drawn)  # (S, E, M)
                logs = log_probabilities(score, picks)
            bonus = environment.bonus
            result = environment.step(self._ids(picks))
            own = torch.from_numpy(self._own_rewards(result.outcome, bonus, environment.last == environment.now - 1))
            own = torch.gather(own, 2, picks)
            if beliefs is not None:
                own -= self._time_credit(features, picks)
                beliefs.update(environment)
            if settings.forecasts:
                self._forecaster.update(result.outcome)
            conflicts += int(result.tally[:, :, CONFLICTS].sum())
            reward = torch.from_numpy((result.reward.T / self._unit).astype(np.float32))
            rows.append((features, picks, logs, value, reward, own))
        play = _Play(*(torch.stack(column, dim=1) for column in zip(*rows, strict=True)))
        total = len(seeds) * problem.rounds * int(problem.picks.sum())
        return play, Iteration(self.iteration + 1, float(play.reward.mean()) * self._unit, conflicts / total)

    def _own_rewards(
        self, outcome: NDArray[np.int8], bonus: NDArray[np.float64], delivered: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        """Return float32 [S, E, N]: fairness and conflict of each pick of the last round, from arrays [E, S, C]."""
        problem = self.problem
        own = problem.fairness_weight * bonus * delivered - problem.conflict_weight * (outcome == 1)
        servers = np.arange(problem.num_servers)[:, None]
        share = (own / self._unit / problem.picks[:, None])[:, servers, self._clients]
        return np.ascontiguousarray(share.swapaxes(0, 1), np.float32)

    def _time_credit(self, features: Tensor, picks: Tensor) -> Tensor:
        """Return float32 [S, E, M]: what the time that each pick added to the last round cost, see `time_credit`."""
        environment, servers = self._environment, np.arange(self.problem.num_servers)[:, None]
        assert environment is not None
        arrived = (environment.last == environment.now - 1)[:, servers, self._clients].swapaxes(0, 1)
        share = np.where(arrived, features[..., LATENCY].numpy(), 1.0)  # in the mode share, sharing takes longer
        taken = np.take_along_axis(share, picks.numpy(), axis=2) * self._taken.numpy()[:, None]
        cost = self.problem.latency_weight / self._unit * time_credit(taken)
        return torch.from_numpy(cost.astype(np.float32))

    def _named(self, ids: NDArray[np.int32]) -> Tensor:
        """Return bool [S, E, N], the covered clients that ids [E, S, M] name."""
        named = (ids[..., None] == self._clients[:, None]).any(axis=2)  # (E, S, N)
        return torch.from_numpy(np.ascontiguousarray(named.swapaxes(0, 1))) & self._covered[:, None]

    def _ids(self, picks: Tensor) -> NDArray[np.int32]:
        """Return client ids int32 [E, S, M] of positions [S, E, M], -1 beyond a server's number of picks."""
        chosen = np.take_along_axis(self._clients[:, None], picks.numpy(), axis=2)
        return np.ascontiguousarray(np.where(self._taken.numpy()[:, None], chosen, -1).swapaxes(0, 1), np.int32)

    # --- learning ----------------------------------------------------------------------------------------------

    def _learn(self, play: _Play, stopped: Callable[[], bool] = lambda: False, shown: Shown | None = None) -> None:
        def leave_if_stopped() -> None:
            if stopped():
                raise _Stopped

        gain, target = self._advantages(play)
        played = (part.flatten(1, 2) for part in (play.features, play.picks, play.logs, gain, target))
        improve(
            self._evaluate, self._adam, Experience(*played), self._taken, self.settings,
            shuffle=stream(self.seed, "minibatches", self.iteration), before_step=leave_if_stopped,
            shown=shown,
        )  # fmt: skip

    def _score(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores (S, B, N) and values (S, B); where there is one network, all servers use it."""
        if not self.settings.reserves:
            found: tuple[Tensor, Tensor] = self._scorer(features, self._covered)
            return found
        weights = {name: w.expand(len(features), *w.shape[1:]) for name, w in self._scorer.named_parameters()}
        score, value = torch.func.functional_call(self._scorer, weights, (features, self._covered))
        return score + SHARPNESS * features[..., -1], value

    def _evaluate(self, features: Tensor, picks: Tensor) -> Evaluation:
        """Return what the networks say of states (S, B, N, F) and picks (S, B, M); entropies are those of a first pick."""
        score, value = self._score(features)
        picked = log_probabilities(score, picks)
        logs = torch.log_softmax(score, dim=-1)
        entropy = -(logs.exp() * logs.masked_fill(~self._covered[:, None], 0.0)).sum(dim=-1)
        return Evaluation(picked, value, entropy)

    def _advantages(self, play: _Play) -> tuple[Tensor, Tensor]:
        """Return the advantage [S, T, E, M] of each pick, standardised per server, and value targets [S, T, E].

        Generalised advantages of whole rounds, nothing counting after the horizon, less what the *other* picks of the
        round brought by themselves: a pick hardly changes that, so that leaving it out takes away noise. [ours]
        """
        advantage = advantages(play.reward, play.value, self.settings)
        taken = self._taken[:, None, None].expand_as(play.own)  # servers differ in their numbers of picks
        own = (play.own - mean_by_learner(play.own, taken)) * taken
        gain = advantage[..., None] - (own.sum(dim=3, keepdim=True) - own)
        return standardised(gain, taken), advantage + play.value

    # --- checkpoints -------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint, atomically: training goes on from it as if it had never stopped."""
        policy, values = self.policy().to_data()
        arrays: Arrays = dict(policy)
        for name, parameter in self._scorer.named_parameters():
            for key, tensor in self._adam.state[parameter].items():
                arrays[f"adam.{name}.{key}"] = np.atleast_1d(tensor.numpy())
        save_tensors(path, {"kind": KIND, "rewards": self.rewards, **values}, arrays)

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Go on from a checkpoint of the same problem, settings and seed.

        Raises
        ------
        InvalidFileError
            If it is of others; the message says which.
        """
        parameters = dict(self._scorer.named_parameters())
        adam = {f"adam.{name}.{key}": Form("f") for name in parameters for key in _ADAM}
        header, arrays = load_tensors(path, KIND, lambda header, shapes: {**policy_layout(header, shapes), **adam})
        with in_file(path):
            given = Fields(header)
            found = TrainedPolicy.from_data(header, arrays)
            self._check_facts(given.table("facts"))
            rewards = given.numbers("rewards")
            for name, weight in parameters.items():
                if found.weights[name].shape != tuple(weight.shape):
                    raise InvalidFileError(f"weights.{name}: expected shape {list(weight.shape)}")
            states = {name: _adam_state(arrays, name, weight) for name, weight in parameters.items() if rewards}
        self._scorer.load(found.weights)
        for name, state in states.items():
            self._adam.state[parameters[name]] = state
        self.rewards = rewards
        if found.models:
            self._forecaster.reset(self.settings.episodes, models=found.models)

    def _check_facts(self, given: Fields) -> None:
        """Refuse the checkpoint of another problem, other settings or another seed."""
        expected = self.policy().facts
        for name in sorted(expected.keys() - {"iterations"}):
            if (found := given.value(name)) != expected[name]:
                raise InvalidFileError(f"{name} = {quoted(found)}: this training has {quoted(expected[name])}")


def _adam_state(arrays: Arrays, name: str, weight: Tensor) -> dict[str, Tensor]:
    """Return what the optimiser remembers of a weight."""
    state = {}
    for key in _ADAM:
        shape = (1,) if key == "step" else tuple(weight.shape)
        array = arrays.get(f"adam.{name}.{key}")
        if array is None or array.shape != shape or not np.isfinite(array).all():
            raise InvalidFileError(f"adam.{name}.{key}: expected finite numbers of shape {list(shape)}")
        state[key] = torch.from_numpy(np.array(array, np.float32))
    return state | {"step": state["step"][0]}


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run torch on one thread: the tensors are small, and sums then come out the same on every machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)

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
from edgeopt.rng import stream
from edgeopt.solvers.client_selection.features import FEATURES, local_features
from edgeopt.solvers.client_selection.forecaster import START, ConflictForecaster
from edgeopt.solvers.client_selection.plackett_luce import log_probabilities, sample_top
from edgeopt.solvers.client_selection.scorer import Scorer
from edgeopt.solvers.client_selection.trained_policy import TrainedPolicy, policy_layout
from edgeopt.storage import Arrays
from edgeopt.tensors import load_tensors, save_tensors

KIND = "selection-checkpoint"
_ADAM = ("exp_avg", "exp_avg_sq", "step")


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerSettings:
    """Hyper-parameters of `Learner`.

    Parameters
    ----------
    episodes : played side by side in each iteration, each with chance of its own.
    hidden : width of the networks.
    epochs, minibatches : passes over what an iteration has played, and steps in each.
    learning_rate, clip, discount, trace, entropy, value_weight : of proximal policy optimisation with generalised
        advantages (Schulman et al., arXiv 1707.06347 and 1506.02438).
    forecasts : whether servers forecast conflicts by hidden Markov models of their own.
    """

    episodes: int = 16
    hidden: int = 32
    epochs: int = 4
    minibatches: int = 4
    learning_rate: float = 3e-3
    clip: float = 0.2
    discount: float = 0.9
    trace: float = 0.95
    entropy: float = 0.003
    value_weight: float = 0.5
    forecasts: bool = True

    def __post_init__(self) -> None:
        for name, most in (("episodes", 1 << 16), ("hidden", 1 << 12), ("epochs", 1 << 16), ("minibatches", 1 << 16)):
            if not isinstance(value := getattr(self, name), int) or not 1 <= value <= most:
                raise EdgeOptError(f"{name} = {quoted(value)}: expected an integer from 1 to {most}")
        for name in ("learning_rate", "clip"):
            if not 0 < (value := getattr(self, name)) < np.inf:
                raise EdgeOptError(f"{name} = {value!r}: expected a number > 0")
        for name in ("discount", "trace"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise EdgeOptError(f"{name} = {value!r}: expected a number from 0 to 1")
        for name in ("entropy", "value_weight"):
            if not 0 <= (value := getattr(self, name)) < np.inf:
                raise EdgeOptError(f"{name} = {value!r}: expected a number >= 0")


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
        self._scorer = Scorer(problem.num_servers, len(FEATURES), settings.hidden, generator)
        self._adam = torch.optim.Adam(self._scorer.parameters(), lr=settings.learning_rate, eps=1e-5)
        models = [START] * problem.num_servers
        self._forecaster = ConflictForecaster(problem.coverage, models=models, refit_every=None, window=problem.rounds)
        self._environment: SelectionEnvironment | None = None
        # of rewards, so that what is learned does not depend on the unit of the weights
        self._unit = max(problem.latency_weight, problem.conflict_weight, problem.fairness_weight) or 1.0
        covered, count = problem.num_covered, int(problem.num_covered.max())
        self._clients = np.zeros((problem.num_servers, count), np.int64)  # ids of the covered, filled up with 0
        for s, row in enumerate(problem.coverage):
            self._clients[s, : covered[s]] = np.flatnonzero(row)
        self._covered = torch.from_numpy(np.arange(count) < covered[:, None])
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
                seeds = stream(self.seed, "episodes", self.iteration).integers(2**62, size=self.settings.episodes)
                play, report = self._play([int(seed) for seed in seeds], stopped)
                self._learn(play, stopped)
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
            facts=facts | asdict(self.settings),
        )

    # --- playing -----------------------------------------------------------------------------------------------

    def _play(self, seeds: list[int], stopped: Callable[[], bool] = lambda: False) -> tuple[_Play, Iteration]:
        problem, settings = self.problem, self.settings
        environment = self._environment = self._environment or SelectionEnvironment(problem, seeds)
        environment.reset(seeds)
        self._forecaster.reset(len(seeds))
        noise = stream(self.seed, "picks", self.iteration)
        rows: list[tuple[Any, ...]] = []
        conflicts, servers = 0, np.arange(problem.num_servers)[:, None]
        while not environment.done:
            if stopped():
                raise _Stopped
            forecast = self._forecaster.probability if settings.forecasts else None
            seen = local_features(environment, forecast)[:, servers, self._clients]  # (E, S, N, F)
            features = torch.from_numpy(np.ascontiguousarray(seen.swapaxes(0, 1)))  # (S, E, N, F)
            with torch.no_grad():
                score, value = self._scorer(features, self._covered)
                drawn = torch.from_numpy(noise.random(score.shape, np.float32)).clamp_(1e-7, 1 - 1e-7)
                picks = sample_top(score, problem.max_picks, drawn)  # (S, E, M)
                logs = log_probabilities(score, picks)
            bonus = environment.bonus
            result = environment.step(self._ids(picks))
            own = torch.from_numpy(self._own_rewards(result.outcome, bonus, environment.last == environment.now - 1))
            if settings.forecasts:
                self._forecaster.update(result.outcome)
            conflicts += int(result.tally[:, :, CONFLICTS].sum())
            reward = torch.from_numpy((result.reward.T / self._unit).astype(np.float32))
            rows.append((features, picks, logs, value, reward, torch.gather(own, 2, picks)))
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

    def _ids(self, picks: Tensor) -> NDArray[np.int32]:
        """Return client ids int32 [E, S, M] of positions [S, E, M], -1 beyond a server's number of picks."""
        chosen = np.take_along_axis(self._clients[:, None], picks.numpy(), axis=2)
        return np.ascontiguousarray(np.where(self._taken.numpy()[:, None], chosen, -1).swapaxes(0, 1), np.int32)

    # --- learning ----------------------------------------------------------------------------------------------

    def _learn(self, play: _Play, stopped: Callable[[], bool] = lambda: False) -> None:
        settings = self.settings
        gain, target = self._advantages(play)
        flat = [part.flatten(1, 2) for part in (play.features, play.picks, play.logs, gain, target)]
        size = flat[0].shape[1]
        shuffle = stream(self.seed, "minibatches", self.iteration)
        taken = self._taken[:, None]
        count = taken.sum(dim=2)
        for _ in range(settings.epochs):
            for chosen in np.array_split(shuffle.permutation(size), min(settings.minibatches, size)):
                if stopped():
                    raise _Stopped
                features, picks, before, gains, wanted = (part[:, torch.from_numpy(chosen)] for part in flat)
                score, value = self._scorer(features, self._covered)
                ratio = torch.exp((log_probabilities(score, picks) - before).masked_fill(~taken, 0.0))  # (S, B, M)
                clipped = ratio.clamp(1 - settings.clip, 1 + settings.clip)
                surrogate = torch.minimum(ratio * gains, clipped * gains).masked_fill(~taken, 0.0)
                surrogate = (surrogate.sum(dim=2) / count).mean(dim=1)  # (S,)
                logs = torch.log_softmax(score, dim=-1)
                spread = -(logs.exp() * logs.masked_fill(~self._covered[:, None], 0.0)).sum(dim=-1).mean(dim=1)
                error = (value - wanted).square().mean(dim=1)
                # servers share no weight: each one's gradient is that of its own loss
                loss = (settings.value_weight * error - surrogate - settings.entropy * spread).sum()
                self._adam.zero_grad()
                loss.backward()
                self._clip_gradients()
                self._adam.step()

    def _clip_gradients(self, most: float = 0.5) -> None:
        """Shorten each server's gradient to norm `most`; by server, so that none depends on the others."""
        gradients = [p.grad for p in self._scorer.parameters() if p.grad is not None]
        squares = torch.stack([g.square().sum(dim=(1, 2)) for g in gradients]).sum(dim=0)  # (S,)
        factor = (most / (squares.sqrt() + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient *= factor[:, None, None]

    def _advantages(self, play: _Play) -> tuple[Tensor, Tensor]:
        """Return the advantage [S, T, E, M] of each pick, standardised per server, and value targets [S, T, E].

        Generalised advantages of whole rounds, nothing counting after the horizon, less what the *other* picks of the
        round brought by themselves: a pick hardly changes that, so that leaving it out takes away noise. [ours]
        """
        settings = self.settings
        advantage = torch.zeros_like(play.reward)
        following = torch.zeros_like(play.reward[:, 0])
        for t in reversed(range(play.reward.shape[1])):
            later = play.value[:, t + 1] if t + 1 < play.reward.shape[1] else torch.zeros_like(following)
            error = play.reward[:, t] + settings.discount * later - play.value[:, t]
            following = error + settings.discount * settings.trace * following
            advantage[:, t] = following
        taken = self._taken[:, None, None].expand_as(play.own)
        count = taken.sum(dim=(1, 2, 3), keepdim=True)  # servers differ in their numbers of picks

        def mean(part: Tensor) -> Tensor:
            return (part * taken).sum(dim=(1, 2, 3), keepdim=True) / count

        own = (play.own - mean(play.own)) * taken
        gain = advantage[..., None] - (own.sum(dim=3, keepdim=True) - own)
        gain = gain - mean(gain)
        return gain / (mean(gain.square()).sqrt() + 1e-6), advantage + play.value

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

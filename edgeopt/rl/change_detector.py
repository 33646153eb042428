"""`ChangeDetector`: has an agent's world changed? A classifier tells its last errors from those before, if it can. Torch."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from edgeopt.errors import EdgeOptError, quoted
from edgeopt.rl.learner import adam_state
from edgeopt.rl.networks import Mlp
from edgeopt.rl.replay import Integers
from edgeopt.rng import stream
from edgeopt.storage import Arrays
from edgeopt.training.optimizers import Adam
from edgeopt.validate import integer, real

FOLDS = 2
_CLIP = 4.0  # standard deviations beyond which an error is no larger
_FIRST, _MOST = 10, 50  # labellings that are tried together: most suspicions fall with the first few


class _Evidence(NamedTuple):
    """How well two windows can be told apart, for A labellings.

    Parameters
    ----------
    divergence : [A], half the difference of the mean log odds of both windows.
    odds : [A, blocks, runs], log odds of every run to be of the second window, by a classifier that has not seen its
        block.
    """

    divergence: NDArray[np.float64]
    odds: NDArray[np.float64]


class ChangeDetector:
    r"""Compares the errors of two adjacent windows by the ratio of their densities.

    Every `interval` steps a perceptron learns to tell runs of errors of the last `window` steps from those of the window
    before. Its log odds estimate the logarithm of the ratio of both densities. The statistic is half the difference of
    their means over the windows,

    .. math:: s = \frac{1}{2} (\mathrm{mean}_{\text{test}} \ell - \mathrm{mean}_{\text{reference}} \ell),

    half of Jeffreys' divergence; blocks of steps are scored by a classifier that was trained on the other blocks, as a
    score on what was trained on is always above 0. A change is found where s is above `least` and above that of every one of
    1 / `false_alarms` - 1 random labellings of the blocks: were blocks exchangeable, a look would err with a chance of
    `false_alarms` at most. It is dated to where the sum of the log odds from there on is largest.

    An error is target - Q(s, a), so what the critic expects is taken off the reward. Nothing is found
    again until both windows are filled with what came after that date.

    The classifier, its loss and the adjacent windows are the paper's, on rewards; errors, cross-fitting, the statistic,
    the threshold and the date are ours.

    Parameters
    ----------
    window : steps of each of both windows, m.
    interval : steps between two looks.
    false_alarms : chance that a look at a world that has not changed finds a change.
    least : divergence below which a change is too small to act on.
    block : steps that keep together; divides `window`.
    run, stride : steps of a run, and between two runs. Features of a run are its errors and their squares.
    hidden, epochs : units of the classifier, and steps of its training.

    References
    ----------
    T. Duan et al., arXiv 2509.15032.
    """

    uses_errors = True

    def __init__(
        self,
        *,
        window: int = 200,
        interval: int = 50,
        false_alarms: float = 0.005,
        least: float = 0.1,
        block: int = 20,
        run: int = 5,
        stride: int = 2,
        hidden: int = 8,
        epochs: int = 30,
    ) -> None:
        counts = {"window": window, "interval": interval, "block": block, "run": run, "stride": stride}
        for name, value in (counts | {"hidden": hidden, "epochs": epochs}).items():
            integer(name, value, low=1)
        if window % block or window // block < FOLDS:
            raise EdgeOptError(f"block = {block}: expected a divisor of window = {window}, at most half of it")
        if run > block:
            raise EdgeOptError(f"run = {run}: expected at most block = {block}")
        if not 0 < real("false_alarms", false_alarms) < 1:
            raise EdgeOptError(f"false_alarms = {quoted(false_alarms)}: expected a number between 0 and 1")
        self.window, self.interval, self.false_alarms = window, interval, false_alarms
        self.least = real("least", least, nonnegative=True)
        self.block, self.run, self.stride, self.hidden, self.epochs = block, run, stride, hidden, epochs

    def __repr__(self) -> str:
        return f"ChangeDetector(window={self.window}, false_alarms={self.false_alarms}, least={self.least})"

    def start(self, seeds: Sequence[int]) -> None:
        """Begin with one agent for each seed."""
        self._seeds = tuple(seeds)
        self._errors = np.zeros((len(seeds), 2 * self.window))
        self._known = np.zeros(len(seeds), np.int64)
        self.divergence = np.zeros(len(seeds))

    def look(self, now: int, errors: NDArray[np.float32]) -> Integers:
        """Return [G], the entry that each agent's new world begins with, -1 where nothing has changed.

        Parameters
        ----------
        now : number of entries so far.
        errors : [G, interval], of the last ones.
        """
        self._errors = np.concatenate([self._errors, errors], axis=1)[:, -2 * self.window :]
        self._known += errors.shape[1]
        found = np.full(len(self._seeds), -1, np.int64)
        if not (ready := np.flatnonzero(self._known >= 2 * self.window)).size:
            return found
        runs = self._runs(self._errors[ready])
        labels = np.repeat([0.0, 1.0], self.window // self.block)
        seen = self._tell_apart(runs, np.broadcast_to(labels, (len(ready), len(labels))))
        self.divergence[ready] = seen.divergence
        for k, g in enumerate(ready):
            if seen.divergence[k] > self.least and self._exceeds_chance(runs[k], seen.divergence[k], int(g), now):
                found[g] = now - 2 * self.window + self._date(seen.odds[k])
                self._known[g] = now - found[g]
        return found

    def arrays(self) -> Arrays:
        """Return what the next look depends on."""
        return {"errors": self._errors.copy(), "known": self._known.copy()}

    def restore(self, arrays: Arrays) -> None:
        """Take over what `arrays` gave; nothing at all is a new beginning."""
        if arrays:
            self._errors, self._known = arrays["errors"].copy(), arrays["known"].copy()

    # --- a look --------------------------------------------------------------------------------------------------

    def _runs(self, errors: NDArray[np.float64]) -> Tensor:
        """Return the features [A, blocks, runs, 2 * run] of errors [A, 2 * window], in deviations of the first window."""
        reference = errors[:, : self.window]
        scale = reference.std(axis=1, keepdims=True) + 1e-9
        plain = np.clip((errors - reference.mean(axis=1, keepdims=True)) / scale, -_CLIP, _CLIP)
        blocks = plain.reshape(len(errors), -1, self.block)
        runs = np.lib.stride_tricks.sliding_window_view(blocks, self.run, axis=2)[:, :, :: self.stride]
        return torch.from_numpy(np.concatenate([runs, runs**2], axis=3).astype(np.float32))

    def _tell_apart(self, runs: Tensor, labels: NDArray[np.float64]) -> _Evidence:
        """Train a classifier for each fold of each labelling, and score every block by one that has not seen it.

        Parameters
        ----------
        runs : [A, blocks, runs, features].
        labels : [A, blocks], 0 or 1.
        """
        count, blocks, each, features = runs.shape
        own = torch.from_numpy(labels.astype(np.float32))[:, :, None].expand(-1, -1, each)
        fold = torch.arange(blocks) % FOLDS

        def split(part: Tensor, of: int) -> Tensor:
            return part[:, fold == of].flatten(1, 2)

        trained = torch.cat([split(runs, 0), split(runs, 1)])  # (2 A, n, features): folds one after the other
        aim = torch.cat([split(own, 0), split(own, 1)])  # (2 A, n)
        network = Mlp((features, self.hidden, 1))
        weights = network.start([0], "detector").repeat(len(trained), 1)
        adam = Adam(0.03, weight_decay=0.1)
        memory = adam_state(adam, {"w": weights})
        for _ in range(self.epochs):
            at = weights.detach().requires_grad_()
            loss = binary_cross_entropy_with_logits(network(at, trained).squeeze(2), aim, reduction="none").mean(dim=1)
            (gradient,) = torch.autograd.grad(loss.sum(), at)
            with torch.no_grad():
                adam.overwrite({"w": weights}, {"w": gradient}, memory)
        with torch.no_grad():
            other = torch.cat([split(runs, 1), split(runs, 0)])
            scores = network(weights, other).view(len(trained), -1, each).double().numpy()
        odds = np.empty((count, blocks, each))
        odds[:, 1::FOLDS], odds[:, ::FOLDS] = scores[:count], scores[count:]
        mean = odds.mean(axis=2)
        ones = labels.sum(axis=1)
        second, first = (mean * labels).sum(axis=1) / ones, (mean * (1 - labels)).sum(axis=1) / (blocks - ones)
        return _Evidence((second - first) / 2, odds)

    def _exceeds_chance(self, runs: Tensor, divergence: float, agent: int, now: int) -> bool:
        """Return whether no random labelling of the blocks can be told apart as well."""
        rng = stream(self._seeds[agent], "labellings", now)
        left = math.ceil(1 / self.false_alarms) - 1
        blocks, most = len(runs), _FIRST
        while left > 0:
            count = min(left, most)
            labels = np.empty((count, blocks))
            for of in range(FOLDS):  # both folds keep as many of each label
                own = np.repeat([0.0, 1.0], [-(-len(labels[0, of::FOLDS]) // 2), len(labels[0, of::FOLDS]) // 2])
                labels[:, of::FOLDS] = rng.permuted(np.broadcast_to(own, (count, len(own))), axis=1)
            if (self._tell_apart(runs.expand(count, -1, -1, -1), labels).divergence >= divergence).any():
                return False
            left, most = left - count, _MOST
        return True

    def _date(self, odds: NDArray[np.float64]) -> int:
        """Return the step, within both windows, from which on the sum of the log odds is largest."""
        by_run = odds.ravel()
        after = np.append(np.cumsum(by_run[::-1])[::-1], 0.0)
        block, place = divmod(int(after[:-1].argmax()), odds.shape[1])
        return int(block * self.block + place * self.stride)

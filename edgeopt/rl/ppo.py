"""Proximal policy optimisation of several independent learners at once; the first axis of all tensors is the learner."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from edgeopt.errors import EdgeOptError, quoted

MOST_STEPS = 1 << 16
MAX_GRADIENT_NORM = 0.5
MOST_AT_ONCE = 1 << 20
"""Numbers of observations evaluated between two looks at the clock, unless one sample has more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ppo:
    """Hyper-parameters of proximal policy optimisation with generalised advantages.

    Parameters
    ----------
    epochs, minibatches : passes over what has been played, and steps in each.
    learning_rate : of Adam.
    clip : how far the probability of an action may move from what it was, as a share, before it is moved no further.
    discount : what the next step counts against this one.
    trace : lambda of the generalised advantages: 0 trusts the value network after one step, 1 never.
    entropy, value_weight : weights of the entropy of the policy and of the squared error of the value in the loss.

    References
    ----------
    J. Schulman et al., arXiv 1707.06347 and 1506.02438.
    """

    epochs: int = 4
    minibatches: int = 4
    learning_rate: float = 3e-3
    clip: float = 0.2
    discount: float = 0.9
    trace: float = 0.95
    entropy: float = 0.003
    value_weight: float = 0.5

    def __post_init__(self) -> None:
        for name in ("epochs", "minibatches"):
            positive_integer(name, getattr(self, name), MOST_STEPS)
        for name in ("learning_rate", "clip"):
            if not 0 < (value := getattr(self, name)) < np.inf:
                raise EdgeOptError(f"{name} = {quoted(value)}: expected a number > 0")
        for name in ("discount", "trace"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise EdgeOptError(f"{name} = {quoted(value)}: expected a number from 0 to 1")
        for name in ("entropy", "value_weight"):
            if not 0 <= (value := getattr(self, name)) < np.inf:
                raise EdgeOptError(f"{name} = {quoted(value)}: expected a number >= 0")

    def optimizer(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Adam:
        """Return the optimiser of a policy's parameters."""
        return torch.optim.Adam(parameters, lr=self.learning_rate, eps=1e-5)


class Experience(NamedTuple):
    """What learners have played: G learners, B samples, M actions in each.

    Parameters
    ----------
    observation : (G, B, ...), what the policy is shown.
    action : (G, B, M), what it did.
    logs : (G, B, M), the logarithm of the probability of each action when it was drawn.
    gain : (G, B, M), advantage of each action.
    target : (G, B), what the value should have been.
    """

    observation: Tensor
    action: Tensor
    logs: Tensor
    gain: Tensor
    target: Tensor

    def at(self, samples: Tensor) -> "Experience":
        """Return some of the samples."""
        return Experience(*(part[:, samples] for part in self))


class Shown(NamedTuple):
    """What others were seen to do, of the shapes of `Experience`, and how much imitating it counts in the loss."""

    observation: Tensor
    action: Tensor
    weight: float


class Evaluation(NamedTuple):
    """What a policy says of samples now.

    Parameters
    ----------
    logs : (G, B, M), the logarithm of the probability of each action.
    value : (G, B), of each observation.
    entropy : (G, B), of the policy there.
    """

    logs: Tensor
    value: Tensor
    entropy: Tensor


def positive_integer(name: str, value: object, most: int) -> None:
    """Refuse what is no integer from 1 to `most`."""
    if not isinstance(value, int) or not 1 <= value <= most:
        raise EdgeOptError(f"{name} = {quoted(value)}: expected an integer from 1 to {most}")


def advantages(reward: Tensor, value: Tensor, settings: Ppo) -> Tensor:
    r"""Return generalised advantages (G, T, E) of T steps of E episodes, nothing counting after the last step.

    With the errors :math:`\delta_t = r_t + \gamma v_{t+1} - v_t`, the advantage of step t is the sum over k of
    :math:`(\gamma \lambda)^k \delta_{t+k}`.

    Examples
    --------
    >>> reward, value = torch.tensor([[[1.0], [2.0]]]), torch.zeros(1, 2, 1)
    >>> advantages(reward, value, Ppo(discount=0.5, trace=1.0)).flatten().tolist()
    [2.0, 2.0]
    """
    found = torch.zeros_like(reward)
    following = torch.zeros_like(reward[:, 0])
    for t in reversed(range(reward.shape[1])):
        later = value[:, t + 1] if t + 1 < reward.shape[1] else torch.zeros_like(following)
        error = reward[:, t] + settings.discount * later - value[:, t]
        following = error + settings.discount * settings.trace * following
        found[:, t] = following
    return found


def mean_by_learner(part: Tensor, counted: Tensor) -> Tensor:
    """Return the mean of each learner over the entries that count, of shape (G, 1, ..., 1)."""
    axes = tuple(range(1, part.dim()))
    return (part * counted).sum(dim=axes, keepdim=True) / counted.sum(dim=axes, keepdim=True)


def standardised(gain: Tensor, counted: Tensor) -> Tensor:
    """Return gains of mean 0 and deviation 1 for each learner, over the entries that count (bool, of equal shape)."""
    gain = gain - mean_by_learner(gain, counted)
    return gain / (mean_by_learner(gain.square(), counted).sqrt() + 1e-6)


def improve(
    evaluate: Callable[[Tensor, Tensor], Evaluation],
    optimizer: torch.optim.Optimizer,
    experience: Experience,
    taken: Tensor,
    settings: Ppo,
    *,
    shuffle: np.random.Generator,
    before_step: Callable[[], None] = lambda: None,
    shown: Shown | None = None,
) -> None:
    """Take all steps that one experience is good for. No learner's step depends on another's experience.

    Parameters
    ----------
    evaluate : from observations and actions of some samples; its first axis is the learner, who shares no weight with
        others.
    optimizer : of the policy's parameters, each with the learner as first axis.
    taken : bool (G, M), which of the M actions a learner has: learners may do different numbers of things at once.
    shuffle : draws the minibatches.
    before_step : called before every step, and within one over observations of more than `MOST_AT_ONCE` numbers between
        its parts; may raise to leave.
    shown : as many samples as have been played; minus the mean logarithm of the probability of their actions is added to
        the loss.
    """
    size = experience.target.shape[1]
    each = experience.observation[:, 0].numel()
    taken = taken[:, None]
    count = taken.sum(dim=2)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for _ in range(settings.epochs):
        for chosen in np.array_split(shuffle.permutation(size), min(settings.minibatches, size)):
            optimizer.zero_grad()
            for some in np.array_split(chosen, min(len(chosen), -(-len(chosen) * each // MOST_AT_ONCE))):
                before_step()
                part = experience.at(torch.from_numpy(some))
                now = evaluate(part.observation, part.action)
                ratio = torch.exp((now.logs - part.logs).masked_fill(~taken, 0.0))  # (G, B, M)
                clipped = ratio.clamp(1 - settings.clip, 1 + settings.clip)
                surrogate = torch.minimum(ratio * part.gain, clipped * part.gain).masked_fill(~taken, 0.0)
                surrogate = (surrogate.sum(dim=2) / count).mean(dim=1)  # (G,)
                error = (now.value - part.target).square().mean(dim=1)
                # learners share no weight: each one's gradient is that of its own loss
                loss = (settings.value_weight * error - surrogate - settings.entropy * now.entropy.mean(dim=1)).sum()
                if shown is not None:
                    logs = evaluate(shown.observation[:, some], shown.action[:, some]).logs.masked_fill(~taken, 0.0)
                    loss = loss - shown.weight * (logs.sum(dim=2) / count).mean(dim=1).sum()
                (loss * (len(some) / len(chosen))).backward()  # type: ignore[no-untyped-call]
            shorten([parameter.grad for parameter in parameters if parameter.grad is not None])
            optimizer.step()


def shorten(gradients: list[Tensor], most: float = MAX_GRADIENT_NORM) -> None:
    """Shorten each learner's gradient to norm `most`; by learner, so that none depends on the others."""
    squares = torch.stack([g.square().sum(dim=tuple(range(1, g.dim()))) for g in gradients]).sum(dim=0)  # (G,)
    factor = (most / (squares.sqrt() + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient *= factor.view(-1, *[1] * (gradient.dim() - 1))

"""`Leed`: agents that learn together, each by itself, from their own play and from demonstrations of theirs."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeopt.errors import EdgeOptError, quoted
from edgeopt.rl.demonstrations import Play
from edgeopt.rl.dtw import warped_distances
from edgeopt.rl.environments.team import Seen, Team
from edgeopt.rl.networks import Mlp
from edgeopt.rl.plackett_luce import log_probabilities, sample_top
from edgeopt.rl.ppo import Ppo, advantages, positive_integer, shorten, standardised
from edgeopt.rl.scorer import Scorer
from edgeopt.rng import stream
from edgeopt.training.messages import State
from edgeopt.training.optimizers import Adam
from edgeopt.validate import integer, real

Parameters = dict[str, Tensor]
Weight = Literal["decay", "return", "distance", "fixed", "none"]

WEIGHTS: tuple[Weight, ...] = ("decay", "return", "distance", "fixed", "none")
CRITICS = ("own", "all")
MOST_EXPERT_ADVANTAGE = 2.0
VALUE_OF_SHOWN = 0.5  # what errors of the value on demonstrations count, beside those on own play


class Samples(NamedTuple):
    """Samples of G agents, first axis the agent; B of them, M actions in each.

    Parameters
    ----------
    observation : (G, B, ...), what the agent saw.
    joint : (B, J), what all of them saw, for a critic that sees all; else (B, 0).
    allowed : bool (G, B, A).
    action : int64 (G, B, M).
    logs : (G, B, M), of the probability of each action by the policy before the update.
    gain : (G, B), advantages.
    target : (G, B), what the value should have been.
    """

    observation: Tensor
    joint: Tensor
    allowed: Tensor
    action: Tensor
    logs: Tensor
    gain: Tensor
    target: Tensor

    def at(self, samples: Tensor) -> "Samples":
        """Return some of the samples."""
        return Samples(
            *(part[samples] if name == "joint" else part[:, samples] for name, part in self._asdict().items())
        )


IN_DIMS = Samples(0, None, 0, 0, 0, 0, 0)  # type: ignore[arg-type]  # of vmap: the agent is the first axis, but for the joint view


@dataclass(frozen=True, slots=True, kw_only=True)
class Leed(Ppo):
    r"""Decentralised proximal policy optimisation with an expert loss; no agent sees another's weights, views or rewards.

    Agent i minimises, by its own parameters,

    .. math:: L_i = L_a + w_i (L_e + \beta L_c) + c_v L_V - c_h H.

    :math:`L_a` is the clipped loss on its own play. :math:`L_e` is the same loss on the steps of its demonstrations that have an
    advantage > 0, the policy before the update standing for the unknown one that acted. :math:`L_c` is the mean of
    :math:`-e^{\min(\max(A, -2), 2)} \log \pi(a | o)` over demonstrations. Advantages are generalised ones by the agent's own
    critic, on both. The value errs on both, half as much on demonstrations. [LEED, arXiv 2509.14680: decentralised PPO, an
    expert loss combined with the policy loss, own values and advantages; the terms and all weights are ours]

    Parameters
    ----------
    episodes : of own play in an update; as many demonstrations are drawn.
    hidden : width of two hidden layers.
    weight : :math:`w_i`. ``"decay"`` falls from 1 to 0 over `decay` updates. ``"return"`` is the logistic function of how much
        better the demonstrations' mean return is than the agent's own, in deviations of the latter. ``"distance"`` is
        2 d / (d + d_0), at most 1, d being the distance by dynamic time warping of the agent's trajectories to the nearest
        demonstration, and d_0 that of the first update. ``"fixed"`` is `fixed`. ``"none"`` is 0: independent PPO, which needs no
        demonstrations. [all ours; that the weight may follow trajectories is reported of the paper]
    decay : updates.
    fixed : weight.
    imitation : :math:`\beta`.
    cloning : first updates that imitate, minimising :math:`-\log \pi(a | o)` of demonstrations alone (and the value).
    gather_every : updates between two sets of demonstrations.
    critic : ``"own"`` sees what the agent sees; ``"all"`` what all agents see, as in MAPPO (arXiv 2103.01955), for comparison.
    """

    minibatches: int = 2
    learning_rate: float = 3e-3
    discount: float = 0.99
    entropy: float = 0.01
    episodes: int = 8
    hidden: int = 64
    weight: Weight = "decay"
    decay: int = 50
    fixed: float = 0.5
    imitation: float = 1.0
    cloning: int = 0
    gather_every: int = 20
    critic: Literal["own", "all"] = "own"

    def __post_init__(self) -> None:
        Ppo.__post_init__(self)  # a class with slots is made anew: super() would look for the first one
        for name in ("episodes", "hidden", "decay", "gather_every"):
            positive_integer(name, getattr(self, name), 1 << 16)
        integer("cloning", self.cloning, low=0)
        for name, options in {"weight": WEIGHTS, "critic": CRITICS}.items():
            if (value := getattr(self, name)) not in options:
                raise EdgeOptError(f"{name} = {quoted(value)}: expected one of {', '.join(options)}")
        for name in ("fixed", "imitation"):
            if not 0 <= real(name, value := getattr(self, name)) < np.inf:
                raise EdgeOptError(f"{name} = {quoted(value)}: expected a number >= 0")

    @property
    def shown(self) -> bool:
        """Whether it needs demonstrations."""
        return self.weight != "none" or self.cloning > 0

    @property
    def adam(self) -> Adam:
        """The optimiser."""
        return Adam(self.learning_rate, eps=1e-5)

    # --- networks --------------------------------------------------------------------------------------------------

    def start(self, team: Team, seed: int, device: str = "cpu") -> State:
        """Return untrained agents: parameters, first axis the agent, and the optimiser's memory."""
        seeds = [int(one) for one in stream(seed, "agents").integers(2**62, size=team.num_agents)]
        if _rows(team):
            generator = torch.Generator().manual_seed(int(stream(seed, "scorer").integers(2**63)))
            scorer = Scorer(team.num_agents, team.observation_shape[1], self.hidden, generator)
            parameters = {name: value.detach() for name, value in scorer.named_parameters()}
        else:
            parameters = {"actor": self._actor(team).start(seeds, "actor")}
        if not _rows(team) or self.critic == "all":
            parameters["critic"] = self._critic(team).start(seeds, "critic")
        parameters = {name: value.to(device) for name, value in parameters.items()}
        return {"parameters": dict(parameters), "adam": self.adam.start(parameters)}

    def _actor(self, team: Team) -> Mlp:
        return Mlp((*team.observation_shape, self.hidden, self.hidden, team.num_actions))

    def _critic(self, team: Team) -> Mlp:
        seen = math.prod(team.observation_shape) * (team.num_agents if self.critic == "all" else 1)
        return Mlp((seen, self.hidden, self.hidden, 1))

    def policy(self, team: Team) -> Callable[[Parameters, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return the function of one agent: parameters, observations [B, ...], joint [B, J], allowed [B, A] to scores [B, A] and values [B].

        Scores are -inf for what is not allowed.
        """
        critic = self._critic(team)
        if not _rows(team):
            actor = self._actor(team)

            def think(own: Parameters, seen: Tensor, joint: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
                value = critic(own["critic"], joint if self.critic == "all" else seen)[..., 0]
                return actor(own["actor"], seen).masked_fill(~allowed, -torch.inf), value

            return think
        scorer = Scorer(1, team.observation_shape[1], self.hidden, torch.Generator())

        def score(own: Parameters, seen: Tensor, joint: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
            weights = {name: value[None] for name, value in own.items() if name != "critic"}
            # what can be picked is the same in all samples of a server
            scores, value = torch.func.functional_call(scorer, weights, (seen[None], allowed[:1]))
            return scores[0], critic(own["critic"], joint)[..., 0] if self.critic == "all" else value[0]

        return score

    def joint(self, observation: Tensor) -> Tensor:
        """Return (B, J) of (G, B, ...): what all agents see, side by side; nothing where no critic sees it."""
        if self.critic == "own":
            return observation.new_zeros((observation.shape[1], 0))
        return observation.swapaxes(0, 1).flatten(1)

    # --- acting ----------------------------------------------------------------------------------------------------

    def act(self, team: Team, parameters: Parameters, seen: Seen, noise: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return actions [N, E, M], drawn by noise uniform in (0, 1) of the shape of ``seen.allowed``."""
        device = next(iter(parameters.values())).device
        observation, allowed = (torch.from_numpy(part).to(device) for part in seen)
        with torch.no_grad():
            think = torch.func.vmap(self.policy(team), in_dims=(0, 0, None, 0))
            scores, _ = think(parameters, observation, self.joint(observation), allowed)
            drawn = torch.from_numpy(noise).to(device).clamp(1e-7, 1 - 1e-7)
            return sample_top(scores, team.taken.shape[1], drawn).cpu().numpy()

    # --- learning --------------------------------------------------------------------------------------------------

    def samples(self, team: Team, parameters: Parameters, played: Play) -> Samples:
        """Return what there is to learn from episodes, by the policies and critics as they are."""
        device = next(iter(parameters.values())).device
        observation, allowed, action, reward = (torch.from_numpy(np.ascontiguousarray(p)).to(device) for p in played)
        flat = [part.flatten(1, 2) for part in (observation, allowed, action)]
        joint = self.joint(flat[0])
        with torch.no_grad():
            think = torch.func.vmap(self.policy(team), in_dims=(0, 0, None, 0))
            scores, value = think(parameters, flat[0], joint, flat[1])
            logs = log_probabilities(scores, flat[2])
            value = value.view_as(reward)
            gain = advantages(reward, value, self)
            choice = allowed.sum(dim=-1) > 1  # where there is nothing to choose, there is nothing to learn
            normal = standardised(gain, choice) * choice
        return Samples(flat[0], joint, flat[1], flat[2], logs, normal.flatten(1), (gain + value).flatten(1))

    def losses(self, team: Team, *, cloning: bool) -> Callable[..., Tensor]:
        """Return the loss of one agent: parameters, own samples, shown samples or None, taken (M,), weight () to a scalar."""
        think = self.policy(team)

        def evaluated(own: Parameters, batch: Samples, taken: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            scores, value = think(own, batch.observation, batch.joint, batch.allowed)
            logs = log_probabilities(scores, batch.action)
            error = (value - batch.target).square().mean()
            choice = (batch.allowed.sum(dim=-1) > 1).float()
            return scores, torch.where(taken, logs, torch.zeros_like(logs)), error, choice / choice.sum().clamp(min=1.0)

        def clipped(logs: Tensor, batch: Samples, gain: Tensor, taken: Tensor, share: Tensor) -> Tensor:
            ratio = torch.exp(logs - torch.where(taken, batch.logs, torch.zeros_like(batch.logs)))
            bounded = ratio.clamp(1 - self.clip, 1 + self.clip)
            each = torch.minimum(ratio * gain[:, None], bounded * gain[:, None])
            return -((each * taken).sum(dim=1) / taken.sum() * share).sum()

        def loss(own: Parameters, played: Samples, shown: Samples | None, taken: Tensor, weight: Tensor) -> Tensor:
            total = torch.zeros(())
            if not cloning:
                scores, logs, error, share = evaluated(own, played, taken)
                spread = torch.log_softmax(scores, dim=-1)
                entropy = -(spread.exp() * spread.masked_fill(~played.allowed, 0.0)).sum(dim=-1)
                total = clipped(logs, played, played.gain, taken, share)
                total = total + self.value_weight * error - self.entropy * (entropy * share).sum()
            if shown is not None:
                _, logs, error, share = evaluated(own, shown, taken)
                surprise = -logs.sum(dim=1) / taken.sum()
                total = total + VALUE_OF_SHOWN * self.value_weight * error
                if cloning:
                    return total + (surprise * share).sum()
                eager = shown.gain.clamp(-MOST_EXPERT_ADVANTAGE, MOST_EXPERT_ADVANTAGE).exp()
                expert = clipped(logs, shown, shown.gain.clamp(min=0.0), taken, share)
                total = total + weight * (expert + self.imitation * (eager * surprise * share).sum())
            return total

        return loss

    def improve(
        self, team: Team, state: State, played: Samples, shown: Samples | None, weight: Tensor, rng: np.random.Generator,
        *, cloning: bool = False,
    ) -> None:  # fmt: skip
        """Take all steps of one update, in place; all agents at once, none by another's samples."""
        parameters, memory = (cast("dict[str, Tensor]", state["parameters"]), cast("State", state["adam"]))
        taken = torch.from_numpy(team.taken).to(weight.device)
        dims = (0, IN_DIMS, None if shown is None else IN_DIMS, 0, 0)
        gradients = torch.func.vmap(torch.func.grad(self.losses(team, cloning=cloning)), in_dims=dims)
        for _ in range(self.epochs):
            for own, theirs in zip(self._parts(played, rng), self._parts(shown, rng), strict=True):
                found = gradients(parameters, own, theirs, taken, weight)
                shorten(list(found.values()))
                self.adam.overwrite(parameters, found, memory)

    def _parts(self, batch: Samples | None, rng: np.random.Generator) -> list[Samples | None]:
        if batch is None:
            return [None] * self.minibatches
        samples = rng.permutation(batch.target.shape[1])
        device = batch.target.device
        return [batch.at(torch.from_numpy(some).to(device)) for some in np.array_split(samples, self.minibatches)]

    # --- what demonstrations count ---------------------------------------------------------------------------------

    def weights(
        self, update: int, played: Play, shown: Play, first: NDArray[np.float64] | None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """Return the weight [N] of the expert loss of each agent, and the distances [N] of the first update where they count.

        Parameters
        ----------
        update : from 0.
        played, shown : episodes of the agents' own and of demonstrations.
        first : distances of the first update; None in that one.
        """
        agents = len(played.reward)
        if self.weight == "decay":
            return np.full(agents, max(0.0, 1 - update / self.decay)), None
        if self.weight == "return":
            own = played.returns
            ahead = (shown.returns.mean(axis=1) - own.mean(axis=1)) / (own.std(axis=1) + 1e-6)
            return 1 / (1 + np.exp(-np.clip(ahead, -30, 30))), None
        if self.weight == "distance":
            apart = distances(played, shown)
            before = apart if first is None else first
            return np.minimum(1.0, 2 * apart / np.maximum(apart + before, 1e-12)), before
        return np.full(agents, self.fixed if self.weight == "fixed" else 0.0), None


def _rows(team: Team) -> bool:
    """Whether an observation has a row for each action."""
    return len(team.observation_shape) == 2


def distances(played: Play, shown: Play) -> NDArray[np.float64]:
    """Return float64 [N], how far each agent's trajectories are from the nearest demonstration, mean over its episodes."""
    own, theirs = (
        np.ascontiguousarray(of.observation.swapaxes(1, 2).reshape(*of.observation.swapaxes(1, 2).shape[:3], -1))
        for of in (played, shown)
    )
    return np.asarray(warped_distances(own, theirs).min(axis=2).mean(axis=1))

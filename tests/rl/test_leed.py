"""LEED: one update by a plain version for one agent alone, weights by their formulas, runs that repeat, resume and learn."""

import dataclasses
import itertools
import math

import networkx as nx
import numpy as np
import pytest
import torch
from torch import Tensor

from edgeopt.errors import EdgeOptError, InvalidFileError
from edgeopt.rl import (
    Demonstrations,
    Leed,
    NoisyPlanner,
    Play,
    ScriptedPlanner,
    TeamHistory,
    carried_out,
    learn_together,
    play,
)
from edgeopt.rl.environments import Routing, Spread, Team, grid
from edgeopt.rl.leed import distances

SMALL = Leed(episodes=3, hidden=8, minibatches=2, epochs=2, gather_every=2, decay=4, learning_rate=0.01)


def routing(agents: int = 3) -> Routing:
    return Routing(grid(3), agents, seed=1)


def episodes(team: Team, learner: Leed, seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor], Play, Play]:
    """Return a fresh state, its parameters, own play and demonstrations."""
    state = learner.start(team, seed)
    parameters = state["parameters"]
    rng = np.random.default_rng(seed)
    own = play(
        team,
        [1, 2, 3],
        lambda seen, step: learner.act(team, parameters, seen, rng.random(seen.allowed.shape, np.float32)),
    )
    return state, parameters, own, carried_out(team, ScriptedPlanner(), [4, 5, 6])[0]


# --- the update, written down for one agent ---------------------------------------------------------------------------


def network(weights: Tensor, inputs: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Return the output of a perceptron whose weights are one vector."""
    first = 0
    for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        matrix = weights[first : first + fan_in * fan_out].view(fan_in, fan_out)
        first += fan_in * fan_out
        inputs = inputs @ matrix + weights[first : first + fan_out]
        first += fan_out
        inputs = inputs if layer == len(sizes) - 2 else inputs.clamp(min=0)
    return inputs


class Alone:
    """One agent in plain torch: its own play and demonstrations, sample by sample, and torch's own Adam."""

    def __init__(self, team: Team, learner: Leed, parameters: dict[str, Tensor], agent: int) -> None:
        self.learner, (size,) = learner, team.observation_shape
        self.sizes = (size, learner.hidden, learner.hidden)
        self.actions = team.num_actions
        self.actor = parameters["actor"][agent].clone().requires_grad_()
        self.critic = parameters["critic"][agent].clone().requires_grad_()

    def logs(self, seen: Tensor, allowed: Tensor) -> Tensor:
        score = network(self.actor, seen, (*self.sizes, self.actions))
        return torch.log_softmax(score.masked_fill(~allowed, -1e9), dim=-1)

    def prepared(self, of: Play, agent: int):
        seen, allowed, action, reward = (torch.from_numpy(np.ascontiguousarray(part[agent])) for part in of)
        with torch.no_grad():
            value = network(self.critic, seen, (*self.sizes, 1))[..., 0]
            before = self.logs(seen, allowed).gather(-1, action)[..., 0]
        gain = torch.zeros_like(reward)
        for e in range(reward.shape[1]):
            for t in range(len(reward)):
                for k in range(t, len(reward)):
                    after = value[k + 1, e] if k + 1 < len(reward) else 0.0
                    error = reward[k, e] + self.learner.discount * after - value[k, e]
                    gain[t, e] += (self.learner.discount * self.learner.trace) ** (k - t) * error
        target = gain + value
        choice = allowed.sum(dim=-1) > 1
        mean = gain[choice].mean()
        deviation = (gain[choice] - mean).square().mean().sqrt()
        gain = torch.where(choice, (gain - mean) / (deviation + 1e-6), 0.0)
        return [part.flatten(0, 1) for part in (seen, allowed, action[..., 0], before, gain, target, choice)]

    def surrogate(self, now: Tensor, before: Tensor, gain: Tensor) -> Tensor:
        ratio = (now - before).exp()
        return torch.minimum(ratio * gain, ratio.clamp(1 - self.learner.clip, 1 + self.learner.clip) * gain)

    def update(self, own, shown, weight: float, rng: np.random.Generator) -> None:
        adam = torch.optim.Adam([self.actor, self.critic], lr=self.learner.learning_rate, eps=1e-5)
        for _ in range(self.learner.epochs):
            parts = [np.array_split(rng.permutation(len(of[-1])), self.learner.minibatches) for of in (own, shown)]
            for mine, theirs in zip(*parts, strict=True):
                total = torch.zeros(())
                seen, allowed, action, before, gain, target, choice = (part[mine] for part in own)
                logs = self.logs(seen, allowed)
                now = logs.gather(-1, action[:, None])[:, 0]
                total = total - self.surrogate(now, before, gain)[choice].sum() / choice.sum()
                entropy = -(logs.exp() * logs.masked_fill(~allowed, 0.0)).sum(dim=-1)
                total = total - self.learner.entropy * entropy[choice].sum() / choice.sum()
                value = network(self.critic, seen, (*self.sizes, 1))[..., 0]
                total = total + 0.5 * (value - target).square().mean()
                seen, allowed, action, before, gain, target, choice = (part[theirs] for part in shown)
                now = self.logs(seen, allowed).gather(-1, action[:, None])[:, 0]
                good = choice & (gain > 0)
                expert = -self.surrogate(now, before, gain)[good].sum() / choice.sum()
                copied = -(gain.clamp(-2, 2).exp() * now)[choice].sum() / choice.sum()
                total = total + weight * (expert + self.learner.imitation * copied)
                value = network(self.critic, seen, (*self.sizes, 1))[..., 0]
                total = total + 0.5 * 0.5 * (value - target).square().mean()
                adam.zero_grad()
                total.backward()
                torch.nn.utils.clip_grad_norm_([self.actor, self.critic], 0.5)
                adam.step()


def test_an_update_is_that_of_each_agent_alone():
    """Losses, advantages, clipping and Adam, for three agents with weights of their own."""
    team, weight = routing(), torch.tensor([0.0, 0.4, 1.0])
    state, parameters, own, shown = episodes(team, SMALL)
    before = {name: value.clone() for name, value in parameters.items()}
    one = [SMALL.samples(team, parameters, of) for of in (own, shown)]
    SMALL.improve(team, state, *one, weight, np.random.default_rng(7))
    for agent in range(3):
        alone = Alone(team, SMALL, before, agent)
        alone.update(
            *(alone.prepared(of, agent) for of in (own, shown)), float(weight[agent]), np.random.default_rng(7)
        )
        for name, value in {"actor": alone.actor, "critic": alone.critic}.items():
            torch.testing.assert_close(state["parameters"][name][agent], value.detach(), rtol=2e-4, atol=2e-5)


def test_no_agent_learns_from_what_another_has_seen():
    """Other observations, rewards or weights of agent 0 change agent 0 alone."""
    team = routing()
    state, parameters, own, shown = episodes(team, SMALL)
    other = {name: value.clone() for name, value in parameters.items()}
    second = {"parameters": other, "adam": SMALL.adam.start(other)}
    SMALL.improve(team, state, SMALL.samples(team, parameters, own), SMALL.samples(team, parameters, shown),
                  torch.ones(3), np.random.default_rng(0))  # fmt: skip
    reward, seen = own.reward.copy(), shown.observation.copy()
    reward[0] += np.random.default_rng(1).random(reward[0].shape, np.float32)
    seen[0] += 1
    changed = (
        SMALL.samples(team, other, own._replace(reward=reward)),
        SMALL.samples(team, other, shown._replace(observation=seen)),
    )
    SMALL.improve(team, second, *changed, torch.tensor([0.3, 1.0, 1.0]), np.random.default_rng(0))
    for name, value in parameters.items():
        torch.testing.assert_close(other[name][1:], value[1:], rtol=0, atol=0)
        assert not torch.equal(other[name][0], value[0])


def test_cloning_is_the_likelihood_alone():
    """The gradient of a cloning step is that of minus the log-likelihood; own play does not enter."""
    team = routing(2)
    learner = dataclasses.replace(SMALL, cloning=1)
    _, parameters, _, shown = episodes(team, learner)
    samples = learner.samples(team, parameters, shown)
    taken = torch.from_numpy(team.taken)
    found = torch.func.vmap(torch.func.grad(learner.losses(team, cloning=True)), in_dims=(0, None, type(samples)(0, None, 0, 0, 0, 0, 0), 0, 0))(
        parameters, None, samples, taken, torch.zeros(2)
    )  # fmt: skip
    for agent in range(2):
        alone = Alone(team, learner, parameters, agent)
        seen, allowed, action, _, _, _, choice = alone.prepared(shown, agent)
        loss = -alone.logs(seen, allowed).gather(-1, action[:, None])[choice].mean()
        loss.backward()
        torch.testing.assert_close(found["actor"][agent], alone.actor.grad, rtol=1e-4, atol=1e-6)


# --- weights ----------------------------------------------------------------------------------------------------------


def test_weights_by_their_formulas():
    team = routing()
    _, _, own, shown = episodes(team, SMALL)
    for update, expected in ((0, 1.0), (1, 0.75), (4, 0.0), (9, 0.0)):
        assert SMALL.weights(update, own, shown, None)[0].tolist() == [expected] * 3
    fixed = dataclasses.replace(SMALL, weight="fixed", fixed=0.3)
    assert fixed.weights(7, own, shown, None)[0].tolist() == [0.3] * 3
    adaptive = dataclasses.replace(SMALL, weight="return").weights(0, own, shown, None)[0]
    for agent in range(3):
        mine, theirs = own.reward[agent].sum(axis=0), shown.reward[agent].sum(axis=0)
        ahead = (theirs.mean() - mine.mean()) / (mine.std() + 1e-6)
        assert adaptive[agent] == pytest.approx(1 / (1 + math.exp(-max(-30, min(30, ahead)))), rel=1e-4)
    apart = dataclasses.replace(SMALL, weight="distance")
    weight, first = apart.weights(0, own, shown, None)
    assert weight == pytest.approx(np.ones(3))
    assert first == pytest.approx(distances(own, shown))
    later, kept = apart.weights(5, shown, shown, first)
    assert later == pytest.approx(np.zeros(3))  # on the demonstrations themselves
    assert kept is first
    assert (distances(own, shown) > 0).all()


# --- runs -------------------------------------------------------------------------------------------------------------

VARIANTS = {
    "decay": SMALL,
    "distance": dataclasses.replace(SMALL, weight="distance"),
    "return": dataclasses.replace(SMALL, weight="return"),
    "none": dataclasses.replace(SMALL, weight="none"),
    "all": dataclasses.replace(SMALL, critic="all"),
    "cloning": dataclasses.replace(SMALL, cloning=2, weight="none"),
}


def run(learner: Leed, team: Team | None = None, updates: int = 5, seed: int = 3, **options) -> TeamHistory:
    shown = Demonstrations(NoisyPlanner(0.3), keep=2)
    return learn_together(routing() if team is None else team, learner, shown, updates=updates, seed=seed, **options)


def assert_same(one: TeamHistory, other: TeamHistory) -> None:
    np.testing.assert_array_equal(one.returns, other.returns)
    assert one.rows == other.rows
    for name, value in one.state["parameters"].items():
        torch.testing.assert_close(value, other.state["parameters"][name], rtol=0, atol=0)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("learner", VARIANTS.values(), ids=VARIANTS)
def test_same_seed_same_run_and_resumed_is_one_long_run(learner: Leed, tmp_path):
    """To the bit: weights, returns, rows, and the demonstrations that are asked for later."""
    path = tmp_path / "run.safetensors"
    long = run(learner)
    run(learner, updates=3, checkpoint=path)
    assert_same(run(learner, checkpoint=path, resume=True), long)
    assert_same(run(learner), long)
    assert not np.array_equal(run(learner, seed=4).returns, long.returns)


def test_ctrl_c_and_callbacks(tmp_path):
    """An interrupted run is kept; a callback that returns False ends a run; a row for every update."""
    path = tmp_path / "run.safetensors"

    def interrupt(record) -> None:
        if record.number == 2:
            raise KeyboardInterrupt

    cut = run(SMALL, on_row=interrupt, checkpoint=path)
    assert cut.interrupted
    assert len(cut.rows) == 2
    assert_same(run(SMALL, checkpoint=path, resume=True), run(SMALL))
    ended = run(SMALL, on_row=lambda record: record.number < 3)
    assert [row["update"] for row in ended.rows] == [1, 2, 3]
    assert set(ended.rows[0]) == {"update", "return", "weight", "shown", "sets", "rejected"}
    assert [row["weight"] for row in run(SMALL).rows] == [1.0, 0.75, 0.5, 0.25, 0.0]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"learner": dataclasses.replace(SMALL, hidden=9)}, "learner"),
        ({"seed": 4}, "seed"),
        ({"team": routing(4)}, "agents"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused(changes: dict, told: str, tmp_path):
    path = tmp_path / "run.safetensors"
    run(SMALL, updates=1, checkpoint=path)
    with pytest.raises(InvalidFileError, match=told):
        run(**{"learner": SMALL} | changes, checkpoint=path, resume=True)


def test_what_does_not_fit_is_refused():
    with pytest.raises(EdgeOptError, match="demonstrations"):
        learn_together(routing(), SMALL, updates=1, seed=0)
    for field, value in {"weight": "linear", "critic": "mine", "episodes": 0, "imitation": -1.0, "cloning": -1}.items():
        with pytest.raises(EdgeOptError, match=field):
            dataclasses.replace(SMALL, **{field: value})


def test_demonstrations_help_where_goals_are_far():
    """On a long road, agents with demonstrations have brought home more after ten updates than those without."""
    team = Routing(nx.path_graph(14), 3, starts=1, latest=1, seed=1, congestion=0.1)
    learner = Leed(episodes=4, hidden=16, learning_rate=0.01, imitation=1.0, decay=10)
    shown = learn_together(team, learner, Demonstrations(ScriptedPlanner()), updates=10, seed=0)
    alone = learn_together(team, dataclasses.replace(learner, weight="none"), updates=10, seed=0)
    assert shown.returns[5:].mean() > alone.returns[5:].mean() + 0.5


def test_a_critic_that_sees_all_is_wider():
    team = Spread(3)
    own, every = (dataclasses.replace(SMALL, critic=critic).start(team, 0)["parameters"] for critic in ("own", "all"))
    assert own["actor"].shape == every["actor"].shape
    (size,) = team.observation_shape
    assert every["critic"].shape[1] - own["critic"].shape[1] == 2 * size * SMALL.hidden

"""Proximal policy optimisation: advantages by their formula, steps by a plain version for one learner, that it learns."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from edgeopt.errors import EdgeOptError
from edgeopt.rl import Evaluation, Experience, Ppo, advantages, improve, standardised


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


@pytest.mark.parametrize("trace", [0.0, 0.6, 1.0])
def test_advantages_are_discounted_sums_of_errors(trace: float):
    """The recursion gives the sum over later steps of (gamma lambda)^k times the error of each, at every step."""
    reward, value, settings = draws(2, 5, 3), draws(2, 5, 3, seed=1), Ppo(discount=0.8, trace=trace)
    after = torch.cat([value[:, 1:], torch.zeros(2, 1, 3, dtype=value.dtype)], dim=1)
    error = reward + 0.8 * after - value
    expected = torch.stack([sum((0.8 * trace) ** (k - t) * error[:, k] for k in range(t, 5)) for t in range(5)], dim=1)
    torch.testing.assert_close(advantages(reward, value, settings), expected)


def test_standardised_gains():
    """Each learner's counted entries have mean 0 and deviation 1; what does not count changes nothing."""
    gain, counted = draws(2, 50, 3), torch.ones(2, 50, 3, dtype=torch.bool)
    counted[1, :, 1:] = False
    found = standardised(gain, counted)
    for learner in range(2):
        own = found[learner][counted[learner]]
        assert float(own.mean()) == pytest.approx(0.0, abs=1e-12)
        assert float(own.square().mean()) == pytest.approx(1.0, abs=1e-5)
    other = torch.where(counted, gain, 1e6)
    torch.testing.assert_close(standardised(other, counted)[counted], found[counted])


# --- steps ------------------------------------------------------------------------------------------------------------

SETTINGS = Ppo(epochs=3, minibatches=2, learning_rate=0.1, entropy=0.1)
SAMPLES, ARMS = 12, 4


class Table(torch.nn.Module):
    """Learners who see nothing: each has one score for each of four arms, and a value."""

    def __init__(self, learners: int) -> None:
        super().__init__()
        self.score = torch.nn.Parameter(0.5 * draws(learners, ARMS, seed=2))
        self.value = torch.nn.Parameter(torch.zeros(learners, 1, dtype=torch.float64))

    def evaluate(self, seen: Tensor, action: Tensor) -> Evaluation:
        logs = torch.log_softmax(self.score, dim=1)[:, None].expand(-1, action.shape[1], -1)
        entropy = -(logs.exp() * logs).sum(dim=2)
        return Evaluation(logs.gather(2, action), self.value.expand(-1, action.shape[1]), entropy)


def experience(table: Table, seed: int = 3) -> Experience:
    """Return what some arms, three at a time, have brought; their probabilities have moved since they were drawn."""
    learners = len(table.score)
    action = torch.from_numpy(np.random.default_rng(seed).integers(ARMS, size=(learners, SAMPLES, 3)))
    seen = torch.zeros(learners, SAMPLES, 1)
    logs = table.evaluate(seen, action).logs.detach() + 0.3 * draws(learners, SAMPLES, 3, seed=4)
    return Experience(seen, action, logs, draws(learners, SAMPLES, 3, seed=5), draws(learners, SAMPLES, seed=6))


def plain(table: Table, learner: int, played: Experience, actions: int, settings: Ppo) -> Table:
    """Return one learner after the same steps, written down sample by sample: the clipped loss, its gradient, Adam."""
    alone = Table(1)
    with torch.no_grad():
        alone.score.copy_(table.score[learner : learner + 1])
        alone.value.copy_(table.value[learner : learner + 1])
    adam = torch.optim.Adam(alone.parameters(), lr=settings.learning_rate, eps=1e-5)
    rng = np.random.default_rng(7)
    for _ in range(settings.epochs):
        for chosen in np.array_split(rng.permutation(SAMPLES), settings.minibatches):
            losses = []
            for sample in chosen.tolist():
                logs = torch.log_softmax(alone.score[0], dim=0)
                terms = []
                for m in range(actions):
                    ratio = torch.exp(logs[played.action[learner, sample, m]] - played.logs[learner, sample, m])
                    gain = played.gain[learner, sample, m]
                    bounded = ratio.clamp(1 - settings.clip, 1 + settings.clip)
                    terms.append(torch.minimum(ratio * gain, bounded * gain))
                error = (alone.value[0, 0] - played.target[learner, sample]) ** 2
                entropy = -(logs.exp() * logs).sum()
                losses.append(settings.value_weight * error - sum(terms) / actions - settings.entropy * entropy)
            adam.zero_grad()
            (sum(losses) / len(losses)).backward()
            torch.nn.utils.clip_grad_norm_(alone.parameters(), 0.5)
            adam.step()
    return alone


def test_steps_are_those_of_each_learner_alone():
    """Learners with one, two and three actions step together as each does alone by the plain formula."""
    table, before = Table(3), Table(3)
    played, taken = experience(table), torch.tensor([[1, 0, 0], [1, 1, 0], [1, 1, 1]], dtype=torch.bool)
    adam = SETTINGS.optimizer(table.parameters())
    improve(table.evaluate, adam, played, taken, SETTINGS, shuffle=np.random.default_rng(7))
    for learner in range(3):
        alone = plain(before, learner, played, learner + 1, SETTINGS)
        torch.testing.assert_close(table.score[learner], alone.score[0], rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(table.value[learner], alone.value[0], rtol=1e-6, atol=1e-8)
    assert not torch.allclose(table.score, before.score, atol=0.05)


def test_a_step_in_parts_is_the_step_at_once(monkeypatch: pytest.MonkeyPatch):
    """A minibatch too large for one evaluation gives the same step, with a chance to leave between its parts."""
    tables = (Table(3), Table(3))
    looks: tuple[list[int], list[int]] = ([], [])
    played, taken = experience(tables[0]), torch.tensor([[1, 0, 0], [1, 1, 0], [1, 1, 1]], dtype=torch.bool)
    for table, seen, most in zip(tables, looks, (1 << 20, 7), strict=True):
        monkeypatch.setattr("edgeopt.rl.ppo.MOST_AT_ONCE", most)
        improve(
            table.evaluate, SETTINGS.optimizer(table.parameters()), played, taken, SETTINGS,
            shuffle=np.random.default_rng(7), before_step=lambda seen=seen: seen.append(1),
        )  # fmt: skip
    torch.testing.assert_close(tables[0].score, tables[1].score, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(tables[0].value, tables[1].value, rtol=1e-6, atol=1e-8)
    assert len(looks[0]) == SETTINGS.epochs * SETTINGS.minibatches < len(looks[1])


def test_an_action_beyond_the_clip_is_moved_no_further():
    """Where the ratio is out of its range on the side of the gain, the policy has no gradient; on the other side it has."""
    settings = dataclasses.replace(SETTINGS, entropy=0.0, value_weight=0.0, epochs=1, minibatches=1)
    for shift, gain, moves in ((-1.0, 1.0, False), (1.0, 1.0, True), (1.0, -1.0, False), (-1.0, -1.0, True)):
        table, before = Table(1), Table(1)
        action = torch.zeros(1, 1, 1, dtype=torch.int64)
        logs = table.evaluate(torch.zeros(1, 1, 1), action).logs.detach() + shift
        played = Experience(torch.zeros(1, 1, 1), action, logs, torch.full((1, 1, 1), gain), torch.zeros(1, 1))
        adam = settings.optimizer(table.parameters())
        taken = torch.ones(1, 1, dtype=torch.bool)
        improve(table.evaluate, adam, played, taken, settings, shuffle=np.random.default_rng(0))
        assert torch.equal(table.score, before.score) is not moves


def test_learns_the_best_arm():
    """Two learners with different best arms each come to prefer their own."""
    means = torch.tensor([[0.0, 1.0, 0.2, 0.1], [0.9, 0.0, 0.1, 0.2]], dtype=torch.float64)
    table, rng, settings = Table(2), np.random.default_rng(8), dataclasses.replace(SETTINGS, entropy=0.0)
    adam = settings.optimizer(table.parameters())
    taken = torch.ones(2, 1, dtype=torch.bool)
    for _ in range(30):
        probability = torch.softmax(table.score, dim=1).detach()
        action = torch.multinomial(probability, 64, replacement=True, generator=generator(rng))[..., None]
        reward = means.gather(1, action[..., 0])
        seen = torch.zeros(2, 64, 1)
        now = table.evaluate(seen, action)
        gain = standardised((reward - now.value)[..., None].detach(), torch.ones(2, 64, 1, dtype=torch.bool))
        improve(
            table.evaluate,
            adam,
            Experience(seen, action, now.logs.detach(), gain, reward),
            taken,
            settings,
            shuffle=rng,
        )
    assert torch.softmax(table.score, dim=1).max(dim=1).indices.tolist() == [1, 0]
    assert torch.softmax(table.score, dim=1).max(dim=1).values.min().item() > 0.9


def generator(rng: np.random.Generator) -> torch.Generator:
    return torch.Generator().manual_seed(int(rng.integers(2**31)))


def test_steps_can_be_left():
    """What is raised before a step leaves at once, after the steps so far: none here."""
    table, before = Table(1), Table(1)
    calls: list[int] = []

    def leave() -> None:
        calls.append(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        improve(
            table.evaluate, SETTINGS.optimizer(table.parameters()), experience(table), torch.ones(1, 3, dtype=torch.bool),
            SETTINGS, shuffle=np.random.default_rng(0), before_step=leave,
        )  # fmt: skip
    assert len(calls) == 1
    assert torch.equal(table.score, before.score)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ppo(epochs=0), "epochs = 0: expected an integer from 1 to 65536"),
        (lambda: Ppo(minibatches=1 << 17), "minibatches = 131072: expected an integer from 1 to 65536"),
        (lambda: Ppo(clip=0.0), "clip = 0.0: expected a number > 0"),
        (lambda: Ppo(trace=1.5), "trace = 1.5: expected a number from 0 to 1"),
        (lambda: Ppo(entropy=-1.0), "entropy = -1.0: expected a number >= 0"),
    ],
)
def test_wrong_settings(make: Callable[[], Ppo], message: str):
    """A hyper-parameter out of its range is named, with its value and what was expected."""
    with pytest.raises(EdgeOptError) as found:
        make()
    assert str(found.value) == message

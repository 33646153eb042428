"""Random numbers at clients: functions of a key that agree with their definition, and in a batch to the bit."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from scipy import stats
from torch.func import vmap

from edgeopt import RoundPlan, StaticPlanner
from edgeopt.training import Batches, LocalRunner, Message, Models, Outcome, Phase, Task, reply, train
from edgeopt.training.keys import fold_in, normal, permutation, rademacher, uniform
from edgeopt.training.messages import State
from tests.training.small_tasks import small_task, small_timing

MASK = (1 << 64) - 1
KEYS = torch.tensor([0, 1, -1, 5, 1 << 62, -(1 << 63)])
DRAWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "uniform": lambda key: uniform(key, (3, 5)),
    "double": lambda key: uniform(key, (7,), torch.float64),
    "normal": lambda key: normal(key, (11, 7)),
    "half": lambda key: normal(key, (9,), torch.bfloat16),
    "rademacher": lambda key: rademacher(key, (33,)),
    "permutation": lambda key: permutation(key, 17),
    "fold": lambda key: fold_in(key, 3, 4),
}


def splitmix(key: int, count: int) -> list[int]:
    """Return SplitMix64 in Python's own numbers, started at the hash of the key."""

    def mixed(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
        return x ^ (x >> 31)

    return [mixed((mixed(key & MASK) + i * 0x9E3779B97F4A7C15) & MASK) for i in range(1, count + 1)]


@pytest.mark.parametrize("key", KEYS.tolist())
def test_numbers_are_those_of_splitmix(key: int):
    """Top bits of the hash as fractions, as signs, and as an order."""
    expected = splitmix(key, 20)
    at = torch.tensor(key)
    assert uniform(at, (4, 5)).flatten().tolist() == [(x >> 40) * 2.0**-24 for x in expected]
    assert rademacher(at, (20,)).tolist() == [1 if x >> 63 else -1 for x in expected]
    signed = [x - (1 << 64) if x >> 63 else x for x in expected]
    assert permutation(at, 20).tolist() == np.argsort(signed, kind="stable").tolist()


@pytest.mark.parametrize("name", DRAWS)
def test_in_a_batch_to_the_bit(name: str):
    """`vmap` gives every key what it has alone, and twice the same."""
    draw = DRAWS[name]
    one_by_one = torch.stack([draw(key) for key in KEYS])
    assert torch.equal(vmap(draw)(KEYS), one_by_one)
    assert torch.equal(draw(KEYS[3]), one_by_one[3])
    assert len(torch.unique(one_by_one.flatten(1) if one_by_one.ndim > 1 else one_by_one[:, None], dim=0)) == len(KEYS)


def test_distributions():
    """A hundred thousand numbers of fixed keys are as likely as a fair draw would be."""
    count = 100_000
    assert stats.kstest(uniform(torch.tensor(3), (count,)).numpy(), "uniform").pvalue > 0.01
    assert stats.kstest(normal(torch.tensor(3), (count,)).numpy(), "norm").pvalue > 0.01
    assert abs(float(rademacher(torch.tensor(3), (count,)).mean())) < 3 / np.sqrt(count)
    first = torch.stack([permutation(torch.tensor(key), 4) for key in range(4000)])[:, 0]
    assert stats.chisquare(np.bincount(first.numpy())).pvalue > 0.01
    assert torch.isfinite(normal(torch.tensor(3), (count,))).all()


def test_folding_gives_keys_of_their_own():
    """Other numbers, another order, more of them: another key; a tensor of numbers gives a key for each."""
    key = torch.tensor(5)
    keys = [int(fold_in(key, *numbers)) for numbers in ((), (0,), (1,), (0, 1), (1, 0), (0, 0))]
    assert len(set(keys)) == len(keys)
    for dtype in (torch.int64, torch.int32, torch.uint8):  # a key alone is a scalar, which gives way to other types
        found = fold_in(key, 2, torch.arange(3, dtype=dtype))
        assert found.dtype == torch.int64
        assert found.tolist() == [int(fold_in(key, 2, i)) for i in range(3)]


@dataclass(frozen=True)
class Rolling:
    """Clients send what they roll, in two steps of a round."""

    name: ClassVar[str] = "rolling"

    def start(self, task: Task) -> State:
        return {"rolled": {}}

    def round(self, task: Task, state: State, plan: RoundPlan, number: int) -> Any:
        rolled = {}
        for step in range(2):
            messages = {entry: Message("roll", batches=Batches(number, step, 1, 2)) for entry in range(len(plan))}
            for entry, answer in (yield Phase("roll", messages)).items():
                at = f"{number} {step} {plan.client[entry]} {plan.server[entry]}"
                rolled[at] = answer["scalars"]["rolled"]
        return Outcome({"rolled": {**state["rolled"], **rolled}}, {})

    def client(self, task: Task, message: Message, state: State, batch: Any) -> tuple[Message, State]:
        assert message.batches is not None
        assert message.key is not None
        return reply(scalars={"rolled": normal(message.key, (3,)) + 0 * batch.inputs.sum()}), state

    def models(self, task: Task, state: State, clients: Mapping[int, State]) -> Models:
        return {}


def rolled(seed: int = 0, **options: Any) -> dict[str, list[float]]:
    planner = StaticPlanner(RoundPlan(client=[2, 0, 1, 2], server=[0, 0, 0, 1]))
    history = train(small_task((4, 5, 6), seed=seed), Rolling(), planner, small_timing(), rounds=2, **options)
    assert history.rows[-1]["bytes_down"] == 0  # a key costs nothing
    found: Any = history.server["rolled"]
    return {name: value.tolist() for name, value in found.items()}


def test_clients_get_a_key_for_each_round_and_step():
    """All keys of a run differ; batched and one after another roll the same; another seed rolls others."""
    batched = rolled()
    assert len({tuple(value) for value in batched.values()}) == 2 * 2 * 4
    assert rolled(runner=LocalRunner(batched=False)) == batched
    assert rolled(runner=LocalRunner(chunk=2)) == batched
    assert not set(map(tuple, rolled(seed=1).values())) & set(map(tuple, batched.values()))

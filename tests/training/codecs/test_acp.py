"""`AcpCodec` against scores, histories and ratios written anew in NumPy, with loops; budgets; masks at work."""

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgeopt.errors import InvalidProblemError
from edgeopt.training import AcpCodec, Form, State
from edgeopt.training.codecs.channel_scores import by_label, label_aware, magnitude, separability
from tests.training.codecs.crossing import KEY, exchange, form_of, nbytes, tensor

Floats = NDArray[np.float64]
FIXED = AcpCodec(pruned_base=0.5, pruned_least=0.5, pruned_most=0.5)


def naive_label_aware(maps: Floats, labels: NDArray[np.int64]) -> Floats:
    """Equations 1 to 6 with a loop for every sum; `maps` is [samples, channels, values]."""
    channels, known = maps.shape[1], sorted(set(labels.tolist()))
    intra, inter = np.zeros(channels), np.zeros(channels)
    for i in range(channels):
        means = {n: maps[labels == n, i].mean(0) for n in known}
        for n in known:
            own = [float((maps[b, i] * means[n]).sum()) for b in range(len(maps)) if labels[b] == n]
            intra[i] += np.mean(own) / len(known)
        pairs = [float((means[n] * means[m]).sum()) for n, m in itertools.combinations(known, 2)]
        inter[i] = np.mean(pairs) if pairs else 0.0
    score = intra / intra.sum() if intra.sum() > 0 else np.zeros(channels)
    return score - inter / inter.sum() if inter.sum() > 1e-3 * np.abs(inter).sum() else score


def naive_separability(maps: Floats, labels: NDArray[np.int64]) -> Floats:
    values, found = maps.mean(2), []
    for c in range(maps.shape[1]):
        between = within = 0.0
        for n in set(labels.tolist()):
            own = values[labels == n, c]
            between += len(own) * (own.mean() - values[:, c].mean()) ** 2
            within += float(((own - own.mean()) ** 2).sum())
        share = between / (between + within) if between + within else 0.0
        found.append(share * np.abs(maps[:, c]).mean())
    return np.array(found)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    shape=st.sampled_from([(6, 5, 4), (1, 3, 2), (9, 4, 1), (8, 1, 3)]),
    classes=st.integers(1, 4),
    relu=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_scores_are_those_of_loops_in_numpy(shape: tuple[int, ...], classes: int, relu: bool, seed: int):
    """For non-negative activations and signed ones, where inter-label sums may be anything; with one label too."""
    rng = np.random.default_rng(seed)
    maps = rng.normal(size=shape)
    maps = np.maximum(maps, 0) if relu else maps
    labels = rng.integers(0, classes, shape[0])
    x, y = torch.tensor(maps), torch.tensor(labels)
    np.testing.assert_allclose(label_aware(x, y).numpy(), naive_label_aware(maps, labels), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(separability(x, y).numpy(), naive_separability(maps, labels), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(magnitude(x).numpy(), np.abs(maps).mean((0, 2)), rtol=1e-12)


def test_the_ratio_as_printed_is_nothing_over_nothing():
    """Both parts of the paper's score sum to one: the mean of the scores is zero, and W of eq. 12 is 0 / 0."""
    scores = label_aware(tensor((12, 7, 5), dtype=torch.float64).relu(), torch.arange(12) % 4)
    assert scores.abs().max() > 0.01
    assert abs(float(scores.sum())) < 1e-12


@pytest.mark.parametrize("labels", [torch.zeros(6, dtype=torch.long), torch.tensor([3, 3, 8, 8, 3, 3])])
def test_labels_that_are_not_there_do_not_count(labels: torch.Tensor):
    """Which numbers the labels have does not matter, nor how many others there could be; zeros score zero."""
    x = tensor((6, 4, 3)).relu()
    renamed = torch.where(labels == 3, 0, 1) if labels.any() else labels + 40
    assert torch.equal(label_aware(x, labels), label_aware(x, renamed))
    assert torch.equal(label_aware(torch.zeros_like(x), labels), torch.zeros(4))


def test_what_is_scored_where_every_place_has_a_label():
    """Tokens [B, T, D] with labels [B, T] count as B T samples, with labels [B] as B; other numbers of labels are refused."""
    x, labels = tensor((3, 4, 5)), torch.arange(12).reshape(3, 4) % 2
    scored, own = by_label(x, labels)
    assert torch.equal(scored.squeeze(2), x.reshape(12, 5))
    assert torch.equal(own, labels.flatten())
    scored, own = by_label(x, labels[:, 0])
    assert torch.equal(scored, x.transpose(1, 2))
    with pytest.raises(InvalidProblemError, match=r"labels: \[2\] for activations \[3, 4, 5\]: expected one for each"):
        by_label(x, labels[0, :2])


def test_labels_that_are_missing():
    """Scores that need them say so, the others do without."""
    x = tensor((4, 6, 2, 2))
    order = FIXED.order("up", form_of(x), math.inf, {})
    assert order is not None
    for score in ("label-aware", "separability"):
        with pytest.raises(InvalidProblemError, match=f"acp: no labels: .* for the score {score}"):
            replace(FIXED, score=score).encode("up", x, order, {}, labels=None, key=KEY)
    for score in ("l1", "random"):
        replace(FIXED, score=score).encode("up", x, order, {}, labels=None, key=KEY)


@pytest.mark.parametrize("level", ["magnitude", "kept"])
@pytest.mark.parametrize("shape", [(6, 8, 3, 2), (6, 2, 8), (6, 8)], ids=str)
def test_messages_are_those_of_the_paper_in_numpy(shape: tuple[int, ...], level: Any):
    """History, combination, ratio and mask over ten messages; the ratio follows the message before, as the page says."""
    codec = AcpCodec(pruned_base=0.5, pruned_least=0.3, pruned_most=0.7, horizon=8, level=level)
    client: State = {}
    server: State = {}
    scores: list[Floats] = []
    levels: list[float] = []
    kept = []
    for t in range(1, 11):
        x = tensor(shape, t, torch.float64).relu() * (1 + (t % 3) * tensor((1, *shape[1:]), 99 + t, torch.float64) ** 2)
        labels = torch.arange(6) % (1 + t % 3)
        found, sent, gradient, back, client, server = exchange(codec, x, client=client, server=server, labels=labels)
        form = form_of(x)
        maps = form.by_channel(x)
        scores.append(naive_label_aware(maps.numpy(), labels.numpy()))
        a = max(0.0, 1 - t / 8)
        combined = a * scores[-1] + (1 - a) * np.mean(scores, 0)
        pruned = 0.5 if not levels else min(max(np.mean(levels) / levels[-1] * 0.5, 0.3), 0.7)
        number = max(1, round((1 - pruned) * 8))
        best = np.argsort(-combined, kind="stable")[:number]
        mask = np.isin(np.arange(8), best)
        levels.append(float(np.abs(combined).mean() if level == "magnitude" else combined[best].mean()))
        kept.append(number)
        assert float(sent["level"]) == pytest.approx(levels[-1], rel=1e-5)
        torch.testing.assert_close(form.by_channel(found), maps * torch.tensor(mask)[None, :, None])
        torch.testing.assert_close(gradient, found)  # the same channels of the same tensor
        plane = x[0].nbytes * 6 // 8
        assert (nbytes(sent), nbytes(back)) == (number * plane + 1 + 4, number * plane)
    assert len(set(kept)) > 1


def test_the_mask_is_sent_as_bits():
    """A bit for each channel, rounded up to bytes; without an adaptive ratio no level beside it."""
    x = tensor((3, 17, 2, 2))
    sent = exchange(FIXED, x).sent
    assert set(sent) == {"values", "channels"}
    assert (sent["channels"].dtype, sent["channels"].numel()) == (torch.uint8, 3)
    assert sent["values"].shape == (3, 8, 4)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    shape=st.sampled_from([(6, 8), (4, 12, 2, 3), (3, 5, 9), (1, 7), (5,), (300, 2)]),
    budget=st.one_of(st.floats(0, 3), st.floats(0, 3000)),
    adaptive=st.booleans(),
)
def test_a_budget_is_never_exceeded(shape: tuple[int, ...], budget: float, adaptive: bool):
    """As many channels as fit, at most those of the ratio; where not even one does there is no order."""
    codec = AcpCodec(pruned_least=0.3 if adaptive else 0.7)
    x = tensor(shape)
    order = codec.order("up", form_of(x), budget, {})
    channels = form_of(x).channels
    one = x.nbytes // channels + -(-channels // 8) + 4 * adaptive
    assert (order is None) == (budget < one)
    if order is not None:
        sent = exchange(codec, x, budget=budget).sent
        assert nbytes(sent) <= budget
        wanted = max(1, round(0.3 * channels))
        assert order["kept"] == wanted or nbytes(sent) + x.nbytes // channels > budget
        assert int(order["kept"]) <= wanted


def test_each_ratio_stays_between_its_limits():
    """Whatever the levels: nothing, infinitely more, not a number; the limits are reached."""
    form = Form((4, 16, 2, 2), torch.float32)
    kept = set()
    for level in (1e-9, 0.5, 0.9, 1.0, 1.1, 2.0, 1e9, 0.0):
        memory: State = {"mask": torch.ones(16, dtype=torch.bool), "level": torch.tensor(level)}
        memory |= {"mean_level": torch.tensor(1.0), "count": torch.tensor(3)}
        order = AcpCodec().order("up", form, math.inf, memory)
        assert order is not None
        kept.add(order["kept"])
    assert kept == {3, 4, 5, 6}  # of 16: pruned 0.8 to 0.6


def test_other_channels_begin_anew():
    """After a cut has moved, neither scores nor levels of the other layer count."""
    one = exchange(AcpCodec(), tensor((4, 6, 2, 2)))
    moved = exchange(AcpCodec(), tensor((4, 9, 2, 2), 1), client=one.client, server=one.server)
    anew = exchange(AcpCodec(), tensor((4, 9, 2, 2), 1))
    assert torch.equal(moved.found, anew.found)
    assert str(moved.client) == str(anew.client)
    assert str(moved.server) == str(anew.server)


def test_random_channels_are_new_ones_each_time():
    """Scores at random have no history: whatever the horizon, another key gives other channels."""
    codec, x = replace(FIXED, score="random", horizon=1), tensor((2, 16, 2, 2))
    one = exchange(codec, x)
    other = exchange(codec, x, client=one.client, server=one.server, key=torch.tensor(12))
    assert not torch.equal(one.sent["channels"], other.sent["channels"])


def test_at_work_the_mean_scores_of_the_clients_decide():
    """As many channels as they kept on the average, those with the best mean; the others are zeros; one client is enough."""
    x = tensor((3, 6, 2, 2), 5)
    memories: list[State] = [
        {"mean_scores": torch.tensor(scores), "mask": torch.arange(6) < kept}
        for scores, kept in (([0.0, 5, 1, 3, 0, 0], 2), ([4.0, 0, 0, 3, 0, 0], 4))
    ]
    both, first = FIXED.at_work(x, memories), FIXED.at_work(x, memories[:1])
    assert (both.abs().sum((0, 2, 3)) > 0).tolist() == [True, True, False, True, False, False]
    assert (first.abs().sum((0, 2, 3)) > 0).tolist() == [False, True, False, True, False, False]
    assert torch.equal(both[:, [0, 1, 3]], x[:, [0, 1, 3]])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_arrives(value: float):
    """A channel with such a value is sent, so that the loss tells of it."""
    x = tensor((4, 6, 2, 2))
    x[1, 4, 0, 1] = value
    for score in ("label-aware", "separability", "l1", "random"):
        assert not exchange(AcpCodec(score=score, pruned_least=0.1, pruned_base=0.5), x).found.isfinite().all()


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"score": "l2"}, "score = 'l2': expected one of label-aware, separability, l1, random"),
        ({"level": "mean"}, "level = 'mean': expected one of magnitude, kept"),
        ({"pruned_most": 1.0}, "pruned_most = 1.0: expected 0 to below 1"),
        ({"pruned_least": -0.1}, "pruned_least = -0.1: expected 0 to below 1"),
        ({"pruned_base": 0.9}, "pruned_base = 0.9: expected pruned_least to pruned_most, 0.6 to 0.8"),
        ({"horizon": 0}, "horizon = 0: expected"),
    ],
)
def test_parameters_out_of_range(fields: dict[str, Any], told: str):
    """Are refused, with what was expected."""
    with pytest.raises(InvalidProblemError, match=told):
        AcpCodec(**fields)

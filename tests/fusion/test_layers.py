"""Layers, forecasts and recovery against independent implementations."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from torch import nn

from edgeopt.fusion.layers import BiasedAttention, PerModality
from edgeopt.fusion.recovery import Common, Recovery, alignment_loss, product_of_others, wasserstein
from edgeopt.fusion.uncertainty import Uncertainty, forecast_loss, gaussian_loss, log_uncertainty
from tests.one_thread import one_thread  # noqa: F401 - a fixture of all tests here


def test_layer_of_each_modality():
    """It is a linear layer for each modality."""
    layer, x = PerModality(3, 4, 5), torch.randn(2, 3, 6, 4)
    for m in range(3):
        torch.testing.assert_close(layer(x)[:, m], x[:, m] @ layer.weight[m] + layer.bias[m])


@pytest.mark.parametrize("apart", [False, True])
def test_attention_token_by_token(apart: bool):
    """A loop over queries, keys and heads gives the same as the layer."""
    torch.manual_seed(0)
    layer, (batch, m, steps, width, heads) = BiasedAttention(8, 2, 3), (2, 3, 5, 8, 2)
    nn.init.normal_(layer.distance)
    x, bias = torch.randn(batch, m, steps, width), torch.randn(batch, m, steps)
    found, _ = layer(x, bias, apart=apart)
    size = width // heads
    for b in range(batch):
        joint = layer.joint(layer.before(x[b])).detach().view(m, steps, heads, 3 * size)
        for i in range(m):
            for t in range(steps):
                parts = []
                for h in range(heads):
                    query = joint[i, t, h, :size]
                    scores, values = [], []
                    for j in range(m):
                        for s in range(max(0, t - 2), t + 1):
                            if apart and i != j:
                                continue
                            key, value = joint[j, s, h, size : 2 * size], joint[j, s, h, 2 * size :]
                            scores.append(query @ key / size**0.5 + layer.distance[h, t - s] + bias[b, j, s])
                            values.append(value)
                    parts.append(torch.stack(scores).softmax(0) @ torch.stack(values))
                token = x[b, i, t] + layer.out(torch.cat(parts))
                token = token + layer.narrow(nn.functional.gelu(layer.wide(layer.between(token))))
                torch.testing.assert_close(found[b, i, t], token, rtol=1e-4, atol=1e-5)


def test_recurrence_is_that_of_torch():
    """The unit that forecasts is `nn.GRUCell`, one for each modality."""
    torch.manual_seed(0)
    layer = Uncertainty(2, 4)
    x, hidden = torch.randn(3, 2, 4), torch.randn(3, 2, 4)
    found = layer._recur(x, hidden)
    for m in range(2):
        cell = nn.GRUCell(4, 4)
        with torch.no_grad():
            cell.weight_ih.copy_(layer.inward.weight[m].T)
            cell.bias_ih.copy_(layer.inward.bias[m, 0])
            cell.weight_hh.copy_(layer.around.weight[m].T)
            cell.bias_hh.copy_(layer.around.bias[m, 0])
        torch.testing.assert_close(found[:, m], cell(x[:, m], hidden[:, m]))


def test_residuals_are_zero_where_nothing_is_measured():
    """A missing step is what was forecast; what is measured there changes nothing afterwards."""
    torch.manual_seed(0)
    layer, tokens = Uncertainty(2, 4, window=3), torch.randn(3, 2, 6, 4)
    present = torch.ones(3, 2, 6)
    present[:, 1, 2:4] = 0
    doubt, _ = layer(tokens, present)
    assert doubt.residual[:, 1, 2:4].abs().max() == 0
    assert doubt.residual[:, 0].abs().min() > 0
    other = tokens.clone()
    other[:, 1, 2:4] += 1
    again, _ = layer(other, present)
    torch.testing.assert_close(again.hidden, doubt.hidden)
    torch.testing.assert_close(again.log_variance[:, 1, 4:], doubt.log_variance[:, 1, 4:])


def test_forecasts_do_not_move_what_they_forecast():
    """The loss has no gradient that makes means easy to forecast, apart from what holds them near zero and the state."""
    torch.manual_seed(0)
    layer = Uncertainty(1, 4)
    doubt, _ = layer(torch.randn(2, 1, 1, 4), torch.ones(2, 1, 1))
    mean = doubt.mean.detach().requires_grad_()
    loss = forecast_loss(doubt._replace(mean=mean, residual=mean - (doubt.mean - doubt.residual).detach(),
                                        log_variance=doubt.log_variance.detach()), torch.ones(2, 1, 1))  # fmt: skip
    loss.sum().backward()
    torch.testing.assert_close(mean.grad, 1e-3 * mean.detach() / 4)


def test_gaussian_loss_by_hand():
    """The gradient of the residual is the residual; the variance that is best is its square."""
    e, log_v = torch.tensor([[0.5, -2.0]], requires_grad=True), torch.tensor([[0.3, 1.0]], requires_grad=True)
    gaussian_loss(e, log_v).sum().backward()
    torch.testing.assert_close(e.grad, e.detach() / 2)
    torch.testing.assert_close(log_v.grad, 0.25 * (1 - e.detach() ** 2 * (-log_v.detach()).exp()))


def test_uncertainty_is_the_logarithm_of_the_mean():
    """Log U is the logarithm of the mean of v."""
    log_v = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(log_uncertainty(log_v), log_v.exp().mean(-1).log())


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.integers(1, 4))
def test_product_of_experts_by_integration(seed: int, modalities: int):
    """The product of the prior and of the others' densities, on a fine grid, has this mean and this variance."""
    rng = np.random.default_rng(seed)
    mean, log_v = rng.normal(size=modalities), rng.normal(size=modalities)
    present = rng.integers(2, size=modalities)
    own = Common(*(torch.tensor(x, dtype=torch.float64).view(1, -1, 1, 1) for x in (mean, log_v)))
    found = product_of_others(own, torch.tensor(present, dtype=torch.float64).view(1, -1, 1))
    grid = np.linspace(-12, 12, 20_001)
    for m in range(modalities):
        log_density = -0.5 * grid**2
        for k in range(modalities):
            if k != m and present[k]:
                log_density = log_density - 0.5 * (grid - mean[k]) ** 2 / np.exp(log_v[k])
        density = np.exp(log_density - log_density.max())
        density /= density.sum()
        assert float(found[0][0, m, 0, 0]) == pytest.approx(float(density @ grid), abs=1e-6)
        assert float(found[1][0, m, 0, 0]) == pytest.approx(float(density @ grid**2 - (density @ grid) ** 2), abs=1e-6)


def test_wasserstein_of_any_covariances():
    """The formula for any two covariance matrices, with their square roots, gives the same on diagonal ones."""
    rng = np.random.default_rng(0)
    a, b, v, w = rng.normal(size=3), rng.normal(size=3), rng.uniform(0.1, 3, 3), rng.uniform(0.1, 3, 3)
    first, second = np.diag(v), np.diag(w)
    root = sqrtm(second)
    expected = ((a - b) ** 2).sum() + np.trace(first + second - 2 * np.real(sqrtm(root @ first @ root)))
    one, other = (Common(torch.tensor(x), torch.tensor(np.log(y))) for x, y in ((a, v), (b, w)))
    assert float(wasserstein(one, other)) == pytest.approx(expected)
    assert float(wasserstein(one, one)) == 0


def test_alignment_is_least_for_equal_modalities():
    """Windows whose modalities agree are better aligned than windows whose modalities are mixed up."""
    torch.manual_seed(0)
    mean = torch.randn(16, 1, 3, 4).expand(-1, 2, -1, -1)
    same = Common(mean, torch.zeros(16, 2, 3, 4))
    log_u, present, labels = torch.zeros(16, 2, 3), torch.ones(16, 2, 3), torch.arange(16)[:, None].expand(-1, 3)
    mixed = Common(torch.stack([mean[:, 0], mean[torch.randperm(16), 0]], 1), same.log_variance)
    apart = alignment_loss(mixed, log_u, present, labels)
    assert alignment_loss(same, log_u, present, labels) < apart - 1
    assert alignment_loss(mixed, log_u, 0 * present, labels) == 0
    assert alignment_loss(mixed, log_u, present, 0 * labels) < apart  # none of another class to be taken for


def test_alignment_pair_by_pair():
    """Two windows, two modalities, one step: distance and InfoNCE counted one by one."""
    torch.manual_seed(1)
    own = Common(torch.randn(2, 2, 1, 3), torch.randn(2, 2, 1, 3))
    log_u, labels = torch.randn(2, 2, 1), torch.tensor([[0], [1]])
    mean, spread = own.mean[:, :, 0], (0.5 * own.log_variance[:, :, 0]).exp()
    weight = torch.stack([torch.exp(-log_u[b, 0, 0].exp() - log_u[b, 1, 0].exp()) for b in range(2)])
    far = torch.stack(
        [((mean[b, 0] - mean[b, 1]) ** 2).sum() + ((spread[b, 0] - spread[b, 1]) ** 2).sum() for b in range(2)]
    )
    losses = []
    for m, n in ((0, 1), (1, 0)):
        for b in range(2):
            scores = torch.stack([-(mean[b, m] - mean[other, n]).square().sum() for other in range(2)])
            losses.append(-scores.log_softmax(0)[b])
    expected = (weight * far).sum() / weight.sum() / 3 + torch.stack(losses).mean()
    torch.testing.assert_close(alignment_loss(own, log_u, torch.ones(2, 2, 1), labels), expected)


def test_recovery_looks_at_the_others_alone():
    """What is recovered of a modality does not depend on itself, and of those that are missing on nothing."""
    torch.manual_seed(0)
    layer = Recovery(3, 4, 2)
    mean, log_v, present = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4), torch.ones(2, 3, 5)
    present[:, 2] = 0
    before = layer.from_others(layer.common(mean, log_v), present)[0]
    mean[:, 0] += 1
    mean[:, 2] += 1
    after = layer.from_others(layer.common(mean, log_v), present)[0]
    torch.testing.assert_close(after[:, 0], before[:, 0])
    assert (after[:, 1:] != before[:, 1:]).any(-1).all()

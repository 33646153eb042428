"""The steering vector against autograd, J written out, and searches over the strength."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
from edgeopt.errors import InvalidProblemError
from edgeopt.inference import SteeringVector, TokenStrengths, token_strengths
from edgeopt.inference.steering import RULES, confident, halved

V = 11


def scores(seed: int, *shape: int, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def written_out(adapted: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """Return the paper's vector [V] of one token in double precision, J and all."""
    p, q = adapted.double().softmax(-1), base.double().softmax(-1)
    g = -(torch.log(p / q) + 1)
    return (torch.diag(p) - torch.outer(p, p)) @ g


def vector_of(adapted: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """Return what a strength of one adds to log-probabilities, as far as a softmax can tell: its mean is removed."""
    moved = SteeringVector(strength=1.0, alpha=0.0, outside="keep").steered(adapted, base)
    moved = moved - adapted.log_softmax(-1)
    return moved - moved.mean(-1, keepdim=True)


@given(st.integers(0, 10**6), st.floats(0.1, 5))
def test_vector_is_the_gradient_of_the_divergence_through_the_softmax(seed: int, scale: float):
    """It sums to zero, equals J g, and is minus the gradient of KL(p | q) by the logits of p."""
    adapted, base = scores(seed, V, scale=scale), scores(seed + 1, V, scale=scale)
    logits = adapted.clone().requires_grad_()
    log_p = logits.log_softmax(-1)
    (log_p.exp() * (log_p - base.log_softmax(-1))).sum().backward()
    expected = written_out(adapted, base)
    assert abs(expected.sum()) < 1e-12
    torch.testing.assert_close(expected, -logits.grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(vector_of(adapted, base).double(), expected - expected.mean(), rtol=1e-4, atol=1e-5)


@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(-3, 3))
def test_steered_scores_are_those_written_out(seed: int, alpha: float, strength: float):
    """On the mask log p + mu delta, outside -inf or as it was; the likeliest token always stays."""
    adapted, base = scores(seed, 4, V).float(), scores(seed + 1, 4, V).float()
    dropped, kept = (
        SteeringVector(strength=strength, alpha=alpha, outside=outside).steered(adapted, base)  # type: ignore[arg-type]
        for outside in ("drop", "keep")
    )
    for row in range(4):
        p = adapted[row].softmax(-1)
        mask = p >= alpha * p.max()
        near = (p / (alpha * p.max()) - 1).abs() < 1e-5  # by rounding on either side
        if alpha > 0 and near.any():
            continue
        moved = p.log() + strength * written_out(adapted[row], base[row]).float()
        for found, rest in ((dropped, torch.full((V,), -math.inf)), (kept, p.log())):
            torch.testing.assert_close(found[row], torch.where(mask, moved, rest).log_softmax(-1), rtol=1e-5, atol=1e-5)
        assert dropped[row, p.argmax()] > -math.inf
        assert (dropped[row][~mask] == -math.inf).all()
        assert not dropped[row].softmax(-1)[~mask].any()


@given(st.integers(0, 10**6))
def test_slope_and_curvature_are_derivatives(seed: int):
    """Of the log-likelihood of a label by the strength, at zero, by autograd."""
    adapted, base = scores(seed, V).float(), scores(seed + 1, V).float()
    label = torch.tensor([seed % V])
    told = token_strengths(adapted[None], base[None], label, alpha=0.0)
    delta = written_out(adapted, base)

    def loss(mu: torch.Tensor) -> torch.Tensor:
        return -(adapted.double() + mu * delta).log_softmax(-1)[label[0]]

    zero = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(loss(zero), zero, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, zero)
    slope, curvature = slope.detach(), curvature.detach()
    assert float(told.slope[0]) == pytest.approx(-float(slope), rel=1e-4, abs=1e-6)
    assert float(told.curvature[0]) == pytest.approx(float(curvature), rel=1e-4, abs=1e-6)
    assert float(told.square[0]) == pytest.approx(float(delta.square().sum()), rel=1e-4, abs=1e-6)


@given(st.integers(0, 10**6))
def test_newtons_step_is_what_a_search_finds_to_first_order(seed: int):
    """Labels of a truth that lies a little along the vector: a search over the strength finds how far, and so does the step."""
    adapted, base = scores(seed, V).float(), scores(seed + 1, V).float()
    delta = written_out(adapted, base)
    told = token_strengths(adapted.expand(V, V), base.expand(V, V), torch.arange(V), alpha=0.0)
    for true in (-0.02, 0.02):
        truth = (adapted.double() + true * delta).softmax(-1)
        tried = torch.linspace(-0.05, 0.05, 1001, dtype=torch.float64)
        moved = (adapted.double() + tried[:, None] * delta).log_softmax(-1)
        best = tried[(moved @ truth).argmax()]
        step = (truth @ told.slope) / (truth @ told.curvature)
        assert float(step) == pytest.approx(float(best), rel=0.05, abs=1e-3)


def test_rules_are_what_they_say():
    """Mean, median, trimmed mean and ratios against the same in plain Python; short vectors have no say."""
    rows = 40
    adapted, base = scores(0, rows, V).float(), scores(1, rows, V).float()
    adapted[:3] = base[:3] + 1e-6 * adapted[:3]
    labels = torch.arange(rows) % V
    told = token_strengths(adapted, base, labels, alpha=0.2)
    whole = TokenStrengths.joined([token_strengths(adapted[i : i + 7], base[i : i + 7], labels[i : i + 7], alpha=0.2) for i in range(0, rows, 7)])  # fmt: skip
    assert torch.equal(told.slope, whole.slope)
    own = []
    longest = float(told.square.max()) ** 0.5
    for row in range(rows):
        p = adapted[row].double().softmax(-1)
        delta = torch.where(p >= 0.2 * p.max(), written_out(adapted[row], base[row]), 0.0)
        if delta.norm() >= 1e-3 * longest:
            error = -p
            error[labels[row]] += 1
            variance = (p * delta**2).sum() - (p * delta).sum() ** 2
            own.append((float(error @ delta), float(delta @ delta), float(variance)))
    assert len(own) < rows
    steps = sorted(slope / (square + 1e-12) for slope, square, _ in own)
    cut = int(0.1 * len(steps))
    inner = steps[cut : len(steps) - cut]
    middle = len(steps) // 2
    expected = {
        "mean": sum(steps) / len(steps),
        "median": steps[middle] if len(steps) % 2 else (steps[middle - 1] + steps[middle]) / 2,
        "trimmed": sum(inner) / len(inner),
        "ratio": sum(row[0] for row in own) / sum(row[1] for row in own),
        "curvature": sum(row[0] for row in own) / sum(row[2] for row in own),
    }
    assert set(expected) == set(RULES)
    for rule in RULES:
        assert told.strength(rule, least_share=1e-3) == pytest.approx(expected[rule], rel=2e-3)


def test_sign_is_not_clamped():
    """Where the truth lies beyond the adapted model, seen from the base, the strength is negative; where behind, positive."""
    base, adapted = torch.zeros(1, V), torch.zeros(1, V)
    adapted[0, 3] = 1.0
    labels = torch.tensor([3])
    assert token_strengths(adapted, base, labels).strength() < 0
    assert token_strengths(adapted, base, torch.tensor([4])).strength() > 0


def test_half_precision_is_computed_in_single():
    """Scores of half precision give what the same numbers in single precision give, and float32."""
    adapted, base = scores(0, 3, V).half(), scores(1, 3, V).bfloat16()
    steering = SteeringVector(strength=-1.5)
    found = steering.steered(adapted, base)
    assert found.dtype == torch.float32
    assert torch.equal(found, steering.steered(adapted.float(), base.float()))


def test_tokens_that_may_not_come_stay_out():
    """Scores of -inf, as processors before leave them, stay and do not disturb the others."""
    adapted, base = scores(0, 2, V).float(), scores(1, 2, V).float()
    adapted[:, 4] = -math.inf
    for alpha in (0.0, 0.1):
        found = SteeringVector(strength=-1.0, alpha=alpha, outside="keep").steered(adapted, base)
        assert (found[:, 4] == -math.inf).all()
        rest = [i for i in range(V) if i != 4]
        assert found[:, rest].isfinite().all()
    others = SteeringVector(strength=-1.0, alpha=0.0, outside="keep").steered(adapted[:, rest], base[:, rest])
    torch.testing.assert_close(found[:, rest].isfinite(), others.isfinite())


def test_contrast_is_the_ratio_itself():
    """Log p + a (log p - log q) on the mask, normalised."""
    adapted, base = scores(0, V).float(), scores(1, V).float()
    found = SteeringVector(strength=0.5, direction="contrast").steered(adapted, base)
    log_p, log_q = adapted.log_softmax(-1), base.log_softmax(-1)
    expected = torch.where(confident(log_p, 0.1), 1.5 * log_p - 0.5 * log_q, -math.inf).log_softmax(-1)
    torch.testing.assert_close(found, expected)


def test_halving_ends_at_nothing():
    """From the whole step down to none."""
    assert halved(-2.0)[:3] == [-2.0, -1.0, -0.5]
    assert halved(-2.0)[-1] == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"alpha": 1.5}, "alpha = 1.5: expected a number from 0 to 1"),
        ({"alpha": -0.1}, "alpha = -0.1: expected a number from 0 to 1"),
        ({"alpha": math.nan}, "alpha = nan"),
        ({"strength": math.nan}, "strength = nan"),
        ({"outside": "lambda"}, "outside = 'lambda': expected one of drop, keep"),
        ({"direction": "back"}, "direction = 'back': expected one of projected, contrast"),
    ],
)
def test_wrong_arguments_are_named(given: dict[str, object], message: str):
    """In one line, with what was expected."""
    with pytest.raises(InvalidProblemError) as error:
        SteeringVector(**({"strength": 1.0} | given))  # type: ignore[arg-type]
    assert str(error.value).startswith(message)


def test_wrong_scores_are_named():
    """Vocabularies that differ, nan, infinite scores; and no token to learn from."""
    steering = SteeringVector(strength=1.0)
    fine = torch.zeros(2, V)
    with pytest.raises(InvalidProblemError, match=r"base: scores of shape \[2, 12\]: expected those .* \[2, 11\]"):
        steering.steered(fine, torch.zeros(2, V + 1))
    bad = fine.clone()
    bad[1, 3] = math.nan
    with pytest.raises(InvalidProblemError, match="adapted: row 1 has scores that are nan or infinite"):
        steering.steered(bad, fine)
    bad[1, 3] = math.inf
    with pytest.raises(InvalidProblemError, match="base: row 1 has scores that are nan or infinite"):
        steering.steered(fine, bad)
    assert token_strengths(fine, fine, torch.tensor([0, 1])).strength() == 0, "equal models say nothing"
    with pytest.raises(InvalidProblemError, match="texts: no labelled tokens: expected at least one"):
        token_strengths(fine[:0], fine[:0], torch.tensor([], dtype=torch.int64)).strength()
    with pytest.raises(InvalidProblemError, match="rule = 'mode': expected one of mean, median"):
        token_strengths(fine, fine, torch.tensor([0, 1])).strength("mode")  # type: ignore[arg-type]

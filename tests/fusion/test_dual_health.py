"""The whole model: streaming, causality, missing modalities, parts of the loss, training, and its baselines."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.errors import EdgeOptError
from edgeopt.fusion import FUSINGS, Baseline, DualHealth, Noise, Packing, Weights, calibrate, fit, spearman
from edgeopt.fusion.dual_health import calibration_loss, rank_loss
from tests.fusion import small
from tests.one_thread import one_thread  # noqa: F401 - a fixture of all tests here


def spoilt(count: int = 4, steps: int = 14) -> torch.Tensor:
    """Return packed windows with noise and gaps, longer than the context."""
    own = small.recordings().windows(steps).take(range(count))
    packing = Packing.of(own)
    noise = Noise(missing=0.6)
    return noise.apply(packing.pack(own), packing, torch.Generator().manual_seed(3)).x


def calibrated(**options: object) -> DualHealth:
    """Return a model with a calibration that does something."""
    model = small.model(**options)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
    with torch.no_grad():
        model.calibration.log_slope.copy_(torch.tensor([-0.5, 0.5, 0.1]))
    model.calibration.rise.fill_(0.1)
    model.calibration.temperature.copy_(torch.tensor([0.2, 0.3]))
    return model


@settings(max_examples=12)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=14), st.integers(1, 2))
def test_any_pieces_give_the_whole(pieces: list[int], depth: int):
    """Steps one by one, or in any pieces, give what the whole recording gives, also beyond the context."""
    model, x = calibrated(depth=depth), spoilt()
    with torch.no_grad():
        whole, _ = model.run(x)
        parts, state, at = [], None, 0
        for piece in [*pieces, 14]:
            if at < 14:
                seen, state = model.run(x[:, at : at + piece], state)
                parts.append(seen)
                at += piece
    for name in ("scores", "calibrated", "weights", "alone"):
        joined = torch.cat([getattr(part, name) for part in parts], 1 if name == "scores" else 2)
        torch.testing.assert_close(joined, getattr(whole, name), rtol=1e-4, atol=1e-5)


def test_later_steps_change_nothing():
    """The model is causal."""
    model, x = calibrated(), spoilt()
    other = x.clone()
    other[:, 8:, :-3] += 1
    torch.testing.assert_close(model(x)[:, :8], model(other)[:, :8])
    assert (model(x)[:, 8:] != model(other)[:, 8:]).any()


def test_what_is_missing_is_not_looked_at():
    """Values under a mark that they are missing change nothing, wherever in the window they are."""
    model, x = calibrated(), spoilt()
    values = torch.repeat_interleave(x[..., -3:], torch.tensor([16, 4, 3]), -1)
    other = x.clone()
    other[..., :-3] += 5 * (values == 0)
    assert (other != x).any()
    torch.testing.assert_close(model(other), model(x))


def test_nothing_is_there():
    """Without any modality the model still answers, with finite numbers and weights that sum to one."""
    seen, _ = calibrated().run(torch.zeros(2, 5, 26))
    assert torch.isfinite(seen.scores).all()
    torch.testing.assert_close(seen.weights.sum(1), torch.ones(2, 5))


def test_weights_are_inverse_variances():
    """With kappa = 1 and no calibration, weights are 1 / U over their sum; with 0 they are alike."""
    model, x = small.model(), spoilt()
    seen, _ = model.run(x)
    inverse = (-seen.log_u).exp()
    torch.testing.assert_close(seen.weights, inverse / inverse.sum(1, keepdim=True))
    model.kappa = 0.0
    torch.testing.assert_close(model.run(x)[0].weights, torch.full((4, 3, 14), 1 / 3))


def test_rank_loss_by_hand():
    """Only pairs whose noise differs and that are there count."""
    log_u = torch.tensor([0.0, 1.0, 0.5, 0.0, 0.05, 2.0, 0.6, 3.0]).view(4, 2, 1)  # windows 0, 1, then their copies
    noise = torch.tensor([0.0, 0.0, 1.0, 0.0, 1.0, 2.0, 1.0, 1.0]).view(4, 2, 1)
    present = torch.ones(4, 2, 1)
    present[1, 1] = 0
    assert rank_loss(log_u, noise, present) == pytest.approx((0.05 + 0) / 2)


def test_calibration_loss_by_hand():
    """It is zero where U is in proportion to exp(error), over the batch and over modalities, and the two divergences else."""
    error = torch.rand(3, 2, 2)
    assert calibration_loss(error + 1.5, error) == pytest.approx(0, abs=1e-6)
    log_u = torch.randn(3, 2, 2)
    expected = 0.0
    for axis in (0, 1):
        p, q = np.exp(error.numpy()), np.exp(log_u.numpy())
        p, q = p / p.sum(axis, keepdims=True), q / q.sum(axis, keepdims=True)
        expected += (p * np.log(p / q)).sum(axis).mean()
    assert calibration_loss(log_u, error) == pytest.approx(expected, rel=1e-5)


def test_training_makes_uncertainty_follow_noise():
    """A few epochs on easy recordings: uncertainties rank noise, classes are found; calibration leaves weights as they are."""
    own = small.windows(subjects=16)
    packing = Packing.of(own)
    model = small.model()
    losses = fit(model, packing, own, epochs=12, batch_size=24, learning_rate=1e-2, seed=1)
    assert losses[-1] < losses[0]
    test = small.windows(subjects=6, seed=5)
    noisy = Noise(bursts=0).apply(packing.pack(test), packing, torch.Generator().manual_seed(0))
    with torch.no_grad():
        seen, _ = model.run(noisy.x)
    assert np.mean([spearman(seen.log_u[:, m].mean(-1), noisy.noise[:, m, 0]) for m in range(3)]) > 0.7
    assert (seen.scores.argmax(-1).numpy() == test.labels).mean() > 0.8
    weights = {name: value.clone() for name, value in model.named_parameters() if "calibration" not in name}
    calibrate(model, packing, test, method="isotonic")
    now = dict(model.named_parameters())
    assert all(torch.equal(value, now[name]) for name, value in weights.items())
    assert (model.calibration.rise.sum(-1) > 0).all()


def test_same_seed_same_model():
    """Two models of one seed are the same after training, to the last bit; another seed of noise gives another."""
    own = small.windows(subjects=2)
    packing = Packing.of(own)
    models = [small.model() for _ in range(3)]
    losses = [fit(model, packing, own, epochs=2, seed=seed) for model, seed in zip(models, (1, 1, 2), strict=True)]
    assert losses[0] == losses[1] != losses[2]
    first, second = (model.state_dict() for model in models[:2])
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", ["alone", "forecast", "rank", "calibrate", "align", "recover"])
def test_every_part_of_the_loss_counts(name: str):
    """Without a part the loss is another, and it is the same twice."""
    packing, own = small.packed()
    x, labels = packing.pack(own).repeat(2, 1, 1), torch.from_numpy(own.labels).repeat(2, 1)
    noise = torch.cat([torch.zeros(4, 3, 6), torch.ones(4, 3, 6)])
    whole, without = small.model(), small.model(weights=Weights(**{name: 0.0}))
    with torch.no_grad():
        assert float(whole.loss(x, labels, noise)) == float(whole.loss(x, labels, noise))
        assert float(whole.loss(x, labels, noise)) != float(without.loss(x, labels, noise))


@pytest.mark.parametrize("fusing", FUSINGS)
def test_baselines_learn(fusing: str):
    """They train, have a temperature afterwards, look at what is there alone, and answer when nothing is there."""
    own = small.windows()
    packing = Packing.of(own)
    model = Baseline(packing.modalities, 3, fusing, width=8, heads=2, context=6)
    losses = fit(model, packing, own, epochs=4, learning_rate=1e-2)
    assert losses[-1] < losses[0]
    calibrate(model, packing, own)
    assert model.calibration.temperature[1] != 0
    x = packing.pack(own.without(["fast"]))
    other = x.clone()
    other[..., :16] += 5
    torch.testing.assert_close(model(other), model(x))
    assert torch.isfinite(model(torch.zeros(2, 5, 26))).all()
    weights = model.run(packing.pack(own))[0].weights
    torch.testing.assert_close(weights.sum(1), torch.ones(len(own), 6))


def test_mean_of_scores_by_hand():
    """Late fusion is the mean of what each modality says alone: with one modality, it is what that says."""
    packing, own = small.packed()
    model = Baseline(packing.modalities, 3, "mean", width=8, heads=2)
    alone = torch.stack([
        model(packing.pack(own.without({"fast", "middle", "slow"} - {name}))) for name in ("fast", "middle", "slow")
    ])  # fmt: skip
    torch.testing.assert_close(model(packing.pack(own)), alone.mean(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 9}, "width = 9: expected an even multiple of heads = 2"),
        ({"kappa": -1}, "kappa = -1.0: expected a non-negative number"),
        ({"noise": False, "fluctuation": False}, "noise = False, fluctuation = False: expected at least one head"),
    ],
)
def test_bad_models(options: dict[str, object], message: str):
    """In one line, what was given and what was expected."""
    with pytest.raises(EdgeOptError) as error:
        small.model(**options)
    assert str(error.value).startswith(message)


def test_what_training_refuses():
    """Windows of other modalities, of more classes, or none at all."""
    packing, own = small.packed()
    with pytest.raises(EdgeOptError, match=r"^windows: expected at least one$"):
        fit(small.model(), packing, own.take([]))
    few = DualHealth(packing.modalities, 2, width=8, heads=2)
    with pytest.raises(EdgeOptError, match=r"^windows: 3 classes, the model has 2$"):
        fit(few, packing, own)
    with pytest.raises(EdgeOptError, match=r"^packing: its modalities are not those of the model$"):
        fit(DualHealth(packing.modalities[:1], 3, width=8, heads=2), packing, own)
    with pytest.raises(EdgeOptError, match=r"^fusing = 'x': expected one of concat, mean, attention, energy$"):
        Baseline(packing.modalities, 3, "x")

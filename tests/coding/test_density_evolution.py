"""Density evolution beside what belief propagation does, and its gradients."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from edgeopt.coding import Awgn, BeliefPropagation, LtCode, density_evolution
from edgeopt.errors import InvalidProblemError

DEGREES = (1, 2, 3, 4, 8)


def evolve(
    chances: list[float], *, load: float, prior: list[float], weight: list[float], rounds: int, snr_db: float = 3.0
):
    tensors = [torch.tensor(x, dtype=torch.float64) for x in (DEGREES, chances, prior, weight)]
    share = torch.full((len(prior),), 1 / len(prior), dtype=torch.float64)
    return density_evolution(
        *tensors[:2], load=load, snr_db=snr_db, prior=tensors[2], weight=tensors[3], share=share, iterations=rounds
    )


def simulated(chances: list[float], *, load: float, prior: list[float], weight: list[float], rounds: int) -> np.ndarray:
    """Return shares of wrong bits by class, 20,000 bits."""
    rng = np.random.default_rng(0)
    size, of = 20_000, np.arange(20_000) % len(prior)
    p = np.array(prior)[of]
    bits = (rng.random(size) < p).astype(np.uint8)
    graph = LtCode(DEGREES, chances, 1).graph(size, int(load * size), np.array(weight)[of])
    found = BeliefPropagation(graph).decode(Awgn(3.0).receive(graph.encode(bits), rng), np.log((1 - p) / p), rounds)
    return np.array([((found < 0) != bits)[of == m].mean() for m in range(len(prior))])


@pytest.mark.parametrize(("prior", "hope"), [([0.499, 0.499], 0.06), ([0.11, 0.4], 0.03)])
def test_beside_belief_propagation(prior: list[float], hope: float):
    """The first round is nearly exact; later the one mean of many symbols makes it too hopeful, by a few hundredths."""
    chances, weight = [0.15, 0.45, 0.2, 0.1, 0.1], [1.0, 2.0]
    found = evolve(chances, load=1.0, prior=prior, weight=weight, rounds=8)
    for rounds, least, most in ((1, -0.012, 0.012), (3, -hope, 0.01), (8, -hope, 0.01)):
        real = simulated(chances, load=1.0, prior=prior, weight=weight, rounds=rounds)
        off = found.error[rounds].numpy() - real
        assert (off > least).all(), (rounds, off)
        assert (off < most).all(), (rounds, off)
    assert (found.error[0].numpy() == np.minimum(prior, 1 - np.array(prior))).all()


def test_what_starts_it():
    """Neither symbols of degree 1 nor priors: exactly a half for ever. Either of them: less."""
    without, single = [0.0, 0.6, 0.2, 0.1, 0.1], [0.1, 0.5, 0.2, 0.1, 0.1]
    assert (evolve(without, load=3.0, prior=[0.5], weight=[1.0], rounds=20).error == 0.5).all()
    assert evolve(single, load=3.0, prior=[0.5], weight=[1.0], rounds=20).error[-1] < 0.05
    assert evolve(without, load=3.0, prior=[0.3], weight=[1.0], rounds=20).error[-1] < 0.05


def test_it_ranks_as_decoding_does():
    """More symbols are better, a class drawn more often is better than one drawn less, and so says decoding."""
    chances = [0.1, 0.5, 0.2, 0.1, 0.1]
    few, many = (
        evolve(chances, load=load, prior=[0.3, 0.3], weight=[1.0, 3.0], rounds=10).error[-1] for load in (0.6, 1.2)
    )
    assert (many < few).all()
    assert few[1] < few[0]
    real = simulated(chances, load=0.6, prior=[0.3, 0.3], weight=[1.0, 3.0], rounds=10)
    assert real[1] < real[0]


def test_gradients():
    """By the degree distribution and by weights, against finite differences."""
    chances = torch.tensor([0.1, 0.5, 0.2, 0.1, 0.1], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    prior, share = torch.tensor([0.2, 0.45], dtype=torch.float64), torch.tensor([0.5, 0.5], dtype=torch.float64)

    def error(chances, weight):
        return density_evolution(
            torch.tensor(DEGREES), chances, load=0.8, snr_db=2.0, prior=prior, weight=weight, share=share, iterations=4
        ).error[-1]

    assert torch.autograd.gradcheck(error, (chances, weight), eps=1e-6, atol=1e-4)


def test_what_is_refused():
    """No symbols."""
    with pytest.raises(InvalidProblemError, match="load = 0: expected a positive number"):
        evolve([1.0, 0, 0, 0, 0], load=0.0, prior=[0.5], weight=[1.0], rounds=1)

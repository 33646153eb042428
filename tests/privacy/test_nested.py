"""Hiding by a network alone: invertible with its residual, and open to everybody without it."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from edgeopt.coding.quality import psnr_db
from edgeopt.errors import InvalidFileError
from edgeopt.privacy.nested import NestedNetwork, train_nested
from edgeopt.privacy.picture_code import PictureCode
from tests.privacy.test_hiding import pictures


def test_invertible_with_the_residual():
    """With couplings that all do something, carrier and secret come back to 1e-5; without the residual they do not."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = NestedNetwork(blocks=8, width=6).requires_grad_(False)
        for weights in network.parameters():
            torch.nn.init.normal_(weights, std=0.1)
    carrier, secret = torch.from_numpy(np.random.default_rng(0).random((2, 2, 3, 32, 32), dtype=np.float32))
    container, residual = network(carrier, secret)
    assert (container - carrier).abs().max() > 0.1
    found = network.inverse(container, residual)
    assert max((found[0] - carrier).abs().max(), (found[1] - secret).abs().max()) < 1e-5
    assert (network.inverse(container)[1] - secret).abs().max() > 0.1


def test_one_coupling_written_out():
    """The equations, in numpy, with layers that are constants."""
    network = NestedNetwork(blocks=1, width=2).requires_grad_(False)
    coupling = network.couplings[0]
    for layers, value in ((coupling.phi, 0.3), (coupling.rho, -0.7), (coupling.eta, 0.2)):
        layers[2].bias.fill_(value)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 1, 12, 4, 4)).astype(np.float32)
    found = coupling(torch.from_numpy(a), torch.from_numpy(b))
    np.testing.assert_allclose(found[0], a + 0.3, rtol=1e-5)
    np.testing.assert_allclose(found[1], b * np.exp(1.5 * (2 / (1 + np.exp(0.7)) - 1)) + 0.2, rtol=1e-4, atol=1e-6)


def test_nobody_needs_a_password():
    """What comes with the package brings secrets back from 8 bits well enough to be recognised, and was told no password."""
    network = NestedNetwork.pretrained()
    for carrier, secret in (pictures(2, 32), pictures(2, 64)):
        container = network.hide(carrier, secret)
        assert psnr_db(container, carrier) > 25
        assert psnr_db(network.reveal(container), secret) > 25


def test_training_repeats():
    """A seed repeats itself, and changes the network."""
    known = list(pictures(3, 32))
    one, other = (train_nested(known, steps=2, blocks=1, width=2, noise=True, seed=1) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(one.parameters(), other.parameters(), strict=True))
    assert any(weights.any() for weights in one.couplings[0].phi[2].parameters())


def test_files(tmp_path):
    """What is saved is loaded, in 16 bits; another file is refused."""
    network, path = train_nested(list(pictures(2, 32)), steps=1, blocks=1, width=2), tmp_path / "nested.safetensors"
    network.save(path)
    again = NestedNetwork.load(path)
    for one, other in zip(network.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)
    with pytest.raises(InvalidFileError, match="kind"):
        PictureCode.load(path)

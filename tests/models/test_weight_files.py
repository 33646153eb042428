"""Networks in files: what comes back, what is refused, and that nothing is built before shapes have been compared."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn

from edgeopt.errors import InvalidFileError
from edgeopt.fields import Fields
from edgeopt.models.weight_files import load_weights, save_weights
from edgeopt.npz import Form

HEADER = {"kind": "small", "schema_version": 1, "width": 3}
OTHERS = {"chances": Form("f", (1,))}


class Builder:
    """Builds a network of one layer, and keeps the devices on which it did."""

    def __init__(self) -> None:
        self.devices: list[str] = []

    def __call__(self, header: Fields) -> nn.Module:
        network = nn.Linear(2, header.integer("width", low=1, high=1 << 40))
        self.devices.append(network.weight.device.type)
        return network


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a file of weights and chances."""
    save_weights(tmp_path / "small.safetensors", HEADER, nn.Linear(2, 3), {"chances": np.ones(4)})
    return tmp_path / "small.safetensors"


@pytest.mark.parametrize(("half", "tolerance"), [(False, 0.0), (True, 1e-3)])
def test_there_and_back(tmp_path: Path, half: bool, tolerance: float) -> None:
    """Weights and other arrays are those that were saved, in half precision nearly; no gradient is asked for."""
    network, build = nn.Linear(2, 3), Builder()
    save_weights(tmp_path / "file", HEADER, network, {"chances": np.arange(4.0)}, half=half)
    found, others = load_weights(tmp_path / "file", "small", 1, build, others=OTHERS)
    assert build.devices == ["meta", "cpu"]
    assert others["chances"].tolist() == [0, 1, 2, 3]
    for name, value in network.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value, atol=tolerance, rtol=tolerance)
    assert not any(weights.requires_grad for weights in found.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 1 << 40}, r"weight: expected shape \[1099511627776, 2\], got \[3, 2\]"),
        ({"width": 0}, "width"),
        ({"kind": "large"}, "kind"),
        ({"schema_version": 2}, "schema_version"),
    ],
)
def test_headers_that_do_not_fit(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    """Each is refused before memory is taken: terabytes of weights are only asked for."""
    save_weights(tmp_path / "file", HEADER | change, nn.Linear(2, 3), {"chances": np.ones(4)})
    build = Builder()
    with pytest.raises(InvalidFileError, match=message):
        load_weights(tmp_path / "file", "small", 1, build, others=OTHERS)
    assert "cpu" not in build.devices


def test_numbers_that_are_not_finite(tmp_path: Path) -> None:
    """They are refused by name, whether weights or not."""
    save_weights(tmp_path / "file", HEADER, nn.Linear(2, 3), {"chances": np.array([np.inf])})
    with pytest.raises(InvalidFileError, match="chances: expected finite numbers"):
        load_weights(tmp_path / "file", "small", 1, Builder(), others=OTHERS)
    for network, number in ((nn.Linear(2, 3), torch.nan), (nn.Linear(2, 3).double(), 1e300)):  # beyond float32
        with torch.no_grad():
            network.bias[1] = number
        save_weights(tmp_path / "file", HEADER, network)
        with pytest.raises(InvalidFileError, match="bias: expected finite numbers"):
            load_weights(tmp_path / "file", "small", 1, Builder())


def test_arrays_are_exactly_those_asked_for(file: Path, tmp_path: Path) -> None:
    """Too many, too few, and integers are refused."""
    with pytest.raises(InvalidFileError, match="unknown array"):
        load_weights(file, "small", 1, Builder())
    with pytest.raises(InvalidFileError, match="more: array is missing"):
        load_weights(file, "small", 1, Builder(), others=OTHERS | {"more": Form("f")})
    save_weights(tmp_path / "whole", HEADER, nn.Linear(2, 3), {"chances": np.ones(4, np.int64)})
    with pytest.raises(InvalidFileError, match="chances: expected"):
        load_weights(tmp_path / "whole", "small", 1, Builder(), others=OTHERS)

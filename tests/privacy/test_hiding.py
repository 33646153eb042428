"""The inner network: Haar sub-bands in closed form, invertible, and a code that keeps to the step it was given."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
from edgeopt.errors import InvalidFileError, InvalidProblemError
from edgeopt.privacy.haar import haar, unhaar
from edgeopt.privacy.hiding import HaarNetwork, levels_of
from edgeopt.privacy.hiding_training import pretrain_hiding
from edgeopt.privacy.picture_code import CONTEXTS, STEPS, PictureCode
from edgeopt.tensors import load_tensors, save_tensors


def pictures(count: int, size: int) -> np.ndarray:
    """Return smooth pictures with some noise, uint8 [count, size, size, 3]."""
    rng = np.random.default_rng(size)
    at = np.arange(size) / size
    y, x = 6 * rng.uniform(-1, 1, (2, count, 1, 1, 1))
    waves = np.cos(y * at[:, None, None] + x * at[:, None] + rng.uniform(0, 6, (count, 1, 1, 3)))
    return np.clip(128 + 90 * waves + rng.integers(-5, 6, waves.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def network() -> HaarNetwork:
    """Return a network whose couplings foresee something: all weights are drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = HaarNetwork(4)
        for weights in found.parameters():
            torch.nn.init.normal_(weights, std=0.2)
    return found.requires_grad_(False)


@pytest.fixture(scope="module")
def code() -> PictureCode:
    """Return the code that comes with the package."""
    return PictureCode.pretrained()


def test_haar_in_closed_form():
    """The transform is the outer product of (1, 1) and (1, -1), each over sqrt 2, and its own inverse's transpose."""
    x = np.random.default_rng(0).normal(size=(3, 6, 8))
    low, high = (np.kron(np.eye(4), row) / np.sqrt(2) for row in ([[1, 1]], [[1, -1]]))
    tall_low, tall_high = (np.kron(np.eye(3), row) / np.sqrt(2) for row in ([[1, 1]], [[1, -1]]))
    expected = [tall_low @ x @ low.T, tall_low @ x @ high.T, tall_high @ x @ low.T, tall_high @ x @ high.T]
    found = haar(torch.from_numpy(x))
    np.testing.assert_allclose(found.numpy(), np.stack(expected), atol=1e-12)
    np.testing.assert_allclose(unhaar(found).numpy(), x, atol=1e-12)


@pytest.mark.parametrize("size", [32, 48, 50])
def test_invertible(network: HaarNetwork, size: int):
    """Without rounding nothing is lost, whatever the couplings foresee: to 1e-5 of the range in single precision."""
    x = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (2, 3, size, size))).float()
    sums, differences = network(x)
    assert len(differences) == levels_of(size)
    assert sum(made[0].numel() for made in (sums, *differences)) == 3 * size * size
    assert (network.inverse(sums, differences) - x).abs().max() / 255 < 1e-5
    plain = HaarNetwork(4)(x)[1]
    assert not torch.allclose(differences[-1], plain[-1], atol=1)


def test_errors_stay_their_own(network: HaarNetwork):
    """The squared error of pictures is that of numbers: at most that of all being off by the widest rounding, 0.58 steps."""
    x = torch.from_numpy(pictures(2, 32)).permute(0, 3, 1, 2).float()
    step = torch.tensor([5.0, 20.0])
    found = network.inverse(*network(x, step), step)
    before, differences = network.before_rounding(x, step)
    rounded = network(x, step)
    errors = (before - rounded[0] * step.view(-1, 1, 1, 1)).square().flatten(1).sum(1)
    for exact, made in zip(differences, rounded[1], strict=True):
        errors += (exact - made * step.view(-1, 1, 1, 1, 1)).square().flatten(1).sum(1)
    torch.testing.assert_close((found - x).square().flatten(1).sum(1), errors, rtol=1e-3, atol=1)
    assert (errors / x[0].numel() <= (0.58 * step) ** 2 + 1e-3).all()


@pytest.mark.parametrize("size", [32, 64, 50])
@pytest.mark.parametrize("step", [0, 20, len(STEPS) - 1])
def test_numbers_are_read_as_written(code: PictureCode, size: int, step: int):
    """Bit for bit, of noise, too, with zeros after them; pictures are those of the numbers."""
    picture = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    if size != 50:
        picture = pictures(1, size)[0]
    numbers = code.numbers(picture, step)
    found = code.read(code.write(numbers) + bytes(7), size)
    assert all((one == other).all() for one, other in zip(numbers, found, strict=True))
    assert np.sqrt(np.square(code.picture(found, step) - picture.astype(float)).mean()) <= 0.58 * STEPS[step] + 0.5


@given(st.binary(max_size=300))
@settings(max_examples=20)
def test_any_bytes_are_read_or_refused(code: PictureCode, data: bytes):
    """No bytes take more than the numbers of a picture, or anything but our own error."""
    try:
        numbers = code.read(data, 32)
    except InvalidProblemError:
        return
    assert sum(made.size for made in numbers) == 3 * 32 * 32


def test_training_helps_and_repeats(monkeypatch: pytest.MonkeyPatch):
    """Of pictures it has not seen it takes fewer bytes than the plain transform with chances learnt alike; a seed repeats itself."""
    monkeypatch.setattr("edgeopt.privacy.hiding_training._CHANCES_OF", 6)
    monkeypatch.setattr("edgeopt.privacy.hiding_training._BATCH", 4)
    known, unseen = list(pictures(8, 64)), pictures(3, 32)
    one, other = (pretrain_hiding(known, steps=10, width=4, seed=2) for _ in range(2))
    assert (one.chances == other.chances).all()
    assert all(torch.equal(*pair) for pair in zip(one.network.parameters(), other.network.parameters(), strict=True))
    flat = PictureCode(HaarNetwork(4).requires_grad_(False), np.full(CONTEXTS, 1 << 15))
    taken = [sum(len(code.write(code.numbers(x, 18))) for x in unseen) for code in (one, flat)]
    assert taken[0] < taken[1]
    with pytest.raises(InvalidProblemError, match="at least 32 pixels along a side, got none"):
        pretrain_hiding([])


def test_files(code: PictureCode, tmp_path):
    """What is saved is loaded; a file that is damaged is refused."""
    path = tmp_path / "code.safetensors"
    code.save(path)
    again = PictureCode.load(path)
    assert (again.chances == code.chances).all()
    assert all(torch.equal(*pair) for pair in zip(again.network.parameters(), code.network.parameters(), strict=True))
    header, arrays = load_tensors(path, "edgeopt.privacy.picture-code")
    for wrong, told in (
        ({"chances": np.zeros(3, np.float32)}, r"chances: expected shape"),
        ({"chances": np.full(CONTEXTS, 1e6, np.float32)}, "numbers from 0 to 65536"),
        ({"colours.0.last.bias": np.full(6, np.nan, np.float16)}, "finite"),
        ({"colours.0.last.bias": np.zeros(5, np.float16)}, r"expected shape \[6\]"),
    ):
        save_tensors(path, header, arrays | wrong)
        with pytest.raises(InvalidFileError, match=told):
            PictureCode.load(path)
    del arrays["chances"]
    save_tensors(path, header, arrays)
    with pytest.raises(InvalidFileError, match="chances"):
        PictureCode.load(path)

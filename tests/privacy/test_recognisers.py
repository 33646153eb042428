"""Recognisers, thresholds, training and files of networks."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.errors import InvalidFileError, InvalidProblemError
from edgeopt.privacy import (
    FACE_SETS,
    HELD_OUT,
    RECOGNISERS,
    FaceModels,
    Recogniser,
    Training,
    View,
    random_numbers,
    train_faces,
)
from edgeopt.privacy.pretrain import main
from edgeopt.privacy.recognisers import threshold_at
from edgeopt.privacy.training import pairs, verified, views
from edgeopt.rng import stream
from tests.one_thread import one_thread  # noqa: F401 - a fixture of all tests here

TINY = Training(people=4, checked=4, recogniser=2, reader=1, coder=1, sharpen=1, denoiser=1, batch=8, bank=16)


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=60), st.sampled_from([0.0, 0.01, 0.1, 0.5]))
def test_thresholds(cosines: list[float], far: float):
    """At most the share passes, and a lower threshold of those that there are would let more pass."""
    found = threshold_at(torch.tensor(cosines), far)
    passing = np.mean(np.array(cosines) > found.cosine + 1e-6)
    assert passing <= far
    below = [cosine for cosine in cosines if cosine < found.cosine - 1e-5]
    assert not below or np.mean(np.array(cosines) > max(below) + 1e-6) > far


@pytest.mark.parametrize("shape", RECOGNISERS)
def test_unit_vectors(shape: str):
    """Of pictures of both sizes; of 64 pixels as of their averages; of one face as beside others."""
    network = Recogniser(shape).eval()
    pictures = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = network(pictures)
    assert found.shape == (3, 64)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(network(pictures.repeat_interleave(2, 2).repeat_interleave(2, 3)), found)
    torch.testing.assert_close(network(pictures[:1]), found[:1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", FACE_SETS)
def test_networks_that_come_along(name: str):
    """On persons never trained on, seen under other appearances: of two at most few pass, of one far more; appearances are read."""
    if name == "lfw":
        pytest.importorskip("skimage")
    models = FaceModels.pretrained(name)
    # with 15 photographs to set a threshold, about one pair of two persons decides
    least = 0.04 if name == "synthetic" else 0.1
    for shape, network in models.recognisers.items():
        passes = verified(network, models.faces, models.thresholds[shape], "test", 7, 60)
        assert passes["impostor"] < least, shape
        assert passes["genuine"] > 0.4, shape
    if 64 in models.faces.sizes:  # though edges are half as wide there
        who, look = models.faces.people("test", 40, 5), random_numbers(40, stream(5, "looks"))
        sizes = [models.faces.show(who, look, View.frontal(40), size, None) for size in (32, 64)]
        for shape, cosines in models.similarity(*sizes).items():
            assert (cosines > models.thresholds[shape].cosine).float().mean() > 0.8, shape
    people = models.faces.people("test", 20, 3)
    pictures, appearance = views(models.faces, people, stream(3, "read"))
    for reader in (models.reader, models.judge):
        error = (reader(pictures) - appearance).square().mean(0)
        assert (error < 0.25).all(), error  # a third without reading anything
    assert all(not weight.requires_grad for weight in models.denoiser.parameters())


def test_pairs():
    """Of one person in other pictures, and of two; a network that knows persons exactly parts them."""
    faces = FACE_SETS["synthetic"]
    known = []

    def knows(pictures: torch.Tensor) -> torch.Tensor:
        known.append(len(pictures))
        return torch.eye(len(pictures))

    genuine, impostor = pairs(knows, faces, "test", 0, count=5, looks=3)
    assert known == [5, 5, 5]
    assert genuine.shape == (6, 5)
    assert impostor.shape == (6, 20)
    assert (genuine == 1).all()
    assert (impostor == 0).all()


def test_training_and_files(tmp_path, capsys):
    """Same seed, same networks, whichever way they are started; a file gives them back in half precision; others are refused."""
    path = tmp_path / "faces.safetensors"
    rows = []
    trained = train_faces("synthetic", TINY, seed=3, on_row=rows.append)
    assert [row["stage"] for row in rows if "step" in row] == [
        *RECOGNISERS, "reader", "judge", "coder", "sharpen", "denoiser",
    ]  # fmt: skip
    trained.save(path)
    loaded = FaceModels.load(path)
    again = train_faces("synthetic", TINY, seed=3)
    for part in ("reader", "judge", "coder", "denoiser"):
        for name, value in getattr(trained, part).state_dict().items():
            assert torch.equal(value, getattr(again, part).state_dict()[name]), name
            torch.testing.assert_close(getattr(loaded, part).state_dict()[name], value, atol=1e-3, rtol=1e-3)
    assert loaded.thresholds == trained.thresholds
    assert set(loaded.ensemble) == set(RECOGNISERS) - {HELD_OUT}
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InvalidFileError, match=r"faces\.safetensors: not a safetensors file"):
        FaceModels.load(path)
    with pytest.raises(InvalidProblemError, match="no faces 'mine': expected one of synthetic, lfw"):
        FaceModels.pretrained("mine")
    with pytest.raises(SystemExit):
        main(["mine", "--out", str(path)])
    assert "invalid choice" in capsys.readouterr().err

"""Faces at the edges, and how alike they look."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from edgeopt.errors import InvalidFileError, InvalidProblemError
from edgeopt.privacy import as_face, ssim, to_array, to_tensor
from edgeopt.privacy.pictures import check_faces


@pytest.mark.parametrize("size", [32, 64])
def test_similarity(size: int):
    """The number of scikit-image; 1 for a picture itself."""
    metrics = pytest.importorskip("skimage.metrics")
    rng = np.random.default_rng(0)
    one = rng.random((3, 3, size, size)).cumsum(3) % 1
    other = np.clip(one + 0.2 * rng.standard_normal(one.shape), 0, 1)
    found = ssim(torch.from_numpy(one), torch.from_numpy(other))
    wanted = [
        metrics.structural_similarity(a, b, channel_axis=0, data_range=1.0) for a, b in zip(one, other, strict=True)
    ]
    np.testing.assert_allclose(found, wanted, atol=1e-9)
    assert ssim(torch.from_numpy(one), torch.from_numpy(one)).tolist() == pytest.approx([1, 1, 1])


def test_there_and_back():
    """8-bit pictures come back as they were; others are rounded to the nearest."""
    faces = np.random.default_rng(0).integers(256, size=(2, 32, 32, 3), dtype=np.uint8)
    assert np.array_equal(to_array(to_tensor(faces)), faces)
    assert to_array(torch.full((1, 3, 32, 32), 0.5 / 255 + 1e-4)).max() == 1
    assert as_face(faces[0]).shape == (32, 32, 3)


def test_what_is_no_face(tmp_path):
    """Errors say what was given and what was expected."""
    with pytest.raises(InvalidProblemError, match="face: 32 x 40 pixels: expected 32 x 32 or 64 x 64"):
        as_face(np.zeros((32, 40, 3), np.uint8))
    with pytest.raises(InvalidProblemError, match=r"faces: expected a tensor \[B, 3, S, S\], got \[3, 32, 32\]"):
        check_faces(torch.zeros(3, 32, 32))
    with pytest.raises(InvalidProblemError, match=r"faces: expected a tensor \[B, 3, S, S\], got ndarray"):
        check_faces(np.zeros((1, 3, 32, 32)))
    with pytest.raises(InvalidProblemError, match="faces: expected at least one, got none"):
        check_faces(torch.zeros(0, 3, 32, 32))
    with pytest.raises(
        InvalidProblemError, match=r"faces: expected floating-point numbers from 0 to 1, got torch\.uint8"
    ):
        check_faces(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(InvalidProblemError, match="faces: 48 x 48 pixels: expected 32 x 32 or 64 x 64"):
        check_faces(torch.zeros(1, 3, 48, 48))
    wrong = torch.zeros(2, 3, 32, 32)
    wrong[1, 2, 3, 4] = torch.nan
    with pytest.raises(InvalidProblemError, match=r"faces\[1, 2, 3, 4\] = nan: expected a number from 0 to 1"):
        check_faces(wrong)
    pytest.importorskip("PIL")
    path = tmp_path / "face.png"
    path.write_bytes(b"no picture")
    with pytest.raises(InvalidFileError, match=r"face\.png: not a picture"):
        as_face(path)

"""Pictures of any kind become 8-bit RGB as stated, or are refused in a line; and how alike two are."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")
Image = pytest.importorskip("PIL.Image")
from edgeopt.coding import as_picture, crops, folder_pictures, ms_ssim, photographs, psnr_db
from edgeopt.coding.pictures import TEST_PHOTOGRAPHS, TRAINING_PHOTOGRAPHS
from edgeopt.errors import InvalidFileError, InvalidProblemError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (5, 7, 3)).astype(np.uint8)


def test_stated_conversions():
    """Grey three times, opacity over white, 16 bits to 8, fractions to 8 bits; 8-bit RGB as it is, in a copy."""
    same = as_picture(RGB)
    assert (same == RGB).all()
    assert same is not RGB
    grey = RGB[:, :, 0]
    for other in (grey, grey[:, :, None], grey.astype(np.uint16) * 257, grey / 255):
        assert (as_picture(other) == grey[:, :, None]).all()
    assert as_picture(np.array([[True, False]])).tolist() == [[[255] * 3, [0] * 3]]
    assert as_picture(np.uint8([[[10, 20, 30, 0], [10, 20, 30, 255]]])).tolist() == [[[255] * 3, [10, 20, 30]]]
    assert as_picture(np.uint8([[[100, 51]]])).tolist() == [[[224] * 3]]  # a fifth of 100, four of 255


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P", "1", "I;16", "CMYK"])
def test_files(mode: str, tmp_path: Path):
    """What pillow reads gives what the array would."""
    path = tmp_path / ("picture.tif" if mode in ("CMYK", "LA") else "picture.png")
    if mode == "I;16":
        deep = RGB[:, :, 0].astype(np.uint16) * 257
        Image.fromarray(deep).save(path)
        assert (as_picture(path) == RGB[:, :, :1]).all()
        return
    image = Image.fromarray(RGB).convert(mode)
    image.save(path)
    expected = as_picture(np.asarray(image if mode in ("RGB", "L", "RGBA", "LA") else image.convert("RGB")))
    assert (as_picture(str(path)) == expected).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((2, 2, 5)), r"expected shape \[H, W\] or \[H, W, 1 to 4\], at least one pixel, got \[2, 2, 5\]"),
        (np.zeros((0, 2)), r"at least one pixel, got \[0, 2\]"),
        (np.zeros((2, 2), np.int64), "expected booleans, uint8, uint16 or floating-point numbers, got int64"),
        (np.array([[0.5, np.nan]]), r"picture\[0, 1, 0\] = nan: expected a number from 0 to 1"),
        (np.array([[1.5]]), r"picture\[0, 0, 0\] = 1\.5"),
    ],
)
def test_what_is_refused(given: np.ndarray, message: str):
    """Arrays that are no pictures."""
    with pytest.raises(InvalidProblemError, match=message):
        as_picture(given)


def test_files_that_are_refused(tmp_path: Path):
    """No picture, half a picture, none in a folder, one that is not there."""
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(InvalidFileError, match="not a picture that can be read"):
        as_picture(tmp_path / "text.png")
    (tmp_path / "postscript.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n"
    )
    with pytest.raises(
        InvalidFileError, match="not a picture that can be read: cannot identify"
    ):  # no program is started
        as_picture(tmp_path / "postscript.png")
    Image.fromarray(np.tile(RGB, (20, 20, 1))).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InvalidFileError, match=r"half\.png: damaged"):
        as_picture(tmp_path / "half.png")
    with pytest.raises(FileNotFoundError):
        as_picture(tmp_path / "none.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidFileError, match="expected files that end in one of"):
        folder_pictures(tmp_path / "empty")


def test_folders_and_crops(tmp_path: Path):
    """Pictures by name in order; squares of one picture after another, the same for the same seed."""
    for name, value in (("b.png", 10), ("a.bmp", 200)):
        Image.fromarray(np.full((40, 50, 3), value, np.uint8)).save(tmp_path / name)
    found = folder_pictures(tmp_path)
    assert list(found) == ["a.bmp", "b.png"]
    squares = crops(found, count=3, size=32, seed=4)
    assert squares[:, 0, 0, 0].tolist() == [200, 10, 200]
    assert (squares == crops(found, count=3, size=32, seed=4)).all()
    with pytest.raises(InvalidProblemError, match=r"a\.bmp: 40 x 50 pixels: expected at least 41 x 41"):
        crops(found, count=1, size=41, seed=0)


def test_photographs_to_train_and_to_test():
    """No file is both; all are in scikit-image's wheel."""
    pytest.importorskip("skimage")
    assert not {*TRAINING_PHOTOGRAPHS} & {*TEST_PHOTOGRAPHS}
    found = photographs("test")
    assert list(found) == ["chelsea", "retina", "motorcycle_right"]
    assert found["chelsea"].shape == (300, 451, 3)


def test_psnr():
    """By another formula; 100 dB for equal ones, and unequal shapes are refused."""
    skimage = pytest.importorskip("skimage.metrics")
    other = np.clip(RGB.astype(int) + RNG.integers(-9, 9, RGB.shape), 0, 255).astype(np.uint8)
    assert psnr_db(RGB, other) == pytest.approx(skimage.peak_signal_noise_ratio(RGB, other))
    assert psnr_db(RGB, RGB) == 100
    with pytest.raises(InvalidProblemError, match="of equal shapes"):
        psnr_db(RGB, RGB[:2])


@settings(max_examples=10)
@given(st.integers(0, 10**6))
def test_structural_similarity(seed: int):
    """At one scale it is scikit-image's; equal pictures have 1, and more noise has less."""
    skimage = pytest.importorskip("skimage.metrics")
    rng = np.random.default_rng(seed)
    smooth = np.clip(np.add.outer(np.arange(16), 4.0 * np.arange(18)), 0, 255)
    one = np.repeat(smooth[:, :, None], 3, 2).astype(np.uint8)
    noisy, worse = (np.clip(one + rng.normal(0, s, one.shape), 0, 255).astype(np.uint8) for s in (5, 25))
    _, whole = skimage.structural_similarity(
        one,
        noisy,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        channel_axis=2,
        data_range=255,
        full=True,
    )
    assert ms_ssim(one, noisy) == pytest.approx(whole[5:-5, 5:-5].mean(), abs=1e-6)
    assert ms_ssim(one, one) == pytest.approx(1)
    large = [np.tile(x, (6, 6, 1)) for x in (one, noisy, worse)]
    assert 1 > ms_ssim(*large[:2]) > ms_ssim(large[0], large[2])
    with pytest.raises(InvalidProblemError, match="expected at least 11 along a side"):
        ms_ssim(one[:10], noisy[:10])

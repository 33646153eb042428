"""Small images without a download: handwritten digits that come with the package, and coloured pictures made of them."""

from importlib import resources

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from edgeopt.data.arrays import ArrayData, DataSplit
from edgeopt.rng import stream
from edgeopt.storage import read_arrays
from edgeopt.validate import integer

TRAIN_SHARE = 0.75


def digits(seed: int = 0) -> DataSplit:
    """Return the 1797 handwritten digits that come with the package: 1347 to train with, 450 held out.

    Images are float32 [n, 1, 8, 8] from 0 to 1 (sixteenths). The same seed gives the same split.

    Parameters
    ----------
    seed : of the split.

    References
    ----------
    E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998,
    https://doi.org/10.24432/C50P49, CC BY 4.0; these are its test set.

    Examples
    --------
    >>> data = digits()
    >>> data.train.inputs.shape, len(data.test)
    (torch.Size([1347, 1, 8, 8]), 450)
    """
    with resources.as_file(resources.files("edgeopt.data") / "files" / "digits.npz") as path:
        arrays = read_arrays(path)
    images = torch.tensor(arrays["images"], dtype=torch.float32)[:, None] / 16  # (n, 1, 8, 8)
    whole = ArrayData(images, torch.tensor(arrays["labels"], dtype=torch.int64), 10, "digits")
    order = stream(seed, "digits").permutation(len(whole))
    num_train = int(TRAIN_SHARE * len(whole))
    return DataSplit(whole.take(order[:num_train]), whole.take(order[num_train:]))


def coloured_digits(seed: int = 0, num_train: int = 4000, num_test: int = 1000) -> DataSplit:
    """Return pictures of the shape of CIFAR-10, made from the digits: harder than those, and nothing to download.

    Each picture shows a digit of a random size (20 to 28 pixels), place, slant (up to 10 degrees) and colour before a
    background of random colour and texture, under noise. In every colour channel the digit differs from the mean of the
    background by 0.35 to 0.65, lighter or darker. Test pictures are made of other digits than training pictures, and
    classes are as frequent as among the digits. Images are float32 [n, 3, 32, 32] from 0 to 1.

    Parameters
    ----------
    seed : the same seed gives the same pictures.
    num_train, num_test : pictures, each at least 1.

    Examples
    --------
    >>> coloured_digits(num_train=20, num_test=5).train.inputs.shape
    torch.Size([20, 3, 32, 32])
    """
    source = digits(seed)
    parts = []
    for part, data, count in (("train", source.train, num_train), ("test", source.test, num_test)):
        count = integer(f"num_{part}", count, low=1)
        rng = stream(seed, "coloured digits", part)
        order = np.concatenate([rng.permutation(len(data)) for _ in range(-(-count // len(data)))])
        chosen = data.take(order[:count])
        images = _paint(chosen.inputs, rng)
        parts.append(ArrayData(images, chosen.targets, 10, "coloured-digits"))
    return DataSplit(*parts)


def _paint(shapes: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Return pictures (n, 3, 32, 32) of digits (n, 1, 8, 8)."""
    count = len(shapes)
    angle = rng.uniform(-np.pi / 18, np.pi / 18, count)  # (n,)
    scale = 32 / rng.uniform(20, 28, count)  # (n,), pixels of the source per pixel, in units of the whole picture
    room = 1 - 1 / scale  # how far the middle may move, so that an upright digit stays inside
    place = rng.uniform(-1, 1, (2, count)) * room  # (2, n)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * scale  # (2, 2, n)
    shift = -np.einsum("ijn,jn->in", turn, place)[:, None]  # (2, 1, n)
    affine = _tensor(np.concatenate([turn, shift], axis=1).transpose(2, 0, 1))  # (n, 2, 3)
    grid = F.affine_grid(affine, [count, 1, 32, 32], align_corners=False)  # (n, 32, 32, 2)
    mask = F.grid_sample(shapes, grid, mode="bilinear", padding_mode="zeros", align_corners=False)  # (n, 1, 32, 32)

    base = rng.random((count, 3, 1, 1))
    colour = (base + rng.uniform(0.35, 0.65, base.shape)) % 1  # (n, 3, 1, 1): around the circle, never close
    coarse = _tensor(rng.normal(0, 0.08, (count, 3, 6, 6)))
    texture = F.interpolate(coarse, size=(32, 32), mode="bilinear", align_corners=False)  # (n, 3, 32, 32)
    ground = _tensor(base) + texture  # (n, 3, 32, 32)
    picture = ground + mask * (_tensor(colour) - ground)  # (n, 3, 32, 32)
    noise = torch.from_numpy(rng.standard_normal(picture.shape, dtype=np.float32))
    return (picture + 0.04 * noise).clamp_(0, 1)  # (n, 3, 32, 32)


def _tensor(array: NDArray[np.float64]) -> torch.Tensor:
    return torch.tensor(array, dtype=torch.float32)

"""Train the inner network of a vault, and learn the chances of its range coder."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from edgeopt.coding.pictures import photographs
from edgeopt.errors import InvalidProblemError
from edgeopt.privacy.hiding import HaarNetwork
from edgeopt.privacy.picture_code import CONTEXTS, STEPS, Integers, Picture, PictureCode, count_bits
from edgeopt.privacy.range_coder import WHOLE
from edgeopt.rng import stream
from edgeopt.validate import integer

Row = dict[str, float]

_BATCH = 16
_SIDES = (32, 64)
_FACES = 200  # of each size
_CHANCES_OF = 400  # pictures that chances are learnt from


def pretrain_hiding(
    pictures: Sequence[Picture] | None = None,
    *,
    steps: int = 1000,
    width: int = 32,
    seed: int = 0,
    on_row: Callable[[Row], None] | None = None,
) -> PictureCode:
    """Return a code of small pictures, trained on squares cut out of pictures at random, at scales of 1 to 8 pixels a pixel.

    The loss is ours: the mean over numbers of log2(1 + (number / step)^2) / 2, about the bits that they take, for steps drawn evenly on
    a logarithmic scale.

    Parameters
    ----------
    pictures : uint8 [H, W, 3], at least 32 pixels along a side. Default: the photographs of scikit-image that are there to train on, and
        as often rendered faces.
    steps : mini-batches.
    width : of the network.
    seed : of weights and draws.
    on_row : is called with the loss, every 100 mini-batches.

    Raises
    ------
    InvalidProblemError
        If there are no pictures, or one is too small.
    """
    steps = integer("steps", steps, low=1)
    known = training_pictures(seed) if pictures is None else list(pictures)
    if not known or (least := min(min(picture.shape[:2]) for picture in known)) < _SIDES[0]:
        told = f"one of {least} pixels along a side" if known else "none"
        raise InvalidProblemError(f"pictures: expected some, at least {_SIDES[0]} pixels along a side, got {told}")
    rng = stream(seed, "hiding")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = HaarNetwork(width)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    mean = 0.0
    for done in range(1, steps + 1):
        batch = training_squares(known, _BATCH, _SIDES[0], rng)
        sizes = torch.from_numpy((2.0 ** rng.uniform(1, 5.5, _BATCH)).astype(np.float32))
        loss = _bits(network, batch, sizes)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        mean += (loss.item() - mean) / min(done, 100)
        if on_row is not None and done % 100 == 0:
            on_row({"step": done, "bits": mean})
    for parameter in network.parameters():  # as they are kept in the file
        parameter.data = parameter.data.half().float()
    return PictureCode(network.requires_grad_(False), learn_chances(network, known, _CHANCES_OF, rng))


def training_pictures(seed: int) -> list[Picture]:
    """Return the photographs of scikit-image that are there to train on, and as many rendered faces, repeated to be as many each."""
    from edgeopt.privacy.faces import SIZES, View, random_numbers, render

    rng, faces = stream(seed, "hiding", "faces"), []
    for size in SIZES:
        who, how = random_numbers(_FACES, rng), random_numbers(_FACES, rng)
        rendered = render(who, how, View.random(_FACES, rng), size=size, rng=rng)  # (B, 3, S, S)
        faces += list((255 * rendered).round().byte().permute(0, 2, 3, 1).numpy())
    taken = list(photographs("train").values())
    return [photograph for photograph in taken for _ in range(len(faces) // len(taken))] + faces


def _bits(network: HaarNetwork, batch: Tensor, sizes: Tensor) -> Tensor:
    _, differences = network.before_rounding(batch, sizes)
    total = batch.new_zeros(())
    for made in differences:
        ratio = made / sizes[:, None, None, None, None]
        total = total + (1 + ratio.square()).log2().sum() / 2
    return total / batch.numel()


def training_squares(pictures: Sequence[Picture], count: int, size: int, rng: np.random.Generator) -> Tensor:
    """Return squares float32 [count, 3, size, size] from 0 to 255, of means of as many pixels along a side as are drawn."""
    found = []
    for _ in range(count):
        picture = pictures[int(rng.integers(len(pictures)))]
        most = min(8, min(picture.shape[:2]) // size)
        if most < 1:
            most, size = 1, min(picture.shape[:2])
        scale = int(rng.integers(1, most + 1))
        y, x = (int(rng.integers(side - scale * size + 1)) for side in picture.shape[:2])
        part = picture[y : y + scale * size, x : x + scale * size].astype(np.float32)
        part = part.reshape(size, scale, size, scale, 3).mean((1, 3)).round()
        if rng.random() < 0.5:
            part = part[:, ::-1]
        found.append(part.transpose(2, 0, 1))
    return torch.from_numpy(np.stack(found))


def learn_chances(network: HaarNetwork, pictures: Sequence[Picture], count: int, rng: np.random.Generator) -> Integers:
    """Return the chances of a range coder, int64 [CONTEXTS], from the numbers of as many squares cut out of pictures."""
    zeros, ones = (np.zeros(CONTEXTS, np.int64) for _ in range(2))
    code = PictureCode(network.requires_grad_(False), zeros)
    for k in range(count):
        size = _SIDES[k % len(_SIDES)]
        large = [picture for picture in pictures if min(picture.shape[:2]) >= size] or None
        if large is None:
            size, large = _SIDES[0], list(pictures)
        square = training_squares(large, 1, size, rng)[0].permute(1, 2, 0).numpy().astype(np.uint8)
        step = int(rng.integers(6, len(STEPS) - 4))
        count_bits(code.numbers(square, step), zeros, ones)
    return ((zeros + 1) * WHOLE // (zeros + ones + 2)).astype(np.int64)

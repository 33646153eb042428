"""`RandomChannels`: right in the mean, and the bytes that are stated."""

import math

import pytest
import torch
from torch.func import vmap

from edgeopt.training import RandomChannels
from edgeopt.training.keys import fold_in
from tests.training.codecs.crossing import KEY, cross, form_of, nbytes, tensor


@pytest.mark.parametrize("shape", [(2, 6), (2, 6, 2, 2), (2, 3, 6)])
def test_random_channels_are_right_in_the_mean(shape: tuple[int, ...]):
    """Over 4000 keys the mean is within five standard errors of the truth; k of C channels arrive, times C / k."""
    x, codec = tensor(shape), RandomChannels(0.5)
    form = form_of(x)
    draws = vmap(lambda key: cross(codec, x, key=key)[0])(fold_in(KEY, torch.arange(4000)))
    planes = torch.stack([form.by_channel(draw) for draw in draws[:50]])
    there = planes.abs().sum((1, 3)) > 0  # (50, C)
    assert (there.sum(1) == 3).all()
    assert there.any(0).all()
    torch.testing.assert_close(draws[draws != 0], (2 * x).expand_as(draws)[draws != 0])
    error = x.abs() / math.sqrt(4000)  # each value is 0 or 2 x with equal chances: its standard deviation is |x|
    assert ((draws.mean(0) - x).abs() <= 5 * error).all()


def test_random_channels_bytes():
    """K planes of B samples, and a bit per channel, rounded up to bytes; on the way down the planes alone."""
    x = tensor((4, 12, 2, 3))
    codec = RandomChannels(0.25)
    _, sent, client = cross(codec, x)
    assert nbytes(sent) == 4 * 3 * 6 * 4 + 2
    assert nbytes(codec.encode("down", x, {}, client, labels=None, key=KEY)[0]) == 4 * 3 * 6 * 4

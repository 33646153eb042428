"""`LowRank` against `torch.linalg.svd`."""

import pytest
import torch

from edgeopt.training import LowRank
from tests.training.codecs.crossing import cross, nbytes, tensor


@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (4, 3, 2, 2), (5, 5)], ids=str)
def test_low_rank_is_the_cut_svd(shape: tuple[int, ...], rank: int):
    """The product is that of the largest singular values of `torch.linalg.svd`, and its error what they leave."""
    x = tensor(shape, dtype=torch.float64)
    found, sent, _ = cross(LowRank(rank), x)
    matrix = x.flatten(1)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    torch.testing.assert_close(found.flatten(1), u[:, :rank] * s[:rank] @ v[:rank], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close((found - x).norm(), s[rank:].norm(), rtol=1e-9, atol=1e-9)
    assert nbytes(sent) == 8 * rank * sum(matrix.shape)


@pytest.mark.parametrize("x", [torch.zeros(4, 9), torch.ones(4, 9), tensor((4, 1)) @ tensor((1, 9))], ids=range(3))
def test_low_rank_of_a_matrix_of_less_rank_is_exact(x: torch.Tensor):
    """A rank beyond that of the matrix does no harm: not with zeros, nor with equal samples."""
    found, _, _ = cross(LowRank(3), x)
    torch.testing.assert_close(found, x, rtol=1e-5, atol=1e-5)

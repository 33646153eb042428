"""Factors of matrices of low rank: what codecs that send them share."""

import torch


def leading(gram: torch.Tensor, rank: int) -> torch.Tensor:
    """Return the eigenvectors of the largest eigenvalues of a symmetric matrix, [n, rank], largest first.

    Of a matrix with entries that are no finite numbers, any: they are told of where they arrive, in the loss.
    """
    known = torch.where(gram.isfinite().all(), gram, 0)
    vectors: torch.Tensor = torch.linalg.eigh(known).eigenvectors  # ascending
    return vectors.flip(1)[:, :rank]


def orthogonal_iteration(
    matrix: torch.Tensor, basis: torch.Tensor, iterations: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return factors [B, p] and [D, p] whose product approximates a matrix [B, D], largest components first.

    Each iteration is ``P = qr(M Q)``, ``Q = M^T P`` (that of PowerSGD, T. Vogels et al., arXiv:1905.13727); in the end both
    are turned so that the columns of the second are orthogonal and in order (Rayleigh and Ritz). The first r columns are
    then the best approximation of rank r within the subspace that was found. Columns of the first are orthonormal.

    A matrix of less rank does no harm: Householder's QR fills up with directions to which the matrix has no part.

    Parameters
    ----------
    basis : [D, p], where to begin, p at most B and D.
    """
    for _ in range(iterations):
        left: torch.Tensor = torch.linalg.qr(matrix @ basis).Q  # (B, p)
        basis = matrix.T @ left  # (D, p)
    turned = leading(basis.T @ basis, basis.shape[1])  # (p, p)
    return left @ turned, basis @ turned


def renewed(basis: torch.Tensor, random: torch.Tensor) -> torch.Tensor:
    """Return a basis [D, p] with those columns taken from a random one that are nothing but rounding errors.

    Next to the longest column, they are shorter than the square root of the rounding error: what the matrix had no part
    in. Kept, they would be scaled up to directions that rounding has chosen.
    """
    lengths = basis.norm(dim=0)
    rounding = torch.finfo(basis.dtype).eps ** 0.5
    return torch.where(lengths > rounding * lengths.max(), basis, random)

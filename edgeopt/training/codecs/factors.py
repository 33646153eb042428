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

    Each iteration is ``P = qr(M Q)``, ``Q = qr(M^T P)`` (as in PowerSGD, T. Vogels et al., arXiv:1905.13727). In the end
    M Q and Q are turned so that the columns of both are orthogonal and in order (Rayleigh and Ritz): the first r are then
    the best approximation of rank r within the subspace. Columns of the second are orthonormal.

    A matrix of less rank does no harm: Householder's QR fills up with directions to which the matrix has no part.

    Parameters
    ----------
    basis : [D, p], where to begin, p at most B and D.
    """
    for _ in range(iterations):
        left = torch.linalg.qr(matrix @ basis).Q  # (B, p)
        basis = torch.linalg.qr(matrix.T @ left).Q  # (D, p)
    scaled = matrix @ basis  # (B, p)
    turned = leading(scaled.T @ scaled, basis.shape[1])  # (p, p)
    return scaled @ turned, basis @ turned


def renewed(left: torch.Tensor, right: torch.Tensor, random: torch.Tensor) -> torch.Tensor:
    """Return the second factor [D, p], with random columns in place of those to which the matrix had no part.

    Their columns of the first are shorter than the square root of the rounding error times its norm. Kept, they would be
    directions that rounding has chosen.
    """
    rounding = torch.finfo(left.dtype).eps ** 0.5 * left.norm()
    return torch.where(left.norm(dim=0) > rounding, right, random)

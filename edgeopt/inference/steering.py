"""Steered decoding: the scores of an adapted model moved along what its adapter has learnt, by a calibrated strength.

After *Distribution-Aligned Decoding for Efficient LLM Task Adaptation* (S. Hu, X. Han et al., arXiv:2509.15888), which calls
it SVDecode. The signal, its projection, the mask, the strength of a token and the mean over tokens are the paper's; what
is ours says so. Everything here is a function of the scores of two models for the same tokens; `edgeopt.inference.steered`
runs the models.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch

from edgeopt.display import one_line
from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.validate import real

Direction = Literal["projected", "contrast"]
Outside = Literal["drop", "keep"]
Rule = Literal["mean", "median", "trimmed", "ratio", "curvature"]

DIRECTIONS: tuple[Direction, ...] = ("projected", "contrast")
OUTSIDE: tuple[Outside, ...] = ("drop", "keep")
RULES: tuple[Rule, ...] = ("mean", "median", "trimmed", "ratio", "curvature")

LEAST_SHARE = 0.01
"""Of the longest vector, of one whose token has a say: the paper leaves out tiny ones, without a number."""
_LEAST_SQUARE = 1e-12  # the paper's epsilon
_TRIMMED = 0.1  # of the tokens, at either end
_HALVINGS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class SteeringVector:
    r"""How far and along which vector the scores of an adapted model are moved.

    With p the adapted and q the base distribution of the next token and r = log p - log q, the vector is

    .. math:: \delta = J g, \quad J = \mathrm{diag}(p) - p p^T, \quad g = -(r + 1), \qquad
              \hat z = \log p + \mu \delta \text{ on the mask } p(y) \ge \alpha \max p

    J 1 = 0, so that the vector is :math:`-p \odot (r - \langle p, r \rangle)`: J is never formed. It points from the adapted
    model back to its base, so that the strength is negative where the adapter has learnt what is right.

    Parameters
    ----------
    strength : mu, of either sign; `calibrate` finds it.
    alpha : the mask has the tokens with at least this share of the largest probability: 0 all, 1 the likeliest.
    outside : what becomes of tokens outside the mask: ``drop`` scores them -inf, as the paper does for decoding
        (lambda = -inf); ``keep`` leaves them unsteered (lambda = 0), for scoring given answers, which else have no
        probability as soon as one of their tokens is rare.
    direction : ``projected``, the paper's, or ``contrast``: r itself, the direction of contrastive decoding, as a control.

    Examples
    --------
    >>> adapted, base = torch.tensor([2.0, 1.0, 0.0]).log_softmax(-1), torch.zeros(3)
    >>> SteeringVector(strength=-1.0, outside="keep").steered(adapted, base).exp()
    tensor([0.7522, 0.1812, 0.0666])
    """

    strength: float
    alpha: float = 0.1
    outside: Outside = "drop"
    direction: Direction = "projected"

    def __post_init__(self) -> None:
        object.__setattr__(self, "strength", real("strength", self.strength))
        object.__setattr__(self, "alpha", share("alpha", self.alpha))
        _one_of("outside", self.outside, OUTSIDE)
        _one_of("direction", self.direction, DIRECTIONS)

    def steered(self, adapted: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        """Return steered log-probabilities, float32 [..., V].

        Parameters
        ----------
        adapted, base : scores [..., V] of the next token, logits or log-probabilities of any precision. Scores of -inf in
            `adapted` are of tokens that may not come, and stay.

        Raises
        ------
        InvalidProblemError
            If the vocabularies differ, or a score is nan or infinite otherwise.
        """
        log_p, ratio = _compared(adapted, base)
        vector = _vector(log_p, ratio, self.direction)
        kept = confident(log_p, self.alpha)
        moved = log_p + self.strength * vector
        if self.outside == "drop":
            return torch.where(kept, moved, -math.inf).log_softmax(-1)
        return torch.where(kept, moved, log_p).log_softmax(-1)


@dataclass(frozen=True, slots=True, eq=False)
class TokenStrengths:
    """What the labelled tokens of a calibration set say about the strength, one number for each token.

    Parameters
    ----------
    slope : float64 [n], <e_y - p, delta>: minus the derivative of the negative log-likelihood by the strength, at 0.
    square : float64 [n], |delta|^2, the paper's Gauss-Newton curvature.
    curvature : float64 [n], delta' J delta, the variance of delta under p: the second derivative of the negative
        log-likelihood, exactly. Ours.
    """

    slope: torch.Tensor
    square: torch.Tensor
    curvature: torch.Tensor

    __repr__ = one_line

    @staticmethod
    def joined(parts: "list[TokenStrengths]") -> "TokenStrengths":
        """Return those of several batches as one."""
        return TokenStrengths(
            *(torch.cat([getattr(part, name) for part in parts]) for name in ("slope", "square", "curvature"))
        )

    def strength(self, rule: Rule = "mean", *, least_share: float = LEAST_SHARE) -> float:
        """Return one strength for all tokens.

        Parameters
        ----------
        rule : of the strengths of the tokens, slope / (square + 1e-12), ``mean`` is the paper's, ``median`` and ``trimmed``
            (a tenth left out at either end) are its alternatives; ``ratio``, the sum of slopes over the sum of squares, is that
            of its appendix for sequences. ``curvature``, ours, is the sum of slopes over the sum of exact curvatures: Newton's
            step for all tokens together.
        least_share : tokens whose vector is shorter than this share of the longest have no say: both models agree on them, and
            the strength that they ask for can be anything.

        Raises
        ------
        InvalidProblemError
            If there are no tokens.
        """
        _one_of("rule", rule, RULES)
        if not len(self.square):
            raise InvalidProblemError("texts: no labelled tokens: expected at least one")
        told = self.square.sqrt() >= share("least_share", least_share) * self.square.sqrt().max()
        slope, square, curvature = self.slope[told], self.square[told], self.curvature[told]
        if rule in ("ratio", "curvature"):
            below = square if rule == "ratio" else curvature
            return float(slope.sum() / (below.sum() + _LEAST_SQUARE))
        own = (slope / (square + _LEAST_SQUARE)).sort().values
        if rule == "median":
            return float(own.quantile(0.5))
        cut = int(_TRIMMED * len(own)) if rule == "trimmed" else 0
        return float(own[cut : len(own) - cut].mean())


def token_strengths(
    adapted: torch.Tensor,
    base: torch.Tensor,
    labels: torch.Tensor,
    *,
    alpha: float = 0.1,
    direction: Direction = "projected",
) -> TokenStrengths:
    """Return what labelled tokens say about the strength; outside the mask the vector is zero.

    Parameters
    ----------
    adapted, base : scores [n, V].
    labels : int64 [n], the tokens that came.
    alpha, direction : as in `SteeringVector`.
    """
    log_p, ratio = _compared(adapted, base)
    kept = confident(log_p, share("alpha", alpha))
    vector = torch.where(kept, _vector(log_p, ratio, direction), 0.0).double()
    p = log_p.double().exp()
    mean = (p * vector).sum(-1)
    return TokenStrengths(
        slope=vector.gather(-1, labels[:, None])[:, 0] - mean,
        square=vector.square().sum(-1),
        curvature=(p * vector.square()).sum(-1) - mean.square(),
    )


def halved(strength: float) -> list[float]:
    """Return the strengths that backtracking tries, in order: the first that lowers the loss of the calibration set is taken."""
    return [strength / 2**i for i in range(_HALVINGS)] + [0.0]


def confident(log_p: torch.Tensor, alpha: float) -> torch.Tensor:
    """Return the mask of log-probabilities [..., V]: which tokens have at least `alpha` of the largest probability."""
    return log_p >= log_p.amax(-1, keepdim=True) + (math.log(alpha) if alpha else -math.inf)


def share(name: str, value: object) -> float:
    """Return a number from 0 to 1."""
    if not 0 <= (found := real(name, value)) <= 1:
        raise InvalidProblemError(f"{name} = {quoted(value)}: expected a number from 0 to 1")
    return found


def _compared(adapted: torch.Tensor, base: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log p and log p - log q in single precision; the latter is zero for tokens that may not come."""
    if adapted.shape != base.shape:
        raise InvalidProblemError(
            f"base: scores of shape {list(base.shape)}: expected those of the adapted model, {list(adapted.shape)}"
        )
    log_p, log_q = adapted.float().log_softmax(-1), base.float().log_softmax(-1)
    ratio = torch.where(log_p == -math.inf, 0.0, log_p - log_q)
    whole = ratio.sum(-1).isfinite()  # log_softmax spreads a nan over its row
    if not whole.all():
        row = int((~whole.flatten()).nonzero()[0])
        name = "adapted" if log_p.flatten(0, -2)[row].isnan().any() else "base"
        raise InvalidProblemError(f"{name}: row {row} has scores that are nan or infinite: expected numbers")
    return log_p, ratio


def _vector(log_p: torch.Tensor, ratio: torch.Tensor, direction: Direction) -> torch.Tensor:
    if direction == "contrast":
        return ratio
    p = log_p.exp()
    return p * ((p * ratio).sum(-1, keepdim=True) - ratio)


def _one_of(name: str, value: object, options: tuple[str, ...]) -> None:
    if value not in options:
        raise InvalidProblemError(f"{name} = {quoted(value)}: expected one of {', '.join(options)}")

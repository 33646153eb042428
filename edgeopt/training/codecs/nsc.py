"""NSC: subspace compression whose rank follows the spectrum and the link.

After Z. Fang et al., NSC-SL: A Bandwidth-Aware Neural Subspace Compression for Communication-Efficient Split Learning,
arXiv:2602.02696. Of the paper we know two things: that the rank of a low-rank approximation follows singular values and
bandwidth, and that the factors come from an alternating orthogonal iteration with feedback of the residual, for
activations and gradients. All formulas here are ours.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch

from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.training.codecs.codec import Form, Order, memory_tensor
from edgeopt.training.codecs.factors import orthogonal_iteration, renewed
from edgeopt.training.codecs.residual import RESIDUALS, Residual, decode_residual, encode_residual, num_coded
from edgeopt.training.codecs.wire import branch
from edgeopt.training.costs.ledger import Direction
from edgeopt.training.keys import fold_in, uniform
from edgeopt.training.messages import State, Tensors
from edgeopt.validate import float_array, int_array

_MORE_COLUMNS = 4  # of the subspace than the largest rank: the first ones become better by that
_FROM_RANDOM = 2  # iterations more where there is no subspace of an earlier message
_ROUNDING = 1e-6  # of a squared norm in float32


class _Approximation(NamedTuple):
    """A matrix [B, D] as its mean [D] and factors of the rest, [B, p] and [D, p], best columns first.

    The spectrum are the squares of the first singular values, as far as a rank may go, and the squared norm of the rest.
    """

    mean: torch.Tensor
    left: torch.Tensor
    right: torch.Tensor
    spectrum: torch.Tensor
    basis: torch.Tensor  # where the next one begins


@dataclass(frozen=True, slots=True)
class NscCodec:
    r"""The mean of a mini-batch, and a low-rank approximation of what differs from it.

    A mini-batch [B, D] is sent as its mean row and factors [B, r] and [r, D] of the rest. They come from an orthogonal
    iteration that starts in the subspace of the message before, so that no matrix is decomposed as a whole. The rank is
    the least of what the budget carries, what the spectrum of the message before says is enough, and `max_rank`. Where
    that is not enough, bytes that a budget leaves carry a part of what the factors miss.

    No message is larger than its budget. With room for the mean alone, that is what crosses (rank 0); with less, the
    client is left out. Gradients are coded in the same way, by the server, with no larger rank than the activations had
    and without the residual; coding is taken for the identity (straight through).

    Sent are D + r (B + D) values, up with p + 1 numbers of 4 bytes, p the columns of the subspace, and the residual.

    Parameters
    ----------
    max_rank : the largest rank; the subspace that is kept from message to message has four columns more.
    energy : share of the squared norm of what differs from the mean that is enough.
    iterations : for each message.
    refresh : messages until the subspace is drawn anew, at random and with two iterations more; 0 for never.
    residual : ``4-bit``, the samples that miss most, with 4 bits for each value; ``top-k``, the values that miss most,
        with their places; ``none``.
    activation_feedback, gradient_feedback : share of what the last message has missed that is added to the next one, from 0 to 1.
        The next mini-batch has other samples, so that this is no help in general.
    """

    name: ClassVar[str] = "nsc"

    max_rank: int = 8
    energy: float = 0.99
    iterations: int = 1
    refresh: int = 20
    residual: Residual = "top-k"
    activation_feedback: float = 0.0
    gradient_feedback: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("max_rank", 1), ("iterations", 1), ("refresh", 0)):
            int_array(name, getattr(self, name), (), low=least)
        if not 0 < float_array("energy", self.energy, ()) <= 1:
            raise InvalidProblemError(f"energy = {self.energy}: expected above 0, to 1")
        if self.residual not in RESIDUALS:
            raise InvalidProblemError(f"residual = {quoted(self.residual)}: expected one of {', '.join(RESIDUALS)}")
        for name in ("activation_feedback", "gradient_feedback"):
            if not 0 <= float_array(name, given := getattr(self, name), ()) <= 1:
                raise InvalidProblemError(f"{name} = {given}: expected 0 to 1")

    def order(self, direction: Direction, form: Form, budget_bytes: float, memory: State) -> Order | None:
        """Fix rank and residual; without room for the mean there is no order."""
        most, each = self._most(form), form.dtype.itemsize * (form.samples + form.size)
        if direction == "down":
            before = branch(memory, "down")
            known = before and memory_tensor(before, "basis").shape == (form.size, self._columns(form))
            rank = min(int(memory_tensor(memory, "rank")), self._enough(before if known else {}, most))
            return {"rank": rank, "fresh": not known or int(memory_tensor(memory, "since")) == 1}
        left = budget_bytes - form.dtype.itemsize * form.size - 4 * (most + 1)
        if left < 0:
            return None
        if "size" in memory and int(memory_tensor(memory, "size")) != form.size:  # the cut has moved
            memory = {}
        enough = self._enough(memory, most)
        rank = min(enough, most)
        rank = rank if rank * each <= left else int(left // each)
        spare = left - rank * each if rank < enough and math.isfinite(left) else 0.0
        fresh = not memory or 0 < self.refresh <= int(memory_tensor(memory, "since"))
        return {"rank": rank, "fresh": fresh, "residual": num_coded(self.residual, form, spare)}

    def encode(
        self,
        direction: Direction,
        x: torch.Tensor,
        order: Order,
        memory: State,
        *,
        labels: torch.Tensor | None,
        key: torch.Tensor,
    ) -> tuple[Tensors, State]:
        """Return mean and factors; up with the spectrum, and with the residual."""
        form, rank, up = Form(tuple(x.shape), x.dtype), int(order["rank"]), direction == "up"
        own, weight = (memory, self.activation_feedback) if up else (branch(memory, "down"), self.gradient_feedback)
        matrix = x.reshape(form.samples, form.size).to(torch.promote_types(x.dtype, torch.float32))  # (B, D)
        missed = own.get("missed")
        if isinstance(missed, torch.Tensor) and missed.shape == matrix.shape:
            matrix = matrix + weight * missed
        found = self._approximation(matrix, own.get("basis"), bool(order["fresh"]), key)
        tensors = {"mean": found.mean.to(x.dtype)}
        if rank:
            tensors |= {"left": found.left[:, :rank].to(x.dtype), "right": found.right[:, :rank].T.to(x.dtype)}
        new: State = {"basis": found.basis}
        if up:
            tensors["spectrum"] = found.spectrum
        else:
            new["spectrum"] = found.spectrum
        count = int(order.get("residual", 0))
        if count or weight:
            rest = matrix - _sum(tensors, matrix.dtype)
            if count:
                tensors |= encode_residual(self.residual, rest, count, x.dtype, fold_in(key, 1))
                rest = rest - decode_residual(self.residual, tensors, count, form)
            if weight:
                new["missed"] = rest
        return tensors, new if up else {**memory, "down": new}

    def decode(
        self, direction: Direction, tensors: Tensors, order: Order, memory: State, form: Form
    ) -> tuple[torch.Tensor, State]:
        """Return the sum of mean, product of the factors, and residual."""
        matrix = _sum(tensors, torch.promote_types(form.dtype, torch.float32))
        if matrix.shape[0] != form.samples:
            matrix = matrix.expand(form.samples, -1)
        if count := int(order.get("residual", 0)):
            matrix = matrix + decode_residual(self.residual, tensors, count, form)
        if direction == "up":
            since, one = memory.get("since", {}), torch.ones((), dtype=torch.int64, device=matrix.device)
            memory = {
                **memory,
                "size": one * form.size,
                "rank": one * int(order["rank"]),
                "since": since + 1 if isinstance(since, torch.Tensor) and not order["fresh"] else one,
                "spectrum": tensors["spectrum"],
            }
        return matrix.to(form.dtype).reshape(form.shape), memory

    def measured(self, orders: Sequence[Order]) -> dict[str, float]:
        """Return the mean rank, and how many messages had a mean alone."""
        ranks = [int(order["rank"]) for order in orders]
        return {"rank": sum(ranks) / len(ranks) if ranks else math.nan, "mean_alone": float(ranks.count(0))}

    def _most(self, form: Form) -> int:
        """Return the largest rank: without their mean, B samples have B - 1 directions."""
        return min(self.max_rank, form.samples - 1, form.size)

    def _columns(self, form: Form) -> int:
        """Return the columns of the subspace, p."""
        return min(self.max_rank + _MORE_COLUMNS, form.samples - 1, form.size)

    def _enough(self, memory: State, most: int) -> int:
        """Return the least rank that reaches `energy` by a spectrum; one above the largest if none does, or none is known."""
        spectrum = memory.get("spectrum")
        if not isinstance(spectrum, torch.Tensor) or len(spectrum) != most + 1:
            return most + 1
        *squares, whole = spectrum.tolist()
        wanted = self.energy * whole * (1 - _ROUNDING)
        return next((rank for rank in range(most + 1) if sum(squares[:rank]) >= wanted), most + 1)

    def _approximation(
        self, matrix: torch.Tensor, basis: "torch.Tensor | State | None", fresh: bool, key: torch.Tensor
    ) -> _Approximation:
        mean = matrix.mean(0)  # (D,)
        rest = matrix - mean
        rest = torch.where(rest.isfinite().all(), rest, 0)  # what is no number is told of by the mean
        form = Form(tuple(matrix.shape), matrix.dtype)
        random = uniform(fold_in(key, 0), (form.size, self._columns(form)), form.dtype) - 0.5
        if random.shape[1] == 0:
            left, right = rest.new_zeros(form.samples, 0), random
        elif isinstance(basis, torch.Tensor) and basis.shape == random.shape and not fresh:
            left, right = orthogonal_iteration(rest, basis, self.iterations)
        else:
            left, right = orthogonal_iteration(rest, random, self.iterations + _FROM_RANDOM)
        squares = left.square().sum(0)[: self._most(form)]
        spectrum = torch.cat([squares, rest.square().sum().reshape(1)]).float()
        return _Approximation(mean, left, right, spectrum, renewed(left, right, random))


def _sum(tensors: Tensors, dtype: torch.dtype) -> torch.Tensor:
    """Return mean plus product of the factors, [B, D], or [1, D] of the mean alone."""
    mean = tensors["mean"].to(dtype).unsqueeze(0)  # (1, D)
    return mean + tensors["left"].to(dtype) @ tensors["right"].to(dtype) if "left" in tensors else mean

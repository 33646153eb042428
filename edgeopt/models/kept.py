"""What autograd keeps of a forward pass for the backward pass, counted while it runs."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch.autograd.graph import saved_tensors_hooks


class KeptMemory:
    """Bytes that autograd keeps so far: each storage once, those of given tensors not at all.

    Parameters
    ----------
    known : tensors that are there anyway, such as weights.

    Examples
    --------
    >>> weight, x = torch.ones(3, 5, requires_grad=True), torch.ones(2, 3)
    >>> kept = KeptMemory([weight])
    >>> with kept.counting():
    ...     y = (x @ weight).tanh()
    >>> kept.bytes  # x for the gradient of the weight, y for that of tanh
    64
    """

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        self._held: dict[int, torch.Tensor] = {}  # holds the storages, so that their addresses stay taken
        self._sizes: dict[int, int] = {}
        self.ignore(known)

    @property
    def bytes(self) -> int:
        """Bytes that are kept."""
        return sum(self._sizes.values())

    def ignore(self, tensors: Iterable[torch.Tensor]) -> None:
        """Leave out the storages of some tensors, be they kept or not."""
        for tensor in tensors:
            self._note(tensor, 0)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what is kept inside."""
        with saved_tensors_hooks(self._keep, lambda tensor: tensor):
            yield

    def _keep(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage()._cdata not in self._sizes:
            self._note(tensor, tensor.untyped_storage().nbytes())
        return tensor

    def _note(self, tensor: torch.Tensor, size: int) -> None:
        self._held[tensor.untyped_storage()._cdata] = tensor
        self._sizes[tensor.untyped_storage()._cdata] = size

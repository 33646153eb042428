"""Samples in memory: inputs, targets, and where each sample comes from. What all data sets become."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from edgeopt.display import one_line
from edgeopt.errors import InvalidProblemError
from edgeopt.foreign import as_array
from edgeopt.storage import MAX_BYTES
from edgeopt.validate import int_array, integer

_MOST_CLASSES = 1 << 20  # that a target alone can make; the last layer of a model grows with them


@dataclass(frozen=True, slots=True, eq=False)
class ArrayData:
    """Inputs and targets of n samples. The tensors are kept as they are given, not copied: do not change them.

    Parameters
    ----------
    inputs : [n, ...], floating point (images) or int64 (tokens).
    targets : int64 [n], or [n, T] with one target per position, from 0 to ``num_classes - 1``; on the same device.
    num_classes : classes K, or size of the vocabulary.
    name : for tables and messages.
    group : int64 [n], non-negative: where each sample comes from, such as a document or a person. Optional.

    Raises
    ------
    InvalidProblemError
        Naming the field, and what was expected.

    Examples
    --------
    >>> data = ArrayData(torch.zeros(3, 1, 8, 8), torch.tensor([4, 0, 4]), 10, "mine")
    >>> data
    ArrayData('mine', 3 inputs [1, 8, 8] float32, 10 classes)
    >>> len(data), data.take([0, 2]).labels
    (3, array([4, 4]))
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    num_classes: int
    name: str
    group: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        for field in ("inputs", "targets"):
            if not isinstance(value := getattr(self, field), torch.Tensor) or value.ndim == 0:
                raise InvalidProblemError(f"{field}: expected a tensor with one row per sample, got {described(value)}")
        samples, targets = len(self.inputs), self.targets
        if not (self.inputs.is_floating_point() or self.inputs.dtype == torch.int64):
            raise InvalidProblemError(f"inputs: expected floating-point numbers or int64, got {self.inputs.dtype}")
        if targets.dtype != torch.int64:
            raise InvalidProblemError(f"targets: expected int64, got {targets.dtype}")
        if len(targets) != samples or targets.ndim > 2:
            raise InvalidProblemError(
                f"targets: expected shape [{samples}] or [{samples}, T] for {samples} inputs, got {list(targets.shape)}"
            )
        if targets.device != self.inputs.device:
            raise InvalidProblemError(f"targets: on {targets.device}, expected {self.inputs.device} as the inputs")
        object.__setattr__(self, "num_classes", integer("num_classes", self.num_classes, low=1))
        object.__setattr__(self, "inputs", self.inputs.detach())  # or every round would extend the caller's graph
        if targets.numel():
            low, high = (int(end) for end in torch.aminmax(targets))
            if low < 0 or high >= self.num_classes:
                wrong = low if low < 0 else high
                raise InvalidProblemError(f"targets: found {wrong}: expected 0 to {self.num_classes - 1}")
        # NaN and infinities show in the smallest or largest value: no mask as large as the data
        ends = torch.aminmax(self.inputs) if self.inputs.is_floating_point() and self.inputs.numel() else ()
        if not all(map(math.isfinite, ends)):
            raise InvalidProblemError("inputs: found NaN or an infinity: expected finite numbers")
        if self.group is not None:
            object.__setattr__(self, "group", int_array("group", self.group, (samples,), low=0, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.inputs)

    def __repr__(self) -> str:  # without the samples, which nobody wants to read
        shape, kind = list(self.inputs.shape[1:]), str(self.inputs.dtype).removeprefix("torch.")
        return f"ArrayData({self.name!r}, {len(self)} inputs {shape} {kind}, {self.num_classes} classes)"

    @property
    def labels(self) -> NDArray[np.int64]:
        """What a partition may go by, int64 [n]: the class of each sample, or of a sequence its group.

        Raises
        ------
        InvalidProblemError
            For sequences without groups.
        """
        if self.targets.ndim == 1:
            return self.targets.numpy(force=True)
        if self.group is None:
            raise InvalidProblemError(f"{self.name}: sequences without a group have no label: partition them with iid")
        return self.group

    def take(self, indices: ArrayLike) -> "ArrayData":
        """Return the samples with these numbers, in this order, as copies.

        Parameters
        ----------
        indices : int [m], each from 0 to n - 1.
        """
        rows = int_array("indices", indices, (None,), low=0, high=len(self) - 1, dtype=np.int64)
        at = torch.tensor(rows, device=self.inputs.device)  # (m,)
        group = None if self.group is None else self.group[rows]
        return replace(self, inputs=self.inputs[at], targets=self.targets[at], group=group)


@dataclass(frozen=True, slots=True, eq=False)
class DataSplit:
    """Samples to train with and samples held out, of the same shape and classes.

    Parameters
    ----------
    train, test : samples.
    """

    train: ArrayData
    test: ArrayData

    __repr__ = one_line

    def __post_init__(self) -> None:
        for field in ("inputs", "targets"):
            shapes = [list(getattr(part, field).shape[1:]) for part in (self.train, self.test)]
            if shapes[0] != shapes[1]:
                raise InvalidProblemError(f"test: {field} of shape {shapes[1]}, expected {shapes[0]} as in train")
        if self.train.num_classes != self.test.num_classes:
            raise InvalidProblemError(
                f"test: {self.test.num_classes} classes, expected {self.train.num_classes} as in train"
            )


def from_dataset(
    dataset: "torch.utils.data.Dataset[Any]", num_classes: int | None = None, name: str = "dataset"
) -> ArrayData:
    """Return all samples of a torch data set of pairs (input, target), read one after another.

    Parameters
    ----------
    dataset : has ``len()`` and gives pairs. Inputs are tensors, arrays or numbers of one shape: floating point becomes
        float32, int64 stays. Targets are whole numbers, or vectors of them of one length.
    num_classes : classes. Default: the largest target plus one.
    name : for tables and messages.

    Raises
    ------
    InvalidProblemError
        Naming the sample that does not fit, or if all would take more than 8 GiB.

    Examples
    --------
    >>> from torch.utils.data import TensorDataset
    >>> data = from_dataset(TensorDataset(torch.rand(5, 3), torch.tensor([0, 1, 2, 1, 0])))
    >>> len(data), data.num_classes, data.inputs.shape
    (5, 3, torch.Size([5, 3]))
    """
    try:
        count = len(dataset)  # type: ignore[arg-type]
    except TypeError:
        raise InvalidProblemError(f"dataset: expected a length, {type(dataset).__name__} has none") from None
    if count < 1:
        raise InvalidProblemError("dataset: expected at least one sample")
    first, target = _pair(dataset, 0)
    size = count * (first.numel() * first.element_size() + 8 * target.numel())
    if size > MAX_BYTES:
        raise InvalidProblemError(f"dataset: {count} samples take {size} bytes, expected at most {MAX_BYTES}")
    inputs = torch.empty((count, *first.shape), dtype=first.dtype)  # (n, ...)
    targets = torch.empty((count, *target.shape), dtype=torch.int64)  # (n,) or (n, T)
    for index in range(count):
        value, target = _pair(dataset, index)
        for field, part, whole in (("input", value, inputs), ("target", target, targets)):
            if part.shape != whole.shape[1:] or part.dtype != whole.dtype:
                raise InvalidProblemError(
                    f"dataset[{index}]: {field} of shape {list(part.shape)}, {part.dtype}: "
                    f"expected {list(whole.shape[1:])}, {whole.dtype} as in dataset[0]"
                )
            whole[index] = part
        if (target < 0).any():
            raise InvalidProblemError(f"dataset[{index}]: target {int(target.min())}: expected classes from 0 on")
    largest = int(targets.max())
    if num_classes is None and largest >= _MOST_CLASSES:
        raise InvalidProblemError(
            f"dataset: found target {largest}, expected below {_MOST_CLASSES}: classes are numbered from 0; "
            "give num_classes if there are so many"
        )
    return ArrayData(inputs, targets, largest + 1 if num_classes is None else num_classes, name)


def _pair(dataset: Any, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    sample = dataset[index]
    if not isinstance(sample, tuple | list) or len(sample) != 2:
        raise InvalidProblemError(f"dataset[{index}]: expected a pair (input, target), got {described(sample)}")
    value, target = (_tensor(index, field, part) for field, part in zip(("input", "target"), sample, strict=True))
    if value.is_floating_point():
        value = value.float()
    elif value.dtype != torch.int64:  # bytes may be pixels or tokens
        raise InvalidProblemError(
            f"dataset[{index}]: input is {value.dtype}: expected floating point, or int64 for tokens; "
            "scale images to floating point"
        )
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool or target.ndim > 1:
        raise InvalidProblemError(
            f"dataset[{index}]: target: expected a whole number or a vector, got {described(target)}"
        )
    return value, target.to(torch.int64)


def _tensor(index: int, field: str, value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, bool | int | float | np.generic | np.ndarray):  # in an order of bytes and a layout torch reads
        array = as_array(f"dataset[{index}]: {field}", value)
        if array.dtype.kind in "biuf":
            return torch.tensor(np.array(array))
    raise InvalidProblemError(
        f"dataset[{index}]: {field} is a {type(value).__name__}: expected a tensor, an array or a number; "
        "images need a transform to tensors"
    )


def described(value: object) -> str:
    """Return in words what was given in place of the right tensor."""
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} of shape {list(value.shape)}"
    return f"{type(value).__name__}" + (f" of length {len(value)}" if isinstance(value, tuple | list) else "")

"""`ModelProfile`: what a model costs, layer by layer."""

import dataclasses
import os
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from edgeopt import storage
from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.extras import needs
from edgeopt.fields import Fields, in_file
from edgeopt.npz import numbers
from edgeopt.validate import by_name, float_array

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "fp16", "int8"]

BUNDLED_PROFILES = (
    "resnet18", "resnet50", "vgg16", "mobilenetv2", "vit-b16", "bert-base", "gpt2", "tinyllama-1.1b",
)  # fmt: skip
"""Names that `model_profile` knows."""

_BYTES_PER_VALUE = {"fp32": 4, "fp16": 2, "int8": 1}
_KIND, _SCHEMA_VERSION = "model-profile", 1
_ARRAYS = ("parameter_bytes", "forward_flops", "backward_flops", "activation_bytes", "memory_bytes")
_MOST = float(np.finfo(np.float64).max) / max(_BYTES_PER_VALUE.values())  # of a sum, in any precision
_SCALED = ("parameter_bytes", "activation_bytes", "memory_bytes")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModelProfile:
    """L layers that run one after another, each with its size and its work; one tensor crosses every boundary.

    Parameters
    ----------
    name : name of the model.
    layer_names : L distinct names.
    parameter_bytes : float64 [L], bytes of the parameters; a parameter shared by layers is charged to the first of them.
    forward_flops : float64 [L], FLOPs of the forward pass per sample; a multiply-add counts as two.
    backward_flops : float64 [L], FLOPs of the backward pass per sample.
    activation_bytes : float64 [L], bytes per sample of the layer's output: what crosses a cut after the layer.
    memory_bytes : float64 [L], bytes per sample that the layer keeps from the forward pass for the backward pass.
    input_bytes : bytes of one sample of the model's input.
    precision : ``fp32``, ``fp16`` or ``int8``: what one value of parameters and activations takes.

    Raises
    ------
    InvalidProblemError
        Naming field, index, value and what was expected.

    Examples
    --------
    >>> profile = ModelProfile(
    ...     name="tiny", layer_names=("hidden", "activation", "head"), parameter_bytes=[96, 0, 40],
    ...     forward_flops=[40, 0, 16], backward_flops=[40, 0, 32], activation_bytes=[16, 16, 8],
    ...     memory_bytes=[20, 16, 0], input_bytes=20)
    >>> profile.num_layers, profile.num_parameters, profile.with_precision("fp16").total_bytes
    (3, 34, 68.0)
    >>> profile.without_empty_layers().layer_names
    ('hidden', 'head')
    """

    name: str
    layer_names: tuple[str, ...]
    parameter_bytes: NDArray[np.float64]
    forward_flops: NDArray[np.float64]
    backward_flops: NDArray[np.float64]
    activation_bytes: NDArray[np.float64]
    memory_bytes: NDArray[np.float64]
    input_bytes: float
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise InvalidProblemError(f"name = {quoted(self.name)}: expected a name")
        _check_precision(self.precision)
        object.__setattr__(self, "layer_names", _layer_names(self.layer_names))
        for name in _ARRAYS:
            unit = "FLOP" if name.endswith("flops") else "byte"
            array = float_array(name, getattr(self, name), (self.num_layers,), nonnegative=True, unit=unit)
            if array.max() > _MOST / self.num_layers:
                layer = int(array.argmax())
                raise InvalidProblemError(
                    f"{name}[{layer}] = {array[layer]:g}: expected numbers with a finite sum ({unit})"
                )
            object.__setattr__(self, name, array)
        input_bytes = float_array("input_bytes", self.input_bytes, (), nonnegative=True, unit="byte").item()
        object.__setattr__(self, "input_bytes", input_bytes)

    @classmethod
    def from_module(
        cls,
        module: "torch.nn.Module",
        sample: "torch.Tensor | tuple[torch.Tensor, ...] | Mapping[str, torch.Tensor]",
        *,
        name: str | None = None,
        precision: Precision = "fp32",
        layers: Sequence[str] | None = None,
    ) -> Self:
        """Measure a torch module: it runs once, forward and backward, without weights and without data.

        Parameters
        ----------
        module : any module; it is left as it was. Weights on the meta device are enough.
        sample : one batch of inputs, dimension 0 is the batch: a tensor, or a tuple of positional or a mapping of
            keyword arguments. Only shapes and dtypes are used. Everything measured is divided by the batch size.
        name : name of the profile. Default: the module's class.
        precision : see `with_precision`.
        layers : names of sub-modules (as in ``module.named_modules()``) after which the model may be cut. Default:
            of an ``nn.Sequential`` its children; else the smallest modules that have parameters of their own or no
            children, where several form one layer if there is no cut between them that only one tensor crosses.

        Raises
        ------
        MissingDependencyError
            If torch is not installed.
        InvalidProblemError
            If the module cannot run without data, leaves parameters unused, or cannot be cut after a layer of `layers`.

        Notes
        -----
        FLOPs are what `torch.utils.flop_counter` counts: matrix products, convolutions and attention. Element-wise work, normalisation
        and pooling count nothing. The backward pass computes the gradients of all parameters, and of activations where
        there are parameters before them. Kept memory is what autograd saves in training, where frozen parameters need
        no gradients, without parameters and buffers; a tensor saved twice is charged to the first layer that saves it.
        Work between two layers belongs to the second one.
        The module is measured in training mode. Buffers, such as the running means of batch normalisation, are not part
        of `parameter_bytes`.
        """
        with needs("measuring a module", "train"):
            from edgeopt.models.measure import measure_module
        if isinstance(module, Sized) and len(module) == 0:
            raise InvalidProblemError(f"module: expected layers, got an empty {type(module).__name__}")
        measured = measure_module(module, sample, layers=layers)
        profile = cls(name=type(module).__name__ if name is None else name, **measured)
        return profile.with_precision(precision)

    # --- totals --------------------------------------------------------------------------------------------------

    @property
    def num_layers(self) -> int:
        """Layers, L."""
        return len(self.layer_names)

    @property
    def num_parameters(self) -> int:
        """Parameters of the whole model."""
        return round(self.total_bytes / _BYTES_PER_VALUE[self.precision])

    @property
    def total_bytes(self) -> float:
        """Bytes of all parameters."""
        return float(self.parameter_bytes.sum())

    @property
    def total_forward_flops(self) -> float:
        """FLOPs of the forward pass of the whole model per sample."""
        return float(self.forward_flops.sum())

    @property
    def total_backward_flops(self) -> float:
        """FLOPs of the backward pass of the whole model per sample."""
        return float(self.backward_flops.sum())

    @property
    def total_memory_bytes(self) -> float:
        """Bytes per sample that the whole model keeps for the backward pass."""
        return float(self.memory_bytes.sum())

    # --- derived profiles ----------------------------------------------------------------------------------------

    def with_precision(self, precision: Precision) -> Self:
        """Return the profile with values of another width: parameters, activations and memory scale, FLOPs and the input stay.

        Parameters
        ----------
        precision : ``fp32`` (4 bytes per value), ``fp16`` (2) or ``int8`` (1).
        """
        _check_precision(precision)
        ratio = _BYTES_PER_VALUE[precision] / _BYTES_PER_VALUE[self.precision]
        scaled: dict[str, Any] = {name: getattr(self, name) * ratio for name in _SCALED}
        return dataclasses.replace(self, precision=precision, **scaled)

    def without_empty_layers(self) -> Self:
        """Return the profile with each layer that has no parameters merged into the one before it.

        Empty layers at the start go to the first layer with parameters. A merged layer has the name of the one with
        parameters, the sums of work and memory, and the output of its last part.
        """
        owners = np.flatnonzero(self.parameter_bytes > 0)
        if owners.size == 0:
            raise InvalidProblemError(f"{self.name}: no layer has parameters, expected at least one that has")
        starts = np.concatenate(([0], owners[1:]))
        ends = np.concatenate((owners[1:], [self.num_layers])) - 1
        merged: dict[str, Any] = {name: np.add.reduceat(getattr(self, name), starts) for name in _ARRAYS}
        merged["activation_bytes"] = self.activation_bytes[ends]
        return dataclasses.replace(self, layer_names=tuple(self.layer_names[i] for i in owners), **merged)

    # --- files ---------------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `json.dumps`."""
        return self._header() | {"arrays": {name: getattr(self, name).tolist() for name in _ARRAYS}}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Build the profile from what `to_json` returned."""
        header = {key: value for key, value in values.items() if key != "arrays"}
        return cls._from_data(header, values.get("arrays"))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the profile to a ``.json`` or ``.npz`` file, atomically; `load` reads it back equal."""
        storage.save(path, self._header(), {name: getattr(self, name) for name in _ARRAYS})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a profile that `save` wrote.

        Raises
        ------
        InvalidFileError
            If the file is no such file; the message names file, field, index, value and what was expected.
        OSError
            If the file cannot be opened.
        """
        header, arrays = storage.load(path, lambda header: dict.fromkeys(_ARRAYS, numbers(1)))
        with in_file(path):
            return cls._from_data(header, arrays)

    def _header(self) -> dict[str, Any]:
        return {
            "kind": _KIND, "schema_version": _SCHEMA_VERSION, "name": self.name, "precision": self.precision,
            "layer_names": list(self.layer_names), "input_bytes": self.input_bytes,
        }  # fmt: skip

    @classmethod
    def _from_data(cls, header: Mapping[str, Any], arrays: object) -> Self:
        given = Fields(header)
        given.expect("kind", _KIND)
        given.expect("schema_version", _SCHEMA_VERSION)
        if not isinstance(arrays, Mapping) or set(arrays) != set(_ARRAYS):
            found = quoted(sorted(map(str, arrays))) if isinstance(arrays, Mapping) else type(arrays).__name__
            raise InvalidProblemError(f"arrays: expected {', '.join(_ARRAYS)}, got {found}")
        precision: Any = given.choice("precision", tuple(_BYTES_PER_VALUE))
        return cls(
            name=given.text("name"),
            precision=precision,
            layer_names=given.texts("layer_names"),
            input_bytes=given.number("input_bytes"),
            **{name: arrays[name] for name in _ARRAYS},
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ModelProfile):
            return NotImplemented
        return self._header() == other._header() and all(
            np.array_equal(getattr(self, name), getattr(other, name)) for name in _ARRAYS
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return (
            f"ModelProfile(name={self.name!r}, num_layers={self.num_layers}, num_parameters={self.num_parameters},"
            f" precision={self.precision!r})"
        )


def model_profile(name: str, precision: Precision = "fp32") -> ModelProfile:
    """Return a profile that comes with the package.

    Parameters
    ----------
    name : one of `BUNDLED_PROFILES`.
    precision : ``fp32``, ``fp16`` or ``int8``.

    Raises
    ------
    InvalidProblemError
        If there is no profile of this name, or no such precision.

    Examples
    --------
    >>> model_profile("resnet18", "fp16")
    ModelProfile(name='resnet18', num_layers=..., num_parameters=11689512, precision='fp16')
    """
    file = by_name("bundled profile", name, {known: f"{known}.json" for known in BUNDLED_PROFILES})
    with resources.as_file(resources.files("edgeopt") / "profile_files" / file) as path:
        return ModelProfile.load(path).with_precision(precision)


def _check_precision(precision: object) -> None:
    if not isinstance(precision, str) or precision not in _BYTES_PER_VALUE:
        raise InvalidProblemError(f"precision = {quoted(precision)}: expected one of {', '.join(_BYTES_PER_VALUE)}")


def _layer_names(names: object) -> tuple[str, ...]:
    if not isinstance(names, list | tuple) or not names:
        raise InvalidProblemError(f"layer_names = {quoted(names)}: expected at least one name")
    before = set[str]()
    for index, name in enumerate(names):
        if not isinstance(name, str) or not name:
            raise InvalidProblemError(f"layer_names[{index}] = {quoted(name)}: expected a name")
        if name in before:
            raise InvalidProblemError(f"layer_names[{index}] = {quoted(name)}: expected distinct names")
        before.add(name)
    return tuple(names)

"""Recordings of several modalities, and the windows that models see of them."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.foreign import as_array
from edgeopt.validate import int_array, integer


class Modality(NamedTuple):
    """What one modality brings in a step of time.

    Parameters
    ----------
    name : of the modality.
    samples : per step of time; 1 for what is read once a step.
    channels : of a sample.
    """

    name: str
    samples: int
    channels: int

    @property
    def values(self) -> int:
        """Numbers of a step."""
        return self.samples * self.channels


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """Windows of T steps, cut out of recordings.

    Parameters
    ----------
    signals : by modality float32 [n, T, samples, channels]; NaN is a missing sample.
    labels : int64 [n, T], the class at each step.
    subject : int64 [n], whose recording it is.
    num_classes : classes K.
    """

    signals: dict[str, NDArray[np.float32]]
    labels: NDArray[np.int64]
    subject: NDArray[np.int64]
    num_classes: int

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Windows({len(self)} of {self.labels.shape[1]} steps, {', '.join(self.signals)}, {self.num_classes} classes)"

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """What each modality brings in a step."""
        return tuple(Modality(name, *values.shape[2:]) for name, values in self.signals.items())

    def take(self, indices: ArrayLike) -> "Windows":
        """Return the windows with these numbers, in this order, as copies.

        Parameters
        ----------
        indices : int [m], each from 0 to n - 1.
        """
        rows = int_array("indices", indices, (None,), low=0, high=len(self) - 1, dtype=np.int64)
        signals = {name: values[rows] for name, values in self.signals.items()}
        return replace(self, signals=signals, labels=self.labels[rows], subject=self.subject[rows])

    def without(self, names: Iterable[str]) -> "Windows":
        """Return the windows with some modalities missing throughout."""
        hidden = {_known(name, self.signals) for name in names}
        signals = {
            name: np.full_like(values, np.nan) if name in hidden else values for name, values in self.signals.items()
        }
        return replace(self, signals=signals)


@dataclass(frozen=True, slots=True, eq=False)
class Recordings:
    """Recordings of S subjects over T steps of time.

    Parameters
    ----------
    signals : by modality [S, T * samples, channels], numbers; NaN is a missing sample. How many samples a step has
        follows from the length, and may differ from modality to modality.
    labels : int [S, T], the class at each step, from 0; or [S], that of the whole recording, with `steps`.
    steps : T, where labels do not say it.
    num_classes : classes K. Default: the largest label plus one.

    Raises
    ------
    InvalidProblemError
        Naming the modality, if lengths or subjects do not fit, if a number is infinite, or if a modality is never there.

    Examples
    --------
    >>> made = Recordings({"ecg": np.zeros((2, 40, 1)), "car": np.zeros((2, 10, 6))}, np.zeros((2, 10), int))
    >>> made.modalities
    (Modality(name='ecg', samples=4, channels=1), Modality(name='car', samples=1, channels=6))
    >>> made.windows(4, stride=2)
    Windows(8 of 4 steps, ecg, car, 1 classes)
    """

    signals: Mapping[str, ArrayLike]
    labels: ArrayLike
    steps: int | None = None
    num_classes: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.signals, Mapping) or not self.signals:
            raise InvalidProblemError("signals: expected arrays [subject, time, channels] by modality")
        labels = as_array("labels", self.labels)
        if self.steps is not None and labels.ndim == 1:
            labels = np.repeat(labels[:, None], integer("steps", self.steps, low=1), axis=1)
        labels = int_array("labels", labels, (None, self.steps), low=0, dtype=np.int64)
        subjects, steps = labels.shape
        if not subjects or not steps:
            raise InvalidProblemError(f"labels: shape {list(labels.shape)}: expected at least one subject and one step")
        least = int(labels.max()) + 1
        classes = least if self.num_classes is None else integer("num_classes", self.num_classes, low=least)
        signals = {}
        for name, given in self.signals.items():
            values = as_array(f"signals[{name!r}]", given)
            if values.ndim != 3 or values.dtype.kind not in "biuf" or 0 in values.shape:
                raise InvalidProblemError(
                    f"signals[{name!r}]: {values.dtype} of shape {list(values.shape)}: expected numbers "
                    "[subject, time, channels], none of them 0"
                )
            if len(values) != subjects:
                raise InvalidProblemError(f"signals[{name!r}]: {len(values)} subjects, labels have {subjects}")
            if values.shape[1] % steps:
                raise InvalidProblemError(
                    f"signals[{name!r}]: {values.shape[1]} samples for {steps} steps: expected the same number in each step"
                )
            values = values.astype(np.float32)
            if np.isinf(values).any():
                where = [int(i) for i in np.argwhere(np.isinf(values))[0]]
                raise InvalidProblemError(
                    f"signals[{name!r}]{where}: infinite: expected a number, or NaN where there is none"
                )
            if np.isnan(values).all():
                raise InvalidProblemError(f"signals[{name!r}]: never there: expected a sample that is not NaN")
            values.flags.writeable = False
            signals[name] = values
        for field, value in (("signals", signals), ("labels", labels), ("steps", steps), ("num_classes", classes)):
            object.__setattr__(self, field, value)

    def __repr__(self) -> str:
        names = ", ".join(self.signals)
        return f"Recordings({self.num_subjects} subjects, {self.steps} steps, {names}, {self.num_classes} classes)"

    @property
    def num_subjects(self) -> int:
        """Subjects, S."""
        return len(self.labels)  # type: ignore[arg-type]

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """What each modality brings in a step."""
        steps = self.steps or 1
        return tuple(
            Modality(name, values.shape[1] // steps, values.shape[2])
            for name, values in ((name, np.asarray(values)) for name, values in self.signals.items())
        )

    def windows(
        self,
        length: int,
        *,
        stride: int | None = None,
        subjects: ArrayLike | None = None,
        span: tuple[float, float] = (0.0, 1.0),
    ) -> Windows:
        """Cut recordings into windows, by subject and then by time; what does not fill one at the end is left out.

        Parameters
        ----------
        length : steps of a window, not more than the part of a recording that it is cut from.
        stride : steps from the start of one to the next. Default: `length`.
        subjects : int [m], whose. Default: all.
        span : part of the recording, as shares of it.

        Raises
        ------
        InvalidProblemError
            If no window fits.
        """
        labels, total = np.asarray(self.labels), int(self.steps or 1)
        length = integer("length", length, low=1)
        stride = integer("stride", length if stride is None else stride, low=1)
        low, high = span
        if not 0 <= low < high <= 1:
            raise InvalidProblemError(f"span = {span}: expected two shares from 0 to 1, the lower first")
        first, last = math.ceil(low * total - 1e-9), math.floor(high * total + 1e-9)
        if length > last - first:
            raise InvalidProblemError(f"length = {length}: expected at most {last - first} steps, those of a recording")
        everyone = np.arange(self.num_subjects)
        own = everyone if subjects is None else subjects
        own = int_array("subjects", own, (None,), low=0, high=self.num_subjects - 1, dtype=np.int64)
        starts = np.arange(first, last - length + 1, stride)
        at = starts[:, None] + np.arange(length)  # (windows of a subject, T)
        signals = {}
        for modality in self.modalities:
            values = np.asarray(self.signals[modality.name])[own]
            steps = values.reshape(len(own), total, modality.samples, modality.channels)
            signals[modality.name] = steps[:, at].reshape(-1, length, modality.samples, modality.channels)
        return Windows(
            signals, labels[own][:, at].reshape(-1, length), np.repeat(own, len(starts)), int(self.num_classes or 1)
        )


def _known(name: str, signals: Mapping[str, object]) -> str:
    if name not in signals:
        raise InvalidProblemError(f"no modality {quoted(name)}: expected one of {', '.join(signals)}")
    return name

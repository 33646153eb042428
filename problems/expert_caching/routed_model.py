"""`RoutedModel`: which sets of experts a router activates, per user profile."""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeopt.display import one_line
from edgeopt.errors import InvalidProblemError
from edgeopt.fields import check_table
from edgeopt.validate import float32_rounding, float_array, int_array, sums_to

Latency = Literal["sum", "max", "mix"]
"""What a set of experts takes: the sum of their times, the maximum, or a mixture of the two."""
SUM_TOLERANCE = 1e-6  # by how much the probabilities of a layer may miss one


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RoutedModel:
    """Routing statistics of one mixture-of-experts model.

    Probabilities are kept as a sparse matrix in CSR form over (profile, activation set): ``sets[indices[k]]`` for k in
    ``indptr[p]:indptr[p + 1]`` are the sets that profile p activates. A profile is a way of using the model, shared by
    any number of users.

    Parameters
    ----------
    name : name of the model.
    expert_layer : int32 [E], the MoE layer of each expert, ascending from 0.
    expert_bytes : float64 [E] or scalar, size of each expert in bytes (or any unit that the storage uses too).
    sets : int32 [A, K], the activation sets: K distinct experts of one layer each, ids ascending.
    indptr : int64 [P + 1], start of each profile's entries.
    indices : int32 [nnz], activation set of each entry.
    probability : float64 [nnz], probability that a token of the profile activates the set; they sum to one in each
        layer of each profile.

    Raises
    ------
    InvalidProblemError
        If an array has the wrong shape or range, a set repeats an expert or spans layers, or a sum is not one.

    Examples
    --------
    >>> RoutedModel(name="one layer, two experts", expert_layer=[0, 0], expert_bytes=8.0, sets=[[0], [1]],
    ...             indptr=[0, 2], indices=[0, 1], probability=[0.25, 0.75]).uses
    array([[0.25, 0.75]])
    """

    name: str
    expert_layer: NDArray[np.int32]
    expert_bytes: NDArray[np.float64]
    sets: NDArray[np.int32]
    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    probability: NDArray[np.float64]
    uses: NDArray[np.float64] = field(init=False, repr=False)
    """float64 [P, E], expected uses of each expert per token of each profile."""

    __repr__ = one_line

    def __post_init__(self) -> None:
        layer = int_array("expert_layer", self.expert_layer, (None,), low=0)
        steps = np.diff(layer, prepend=-1)
        if layer.size == 0:
            raise InvalidProblemError("expert_layer: expected at least one expert")
        if (bad := np.flatnonzero((steps < 0) | (steps > 1))).size:
            raise InvalidProblemError(
                f"expert_layer[{bad[0]}] = {layer[bad[0]]}: expected layers to ascend from 0 without holes"
            )
        count = layer.size
        size = float_array("expert_bytes", self.expert_bytes, (count,), positive=True, ranged=True, unit="bytes")
        sets = int_array("sets", self.sets, (None, None), low=0, high=count - 1)
        self._check_sets(sets, layer)
        indptr = int_array("indptr", self.indptr, (None,), low=0, dtype=np.int64)
        check_table("profiles x experts", max(indptr.size - 1, 0), count)
        indices = int_array("indices", self.indices, (None,), low=0, high=sets.shape[0] - 1)
        probability = float_array("probability", self.probability, indices.shape, nonnegative=True, ranged=True)
        if indptr.size < 2 or indptr[0] != 0 or indptr[-1] != indices.size or (np.diff(indptr) < 0).any():
            raise InvalidProblemError(
                f"indptr: expected profile starts ascending from 0 to {indices.size}, at least one profile"
            )
        for name, value in (
            ("expert_layer", layer), ("expert_bytes", size), ("sets", sets), ("indptr", indptr),
            ("indices", indices), ("probability", probability), ("uses", _uses(count, sets, indptr, indices, probability)),
        ):  # fmt: skip
            object.__setattr__(self, name, value)
        self._check_sums()

    @staticmethod
    def _check_sets(sets: NDArray[np.int32], layer: NDArray[np.int32]) -> None:
        if sets.shape[1] == 0:
            raise InvalidProblemError("sets: expected at least one expert per set, got 0 columns")
        widest = int(np.bincount(layer).max())
        if sets.shape[1] > widest:
            raise InvalidProblemError(f"sets: K = {sets.shape[1]} experts per set, but a layer has at most {widest}")
        if (bad := np.flatnonzero((np.diff(sets, axis=1) <= 0).any(axis=1))).size:
            raise InvalidProblemError(f"sets[{bad[0]}] = {sets[bad[0]].tolist()}: expected distinct experts, ascending")
        layers = layer[sets]
        if (bad := np.flatnonzero((layers != layers[:, :1]).any(axis=1))).size:
            raise InvalidProblemError(f"sets[{bad[0]}] = {sets[bad[0]].tolist()}: expected experts of one layer")

    def _check_sums(self) -> None:
        sums = np.zeros((self.num_profiles, self.num_layers))
        np.add.at(sums, (self.entry_profile, self.expert_layer[self.sets[self.indices, 0]]), self.probability)
        most = int(np.diff(self.indptr).max(initial=0))
        if (bad := np.argwhere(np.abs(sums - 1) > max(SUM_TOLERANCE, float32_rounding(self.probability, most)))).size:
            profile, layer = bad[0]
            raise InvalidProblemError(
                f"probability: profile {profile}, layer {layer} {sums_to(sums[profile, layer])}, expected 1"
            )

    @property
    def num_experts(self) -> int:
        """Experts over all layers."""
        return self.expert_layer.size

    @property
    def num_layers(self) -> int:
        """MoE layers."""
        return int(self.expert_layer[-1]) + 1

    @property
    def num_profiles(self) -> int:
        """Profiles."""
        return self.indptr.size - 1

    @property
    def top_k(self) -> int:
        """Experts activated per token and layer."""
        return int(self.sets.shape[1])

    @property
    def entry_profile(self) -> NDArray[np.int64]:
        """int64 [nnz], the profile of each entry."""
        return np.repeat(np.arange(self.num_profiles), np.diff(self.indptr))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RoutedModel):
            return NotImplemented
        names = ("expert_layer", "expert_bytes", "sets", "indptr", "indices", "probability")
        return self.name == other.name and all(np.array_equal(getattr(self, n), getattr(other, n)) for n in names)

    __hash__ = None  # type: ignore[assignment]


def _uses(
    num_experts: int,
    sets: NDArray[np.int32],
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    probability: NDArray[np.float64],
) -> NDArray[np.float64]:
    uses = np.zeros((indptr.size - 1, num_experts))
    for p in range(indptr.size - 1):
        entries = slice(indptr[p], indptr[p + 1])
        weights: Any = np.repeat(probability[entries], sets.shape[1])
        uses[p] = np.bincount(sets[indices[entries]].ravel(), weights=weights, minlength=num_experts)
    uses.flags.writeable = False
    return uses

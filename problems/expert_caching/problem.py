"""Expert caching: which experts of mixture-of-experts models each edge server keeps, under its storage."""

import dataclasses
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from edgeopt import storage
from edgeopt.built import Built
from edgeopt.display import one_line
from edgeopt.errors import InvalidFileError, InvalidProblemError, quoted
from edgeopt.fields import Fields, check_table
from edgeopt.npz import numbers
from edgeopt.problem import Problem, Sense, Violation
from edgeopt.problems.expert_caching.build import facility_fields, random_fields, trace_fields
from edgeopt.problems.expert_caching.placement import Placement
from edgeopt.problems.expert_caching.routed_model import SUM_TOLERANCE, Latency, RoutedModel
from edgeopt.validate import float_array, int_array, listed, probabilities, real

if TYPE_CHECKING:
    from edgeopt.modelling import GenericModel

STORAGE_TOLERANCE = 1e-12  # relative


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheReport:
    """What a placement means for the users.

    Parameters
    ----------
    latency_s : mean seconds per token spent on experts, weighted over users (evenly if no user has any weight).
    latency_without_cache_s : the same with nothing cached at the edge.
    hit_ratio : share of expert uses served by each tier: ``device``, ``own server``, ``other server``, ``cloud``.
    storage_used : float64 [N], bytes used on each server.
    """

    latency_s: float
    latency_without_cache_s: float
    hit_ratio: dict[str, float]
    storage_used: NDArray[np.float64]

    __repr__ = one_line


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class ExpertCaching(Problem):
    r"""Place the experts of mixture-of-experts models on edge servers.

    Maximise the expected seconds saved per token, summed over users,

    .. math:: F(x) = \sum_u a_u \sum_m q_{um} \sum_l \sum_A p_{uml}(A) [Lat_A(\emptyset) - Lat_A(x)]

    subject to :math:`\sum_e s_e x_{ne} \le Q_n` on each server n. An expert e takes user u the time
    :math:`t_{ue}(x)` = device time if the device holds e, else the least of the cloud and the servers that hold e;
    a set A takes :math:`Lat_A` = their ``sum``, their ``max``, or ``mix``: (1 - theta) sum + theta K max.
    Our formulation, after SlimCaching (arXiv 2507.06567).

    ===========  =======================================  ===================
    symbol       field                                    unit
    ===========  =======================================  ===================
    a[u]         ``user_weight``                          any (traffic)
    q[u, m]      ``request``                              probability
    p[u, m, l]   ``models[m]``, row ``profile[u, m]``     probability
    s[e]         ``expert_bytes``                         byte
    Q[n]         ``storage_bytes``                        byte
    tau[u, n]    ``server_latency_s[m, u, n]``            s per token, expert
    tau[u, 0]    ``cloud_latency_s[m, u]``                s per token, expert
    C_u          ``device_experts``                       expert ids
    ===========  =======================================  ===================

    Parameters
    ----------
    models : the M models; experts are numbered through all of them in this order, E in total.
    storage_bytes : float64 [N], storage of each server.
    request : float64 [U, M], probability that a token of user u belongs to model m; rows sum to one.
    profile : int32 [U, M], the row of ``models[m]`` that describes user u.
    server_latency_s : float64 [M, U, N], seconds for one token and one expert of model m; inf if out of reach.
    cloud_latency_s : float64 [M, U], the same at the cloud; finite.
    device_latency_s : float64 [M, U], the same on the device itself.
    device_indptr, device_experts : the experts that each device holds: user u holds
        ``device_experts[device_indptr[u]:device_indptr[u + 1]]``. Default: none.
    user_weight : float64 [U], how much each user counts. Default 1.
    access_server : int32 [U], the server a user is attached to, -1 for none: only for the hit ratio per tier.
    latency : ``sum``, ``max`` or ``mix``.
    theta : share of the maximum in ``mix``, in [0, 1].

    Raises
    ------
    InvalidProblemError
        Naming field, index, value and what was expected.

    Examples
    --------
    >>> problem = ExpertCaching.from_facility(gain=[[1.0, 0.0], [1.01, 1.0]], weight=[[1.0, 0.0], [0.0, 1.0]],
    ...                                       size=[1, 1], capacity=[1, 1])
    >>> problem.objective(Placement([[True, False], [False, True]]))
    2.0
    """

    kind: ClassVar[str] = "expert-caching"
    sense: ClassVar[Sense] = "max"

    models: tuple[RoutedModel, ...]
    storage_bytes: NDArray[np.float64]
    request: NDArray[np.float64]
    profile: NDArray[np.int32]
    server_latency_s: NDArray[np.float64]
    cloud_latency_s: NDArray[np.float64]
    device_latency_s: NDArray[np.float64]
    device_indptr: NDArray[np.int64] | None = None
    device_experts: NDArray[np.int32] | None = None
    user_weight: NDArray[np.float64] | float = 1.0
    access_server: NDArray[np.int32] | None = None
    latency: Latency = "sum"
    theta: float = 0.5

    def __post_init__(self) -> None:
        models = tuple(listed("models", self.models, single=RoutedModel))
        if not models:
            raise InvalidProblemError("models: expected at least one model")
        for m, model in enumerate(models):
            if not isinstance(model, RoutedModel):
                raise InvalidProblemError(f"models[{m}]: expected a RoutedModel, got {quoted(model)}")
        storage_bytes = float_array(
            "storage_bytes", self.storage_bytes, (None,), nonnegative=True, ranged=True, unit="bytes"
        )
        if storage_bytes.size == 0:
            raise InvalidProblemError("storage_bytes: expected at least one server")
        request = probabilities("request", self.request, (None, len(models)), tolerance=SUM_TOLERANCE, ranged=True)
        num_users, num_servers = request.shape[0], storage_bytes.size
        if num_users == 0:
            raise InvalidProblemError("request: expected at least one user")
        profile = int_array("profile", self.profile, (num_users, len(models)), low=0)
        for m, model in enumerate(models):
            if (bad := np.flatnonzero(profile[:, m] >= model.num_profiles)).size:
                raise InvalidProblemError(
                    f"profile[{bad[0]}, {m}] = {profile[bad[0], m]}: {model.name} has {model.num_profiles} profiles"
                )
        shape = (len(models), num_users)
        server = float_array(  # inf means out of reach
            "server_latency_s", self.server_latency_s, (*shape, num_servers),
            nonnegative=True, finite=False, ranged=True, unit="s",
        )  # fmt: skip
        total = sum(model.num_experts for model in models)
        check_table("users x experts", num_users, total)
        check_table("servers x experts", num_servers, total)
        if (none := self.device_indptr is None) != (self.device_experts is None):
            raise InvalidProblemError("device_indptr, device_experts: expected both or neither")
        held = int_array("device_experts", [] if none else self.device_experts, (None,), low=0, high=total - 1)
        start = np.zeros(num_users + 1, np.int64) if none else self.device_indptr
        indptr = int_array("device_indptr", start, (num_users + 1,), low=0, high=held.size, dtype=np.int64)
        if indptr[0] != 0 or indptr[-1] != held.size or (np.diff(indptr) < 0).any():
            raise InvalidProblemError(f"device_indptr: expected starts ascending from 0 to {held.size}")
        access = np.full(num_users, -1) if self.access_server is None else self.access_server
        if self.latency not in ("sum", "max", "mix"):
            raise InvalidProblemError(f"latency = {quoted(self.latency)}: expected 'sum', 'max' or 'mix'")
        theta = real("theta", self.theta)
        if not 0 <= theta <= 1:
            raise InvalidProblemError(f"theta = {quoted(theta)}: expected a number from 0 to 1")
        checked = {
            "models": models,
            "storage_bytes": storage_bytes,
            "request": request,
            "profile": profile,
            "server_latency_s": server,
            "cloud_latency_s": float_array(
                "cloud_latency_s", self.cloud_latency_s, shape, nonnegative=True, ranged=True, unit="s"
            ),
            "device_latency_s": float_array(
                "device_latency_s", self.device_latency_s, shape, nonnegative=True, ranged=True, unit="s"
            ),
            "device_indptr": indptr,
            "device_experts": held,
            "user_weight": float_array("user_weight", self.user_weight, (num_users,), nonnegative=True, ranged=True),
            "access_server": int_array("access_server", access, (num_users,), low=-1, high=num_servers - 1),
            "theta": theta,
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    # --- shape -------------------------------------------------------------------------------------------------

    @property
    def num_servers(self) -> int:
        """Servers, N."""
        return self.storage_bytes.size

    @property
    def num_users(self) -> int:
        """Users, U."""
        return int(self.request.shape[0])

    @property
    def num_experts(self) -> int:
        """Experts over all models, E."""
        return sum(model.num_experts for model in self.models)

    @property
    def top_k(self) -> int:
        """Largest number of experts activated per token and layer over the models, K."""
        return max(model.top_k for model in self.models)

    @property
    def is_modular_per_set(self) -> bool:
        """Whether the saving of a set is the sum over its experts: K = 1 or latency ``sum``, or no maximum in ``mix``."""
        return self.latency == "sum" or self.top_k == 1 or (self.latency == "mix" and self.theta == 0)

    @property
    def expert_bytes(self) -> NDArray[np.float64]:
        """float64 [E], size of every expert in bytes."""
        return np.concatenate([model.expert_bytes for model in self.models])

    @property
    def storage_limit(self) -> NDArray[np.float64]:
        """float64 [N], what counts as fitting: the storage and 1e-12 of it for rounding in sums of sizes."""
        return np.asarray(self.storage_bytes * (1 + STORAGE_TOLERANCE))

    @property
    def expert_model(self) -> NDArray[np.int32]:
        """int32 [E], the model of every expert."""
        return np.repeat(np.arange(len(self.models), dtype=np.int32), [model.num_experts for model in self.models])

    @property
    def first_expert(self) -> NDArray[np.int64]:
        """int64 [M + 1], the first expert of each model, and E."""
        return np.concatenate([[0], np.cumsum([model.num_experts for model in self.models])])

    @property
    def expert_group(self) -> NDArray[np.int32]:
        """int32 [E], the (model, layer) group of every expert, numbered through all models."""
        starts = np.cumsum([0, *(model.num_layers for model in self.models[:-1])])
        groups = [model.expert_layer + start for model, start in zip(self.models, starts, strict=True)]
        return np.concatenate(groups).astype(np.int32)

    @property
    def gain_s(self) -> NDArray[np.float64]:
        """float64 [M, U, N], seconds that server n saves user u on one expert of model m against the cloud, >= 0."""
        return np.maximum(0.0, self.cloud_latency_s[:, :, None] - self.server_latency_s)

    def holds(self, user: int) -> NDArray[np.int32]:
        """Return the ids of the experts that a user's device holds."""
        assert self.device_indptr is not None  # set by __post_init__
        assert self.device_experts is not None
        return self.device_experts[self.device_indptr[user] : self.device_indptr[user + 1]]

    def device_mask(self) -> NDArray[np.bool_]:
        """Return bool [U, E]: whether the device of user u holds expert e."""
        assert self.device_indptr is not None
        assert self.device_experts is not None
        mask = np.zeros((self.num_users, self.num_experts), bool)
        mask[np.repeat(np.arange(self.num_users), np.diff(self.device_indptr)), self.device_experts] = True
        return mask

    # --- truth -------------------------------------------------------------------------------------------------

    def objective(self, solution: Placement) -> float:
        """Return F(x): expected seconds saved per token, summed over the weighted users."""
        self._check_shape(solution)
        return float(self.user_weight @ self._saving_per_user(solution))

    def violations(self, solution: Placement) -> tuple[Violation, ...]:
        """Return the servers whose storage is exceeded, with the excess in bytes."""
        self._check_shape(solution)
        used = self.storage_used(solution)
        excess = used - self.storage_bytes
        over = np.flatnonzero(used > self.storage_limit)
        return tuple(
            Violation(
                "storage",
                int(n),
                float(excess[n]),
                f"server {n} holds {used[n]:.6g} bytes of experts, its storage is {self.storage_bytes[n]:.6g}",
            )
            for n in over
        )

    def storage_used(self, solution: Placement) -> NDArray[np.float64]:
        """Return float64 [N]: bytes used on each server."""
        return solution.cached.astype(np.float64) @ self.expert_bytes

    def report(self, solution: Placement) -> CacheReport:
        """Return mean latency per token, hit ratio per tier and storage used."""
        self._check_shape(solution)
        before = np.zeros(self.num_users)
        tiers = np.zeros(4)
        mask = self.device_mask()
        servers = np.arange(self.num_servers)
        for m, model in enumerate(self.models):
            experts = slice(self.first_expert[m], self.first_expert[m + 1])
            base = self._base_latency(m, mask[:, experts])
            before += self.request[:, m] * self._layer_latency(m, base)
            own = self.access_server[:, None] == servers  # type: ignore[index]
            gain = self.gain_s[m]
            best = self._best_gain(m, solution)
            best_own = self._best_gain(m, solution, np.where(own, gain, 0.0))
            uses = self.user_weight[:, None] * self.request[:, [m]] * model.uses[self.profile[:, m]]  # type: ignore[index]
            device = mask[:, experts]
            at_own = ~device & (best > 0) & (best_own == best)
            tiers += [
                uses[device].sum(),
                uses[at_own].sum(),
                uses[~device & (best > 0) & ~at_own].sum(),
                uses[~device & (best <= 0)].sum(),
            ]
        weight = self._shares(self.user_weight)
        without = float(weight @ before)
        names = ("device", "own server", "other server", "cloud")
        return CacheReport(
            latency_s=without - float(weight @ self._saving_per_user(solution)),
            latency_without_cache_s=without,
            hit_ratio={name: float(share) for name, share in zip(names, self._shares(tiers), strict=True)},
            storage_used=self.storage_used(solution),
        )

    @staticmethod
    def _shares(weight: Any) -> NDArray[np.float64]:
        """Return weights that sum to one; even ones if nothing has any weight."""
        total = float(weight.sum())
        return np.asarray(weight / total if total > 0 else np.full(weight.shape, 1.0 / weight.size))

    def _check_shape(self, solution: Placement) -> None:
        if not isinstance(solution, Placement):
            raise InvalidProblemError(f"solution: expected a Placement, got {type(solution).__name__}")
        if solution.cached.shape != (self.num_servers, self.num_experts):
            raise InvalidProblemError(
                f"cached: expected shape [{self.num_servers}, {self.num_experts}], got {list(solution.cached.shape)}"
            )

    def _saving_per_user(self, solution: Placement) -> NDArray[np.float64]:
        saved = np.zeros(self.num_users)
        mask = self.device_mask()
        for m in range(len(self.models)):
            device = mask[:, self.first_expert[m] : self.first_expert[m + 1]]
            if self.is_modular_per_set:
                per_user = self._modular_saving(m, solution, device)
            else:
                saving = self._best_gain(m, solution)
                saving[device] = 0.0
                per_user = self._expected_saving(m, self._base_latency(m, device), saving)
            saved += self.request[:, m] * per_user
        return saved

    def _holders(self, m: int, solution: Placement) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the servers that hold each expert of a model, in CSR form."""
        cached = solution.cached[:, self.first_expert[m] : self.first_expert[m + 1]]
        experts, servers = np.nonzero(cached.T)
        return np.searchsorted(experts, np.arange(cached.shape[1] + 1)), servers

    def _best_gain(self, m: int, solution: Placement, gain: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        from edgeopt.problems.expert_caching.kernels import best_gain  # late: numba takes 0.3 s to import

        gain = self.gain_s[m] if gain is None else gain
        best: NDArray[np.float64] = best_gain(*self._holders(m, solution), np.ascontiguousarray(gain))
        return best

    def _modular_saving(self, m: int, solution: Placement, device: NDArray[np.bool_]) -> NDArray[np.float64]:
        from edgeopt.problems.expert_caching.kernels import modular_saving  # late, as above

        by_server, profile = np.ascontiguousarray(self.gain_s[m].T), self.profile[:, m].astype(np.int64)
        uses = np.ascontiguousarray(self.models[m].uses)
        saved: NDArray[np.float64] = modular_saving(
            *self._holders(m, solution), by_server, uses, profile, np.ascontiguousarray(device)
        )
        return saved

    def _base_latency(self, m: int, device: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return [U, E_m]: seconds per expert with no edge cache."""
        return np.asarray(np.where(device, self.device_latency_s[m][:, None], self.cloud_latency_s[m][:, None]))

    def _layer_latency(self, m: int, latency: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return [U]: expected seconds per token over all layers when expert e takes user u ``latency[u, e]``."""
        return self._expected_saving(m, latency, latency)

    def _expected_saving(self, m: int, base: NDArray[np.float64], saving: NDArray[np.float64]) -> NDArray[np.float64]:
        from edgeopt.problems.expert_caching.kernels import expected_saving

        model = self.models[m]
        theta = {"sum": 0.0, "max": -1.0, "mix": self.theta}[self.latency]
        profile = self.profile[:, m].astype(np.int64)
        return expected_saving(base, saving, profile, model.indptr, model.indices, model.probability, model.sets, theta)

    def solution_from_json(self, document: dict[str, Any]) -> Placement:
        """Return the placement that `Placement.to_json` wrote."""
        cached = Fields(document, "solution: ").entries("cached", "one list of expert ids per server")
        if len(cached) != self.num_servers:
            raise InvalidProblemError(
                f"solution: cached: {len(cached)} lists, expected {self.num_servers}, one per server"
            )
        return Placement.from_lists(cached, self.num_experts)

    # --- models to take along ----------------------------------------------------------------------------------

    def to_cvxpy(self) -> "GenericModel[Placement]":
        r"""Return the problem as a mixed-integer linear programme in cvxpy, to be solved with constraints of one's own.

        .. math:: \max \sum_t v_t y_t, \quad y_t \le z_{S e} \; (e \in R_t), \quad z_{Se} \le \sum_{n \in S} x_{ne},
            \quad \sum_e s_e x_{ne} \le Q_n, \quad x \in \{0, 1\}

        Exact for every K and latency: a user saves step by step over his servers by latency, a set of experts by those
        that the device lacks, see `Terms`. Variables: ``cached`` x [N, E], ``held`` z and ``together`` y, where there are any.
        Constraints: ``storage`` [N], in sizes of the largest expert, ``fits``, ``some server holds it``, ``all of the set are held``.

        Examples
        --------
        >>> problem = ExpertCaching.random(num_servers=2, num_users=3, num_layers=1, experts_per_layer=4, seed=1)
        >>> model = problem.to_cvxpy()
        >>> cached = model.variables["cached"]
        >>> model = model.with_constraints(one_of_a_kind=cached[0] + cached[1] <= 1)  # no expert on both servers
        >>> _ = model.problem.solve(solver="HIGHS")
        >>> bool(abs(problem.objective(model.solution()) - model.value) < 1e-9)
        True
        """
        from edgeopt.problems.expert_caching.modelling import generic_model

        return generic_model(self)

    def write_mps(self, path: str | os.PathLike[str]) -> None:
        """Write the programme of `to_cvxpy` as an MPS file, sizes in bytes, for any solver of mixed-integer programmes.

        Column ``cached_N_E`` is 1 if server N holds expert E.
        """
        from edgeopt.problems.expert_caching.modelling import linear_programme

        linear_programme(self).write(path)

    # --- plumbing ----------------------------------------------------------------------------------------------

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed, validated anew."""
        return dataclasses.replace(self, **changes)

    def tiny_like(self) -> Self:
        """Return a tiny problem of the same latency mode: what solvers warm up on."""
        return type(self).random(num_servers=4, num_users=4, latency=self.latency, theta=self.theta)

    def describe(self) -> dict[str, str | int | float]:
        """Return sizes, latency mode and storage as one flat dictionary."""
        mode = f"mix:{self.theta:g}" if self.latency == "mix" else self.latency
        return {
            "kind": self.kind,
            "servers": self.num_servers,
            "users": self.num_users,
            "models": len(self.models),
            "layers": sum(model.num_layers for model in self.models),
            "experts": self.num_experts,
            "top-k": ", ".join(str(model.top_k) for model in self.models),
            "profiles": ", ".join(str(model.num_profiles) for model in self.models),
            "activation sets": sum(model.sets.shape[0] for model in self.models),
            "latency": mode,
            "bytes of all experts": float(self.expert_bytes.sum()),
            "mean storage of a server, bytes": float(self.storage_bytes.mean()),
            "mean storage as a share of all experts": float(self.storage_bytes.mean() / self.expert_bytes.sum()),
            "useful user-server pairs": float((self.gain_s > 0).any(axis=0).mean()),
        }

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ExpertCaching):
            return NotImplemented
        same = (self.models, self.latency, self.theta) == (other.models, other.latency, other.theta)
        return same and all(np.array_equal(getattr(self, n), getattr(other, n)) for n in _ARRAYS)

    __hash__ = None  # type: ignore[assignment]

    def to_data(self) -> tuple[dict[str, Any], storage.Arrays]:
        """Return plain values and named arrays."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        for m, model in enumerate(self.models):
            arrays |= {f"model{m}.{name}": getattr(model, name) for name in _MODEL_ARRAYS}
        names = [model.name for model in self.models]
        return {"latency": self.latency, "theta": self.theta, "models": names}, arrays

    @classmethod
    def from_data(cls, values: dict[str, Any], arrays: storage.Arrays) -> Self:
        """Build the problem from what `to_data` returned."""
        given = Fields(values)
        if missing := [name for name in cls.layout(values) if name not in arrays]:
            raise InvalidFileError(f"{missing[0]}: array is missing")
        models = tuple(
            RoutedModel(name=label, **{name: arrays[f"model{m}.{name}"] for name in _MODEL_ARRAYS})
            for m, label in enumerate(given.texts("models"))
        )
        rest: Any = {name: arrays[name] for name in _ARRAYS}
        latency: Any = given.choice("latency", ("sum", "max", "mix")) if "latency" in given else "sum"
        return cls(models=models, latency=latency, theta=given.number("theta") if "theta" in given else 0.5, **rest)

    @classmethod
    def layout(cls, values: dict[str, Any]) -> storage.Layout:
        """Return which arrays a file may hold: those of the problem, and those of each of its models."""
        count = len(Fields(values).texts("models"))
        return _LAYOUT | {f"model{m}.{name}": form for m in range(count) for name, form in _MODEL_LAYOUT.items()}

    from_facility = Built(facility_fields)
    from_traces = Built(trace_fields)
    random = Built(random_fields)


_LAYOUT = {
    "storage_bytes": numbers(1), "request": numbers(2), "profile": numbers(2), "server_latency_s": numbers(3),
    "cloud_latency_s": numbers(2), "device_latency_s": numbers(2), "device_indptr": numbers(1),
    "device_experts": numbers(1), "user_weight": numbers(1), "access_server": numbers(1),
}  # fmt: skip
_MODEL_LAYOUT = {
    "expert_layer": numbers(1), "expert_bytes": numbers(1), "sets": numbers(2), "indptr": numbers(1),
    "indices": numbers(1), "probability": numbers(1),
}  # fmt: skip
_ARRAYS, _MODEL_ARRAYS = tuple(_LAYOUT), tuple(_MODEL_LAYOUT)

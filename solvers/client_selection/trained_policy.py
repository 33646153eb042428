"""`TrainedPolicy`: what a learner has learned, one network and one conflict model per server. Needs no torch."""

import dataclasses
import os
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from edgeopt.display import one_line
from edgeopt.errors import InvalidFileError, UnsupportedProblemError
from edgeopt.fields import Fields, in_file
from edgeopt.npz import Form, numbers
from edgeopt.problems import ClientSelection
from edgeopt.problems.client_selection.environment import ServerView
from edgeopt.problems.client_selection.instance import Mode
from edgeopt.solvers.client_selection.features import FEATURES, view_features
from edgeopt.solvers.client_selection.forecaster import START, ConflictForecaster
from edgeopt.solvers.client_selection.hmm import CategoricalHMM
from edgeopt.solvers.client_selection.policy import Policy
from edgeopt.solvers.client_selection.reservation import MOST_PHASES, Beliefs, Reservation, phases_by_rule
from edgeopt.solvers.client_selection.reserved_features import (
    RESERVED_FEATURES,
    SHARPNESS,
    one_server,
    own_numbers,
    reserved_features,
)
from edgeopt.storage import Arrays, Layout
from edgeopt.tensors import Shapes, load_tensors, save_tensors

KIND = "selection-policy"
SCHEMA_VERSION = 1
_INCOMPLETE = "not a whole policy: "
_MODEL = ("start", "transition", "emission")
_MODELS = {"models.start": numbers(2), "models.transition": numbers(3), "models.emission": numbers(3)}
_WEIGHTS = {
    f"weights.{name}": Form("f", (3,))
    for name in ("encode", "encode_bias", "own", "context", "mix_bias", "score", "value", "value_bias")
}
LAYOUT = _WEIGHTS | _MODELS
"""The arrays of a policy."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainedPolicy:
    """S policies, one per server; each picks from what its own server sees.

    Parameters
    ----------
    weights : those of `Scorer`, first axis S.
    models : the conflict model of each server; empty if the policy does not forecast conflicts.
    timeout_s : of the problem that it was trained on: latencies are seen as shares of it.
    terms : weights, mode, rounds and phases of that problem, where the policy keeps the beliefs of `reservation`; its
        servers share one network then, and `on` makes it a policy of another problem. None where it does not.
    facts : how it was trained; plain values.
    """

    weights: Arrays
    models: tuple[CategoricalHMM, ...] = ()
    timeout_s: float
    terms: dict[str, Any] | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    __repr__ = one_line

    @property
    def num_servers(self) -> int:
        """Networks: one per server, or one that all servers share."""
        return len(self.weights["encode"])

    def policy(self, server: int, seed: int = 0) -> "ServerPolicy | ReservingPolicy":
        """Return the policy of one server for one episode; the seed decides nothing but what breaks ties, if at all."""
        return ServerPolicy(self, server) if self.terms is None else ReservingPolicy(self, server, seed)

    def on(self, problem: ClientSelection) -> "TrainedPolicy":
        """Return the policy for a problem: where servers share a network, sizes, weights and time-out may be others.

        Raises
        ------
        UnsupportedProblemError
            If every server has a network of its own, and the problem another number of servers.
        """
        self.check(problem)
        if self.terms is None:
            return self
        return dataclasses.replace(self, timeout_s=problem.timeout_s, terms=terms_of(problem))

    def check(self, problem: ClientSelection) -> None:
        """Raise `UnsupportedProblemError` if every server has a network of its own, and the problem other servers."""
        if self.terms is None and problem.num_servers != self.num_servers:
            raise UnsupportedProblemError(
                f"the policy was trained for {self.num_servers} servers, the problem has {problem.num_servers}"
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the policy to a ``.safetensors`` file with a JSON header, atomically."""
        arrays, values = self.to_data()
        save_tensors(path, {"kind": KIND, "schema_version": SCHEMA_VERSION, **values}, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "TrainedPolicy":
        """Read what `save` wrote.

        Raises
        ------
        InvalidFileError
            If the file holds no policy of this version; the message starts with the path.
        """

        def layout(header: dict[str, Any], shapes: Shapes) -> Layout:
            Fields(header).expect("schema_version", SCHEMA_VERSION)
            return policy_layout(header, shapes)

        header, arrays = load_tensors(path, KIND, layout)
        with in_file(path):
            return cls.from_data(header, arrays)

    def to_data(self) -> tuple[Arrays, dict[str, Any]]:
        """Return arrays and plain values that `from_data` turns into an equal policy."""
        arrays = {f"weights.{name}": array for name, array in self.weights.items()}
        if self.models:
            arrays |= {f"models.{name}": np.stack([getattr(m, name) for m in self.models]) for name in _MODEL}
        values = {"timeout_s": self.timeout_s, "facts": self.facts}
        return arrays, values if self.terms is None else values | {"terms": self.terms}

    @classmethod
    def from_data(cls, values: dict[str, Any], arrays: Arrays) -> "TrainedPolicy":
        """Build the policy from what `to_data` returned."""
        policy_layout(values, {name: array.shape for name, array in arrays.items()})
        given = Fields(values, _INCOMPLETE)
        weights = {name.removeprefix("weights."): arrays[name] for name in _WEIGHTS if name in arrays}
        if bad := [name for name, array in weights.items() if not np.isfinite(array).all()]:
            raise InvalidFileError(f"{_INCOMPLETE}weights.{bad[0]}: expected finite numbers")
        models = _models(arrays, len(weights["encode"]))
        return cls(
            weights=weights, models=models, timeout_s=given.number("timeout_s"), terms=_terms(values),
            facts=dict(given.table("facts")),
        )  # fmt: skip


class ServerPolicy(Policy):
    """One server's policy in one episode: it sees its own views, and remembers what they tell about its clients."""

    def __init__(self, trained: TrainedPolicy, server: int) -> None:
        self._weights = {name: array[server] for name, array in trained.weights.items()}
        self._model = trained.models[server] if trained.models else None
        self._timeout_s = trained.timeout_s
        self._forecaster: ConflictForecaster | None = None

    def pick(self, view: ServerView) -> NDArray[np.int64]:
        """Return the clients of highest score, the lowest ids on ties."""
        score = scores_of(self._weights, view_features(view, self._timeout_s, self._forecast(view)))
        return view.clients[np.argsort(-score, kind="stable")[: view.num_picks]]

    def _forecast(self, view: ServerView) -> NDArray[np.float64] | None:
        if self._model is None:
            return None
        if view.round == 0 or self._forecaster is None:
            covered = np.ones((1, len(view.clients)), bool)
            self._forecaster = ConflictForecaster(covered, models=[self._model], refit_every=None)
        else:
            self._forecaster.update(view.outcome[None, None])
        forecast: NDArray[np.float64] = self._forecaster.probability[0, 0]
        return forecast


class ReservingPolicy(Policy):
    """One server's policy in one episode, with the beliefs of `reservation`, from its own views."""

    def __init__(self, trained: TrainedPolicy, server: int, seed: int) -> None:
        assert trained.terms is not None
        self._weights = {name: array[0] for name, array in trained.weights.items()}
        self._terms, self._timeout_s = trained.terms, trained.timeout_s
        self._server, self._seed = server, seed
        self._beliefs: Beliefs | None = None

    def pick(self, view: ServerView) -> NDArray[np.int64]:
        """Return the clients of highest score, the lowest ids on ties."""
        if view.round == 0 or self._beliefs is None:
            terms = {name: value for name, value in self._terms.items() if name != "phases"}
            alone = one_server(terms, len(view.clients), view.num_picks)
            self._beliefs = Beliefs(Reservation(phases=self._terms["phases"]), alone, [self._seed])
            self._own = own_numbers(self._seed, self._server, len(view.clients))
        else:
            self._beliefs.hear_view(view)
        local = view_features(view, self._timeout_s)[None, None]
        features = reserved_features(self._beliefs, local, self._own[None, None])[0, 0]
        score = scores_of(self._weights, features) + SHARPNESS * features[:, -1]
        return view.clients[np.argsort(-score, kind="stable")[: view.num_picks]]


def scores_of(weights: Arrays, features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return scores [n] of features [n, F]: the forward pass of `Scorer` for one server."""
    hidden = np.tanh(features @ weights["encode"] + weights["encode_bias"])
    around = hidden.mean(axis=0) @ weights["context"] + weights["mix_bias"]
    score: NDArray[np.float32] = (np.tanh(hidden @ weights["own"] + around) @ weights["score"])[:, 0]
    return score


def terms_of(problem: ClientSelection) -> dict[str, Any]:
    """Return what beliefs need to know of a problem besides sizes."""
    names = ("latency_weight", "conflict_weight", "fairness_weight", "mode", "rounds")
    return {name: getattr(problem, name) for name in names} | {"phases": phases_by_rule(problem)}


def _terms(values: dict[str, Any]) -> dict[str, Any] | None:
    """Return the terms in the header of a file, checked."""
    if "terms" not in values:
        return None
    given = Fields(values, _INCOMPLETE).table("terms")
    found: dict[str, Any] = {name: given.number(f"{name}_weight") for name in ("latency", "conflict", "fairness")}
    found = {f"{name}_weight": value for name, value in found.items()}
    found |= {"mode": given.choice("mode", get_args(Mode))}
    found |= {"rounds": given.integer("rounds", low=1), "phases": given.integer("phases", low=1, high=MOST_PHASES)}
    return found


def _models(arrays: Arrays, servers: int) -> tuple[CategoricalHMM, ...]:
    """Return the conflict model of each server; none if the file has none."""
    there = [name for name in _MODELS if name in arrays]
    if not there:
        return ()
    if missing := [name for name in _MODELS if name not in there]:
        raise InvalidFileError(f"{_INCOMPLETE}{missing[0]}: array is missing")
    if bad := [name for name in _MODELS if arrays[name].ndim not in (_MODELS[name].dimensions or ())]:
        raise InvalidFileError(
            f"{_INCOMPLETE}{bad[0]}: expected more dimensions, got shape {list(arrays[bad[0]].shape)}"
        )
    if len(counts := {len(arrays[name]) for name in _MODELS}) > 1 or counts != {servers}:
        raise InvalidFileError(f"{_INCOMPLETE}models: expected {servers}, got {' and '.join(map(str, sorted(counts)))}")
    if (symbols := arrays["models.emission"].shape[-1]) != START.emission.shape[1]:
        raise InvalidFileError(f"{_INCOMPLETE}models.emission: {symbols} symbols, expected {START.emission.shape[1]}")
    return tuple(CategoricalHMM(*(arrays[name][server] for name in _MODELS)) for server in range(servers))


def policy_layout(values: dict[str, Any], shapes: Shapes) -> Layout:
    """Return which arrays the file of a policy may hold; refuse a header, or shapes, that no policy has."""
    given = Fields(values, _INCOMPLETE)
    given.table("facts")
    if given.number("timeout_s") <= 0:
        raise given.wrong("timeout_s", "seconds > 0")
    if missing := [name for name in _WEIGHTS if name not in shapes]:
        raise InvalidFileError(f"{_INCOMPLETE}{missing[0]}: array is missing")
    if len(encode := shapes["weights.encode"]) != 3:
        raise InvalidFileError(f"{_INCOMPLETE}weights.encode: expected 3 dimensions, got shape {list(encode)}")
    servers, features, hidden = encode
    reserves = _terms(values) is not None
    if features != (wanted := len(RESERVED_FEATURES if reserves else FEATURES)):
        raise InvalidFileError(f"{_INCOMPLETE}encode: made for {features} features, expected {wanted}")
    if reserves and servers != 1:
        raise InvalidFileError(f"{_INCOMPLETE}encode: {servers} networks, expected one that all servers share")
    expected = {
        "encode": (features, hidden), "encode_bias": (1, hidden), "own": (hidden, hidden),
        "context": (hidden, hidden), "mix_bias": (1, hidden), "score": (hidden, 1), "value": (hidden, 1),
        "value_bias": (1, 1),
    }  # fmt: skip
    for name, shape in expected.items():
        if (found := shapes[f"weights.{name}"]) != (servers, *shape):
            raise InvalidFileError(f"{_INCOMPLETE}{name}: expected shape {[servers, *shape]}, got {list(found)}")
    return LAYOUT

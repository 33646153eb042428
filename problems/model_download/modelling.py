"""Model download as a mixed-integer conic programme in cvxpy, and the part of one user with one model."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import InvalidProblemError
from edgeopt.modelling import GenericModel, cvxpy_module, power_of_two
from edgeopt.problems.model_download.plan import DownloadPlan

Ints = NDArray[np.int64]


class DownloadPart(NamedTuple):
    """One user with one model: the longest that the download may take, and how the layers are then run.

    Parameters
    ----------
    seconds : until the last bit has arrived.
    frequency_hz : float64 [L].
    """

    seconds: float
    frequency_hz: NDArray[np.float64]


def generic_model(problem: Any) -> GenericModel[DownloadPlan]:
    """Return the whole programme, see `ModelDownload.to_cvxpy`."""
    cp: Any = cvxpy_module()
    user, model = (part.astype(np.int64) for part in np.nonzero(problem.allowed))
    if not user.size:
        raise InvalidProblemError("allowed: no user may have any model, so there is nothing to model")
    serve = cp.Variable(user.size, name="serve", boolean=True)
    band = cp.Variable(user.size, name="bandwidth", nonneg=True)
    rate = cp.Variable(user.size, name="rate", nonneg=True)
    worth = problem.value[user, model]
    unit = power_of_two(float(worth.max()) / 100)
    parts = _Parts(cp, problem, user, model, serve)
    by_user = (user == np.arange(problem.num_users)[:, None]).astype(np.float64)
    scale = problem.bandwidth_hz
    # rates in shares of what takes the whole deadline
    full = problem.model_bits[model] / problem.deadline_s[user]
    if problem.snr_hz is None:
        assert problem.spectral_efficiency is not None
        carried = cp.multiply(problem.spectral_efficiency[user] * scale / full, band)
    else:
        snr = problem.snr_hz[user] / scale
        carried = cp.multiply(scale / np.log(2) / full, -cp.rel_entr(band, band + cp.multiply(snr, serve)))
    constraints = {
        "one model": by_user @ serve <= 1,
        "band": cp.sum(band) <= 1,
        "only served": band <= serve,
        "rate": rate <= carried,
        "download": cp.SOC(parts.transfer + rate, cp.vstack([2 * serve, parts.transfer - rate])),
        **parts.constraints,
    }
    variables = {"serve": serve, "bandwidth": band, "rate": rate, **parts.variables}
    if problem.resource_block_hz is not None:
        variables["blocks"] = blocks = cp.Variable(user.size, name="blocks", integer=True)
        constraints["whole blocks"] = band == blocks * (problem.resource_block_hz / scale)

    def read() -> DownloadPlan:
        chosen = np.flatnonzero(np.asarray(serve.value) > 0.5)
        plan_model, hz = np.full(problem.num_users, -1, np.int32), np.zeros(problem.num_users)
        plan_model[user[chosen]] = model[chosen]
        hz[user[chosen]] = np.asarray(band.value)[chosen] * scale
        frequency = [parts.frequency(int(p)) for p in chosen[np.argsort(user[chosen], kind="stable")]]
        return DownloadPlan(model=plan_model, bandwidth_hz=hz, frequency_hz=np.concatenate([np.zeros(0), *frequency]))

    task = cp.Problem(cp.Maximize((worth / unit) @ serve), list(constraints.values()))
    return GenericModel(task, variables, constraints, unit, read)


def part_model(problem: Any, user: int, model: int) -> GenericModel[DownloadPart]:
    """Return the part of one user with one model, see `ModelDownload.to_cvxpy`."""
    cp: Any = cvxpy_module()
    for name, index, count in (("user", user, problem.num_users), ("model", model, problem.num_models)):
        if not 0 <= index < count:
            raise InvalidProblemError(f"{name} = {index}: expected an integer from 0 to {count - 1}")
    if not problem.allowed[user, model]:
        raise InvalidProblemError(
            f"user {user} may not have model {model}: of another task, too large or not accurate enough"
        )
    parts = _Parts(cp, problem, np.array([user]), np.array([model]), np.ones(1))
    task = cp.Problem(cp.Maximize(cp.sum(parts.transfer)), list(parts.constraints.values()))
    unit = float(problem.deadline_s[user])

    def read() -> DownloadPart:
        return DownloadPart(float(np.asarray(parts.transfer.value)[0]) * unit, parts.frequency(0))

    return GenericModel(task, parts.variables, parts.constraints, unit, read)


class _Parts:
    """What every user with every model it may have is limited to by itself: deadline, energy, frequencies.

    Times are shares of the deadline, energies shares of the limit.
    """

    def __init__(self, cp: Any, problem: Any, user: Ints, model: Ints, serve: Any) -> None:
        self._problem, self._user, self._model = problem, user, model
        count = problem.num_layers[model]
        self._first = np.concatenate([[0], np.cumsum(count)])
        pair = np.repeat(np.arange(user.size), count)
        layer = np.concatenate([np.arange(problem.layer_indptr[i], problem.layer_indptr[i + 1]) for i in model])
        who, deadline = user[pair], problem.deadline_s[user[pair]]
        self._cycles = problem.cycles_per_layer_flop[who] * problem.layer_flops[layer]
        self._deadline = deadline
        at = _matrix(pair, user.size)
        served = at @ serve
        self.transfer = cp.Variable(user.size, name="transfer", nonneg=True)
        self._compute = compute = cp.Variable(layer.size, name="compute", nonneg=True)
        # layer j is computed after layer l of the same model if it stands behind it
        after = (pair[:, None] == pair) & (np.arange(layer.size)[:, None] <= np.arange(layer.size))
        fixed = after @ (problem.layer_fixed_s[layer] / deadline)
        bits = problem.prefix_bits[layer] / problem.model_bits[model][pair]
        self.variables = {"transfer": self.transfer, "compute": compute}
        self.constraints: dict[str, Any] = {
            "deadline": cp.multiply(bits, at @ self.transfer)
            + after.astype(np.float64) @ compute
            + cp.multiply(fixed, served)
            <= served
        }
        limited = np.isfinite(problem.energy_j[user])
        receive = problem.receive_j_per_bit[user] * problem.model_bits[model]
        some, share = limited[pair], np.ones(user.size)
        share[limited] = problem.energy_j[user[limited]]
        spend = problem.energy_coefficient[who] * self._cycles / share[pair]  # shares of the limit per Hz^2
        sums = at.T
        if problem.frequency_levels is None:
            top, low = problem.max_frequency_hz[who], problem.min_frequency_hz[who]
            least = self._cycles / top / deadline
            self.constraints["fastest"] = compute >= cp.multiply(least, served)
            self.constraints["slowest"] = compute <= cp.multiply(self._cycles / low / deadline, served)
            used: Any = 0.0
            if some.any():
                busy = np.flatnonzero(some & (self._cycles > 0) & (spend > 0))
                self.variables["energy"] = energy = cp.Variable(layer.size, name="energy", nonneg=True)
                if busy.size:
                    self.constraints["energy of a layer"] = cp.PowCone3D(
                        cp.multiply(1 / (spend * top**2)[busy], energy[busy]),
                        cp.multiply(1 / least[busy], compute[busy]), served[busy], 1 / 3,
                    )  # fmt: skip
                used = sums @ energy
        else:
            levels = problem.frequency_levels
            hz = problem.max_frequency_hz[who][:, None] * levels
            allowed = hz >= problem.min_frequency_hz[who][:, None] * (1 - 1e-9)
            self.variables["level"] = level = cp.Variable((layer.size, levels.size), name="level", boolean=True)
            self._level_hz = hz
            self.constraints["one level"] = cp.sum(level, axis=1) == served
            self.constraints["in range"] = level <= allowed.astype(np.float64)
            self.constraints["time at a level"] = compute == cp.sum(
                cp.multiply(self._cycles[:, None] / hz / deadline[:, None], level), axis=1
            )
            used = sums @ cp.sum(cp.multiply(spend[:, None] * hz**2, level), axis=1)
        if limited.any():
            left = 1 - receive[limited] / problem.energy_j[user[limited]]
            self.constraints["energy"] = used[limited] <= cp.multiply(left, serve[limited])

    def frequency(self, pair: int) -> NDArray[np.float64]:
        """Return the frequencies in Hz of the layers of a pair, within the range of the processor."""
        problem, user = self._problem, self._user[pair]
        layers = slice(self._first[pair], self._first[pair + 1])
        if problem.frequency_levels is not None:
            chosen = np.asarray(self.variables["level"].value)[layers].argmax(axis=1)
            return np.asarray(self._level_hz[layers][np.arange(chosen.size), chosen])
        low, high = float(problem.min_frequency_hz[user]), float(problem.max_frequency_hz[user])
        seconds = np.asarray(self._compute.value)[layers] * self._deadline[layers]
        cycles = self._cycles[layers]
        return np.asarray(np.divide(cycles, seconds, out=np.full_like(cycles, high), where=seconds > 0).clip(low, high))


def _matrix(pair: Ints, count: int) -> NDArray[np.float64]:
    """Return float64 [layers, pairs]: 1 where a layer is of a pair."""
    return np.asarray(pair[:, None] == np.arange(count), np.float64)

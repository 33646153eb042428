"""Split training for one aggregation interval and one limit on the deepest cut, as a mixed-integer linear programme in cvxpy."""

from typing import Any

import numpy as np
from scipy import sparse

from edgeopt.errors import InvalidProblemError
from edgeopt.modelling import GenericModel, cvxpy_module, power_of_two
from edgeopt.problems.split_training.plan import SplitPlan


def generic_model(problem: Any, interval: int, deepest: int, ratio: float) -> GenericModel[SplitPlan]:
    """Return the programme, see `SplitTraining.to_cvxpy`."""
    for name, value, low, high in (
        ("interval", interval, problem.min_interval, problem.max_interval),
        ("deepest", deepest, 1, problem.num_layers),
    ):
        if not low <= value <= high:
            raise InvalidProblemError(f"{name} = {value}: expected an integer from {low} to {high}")
    cp: Any = cvxpy_module()
    limit = problem.batch_limit[:, :deepest]
    device, cut = (np.repeat(index, limit.ravel()) for index in np.indices(limit.shape).reshape(2, -1))
    batch = np.concatenate([np.arange(1, most + 1) for most in limit.ravel()])
    unit = power_of_two(ratio * problem.target / 100)  # a round that is worth its time takes at most ratio * target
    bits = problem.averaged_bits

    def largest(name: str) -> Any:
        return cp.Variable(name=name, nonneg=True)

    def per_device(values: Any) -> Any:
        return sparse.csr_array((values / unit, (device, np.arange(device.size))))

    chosen = cp.Variable(batch.size, name="chosen", boolean=True)
    up, down, upload, download = map(largest, ("up", "down", "upload", "download"))
    rate, averaging = cp.Parameter(nonneg=True, name="ratio"), cp.Parameter(nonneg=True, name="averaging")
    credit = cp.Parameter(name="credit")  # a product of parameters, which cvxpy would not compile once for all
    noise = (problem.noise_weight / problem.target / batch) @ chosen
    missing = (bits[deepest - 1] - bits[cut]) @ chosen
    one = sparse.csr_array((np.ones(device.size), (device, np.arange(device.size))))
    constraints = {
        "one option": one @ chosen == 1,
        "forward": per_device(batch * problem.forward_s[device, cut]) @ chosen <= up,
        "backward": per_device(batch * problem.backward_s[device, cut]) @ chosen <= down,
        "devices' upload": per_device(bits[cut] / problem.fed_uplink_bps[device]) @ chosen <= upload,
        "devices' download": per_device(bits[cut] / problem.fed_downlink_bps[device]) @ chosen <= download,
        "server's upload": missing / (problem.server_fed_uplink_bps * unit) <= upload,
        "server's download": missing / (problem.server_fed_downlink_bps * unit) <= download,
    }
    server = (batch * problem.server_s[cut] / unit) @ chosen
    seconds = up + server + down + averaging * (upload + download)
    task = cp.Problem(cp.Minimize(seconds + rate * noise - credit), list(constraints.values()))

    def read() -> SplitPlan:
        value = np.asarray(chosen.value)
        taken = [int(np.argmax(np.where(device == i, value, -1.0))) for i in range(problem.num_devices)]
        return SplitPlan(
            batch_size=batch[taken],
            cut_layer=np.asarray(cut[taken] + 1, np.int32),
            aggregation_interval=round(1 / averaging.value),
        )

    variables = {"chosen": chosen, "up": up, "down": down, "upload": upload, "download": download}
    model = GenericModel(task, variables, constraints, unit, read)
    aim(model, problem, interval, deepest, ratio)
    return model


def aim(model: GenericModel[SplitPlan], problem: Any, interval: int, deepest: int, ratio: float) -> None:
    """Set the parameters of a model for `deepest` to an interval and a ratio, without building it again."""
    left = 1 - problem.drift(deepest, interval) / problem.target
    parameters = model.problem.param_dict
    parameters["ratio"].value = ratio * problem.target / model.unit
    parameters["averaging"].value = 1 / interval
    parameters["credit"].value = ratio * problem.target / model.unit * left

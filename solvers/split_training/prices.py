"""What speed, rates, memory and a larger target are worth to split training, at a plan."""

import numpy as np

from edgeopt.explain import rounded_up
from edgeopt.prices import Price
from edgeopt.problems import SplitPlan, SplitTraining

MORE = 0.01  # share by which a limit is raised
UNITS = {
    "target": "", "server_flops": "FLOP/s", "server_fed_uplink_bps": "bit/s", "server_fed_downlink_bps": "bit/s",
    "device_flops": "FLOP/s", "uplink_bps": "bit/s", "downlink_bps": "bit/s", "fed_uplink_bps": "bit/s",
    "fed_downlink_bps": "bit/s",
}  # fmt: skip


def prices(problem: SplitTraining, plan: SplitPlan) -> list[Price]:
    """Return estimates: the seconds that the plan itself takes less where a limit is a hundredth larger, per unit.

    The plan stays feasible, so that what it then saves is a gain that is there; another plan may save more. Memory is worth
    what one sample more, or one layer more, saves on the device, for the bytes which that lacks.
    """
    now = problem.objective(plan)
    found = []
    for name, unit in UNITS.items():
        values = getattr(problem, name)
        for index in [()] if np.ndim(values) == 0 else [(i,) for i in range(problem.num_devices)]:
            raised = np.array(values, float)
            raised[index] *= 1 + MORE
            step = float(raised[index] - np.asarray(values)[index])
            gain = now - problem.replace(**{name: raised if index else raised.item()}).objective(plan)
            if gain > 0:
                label = f"{name}[{index[0]}]" if index else name
                value = float(np.asarray(values)[index])
                found.append(
                    Price(name=label, unit=unit, value=value, worth=gain / step, claim="estimate", step=step, gain=gain)
                )
    return found + [price for i in range(problem.num_devices) if (price := _memory(problem, plan, i, now)) is not None]


def _memory(problem: SplitTraining, plan: SplitPlan, device: int, now: float) -> Price | None:
    """Return the price of a device's memory, where one sample or one layer more saves time and lacks only that."""
    value = problem.memory_bytes[device].item()
    best: Price | None = None
    for samples, layers in ((1, 0), (0, 1)):
        batch, cut = plan.batch_size.copy(), plan.cut_layer.copy()
        batch[device] += samples
        cut[device] += layers
        if batch[device] > problem.max_batch[device] or cut[device] > problem.num_layers:
            continue
        at = cut[device] - 1
        bits = batch[device] * problem.kept_bits[at] + problem.optimizer_states * problem.client_bits[at]
        step = rounded_up(float(bits) / 8) - value
        if step <= 0:
            continue
        changed = SplitPlan(batch_size=batch, cut_layer=cut, aggregation_interval=plan.aggregation_interval)
        gain = now - problem.objective(changed)
        if gain > 0 and (best is None or gain / step > best.worth):
            best = Price(
                name=f"memory_bytes[{device}]",
                unit="byte",
                value=value,
                worth=gain / step,
                claim="estimate",
                step=step,
                gain=gain,
            )
    return best

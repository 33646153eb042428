"""`SplitReport`: what a plan of split training means in seconds, rounds, bytes and accuracy."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeopt.display import one_line
from edgeopt.problems.split_training.instance import SplitInstance
from edgeopt.problems.split_training.plan import SplitPlan

Floats = NDArray[np.float64]

STAGES = ("device forward", "uplink", "server", "downlink", "device backward")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SplitReport:
    """What a plan means: where a round's time goes, what limits the accuracy, how many rounds there are.

    Parameters
    ----------
    stage_s : float64 [N, 5], seconds per round of each device in each stage: forward on the device, uplink, server,
        downlink, backward on the device (`STAGES` names them). The server works on one device after another: its stage
        is a device's own share.
    forward_straggler, backward_straggler : the device that the server waits for, and the one that ends the round.
    forward_s, server_s, backward_s : the three parts of a round: the slowest way up, the server's work, the slowest
        way down.
    round_s : their sum, T_S.
    upload_s, download_s : the two parts of an aggregation.
    aggregation_s : their sum, T_A.
    rounds : rounds until the bound is at the target, a real number; inf if the plan never gets there.
    total_s : the objective, ``rounds * (round_s + aggregation_s / interval)``.
    accuracy_share : what each term of the bound takes of the target: ``initial gap``, ``gradient noise``,
        ``client drift``. They add up to one when the target is reached after `rounds`; the first is what is left for
        it, at most 0 if the others exceed the target.
    memory_bytes : float64 [N], memory in use on each device.
    """

    stage_s: Floats
    forward_straggler: int
    backward_straggler: int
    forward_s: float
    server_s: float
    backward_s: float
    round_s: float
    upload_s: float
    download_s: float
    aggregation_s: float
    rounds: float
    total_s: float
    accuracy_share: dict[str, float]
    memory_bytes: Floats

    __repr__ = one_line


def report_of(problem: SplitInstance, plan: SplitPlan) -> SplitReport:
    """Return the report of a plan whose cuts are within the model."""
    cut = plan.cut_layer - 1
    batch = plan.batch_size.astype(np.float64)
    interval, factors = plan.aggregation_interval, problem.factors
    stage = np.stack(
        [
            batch * problem.work_before[cut] / problem.device_flops,
            batch * factors.uplink * problem.activation_bits[cut] / problem.uplink_bps,
            batch * problem.server_s[cut],
            batch * factors.downlink * problem.gradient_bits[cut] / problem.downlink_bps,
            batch * problem.work_after[cut] / problem.device_flops,
        ],
        axis=1,
    )
    forward, backward = stage[:, 0] + stage[:, 1], stage[:, 3] + stage[:, 4]
    first, last = int(forward.argmax()), int(backward.argmax())
    server = float(stage[:, 2].sum())
    round_s = float(forward[first]) + server + float(backward[last])
    held = problem.averaged_bits[cut]
    extra = float((held.max() - held).sum())
    upload = max(float((held / problem.fed_uplink_bps).max()), extra / problem.server_fed_uplink_bps)
    download = max(float((held / problem.fed_downlink_bps).max()), extra / problem.server_fed_downlink_bps)
    noise = problem.noise_weight * float((1 / batch).sum())
    drift = problem.drift(plan.deepest_cut, interval)
    left = problem.target - drift - noise
    rounds = problem.time_scale / left if left > 0 else np.inf
    per_round = round_s + (upload + download) / interval
    return SplitReport(
        stage_s=stage,
        forward_straggler=first,
        backward_straggler=last,
        forward_s=float(forward[first]),
        server_s=server,
        backward_s=float(backward[last]),
        round_s=round_s,
        upload_s=upload,
        download_s=download,
        aggregation_s=upload + download,
        rounds=rounds,
        total_s=float(rounds * per_round) if left > 0 else np.inf,
        accuracy_share={
            "initial gap": left / problem.target,
            "gradient noise": noise / problem.target,
            "client drift": drift / problem.target,
        },
        memory_bytes=(batch * problem.kept_bits[cut] + problem.optimizer_states * problem.client_bits[cut]) / 8,
    )

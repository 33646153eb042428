"""Split training: the objective against a plain reference, reports, limits, validation, infeasible targets, files."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgeopt
from edgeopt import EdgeNetwork, InvalidFileError, InvalidProblemError, ModelProfile, model_profile
from edgeopt.evaluation.compare.solutions import solution_from_json
from edgeopt.problems import CostFactors, SplitPlan, SplitTraining
from edgeopt.problems.split_training.report import STAGES
from tests.solvers.split_training.brute_force import any_factors

FIELDS = {
    "forward_flops": [10.0, 20.0, 30.0],
    "backward_flops": [20.0, 40.0, 60.0],
    "activation_bits": [8.0, 4.0, 0.0],
    "gradient_bits": [6.0, 2.0, 0.0],
    "parameter_bits": [1.0, 2.0, 4.0],
    "memory_bits": [80.0, 40.0, 40.0],
    "device_flops": [10.0, 5.0],
    "uplink_bps": [4.0, 2.0],
    "downlink_bps": [2.0, 4.0],
    "fed_uplink_bps": [1.0, 2.0],
    "fed_downlink_bps": [2.0, 1.0],
    "memory_bytes": [100.0, np.inf],
    "max_batch": [8, 16],
    "server_flops": 100.0,
    "server_fed_uplink_bps": 0.5,
    "server_fed_downlink_bps": 4.0,
    "smoothness": 2.0,
    "gradient_variance": [1.0, 1.0, 2.0],
    "gradient_second_moment": [0.01, 0.01, 0.02],
    "initial_gap": 3.0,
    "step_size": 0.5,
    "target": 1.0,
    "min_interval": 1,
    "max_interval": 4,
}
"""Two devices, three layers: c = 2 * 0.5 * 4 / 4 = 1 and 4 beta^2 gamma^2 = 4."""


def problem(**changes: object) -> SplitTraining:
    return SplitTraining(**(FIELDS | changes))  # type: ignore[arg-type]


def plan(batch: list[int], cut: list[int], interval: int = 1) -> SplitPlan:
    return SplitPlan(batch_size=batch, cut_layer=cut, aggregation_interval=interval)  # type: ignore[arg-type]


def reference(p: SplitTraining, batch: list[int], cut: list[int], interval: int) -> float:
    """Return Theta from the formulas, with loops over layers and devices."""
    n, layers, f = len(batch), len(p.forward_flops), p.factors
    up, down, server, inverse = 0.0, 0.0, 0.0, 0.0
    delta = [f.aggregation * sum(p.parameter_bits[: k + 1]) for k in range(layers)]
    for i in range(n):
        rho = sum(p.forward_flops[: cut[i]])
        w = f.device_backward * sum(p.backward_flops[: cut[i]]) + f.device_probes * rho
        above = f.server_forward * sum(p.forward_flops[cut[i] :]) + f.server_backward * sum(p.backward_flops[cut[i] :])
        psi, chi = f.uplink * p.activation_bits[cut[i] - 1], f.downlink * p.gradient_bits[cut[i] - 1]
        up = max(up, batch[i] * (f.device_forward * rho / p.device_flops[i] + psi / p.uplink_bps[i]))
        down = max(down, batch[i] * (chi / p.downlink_bps[i] + w / p.device_flops[i]))
        server += batch[i] * above / p.server_flops
        inverse += 1 / batch[i]
    deepest = max(cut)
    extra = sum(delta[deepest - 1] - delta[k - 1] for k in cut)
    fed_up = max([delta[k - 1] / p.fed_uplink_bps[i] for i, k in enumerate(cut)] + [extra / p.server_fed_uplink_bps])
    fed_down = max(
        [delta[k - 1] / p.fed_downlink_bps[i] for i, k in enumerate(cut)] + [extra / p.server_fed_downlink_bps]
    )
    noise = p.smoothness * p.step_size / n**2 * sum(p.gradient_variance) * inverse
    drift = 4 * p.smoothness**2 * p.step_size**2 * interval**2 * sum(p.gradient_second_moment[:deepest])
    left = p.target - noise - (drift if interval > 1 else 0.0)
    if left <= 0:
        return np.inf
    return 2 * p.initial_gap / p.step_size * (up + server + down + (fed_up + fed_down) / interval) / left


# --- objective and report ----------------------------------------------------------------------------------------


def test_objective_by_hand():
    """All numbers of one plan as worked out by hand.

    b = (4, 8), l = (2, 1), I = 2. Device 0: forward 4 * 30 / 10 = 12, up 4 * 4 / 4 = 4; server 4 * 0.9 = 3.6; down
    4 * 2 / 2 = 4, backward 4 * 60 / 10 = 24. Device 1: 8 * 10 / 5 = 16, 8 * 8 / 2 = 32, 8 * 1.5 = 12, 8 * 6 / 4 = 12,
    8 * 20 / 5 = 32. T_S = 48 + 15.6 + 44. Lambda = 2; T_A = max(3, 0.5, 4) + max(1.5, 1, 0.5).
    Den = 1 - (1/4 + 1/8) - 4 * 4 * 0.02.
    """
    report = problem().report(plan([4, 8], [2, 1], 2))
    assert report.stage_s == pytest.approx(np.array([[12, 4, 3.6, 4, 24], [16, 32, 12, 12, 32]]))
    assert (report.forward_straggler, report.backward_straggler) == (1, 1)
    assert (report.forward_s, report.server_s, report.backward_s) == pytest.approx((48, 15.6, 44))
    assert (report.upload_s, report.download_s, report.aggregation_s) == pytest.approx((4, 1.5, 5.5))
    assert report.rounds == pytest.approx(12 / 0.305)
    assert report.total_s == pytest.approx(12 / 0.305 * (107.6 + 2.75))
    assert report.memory_bytes == pytest.approx([(4 * 120 + 3 * 3) / 8, (8 * 80 + 3 * 1) / 8])
    assert report.accuracy_share == pytest.approx({"initial gap": 0.305, "gradient noise": 0.375, "client drift": 0.32})


@settings(max_examples=60)
@given(st.integers(0, 10**6))
def test_objective_matches_the_reference(seed: int):
    """Theta is what loops over the formulas give, on random problems and plans, inf where the bound misses the target."""
    rng = np.random.default_rng(seed)
    made = SplitTraining.random(num_devices=4, num_layers=6, heterogeneity=2.0, interval=(1, 20), seed=seed)
    made = made.replace(
        server_fed_uplink_bps=made.server_fed_uplink_bps / 100, target=made.target * rng.uniform(0.3, 4),
        factors=CostFactors() if seed % 2 else any_factors(seed),
    )  # fmt: skip
    batch, cut = rng.integers(1, 65, 4).tolist(), rng.integers(1, 7, 4).tolist()
    interval = int(rng.integers(1, 21))
    assert made.objective(plan(batch, cut, interval)) == pytest.approx(reference(made, batch, cut, interval), rel=1e-9)


def test_report_parts_add_up():
    """Stages, stragglers, rounds and shares of the report give back the objective and the target."""
    made = SplitTraining.random(num_devices=9, num_layers=7, seed=3)
    chosen = plan([20] * 9, [4, 5, 3] * 3, 8)
    report = made.report(chosen)
    assert report.stage_s.shape == (9, len(STAGES))
    forward, backward = report.stage_s[:, :2].sum(axis=1), report.stage_s[:, 3:].sum(axis=1)
    assert report.forward_s == forward.max() == forward[report.forward_straggler]
    assert report.backward_s == backward.max() == backward[report.backward_straggler]
    assert report.server_s == pytest.approx(report.stage_s[:, 2].sum())
    assert report.round_s == pytest.approx(report.forward_s + report.server_s + report.backward_s)
    assert report.aggregation_s == report.upload_s + report.download_s
    assert report.total_s == pytest.approx(report.rounds * (report.round_s + report.aggregation_s / 8))
    assert report.total_s == made.objective(chosen)
    assert sum(report.accuracy_share.values()) == pytest.approx(1)
    assert report.rounds == pytest.approx(made.time_scale / (report.accuracy_share["initial gap"] * made.target))


def test_full_local_training():
    """With all layers on the devices nothing crosses the cut and the server does nothing."""
    made = SplitTraining.random(num_devices=3, num_layers=5, seed=1)
    report = made.report(plan([8] * 3, [5] * 3))
    assert (report.stage_s[:, 1:4] == 0).all()
    assert report.server_s == 0


def test_no_drift_without_local_rounds():
    """The drift term is there for an interval of 2 and not for 1."""
    assert problem().report(plan([8, 8], [1, 1], 1)).accuracy_share["client drift"] == 0
    assert problem().report(plan([8, 8], [1, 1], 2)).accuracy_share["client drift"] == pytest.approx(0.16)


def test_derived_costs():
    """Costs per sample at each cut are cumulative sums over the layers over speeds and rates; s falls to exactly 0."""
    made = problem()
    assert made.forward_s == pytest.approx(np.array([[1 + 2, 3 + 1, 6], [2 + 4, 6 + 2, 12]]))
    assert made.backward_s == pytest.approx(np.array([[3 + 2, 1 + 6, 12], [1.5 + 4, 0.5 + 12, 24]]))
    assert made.server_s.tolist() == [1.5, 0.9, 0.0]
    assert made.client_bits.tolist() == [1, 3, 7]
    assert made.noise_weight == pytest.approx(1)
    assert made.drift_weight == pytest.approx([0.04, 0.08, 0.16])


# --- factors -----------------------------------------------------------------------------------------------------


def test_each_factor_multiplies_its_own_term():
    """Of a plan worked out by hand, each factor changes what it is named after, and nothing else."""
    chosen, before = plan([4, 8], [2, 1], 2), problem().report(plan([4, 8], [2, 1], 2))
    stages = {"device_forward": 0, "uplink": 1, "downlink": 3, "device_backward": 4}
    for name, stage in stages.items():
        report = problem(factors=CostFactors(**{name: 3})).report(chosen)
        expected = before.stage_s.copy()
        expected[:, stage] *= 3
        assert report.stage_s == pytest.approx(expected)
        assert (report.aggregation_s, report.rounds) == (before.aggregation_s, before.rounds)
        assert report.memory_bytes.tolist() == before.memory_bytes.tolist()
    # forward 30 of 60, backward 60 of 120 FLOP are at device 0's cut: a third of the server's work is forward
    server = {name: problem(factors=CostFactors(**{name: 4})).report(chosen).stage_s[:, 2] for name in SERVER}
    assert server["server_forward"] == pytest.approx(before.stage_s[:, 2] * 2)
    assert server["server_backward"] == pytest.approx(before.stage_s[:, 2] * 3)
    probes = problem(factors=CostFactors(device_probes=5, device_backward=0)).report(chosen)
    assert probes.stage_s[:, 4] == pytest.approx(5 * before.stage_s[:, 0])
    silent = problem(factors=CostFactors(aggregation=0, kept=0)).report(chosen)
    assert (silent.upload_s, silent.download_s) == (0, 0)
    assert silent.memory_bytes == pytest.approx([3 * 3 / 8, 3 * 1 / 8])


SERVER = ("server_forward", "server_backward")


def test_what_is_not_kept_takes_no_memory():
    """Without activations that are kept, memory limits the cut alone."""
    made = problem(memory_bytes=[3 / 8, 21 / 8], max_batch=9, factors=CostFactors(kept=0))
    assert made.batch_limit.tolist() == [[9, 0, 0], [9, 9, 9]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"uplink": -1}, r"factors.uplink = -1.0: expected a non-negative number"),
        ({"kept": np.nan}, r"factors.kept = nan: expected a non-negative number"),
        ({"device_probes": 1e7}, r"factors.device_probes = 1e\+07: expected 0, or a number from 1e-06 to 1e\+06"),
        ({"server_forward": 1e-9}, r"factors.server_forward = 1e-09: expected 0, or a number from"),
    ],
)
def test_bad_factors(given: dict[str, float], message: str):
    """A factor is 0, or a number that products stay finite with."""
    with pytest.raises(InvalidProblemError, match=message):
        CostFactors(**given)
    with pytest.raises(InvalidProblemError, match=r"factors = 3: expected CostFactors"):
        problem(factors=3)


@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_files_hold_the_factors_that_are_not_one(tmp_path, suffix: str):
    """What is SplitFed's is left out, so that files from before are read; a name that is none is refused."""
    made = problem(factors=CostFactors(device_backward=0, device_probes=5))
    made.save(tmp_path / f"probes{suffix}")
    again = edgeopt.load(tmp_path / f"probes{suffix}")
    assert again == made != problem()
    assert made.to_data()[0]["factors"] == {"device_backward": 0.0, "device_probes": 5.0}
    assert "factors" not in problem().to_data()[0]
    assert made.fingerprint() != problem().fingerprint()
    assert made.describe()["cost factors"] == "device_backward 0, device_probes 5"
    values, arrays = made.to_data()
    with pytest.raises(InvalidFileError, match=r"factors.probes = 5: expected no other name than device_forward, "):
        SplitTraining.from_data(values | {"factors": {"probes": 5}}, arrays)
    with pytest.raises(InvalidFileError, match=r"factors = 5: expected an object"):
        SplitTraining.from_data(values | {"factors": 5}, arrays)


# --- limits ------------------------------------------------------------------------------------------------------


def names(p: SplitTraining, chosen: SplitPlan) -> list[tuple[str, int]]:
    return [(violation.constraint, violation.index) for violation in p.violations(chosen)]


def test_violations_name_family_device_and_numbers():
    """Each limit is reported with its own name, amount and message; a plan within all of them has none."""
    made = problem(target=2.0)
    assert made.violations(plan([4, 8], [1, 2])) == ()
    assert made.is_feasible(plan([4, 8], [1, 2]))
    (batch,) = made.violations(plan([4, 17], [1, 1]))
    assert (batch.constraint, batch.index, batch.amount) == ("batch", 1, 1.0)
    assert batch.message == "batch_size[1] = 17: expected at most max_batch[1] = 16"
    (memory,) = made.violations(plan([8, 8], [2, 1]))
    assert (memory.constraint, memory.index) == ("memory", 0)
    assert memory.amount == pytest.approx((8 * 120 + 9) / 8 - 100)
    assert memory.message == "device 0 needs 121.125 bytes at cut 2, its memory is 100"
    (interval,) = made.violations(plan([4, 8], [1, 1], 5))
    assert (interval.constraint, interval.amount) == ("interval", 1.0)
    assert interval.message == "aggregation_interval = 5: expected 1 to 4"
    (accuracy,) = made.violations(plan([1, 1], [1, 1]))
    assert accuracy.constraint == "accuracy"
    assert "cannot reach target = 2: gradient noise takes 2 and client drift 0" in accuracy.message


def test_cut_outside_the_model():
    """A cut beyond the last layer is a violation, and asking for its objective is an error."""
    (cut,) = problem().violations(plan([4, 4], [1, 5]))
    assert (cut.constraint, cut.index, cut.amount) == ("cut", 1, 2.0)
    with pytest.raises(InvalidProblemError, match=r"cut_layer\[1\] = 5: expected an integer from 1 to 3"):
        problem().objective(plan([4, 4], [1, 5]))


def test_batch_limit_is_where_the_memory_violation_starts():
    """`batch_limit` is the largest batch size without a violation of memory or `max_batch`, at every device and cut."""
    for made in (problem(target=1e3), SplitTraining.random(num_devices=4, num_layers=6, seed=2).replace(target=1e9)):
        made = made.replace(memory_bytes=made.memory_bytes / 5)
        for i in range(made.num_devices):
            for k in range(made.num_layers):
                batch, cut = [1] * made.num_devices, [1] * made.num_devices
                limit = int(made.batch_limit[i, k])
                cut[i] = k + 1
                if limit:
                    batch[i] = limit
                    assert ("memory", i) not in names(made, plan(batch, cut))
                    assert ("batch", i) not in names(made, plan(batch, cut))
                batch[i] = limit + 1
                assert names(made, plan(batch, cut))[0][1] == i


def test_memory_just_enough():
    """Memory for exactly b samples takes b samples, although the quotient is rounded."""
    made = problem(memory_bits=[0.1, 0.1, 0.1], optimizer_states=0.1, memory_bytes=(7 * 0.1 + 0.1) / 8, max_batch=99)
    assert made.batch_limit[:, 0].tolist() == [7, 7]


def test_memory_without_activations():
    """Where nothing is kept per sample only the parameters count."""
    made = problem(memory_bits=0.0, memory_bytes=[3 / 8, 21 / 8], max_batch=9)
    assert made.batch_limit.tolist() == [[9, 0, 0], [9, 9, 9]]


# --- infeasible targets --------------------------------------------------------------------------------------------


def test_least_target_is_the_edge():
    """Just above the least target there is a plan, at and below it there is none, and the message says the number."""
    for made in (problem(min_interval=2), SplitTraining.random(num_devices=3, num_layers=5, seed=4)):
        least = made.least_target
        best = SplitPlan(
            batch_size=made.batch_limit[:, 0],
            cut_layer=np.ones(made.num_devices, int),
            aggregation_interval=made.min_interval,
        )
        above, below = made.replace(target=least * (1 + 1e-9)), made.replace(target=least * (1 - 1e-9))
        assert above.is_feasible(best)
        assert above.explain_infeasible() is None
        assert names(below, best) == [("accuracy", 0)]
        named = float(str(below.explain_infeasible()).split("expected a target of at least ")[1].split(",")[0])
        assert least < named < least * 1.00002


@pytest.mark.parametrize("seed", range(12))
def test_the_named_target_is_feasible(seed: int):
    """The target that the message asks for is rounded up, so that it can be reached itself."""
    made = SplitTraining.random(num_devices=3, num_layers=4, seed=seed)
    reason = str(made.replace(target=0.5 * made.least_target).explain_infeasible())
    named = float(reason.split("expected a target of at least ")[1].split(",")[0])
    again = made.replace(target=named)
    assert again.explain_infeasible() is None
    assert edgeopt.solve(again, "fixed").feasible


def test_the_term_to_blame_is_named():
    """The larger of the two least terms is to blame: noise at the largest batches, or drift at cut 1."""
    noise = problem(target=0.1).explain_infeasible()
    assert noise is not None
    assert "target = 0.1 cannot be reached: gradient noise, at least 0.1875 at the largest batch sizes" in noise
    drift = problem(target=0.1, gradient_second_moment=10.0, min_interval=3).explain_infeasible()
    assert drift is not None
    assert "client drift, at least 360 at cut 1 and interval 3, is to blame" in drift


# --- validation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"forward_flops": []}, "forward_flops: expected at least one layer"),
        ({"device_flops": []}, "device_flops: expected at least one device"),
        ({"backward_flops": [1.0, 2.0]}, r"backward_flops: expected shape \[3\], got \[2\]"),
        ({"parameter_bits": [1, -2, 3]}, r"parameter_bits\[1\] = -2.0: expected a non-negative number \(bit\)"),
        ({"gradient_variance": [1, np.nan, 3]}, r"gradient_variance\[1\] = nan: expected a non-negative number"),
        ({"gradient_second_moment": -1.0}, r"gradient_second_moment\[0\] = -1.0"),
        ({"smoothness": np.nan}, "smoothness = nan: expected a positive number"),
        ({"smoothness": 0}, "smoothness = 0.0: expected a positive number"),
        ({"step_size": -0.1}, "step_size = -0.1: expected a positive number"),
        ({"initial_gap": 0}, "initial_gap = 0.0"),
        ({"target": -1}, "target = -1.0: expected a positive number"),
        ({"target": np.inf}, "target = inf"),
        ({"uplink_bps": [1, 0]}, r"uplink_bps\[1\] = 0.0: expected a positive number \(bit/s\)"),
        ({"server_flops": [1.0, 2.0]}, r"server_flops: expected shape \[\], got \[2\]"),
        ({"max_batch": [4, 0]}, r"max_batch\[1\] = 0: expected an integer >= 1"),
        ({"max_batch": 2**31}, r"max_batch\[0\] = 2147483648: expected an integer from 1 to 2147483647"),
        (
            {"forward_flops": [1.0, 1e308, 1.0]},
            r"forward_flops\[1\] = 1e\+308: expected 0 or a magnitude from 1e-50 to 1e\+50",
        ),
        ({"server_flops": 1e-307}, r"server_flops = 1e-307: expected a magnitude from 1e-50 to 1e\+50 \(FLOP/s\)"),
        ({"memory_bytes": [100, 1e308]}, r"memory_bytes\[1\] = 1e\+308: expected 0 or a magnitude .* \(byte\) or inf"),
        ({"max_batch": 2.5}, r"max_batch\[0\] = 2.5: expected an integer >= 1"),
        ({"min_interval": 0}, "min_interval = 0: expected an integer >= 1"),
        ({"max_interval": 0, "min_interval": 1}, "max_interval = 0: expected an integer >= 1"),
        ({"min_interval": 5}, "max_interval = 4: expected at least min_interval = 5"),
        ({"memory_bytes": [100, np.nan]}, r"memory_bytes\[1\] = nan: expected a non-negative number \(byte\) or inf"),
        (
            {"memory_bytes": [100, 10]},
            r"memory_bytes\[1\] = 10: device 1 has no memory for any cut, expected at least 10.375 bytes for layer 1",
        ),
    ],
)
def test_bad_problems(changes: dict[str, object], message: str):
    """Every kind of bad data is refused with field, index, value and expectation."""
    with pytest.raises(InvalidProblemError, match=message):
        problem(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": [0, 1]}, r"batch_size\[0\] = 0: expected an integer >= 1"),
        ({"batch_size": [2**40, 1]}, rf"batch_size\[0\] = {2**40}: expected an integer from 1 to 2147483647"),
        ({"batch_size": [1.5, 1]}, r"batch_size\[0\] = 1.5"),
        ({"batch_size": []}, "batch_size: expected at least one device"),
        ({"cut_layer": [1, 0]}, r"cut_layer\[1\] = 0: expected an integer >= 1"),
        ({"cut_layer": [1]}, r"cut_layer: expected shape \[2\], got \[1\]"),
        ({"aggregation_interval": 0}, "aggregation_interval = 0: expected an integer >= 1"),
    ],
)
def test_bad_plans(changes: dict[str, object], message: str):
    """A plan without samples, with a cut before the first layer or of unequal lengths is refused."""
    with pytest.raises(InvalidProblemError, match=message):
        SplitPlan(**({"batch_size": [1, 1], "cut_layer": [1, 1]} | changes))  # type: ignore[arg-type]


def test_plans_that_do_not_fit_the_problem():
    """Plans of another size or type are errors, not violations."""
    with pytest.raises(InvalidProblemError, match=r"batch_size: expected shape \[2\], got \[3\]"):
        problem().violations(plan([1, 1, 1], [1, 1, 1]))
    with pytest.raises(InvalidProblemError, match="expected a SplitPlan, got list"):
        problem().objective([1, 1])  # type: ignore[arg-type]


def test_arrays_are_read_only_copies():
    """Neither the caller's arrays nor the problem's change the other."""
    mine = np.array([10.0, 5.0])
    made = problem(device_flops=mine)
    mine[0] = 99.0
    assert made.device_flops.tolist() == [10, 5]
    with pytest.raises(ValueError, match="read-only"):
        made.device_flops[0] = 1.0
    with pytest.raises(ValueError, match="read-only"):
        plan([1, 1], [1, 1]).batch_size[0] = 2


# --- builders ------------------------------------------------------------------------------------------------------


def tiny_profile() -> ModelProfile:
    return ModelProfile(
        name="tiny", layer_names=("a", "b"), parameter_bytes=[4.0, 12.0], forward_flops=[1e9, 2e9],
        backward_flops=[2e9, 4e9], activation_bytes=[1e5, 10.0], memory_bytes=[2e5, 1e5], input_bytes=100.0,
    )  # fmt: skip


def test_from_profile():
    """Bytes become bits, rates are those to the chosen server and no faster than its wire, nothing crosses at the end."""
    network = EdgeNetwork.random(2, 5, seed=1, coverage_radius_m=5000.0)
    made = SplitTraining.from_profile(tiny_profile(), network, server=1, max_batch=32, target=3.0, interval=(2, 9))
    assert made.activation_bits.tolist() == [8e5, 0]
    assert made.gradient_bits.tolist() == [8e5, 0]
    assert made.parameter_bits.tolist() == [32, 96]
    assert made.memory_bits.tolist() == [16e5, 8e5]
    assert np.array_equal(made.uplink_bps, network.uplink_rate_bps[:, 1])
    wire = network.cloud_rate_bps[1]
    assert np.array_equal(made.fed_downlink_bps, np.minimum(network.downlink_rate_bps[:, 1], wire))
    assert made.server_flops == network.server_flops[1]
    assert made.server_fed_uplink_bps == wire
    assert (made.target, made.min_interval, made.max_interval) == (3.0, 2, 9)
    # half of the total evenly, half by parameters
    assert made.gradient_variance == pytest.approx(1e5 * np.array([0.25 + 0.125, 0.25 + 0.375]))


def test_from_profile_default_target_is_feasible():
    """Without a target it is eight times the least one."""
    made = SplitTraining.from_profile(tiny_profile(), EdgeNetwork.random(1, 5, seed=1))
    assert made.target == pytest.approx(8 * made.least_target)
    assert made.explain_infeasible() is None
    exact = SplitTraining.from_profile(
        tiny_profile(), EdgeNetwork.random(1, 5, seed=1), gradient_variance=[1.0, 2.0], gradient_second_moment=0.0
    )
    assert exact.gradient_variance.tolist() == [1, 2]


def test_from_profile_bad_input():
    """Servers that are not there and devices out of reach are named."""
    network = EdgeNetwork.random(2, 5, seed=1)
    with pytest.raises(InvalidProblemError, match="server = 2: expected an integer from 0 to 1"):
        SplitTraining.from_profile(tiny_profile(), network, server=2)
    covered = np.ones((5, 2), bool)
    covered[3, 0] = False
    with pytest.raises(InvalidProblemError, match="server = 0: device 3 has no link to it"):
        SplitTraining.from_profile(tiny_profile(), network.replace(coverage=covered))
    everywhere = network.replace(coverage=np.ones((5, 2), bool))
    with pytest.raises(InvalidProblemError, match=r"gradient_variance: expected shape \[2\], got \[3\]"):
        SplitTraining.from_profile(tiny_profile(), everywhere, gradient_variance=[1.0, 2.0, 3.0])


def test_random_is_repeatable():
    """Same seed, same problem; another seed, another one; bundled models have their own layers."""
    assert SplitTraining.random(seed=3) == SplitTraining.random(seed=3)
    assert SplitTraining.random(seed=3) != SplitTraining.random(seed=4)
    assert SplitTraining.random(seed=3) != "a problem"
    assert SplitTraining.random(num_layers=9).num_layers == 9
    vgg = model_profile("vgg16")
    assert np.array_equal(SplitTraining.random(model="vgg16").parameter_bits, 8 * vgg.parameter_bytes)


def test_heterogeneity():
    """At 0 all devices are equal; ratios to the geometric mean are raised to the exponent, which leaves the mean."""
    equal, plain, twice = (SplitTraining.random(num_layers=4, heterogeneity=h, seed=5) for h in (0.0, 1.0, 2.0))
    for name in ("device_flops", "uplink_bps", "downlink_bps", "memory_bytes"):
        logs = [np.log(getattr(p, name)) for p in (equal, plain, twice)]
        assert np.ptp(logs[0]) < 1e-12
        assert logs[2] - logs[0] == pytest.approx(2 * (logs[1] - logs[0]))
        assert logs[1].mean() == pytest.approx(logs[0].mean())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_devices": 0}, "num_devices = 0: expected an integer >= 1"),
        ({"num_layers": 0}, "num_layers = 0: expected an integer >= 1"),
        ({"heterogeneity": -1.0}, "heterogeneity = -1.0: expected a non-negative number"),
        ({"max_batch": 0}, r"max_batch\[0\] = 0"),
        ({"interval": (1, 2, 3)}, r"interval = \(1, 2, 3\): expected an integer, or the least and the largest one"),
        ({"interval": ()}, r"interval = \(\): expected an integer, or the least and the largest one"),
        ({"interval": (4, 2)}, "max_interval = 2: expected at least min_interval = 4"),
    ],
)
def test_random_bad_input(changes: dict[str, object], message: str):
    """Numbers without sense are refused by name."""
    with pytest.raises(InvalidProblemError, match=message):
        SplitTraining.random(**({"num_layers": 4} | changes))  # type: ignore[arg-type]


def test_random_constants_weigh_against_one_another():
    """On default instances neither the smallest nor the largest batch, neither the first nor the last cut is best."""
    made = SplitTraining.random(num_layers=20, seed=1)
    value = np.array(
        [[made.objective(plan([b] * 20, [k] * 20, 8)) for b in (1, 2, 4, 8, 16, 32, 64)] for k in range(1, 21)]
    )
    cut, batch = np.unravel_index(value.argmin(), value.shape)
    assert 0 < cut < 19
    assert 0 < batch < 6


# --- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_files(tmp_path, suffix: str):
    """A saved problem loads equal, infinite memory included, and has the same fingerprint."""
    for made in (problem(), SplitTraining.random(num_layers=6, seed=2)):
        path = tmp_path / f"problem{suffix}"
        made.save(path)
        again = edgeopt.load(path)
        assert again == made
        assert again.fingerprint() == made.fingerprint()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["arrays"].pop("uplink_bps"), "uplink_bps: array is missing"),
        (lambda d: d.pop("target"), "target: value is missing"),
        (lambda d: d.update(target="low"), "target = 'low': expected a number"),
        (lambda d: d.update(min_interval=True), "min_interval = True: expected a number"),
        (lambda d: d.update(step_size=-1), "step_size = -1.0: expected a positive number"),
        (lambda d: d["arrays"].update(device_flops=[1.0]), r"expected shape \[1\], got \[2\]"),
    ],
)
def test_bad_files(tmp_path, change, message: str):
    """Missing and bad entries are refused with the path, the name and what was expected."""
    path = tmp_path / "problem.json"
    problem().save(path)
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(InvalidFileError, match=message) as caught:
        edgeopt.load(path)
    assert str(caught.value).startswith(str(path))


def test_plan_as_json():
    """A plan goes through JSON and back; incomplete or foreign documents are refused."""
    made, chosen = problem(), plan([4, 8], [2, 1], 3)
    document = json.loads(json.dumps(chosen.to_json()))
    assert solution_from_json(made, document) == chosen
    assert chosen != plan([4, 8], [2, 1], 2)
    assert chosen != "a plan"
    with pytest.raises(InvalidProblemError, match="solution: cut_layer: value is missing"):
        made.solution_from_json({"batch_size": [1, 1]})
    with pytest.raises(InvalidProblemError, match=r"expected shape \[2\], got \[1\]"):
        made.solution_from_json({"batch_size": [1], "cut_layer": [1], "aggregation_interval": 1})


def test_describe():
    """The description is flat, plain and says what limits the accuracy."""
    facts = problem().describe()
    assert facts["devices"] == 2
    assert facts["layers"] == 3
    assert facts["aggregation interval"] == "1 to 4"
    assert facts["least target, gradient noise"] == pytest.approx(1 / 8 + 1 / 16)
    assert all(isinstance(value, str | int | float) for value in facts.values())

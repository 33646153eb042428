"""The model-download problem: the recursion, constraints, reasons for refusals, builders, files, bad input."""

import math
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgeopt
from edgeopt import EdgeNetwork
from edgeopt.errors import InvalidProblemError
from edgeopt.problems import DownloadPlan, ModelDownload
from edgeopt.problems.model_download.checks import Reason
from edgeopt.profile import ModelProfile, model_profile


def fields(**other: Any) -> dict[str, Any]:
    """Return the fields of two users and two models, of two layers and of one."""
    return {
        "layer_indptr": [0, 2, 3],
        "layer_bits": [4.0, 4.0, 16.0],
        "layer_flops": [1.0, 2.0, 0.5],
        "model_names": ("two layers", "one layer"),
        "deadline_s": [5.0, 6.0],
        "cycles_per_flop": [1.0, 0.5],
        "min_frequency_hz": [0.1, 0.1],
        "max_frequency_hz": [2.0, 2.0],
        "energy_coefficient": [1.0, 1.0],
        "spectral_efficiency": [1.0, 2.0],
        "bandwidth_hz": 10.0,
    } | other


def problem(**other: Any) -> ModelDownload:
    """Return a problem of those fields, some changed."""
    return ModelDownload(**fields(**other))


def plan(**other: Any) -> DownloadPlan:
    """Return a plan that gives each user 4 Hz and the models 0 and 1, at one hertz per layer."""
    given: dict[str, Any] = {"model": [0, 1], "bandwidth_hz": [4.0, 4.0], "frequency_hz": [1.0, 1.0, 1.0]}
    return DownloadPlan(**(given | other))


# --- truth -------------------------------------------------------------------------------------------------------


def test_timeline_by_hand():
    """User 0: layers arrive at 1 s and 2 s, run from 1 to 2 s and from 2 to 4 s. User 1: 16 bits at 8 bit/s, then 0.25 s."""
    timeline = problem().simulate(plan())
    assert timeline.indptr.tolist() == [0, 2, 3]
    assert timeline.download_start_s.tolist() == [0.0, 1.0, 0.0]
    assert timeline.download_finish_s.tolist() == [1.0, 2.0, 2.0]
    assert timeline.start_s.tolist() == [1.0, 2.0, 2.0]
    assert timeline.finish_s.tolist() == [2.0, 4.0, 2.25]
    assert timeline.completion_s.tolist() == [4.0, 2.25]
    assert timeline.energy_j.tolist() == [3.0, 0.25]


def test_fixed_seconds_samples_and_receiving_by_hand():
    """Fixed seconds come on top of each layer, samples multiply cycles, receiving costs energy per bit."""
    one = problem(layer_fixed_s=[0.5, 0.0, 0.0], samples=[2.0, 1.0], receive_j_per_bit=[0.25, 0.0])
    timeline = one.simulate(plan(frequency_hz=[2.0, 1.0, 1.0]))
    assert timeline.finish_s.tolist() == [2.5, 6.5, 2.25]  # 1 + 0.5 + 2 / 2, then 4 / 1
    assert timeline.energy_j.tolist() == [2 * 4 + 4 * 1 + 0.25 * 8, 0.25]


@settings(max_examples=60)
@given(st.integers(0, 10**6))
def test_recursion_against_its_definition(seed):
    """For random problems and plans the kernel's timeline is that of a plain loop over the definition."""
    rng = np.random.default_rng(seed)
    one = ModelDownload.random(
        num_users=5, num_models=3, seed=seed, energy=None, fixed_power=seed % 2 == 1
    ).replace(receive_j_per_bit=rng.uniform(0, 1e-9, 5))  # fmt: skip
    model = rng.integers(-1, 3, 5)
    indptr = one.plan_indptr(model)
    made = DownloadPlan(
        model=model, bandwidth_hz=rng.uniform(1e6, 1e8, 5), frequency_hz=rng.uniform(1e8, 1e9, indptr[-1])
    )
    timeline = one.simulate(made)
    for k in range(5):
        b, snr = made.bandwidth_hz[k], one.snr_hz
        rate = b * one.spectral_efficiency[k] if snr is None else b * math.log2(1 + snr[k] / b)
        arrived = now = energy = 0.0
        for j in range(indptr[k + 1] - indptr[k]):
            at, f = one.layer_indptr[model[k]] + j, made.frequency_hz[indptr[k] + j]
            assert timeline.download_start_s[indptr[k] + j] == pytest.approx(arrived, rel=1e-12)
            arrived += one.layer_bits[at] / rate
            begin = max(arrived, now)
            cycles = one.samples[k] * one.cycles_per_flop[k] * one.layer_flops[at]
            now = begin + one.layer_fixed_s[at] + cycles / f
            energy += one.energy_coefficient[k] * cycles * f**2 + one.receive_j_per_bit[k] * one.layer_bits[at]
            found = [getattr(timeline, name)[indptr[k] + j] for name in ("download_finish_s", "start_s", "finish_s")]
            assert found == pytest.approx([arrived, begin, now], rel=1e-12)
        assert timeline.completion_s[k] == pytest.approx(now, rel=1e-12)
        assert timeline.energy_j[k] == pytest.approx(energy, rel=1e-12)


def test_objective():
    """Admitted users count their weight times the reward of their model; refused ones nothing."""
    one = problem(user_weight=[2.0, 3.0], model_reward=[1.0, 0.5])
    assert one.objective(plan()) == 2.0 + 1.5
    assert one.objective(DownloadPlan.refuse_all(2)) == 0.0
    assert one.value.tolist() == [[2.0, 1.0], [3.0, 1.5]]


def test_kinds_of_values():
    """Unit values, and rewards that differ within a task, are told apart."""
    assert problem().is_unit_value
    assert problem(user_weight=[3.0, 3.0], model_reward=[2.0, 2.0]).is_unit_value
    assert not problem(user_weight=[1.0, 2.0]).is_unit_value
    assert not problem(user_weight=[1.0, 2.0]).has_model_reward
    assert problem(model_reward=[1.0, 2.0]).has_model_reward
    assert not problem(model_reward=[1.0, 2.0], model_task=[0, 1]).has_model_reward


def test_feasible_plan():
    """The plan of the examples breaks nothing; nor does refusing everybody."""
    assert problem().violations(plan()) == ()
    assert problem().violations(DownloadPlan.refuse_all(2)) == ()


@pytest.mark.parametrize(
    ("changes", "made", "constraint", "index", "message"),
    [
        ({"task": [1, 0], "model_task": [0, 0]}, {}, "model", 0, "user 0 gets two layers: task = 1, two layers does task 0"),
        (
            {"accuracy": [1.0, 0.5], "min_accuracy": [0.0, 0.75]}, {}, "model", 1,
            "user 1 gets one layer: min_accuracy = 0.75, one layer has 0.5",
        ),
        ({"memory_bytes": [0.5, 9]}, {}, "model", 0, "user 0 gets two layers: memory_bytes = 0.5, two layers takes 1"),
        ({}, {"bandwidth_hz": [4.0, 7.0]}, "bandwidth", 0, "users get 11 Hz, the bandwidth is 10"),
        ({"resource_block_hz": 4.0}, {"bandwidth_hz": [4.0, 5.0]}, "resource-block", 1, "user 1 gets 5 Hz, expected whole blocks of 4"),
        ({"deadline_s": [3.5, 6]}, {}, "deadline", 0, "user 0 is done after 4 s, expected at most 3.5"),
        ({}, {"bandwidth_hz": [4.0, 0.0]}, "deadline", 1, "user 1 is done after inf s, expected at most 6"),
        ({"energy_j": [2.5, np.inf]}, {}, "energy", 0, "user 0 spends 3 J, expected at most 2.5"),
        ({}, {"frequency_hz": [1.0, 3.0, 1.0]}, "frequency", 0, "user 0 runs layer 1 at 3 Hz, expected from 0.1 to 2"),
        ({"min_frequency_hz": [0.1, 1.5]}, {}, "frequency", 1, "user 1 runs layer 0 at 1 Hz, expected from 1.5 to 2"),
        (
            {"frequency_levels": [0.5, 1.0]}, {"frequency_hz": [1.0, 1.5, 2.0]}, "frequency", 0,
            "user 0 runs layer 1 at 1.5 Hz, expected from 0.1 to 2, at a level",
        ),
        (
            {"frequency_levels": [0.75]}, {"frequency_hz": [1.5, 1.5, 1.0]}, "frequency", 1,
            "user 1 runs layer 0 at 1 Hz, expected from 0.1 to 2, at a level",
        ),
    ],
)  # fmt: skip
def test_violations(changes, made, constraint, index, message):
    """Each constraint is reported once, with the user and the numbers."""
    (found,) = problem(**changes).violations(plan(**made))
    assert (found.constraint, found.index, found.message) == (constraint, index, message)
    assert found.amount > 0


def test_violations_allow_for_rounding():
    """A relative 1e-10 too much of everything is rounding, a relative 1e-8 is not."""
    tight = problem(
        deadline_s=[4.0, 2.25], energy_j=[3.0, 0.25], bandwidth_hz=8.0, max_frequency_hz=[1.0, 1.0],
        resource_block_hz=4.0,
    )  # fmt: skip
    assert tight.violations(plan()) == ()
    for part, names in ((1 + 1e-10, set()), (1 + 1e-8, {"bandwidth", "resource-block", "energy", "frequency"})):
        made = plan(bandwidth_hz=np.array([4.0, 4.0]) * part, frequency_hz=np.ones(3) * part)
        assert {violation.constraint for violation in tight.violations(made)} == names
    slow = plan(bandwidth_hz=np.array([4.0, 4.0]) * (1 - 1e-8))
    assert "deadline" in {violation.constraint for violation in tight.violations(slow)}


def test_levels_are_found_within_rounding():
    """Every level counts, also the lowest and the highest, and a relative 1e-12 off."""
    one = problem(frequency_levels=[0.05, 0.3, 1 / 3, 1.0], deadline_s=[1e6, 1e6])
    for level in (0.05, 0.3, 1 / 3, 1.0):
        for part in (1 - 1e-12, 1.0, 1 + 1e-12):
            assert one.is_feasible(plan(frequency_hz=np.full(3, 2.0 * level * part)))


def test_rates():
    """Linear rates are bandwidth times efficiency; concave ones rise to their ceiling; no bandwidth carries nothing."""
    assert problem().rate_bps([2.0, 2.0]).tolist() == [2.0, 4.0]
    assert problem().rate_ceiling_bps.tolist() == [np.inf, np.inf]
    one = problem(spectral_efficiency=None, snr_hz=[3.0, 30.0])
    assert one.has_concave_rate
    assert one.rate_bps([1.0, 0.0]) == pytest.approx([2.0, 0.0])
    assert one.rate_ceiling_bps == pytest.approx([3 / math.log(2), 30 / math.log(2)])
    wide = one.rate_bps(1e9)
    assert (wide < one.rate_ceiling_bps).all()
    assert wide == pytest.approx(one.rate_ceiling_bps, rel=1e-6)


# --- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason", "message"),
    [
        ({"task": [3, 0]}, "model", "user 0: task = 3, no model does it"),
        (
            {"min_accuracy": [0.9, 0.0], "accuracy": [0.5, 0.7]}, "model",
            "user 0: min_accuracy = 0.9, one layer has 0.7",
        ),
        ({"memory_bytes": [0.5, 9.0]}, "model", "user 0: memory_bytes = 0.5, two layers takes 1"),
        ({"deadline_s": [0.2, 6.0]}, "deadline", "user 0: deadline_s = 0.2, computing one layer takes 0.25 s at 2 Hz"),
        (
            {"frequency_levels": [0.5], "deadline_s": [0.4, 6.0]}, "deadline",
            "user 0: deadline_s = 0.4, computing one layer takes 0.5 s at 1 Hz",
        ),
        # half a cycle in five seconds is 0.1 Hz: 0.5 * 0.1^2 J; three cycles take 3 * 0.6^2
        (
            {"energy_j": [0.0049, np.inf]}, "energy",
            "user 0: energy_j = 0.0049, one layer takes at least 0.005 J to meet the deadline",
        ),
        # 16 bits in 5 - 0.25 s; two layers: 8 bits in 5 - 2 / 2 s
        (
            {"spectral_efficiency": None, "snr_hz": [1.0, 90.0]}, "rate",
            "user 0: two layers needs 2 bit/s, the channel carries less than 1.4427 over any bandwidth",
        ),
        (
            {"bandwidth_hz": 1.5, "spectral_efficiency": [1.0, 9.0]}, "bandwidth",
            "user 0: two layers needs 2 bit/s, the whole bandwidth carries 1.5",
        ),
    ],
)  # fmt: skip
def test_refusals(changes, reason, message):
    """Every reason is told apart, with the numbers of the model that comes closest; the other user can be served."""
    (found,) = problem(**changes).refusals()
    assert (found.user, found.reason, found.message) == (0, reason, message)


def test_nobody_is_refused_without_reason():
    """In the plain problem both users can be served; whoever `slide` admits is never listed."""
    assert problem().refusals() == ()
    for seed in range(20):
        one = ModelDownload.random(seed=seed, fixed_power=seed % 2 == 1)
        admitted = np.flatnonzero(edgeopt.solve(one, "slide").solution.admitted)
        assert not set(admitted) & {refusal.user for refusal in one.refusals()}


def test_a_deadline_of_exactly_the_compute_time():
    """No rate is enough, to the last digit of however the seconds are added up: the deadline is named, not an infinite rate."""
    seconds = 0.1 * 0.3 / 0.7
    one = ModelDownload(
        layer_indptr=[0, 1], layer_bits=[4.0], layer_flops=[0.3], model_names=("one layer",), cycles_per_flop=[0.1],
        deadline_s=[np.nextafter(seconds, 1.0)], min_frequency_hz=0.1, max_frequency_hz=0.7, spectral_efficiency=1.0,
        bandwidth_hz=8.0,
    )  # fmt: skip
    assert [refusal.reason for refusal in one.refusals()] == ["deadline"]


def test_refused_users_cannot_be_served_alone():
    """Whoever is listed stays refused when alone; without energy limits the list of the others is complete."""
    listed = 0
    for seed in range(4):
        one = ModelDownload.random(num_users=12, seed=seed, energy=None, fixed_power=seed % 2 == 1)
        users = {refusal.user for refusal in one.refusals()}
        for k in range(one.num_users):
            alone = one.replace(task=np.where(np.arange(one.num_users) == k, one.task, 99))
            assert edgeopt.solve(alone, "slide").objective == (k not in users)
        listed += len(users)
    assert listed > 5


def test_counts_of_refusals():
    """Counts by reason are those of the list, without its messages; `describe` and the summary have them."""
    for seed in range(4):
        one = ModelDownload.random(num_users=60, seed=seed, bandwidth_hz=20e6, fixed_power=seed % 2 == 1)
        listed = [refusal.reason for refusal in one.refusals()]
        assert one.count_refusals() == {reason: listed.count(reason) for reason in get_args(Reason) if reason in listed}
    assert problem().count_refusals() == {}
    assert problem().describe()["users that cannot be served"] == "0"
    assert problem().refusal_summary() == ""
    one = problem(task=[3, 0], deadline_s=[5.0, 0.01])
    assert one.describe()["users that cannot be served"] == "2 (1 model, 1 deadline)"
    assert one.refusal_summary() == (
        "2 of 2 users cannot be served even alone (1 model, 1 deadline); user 0: task = 3, no model does it"
    )


# --- builders ----------------------------------------------------------------------------------------------------


def test_random_is_reproducible_and_independent_of_options():
    """Same seed, same problem; options leave everything else as drawn."""
    one = ModelDownload.random(seed=5)
    assert one == ModelDownload.random(seed=5)
    assert one != ModelDownload.random(seed=6)
    other = ModelDownload.random(seed=5, energy=None, weighted=True, deadline_s=1.0, resource_block_hz=1e6)
    for name in ("task", "spectral_efficiency", "cycles_per_flop", "samples", "memory_bytes"):
        assert np.array_equal(getattr(one, name), getattr(other, name))
    assert not other.is_energy_limited
    assert (other.deadline_s == 1.0).all()
    assert set(other.user_weight) <= {1, 2, 3, 4, 5}


def test_random_is_interesting():
    """Not everybody is served, overlap and slower computing pay, and users are refused for different reasons."""
    reasons, served = set(), dict.fromkeys(("slide", "download-then-infer", "fixed-frequency"), 0.0)
    for seed in range(8):
        one = ModelDownload.random(seed=seed)
        reasons |= {refusal.reason for refusal in one.refusals()}
        for name in served:
            served[name] += edgeopt.solve(one, name).objective
    assert {"deadline", "energy"} <= reasons
    assert max(served["download-then-infer"], served["fixed-frequency"]) < served["slide"] < 0.9 * 8 * 30


def test_from_profiles():
    """Layers are those of the profile, efficiencies those of the cell's channels, speeds those of the devices."""
    network = EdgeNetwork.random(3, 40, seed=2)
    one = ModelDownload.from_profiles(["resnet18", model_profile("gpt2", "int8")], network, server=1, model_task=[0, 1])
    users = np.flatnonzero(network.coverage[:, 1])
    assert one.num_users == users.size
    assert one.model_names == ("resnet18", "gpt2")
    assert one.model_bits == pytest.approx([11689512 * 32, 124439808 * 8])
    snr = network.server_power_w[1] * network.channel_gain[users, 1] / (network.noise_w_per_hz * 200e6)
    assert one.spectral_efficiency == pytest.approx(np.log2(1 + snr))
    assert one.max_frequency_hz / one.cycles_per_flop == pytest.approx(network.device_flops[users])
    fixed = ModelDownload.from_profiles(["resnet18"], network, server=1, fixed_power=True)
    assert fixed.snr_hz == pytest.approx(snr * 200e6 / users.size)


def test_layers_without_parameters_run_with_the_layer_before():
    """They have nothing to download; their work is not lost."""
    profile = ModelProfile(
        name="tiny", layer_names=("hidden", "activation", "head"), parameter_bytes=[96, 0, 40],
        forward_flops=[40, 5, 16], backward_flops=[0, 0, 0], activation_bytes=[16, 16, 8], memory_bytes=[0, 0, 0],
        input_bytes=20,
    )  # fmt: skip
    one = ModelDownload.from_profiles([profile], EdgeNetwork.random(1, 5, seed=1))
    assert one.layer_bits.tolist() == [768.0, 320.0]
    assert one.layer_flops.tolist() == [45.0, 16.0]


def test_builders_refuse():
    """Empty lists, unknown servers and wrong ranges are errors that name them."""
    network = EdgeNetwork.random(2, 5, seed=1)
    with pytest.raises(InvalidProblemError, match="profiles: expected at least one model"):
        ModelDownload.from_profiles([], network)
    with pytest.raises(InvalidProblemError, match="profiles = 'resnet18': expected a sequence of models"):
        ModelDownload.from_profiles("resnet18", network)
    with pytest.raises(InvalidProblemError, match=r"profiles\[1\] = 3: expected a ModelProfile or the name of one"):
        ModelDownload.from_profiles(["resnet18", 3], network)
    with pytest.raises(InvalidProblemError, match="server = 2: expected an integer from 0 to 1"):
        ModelDownload.from_profiles(["resnet18"], network, server=2)
    with pytest.raises(InvalidProblemError, match="server = 0: it covers no device"):
        ModelDownload.from_profiles(["resnet18"], network.replace(coverage=np.zeros((5, 2), bool)))
    with pytest.raises(InvalidProblemError, match="num_models = 13: expected an integer from 1 to 12"):
        ModelDownload.random(num_models=13)
    with pytest.raises(InvalidProblemError, match=r"deadline_s = \(3.0, 1.0\): expected low <= high"):
        ModelDownload.random(deadline_s=(3.0, 1.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"deadline_s": (-1, 2)}, r"deadline_s = \(-1, 2\): expected a positive number \(s\), or a range of them"),
        ({"deadline_s": 0.0}, r"deadline_s = 0.0: expected a positive number \(s\), or a range of them"),
        ({"deadline_s": (1, 2, 3)}, r"deadline_s = \(1, 2, 3\): expected a positive number \(s\), or a range of them"),
        ({"deadline_s": "soon"}, "deadline_s = 'soon': expected a positive number"),
        ({"deadline_s": None}, "deadline_s = None: expected a positive number"),
        ({"snr_db": (1.0,)}, r"snr_db = \(1.0,\): expected a finite number \(dB\), or a range of them"),
        ({"snr_db": [2, 1]}, r"snr_db = \[2, 1\]: expected low <= high"),
        ({"energy": math.nan}, "energy = nan: expected a finite number, or a range of them"),
        ({"energy": (0.0, math.inf)}, r"energy = \(0.0, inf\): expected a finite number"),
        ({"bandwidth_hz": None}, r"bandwidth_hz = None: expected a positive number \(Hz\)"),
    ],
)
def test_bad_options_of_random(options, message):
    """Errors name the option as it was given, whatever would have been drawn."""
    with pytest.raises(InvalidProblemError, match=message):
        ModelDownload.random(num_users=1, **options)


def test_ranges_may_be_lists():
    """Files of instances have no tuples: a list of two numbers is a range too."""
    assert ModelDownload.random(deadline_s=[1, 2]) == ModelDownload.random(deadline_s=(1.0, 2.0))


# --- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".json", ".npz"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"spectral_efficiency": None, "snr_hz": [1.0, 2.0]},
        {"frequency_levels": [0.5, 1.0], "resource_block_hz": 0.5},
    ],
    ids=["plain", "concave", "levels and blocks"],
)
def test_files(tmp_path, suffix, changes):
    """What is saved is read back equal, infinite limits and missing options included."""
    one = problem(energy_j=[1.0, np.inf], **changes)
    path = tmp_path / f"problem{suffix}"
    one.save(path)
    again = edgeopt.load(path)
    assert again == one
    assert again.fingerprint() == one.fingerprint()
    assert one != problem(**changes)
    assert one.describe()["users"] == 2


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda v, a: v.update(models="ab"), "models = 'ab': expected a list of names"),
        (lambda v, a: a.pop("layer_bits"), "layer_bits: array is missing"),
        (lambda v, a: a.update(extra=a["task"]), "extra: not an array of model-download"),
        (lambda v, a: v.pop("bandwidth_hz"), "bandwidth_hz: value is missing"),
        (lambda v, a: v.update(bandwidth_hz="wide"), "bandwidth_hz = 'wide': expected a number"),
        (lambda v, a: v.update(models=["one"]), r"layer_indptr: expected shape \[2\], got \[3\]"),
    ],
)
def test_damaged_files(damage, message):
    """Whatever is missing or wrong in a file is named."""
    values, arrays = problem().to_data()
    damage(values, arrays)
    with pytest.raises(InvalidProblemError, match=message):
        ModelDownload.from_data(values, arrays)


def test_plans_as_plain_values():
    """A plan reads back from JSON values; documents that are no plan are refused."""
    one, made = problem(), plan()
    assert one.solution_from_json(made.to_json()) == made
    assert made != plan(bandwidth_hz=[4.0, 5.0])
    assert made != "plan"
    with pytest.raises(
        InvalidProblemError, match="solution: bandwidth_hz: value is missing: expected a list of numbers"
    ):
        one.solution_from_json({"model": [0, 1]})
    with pytest.raises(InvalidProblemError, match=r"frequency_hz: expected shape \[3\], one for each layer"):
        one.solution_from_json(made.to_json() | {"frequency_hz": [1.0]})


# --- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bandwidth_hz": 0.0}, r"bandwidth_hz = 0.0: expected a positive number \(Hz\)"),
        ({"bandwidth_hz": -5.0}, r"bandwidth_hz = -5.0: expected a positive number \(Hz\)"),
        ({"bandwidth_hz": math.nan}, r"bandwidth_hz = nan: expected a positive number"),
        ({"bandwidth_hz": math.inf}, r"bandwidth_hz = inf: expected a positive number"),
        ({"bandwidth_hz": None}, r"bandwidth_hz = None: expected a positive number \(Hz\)"),
        ({"bandwidth_hz": True}, r"bandwidth_hz = True: expected a positive number \(Hz\)"),
        ({"bandwidth_hz": "wide"}, r"bandwidth_hz = 'wide': expected a positive number \(Hz\)"),
        ({"bandwidth_hz": [1.0]}, r"bandwidth_hz = \[1.0\]: expected a positive number \(Hz\)"),
        ({"resource_block_hz": True}, r"resource_block_hz = True: expected a positive number \(Hz\)"),
        ({"resource_block_hz": 0.0}, r"resource_block_hz = 0.0: expected a positive number"),
        ({"model_names": (), "layer_indptr": [0], "layer_bits": [], "layer_flops": []}, "model_names: expected at least one model"),
        ({"model_names": "ab"}, "model_names = 'ab': expected a sequence of names"),
        ({"model_names": (1, 2)}, r"model_names = \(1, 2\): expected a sequence of names"),
        ({"layer_indptr": [0, 0, 3]}, r"layer_indptr\[1\] = 0: expected more than 0, two layers needs a layer"),
        ({"layer_indptr": [1, 2, 3]}, r"layer_indptr\[0\] = 1: expected 0"),
        ({"layer_indptr": [0, 3]}, r"layer_indptr: expected shape \[3\], got \[2\]"),
        ({"layer_bits": [4.0, 0.0, 16.0]}, r"layer_bits\[1\] = 0.0: expected a positive number \(bit\)"),
        ({"layer_bits": [4.0, 4.0]}, r"layer_bits: expected shape \[3\], got \[2\]"),
        ({"layer_flops": [1.0, -1.0, 0.0]}, r"layer_flops\[1\] = -1.0: expected a non-negative number \(FLOP\)"),
        ({"layer_flops": [1.0, math.nan, 0.0]}, r"layer_flops\[1\] = nan: expected a non-negative number"),
        ({"layer_fixed_s": [-1.0, 0.0, 0.0]}, r"layer_fixed_s\[0\] = -1.0: expected a non-negative number \(s\)"),
        ({"deadline_s": [5.0, -1.0]}, r"deadline_s\[1\] = -1.0: expected a positive number \(s\)"),
        ({"deadline_s": [0.0, 1.0]}, r"deadline_s\[0\] = 0.0: expected a positive number \(s\)"),
        ({"deadline_s": []}, "deadline_s: expected at least one user"),
        ({"deadline_s": [math.inf, 1.0]}, r"deadline_s\[0\] = inf: expected a positive number \(s\)"),
        ({"min_frequency_hz": [0.1, 3.0]}, r"min_frequency_hz\[1\] = 3.0: expected at most 2.0 \(Hz\)"),
        ({"max_frequency_hz": [2.0, 0.0]}, r"max_frequency_hz\[1\] = 0.0: expected a positive number \(Hz\)"),
        ({"energy_j": [0.0, 1.0]}, r"energy_j\[0\] = 0.0: expected a positive number \(J\) or inf"),
        ({"energy_j": [math.nan, 1.0]}, r"energy_j\[0\] = nan: expected a positive number \(J\) or inf"),
        ({"energy_coefficient": [0.0, 1.0]}, r"energy_coefficient\[0\] = 0.0: expected a positive number"),
        ({"receive_j_per_bit": [0.0, -1.0]}, r"receive_j_per_bit\[1\] = -1.0: expected a non-negative number"),
        ({"samples": [0, 1]}, r"samples\[0\] = 0.0: expected a positive number"),
        ({"cycles_per_flop": [1.0, 0.0]}, r"cycles_per_flop\[1\] = 0.0: expected a positive number"),
        ({"memory_bytes": [-1.0, 1.0]}, r"memory_bytes\[0\] = -1.0: expected a non-negative number \(byte\) or inf"),
        ({"accuracy": [0.5, 1.5]}, r"accuracy\[1\] = 1.5: expected a number from 0 to 1"),
        ({"min_accuracy": [1.01, 0.0]}, r"min_accuracy\[0\] = 1.01: expected a number from 0 to 1"),
        ({"model_reward": [1.0, 0.0]}, r"model_reward\[1\] = 0.0: expected a positive number"),
        ({"user_weight": [-1.0, 0.0]}, r"user_weight\[0\] = -1.0: expected a positive number"),
        ({"task": [0.5, 1]}, r"task\[0\] = 0.5: expected an integer >= 0"),
        ({"model_task": [-1, 1]}, r"model_task\[0\] = -1: expected an integer >= 0"),
        ({"spectral_efficiency": None}, "spectral_efficiency, snr_hz: expected exactly one of them"),
        ({"snr_hz": [1.0, 1.0]}, "spectral_efficiency, snr_hz: expected exactly one of them"),
        ({"spectral_efficiency": [0.0, 1.0]}, r"spectral_efficiency\[0\] = 0.0: expected a positive number"),
        ({"frequency_levels": []}, "frequency_levels: expected at least one level, or None"),
        ({"frequency_levels": [0.5, 1.5]}, r"frequency_levels\[1\] = 1.5: expected a share of the maximum frequency"),
        ({"frequency_levels": [0.5, 0.5]}, r"frequency_levels\[1\] = 0.5: expected ascending levels"),
        ({"frequency_levels": [0.01]}, r"min_frequency_hz\[0\] = 0.1: expected at most the highest level, 0.02 \(Hz\)"),
    ],
)  # fmt: skip
def test_bad_input(changes, message):
    """Errors name field, index, value and what was expected."""
    with pytest.raises(InvalidProblemError, match=message):
        problem(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": [0, -2]}, r"model\[1\] = -2: expected an integer >= -1"),
        ({"bandwidth_hz": [1.0]}, r"bandwidth_hz: expected shape \[2\], got \[1\]"),
        ({"bandwidth_hz": [1.0, -1.0]}, r"bandwidth_hz\[1\] = -1.0: expected a non-negative number \(Hz\)"),
        ({"frequency_hz": [1.0, 0.0, 1.0]}, r"frequency_hz\[1\] = 0.0: expected a positive number \(Hz\)"),
    ],
)
def test_bad_plans(changes, message):
    """Plans check themselves."""
    with pytest.raises(InvalidProblemError, match=message):
        plan(**changes)


def test_plans_of_other_problems():
    """A plan must fit the number of users, models and layers."""
    with pytest.raises(InvalidProblemError, match="solution: expected a DownloadPlan, got list"):
        problem().objective([0, 1])
    with pytest.raises(InvalidProblemError, match=r"model: expected shape \[2\], got \[3\]"):
        problem().violations(DownloadPlan.refuse_all(3))
    with pytest.raises(InvalidProblemError, match=r"model\[1\] = 2: expected a model from -1 to 1"):
        problem().simulate(plan(model=[0, 2]))
    with pytest.raises(InvalidProblemError, match=r"frequency_hz: expected shape \[4\]"):
        problem().simulate(plan(model=[0, 0]))


def test_problems_are_frozen():
    """Arrays are copies and read-only."""
    deadline = np.array([5.0, 6.0])
    one = problem(deadline_s=deadline)
    deadline[0] = 1.0
    assert one.deadline_s[0] == 5.0
    with pytest.raises(ValueError, match="read-only"):
        one.deadline_s[0] = 1.0
    with pytest.raises(ValueError, match="read-only"):
        one.allowed[0, 0] = False

"""Experts cached, models downloaded and clients trained on one network: storage, bandwidth and energy shared out jointly.

``edgeopt study joint-plan --out out/joint-plan``

On each random network the three decisions have priorities of 1, 3 or 9. ``joint`` shares the resources out with bounds from both
sides (`edgeopt.solvers.joint.JointPlan`), ``equal-shares`` gives each decision as much as the others of what it takes, and
``one-after-another`` decides by falling priority, each taking the fewest blocks with which it has 99 % of what all that is left
would bring it. Values are relative to what each decision is worth with all of the network.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from edgeopt import EdgeNetwork
from edgeopt.evaluation.compare.rows import Row
from edgeopt.evaluation.studies.claims import Always, Claim, Ratio
from edgeopt.evaluation.studies.study import Found, Picture, Study, StudyCell
from edgeopt.evaluation.studies.tables import plus_minus
from edgeopt.problems import ExpertCaching, ModelDownload, SplitTraining
from edgeopt.profile import model_profile
from edgeopt.rng import stream
from edgeopt.solvers.joint import JointPlan, JointResult
from edgeopt.solvers.joint_network import BANDWIDTH, ENERGY, STORAGE, OnNetwork

SYSTEM, EQUAL, SEQUENCE = "joint", "equal-shares", "one-after-another"
DECISIONS = ("caching", "download", "training")
PRIORITIES = (1.0, 3.0, 9.0)
MODELS = {"mobilenetv2": 0.72, "resnet18": 0.70, "resnet50": 0.76, "vit-b16": 0.81}  # on offer: accuracy on ImageNet
FLOORS = (0.7, 0.72, 0.75, 0.8)  # of accuracy, that users ask for
LARGEST = "vit-b16"


@dataclass(frozen=True, slots=True)
class Setting:
    """What all runs have in common.

    Parameters
    ----------
    servers, devices : of the network.
    layers, experts : of the mixture of experts that is cached.
    storage_gb : of each server.
    mhz : band of the downloads.
    link_mhz : of each link of the training up; twice that down.
    deadline_s : downloads are due between a sixth of it and all of it.
    energy : limit of each user, as a share of what the largest model takes at full speed.
    samples : that each user runs.
    max_batch : of the training.
    blocks : that each resource is given out in.
    gap : relative, at which the sharing out ends.
    solve_s : seconds for each solve.
    """

    servers: int = 3
    devices: int = 20
    layers: int = 8
    experts: int = 32
    storage_gb: float = 0.55
    mhz: float = 40.0
    link_mhz: float = 2.0
    deadline_s: float = 120.0
    energy: float = 0.8
    samples: int = 20
    max_batch: int = 32
    blocks: int = 16
    gap: float = 0.01
    solve_s: float = 1.0


def competition(setting: Setting, seed: int) -> OnNetwork:
    """Return the three decisions on a random network, and what each counts."""
    network = EdgeNetwork.random(
        setting.servers, setting.devices, seed=seed, area_m=600.0, coverage_radius_m=2000.0,
        server_storage_bytes=1e9 * setting.storage_gb, uplink_bandwidth_hz=1e6 * setting.link_mhz,
        downlink_bandwidth_hz=2e6 * setting.link_mhz,
    )  # fmt: skip
    caching = ExpertCaching.random(
        network=network, num_layers=setting.layers, experts_per_layer=setting.experts, storage=None, seed=seed
    )
    rng, users = stream(seed, "users"), network.num_devices
    download = ModelDownload.from_profiles(
        list(MODELS), network, bandwidth_hz=1e6 * setting.mhz, samples=float(setting.samples), accuracy=list(MODELS.values()),
        deadline_s=rng.uniform(setting.deadline_s / 6, setting.deadline_s, users), min_accuracy=rng.choice(FLOORS, users),
    )  # fmt: skip
    work = download.cycles_per_layer_flop * model_profile(LARGEST).forward_flops.sum()
    full_speed = download.energy_coefficient * work * download.max_frequency_hz**2
    weights = dict(zip(DECISIONS, stream(seed, "priorities").choice(PRIORITIES, 3).tolist(), strict=True))
    return OnNetwork(
        network=network,
        caching=caching,
        download=download.replace(energy_j=setting.energy * full_speed),
        training=partial(
            SplitTraining.from_profile, model_profile("resnet18"), max_batch=setting.max_batch, interval=1
        ),
        weights=weights,
        time_limit=setting.solve_s,
    )


def decided(plan: JointPlan, variant: str, setting: Setting) -> JointResult:
    """Return how a variant shares out."""
    if variant == SYSTEM:
        return plan.solve(gap=setting.gap)
    if variant == EQUAL:
        return plan.equal_shares()
    return plan.one_after_another([one.name for one in sorted(plan.contenders, key=lambda one: -one.weight)])


def run(cell: StudyCell[Setting]) -> Row:
    """Share out; of the system, also how the bounds came together."""
    setting = cell.setting
    plan = competition(setting, cell.seed).plan(dict.fromkeys((STORAGE, BANDWIDTH, ENERGY), setting.blocks))
    result = decided(plan, cell.variant, setting)
    found: Row = {"value": result.value, "evaluations": result.evaluations}
    for one in plan.contenders:
        found[f"{one.name}_worth"] = result.worth[one.name]
        found[f"{one.name}_weight"] = one.weight
        found |= {f"{one.name}_{name}": count for name, count in result.blocks[one.name].items()}
    if cell.variant == SYSTEM:
        found |= {"bound": result.bound, "gap": result.gap}
        found["curve"] = [[one.evaluations, one.value, one.bound] for one in result.rounds]
    return found


def tables(found: Found[Setting]) -> dict[str, list[Row]]:
    """Return values and worths of each variant, means over networks, and every run."""
    summary: list[Row] = []
    best = {row["seed"]: row["value"] for row in found.of(variant=SYSTEM)}
    for variant in found.variants():
        own = found.of(variant=variant)
        row: Row = {"variant": variant, "value": plus_minus([one["value"] for one in own])}
        if gains := [100 * (best[one["seed"]] / one["value"] - 1) for one in own if one["seed"] in best]:
            row["joint is better by, %"] = plus_minus(gains) if variant != SYSTEM else "-"
        row |= {f"{name}, worth": plus_minus([one[f"{name}_worth"] for one in own]) for name in DECISIONS}
        row["evaluations"] = plus_minus([one["evaluations"] for one in own])
        summary.append(row)
    runs = [{name: value for name, value in row.items() if name != "curve"} for row in found.rows]
    return {"summary": summary, "runs": runs}


def pictures(found: Found[Setting]) -> dict[str, Picture]:
    """Return values beside each other, who gets what, and how the bounds come together."""
    if not found.of(variant=SYSTEM):
        return {}
    return {
        "values": Picture("Value on each network, as a share of what is proved to be the most", partial(draw_values, found)),
        "shares": Picture("Blocks that the joint plan gives to each decision, by network", partial(draw_shares, found)),
        "bounds": Picture("Value and bound of the joint plan against evaluations, in units of the last bound", partial(draw_bounds, found)),
    }  # fmt: skip


def draw_values(found: Found[Setting]) -> Any:
    """Draw a group of bars for each network: each variant's value over the bound."""
    from edgeopt.evaluation.plots.style import COLOURS, legend_above, new_axes

    ax, drawn = new_axes(), {}
    bound = {row["seed"]: row["bound"] for row in found.of(variant=SYSTEM)}
    seeds, variants = sorted(bound), found.variants()
    ax.grid(visible=False, axis="x")
    for place, variant in enumerate(variants):
        share = {
            row["seed"]: row["value"] / bound[row["seed"]] for row in found.of(variant=variant) if row["seed"] in bound
        }
        x = [at + 0.8 * ((place + 0.5) / len(variants) - 0.5) for at, seed in enumerate(seeds) if seed in share]
        height = [share[seed] for seed in seeds if seed in share]
        drawn[variant] = ax.bar(x, height, width=0.8 / len(variants), color=COLOURS[place])
    ax.set_xticks(range(len(seeds)), [str(seed) for seed in seeds])
    ax.set_xlabel("network")
    ax.set_ylabel("value over bound")
    ax.set_ylim(0.0, 1.0)
    legend_above(ax, drawn)
    return ax


def draw_shares(found: Found[Setting]) -> Any:
    """Draw stacked bars for each network and resource."""
    from edgeopt.evaluation.plots.style import COLOURS, legend_above, new_axes, whole_ticks

    ax, drawn = new_axes(), {}
    rows = sorted(found.of(variant=SYSTEM), key=lambda row: row["seed"])
    ax.grid(visible=False, axis="x")
    ticks: list[tuple[float, str]] = []
    for at, row in enumerate(rows):
        for place, resource in enumerate((STORAGE, BANDWIDTH, ENERGY)):
            x, bottom = at + 0.28 * (place - 1), 0
            ticks.append((x, resource[0]))
            for colour, name in enumerate(DECISIONS):
                if count := row.get(f"{name}_{resource}", 0):
                    drawn[name] = ax.bar(x, count, bottom=bottom, width=0.24, color=COLOURS[colour])
                    bottom += count
    ax.set_xticks([x for x, _ in ticks], [letter for _, letter in ticks], fontsize=8)
    ax.set_xlabel(f"networks {', '.join(str(row['seed']) for row in rows)}: storage, bandwidth, energy")
    ax.set_ylabel("blocks")
    whole_ticks(ax.yaxis)
    legend_above(ax, {name: drawn[name] for name in DECISIONS if name in drawn})
    return ax


def draw_bounds(found: Found[Setting]) -> Any:
    """Draw two curves for each network."""
    from edgeopt.evaluation.plots.style import COLOURS, legend_above, new_axes

    ax, drawn = new_axes(), {}
    for row in found.of(variant=SYSTEM):
        curve = np.array(row["curve"])
        (drawn["bound"],) = ax.plot(curve[:, 0], curve[:, 2] / row["bound"], color=COLOURS[1], linewidth=1.2, alpha=0.7)
        (drawn["value"],) = ax.plot(curve[:, 0], curve[:, 1] / row["bound"], color=COLOURS[0], linewidth=1.2, alpha=0.7)
    ax.set_xlabel("values worked out")
    ax.set_ylabel("share of the last bound")
    legend_above(ax, drawn)
    return ax


CLAIMS = (
    Claim(
        text="The joint optimum is known to 5 % on every network",
        source="ours",
        test=Always(metric="gap", variants=(SYSTEM,), below=0.05),
    ),
    *(
        Claim(
            text=f"Shared out jointly, the decisions are worth at least 10 % more than {words}, in the mean over networks",
            source="ours",
            test=Ratio(metric="value", first=SYSTEM, second=name, above=1.1),
        )
        for name, words in ((SEQUENCE, "one after another by priority"), (EQUAL, "with equal shares"))
    ),
)

STUDY = Study(
    name="joint-plan",
    title="Caching, downloads and training that share storage, bandwidth and energy",
    system=SYSTEM,
    baselines=(EQUAL, SEQUENCE),
    tasks=("network",),
    seeds=10,
    full=Setting(),
    quick=Setting(servers=2, devices=6, layers=2, experts=8, storage_gb=0.3, blocks=3, gap=0.1, solve_s=0.3),
    measure=run,
    claims=CLAIMS,
    tables=tables,
    pictures=pictures,
)

"""What planners of model download lose over time: held against what nobody can exceed, even who knows all that comes.

``edgeopt study download-regret --out out/download-regret``; on a trace of one's own ``--tasks file --set trace=rates.npz``

Requests for a model arrive over time, and `rolling_horizon` decides on those that wait by a solver of model download, at the
rates of the moment. Downloads then follow the trace of their link. Nobody knows which requests come next, nor how rates
change. `clairvoyant_bound` is what no planner can have done in time; it may be out of reach, so what is called *regret* here,
the share of it that a planner lacks, is the most that there can be.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from edgeopt.evaluation.compare.rows import Row
from edgeopt.evaluation.statistics import interval
from edgeopt.evaluation.studies.claims import Always, Claim, Difference, Level
from edgeopt.evaluation.studies.study import Found, Picture, Study, StudyCell
from edgeopt.evaluation.studies.tables import plus_minus
from edgeopt.problems import ModelDownload
from edgeopt.rng import stream
from edgeopt.series import KINDS, TimeSeries
from edgeopt.solvers.model_download import clairvoyant_bound, poisson_arrivals, rolling_horizon

SYSTEM = "slide"
BASELINES = ("download-then-infer", "fixed-frequency", "smallest-model", "equal-bandwidth", "random")
FILE = "file"
MEAN_BPS = (2e8, 1.6e9)  # range of the links' mean rates on the whole band
DURATION_S = 300.0  # of a random trace, which then begins again


@dataclass(frozen=True, slots=True)
class Setting:
    """What all runs have in common.

    Parameters
    ----------
    requests : how many arrive; on a trace of one's own, request j has column j modulo their number.
    per_s : arrivals per second.
    deadline_low_s, deadline_high_s : range of the deadlines.
    trace : file of the task ``file``, as `TimeSeries.save` wrote it; the seed decides which second is the first.
    """

    requests: int = 150
    per_s: float = 15.0
    deadline_low_s: float = 0.5
    deadline_high_s: float = 3.0
    trace: str = ""

    def requested(self, task: str, seed: int) -> tuple[ModelDownload, Any, TimeSeries]:
        """Return the requests, when each arrives, and the rates of each."""
        deadline = (self.deadline_low_s, self.deadline_high_s)
        problem = ModelDownload.random(num_users=self.requests, deadline_s=deadline, seed=seed)
        arrival = poisson_arrivals(self.requests, self.per_s, seed=seed)
        if task == FILE:
            links = TimeSeries.load(self.trace, "rate")
            return (
                problem,
                arrival + stream(seed, "start").uniform(0, links.period_s.max()),
                links.for_clients(self.requests),
            )
        return problem, arrival, TimeSeries.random(
            task, clients=self.requests, duration_s=DURATION_S, mean_bps=MEAN_BPS, seed=seed
        )  # fmt: skip


def run(cell: StudyCell[Setting]) -> Row:
    """Serve the requests, and bound what could have been served."""
    problem, arrival, rates = cell.setting.requested(cell.task, cell.seed)
    result = rolling_horizon(problem, arrival, cell.variant, rates=rates, seed=cell.seed)
    bound = clairvoyant_bound(problem, arrival, rates=rates)
    return {
        "done": result.num_done,
        "bound": bound,
        "share": result.num_done / bound if bound > 0 else 1.0,
        "regret": 1 - result.num_done / bound if bound > 0 else 0.0,
        "late": float(result.late.mean()),
        "refused": result.num_refused / result.num_requests,
        "waiting_s": result.summary()["waiting_mean_s"],
        "utilisation": result.utilisation,
    }


def tables(found: Found[Setting]) -> dict[str, list[Row]]:
    """Return the share of the bound of each solver on each kind of trace, who was late or refused, and every run."""
    summary: list[Row] = []
    fates: list[Row] = []
    for variant in found.variants():
        row: Row = {"solver": variant}
        for task in found.tasks:
            if own := found.of(variant=variant, task=task):
                row[f"{task}, %"] = plus_minus([100 * one["share"] for one in own])
                fate: Row = {"solver": variant, "trace": task}
                for name in ("done", "bound"):
                    fate[name] = plus_minus([one[name] for one in own])
                for name in ("late", "refused"):
                    fate[f"{name}, %"] = plus_minus([100 * one[name] for one in own])
                fates.append(fate)
        summary.append(row)
    return {"summary": summary, "fates": fates, "runs": list(found.rows)}


def pictures(found: Found[Setting]) -> dict[str, Picture]:
    """Return the share of the bound, and who was late, by trace and solver."""
    shown = {
        "share": ("Done in time, as a share of what nobody can exceed: mean over seeds and 95 % interval", "share of the bound"),
        "late": ("Admitted and late: mean over seeds and 95 % interval", "share of the requests"),
    }  # fmt: skip
    return {name: Picture(title, partial(draw, found, name, label)) for name, (title, label) in shown.items()}


def draw(found: Found[Setting], metric: str, label: str) -> Any:
    """Draw a group of bars for each trace."""
    from edgeopt.evaluation.plots.style import COLOURS, legend_above, new_axes

    ax, drawn = new_axes(), {}
    ax.grid(visible=False, axis="x")
    variants, tasks = found.variants(), [task for task in found.tasks if found.of(task=task)]
    for place, variant in enumerate(variants):
        groups = {at: found.of(variant=variant, task=task) for at, task in enumerate(tasks)}
        spans = {at: interval(row[metric] for row in rows) for at, rows in groups.items() if rows}
        x = [at + 0.8 * ((place + 0.5) / len(variants) - 0.5) for at in spans]
        height = [span.mean for span in spans.values()]
        drawn[variant] = ax.bar(x, height, width=0.8 / len(variants), color=COLOURS[place])
        half = np.nan_to_num([span.high - span.mean for span in spans.values()])
        ax.errorbar(x, height, half, fmt="none", ecolor="#444444", elinewidth=0.8)
    ax.set_xticks(range(len(tasks)), tasks)
    ax.set_ylabel(label)
    ax.set_ylim(bottom=0.0)
    legend_above(ax, drawn)
    return ax


CLAIMS = (
    Claim(
        text="No solver has more done in time than the bound",
        source="ours",
        test=Always(metric="regret", variants=(SYSTEM, *BASELINES), above=-1e-9),
    ),
    Claim(
        text="Where rates never change, nobody who was admitted is late",
        source="ours",
        test=Always(metric="late", variants=(SYSTEM, *BASELINES), below=1e-9, task="steady"),
    ),
    Claim(
        text="Where rates never change, not knowing who comes next costs slide less than 20 % of what can be done",
        source="ours",
        test=Level(metric="regret", variant=SYSTEM, below=0.2, task="steady"),
    ),
    Claim(
        text="Where rates fade anew every second, not knowing them costs slide more than 20 % of what the bound allows",
        source="ours",
        test=Level(metric="regret", variant=SYSTEM, above=0.2, task="fading"),
    ),
    *(
        Claim(
            text=f"slide leaves less to regret than {name}, on all traces",
            source="ours",
            test=Difference(metric="regret", first=SYSTEM, second=name, below=0.0),
        )
        for name in BASELINES
    ),
    Claim(
        text="Where rates never change, running layers before the whole model is there leaves less to regret than downloading first",
        source="ours",
        test=Difference(metric="regret", first=SYSTEM, second="download-then-infer", below=0.0, task="steady"),
    ),
    Claim(
        text="Where rates fade, bandwidth for downloading first is a reserve: fewer are late than by slide",
        source="ours",
        test=Difference(metric="late", first="download-then-infer", second=SYSTEM, below=0.0, task="fading"),
    ),
)

STUDY = Study(
    name="download-regret",
    title="What not knowing the future costs planners of model download, at most",
    system=SYSTEM,
    baselines=BASELINES,
    tasks=KINDS,
    on_demand=(FILE,),
    seeds=10,
    full=Setting(),
    quick=Setting(requests=30),
    measure=run,
    claims=CLAIMS,
    tables=tables,
    pictures=pictures,
)

"""Time client selection: ``python -m edgeopt.evaluation.benchmarks.client_selection``.

Decisions of servers per second in the environment, played alone, with what a learner needs around it, and by `reservation`; fits of the
hidden Markov model beside hmmlearn's, where it is installed, from the same start to the same numbers; forecasts on
gapped data by the loss of the truth; a round of the matching beside SciPy's assignment. Everything runs in one thread.
Times count when the results agree.
"""

import argparse
import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from edgeopt.evaluation.benchmarks import common
from edgeopt.evaluation.benchmarks.common import Row, clock, seconds
from edgeopt.jit import CompileTimer
from edgeopt.problems import ClientSelection
from edgeopt.problems.client_selection.environment import SelectionEnvironment
from edgeopt.solvers.client_selection import Reservation
from edgeopt.solvers.client_selection.features import client_ids, covered_features, top_picks
from edgeopt.solvers.client_selection.forecaster import START, ConflictForecaster
from edgeopt.solvers.client_selection.hmm import CategoricalHMM
from edgeopt.solvers.client_selection.matching import delivery_values, round_picks
from edgeopt.solvers.client_selection.reservation import Beliefs

GOAL_DECISIONS = 100_000.0
GOAL_MATCHING_MS = 50.0
SETTINGS = {"default": (5, 60, 4, 64), "large": (20, 1000, 10, 4)}  # servers, clients, picks, episodes
EM_STEPS = 50
SEEN = 0.35  # share of symbols that are seen on gapped data
TWO_REGIMES = CategoricalHMM(
    np.array([0.67, 0.33]), np.array([[0.95, 0.05], [0.1, 0.9]]), np.array([[0.9, 0.1], [0.2, 0.8]])
)
THREE_SYMBOLS = CategoricalHMM(
    np.array([0.6, 0.4]), np.array([[0.95, 0.05], [0.1, 0.9]]), np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])
)

Floats = NDArray[np.float64]


# --- the environment ---------------------------------------------------------------------------------------------


def environment_row(name: str, rounds: int, repeats: int) -> Row:
    """Return decisions per second of one setting: rounds alone, with observations, and with forecasts as well."""
    servers, clients, picks, episodes = SETTINGS[name]
    common.say(f"environment, {name}")
    problem = ClientSelection.random(num_servers=servers, num_clients=clients, picks=picks, rounds=rounds, seed=1)
    environment = SelectionEnvironment(problem, range(episodes))
    rng = np.random.default_rng(0)
    plans = [top_picks(rng.random(environment.last.shape), problem.coverage, problem.picks) for _ in range(rounds)]
    models = [START] * servers
    covered = np.arange(environment.clients.shape[1]) < problem.num_covered[:, None]

    def alone() -> float:
        environment.reset(range(episodes))
        return sum(float(environment.step(picks).reward.sum()) for picks in plans)

    def observed() -> float:
        environment.reset(range(episodes))
        total = 0.0
        for _ in range(rounds):
            features = covered_features(environment)
            scores = features[..., 2] - features[..., 1]  # in place of a policy
            picks = client_ids(environment.clients, top_picks(scores, covered, problem.picks))
            total += float(environment.step(picks).reward.sum())
        return total

    def forecast() -> float:
        environment.reset(range(episodes))
        forecaster = ConflictForecaster(problem.coverage, episodes, models=models, refit_every=None)
        total = 0.0
        for _ in range(rounds):
            features = covered_features(environment, forecaster.covered_probability)
            scores = features[..., 2] - features[..., 1] - features[..., 0]
            result = environment.step(client_ids(environment.clients, top_picks(scores, covered, problem.picks)))
            forecaster.update(result.outcome)
            total += float(result.reward.sum())
        return total

    def reserved() -> float:
        environment.reset(range(episodes))
        beliefs = Beliefs(Reservation(), problem, range(episodes))
        total = 0.0
        for _ in range(rounds):
            total += float(environment.step(beliefs.picks(environment)).reward.sum())
            beliefs.update(environment)
        return total

    ways = {"alone": alone, "observed": observed, "forecast": forecast, "reserved": reserved}
    with CompileTimer() as timer:
        values = [play() for play in ways.values()]
    decisions = episodes * servers * rounds
    row: Row = {"setting": name, "servers": servers, "clients": clients, "picks": picks, "episodes": episodes}
    row |= {"rounds": rounds, "compile_s": timer.seconds, "equal": values == [play() for play in ways.values()]}
    for title, play in ways.items():
        times = clock(play, repeats)
        row[title] = times.to_json() | {"per_second": decisions / times.median}
    return row


# --- the hidden Markov model -------------------------------------------------------------------------------------


def has_hmmlearn() -> bool:
    """Whether hmmlearn is installed."""
    return importlib.util.find_spec("hmmlearn") is not None


def fit_row(num: int, length: int, repeats: int) -> Row:
    """Return the time of EM steps on complete data, ours and hmmlearn's two ways, and whether the numbers agree."""
    common.say(f"{EM_STEPS} EM steps on {num} sequences of {length}")
    data, _ = THREE_SYMBOLS.sample(num, length, seed=1)
    start = CategoricalHMM.random(2, 3, seed=4)

    def ours() -> CategoricalHMM:
        return start.fit(data, iterations=EM_STEPS, tolerance=-np.inf)[0]

    with CompileTimer() as timer:
        fitted = ours()
        value = float(fitted.log_likelihood(data).sum())
    times = clock(ours, repeats)
    row: Row = {"sequences": num, "length": length, "steps": EM_STEPS, "compile_s": timer.seconds}
    row |= {"log_likelihood": value, "ours": times.to_json(), "equal": True}
    for way in ("scaling", "log") if has_hmmlearn() else ():
        run = _hmmlearn(start, data, way)
        model = run()
        parts = ((fitted.start, model.startprob_), (fitted.transition, model.transmat_))
        off = max(float(np.abs(a - b).max()) for a, b in (*parts, (fitted.emission, model.emissionprob_)))
        other = clock(run, repeats)
        row[way] = other.to_json() | {"ratio": other.median / times.median, "off": off}
        row["equal"] &= off < 1e-8 and abs(model.score(data.reshape(-1, 1), [length] * num) - value) < 1e-8 * abs(value)
    return row


def _hmmlearn(start: CategoricalHMM, data: NDArray[np.int64], way: str) -> Callable[[], Any]:
    from hmmlearn.hmm import CategoricalHMM as Theirs  # type: ignore[import-untyped, unused-ignore]

    flat, lengths = data.reshape(-1, 1), [data.shape[1]] * len(data)

    def run() -> Any:
        model = Theirs(start.num_states, n_iter=EM_STEPS, tol=-np.inf, init_params="", implementation=way)
        model.startprob_, model.transmat_ = start.start.copy(), start.transition.copy()
        model.emissionprob_ = start.emission.copy()
        return model.fit(flat, lengths)

    return run


def forecast_row(num: int, length: int) -> Row:
    """Return the mean loss, -log of the probability given to what happened, on half of the gapped sequences."""
    common.say(f"forecasts on {num} sequences of {length}, {SEEN:.0%} seen")
    full, _ = TWO_REGIMES.sample(num, length, seed=1)
    seen = np.where(np.random.default_rng(2).random(full.shape) < SEEN, full, -1)
    train, test = seen[: num // 2], seen[num // 2 :]
    fitted, _ = START.fit(train, iterations=200, prior=1.0)
    known = train[train >= 0] == 1
    chances = {
        "fitted": fitted.forecasts(test)[..., 1],
        "oracle": TWO_REGIMES.forecasts(test)[..., 1],
        "base rate": np.full(test.shape, known.mean()),
        "last value": _after_the_last(train, test),
    }
    row: Row = {"sequences": num, "length": length, "seen": SEEN}
    return row | {name: _loss(chance[test >= 0], test[test >= 0] == 1) for name, chance in chances.items()}


def _after_the_last(train: NDArray[np.int64], test: NDArray[np.int64]) -> Floats:
    """Return the rate of ones after each last seen symbol (-1 for none yet), counted in train, looked up in test."""
    rates = np.array([(train[(_last(train) == o) & (train >= 0)] == 1).mean() for o in (-1, 0, 1)])
    return np.asarray(rates[_last(test) + 1])


def _last(data: NDArray[np.int64]) -> NDArray[np.int64]:
    last = np.full(data.shape, -1)
    for t in range(1, data.shape[1]):
        last[:, t] = np.where(data[:, t - 1] >= 0, data[:, t - 1], last[:, t - 1])
    return last


def _loss(probability: Floats, happened: NDArray[np.bool_]) -> float:
    return float(-np.log(np.where(happened, probability, 1 - probability)).mean())


# --- the matching ------------------------------------------------------------------------------------------------


def matching_row(servers: int, clients: int, picks: int, repeats: int) -> Row:
    """Return the time of a round of the matching, and of SciPy's assignment to the same places."""
    from scipy.optimize import linear_sum_assignment

    common.say(f"matching, {servers} servers, {clients} clients, {picks} picks")
    problem = ClientSelection.random(num_servers=servers, num_clients=clients, picks=picks, rounds=1, seed=1)
    environment = SelectionEnvironment(problem)
    value = delivery_values(environment, environment.bonus[0])
    worst = -(problem.latency_weight + problem.conflict_weight) / picks

    def scipy() -> float:
        rows = np.repeat(np.maximum(value, worst), picks, axis=0)
        table = np.hstack([rows, np.full((len(rows), len(rows)), worst)])
        return float(table[linear_sum_assignment(table, maximize=True)].sum())

    with CompileTimer() as timer:
        chosen = round_picks(environment)
    found = float(np.maximum(value, worst)[np.arange(servers)[:, None], chosen].sum())
    ours, other = clock(lambda: round_picks(environment), repeats), clock(scipy, repeats)
    return {
        "servers": servers,
        "clients": clients,
        "picks": picks,
        "compile_s": timer.seconds,
        "ours": ours.to_json(),
        "scipy": other.to_json(),
        "ratio": other.median / ours.median,
        "value": found,
        "equal": abs(found - scipy()) <= 1e-9 * max(1.0, abs(found)),
    }


# --- the report --------------------------------------------------------------------------------------------------


def measure(options: argparse.Namespace) -> Row:
    """Measure everything."""
    quick, repeats = options.quick, 2 if options.quick else options.repeats
    environments = [environment_row(name, 10 if quick else 100, repeats) for name in SETTINGS]
    fit = fit_row(*((5, 50) if quick else (50, 200)), repeats)
    forecast = forecast_row(*((20, 100) if quick else (200, 400)))
    sizes = [(5, 60, 4)] if quick else [(5, 60, 4), (3, 1000, 10), (20, 1000, 10), (20, 1000, 40)]
    matchings = [matching_row(*size, repeats) for size in sizes]
    goals = [
        common.goal(
            f"environment, {row['setting']}, {title}: decisions per second", GOAL_DECISIONS,
            row[title]["per_second"] if row["equal"] else None, "/s", at_least=True,
        )
        for row in environments for title in ("alone", "observed", "forecast")
    ]  # fmt: skip
    goals += [
        common.goal(
            f"{EM_STEPS} EM steps: faster than hmmlearn, {way}", 1.0, fit[way]["ratio"] if fit["equal"] else None, "x",
            at_least=True,
        )
        for way in ("scaling", "log") if way in fit
    ]  # fmt: skip
    goals += [
        common.goal(
            f"matching of {row['servers']} servers, {row['clients']} clients, {row['picks']} picks, median",
            GOAL_MATCHING_MS, 1e3 * row["ours"]["median_s"] if row["equal"] else None, "ms",
        )
        for row in matchings
    ]  # fmt: skip
    return {
        "environment": environments,
        "fit": fit,
        "forecast": forecast,
        "matching": matchings,
        "valid": all(row["equal"] for row in [*environments, fit, *matchings]),
        "goals": goals,
    }


def show(report: Row, console: Console) -> None:
    """Print the tables."""
    common.show_table(
        console, "server decisions per second", ("setting", "servers x clients", "picks", "episodes", "rounds alone",
        "with observations", "and forecasts", "reservation"),
        [
            [row["setting"], f"{row['servers']} x {row['clients']}", str(row["picks"]), str(row["episodes"]),
             *(f"{row[title]['per_second']:,.0f}" for title in ("alone", "observed", "forecast", "reserved"))]
            for row in report["environment"]
        ],
    )  # fmt: skip
    fit = report["fit"]
    lines = [["edgeopt", seconds(fit["ours"]["median_s"]), "", ""]]
    for way in ("scaling", "log"):
        if way in fit:
            times = fit[way]
            lines.append(
                [f"hmmlearn, {way}", seconds(times["median_s"]), f"{times['ratio']:.3g}x", f"{times['off']:.1e}"]
            )
    title = f"{fit['steps']} EM steps, {fit['sequences']} sequences of {fit['length']}: median"
    common.show_table(console, title, ("", "time", "ratio", "parameters apart"), lines)
    names = ("oracle", "fitted", "last value", "base rate")
    common.show_table(
        console, f"loss of forecasts, {report['forecast']['seen']:.0%} seen", ("forecast", "loss"),
        [[name, f"{report['forecast'][name]:.4f}"] for name in names],
    )  # fmt: skip
    common.show_table(
        console, "a round of the matching: median", ("servers", "clients", "picks", "ours", "SciPy", "ratio"),
        [
            [str(row["servers"]), str(row["clients"]), str(row["picks"]), seconds(row["ours"]["median_s"]),
             seconds(row["scipy"]["median_s"]), f"{row['ratio']:.3g}x" if row["equal"] else "values differ"]
            for row in report["matching"]
        ],
    )  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--repeats", type=int, default=7, help="repeats of every clock, within ten seconds each")


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    return common.script("client_selection", __doc__, measure, show, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())

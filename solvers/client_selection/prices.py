"""What a longer time-out and faster links are worth to client selection, at a plan."""

from edgeopt.prices import Price
from edgeopt.problems import ClientSelection, SelectionPlan

MORE = 0.01  # share by which a limit is raised


def prices(problem: ClientSelection, plan: SelectionPlan) -> list[Price]:
    """Return estimates: what the plan itself brings more where a limit is a hundredth larger, on the same draw of chance.

    Rates are raised together, as more bandwidth raises them; their worth is per share of what they are.
    """
    now, found = problem.objective(plan), []
    for name, unit, value, changes in (
        ("timeout_s", "s", problem.timeout_s, {"timeout_s": problem.timeout_s * (1 + MORE)}),
        ("rate_bps", "times", 1.0, {"rate_bps": problem.rate_bps * (1 + MORE)}),
    ):
        gain = problem.replace(**changes).objective(plan) - now
        if gain > 0:
            step = MORE * value
            found.append(
                Price(name=name, unit=unit, value=value, worth=gain / step, claim="estimate", step=step, gain=gain)
            )
    return found

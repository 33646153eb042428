"""Which clients never deliver, whoever picks them: every instance that can be built has a plan."""

import numpy as np

from edgeopt.explain import Change, Explanation, Refused, Way, rounded_down, rounded_up
from edgeopt.problems import ClientSelection
from edgeopt.problems.client_selection.scenario import draw_scenarios


def explain(problem: ClientSelection) -> Explanation:
    """Return the clients that deliver in no round on the draw of the problem's seed, even picked by one server alone.

    A client delivers where q + b / R is at most the time-out. Fastest is it in the round and at the server of its largest
    rate, of those in which it is not busy; the time-out, the payload or its compute time would have to give so much that it is
    in time there. O(T S C).
    """
    chance = draw_scenarios(problem, [problem.seed])
    fastest = np.zeros(problem.num_clients)
    for now in range(problem.rounds):
        rate = np.where(problem.coverage, problem.rate_at(now), 0.0).max(axis=0) * chance.fading[0, now]
        fastest = np.maximum(fastest, np.where(chance.busy[0, now], 0.0, rate))
    sending = np.divide(problem.payload_bits, fastest, out=np.full(fastest.size, np.inf), where=fastest > 0)
    refused = tuple(
        _refused(problem, client, fastest[client].item(), sending[client].item())
        for client in np.flatnonzero(problem.compute_s + sending > problem.timeout_s).tolist()
    )
    message = "never infeasible: each server covers as many clients as it picks, or the problem would have been refused"
    if refused:
        message += f"; {len(refused)} of {problem.num_clients} clients never deliver"
    return Explanation(problem=problem.kind, verdict="feasible", message=message, refused=refused)


def _refused(problem: ClientSelection, client: int, fastest: float, sending: float) -> Refused:
    compute, timeout = problem.compute_s[client].item(), problem.timeout_s
    if fastest == 0:
        message = f"client {client} is busy with work of its own in every round"
        return Refused(what="client", index=client, message=message, ways=())
    message = (
        f"client {client} needs {compute + sending:.6g} s at best, {compute:.6g} of them to compute, "
        f"the time-out is {timeout:.6g} s"
    )
    ways = [Way((Change(name="timeout_s", value=timeout, needed=rounded_up(compute + sending)),))]
    if timeout > sending:
        needed = rounded_down(timeout - sending)
        ways.append(Way((Change(name=f"compute_s[{client}]", value=compute, needed=needed),)))
    if (bits := rounded_down((timeout - compute) * fastest)) > 0:
        ways.append(Way((Change(name="payload_bits", value=problem.payload_bits, needed=bits),)))
    return Refused(what="client", index=client, message=message, ways=tuple(sorted(ways, key=lambda way: way.relative)))

"""Depth-first branch and bound over the stage times of split training; see `edgeopt.solvers.split_training.exact`."""

import math

import numpy as np

from edgeopt.jit import kernel
from edgeopt.solvers.kernels import Floats, Ints
from edgeopt.solvers.kernels.split import best_interval, best_whole
from edgeopt.solvers.kernels.split_tables import MASK, SHIFT, Stack, Tables, Work

DONE, PAUSED, FULL = 0, 1, 2  # why `search` returned: nothing left, budget spent, work arrays too small
ROUNDING = 1e-12  # relative: how far a value may be outside the box it belongs to
ROUNDS = 8  # evaluations of one node at most before it is split
STEPS = 12  # multipliers tried per evaluation at most
NARROW = 0.02  # a range this narrow, relative, is split at the cheapest plan's value, a wider one in the middle


@kernel
def drift_of(tables: Tables, layer: int, interval: int) -> float:
    """Return the drift term of the bound."""
    return tables.drift[layer] * interval * interval if interval > 1 else 0.0


@kernel
def free_batch(noise: float, server: Floats) -> Floats:
    """Return float64 [L]: the whole number b that minimises b server[l] + noise / b; inf where nothing limits it."""
    found = np.empty(server.size)
    for l in range(server.size):
        found[l] = best_whole(noise, server[l])
    return found


@kernel
def set_stakes(tables: Tables, cut: Ints, batch: Ints, noise: float, free: Floats, stake: Floats) -> None:
    """Stake on each stage the devices whose batch size in a plan it limits, by what a longer stage would save them."""
    num_layers = tables.server.size
    times = np.zeros(2)
    for i in range(cut.size):
        at = i * num_layers + cut[i]
        times[0] = max(times[0], batch[i] * tables.forward[at])
        times[1] = max(times[1], batch[i] * tables.backward[at])
    stake[:] = 0.0
    for i in range(cut.size):
        at = i * num_layers + cut[i]
        up = times[0] / tables.forward[at] if tables.forward[at] > 0.0 else np.inf
        down = times[1] / tables.backward[at] if tables.backward[at] > 0.0 else np.inf
        b = min(up, down)
        if b < min(tables.limit[at], free[cut[i]]):
            saved = max(0.0, noise / (b * b) - tables.server[cut[i]])
            if up <= down:
                stake[0, i] = saved / tables.forward[at]
            else:
                stake[1, i] = saved / tables.backward[at]
    for stage in range(2):
        total = stake[stage].sum()
        if total > 0.0:
            stake[stage] /= total * (1.0 + ROUNDING)


@kernel
def staked_batch(tables: Tables, noise: float, work: Work) -> None:
    """Fill `staked`."""
    num_layers = tables.server.size
    for i in range(tables.up.size):
        for l in range(num_layers):
            at = i * num_layers + l
            due = work.stake[0, i] * tables.forward[at] + work.stake[1, i] * tables.backward[at]
            each = tables.server[l] + due
            work.staked[at] = math.sqrt(noise / each) if each > 0.0 else np.inf


@kernel
def fitting(tables: Tables, options: Ints, box: Floats, free: Floats, noise: float, work: Work) -> int:
    """Drop the options that have no batch size within the stage times of a box; return how many are left.

    Each of them gets its best batch size b and its price b server + noise / b + stake max(0, b each - least time),
    which is convex in b: the best whole number is next to the best real one, or the largest allowed.
    """
    num_layers = tables.server.size
    kept = 0
    for o in options:
        i, l = o >> SHIFT, o & MASK
        if tables.bits[l] * tables.up[i] > box[6] or tables.bits[l] * tables.down[i] > box[7]:
            continue
        at = i * num_layers + l
        forward, backward, server = tables.forward[at], tables.backward[at], tables.server[l]
        most = tables.limit[at]
        if forward > 0.0:
            most = min(most, np.floor(box[4] / forward))
        if backward > 0.0:
            most = min(most, np.floor(box[5] / backward))
        if most < 1.0:
            continue
        stage = 0 if work.stake[0, i] > 0.0 else 1
        stake, least = work.stake[stage, i], box[stage]
        each = forward if stage == 0 else backward
        b = min(most, free[l])
        price = b * server + noise / b
        if stake * (b * each - least) > 0.0:
            b = min(most, max(1.0, np.floor(max(work.staked[at], least / each))))
            price = b * server + noise / b + stake * max(0.0, b * each - least)
            more = b + 1.0
            other = more * server + noise / more + stake * max(0.0, more * each - least)
            if more <= most and other < price:
                b, price = more, other
        options[kept] = o
        work.batch[kept] = b
        work.price[kept] = price
        kept += 1
    return kept


@kernel
def cheapest(options: Ints, mu: float, work: Work) -> tuple[float, float]:
    """Take every device's cheapest option by price + mu penalty; return their sum, and the penalties' sum.

    The sum is inf if a device has no option.
    """
    work.least[:] = np.inf
    for at in range(options.size):
        i = options[at] >> SHIFT
        cost = work.price[at] + mu * work.penalty[options[at] & MASK]
        if cost < work.least[i]:
            work.least[i] = cost
            work.at[i] = at
    total, missing = 0.0, 0.0
    for i in range(work.at.size):
        total += work.least[i]
        if total < np.inf:
            missing += work.penalty[options[work.at[i]] & MASK]
    return total, missing


@kernel
def transfer(tables: Tables, upload: float, download: float, bits: float) -> float:
    """Return the seconds of an aggregation: slowest device against the edge server with so many bits, both ways."""
    return float(max(upload, bits * tables.rates[0]) + max(download, bits * tables.rates[1]))


@kernel
def kinks(tables: Tables, box: Floats, interval: float) -> tuple[float, float, float]:
    """Return where `transfer` per round changes its slope in the bits, and the slope between the two places."""
    first, second = box[2] / tables.rates[0], box[3] / tables.rates[1]
    if second < first:
        return second, first, tables.rates[1] / interval
    return first, second, tables.rates[0] / interval


@kernel
def relax(tables: Tables, options: Ints, box: Floats, span: Ints, rate: float, work: Work) -> tuple[float, float]:
    """Return a lower bound on time - rate Den over a node, and the multiplier mu that gives it.

    The edge server's bits x = sum of max(0, base - bits) are priced at mu: phi(x) >= phi(y) + mu (x - y), where y is
    the kink of the convex phi with mu among its slopes. The bound is concave in mu; its slope is x - y.
    """
    interval = float(span[1])
    for l in range(tables.bits.size):
        work.penalty[l] = max(0.0, tables.bits[span[2]] - tables.bits[l])
    rest = box[0] + box[1] - rate * (tables.target - drift_of(tables, span[2], span[0]))
    first, second, slope = kinks(tables, box, interval)
    low, high = 0.0, (tables.rates[0] + tables.rates[1]) / interval
    best, best_mu, mu, last = -np.inf, 0.0, 0.0, 0.0
    for step in range(STEPS):
        total, x = cheapest(options, mu, work)
        y = first if mu <= slope else second
        bound = rest + total + transfer(tables, box[2], box[3], y) / interval - mu * y
        last = mu
        if bound > best:
            best, best_mu = bound, mu
        if bound >= 0.0 or (step == 0 and x <= first) or (step == 1 and x >= second):
            break
        if mu == slope and first <= x <= second:
            break
        if step < 2:
            mu = high if step == 0 else slope
            continue
        if x > y:
            low = mu
        else:
            high = mu
        mu = 0.5 * (low + high)
    if last != best_mu:
        cheapest(options, best_mu, work)
    return best, best_mu


@kernel
def tighten(
    tables: Tables, options: Ints, box: Floats, span: Ints, noise: float, mu: float, bound: float, work: Work
) -> int:
    """Drop options that no better plan takes and shrink the box to what better plans do; return how many are left.

    A device that takes an option costing -bound more than its cheapest one lifts the bound to 0. This limits each
    option's batch size from below, and with it the stage times.
    """
    num_layers = tables.server.size
    least = np.empty(4)
    deepest = 0
    kept = 0
    at = 0
    for k in range(2):
        if not work.stake[k].any():  # else the bound counts some of the time above the least already
            box[4 + k] = min(box[4 + k], box[k] - bound)
    if mu == 0.0:
        box[6] = min(box[6], box[2] - bound * span[1])
        box[7] = min(box[7], box[3] - bound * span[1])
    while at < options.size:
        i = options[at] >> SHIFT
        least[:] = np.inf
        shallow = num_layers
        while at < options.size and options[at] >> SHIFT == i:
            o, price, b = options[at], work.price[at], work.batch[at]
            at += 1
            l = o & MASK
            budget = work.least[i] - bound - mu * work.penalty[l]
            if price >= budget:
                continue
            root = math.sqrt(max(0.0, budget * budget - 4.0 * tables.server[l] * noise))
            b = min(b, max(1.0, np.ceil(2.0 * noise / (budget + root) * (1.0 - 1e-9))))
            least[0] = min(least[0], b * tables.forward[i * num_layers + l])
            least[1] = min(least[1], b * tables.backward[i * num_layers + l])
            least[2] = min(least[2], tables.bits[l] * tables.up[i])
            least[3] = min(least[3], tables.bits[l] * tables.down[i])
            shallow = min(shallow, l)
            deepest = max(deepest, l)
            options[kept] = o
            kept += 1
        for k in range(4):
            box[k] = max(box[k], least[k])
        span[2] = max(span[2], shallow)
    span[3] = min(span[3], deepest)
    return kept


@kernel
def value(tables: Tables, options: Ints, work: Work) -> tuple[float, int]:
    """Return time per Den of the cheapest options' plan with its best interval, and that interval; fill `found`."""
    num_layers = tables.server.size
    found = work.found
    found[:] = 0.0
    server, inverse, held = 0.0, 0.0, 0.0
    deepest = 0
    for i in range(work.at.size):
        l, b = options[work.at[i]] & MASK, work.batch[work.at[i]]
        found[0] = max(found[0], b * tables.forward[i * num_layers + l])
        found[1] = max(found[1], b * tables.backward[i * num_layers + l])
        found[2] = max(found[2], tables.bits[l] * tables.up[i])
        found[3] = max(found[3], tables.bits[l] * tables.down[i])
        server += b * tables.server[l]
        inverse += 1.0 / b
        deepest = max(deepest, l)
    for at in work.at:
        held += tables.bits[deepest] - tables.bits[options[at] & MASK]
    found[4], found[5] = deepest, held
    seconds = transfer(tables, found[2], found[3], held)
    least, most = tables.intervals
    return best_interval(
        least, most, found[0] + server + found[1], seconds, tables.target, tables.noise * inverse, tables.drift[deepest]
    )


@kernel
def looseness(
    tables: Tables, options: Ints, box: Floats, span: Ints, rate: float, mu: float, work: Work
) -> tuple[int, float]:
    """Return where the bound of a node differs most from the value of its cheapest plan, and by how much.

    0 to 3: a stage time; 4: the deepest cut; 5: the interval; 6: the multiplier.
    """
    found, fewest, most = work.found, span[0], float(span[1])
    deepest, held = int(found[4]), found[5]
    x = 0.0
    for at in work.at:
        x += work.penalty[options[at] & MASK]
    first, second, slope = kinks(tables, box, most)
    y = first if mu <= slope else second
    low = transfer(tables, box[2], box[3], x)
    seconds = transfer(tables, found[2], found[3], held)
    gaps = np.zeros(7)
    gaps[0] = found[0] - box[0]
    gaps[1] = found[1] - box[1]
    for i in range(work.at.size):
        at = i * tables.bits.size + (options[work.at[i]] & MASK)
        b = work.batch[work.at[i]]
        gaps[0] -= work.stake[0, i] * max(0.0, b * tables.forward[at] - box[0])
        gaps[1] -= work.stake[1, i] * max(0.0, b * tables.backward[at] - box[1])
    gaps[2] = (transfer(tables, found[2], box[3], x) - low) / most
    gaps[3] = (transfer(tables, box[2], found[3], x) - low) / most
    if span[2] < deepest:
        gaps[4] = (seconds - transfer(tables, found[2], found[3], x)) / most
        gaps[4] += rate * (drift_of(tables, deepest, fewest) - drift_of(tables, span[2], fewest))
    gaps[5] = seconds * (1.0 / fewest - 1.0 / most)
    gaps[5] += rate * (drift_of(tables, deepest, span[1]) - drift_of(tables, deepest, fewest))
    gaps[6] = (low - transfer(tables, box[2], box[3], y)) / most - mu * (x - y)
    where = int(np.argmax(gaps))
    return where, gaps[where]


@kernel
def undecided(options: Ints, mu: float, work: Work) -> tuple[int, int]:
    """Return the device whose best option of another penalty costs least more, -1 if none; and the shallower cut."""
    device, layer, least = -1, 0, np.inf
    for at in range(options.size):
        i, l = options[at] >> SHIFT, options[at] & MASK
        chosen = options[work.at[i]] & MASK
        more = work.price[at] + mu * work.penalty[l] - work.least[i]
        if work.penalty[l] != work.penalty[chosen] and more < least:
            device, layer, least = i, min(l, chosen), more
    return device, layer


@kernel
def split(stack: Stack, where: int, device: int, layer: int, found: Floats) -> None:
    """Replace the last node by two: the upper part in its place, the lower part after it."""
    k = stack.size[0] - 1
    stack.size[0] += 1
    stack.box[k + 1] = stack.box[k]
    stack.span[k + 1] = stack.span[k]
    if where < 4:
        low = stack.box[k, where]
        x = min(found[where], stack.box[k, 4 + where])
        at = x if x - low <= NARROW * x else 0.5 * (low + x)
        stack.box[k, where] = max(low, at)
        stack.box[k + 1, 4 + where] = at * (1.0 - ROUNDING)
    elif where == 4:
        layer = min((stack.span[k, 2] + int(found[4])) // 2, int(found[4]) - 1)
        stack.span[k, 2] = max(stack.span[k, 2], layer + 1)
        stack.span[k + 1, 3] = layer
    elif where == 5:
        interval = int(math.sqrt(float(stack.span[k, 0] * stack.span[k, 1])))
        stack.span[k, 0] = interval + 1
        stack.span[k + 1, 1] = interval
    begin, finish = stack.begin[k], stack.finish[k]
    kept, copied = begin, finish
    for at in range(begin, finish):
        o = stack.options[at]
        concerned = where == 4 or (where == 6 and o >> SHIFT == device)
        if not concerned or o & MASK <= layer:
            stack.options[copied] = o
            copied += 1
        if not concerned or where == 4 or o & MASK > layer:
            stack.options[kept] = o
            kept += 1
    stack.finish[k], stack.begin[k + 1], stack.finish[k + 1] = kept, finish, copied


@kernel
def search(
    tables: Tables, stack: Stack, work: Work, cut: Ints, batch: Ints, best: Floats, gap: float, budget: int
) -> int:
    """Search on until no plan's time per Den is below ``best[0] (1 - gap)``, or for `budget` nodes; return why it ended.

    `best` is the least time per Den so far and its interval; `cut` and `batch` are its plan.
    """
    incumbent, rate, noise = np.inf, 0.0, 0.0
    free = tables.server
    for _ in range(budget):
        k = stack.size[0] - 1
        if k < 0:
            return DONE
        begin = stack.begin[k]
        if k + 2 > stack.begin.size or 2 * stack.finish[k] - begin > stack.options.size:
            return FULL
        box, span = stack.box[k], stack.span[k]
        bound, mu = 0.0, 0.0
        where, device, layer = 0, -1, 0
        options = stack.options[begin : stack.finish[k]]
        for _ in range(ROUNDS):
            if best[0] < incumbent:
                incumbent = best[0]
                rate = incumbent * (1.0 - gap)
                noise = rate * tables.noise
                free = free_batch(noise, tables.server)
                set_stakes(tables, cut, batch, noise, free, work.stake)
                staked_batch(tables, noise, work)
            options = options[: fitting(tables, options, box, free, noise, work)]
            bound, mu = relax(tables, options, box, span, rate, work)
            if not bound < 0.0:
                break
            ratio, interval = value(tables, options, work)
            if ratio < best[0]:
                best[0], best[1] = ratio, interval
                for i in range(cut.size):
                    cut[i] = options[work.at[i]] & MASK
                    batch[i] = int(work.batch[work.at[i]])
                continue
            where, most = looseness(tables, options, box, span, rate, mu, work)
            device, layer = undecided(options, mu, work) if where == 6 else (-1, 0)
            before, count = box[0] + box[1] + (box[2] + box[3]) / span[1], options.size
            options = options[: tighten(tables, options, box, span, noise, mu, bound, work)]
            attained = most <= ROUNDING * (box[0] + box[1]) or (where == 6 and device < 0)
            if attained or (box[:4] > box[4:]).any():  # by a plan that is no better, so no other is
                bound = 0.0
                break
            gain = box[0] + box[1] + (box[2] + box[3]) / span[1] - before
            if gain < -0.1 * bound and options.size > 0.8 * count:
                break
        if bound < 0.0:
            stack.finish[k] = begin + options.size
            split(stack, where, device, layer, work.found)
        else:
            stack.size[0] -= 1
    return PAUSED

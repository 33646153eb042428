"""What the branch and bound of split training works on: the problem, the pending nodes, one node."""

from typing import NamedTuple

import numpy as np

from edgeopt.solvers.kernels import Floats, Ints

SHIFT, MASK = 20, 2**20 - 1  # an option is device << SHIFT | layer


class Tables(NamedTuple):
    """The problem as the kernels take it; entry i L + l is device i cut after layer l + 1.

    Parameters
    ----------
    forward, backward : float64 [N L], seconds per sample of the two stages that the slowest device decides.
    limit : float64 [N L], largest batch size.
    server : float64 [L], seconds per sample at the server.
    bits : float64 [L], parameters on the device.
    up, down : float64 [N], seconds per bit to and from the fed server.
    rates : float64 [2], the same for the edge server.
    drift : float64 [L], the drift term of the bound for an interval of one and this deepest cut.
    intervals : int64 [2], least and largest aggregation interval.
    noise : the noise term is this times the sum of 1 / b.
    target : what noise and drift must stay below.
    """

    forward: Floats
    backward: Floats
    limit: Floats
    server: Floats
    bits: Floats
    up: Floats
    down: Floats
    rates: Floats
    drift: Floats
    intervals: Ints
    noise: float
    target: float


class Stack(NamedTuple):
    """Pending nodes of the search, the last one next; node k has the options ``options[begin[k]:finish[k]]``.

    Parameters
    ----------
    box : float64 [depth, 8], least and largest time of forward, backward, upload and download stage.
    span : int64 [depth, 4], least and largest aggregation interval, least and largest deepest cut.
    begin, finish : int64 [depth].
    options : int64, lists of options in ascending order.
    size : int64 [1], number of pending nodes.
    """

    box: Floats
    span: Ints
    begin: Ints
    finish: Ints
    options: Ints
    size: Ints


class Work(NamedTuple):
    """What is computed at a node.

    Parameters
    ----------
    batch, price : float64 [N L], of each option in the node's list: best batch size, and what it tables.
    penalty : float64 [L], bits that a cut leaves to the edge server.
    at : int64 [N], the cheapest option of each device, as its place in the list.
    least : float64 [N], its price with the penalty.
    found : float64 [6], of the plan of the cheapest options: four stage times, deepest cut, bits at the edge server.
    stake : float64 [2, N], what each device pays per second above the least time of the forward and backward stage;
        sums to at most one per stage, and each device pays at one stage at most.
    staked : float64 [N L], the best real batch size of each option if the stake is due for every sample.
    """

    batch: Floats
    price: Floats
    penalty: Floats
    at: Ints
    least: Floats
    found: Floats
    stake: Floats
    staked: Floats


def new_stack(tables: Tables) -> Stack:
    """Return the stack with the root alone: all options, all stage times."""
    num_devices, num_layers = tables.up.size, tables.server.size
    device, layer = np.divmod(np.flatnonzero(tables.limit >= 1), num_layers)
    depth = 64
    stack = Stack(
        box=np.zeros((depth, 8)),
        span=np.zeros((depth, 4), np.int64),
        begin=np.zeros(depth, np.int64),
        finish=np.zeros(depth, np.int64),
        options=np.zeros(16 * num_devices * num_layers, np.int64),
        size=np.ones(1, np.int64),
    )
    stack.box[0, 4:] = np.inf
    stack.span[0] = *tables.intervals, 0, num_layers - 1
    stack.options[: device.size] = device << SHIFT | layer
    stack.finish[0] = device.size
    return stack


def doubled(stack: Stack) -> Stack:
    """Return the stack with twice the room."""
    arrays = stack._asdict()
    del arrays["size"]
    return stack._replace(**{name: np.concatenate([array, np.zeros_like(array)]) for name, array in arrays.items()})


def new_work(tables: Tables) -> Work:
    """Return work arrays."""
    num_devices, num_layers = tables.up.size, tables.server.size
    size = num_devices * num_layers
    return Work(
        batch=np.zeros(size),
        price=np.zeros(size),
        penalty=np.zeros(num_layers),
        at=np.zeros(num_devices, np.int64),
        least=np.zeros(num_devices),
        found=np.zeros(6),
        stake=np.zeros((2, num_devices)),
        staked=np.zeros(size),
    )

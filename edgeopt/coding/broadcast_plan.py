"""`BroadcastPlan`: how many symbols and iterations each receiver of one stream takes, and when the stream stops. By enumeration."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeopt.coding.channels import link_snr_db
from edgeopt.display import one_line
from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.network import EdgeNetwork
from edgeopt.validate import float_array, int_array, integer, real

Floats = NDArray[np.float64]
GOALS = ("mean", "worst")


@dataclass(frozen=True, eq=False, repr=False)
class PsnrTable:
    """What was measured: quality by signal-to-noise ratio, symbols and iterations; and what decoding takes.

    Parameters
    ----------
    snr_db : float64 [S], ascending.
    symbols : int64 [N], numbers of symbols, ascending; the header's are not among them.
    iterations : int64 [I], ascending.
    psnr_db : float64 [S, N, I].
    nothing_db : quality of the picture that the header alone gives, to a receiver that decodes nothing.
    header_symbols : that come before the stream.
    flops_per_iteration : per symbol, of belief propagation.
    flops : of everything else that a receiver computes.
    """

    snr_db: Floats
    symbols: NDArray[np.int64]
    iterations: NDArray[np.int64]
    psnr_db: Floats
    nothing_db: float
    header_symbols: int
    flops_per_iteration: float
    flops: float

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {
            "snr_db": float_array("snr_db", self.snr_db, (None,), unit="dB"),
            "symbols": int_array("symbols", self.symbols, (None,), low=1, dtype=np.int64),
            "iterations": int_array("iterations", self.iterations, (None,), low=0, dtype=np.int64),
            "nothing_db": real("nothing_db", self.nothing_db, unit="dB"),
            "header_symbols": integer("header_symbols", self.header_symbols, low=0),
            "flops_per_iteration": real("flops_per_iteration", self.flops_per_iteration, nonnegative=True),
            "flops": real("flops", self.flops, nonnegative=True),
        }
        axes = [checked[name] for name in ("snr_db", "symbols", "iterations")]
        for name, axis in zip(("snr_db", "symbols", "iterations"), axes, strict=True):
            if not len(axis) or (np.diff(axis) <= 0).any():
                raise InvalidProblemError(f"{name}: expected at least one number, ascending")
        checked["psnr_db"] = float_array("psnr_db", self.psnr_db, tuple(map(len, axes)), unit="dB")
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    __repr__ = one_line

    def at(self, snr_db: ArrayLike) -> Floats:
        """Return the quality [U, N, I] at signal-to-noise ratios [U]: between two measured ones on the line between them.

        Raises
        ------
        InvalidProblemError
            Below the least that was measured; above the largest, it is held.
        """
        wanted = float_array("snr_db", snr_db, (None,), unit="dB")
        if (low := wanted < self.snr_db[0]).any():
            u = int(low.argmax())
            raise InvalidProblemError(
                f"snr_db[{u}] = {wanted[u]:g}: expected at least {self.snr_db[0]:g}, the least that was measured"
            )
        if len(self.snr_db) == 1:
            return np.repeat(self.psnr_db, len(wanted), axis=0)
        held = np.minimum(wanted, self.snr_db[-1])
        right = np.clip(np.searchsorted(self.snr_db, held), 1, len(self.snr_db) - 1)
        share = (held - self.snr_db[right - 1]) / (self.snr_db[right] - self.snr_db[right - 1])
        return np.asarray(
            self.psnr_db[right - 1] + share[:, None, None] * (self.psnr_db[right] - self.psnr_db[right - 1])
        )

    def seconds_until_done(self, symbols_per_s: float, flops: ArrayLike) -> Floats:
        """Return when receivers of so many FLOP/s [U] have their picture [U, N, I]: header and symbols, then decoding."""
        rate = real("symbols_per_s", symbols_per_s, positive=True)
        speed = float_array("flops", flops, (None,), positive=True, unit="FLOP/s")[:, None, None]
        heard = (self.header_symbols + self.symbols[:, None]) / rate
        work = self.flops + self.flops_per_iteration * self.symbols[:, None] * self.iterations
        return np.asarray(heard + work / speed)


@dataclass(frozen=True, eq=False, repr=False)
class BroadcastPlan:
    """One stream for U receivers.

    Parameters
    ----------
    stop : symbols after which the server stops.
    symbols, iterations : int64 [U], what each receiver takes; 0 and 0 where nothing is in time.
    psnr_db : float64 [U], by the table.
    seconds : float64 [U], until each has its picture.
    stream_s : how long the stream takes, header included.
    value : the goal, less what the stream costs.
    """

    stop: int
    symbols: NDArray[np.int64]
    iterations: NDArray[np.int64]
    psnr_db: Floats
    seconds: Floats
    stream_s: float
    value: float

    __repr__ = one_line

    @classmethod
    def best(
        cls,
        table: PsnrTable,
        *,
        snr_db: ArrayLike,
        symbols_per_s: float,
        flops: ArrayLike,
        deadline_s: ArrayLike,
        goal: str = "mean",
        price_db_per_s: float = 0.0,
        most_iterations: Sequence[int] | None = None,
    ) -> Self:
        """Return the best plan by the table: exact, as all are tried.

        Each receiver takes the best (n, T) of the table within its own deadline and the stream; among equals, the one that is done
        first. The server stops where the goal, less the price of the stream, is best; among equals, at the first.

        Parameters
        ----------
        table : what was measured.
        snr_db, flops, deadline_s : float64 [U] of receivers; FLOP/s, and seconds from the first symbol of the header.
        symbols_per_s : of the stream.
        goal : the ``mean`` of the receivers' PSNR, or that of the ``worst``.
        price_db_per_s : what a second of the stream costs, in dB of the goal.
        most_iterations : int [U], the most that each may run. Default: any.

        Notes
        -----
        O(U N I + U N) time.

        Examples
        --------
        >>> table = PsnrTable([0, 10], [100, 200], [1, 5], [[[20, 22], [22, 25]], [[24, 26], [27, 30]]], 15.0, 10, 1e3, 0.0)
        >>> plan = BroadcastPlan.best(table, snr_db=[0, 10], symbols_per_s=1e3, flops=[1e9, 3e6], deadline_s=0.3)
        >>> plan.stop, plan.symbols, plan.iterations, plan.psnr_db
        (200, array([200, 200]), array([5, 1]), array([25., 27.]))
        """
        if goal not in GOALS:
            raise InvalidProblemError(f"goal = {quoted(goal)}: expected one of {', '.join(GOALS)}")
        price = real("price_db_per_s", price_db_per_s, nonnegative=True)
        quality = table.at(snr_db)
        count = len(quality)
        if not count:
            raise InvalidProblemError("snr_db: expected at least one receiver")
        seconds = table.seconds_until_done(
            symbols_per_s, float_array("flops", flops, (count,), positive=True, unit="FLOP/s")
        )
        deadline = float_array("deadline_s", deadline_s, (count,), nonnegative=True, finite=False, unit="s")
        allowed = seconds <= deadline[:, None, None]
        if most_iterations is not None:
            most = int_array("most_iterations", most_iterations, (count,), low=0)
            allowed &= table.iterations <= most[:, None, None]
        # what a receiver gets if it stops at exactly n: the best number of iterations, then the best n so far
        by_n = np.where(allowed, quality, -np.inf)
        rank = np.lexsort((seconds, -by_n), axis=2)[:, :, :1]
        at_n = np.take_along_axis(by_n, rank, 2)[:, :, 0]
        taken = np.zeros((count, len(table.symbols)), np.int64)  # index of n + 1, 0 for nothing
        reached = np.full((count, len(table.symbols)), table.nothing_db)
        best = np.full(count, table.nothing_db)
        choice = np.zeros(count, np.int64)
        for n in range(len(table.symbols)):  # a longer stream is taken only where it is better
            better = at_n[:, n] > best
            best, choice = np.where(better, at_n[:, n], best), np.where(better, n + 1, choice)
            reached[:, n], taken[:, n] = best, choice
        air = np.concatenate([[table.header_symbols], table.header_symbols + table.symbols]) / symbols_per_s
        reached = np.concatenate([np.full((count, 1), table.nothing_db), reached], 1)
        taken = np.concatenate([np.zeros((count, 1), np.int64), taken], 1)
        value = (reached.mean(0) if goal == "mean" else reached.min(0)) - price * air
        stop = int(value.argmax())
        took = taken[:, stop]
        users = np.arange(count)
        at = np.where(took > 0, took - 1, 0)
        rounds = rank[users, at, 0]
        return cls(
            stop=int(table.symbols[stop - 1]) if stop else 0,
            symbols=np.where(took > 0, table.symbols[at], 0),
            iterations=np.where(took > 0, table.iterations[rounds], 0),
            psnr_db=reached[:, stop],
            seconds=np.where(
                took > 0,
                seconds[users, at, rounds],
                table.header_symbols / symbols_per_s + table.flops / np.asarray(flops),
            ),
            stream_s=float(air[stop]),
            value=float(value[stop]),
        )

    @classmethod
    def of_network(
        cls,
        table: PsnrTable,
        network: EdgeNetwork,
        *,
        deadline_s: ArrayLike,
        server: int = 0,
        bandwidth_hz: float,
        goal: str = "mean",
        price_db_per_s: float = 0.0,
    ) -> tuple[Self, NDArray[np.int64]]:
        """Return the plan of a server's stream, and the devices [U] it is for: those that hear it well enough for the table.

        Parameters
        ----------
        table : what was measured, on white noise.
        network : gives ratios (see `edgeopt.coding.link_snr_db`) and the devices' FLOP/s.
        deadline_s : one number, or one per device of the network.
        server : that sends.
        bandwidth_hz : of the stream, which has two symbols per second and Hz.
        goal, price_db_per_s : as in `best`.
        """
        width = real("bandwidth_hz", bandwidth_hz, positive=True, unit="Hz")
        snr = link_snr_db(network, server, width)
        devices = np.flatnonzero(snr >= table.snr_db[0])
        if not devices.size:
            raise InvalidProblemError(
                f"network: no device hears server {server} at {table.snr_db[0]:g} dB or more, the least that was measured"
            )
        deadline = float_array(
            "deadline_s", deadline_s, (network.num_devices,), nonnegative=True, finite=False, unit="s"
        )
        plan = cls.best(
            table, snr_db=snr[devices], symbols_per_s=2 * width, flops=network.device_flops[devices],
            deadline_s=deadline[devices], goal=goal, price_db_per_s=price_db_per_s,
        )  # fmt: skip
        return plan, devices

"""Who holds which samples: a partition of data over clients, and the usual ways to make one."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeopt.errors import InvalidProblemError
from edgeopt.foreign import as_array
from edgeopt.rng import stream
from edgeopt.validate import int_array, integer, real

MAX_ENTRIES = 1 << 27
"""Entries that an array may have whose size an argument decides, not the data: 1 GiB of numbers."""


@dataclass(frozen=True, slots=True, eq=False)
class Partition:
    """Samples of N clients; no sample is with two of them.

    Parameters
    ----------
    indices : for each client int64 [n_i], numbers of its samples, in any order.
    num_samples : samples of the data, those that nobody holds included. Default: the highest number plus one.

    Raises
    ------
    InvalidProblemError
        Naming client and sample, if a number is out of range or twice there.

    Examples
    --------
    >>> Partition(([0, 2], [1])).sizes
    array([2, 1])
    """

    indices: tuple[NDArray[np.int64], ...]
    num_samples: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.indices, Mapping) or not isinstance(self.indices, Iterable):
            raise InvalidProblemError(f"indices: expected one array per client, got a {type(self.indices).__name__}")
        given = tuple(self.indices)
        if not given:
            raise InvalidProblemError("indices: expected at least one client")
        own = [int_array(f"indices[{i}]", x, (None,), low=0, dtype=np.int64) for i, x in enumerate(given)]
        object.__setattr__(self, "indices", tuple(own))
        everything, owner = np.concatenate(own), self._owners()
        count = int(everything.max(initial=-1)) + 1
        if self.num_samples is not None:
            count = integer("num_samples", self.num_samples, low=0)
        object.__setattr__(self, "num_samples", count)
        if (wrong := everything >= count).any():
            at = int(wrong.argmax())
            raise InvalidProblemError(
                f"indices: client {owner[at]} has sample {everything[at]}: expected 0 to {count - 1}"
            )
        order = np.argsort(everything, kind="stable")
        if (same := np.diff(everything[order]) == 0).any():
            at = int(same.argmax())
            first, second = owner[order[at : at + 2]]
            raise InvalidProblemError(
                f"indices: sample {everything[order[at]]} is with client {first} and with client {second}: "
                "expected each sample once"
            )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Partition):
            return NotImplemented
        same = (self.num_samples, self.num_clients) == (other.num_samples, other.num_clients)
        return same and all(map(np.array_equal, self.indices, other.indices))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:  # without the numbers of all samples
        least, most = min(self.sizes), max(self.sizes)
        return f"Partition({self.num_clients} clients with {least} to {most} of {self.num_samples} samples)"

    @property
    def num_clients(self) -> int:
        """Clients, N."""
        return len(self.indices)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Samples of each client, int64 [N]."""
        return np.array([own.size for own in self.indices], np.int64)

    def label_counts(self, labels: ArrayLike, num_labels: int | None = None) -> NDArray[np.int64]:
        """Return how many samples of each label each client has, int64 [N, K].

        Parameters
        ----------
        labels : int [num_samples], from 0 to K - 1.
        num_labels : K. Default: the largest label plus one.
        """
        given = None if num_labels is None else integer("num_labels", num_labels, low=1)
        label = _labels(labels, given, self.num_samples)
        count = int(label.max(initial=0)) + 1 if given is None else given
        _refuse_large("num_labels", count, self.num_clients, "clients; number the labels from 0 without holes")
        code = self._owners() * count + label[np.concatenate(self.indices)]
        return np.bincount(code, minlength=self.num_clients * count).reshape(-1, count)

    def _owners(self) -> NDArray[np.int64]:
        """Return the client of each held sample, in the order of the concatenated indices."""
        return np.repeat(np.arange(self.num_clients), self.sizes)


def iid(samples: int | ArrayLike, num_clients: int, seed: int = 0, *, allow_empty: bool = False) -> Partition:
    """Deal shuffled samples out: clients have equally many, give or take one.

    Parameters
    ----------
    samples : how many samples there are, or their labels, of which only the number counts.
    num_clients : clients N.
    seed : the same seed gives the same partition.
    allow_empty : accept fewer samples than clients; some then have none.

    Raises
    ------
    InvalidProblemError
        If clients would be empty.

    Examples
    --------
    >>> iid(10, 3).sizes
    array([4, 3, 3])
    """
    given = as_array("samples", samples)
    count = _labels(given).size if given.ndim else integer("samples", samples, low=0, high=MAX_ENTRIES)
    clients = _num_clients(num_clients, count, int(not allow_empty))
    order = stream(seed, "iid").permutation(count)
    return Partition(tuple(map(np.sort, np.array_split(order, clients))), count)


def dirichlet(labels: ArrayLike, num_clients: int, alpha: float, seed: int = 0, *, min_samples: int = 1) -> Partition:
    """Split the samples of each label over the clients in proportions drawn from a symmetric Dirichlet distribution.

    A small alpha gives clients few labels and different sizes; a large one gives all of them the same mixture. For each
    label, the number of samples of a client differs from its proportion by less than one.

    Clients with fewer than `min_samples` are then filled up from the largest clients, which are cut to one common size;
    which of their samples move, and where, is random. Nothing is drawn again, so this ends for every alpha. With a small
    alpha and many clients, the moved samples are many: the sizes are less different than the distribution has it.

    Parameters
    ----------
    labels : int [n], non-negative.
    num_clients : clients N.
    alpha : parameter of the distribution, positive.
    seed : the same seed gives the same partition.
    min_samples : samples that each client has at least; 0 allows empty clients.

    Raises
    ------
    InvalidProblemError
        If an argument is out of its range, or there are fewer than ``num_clients * min_samples`` samples.

    References
    ----------
    M. Yurochkin et al., Bayesian nonparametric federated learning of neural networks, ICML 2019, section 4; the rule for
    small clients is ours.

    Examples
    --------
    >>> split = dirichlet([0, 1] * 50, num_clients=4, alpha=0.1)
    >>> int(split.sizes.sum()), bool(split.sizes.min() >= 1)
    (100, True)
    """
    _, label, totals = np.unique(_labels(labels), return_inverse=True, return_counts=True)  # (n,) below K, and (K,)
    alpha, least = real("alpha", alpha, positive=True), integer("min_samples", min_samples, low=0)
    num_clients = _num_clients(num_clients, label.size, least)
    _refuse_large("num_clients", num_clients, totals.size, "different labels")
    rng = stream(seed, "dirichlet")
    # Gamma(a) = Gamma(a + 1) * U^(1/a), in logarithms: no underflow and no 0 / 0 for any a
    log_share = np.log(rng.standard_gamma(alpha + 1, (totals.size, num_clients)))  # (K, N)
    log_share -= rng.standard_exponential(log_share.shape) / max(alpha, 1e-300)
    share = np.exp(log_share - log_share.max(axis=1, keepdims=True))  # (K, N)
    # samples between two edges belong to a client; in a new order for each label, or rounding would favour some clients
    order = rng.permuted(np.tile(np.arange(num_clients), (totals.size, 1)), axis=1)  # (K, N)
    ends = np.cumsum(np.take_along_axis(share, order, axis=1), axis=1)  # (K, N)
    edges = np.floor(ends / ends[:, -1:] * totals[:, None]).astype(np.int64)  # (K, N)
    counts = np.diff(edges, axis=1, prepend=0)  # (K, N)
    by_label = np.argsort(label[mix := rng.permutation(label.size)], kind="stable")  # equal labels in random order
    owner = np.empty(label.size, np.int64)
    owner[mix[by_label]] = np.repeat(order.ravel(), counts.ravel())
    return _from_owner(_filled_up(owner, num_clients, least, rng), num_clients)


def shards(
    labels: ArrayLike, num_clients: int, shards_per_client: int = 2, seed: int = 0, *, allow_empty: bool = False
) -> Partition:
    """Sort samples by label, cut them into equal shards, and deal the shards out at random.

    A client sees few labels: up to `shards_per_client`, or one more for each shard that lies across a border.

    Parameters
    ----------
    labels : int [n], non-negative.
    num_clients : clients N.
    shards_per_client : shards of each client.
    seed : the same seed gives the same partition.
    allow_empty : accept fewer samples than shards; shards are then empty, and clients may be.

    Raises
    ------
    InvalidProblemError
        If an argument is out of its range, or there are fewer samples than shards.

    References
    ----------
    B. McMahan et al., Communication-efficient learning of deep networks from decentralized data, AISTATS 2017, section 3.

    Examples
    --------
    >>> shards([0] * 6 + [1] * 6, num_clients=2, shards_per_client=1).label_counts([0] * 6 + [1] * 6).max(axis=1)
    array([6, 6])
    """
    label = _labels(labels)
    each = integer("shards_per_client", shards_per_client, low=1)
    num_clients = _num_clients(num_clients, label.size, 0 if allow_empty else each)
    _refuse_large("shards_per_client", each, num_clients, "clients")
    rng = stream(seed, "shards")
    mix = rng.permutation(label.size)
    by_label = mix[np.argsort(label[mix], kind="stable")]
    dealt = rng.permutation(np.repeat(np.arange(num_clients), each))
    number = (
        np.arange(label.size) * dealt.size // max(1, label.size)
    )  # shard of each sample: sizes differ by one at most
    owner = np.empty(label.size, np.int64)
    owner[by_label] = dealt[number]
    return _from_owner(owner, num_clients)


def by_column(column: ArrayLike) -> Partition:
    """Return one client for each different value of a column, in ascending order: a person, a site, a document.

    Parameters
    ----------
    column : [n], whole numbers or strings, such as a column of a table.

    Examples
    --------
    >>> by_column(["b", "a", "b"]).indices
    (array([1]), array([0, 2]))
    """
    values = as_array("column", column)
    if values.ndim != 1 or not values.size or values.dtype.kind not in "iuUO":
        raise InvalidProblemError(
            f"column: expected a vector of whole numbers or strings, got {values.dtype} of shape {list(values.shape)}"
        )
    different, owner = np.unique(values, return_inverse=True)
    return _from_owner(owner, different.size)


def _labels(labels: ArrayLike, num_labels: int | None = None, count: int | None = None) -> NDArray[np.int64]:
    high = None if num_labels is None else num_labels - 1
    return int_array("labels", labels, (count,), low=0, high=high, dtype=np.int64)


def _num_clients(num_clients: int, samples: int, min_samples: int) -> int:
    clients = integer("num_clients", num_clients, low=1)
    if samples < clients * min_samples:
        raise InvalidProblemError(
            f"num_clients = {clients}: {samples} samples, expected at least {clients * min_samples}, "
            f"{min_samples} for each client; use fewer clients, or allow empty ones"
        )
    _refuse_large("num_clients", clients)
    return clients


def _refuse_large(name: str, value: int, times: int = 1, what: str = "") -> None:
    """Refuse an argument that alone would decide how much memory is taken."""
    if value * times > MAX_ENTRIES:
        each = f" for {times} {what}" if what else ""
        raise InvalidProblemError(f"{name} = {value}: expected at most {MAX_ENTRIES // times}{each}")


def _from_owner(owner: NDArray[np.int64], num_clients: int) -> Partition:
    """Return the partition in which ``owner[s]`` holds sample s; numbers ascend within each client."""
    ends = np.cumsum(np.bincount(owner, minlength=num_clients))
    return Partition(tuple(np.split(np.argsort(owner, kind="stable"), ends[:-1])), owner.size)


def _filled_up(
    owner: NDArray[np.int64], num_clients: int, min_samples: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return owners so that each client has `min_samples`, taken from the largest ones."""
    sizes = np.bincount(owner, minlength=num_clients)  # (N,)
    missing = np.maximum(min_samples - sizes, 0)
    if not (total := int(missing.sum())):
        return owner
    low, high = (
        min_samples,
        int(sizes.max()),
    )  # the lowest common size at which the largest give no more than is missing
    while low < high:
        middle = (low + high) // 2
        if np.maximum(sizes - middle, 0).sum() <= total:
            high = middle
        else:
            low = middle + 1
    give = np.maximum(sizes - low, 0)
    give[np.flatnonzero(sizes >= low)[: total - int(give.sum())]] += 1  # the rest: one each, lowest numbers first
    order = np.lexsort((rng.random(owner.size), owner))  # by owner, at random within each
    rank = np.arange(owner.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    moved = order[rank < give[owner[order]]]
    filled = owner.copy()
    filled[moved] = rng.permutation(np.repeat(np.arange(num_clients), missing))
    return filled

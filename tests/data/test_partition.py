"""Partitions: every sample once, sizes and mixtures as stated, clear errors."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.data.partition import Partition, by_column, dirichlet, iid, shards
from edgeopt.errors import InvalidProblemError

LABELS = np.random.default_rng(3).integers(0, 10, 2000)

label_lists = st.lists(st.integers(0, 6), min_size=1, max_size=80)
clients = st.integers(1, 12)
seeds = st.integers(0, 5)
alphas = st.sampled_from([1e-300, 1e-4, 0.1, 1.0, 50.0, 1e300])


def covers(partition: Partition, count: int) -> bool:
    return np.array_equal(np.sort(np.concatenate(partition.indices)), np.arange(count))


def mixture_distance(partition: Partition, labels: Any) -> float:
    """Return the mean total variation between the label mixture of a client and that of all."""
    counts = partition.label_counts(labels)
    own, whole = counts / counts.sum(axis=1, keepdims=True), counts.sum(axis=0) / counts.sum()
    return float(np.abs(own - whole).sum(axis=1).mean() / 2)


# --- the class ----------------------------------------------------------------------------------------------------


def test_label_counts_by_hand():
    """Counts are what one counts; samples that nobody holds are not counted."""
    partition = Partition(([3, 0], [], [1]), num_samples=5)
    np.testing.assert_array_equal(partition.label_counts([2, 0, 1, 2, 1]), [[0, 0, 2], [0, 0, 0], [1, 0, 0]])
    assert partition.label_counts([2, 0, 1, 2, 1], 4).shape == (3, 4)
    assert partition.num_clients == 3
    np.testing.assert_array_equal(partition.sizes, [2, 0, 1])


def test_a_partition_is_frozen():
    """The index arrays are copies that cannot be written, and equality is by value."""
    mine = np.array([1, 0])
    partition = Partition((mine, [2]))
    mine[0] = 7
    assert partition == Partition(([1, 0], [2]))
    assert partition != Partition(([1], [0, 2]))
    assert partition != Partition(([1, 0], [2]), num_samples=4)
    assert partition.num_samples == 3
    with pytest.raises(ValueError, match="read-only"):
        partition.indices[0][0] = 5


@pytest.mark.parametrize(
    ("indices", "count", "message"),
    [
        ((), None, "at least one client"),
        (([0, 1], [2, 1]), None, "sample 1 is with client 0 and with client 1"),
        (([0, 0],), None, "sample 0 is with client 0 and with client 0"),
        (([0], [5, 3]), 5, r"client 1 has sample 5: expected 0 to 4"),
        (([0], [-1]), None, r"indices\[1\]\[0\] = -1: expected an integer >= 0"),
        (([0.5],), None, r"indices\[0\]\[0\] = 0.5"),
        (([[0]],), None, r"indices\[0\]: expected shape \[any\]"),
        (([0],), 1.5, "num_samples = 1.5"),
    ],
)
def test_bad_partitions_are_refused(indices: Any, count: Any, message: str):
    """Overlaps and numbers out of range are errors that name client and sample."""
    with pytest.raises(InvalidProblemError, match=message):
        Partition(indices, count)


def test_labels_must_fit():
    """Labels of another length or out of range are refused."""
    partition = iid(4, 2)
    with pytest.raises(InvalidProblemError, match=r"labels: expected shape \[4\], got \[3\]"):
        partition.label_counts([0, 1, 0])
    with pytest.raises(InvalidProblemError, match=r"labels\[1\] = 3: expected an integer from 0 to 2"):
        partition.label_counts([0, 3, 0, 1], 3)


# --- every sample once --------------------------------------------------------------------------------------------


@given(labels=label_lists, num_clients=clients, seed=seeds)
def test_iid_deals_everything_evenly(labels: list[int], num_clients: int, seed: int):
    """Each sample is with one client, sizes differ by one at most, and the same seed repeats."""
    partition = iid(labels, num_clients, seed, allow_empty=True)
    assert covers(partition, len(labels))
    assert np.ptp(partition.sizes) <= 1
    assert partition == iid(len(labels), num_clients, seed, allow_empty=True)


@given(labels=label_lists, num_clients=clients, alpha=alphas, minimum=st.integers(0, 4), seed=seeds)
def test_dirichlet_keeps_its_minimum(labels: list[int], num_clients: int, alpha: float, minimum: int, seed: int):
    """Each sample is with one client, no client is below the minimum, the same seed repeats; else the error says why."""
    if len(labels) < num_clients * minimum:
        with pytest.raises(
            InvalidProblemError, match=f"{len(labels)} samples, expected at least {num_clients * minimum}"
        ):
            dirichlet(labels, num_clients, alpha, seed, min_samples=minimum)
        return
    partition = dirichlet(labels, num_clients, alpha, seed, min_samples=minimum)
    assert covers(partition, len(labels))
    assert partition.sizes.min() >= minimum
    assert partition == dirichlet(labels, num_clients, alpha, seed, min_samples=minimum)


@given(labels=label_lists, num_clients=clients, each=st.integers(1, 4), seed=seeds)
def test_shards_deal_everything(labels: list[int], num_clients: int, each: int, seed: int):
    """Each sample is with one client, sizes are those of the shards, labels per client are few, the seed repeats."""
    partition = shards(labels, num_clients, each, seed, allow_empty=True)
    assert covers(partition, len(labels))
    smallest = len(labels) // (num_clients * each)
    assert (partition.sizes >= each * smallest).all()
    assert (partition.sizes <= each * (smallest + 1)).all()
    assert partition == shards(labels, num_clients, each, seed, allow_empty=True)


@given(column=st.lists(st.integers(-5, 5), min_size=1, max_size=60))
def test_by_column_groups(column: list[int]):
    """A client holds exactly the samples of its value, in ascending order of the values."""
    partition = by_column(column)
    assert covers(partition, len(column))
    for value, own in zip(sorted(set(column)), partition.indices, strict=True):
        assert own.tolist() == [i for i, given in enumerate(column) if given == value]


# --- mixtures -----------------------------------------------------------------------------------------------------


def test_iid_mixtures_are_the_global_one():
    """With 200 samples each, label shares are within five standard deviations of the shares of all."""
    partition = iid(LABELS, 10, seed=1)
    counts, share = partition.label_counts(LABELS), np.bincount(LABELS) / LABELS.size
    assert (np.abs(counts - 200 * share) <= 5 * np.sqrt(200 * share)).all()


def test_a_large_alpha_approaches_iid():
    """Mixtures differ less and less as alpha grows, and hardly at all in the end; sizes become equal."""
    distances = [mixture_distance(dirichlet(LABELS, 10, alpha, seed=2), LABELS) for alpha in (0.05, 0.5, 5, 50, 5e4)]
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 0.5
    even = dirichlet(LABELS, 10, 1e6, seed=2)
    assert mixture_distance(even, LABELS) < mixture_distance(iid(LABELS, 10, seed=2), LABELS) < 0.15
    assert np.ptp(even.sizes) <= 10  # below one sample of each of the ten labels, on either side


def test_rounding_favours_nobody():
    """With fewer samples of a label than clients, equal shares do not give all labels to the same few clients."""
    sizes = dirichlet(LABELS[:500], 400, 1e6, seed=4, min_samples=0).sizes  # about 50 of each of ten labels
    assert (sizes > 0).mean() > 0.6  # 1 - (1 - 1/8)^10 = 0.74 expected; one order for all labels would give 0.13
    assert sizes.max() < 10


def test_shares_are_dirichlet():
    """Over many draws, mean and variance of a client's share are those of the distribution (moments from its density)."""
    clients, alpha, draws = 4, 0.7, 1500
    labels = np.repeat(np.arange(draws), 400)  # each label is one draw
    share = dirichlet(labels, clients, alpha, seed=5, min_samples=0).label_counts(labels) / 400
    mean = 1 / clients
    variance = mean * (1 - mean) / (clients * alpha + 1)
    np.testing.assert_allclose(share.mean(axis=1), mean, atol=5 * np.sqrt(variance / draws))
    np.testing.assert_allclose(share.var(axis=1), variance, rtol=0.15)


def test_a_tiny_alpha_gives_each_label_to_one_client():
    """In the limit of alpha to zero a label has one owner; there is no division of zero by zero."""
    counts = dirichlet(LABELS, 5, 1e-300, seed=1, min_samples=0).label_counts(LABELS)
    assert ((counts > 0).sum(axis=0) == 1).all()


def test_filling_up_takes_from_the_largest():
    """By hand: one label and a tiny alpha give one client all 20; the other three get the minimum of 4, it keeps 8."""
    assert sorted(dirichlet([0] * 20, 4, 1e-300, min_samples=4).sizes) == [4, 4, 4, 8]


def test_filling_up_levels_the_largest():
    """Only the largest clients give, down to one common size, and only those below the minimum receive."""
    before = dirichlet(LABELS, 40, 0.05, seed=3, min_samples=0)
    after = dirichlet(LABELS, 40, 0.05, seed=3, min_samples=20)
    less, more = after.sizes < before.sizes, after.sizes > before.sizes
    assert less.any()
    assert (after.sizes[more] == 20).all()
    assert (before.sizes[more] < 20).all()
    assert np.ptp(after.sizes[less]) <= 1
    assert after.sizes[less].max() >= after.sizes[~less].max()
    for kept, had in zip(after.indices, before.indices, strict=True):
        assert set(kept) <= set(had) or set(had) <= set(kept)


def test_shards_have_few_labels():
    """With as many shards as fit the labels exactly, a client has at most one label per shard."""
    labels = np.repeat(np.arange(10), 40)
    partition = shards(labels, 20, 2, seed=1)  # 40 shards of 10: four for each label
    assert (partition.sizes == 20).all()
    assert ((partition.label_counts(labels) > 0).sum(axis=1) <= 2).all()


def test_seeds_differ():
    """Another seed gives another partition."""
    for make in (
        lambda seed: iid(LABELS, 10, seed),
        lambda seed: dirichlet(LABELS, 10, 0.5, seed),
        lambda seed: shards(LABELS, 10, 2, seed),
    ):
        assert make(1) != make(2)


def test_a_thousand_clients():
    """A thousand clients with a strong skew have at least their minimum."""
    labels = np.random.default_rng(0).integers(0, 10, 20_000)
    partition = dirichlet(labels, 1000, 0.05, min_samples=5)
    assert covers(partition, labels.size)
    assert partition.sizes.min() == 5


def test_columns_of_names():
    """Names are clients too."""
    assert [own.tolist() for own in by_column(np.array(["z", "a", "z"])).indices] == [[1], [0, 2]]


# --- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: iid(3, 4), "num_clients = 4: 3 samples, expected at least 4, 1 for each client"),
        (lambda: iid(3, 0), "num_clients = 0: expected an integer >= 1"),
        (lambda: iid(3, 1.5), "num_clients = 1.5"),
        (lambda: dirichlet([0, 1], 3, 1.0), "2 samples, expected at least 3"),
        (lambda: dirichlet([0, 1], 1, 0.0), "alpha = 0.0: expected a positive number"),
        (lambda: dirichlet([0, 1], 1, float("nan")), "alpha = nan"),
        (lambda: dirichlet([0, 1], 1, float("inf")), "alpha = inf"),
        (lambda: dirichlet([0, -1], 1, 1.0), r"labels\[1\] = -1"),
        (lambda: dirichlet([0, 1], 1, 1.0, min_samples=-1), "min_samples = -1"),
        (lambda: shards([0, 1, 2], 2, 2), "3 samples, expected at least 4, 2 for each client"),
        (lambda: shards([0, 1], 1, 0), "shards_per_client = 0"),
        (lambda: by_column([]), "column: expected a vector"),
        (lambda: by_column([0.5]), "column: expected a vector of whole numbers or strings, got float64"),
    ],
)
def test_bad_arguments_are_refused(make: Any, message: str):
    """Arguments out of range, and partitions that would leave clients empty, are errors that say so."""
    with pytest.raises(InvalidProblemError, match=message):
        make()


def test_empty_clients_when_asked():
    """Fewer samples than clients are dealt out when empty clients are allowed."""
    assert sorted(iid(2, 3, allow_empty=True).sizes) == [0, 1, 1]
    assert dirichlet([0, 1], 3, 1.0, min_samples=0).sizes.sum() == 2
    assert shards([0, 1], 3, 2, allow_empty=True).sizes.sum() == 2


# --- arguments of other types, and large values -------------------------------------------------------------------


@pytest.mark.parametrize("far", [30_000_000, 2**62])
def test_the_value_of_a_label_does_not_matter(far: int):
    """Labels are names: renumbering them changes nothing, and the largest one takes no memory."""
    labels = np.arange(400) % 40
    assert dirichlet(labels + far, 20, 0.5, seed=3) == dirichlet(labels, 20, 0.5, seed=3)
    assert shards(labels + far, 20, seed=3) == shards(labels, 20, seed=3)
    assert by_column(labels + far) == by_column(labels)
    assert iid(labels + far, 20, seed=3) == iid(labels, 20, seed=3)


def test_many_labels_of_large_value():
    """4,000 different labels of eight digits over 2,000 clients: what took 447 GiB."""
    partition = dirichlet(np.arange(4000) + 30_000_000, 2000, 0.5)
    assert covers(partition, 4000)
    assert partition.sizes.min() >= 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: iid(4, 2).label_counts([0, 1, 0, 2**40]), r"num_labels = 1099511627777: expected at most 67108864 for 2 clients"),
        (lambda: iid(4, 2).label_counts([0, 1, 0, 1], 2**40), r"num_labels = 1099511627776: expected at most 67108864"),
        (lambda: iid(10**15, 2), r"samples = 1000000000000000: expected an integer from 0 to 134217728"),
        (lambda: iid(5, 10**15, allow_empty=True), r"num_clients = 1000000000000000: expected at most 134217728"),
        (lambda: dirichlet([0, 1], 10**8, 1.0, min_samples=0), r"num_clients = 100000000: expected at most 67108864 for 2 "),
        (lambda: shards([0, 1], 2, 10**9, allow_empty=True), r"shards_per_client = 1000000000: expected at most"),
    ],
)  # fmt: skip
def test_sizes_that_the_data_do_not_explain_are_refused(call: Any, message: str):
    """Where a number alone would decide how much memory is taken, there is a bound."""
    with pytest.raises(InvalidProblemError, match=message):
        call()


def test_numbers_of_numpy_and_tensors():
    """Counts of any integer type, labels in tensors, and strings in tables give what plain ones give."""
    pd = pytest.importorskip("pandas")
    assert iid(100, np.int64(5)) == iid(100, 5) == iid(np.int64(100), 5) == iid(np.array(100), np.array(5))
    labels = [0, 1, 1, 0, 2, 2]
    for column in (
        torch.tensor(labels),
        pd.Series(labels, dtype="Int64"),
        np.array(labels, ">u2"),
        np.array(labels)[::-1][::-1],
    ):
        assert dirichlet(column, np.int8(2), np.float32(0.5)) == dirichlet(labels, 2, 0.5)
        assert shards(column, 2, np.int64(1)) == shards(labels, 2, 1)
        np.testing.assert_array_equal(iid(6, 2).label_counts(column, np.int64(3)), iid(6, 2).label_counts(labels))
    assert by_column(pd.Series(["b", "a", "b"])) == by_column(["b", "a", "b"])
    assert Partition((own for own in ([0, 2], [1])), np.int64(3)) == Partition(([0, 2], [1]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: iid(True, 1), "samples = True: expected an integer from 0"),
        (lambda: iid(10, True), "num_clients = True: expected an integer >= 1"),
        (lambda: iid(10, "2"), "num_clients = '2': expected an integer >= 1"),
        (lambda: iid(None, 2), "samples: expected an array of numbers: got nothing"),
        (lambda: dirichlet([0, 1], 1, "0.5"), "alpha = '0.5': expected a positive number"),
        (lambda: dirichlet(np.ma.masked_equal([0, 1], 1), 1, 0.5), r"labels\[1\] is masked: expected a value"),
        (lambda: by_column(["b", None]), r"column\[1\] = None: expected a value"),
        (lambda: by_column([1.0, 2.0]), "column: expected a vector of whole numbers or strings, got float64"),
        (lambda: Partition({"a": [0]}), "indices: expected one array per client, got a dict"),
        (lambda: Partition(3), "indices: expected one array per client, got a int"),
    ],
)  # fmt: skip
def test_arguments_of_the_wrong_type(call: Any, message: str):
    """What is no number or no column is refused by name."""
    with pytest.raises(InvalidProblemError, match=f"^{message}"):
        call()

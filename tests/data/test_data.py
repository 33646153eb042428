"""Data sets: shapes, ranges, splits, original files written here byte by byte, and damaged ones refused."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from edgeopt.data import (
    DATA_SETS,
    ArrayData,
    DataSplit,
    cifar10,
    coloured_digits,
    digits,
    from_dataset,
    load_data,
    mnist,
)
from edgeopt.data import arrays as array_data
from edgeopt.data.partition import Partition
from edgeopt.errors import EdgeOptError, InvalidFileError, InvalidProblemError

# --- samples in memory --------------------------------------------------------------------------------------------


def sequences(group: Any = None) -> ArrayData:
    return ArrayData(torch.arange(6).reshape(3, 2), torch.arange(6).reshape(3, 2), 6, "sequences", group)


def test_take_is_indexing():
    """Samples taken are those of the numbers, in their order, repeated if asked, with targets and groups."""
    data = sequences([5, 6, 7])
    taken = data.take([2, 0, 2])
    assert taken.inputs.tolist() == taken.targets.tolist() == [[4, 5], [0, 1], [4, 5]]
    assert taken.labels.tolist() == [7, 5, 7]
    assert len(data.take([])) == 0
    taken.inputs[0] = 0
    assert data.inputs[2].tolist() == [4, 5]


def test_large_data_are_printed_in_one_line():
    """What is printed says name, number, shape and classes, and holds no samples."""
    assert repr(sequences()) == "ArrayData('sequences', 3 inputs [2] int64, 6 classes)"
    assert repr(Partition(([3, 0], [1]), 5)) == "Partition(2 clients with 1 to 2 of 5 samples)"


def test_labels():
    """The label is the class, or the group of a sequence; a sequence without a group has none."""
    assert ArrayData(torch.zeros(2, 3), torch.tensor([1, 0]), 2, "x").labels.tolist() == [1, 0]
    with pytest.raises(InvalidProblemError, match="sequences: sequences without a group have no label"):
        _ = sequences().labels


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": np.zeros((2, 3))}, "inputs: expected a tensor with one row per sample, got ndarray"),
        ({"inputs": torch.tensor(1.0)}, "inputs: expected a tensor with one row per sample"),
        ({"inputs": torch.zeros(2, 3, dtype=torch.uint8)}, "inputs: expected floating-point numbers or int64, got .*uint8"),
        ({"inputs": torch.tensor([[1.0], [float("nan")]])}, "inputs: found NaN or an infinity"),
        ({"inputs": torch.tensor([[1.0], [-float("inf")]])}, "inputs: found NaN or an infinity"),
        ({"targets": torch.tensor([0, 1, 1])}, r"targets: expected shape \[2\] or \[2, T\] for 2 inputs, got \[3\]"),
        ({"targets": torch.zeros(2, 1, 1, dtype=torch.int64)}, r"got \[2, 1, 1\]"),
        ({"targets": torch.tensor([0.0, 1.0])}, "targets: expected int64, got torch.float32"),
        ({"targets": torch.tensor([0, 2])}, "targets: found 2: expected 0 to 1"),
        ({"targets": torch.tensor([-1, 1])}, "targets: found -1: expected 0 to 1"),
        ({"num_classes": 0}, "num_classes = 0: expected an integer >= 1"),
        ({"group": [0]}, r"group: expected shape \[2\], got \[1\]"),
        ({"group": [0, -1]}, r"group\[1\] = -1"),
    ],
)  # fmt: skip
def test_bad_samples_are_refused(changes: dict[str, Any], message: str):
    """What does not fit is an error that names the field and what was expected."""
    good: dict[str, Any] = {"inputs": torch.zeros(2, 3), "targets": torch.tensor([0, 1]), "num_classes": 2, "name": "x"}
    with pytest.raises(InvalidProblemError, match=message):
        ArrayData(**(good | changes))


@pytest.mark.parametrize("index", [3, -1])
def test_take_checks_its_numbers(index: int):
    """A number out of range is an error; -1 does not count from the end."""
    with pytest.raises(InvalidProblemError, match=rf"indices\[1\] = {index}: expected an integer from 0 to 2"):
        sequences().take([0, index])


def test_parts_of_a_split_fit():
    """Training and test samples have one shape and the same classes."""
    data = digits()
    with pytest.raises(InvalidProblemError, match=r"test: inputs of shape \[2\], expected \[1, 8, 8\] as in train"):
        DataSplit(data.train, sequences())
    with pytest.raises(InvalidProblemError, match="test: 11 classes, expected 10"):
        DataSplit(data.train, ArrayData(data.test.inputs, data.test.targets, 11, "x"))


# --- what comes with the package ----------------------------------------------------------------------------------


def test_digits_are_those_of_scikit_learn():
    """The bundled digits are scikit-learn's, each once, split three to one."""
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    data = digits()
    images = torch.cat([data.train.inputs, data.test.inputs]).flatten(1).numpy() * 16
    labels = np.concatenate([data.train.labels, data.test.labels])
    theirs = load_digits()
    expected = np.column_stack([theirs.data, theirs.target])
    found = np.column_stack([images, labels])
    np.testing.assert_array_equal(found[np.lexsort(found.T)], expected[np.lexsort(expected.T)])
    assert (len(data.train), len(data.test)) == (1347, 450)


def test_digits_repeat():
    """The same seed gives the same split, another seed another one; values are from 0 to 1."""
    assert torch.equal(digits().test.inputs, digits(0).test.inputs)
    assert not torch.equal(digits().test.inputs, digits(1).test.inputs)
    assert digits().train.inputs.dtype == torch.float32
    assert tuple(map(float, torch.aminmax(digits().train.inputs))) == (0.0, 1.0)


def test_coloured_digits_have_the_shape_of_cifar():
    """Pictures are 3 x 32 x 32 from 0 to 1 in ten classes, as many as asked, the same for the same seed."""
    data = coloured_digits(seed=1, num_train=1500, num_test=100)
    assert data.train.inputs.shape == (1500, 3, 32, 32)
    assert data.test.inputs.shape == (100, 3, 32, 32)
    assert data.train.num_classes == 10
    assert (np.bincount(data.train.labels, minlength=10) > 100).all()
    assert data.train.inputs.min() >= 0
    assert data.train.inputs.max() <= 1
    again, other = (coloured_digits(seed, num_train=1500, num_test=100) for seed in (1, 2))
    assert torch.equal(data.train.inputs, again.train.inputs)
    assert torch.equal(data.test.inputs, again.test.inputs)
    assert not torch.equal(data.train.inputs, other.train.inputs)


def test_coloured_digits_leave_the_global_state():
    """Making pictures neither uses nor moves torch's and NumPy's global random states."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    coloured_digits(num_train=3, num_test=3)
    assert torch.equal(before, torch.get_rng_state())


def test_coloured_digits_are_not_told_by_colour():
    """Mean colours tell the classes no better than chance does: a nearest-mean rule gets about one in ten."""
    data = coloured_digits(num_train=3000, num_test=1000)
    mean = torch.stack([data.train.inputs[data.train.targets == k].mean((0, 2, 3)) for k in range(10)])  # (10, 3)
    told = torch.cdist(data.test.inputs.mean((2, 3)), mean).argmin(1)  # (1000,)
    assert float((told == data.test.targets).float().mean()) < 0.15  # 0.1 and five standard deviations


@pytest.mark.slow
def test_coloured_digits_can_be_learnt():
    """A small convolutional network tells most of the test pictures, which show digits that it has not seen."""
    data = coloured_digits()
    torch.manual_seed(0)
    layers: list[torch.nn.Module] = []
    for inner, outer in ((3, 16), (16, 32), (32, 64)):
        layers += [torch.nn.Conv2d(inner, outer, 3, padding=1), torch.nn.BatchNorm2d(outer), torch.nn.ReLU()]
        layers += [torch.nn.MaxPool2d(2)]
    model = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(1024, 10))
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(5):
        for rows in torch.randperm(len(data.train)).split(50):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(data.train.inputs[rows]), data.train.targets[rows]).backward()
            optimizer.step()
    with torch.inference_mode():
        right = (model.eval()(data.test.inputs).argmax(1) == data.test.targets).float().mean()
    assert right > 0.7  # chance is 0.1


# --- original files -----------------------------------------------------------------------------------------------

NAMES = {
    ("train", "images"): "train-images-idx3-ubyte",
    ("train", "labels"): "train-labels-idx1-ubyte",
    ("t10k", "images"): "t10k-images-idx3-ubyte",
    ("t10k", "labels"): "t10k-labels-idx1-ubyte",
}


def idx(array: np.ndarray) -> bytes:
    """Return the IDX format of LeCun's page: two zero bytes, type 8, dimensions, big-endian sizes, the bytes."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist(folder: Path, *, zipped: bool = False) -> dict[tuple[str, str], np.ndarray]:
    rng, arrays = np.random.default_rng(1), {}
    for (part, what), name in NAMES.items():
        count = 7 if part == "train" else 3
        array = rng.integers(0, 256, (count, 28, 28)) if what == "images" else rng.integers(0, 10, count)
        arrays[part, what] = array.astype(np.uint8)
        data = idx(arrays[part, what])
        (folder / f"{name}{'.gz' * zipped}").write_bytes(gzip.compress(data) if zipped else data)
    return arrays


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_mnist_files(name: str, zipped: bool, tmp_path: Path):
    """Images and labels are those written, plain or zipped."""
    arrays = write_mnist(tmp_path, zipped=zipped)
    data = load_data(name, tmp_path)
    for part, read in (("train", data.train), ("t10k", data.test)):
        np.testing.assert_array_equal((read.inputs[:, 0] * 255).round().numpy(), arrays[part, "images"])
        np.testing.assert_array_equal(read.labels, arrays[part, "labels"])
    assert data.train.inputs.shape == (7, 1, 28, 28)
    assert data.train.name == name
    assert data.train.inputs.max() <= 1


GOOD = idx(np.zeros((7, 28, 28), np.uint8))
HUGE = bytes([0, 0, 8, 3]) + struct.pack(">3I", 4_000_000_000, 28, 28)
MANY = bytes([0, 0, 8, 3]) + struct.pack(">3I", 1_000_000, 28, 28)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "magic number 0x, expected 0x00000803"),
        (idx(np.zeros(7, np.uint8)), "magic number 0x00000801, expected 0x00000803"),
        (GOOD[:9], "ends in its header after 9 bytes"),
        (GOOD[:-1], "5487 bytes of data, expected 5488 for 7 samples"),
        (GOOD + b"x", "(5489|more than 5488) bytes of data, expected 5488"),
        (HUGE, "4000000000 samples, expected 1 to 1000000"),
        (MANY, "0 bytes of data, expected 784000000 for 1000000 samples"),
        (idx(np.zeros((0, 28, 28), np.uint8)), "0 samples"),
        (idx(np.zeros((7, 28, 27), np.uint8)), "images of 28 x 27, expected 28 x 28"),
        (idx(np.zeros((6, 28, 28), np.uint8)), "train-labels.*: 7 labels, expected 6 as in train-images"),
    ],
)
def test_damaged_mnist_files(data: bytes, message: str, zipped: bool, tmp_path: Path):
    """Wrong magic numbers, sizes and lengths are errors that name the file, what it has and what was expected."""
    write_mnist(tmp_path, zipped=zipped)
    name = f"train-images-idx3-ubyte{'.gz' * zipped}"
    (tmp_path / name).write_bytes(gzip.compress(data) if zipped else data)
    with pytest.raises(InvalidFileError, match=message) as caught:
        mnist(tmp_path)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [b"no gzip", gzip.compress(GOOD)[:-9], gzip.compress(GOOD)[:30] + b"junk" * 9, b""],
    ids=["no gzip", "cut off", "junk inside", "empty"],
)
def test_damaged_gzip(data: bytes, tmp_path: Path):
    """What is no gzip file, ends early or is corrupt inside is an error, not a crash."""
    write_mnist(tmp_path, zipped=True)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(data)
    with pytest.raises(InvalidFileError, match="train-images"):
        mnist(tmp_path)


def test_wrong_labels(tmp_path: Path):
    """A label above nine is an error with its place."""
    write_mnist(tmp_path)
    (tmp_path / NAMES["train", "labels"]).write_bytes(idx(np.array([0, 1, 2, 10, 4, 5, 6], np.uint8)))
    with pytest.raises(InvalidFileError, match="label of sample 3 is 10, expected 0 to 9"):
        mnist(tmp_path)


def write_cifar(folder: Path, count: int = 4) -> np.ndarray:
    records = np.random.default_rng(2).integers(0, 256, (6, count, 3073)).astype(np.uint8)
    records[:, :, 0] %= 10
    for name, part in zip([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"], records, strict=True):
        (folder / f"{name}.bin").write_bytes(part.tobytes())
    return records


def test_cifar_files(tmp_path: Path):
    """The five training files are read in order; a record is a label, then red, green and blue, row by row."""
    records = write_cifar(tmp_path)
    data = cifar10(tmp_path)
    assert data.train.inputs.shape == (20, 3, 32, 32)
    assert data.test.inputs.shape == (4, 3, 32, 32)
    np.testing.assert_array_equal(data.train.labels, records[:5, :, 0].ravel())
    record = records[1, 2]  # sample 6: pixel at row 3, column 5 in blue
    assert round(float(data.train.inputs[6, 2, 3, 5]) * 255) == record[1 + 2 * 1024 + 3 * 32 + 5]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes, expected a multiple of 3073"),
        (bytes(3073 * 2 - 1), "6145 bytes, expected a multiple of 3073"),
        (bytes([10]) + bytes(3072), "label of sample 0 is 10, expected 0 to 9"),
    ],
)
def test_damaged_cifar_files(data: bytes, message: str, tmp_path: Path):
    """Wrong lengths and labels are errors that name the file."""
    write_cifar(tmp_path)
    (tmp_path / "data_batch_3.bin").write_bytes(data)
    with pytest.raises(InvalidFileError, match=rf"data_batch_3\.bin: {message}"):
        cifar10(tmp_path)


def test_pickles_are_refused(tmp_path: Path):
    """The Python version of CIFAR-10 is refused unread, with the advice to take the binary one."""
    (tmp_path / "data_batch_1").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(
        InvalidFileError, match=r"pickles and can run code: expected data_batch_1\.bin .* binary version"
    ):
        cifar10(tmp_path)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "text"])
def test_a_folder_without_the_files(name: str, tmp_path: Path):
    """An empty folder, or none, is an error that says what was expected there."""
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(InvalidFileError, match=r"expected (a )?file"):
            load_data(name, folder)


# --- any torch data set -------------------------------------------------------------------------------------------


class Listed(Dataset):
    def __init__(self, samples: list[Any]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        return self.samples[index]


def test_from_dataset_reads_every_pair():
    """Tensors, arrays and numbers all work; floating point becomes float32, tokens stay int64."""
    inputs, targets = torch.rand(6, 2, 3, dtype=torch.float64), torch.tensor([0, 3, 1, 0, 2, 1])
    data = from_dataset(TensorDataset(inputs, targets), name="mine")
    assert torch.equal(data.inputs, inputs.float())
    assert torch.equal(data.targets, targets)
    assert (data.num_classes, data.name) == (4, "mine")
    listed = from_dataset(Listed([(np.array([1.5, 2.0]), 1), (np.array([0.5, 1.0]), np.int32(0))]), num_classes=5)
    assert listed.inputs.tolist() == [[1.5, 2.0], [0.5, 1.0]]
    assert listed.num_classes == 5
    tokens = from_dataset(TensorDataset(torch.arange(6).reshape(2, 3), torch.arange(6).reshape(2, 3)))
    assert tokens.targets.shape == (2, 3)
    assert tokens.inputs.dtype == torch.int64


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "dataset: expected at least one sample"),
        ([1.0], r"dataset\[0\]: expected a pair \(input, target\), got float"),
        ([(1.0, 2, 3)], r"dataset\[0\]: expected a pair \(input, target\), got tuple of length 3"),
        ([(object(), 1)], r"dataset\[0\]: input is a object: .* need a transform"),
        ([(torch.zeros(2, dtype=torch.uint8), 1)], r"dataset\[0\]: input is torch.uint8"),
        ([(1.0, 0.5)], r"dataset\[0\]: target: expected a whole number"),
        ([(1.0, "cat")], r"dataset\[0\]: target is a str"),
        ([(torch.zeros(2), 1), (torch.zeros(3), 1)], r"dataset\[1\]: input of shape \[3\], .*expected \[2\]"),
        ([(1.0, 1), (1, 1)], r"dataset\[1\]: input of shape \[\], torch.int64: expected \[\], torch.float32"),
        ([(1.0, 1), (1.0, [1])], r"dataset\[1\]: target is a list"),
        ([(1.0, 1), (1.0, -1)], r"dataset\[1\]: target -1: expected classes from 0 on"),
        ([(1.0, -1)], r"dataset\[0\]: target -1: expected classes from 0 on"),
    ],
)
def test_bad_datasets_are_refused(samples: list[Any], message: str):
    """What is not pairs of one shape is an error with the number of the sample."""
    with pytest.raises(InvalidProblemError, match=message):
        from_dataset(Listed(samples))


def test_datasets_without_a_length_are_refused():
    """A stream has no length."""

    class Stream(IterableDataset):
        def __iter__(self) -> Any:
            return iter([(1.0, 0)])

    with pytest.raises(InvalidProblemError, match="dataset: expected a length, Stream has none"):
        from_dataset(Stream())


def test_large_datasets_are_refused_first(monkeypatch: pytest.MonkeyPatch):
    """The size is worked out from the first sample, before memory is taken."""
    monkeypatch.setattr(array_data, "MAX_BYTES", 100)
    with pytest.raises(InvalidProblemError, match="9 samples take 108 bytes, expected at most 100"):
        from_dataset(TensorDataset(torch.zeros(9, 1), torch.zeros(9, dtype=torch.int64)))


# --- by name ------------------------------------------------------------------------------------------------------


def test_registry():
    """Every name is known; those that need no folder load, and the seed matters where it is said to."""
    assert DATA_SETS == ("digits", "coloured-digits", "mnist-1d", "mnist", "fashion-mnist", "cifar10", "text")
    assert torch.equal(load_data("digits", seed=3).test.inputs, digits(3).test.inputs)
    assert load_data("text").train.num_classes == 256


def test_text_folder(tmp_path: Path):
    """Each text file of a folder is a document, in the order of their names; other files are left alone."""
    for name in ("b.txt", "a.txt", "c.dat"):
        (tmp_path / name).write_bytes(name[:1].encode() * 300)
    data = load_data("text", tmp_path).train
    assert [(int(group), chr(row[0])) for group, row in zip(data.labels, data.inputs, strict=True)] == [
        (0, "a"),
        (1, "b"),
    ]


@pytest.mark.parametrize(
    ("name", "folder", "message"),
    [
        ("imagenet", None, "no data set 'imagenet': expected one of digits, coloured-digits, mnist-1d"),
        ("mnist", None, "mnist: expected the folder of its original files"),
        ("digits", "somewhere", "digits: comes with the package, expected no folder, got 'somewhere'"),
    ],
)
def test_bad_names(name: str, folder: str | None, message: str):
    """Unknown names, and folders that are missing or not wanted, are errors that say what was expected."""
    with pytest.raises(EdgeOptError, match=message):
        load_data(name, folder)


@pytest.mark.parametrize("count", [0, -1, 2.5])
def test_bad_counts(count: Any):
    """Numbers of pictures are whole and positive."""
    with pytest.raises(InvalidProblemError, match=f"num_test = {count}: expected an integer >= 1"):
        coloured_digits(num_train=5, num_test=count)


# --- samples of other types ---------------------------------------------------------------------------------------


class Pairs(Dataset[Any]):
    """A data set of given pairs."""

    def __init__(self, pairs: list[Any]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Any:
        return self.pairs[index]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda row: row.astype(">f8"),
        lambda row: row[::-1].copy()[::-1],
        lambda row: np.ma.masked_array(row),
        lambda row: np.array(row, order="F"),
        lambda row: torch.tensor(row).to(torch.bfloat16),
        lambda row: torch.tensor(row, requires_grad=True),
    ],
)
def test_samples_of_any_layout(wrap: Callable[[np.ndarray], Any]):
    """Orders of bytes, strides, bfloat16 and gradients do not matter: the numbers are those that were given."""
    rows = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    data = from_dataset(Pairs([(wrap(row), np.int16(i)) for i, row in enumerate(rows)]))
    assert data.inputs.dtype == torch.float32
    assert not data.inputs.requires_grad
    np.testing.assert_array_equal(data.inputs.numpy(), rows)
    assert data.targets.tolist() == [0, 1, 2]


def test_inputs_come_without_their_graph():
    """Inputs that were computed with gradients are taken as numbers, and classes may be counted by NumPy."""
    inputs = torch.ones(2, 3, requires_grad=True) * 2
    data = ArrayData(inputs, torch.tensor([0, 1]), np.int64(2), "mine")
    assert not data.inputs.requires_grad
    assert type(data.num_classes) is int
    with pytest.raises(InvalidProblemError, match="num_classes = True: expected an integer >= 1"):
        ArrayData(inputs, torch.tensor([0, 1]), True, "mine")


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ((np.ma.masked_equal([1.0, 0.0], 0), 0), r"dataset\[0\]: input\[1\] is masked: expected a value"),
        ((np.array(["a"]), 0), r"dataset\[0\]: input"),
        (
            (np.ones(2), 30_000_000),
            "dataset: found target 30000000, expected below 1048576: classes are numbered from 0",
        ),
    ],
)
def test_samples_that_are_none(pair: tuple[Any, Any], message: str):
    """What is masked is no sample, and a target that would make millions of classes is likely none."""
    with pytest.raises(InvalidProblemError, match=message):
        from_dataset(Pairs([pair]))


def test_many_classes_are_there_when_they_are_meant():
    """The bound is on what a target alone decides."""
    assert from_dataset(Pairs([(np.ones(2), 30_000_000)]), num_classes=40_000_000).num_classes == 40_000_000

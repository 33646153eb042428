import io
import json
import socket
import struct
import threading

import numpy as np
import pytest
import torch
from torch import nn

from edgeopt.errors import InvalidFileError, InvalidProblemError
from edgeopt.inference import streaming
from edgeopt.inference.streaming import layer_bytes, run_over_loopback, run_while_receiving, send_model
from edgeopt.inference.timeline import LayerTimeline, predict_timeline
from edgeopt.models import BasicBlock, gpt2, llama, resnet, vision_transformer

WAIT_S = 60  # longer than any test takes: a wait that fails the test instead of hanging it


def build(name: str, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return {
        "resnet": lambda: resnet(BasicBlock, (1, 1), width=4, num_classes=3, small_images=True),
        "vit": lambda: vision_transformer(image_size=16, patch_size=8, width=8, depth=2, heads=2, hidden=12),
        "gpt2": lambda: gpt2(vocabulary=11, context=9, width=8, depth=2, heads=2),
        "llama": lambda: llama(vocabulary=11, width=8, depth=1, heads=4, kv_heads=2, hidden=12),
    }[name]().eval()


def sample(name: str) -> torch.Tensor:
    torch.manual_seed(9)
    return torch.randn(2, 3, 16, 16) if name in ("resnet", "vit") else torch.randint(11, (2, 7))


def perceptron(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def written(model: nn.Sequential) -> bytes:
    stream = io.BytesIO()
    send_model(model, stream.write)
    return stream.getvalue()


def parts(data: bytes) -> tuple[dict, bytes]:
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def joined(header: object, body: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


@pytest.fixture(autouse=True)
def no_thread_is_left():
    """Every thread that a test starts has ended when it is over."""
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


# --- what arrives -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet", "vit", "gpt2", "llama"])
def test_output_equals_the_plain_forward_pass(name):
    """Over a socket, bit for bit; afterwards the receiver holds the sender's weights, buffers included."""
    source, target, inputs = build(name, 1), build(name, 2), sample(name)
    if name == "resnet":
        source.stem[1].running_mean.normal_()
    assert not torch.equal(source(inputs), target(inputs))
    run = run_over_loopback(source, target, inputs, rate_bps=1e9)
    assert torch.equal(run.output, source(inputs))
    assert run.timeline.layer_names == tuple(key for key, _ in source.named_children())
    for (key, mine), theirs in zip(source.state_dict().items(), target.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), key


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_types(dtype):
    """Weights of any floating type arrive as they are."""
    source, target = perceptron(1).to(dtype), perceptron(2).to(dtype)
    inputs = torch.ones(2, 3, dtype=dtype)
    run = run_while_receiving(target, io.BytesIO(written(source)), inputs)
    assert torch.equal(run.output, source(inputs))


def test_transposed_weights():
    """Weights that are not contiguous in memory, on either side, arrive where they belong."""
    source, target = perceptron(1), perceptron(2)
    for model in (source, target):
        model[0].weight = nn.Parameter(model[0].weight.detach().T.contiguous().T)
        assert not model[0].weight.is_contiguous()
    run = run_while_receiving(target, io.BytesIO(written(source)), torch.ones(2, 3))
    assert torch.equal(run.output, source(torch.ones(2, 3)))


def test_the_format():
    """Header by hand: names, types, shapes, places in the order of the layers; then the plain bytes."""
    model = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))
    header, body = parts(written(model))
    assert header == {
        "0.weight": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]},
        "0.bias": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]},
        "1.weight": {"dtype": "F32", "shape": [1], "data_offsets": [12, 16]},
        "1.bias": {"dtype": "F32", "shape": [1], "data_offsets": [16, 20]},
        "1.running_mean": {"dtype": "F32", "shape": [1], "data_offsets": [20, 24]},
        "1.running_var": {"dtype": "F32", "shape": [1], "data_offsets": [24, 28]},
        "1.num_batches_tracked": {"dtype": "I64", "shape": [], "data_offsets": [28, 36]},
    }
    assert len(body) == sum(layer_bytes(model)) == 36
    assert np.frombuffer(body[:8], "<f4").tolist() == model[0].weight.flatten().tolist()


def test_shared_weights_are_sent_once():
    """Tied weights, and a layer in two places, travel with their first use; a receiver that ties nothing is told so."""
    model = build("gpt2", 1)
    assert layer_bytes(model)[0] == 4 * (11 * 8 + 9 * 8)
    assert layer_bytes(model)[-1] == 4 * 2 * 8
    linear, other = nn.Linear(3, 3), nn.Linear(3, 3)
    source, target = nn.Sequential(linear, nn.Tanh(), linear), nn.Sequential(other, nn.Tanh(), other)
    assert layer_bytes(source) == (48, 0, 0)
    run = run_while_receiving(target, io.BytesIO(written(source)), torch.ones(1, 3))
    assert torch.equal(run.output, source(torch.ones(1, 3)))
    loose = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    with pytest.raises(InvalidFileError, match="2 tensors, expected 4"):
        run_while_receiving(loose, io.BytesIO(written(source)), torch.ones(1, 3))


# --- when it arrives ----------------------------------------------------------------------------------------------


class Held(io.BytesIO):
    """A stream that withholds its second half until it is released."""

    def __init__(self, data: bytes, hold_at: int) -> None:
        super().__init__(data)
        self.hold_at, self.released = hold_at, threading.Event()

    def readinto1(self, buffer):
        if self.tell() + len(buffer) > self.hold_at and not self.released.wait(WAIT_S):
            raise TimeoutError("the first layer has not run")
        return super().readinto1(buffer)


def test_a_layer_runs_before_the_next_one_is_there():
    """The second layer arrives only after the first one has run: waiting for the whole model would never end."""
    source, target = perceptron(1), perceptron(2)
    data = written(source)
    stream = Held(data, len(data) - layer_bytes(source)[2])
    target[0].register_forward_hook(lambda *_: stream.released.set())
    run = run_while_receiving(target, stream, torch.ones(1, 3))
    assert torch.equal(run.output, source(torch.ones(1, 3)))
    assert run.timeline.finish_s[0] <= run.timeline.download_finish_s[2]


class VirtualTime(threading.Event):
    """A clock that only waiting advances."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def wait(self, timeout=None):
        self.now += timeout
        return self.is_set()


@pytest.mark.parametrize("rate_bps", [8.0, 1234.5, 1e5, 1e9])
def test_the_sender_keeps_the_rate(monkeypatch, rate_bps):
    """In virtual time, byte n is written no earlier than 8 n / rate after the header, and no piece waits longer."""
    clock = VirtualTime()
    monkeypatch.setattr(streaming, "time", clock)
    model = perceptron(1)
    times, sizes = [], []

    def write(data):
        times.append(clock.now)
        sizes.append(len(data))

    send_model(model, write, rate_bps=rate_bps, stop=clock)
    assert times[0] == 0
    assert sum(sizes[1:]) == sum(layer_bytes(model))
    np.testing.assert_allclose(times[1:], 8 * np.cumsum(sizes[1:]) / rate_bps, rtol=1e-9)
    assert max(sizes[1:]) <= max(1, rate_bps / 8 * 0.002)


def test_the_timeline_follows_the_recursion():
    """Over a throttled socket, the measured timeline is that of the recursion for the measured seconds per layer.

    Waiting never makes anything earlier than the recursion from the measured arrivals says: this holds exactly. Against
    the prediction from the rate alone, every time is off by what the sender (a piece of 2 ms) and the two threads are
    late; 64 kB at 1 Mbit/s take 0.5 s, and 0.25 s are granted for threads that a busy machine wakes late. Without a
    throttle, or with the download first and the layers after it in one go, the first layers would be off by more.
    """
    torch.manual_seed(0)
    source, target = (nn.Sequential(*(nn.Linear(64, 64) for _ in range(4))) for _ in range(2))
    inputs = torch.ones(1, 64)
    rate = 8 * sum(layer_bytes(source)) / 0.5
    timeline = run_over_loopback(source, target, inputs, rate_bps=rate).timeline
    arrived, start, finish = timeline.download_finish_s, timeline.start_s, timeline.finish_s
    assert (np.diff(arrived) >= 0).all()
    assert (timeline.download_start_s[1:] >= arrived[:-1]).all()
    assert (timeline.compute_s >= 0).all()
    assert (start >= np.maximum(arrived, np.concatenate(([0.0], finish[:-1])))).all()
    predicted = predict_timeline(timeline.layer_names, layer_bytes(source), rate, timeline.compute_s)
    for name in ("download_finish_s", "start_s", "finish_s"):
        np.testing.assert_allclose(getattr(timeline, name), getattr(predicted, name), atol=0.25)
    assert predicted.download_finish_s[-1] == pytest.approx(0.5)


def test_prediction_by_hand():
    """Three layers at 8 bit/s: the second waits for its weights, the third for the second."""
    timeline = predict_timeline(("a", "b", "c"), [1, 2, 0], 8.0, [0.5, 4.0, 1.0])
    assert timeline.download_start_s.tolist() == [0, 1, 3]
    assert timeline.download_finish_s.tolist() == [1, 3, 3]
    assert timeline.start_s.tolist() == [1, 3, 7]
    assert timeline.finish_s.tolist() == [1.5, 7, 8]
    assert timeline.compute_s.tolist() == [0.5, 4, 1]
    assert timeline.total_s == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_names": ()}, "layer_names: expected at least one layer"),
        ({"layer_bytes": [1, -1]}, r"layer_bytes\[1\] = -1.0"),
        ({"layer_bytes": [1]}, r"layer_bytes: expected shape \[2\]"),
        ({"rate_bps": 0}, "rate_bps = 0.0: expected a positive number"),
        ({"compute_s": [1, np.inf]}, r"compute_s\[1\] = inf"),
    ],
)
def test_bad_predictions(change, message):
    """Wrong numbers are named."""
    arguments = {"layer_names": ("a", "b"), "layer_bytes": [1, 2], "rate_bps": 8.0, "compute_s": [1, 1]} | change
    if change == {"layer_names": ()}:
        arguments |= {"layer_bytes": [], "compute_s": []}
    with pytest.raises(InvalidProblemError, match=message):
        predict_timeline(**arguments)


def test_bad_timelines():
    """A timeline has finite times, one per layer."""
    with pytest.raises(InvalidProblemError, match=r"start_s\[0\] = nan"):
        LayerTimeline(layer_names=("a",), download_start_s=[0], download_finish_s=[0], start_s=[np.nan], finish_s=[0])


class Slow(io.RawIOBase):
    """A connection that brings few bytes at a time, and nothing after the first `held_at` until no layer is run any more."""

    def __init__(self, data: bytes, held_at: int) -> None:
        super().__init__()
        self.rest, self.taken, self.held_at = io.BytesIO(data), 0, held_at

    def readable(self):
        return True

    def readinto(self, buffer):
        if self.taken >= self.held_at:
            for thread in threading.enumerate():
                if thread.name == "edgeopt-inference":
                    thread.join(WAIT_S)
        count = self.rest.readinto(memoryview(buffer)[:64])
        self.taken += count
        return count


def test_an_error_in_a_layer_is_noticed_at_once():
    """What has arrived is enough to notice it: nothing waits for a whole megabyte of a slow connection."""
    source, target = (nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 30_000)) for _ in range(2))
    data = written(source)
    first = len(data) - layer_bytes(source)[1]
    stream = Slow(data, first)

    def fail(*_):
        raise ValueError("no")

    target[0].register_forward_pre_hook(fail)
    with pytest.raises(ValueError, match="no"):
        run_while_receiving(target, io.BufferedReader(stream), torch.ones(1, 1))
    assert stream.taken <= first + 3 * 64


def test_files_without_a_buffer(tmp_path):
    """A file that is opened without a buffer will do as well."""
    source, target = perceptron(1), perceptron(2)
    (tmp_path / "weights").write_bytes(written(source))
    with open(tmp_path / "weights", "rb", buffering=0) as stream:
        run = run_while_receiving(target, stream, torch.ones(1, 3))
    assert torch.equal(run.output, source(torch.ones(1, 3)))


# --- what goes wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [0, 7, 8, 30, -40, -1])
def test_streams_that_end_early(kept):
    """Wherever the stream ends, the error says in which part and after how many bytes."""
    data = written(perceptron(1))[:kept]
    part = "header" if 0 <= kept <= 30 else "0.bias|2.weight|2.bias"
    with pytest.raises(InvalidFileError, match=rf"^stream: ({part}): ends after \d+ bytes, expected \d+"):
        run_while_receiving(perceptron(2), io.BytesIO(data), torch.ones(1, 3))


def spoil_shape(header: dict) -> object:
    header["0.weight"]["shape"] = [4, 300_000_000]
    return header


def spoil_type(header: dict) -> object:
    header["0.bias"]["dtype"] = "F64"
    return header


def spoil_place(header: dict) -> object:
    header["2.weight"]["data_offsets"] = [0, 32]
    return header


def spoil_name(header: dict) -> object:
    return {("9" + key if key == "2.bias" else key): value for key, value in header.items()}


def spoil_order(header: dict) -> object:
    return dict(reversed(header.items()))


def spoil_count(header: dict) -> object:
    return header | {"3.weight": header["2.weight"]}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_shape, r"stream: tensor '0.weight' .*300000000.*: expected '0.weight' .*\[4, 3\]"),
        (spoil_type, "stream: tensor '0.bias' .*F64.*F32"),
        (spoil_place, r"stream: tensor '2.weight' .*\[0, 32\]"),
        (spoil_name, "stream: tensor '92.bias'"),
        (spoil_order, "stream: tensor '2.bias' .*: expected '0.weight'"),
        (spoil_count, "stream: 5 tensors, expected 4"),
        (lambda _: {}, "stream: 0 tensors, expected 4"),
        (lambda _: [1, 2], "header: expected a JSON object, got list"),
    ],
)
def test_headers_of_other_models(spoil, message):
    """A header that differs from the model is refused before any weight is read or memory taken for it."""
    header, body = parts(written(perceptron(1)))
    target = perceptron(2)
    before = [parameter.clone() for parameter in target.parameters()]
    stream = io.BytesIO(joined(spoil(header), body))
    with pytest.raises(InvalidFileError, match=message):
        run_while_receiving(target, stream, torch.ones(1, 3))
    assert stream.read() == body
    assert all(map(torch.equal, target.parameters(), before))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (struct.pack("<Q", 1 << 62), "a header of 4611686018427387904 bytes, expected at most"),
        (struct.pack("<Q", 5) + b"{nope", "header: not valid JSON"),
        (struct.pack("<Q", 2) + b"\xff\xfe", "header: not valid JSON"),
        (struct.pack("<Q", 200_000) + b"[" * 200_000, "header: not valid JSON"),
    ],
)
def test_bytes_that_are_no_stream(data, message):
    """Sizes are checked before memory is taken, and nothing but JSON is parsed."""
    with pytest.raises(InvalidFileError, match=message):
        run_while_receiving(perceptron(2), io.BytesIO(data), torch.ones(1, 3))


def test_an_error_in_a_layer_stops_the_download():
    """Inputs of a wrong shape: torch's own error comes out, and the rest of the weights is not read."""
    source, target = perceptron(1), perceptron(2)
    failed = threading.Event()
    target[0].register_forward_pre_hook(lambda *_: failed.set())
    data = written(source)
    stream = Held(data, len(data) - layer_bytes(source)[2])
    stream.released = failed
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run_while_receiving(target, stream, torch.ones(1, 5))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run_over_loopback(source, target, torch.ones(1, 5), rate_bps=1e4)


def test_a_connection_that_breaks():
    """The sender's end closes in the middle: the receiver says where."""
    ours, theirs = socket.socketpair()
    data = written(perceptron(1))
    with ours, theirs:
        theirs.sendall(data[:-12])
        theirs.close()
        with ours.makefile("rb") as stream, pytest.raises(InvalidFileError, match=r"stream: 2.weight: ends after 28"):
            run_while_receiving(perceptron(2), stream, torch.ones(1, 3))


def test_an_interrupt_while_reading():
    """Whatever the stream raises comes out, and the computing thread has ended."""

    class Interrupted(io.BytesIO):
        def readinto1(self, buffer):
            if self.tell() + len(buffer) == len(self.getvalue()):
                raise KeyboardInterrupt
            return super().readinto1(buffer)

    with pytest.raises(KeyboardInterrupt):
        run_while_receiving(perceptron(2), Interrupted(written(perceptron(1))), torch.ones(1, 3))


def test_models_that_cannot_be_streamed():
    """Models without layers, without memory, with other types, of another shape; and rates that are none."""
    inputs = torch.ones(1, 3)
    with pytest.raises(InvalidProblemError, match=r"expected an nn.Sequential with layers, got Linear"):
        run_while_receiving(nn.Linear(3, 2), io.BytesIO(), inputs)
    with pytest.raises(InvalidProblemError, match=r"expected an nn.Sequential with layers"):
        layer_bytes(nn.Sequential())
    with torch.device("meta"):
        meta = perceptron(1)
    with pytest.raises(InvalidProblemError, match=r"0.weight: on the meta device, expected weights"):
        send_model(meta, io.BytesIO().write)
    with pytest.raises(InvalidProblemError, match=r"0.weight: on the meta device, expected memory"):
        run_while_receiving(meta, io.BytesIO(), inputs)
    odd = perceptron(1)
    odd[0].weight = nn.Parameter(torch.zeros(4, 3, dtype=torch.complex64))
    with pytest.raises(InvalidProblemError, match=r"0.weight: expected a tensor of F64, F32"):
        layer_bytes(odd)
    for rate in (0, -1, float("nan")):
        with pytest.raises(InvalidProblemError, match="rate_bps"):
            send_model(perceptron(1), io.BytesIO().write, rate_bps=rate)
    with pytest.raises(InvalidProblemError, match="rate_bps"):  # found by the sender, told to the caller
        run_over_loopback(perceptron(1), perceptron(2), inputs, rate_bps=0)
    with pytest.raises(InvalidFileError, match=r"tensor 'embedding.token.weight' .*: expected '0.weight'"):
        run_over_loopback(build("gpt2", 1), nn.Sequential(nn.Linear(2, 2)), inputs, rate_bps=1e4)

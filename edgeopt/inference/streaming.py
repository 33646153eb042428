"""Running a model while its weights arrive: each layer starts when it is there and the one before it is done.

The stream is laid out like a safetensors file, with the tensors in the order of the layers: the length of a header as
8 bytes, little endian; the header, a JSON object of name, type, shape and place of every tensor; the bytes of the
tensors. The receiver knows the model, so the header only has to agree with it before any weight is read.
"""

import json
import math
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgeopt.display import one_line
from edgeopt.errors import InvalidFileError, InvalidProblemError, quoted
from edgeopt.inference.timeline import LayerTimeline
from edgeopt.json_text import parse_json_object
from edgeopt.validate import float_array

MAX_HEADER_BYTES = 1 << 24
_CHUNK_BYTES = 1 << 20  # read and written at once, at most
_CHUNK_S = 0.002  # a throttled sender writes this much at once
_TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class StreamedRun:
    """What `run_while_receiving` returns.

    Parameters
    ----------
    output : the model's output.
    timeline : what was measured, in seconds since the header was there.
    """

    output: torch.Tensor
    timeline: LayerTimeline

    __repr__ = one_line


def layer_bytes(model: nn.Sequential) -> tuple[int, ...]:
    """Return the bytes that are sent for each child of a model: parameters and buffers, shared ones once."""
    return tuple(sum(tensor.nbytes for tensor in tensors.values()) for tensors in _layer_tensors(model).values())


def send_model(
    model: nn.Sequential,
    write: Callable[[memoryview], object],
    *,
    rate_bps: float = math.inf,
    stop: threading.Event | None = None,
) -> None:
    """Write the weights of a model in the order of its layers, not faster than a given rate.

    Parameters
    ----------
    model : children are the layers.
    write : takes all the bytes it is given, such as the ``sendall`` of a socket or the ``write`` of a buffered file.
    rate_bps : bit/s. Byte n is written no earlier than ``8 n / rate_bps`` seconds after the header.
    stop : when set by another thread, the rest is not sent.
    """
    rate = float_array("rate_bps", rate_bps, (), positive=True, finite=False, unit="bit/s").item()
    stop = stop or threading.Event()
    layers = _layer_tensors(model)
    _refuse_meta(layers, "weights to send")
    header = json.dumps(_header(layers)).encode()
    write(memoryview(struct.pack("<Q", len(header)) + header))
    begin, sent = time.perf_counter(), 0
    chunk = int(max(1, min(_CHUNK_BYTES, rate / 8 * _CHUNK_S)))
    for tensors in layers.values():
        for tensor in tensors.values():
            data = _as_bytes(tensor.detach().cpu().contiguous())
            for first in range(0, len(data), chunk):
                piece = data[first : first + chunk]
                sent += len(piece)
                if stop.wait(max(0.0, begin + 8 * sent / rate - time.perf_counter())):
                    return
                write(piece)


def run_while_receiving(model: nn.Sequential, stream: BinaryIO, inputs: torch.Tensor) -> StreamedRun:
    """Fill a model with the weights of a stream, and run each layer as soon as it can run.

    The caller's thread reads, a second thread computes; it has ended when this function returns or raises.

    Parameters
    ----------
    model : children are the layers; its weights are overwritten. For inference, set it to evaluation mode before.
    stream : written by `send_model` from a model of the same shape: an open file, or ``makefile("rb")`` of a socket.
    inputs : one batch; the output equals ``model(inputs)`` with the received weights.

    Raises
    ------
    InvalidFileError
        If the stream ends early, or is for another model; nothing is read beyond the header in this case.
    InvalidProblemError
        If the model is not an `nn.Sequential`, or has weights without memory.
    """
    layers = _layer_tensors(model)
    _refuse_meta(layers, "memory that the weights can be written to")
    _check_header(_read_header(stream), _header(layers))
    worker = _Worker(model, inputs)
    arrived = np.zeros((2, len(layers)))  # start and finish of each download
    begin = time.perf_counter()
    worker.start()
    try:
        for index, tensors in enumerate(layers.values()):
            arrived[0, index] = time.perf_counter() - begin
            for name, tensor in tensors.items():
                _receive(stream, name, tensor, worker)
            arrived[1, index] = time.perf_counter() - begin
            worker.arrived.put(True)
    except BaseException:
        worker.arrived.put(False)
        raise
    finally:
        worker.join()
    if worker.error is not None:
        raise worker.error
    computed = np.array(worker.times).T - begin  # (2, L)
    timeline = LayerTimeline(
        layer_names=tuple(layers),
        download_start_s=arrived[0],
        download_finish_s=arrived[1],
        start_s=computed[0],
        finish_s=computed[1],
    )
    return StreamedRun(worker.value, timeline)


def run_over_loopback(
    source: nn.Sequential, target: nn.Sequential, inputs: torch.Tensor, *, rate_bps: float
) -> StreamedRun:
    """Send the weights of `source` over a throttled TCP connection of this machine to `target`, which runs meanwhile.

    Parameters
    ----------
    source, target : models of the same shape; the weights of `target` are overwritten.
    inputs : one batch for `target`.
    rate_bps : bit/s of the connection.
    """
    stop = threading.Event()
    failure: list[Exception] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        receiving = socket.create_connection(server.getsockname())
        sending, _ = server.accept()

    def send() -> None:
        try:
            with sending:
                send_model(source, sending.sendall, rate_bps=rate_bps, stop=stop)
        except Exception as error:  # noqa: BLE001 - it belongs to the caller's thread
            failure.append(error)

    sender = threading.Thread(target=send, name="edgeopt-sender")
    sender.start()
    try:
        with receiving, receiving.makefile("rb") as stream:
            return run_while_receiving(target, stream, inputs)
    except InvalidFileError as error:
        stop.set()
        sender.join()
        if failure and not isinstance(failure[0], ConnectionError):  # why the stream ended early
            raise failure[0] from error
        raise
    finally:
        stop.set()
        sender.join()


class _Worker(threading.Thread):
    """Computes layer after layer, each when `arrived` says so."""

    def __init__(self, model: nn.Sequential, inputs: torch.Tensor) -> None:
        super().__init__(name="edgeopt-inference", daemon=True)
        self.model, self.value = model, inputs
        self.arrived: SimpleQueue[bool] = SimpleQueue()
        self.times: list[tuple[float, float]] = []
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            with torch.no_grad():
                for layer in self.model:
                    if not self.arrived.get():
                        return
                    start = time.perf_counter()
                    self.value = layer(self.value)
                    if self.value.device.type != "cpu":
                        torch.accelerator.synchronize(self.value.device)
                    self.times.append((start, time.perf_counter()))
        except Exception as error:  # noqa: BLE001 - it belongs to the caller's thread
            self.error = error


def _layer_tensors(model: nn.Sequential) -> dict[str, dict[str, torch.Tensor]]:
    """Return the tensors of each child by name; a tensor that several share belongs to the first."""
    if not isinstance(model, nn.Sequential) or len(model) == 0:
        raise InvalidProblemError(f"model: expected an nn.Sequential with layers, got {type(model).__name__}")
    layers: dict[str, dict[str, torch.Tensor]] = {}
    seen = set[int]()
    for name, layer in zip(model._modules, model, strict=True):  # `named_children` leaves out a module's second place
        layers[name] = {}
        for key, tensor in layer.state_dict(prefix=f"{name}.", keep_vars=True).items():
            if not isinstance(tensor, torch.Tensor) or tensor.dtype not in _TYPES:
                raise InvalidProblemError(f"{key}: expected a tensor of {', '.join(_TYPES.values())}")
            if id(tensor) not in seen:
                seen.add(id(tensor))
                layers[name][key] = tensor
    return layers


def _refuse_meta(layers: dict[str, dict[str, torch.Tensor]], expected: str) -> None:
    if meta := [name for tensors in layers.values() for name, tensor in tensors.items() if tensor.is_meta]:
        raise InvalidProblemError(f"{meta[0]}: on the meta device, expected {expected}")


def _header(layers: dict[str, dict[str, torch.Tensor]]) -> dict[str, Any]:
    header, end = {}, 0
    for tensors in layers.values():
        for name, tensor in tensors.items():
            begin, end = end, end + tensor.nbytes
            header[name] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    return header


def _read_header(stream: BinaryIO) -> dict[str, Any]:
    (size,) = struct.unpack("<Q", _read(stream, 8))
    if size > MAX_HEADER_BYTES:
        raise InvalidFileError(f"stream: a header of {size} bytes, expected at most {MAX_HEADER_BYTES}")
    return parse_json_object("stream: header", _read(stream, size))


def _read(stream: BinaryIO, size: int) -> bytes:
    data = bytearray(size)
    _fill(stream, memoryview(data), "header", lambda: False)
    return bytes(data)


def _check_header(header: dict[str, Any], expected: dict[str, Any]) -> None:
    for (name, place), (wanted, wanted_place) in zip(header.items(), expected.items(), strict=False):
        if name != wanted or place != wanted_place:
            raise InvalidFileError(
                f"stream: tensor {quoted(name)} {quoted(place)}: expected {quoted(wanted)} {wanted_place}"
            )
    if len(header) != len(expected):
        raise InvalidFileError(f"stream: {len(header)} tensors, expected {len(expected)}")


def _receive(stream: BinaryIO, name: str, tensor: torch.Tensor, worker: _Worker) -> None:
    there = tensor.detach()
    here = (
        there if there.device.type == "cpu" and there.is_contiguous() else torch.empty(there.shape, dtype=there.dtype)
    )
    _fill(stream, _as_bytes(here), name, lambda: worker.error is not None)
    if here is not there:
        there.copy_(here)


def _as_bytes(tensor: torch.Tensor) -> memoryview:
    data: NDArray[np.uint8] = tensor.reshape(-1).view(torch.uint8).numpy()
    return data.data


def _fill(stream: BinaryIO, data: memoryview, name: str, stopped: Callable[[], bool]) -> None:
    source: Any = stream
    read = getattr(source, "readinto1", source.readinto)  # does not wait for all of a chunk
    position = 0
    while position < len(data) and not stopped():
        count = read(data[position : position + _CHUNK_BYTES])
        if not count:
            raise InvalidFileError(f"stream: {name}: ends after {position} bytes, expected {len(data)}")
        position += count

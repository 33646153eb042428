"""Training a network for one stream: transforms first, then the code by density evolution, then both together."""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeopt.coding.losses import Weights, batch_of, code_loss, importance, joint_loss, transforms_loss
from edgeopt.coding.transforms import Network, Shape
from edgeopt.display import one_line
from edgeopt.errors import InvalidFileError, InvalidProblemError, quoted
from edgeopt.fields import Fields, in_file
from edgeopt.models.weight_files import layout_of
from edgeopt.npz import Form
from edgeopt.progress import TrainingBar
from edgeopt.rng import stream
from edgeopt.storage import Arrays, Layout
from edgeopt.tensors import Shapes, load_tensors, save_tensors
from edgeopt.training.interrupts import uninterrupted
from edgeopt.validate import integer, real, seed_number

_KIND, _SCHEMA_VERSION = "ntrscc-training", 1
STAGES = ("transforms", "code", "joint")
Row = dict[str, float | int | str]
OnRow = Callable[[Row], object]
_KEPT = 100  # the share of the rate of learning that is left at the end of a stage is 1 over this


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How a network is trained.

    Parameters
    ----------
    transforms, code, joint : mini-batches of the three stages.
    batch, crop : squares of a mini-batch and pixels along their sides, a multiple of 32; the last stage has half as many.
    lr, code_lr, joint_lr : step sizes of Adam at the start of a stage; over it they fall to a hundredth along a cosine.
    weights : of the terms of the loss.
    row_every : mini-batches whose means are a row.
    """

    transforms: int = 4000
    code: int = 300
    joint: int = 500
    batch: int = 8
    crop: int = 64
    lr: float = 1e-3
    code_lr: float = 3e-2
    joint_lr: float = 2e-4
    weights: Weights = field(default_factory=Weights)
    row_every: int = 50

    def __post_init__(self) -> None:
        for name in STAGES:
            integer(name, getattr(self, name), low=0)
        for name in ("batch", "crop", "row_every"):
            integer(name, getattr(self, name), low=1)
        if self.crop % 32:
            raise InvalidProblemError(f"crop = {self.crop}: expected a multiple of 32")
        for name in ("lr", "code_lr", "joint_lr"):
            real(name, getattr(self, name), positive=True)

    @property
    def steps(self) -> tuple[int, int, int]:
        """Mini-batches of the three stages."""
        return self.transforms, self.code, self.joint


@dataclass(slots=True, eq=False)
class Trained:
    """What training leaves behind.

    Parameters
    ----------
    network : that was trained.
    rows : ``stage``, ``step`` (of all), and means of ``loss`` and its terms.
    interrupted : whether Ctrl-C ended it.
    """

    network: Network
    rows: list[Row] = field(default_factory=list)
    interrupted: bool = False

    __repr__ = one_line


def train_ntrscc(
    pictures: Sequence[NDArray[np.uint8]],
    training: Training | None = None,
    *,
    shape: Shape | None = None,
    seed: int = 0,
    start: Network | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 500,
    resume: bool = False,
    on_row: OnRow | None = None,
    display: bool = False,
) -> Trained:
    """Train a network in three stages; all chance is drawn from the seed and the number of the mini-batch.

    1. Transforms and hyperprior, with bits as a channel of random quality would tell them.
    2. Degree distributions and the weights of bits, by density evolution.
    3. All together, with graphs that are drawn and belief propagation unrolled.

    Parameters
    ----------
    pictures : uint8 [H, W, 3] each, no side shorter than a crop.
    training : how.
    shape : of the network; not with `start`.
    seed : same seed, same network.
    start : a network whose weights are the first.
    checkpoint : file that all is written to, every `checkpoint_every` mini-batches, at the end, and on Ctrl-C.
    resume : go on from that file if it is there: the result equals that of one long run, to the bit.
    on_row : called with every row.
    display : show a progress bar, if standard error is a terminal.

    Raises
    ------
    InvalidProblemError
        If a picture is too small.
    InvalidFileError
        If the checkpoint is of another run, or damaged.
    """
    training, seed = training or Training(), seed_number("seed", seed)
    check_pictures(pictures, training.crop)
    if start is not None and shape is not None:
        raise InvalidProblemError("shape: expected none beside start, which has one")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(stream(seed, "start").integers(1 << 62)))
        network = Network(start.shape if start is not None else shape)
    if start is not None:
        network.load_state_dict(start.state_dict())
    run = _Run(Trained(network), training, seed)
    identity = {"training": asdict(training), "shape": asdict(network.shape), "seed": seed}
    if checkpoint is not None and resume and os.path.exists(checkpoint):
        _load(checkpoint, identity, run)
    total = sum(training.steps)
    with TrainingBar("ntrscc", total, display=display) as bar:
        try:
            while run.step < total:
                with uninterrupted():  # a mini-batch counts in full, or not at all
                    row = run.advance(pictures)
                if row is not None:
                    bar.update(run.step, f"{row['stage']}: loss {row['loss']:.4g}")
                    if on_row is not None:
                        on_row(row)
                if checkpoint is not None and run.step % checkpoint_every == 0:
                    _save(checkpoint, identity, run)
        except KeyboardInterrupt:
            run.trained.interrupted = True
    if checkpoint is not None:
        _save(checkpoint, identity, run)
    return run.trained


def check_pictures(pictures: Sequence[NDArray[np.uint8]], crop: int) -> None:
    """Refuse pictures that no square can be cut out of."""
    if not len(pictures):
        raise InvalidProblemError("pictures: expected at least one")
    for i, picture in enumerate(pictures):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise InvalidProblemError(
                f"pictures[{i}]: {picture.dtype} {list(picture.shape)}: expected uint8 [H, W, 3], as `as_picture` makes them"
            )
        if min(picture.shape[:2]) < crop:
            raise InvalidProblemError(
                f"pictures[{i}]: {picture.shape[0]} x {picture.shape[1]} pixels: expected at least {crop} x {crop}"
            )


class _Run:
    """A run between two mini-batches."""

    def __init__(self, trained: Trained, training: Training, seed: int) -> None:
        self.trained, self.training, self.seed = trained, training, seed
        self.step = 0
        self.said: list[dict[str, float]] = []
        self.stage = -1
        self.optimizer: torch.optim.Adam | None = None

    def enter(self, stage: int) -> None:
        """Begin a stage: its parameters are trained, with an optimiser of its own."""
        network, training = self.trained.network, self.training
        code = [network.degree_logits, network.plain_logits, *network.neighbour.parameters()]
        mine = {id(parameter) for parameter in code}
        others = [parameter for parameter in network.parameters() if id(parameter) not in mine]
        wanted = (others, code, [*others, *code[:1], *code[2:]])[stage]
        for parameter in network.parameters():
            parameter.requires_grad_(any(parameter is one for one in wanted))
        rate = (training.lr, training.code_lr, training.joint_lr)[stage]
        self.optimizer = torch.optim.Adam(wanted, lr=rate)
        self.stage = stage

    def advance(self, pictures: Sequence[NDArray[np.uint8]]) -> Row | None:
        """Make one step; return the row that it ends, if it does."""
        network, training = self.trained.network, self.training
        stage, within = self._place(self.step)
        if stage != self.stage:
            self.enter(stage)
        if stage > 0 and within == 0:  # transforms are as they will be, about
            rng = stream(self.seed, "importance", stage)
            network.importance.copy_(
                importance(network, batch_of(pictures, 32, training.crop, rng), self.seed % (1 << 62))
            )
        rng = stream(self.seed, "ntrscc", self.step)
        size = training.batch if stage < 2 else max(1, training.batch // 2)
        done = within / training.steps[stage]
        loss_of = (transforms_loss, code_loss, joint_loss)[stage]
        loss, said = loss_of(network, batch_of(pictures, size, training.crop, rng), rng, training.weights, done)
        assert self.optimizer is not None
        for group in self.optimizer.param_groups:
            rate = (training.lr, training.code_lr, training.joint_lr)[stage]
            group["lr"] = rate * (1 / _KEPT + (1 - 1 / _KEPT) * 0.5 * (1 + float(np.cos(np.pi * done))))
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([p for group in self.optimizer.param_groups for p in group["params"]], _CLIP[stage])
        self.optimizer.step()
        self.said.append({"loss": float(loss.detach()), **said})
        self.step += 1
        last = self._place(self.step)[0] != stage or self.step == sum(training.steps)
        if self.step % training.row_every and not last:
            return None
        row: Row = {"stage": STAGES[stage], "step": self.step}
        row |= {name: float(np.mean([one[name] for one in self.said])) for name in self.said[0]}
        self.said = []
        self.trained.rows.append(row)
        return row

    def _place(self, step: int) -> tuple[int, int]:
        """Return the stage that a mini-batch belongs to, and its number within it."""
        for stage, count in enumerate(self.training.steps):
            if step < count:
                return stage, step
            step -= count
        return len(STAGES), 0


_CLIP = (1000.0, 10.0, 1000.0)  # of gradients: the loss is in squares of 255


# --- files ------------------------------------------------------------------------------------------------------------


def _save(path: str | os.PathLike[str], identity: dict[str, Any], run: _Run) -> None:
    arrays = {f"network/{name}": value.numpy() for name, value in run.trained.network.state_dict().items()}
    if run.optimizer is not None:
        for i, parameter in enumerate(run.optimizer.param_groups[0]["params"]):
            memory = run.optimizer.state.get(parameter)
            if memory:
                arrays |= {f"adam/{i}/{name}": value.numpy() for name, value in memory.items()}
    header = {
        "kind": _KIND, "schema_version": _SCHEMA_VERSION, "identity": identity, "step": run.step, "said": run.said,
        "rows": run.trained.rows,
    }  # fmt: skip
    save_tensors(path, header, arrays)


def _load(path: str | os.PathLike[str], identity: dict[str, Any], run: _Run) -> None:
    network = run.trained.network

    def layout(header: dict[str, Any], shapes: Shapes) -> Layout:
        own = layout_of({f"network/{name}": value for name, value in network.state_dict().items()}, shapes)
        return {**own} | {name: Form("f") for name in shapes if name.startswith("adam/")}

    header, arrays = load_tensors(path, _KIND, layout)
    with in_file(path):
        given = Fields(header, "not a complete checkpoint: ")
        given.expect("schema_version", _SCHEMA_VERSION)
        stored = given.table("identity")
        for name, expected in identity.items():
            if (found := stored.value(name)) != expected:
                raise InvalidFileError(f"{name} = {quoted(found)}: this run has {quoted(expected)}")
        run.step = given.integer("step", low=0, high=sum(run.training.steps))
        run.trained.rows = [dict(row) for row in given.tables("rows")]
        run.said = [{name: row.number(name) for name in row} for row in given.tables("said")]
        network.load_state_dict({name: torch.from_numpy(arrays[f"network/{name}"]) for name in network.state_dict()})
        if run.step:
            run.enter(run._place(run.step - 1)[0])
            _restore(run, arrays)


def _restore(run: _Run, arrays: Arrays) -> None:
    """Give the optimiser back what it remembers."""
    assert run.optimizer is not None
    for i, parameter in enumerate(run.optimizer.param_groups[0]["params"]):
        memory: dict[str, Tensor] = {}
        for name, shape in (("step", ()), ("exp_avg", parameter.shape), ("exp_avg_sq", parameter.shape)):
            key = f"adam/{i}/{name}"
            if key not in arrays or arrays[key].shape != tuple(shape):
                raise InvalidFileError(f"{key}: expected an array of shape {list(shape)}")
            memory[name] = torch.from_numpy(arrays[key])
        run.optimizer.state[parameter] = memory

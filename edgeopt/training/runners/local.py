"""Where clients run: here, one after another, many as one batch, or some at once on threads."""

import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from threading import Barrier
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch.func import vmap

from edgeopt.errors import SequentialWarning
from edgeopt.rng import stream
from edgeopt.schedule import RoundPlan
from edgeopt.training.algorithm import Algorithm
from edgeopt.training.chance import drawing
from edgeopt.training.checks import check_answer
from edgeopt.training.messages import Category, Message, Replies, State, Take, Tensors, kept
from edgeopt.training.runners.batched import apart, can_batch, stacked
from edgeopt.training.runners.choice import ONE, ROOM_MIB, choose_chunk, reuse_memory
from edgeopt.training.task import Task, as_batch
from edgeopt.training.trouble import TrainingError, blaming, in_words, is_out_of_memory
from edgeopt.validate import flag, integer, real

Work = TypeVar("Work")
Done = TypeVar("Done")


class Runner(Protocol):
    """Brings messages to clients and their replies back."""

    def deliver(
        self,
        algorithm: Algorithm,
        task: Task,
        plan: RoundPlan,
        messages: Mapping[int, Message],
        take: Mapping[Category, Take] = MappingProxyType({}),
    ) -> Replies:
        """Return the replies of the clients that could be reached, by entry of the plan.

        What a client remembers afterwards counts from the next `commit` on.

        Parameters
        ----------
        take : what the phase takes of the replies as they arrive, see `edgeopt.training.Phase`;
            `edgeopt.training.messages.taken` does it for replies that are all there.
        """
        ...

    def commit(self) -> None:
        """Make what clients remember of the round permanent."""
        ...

    def roll_back(self) -> None:
        """Forget what clients remember since the last `commit`."""
        ...

    @property
    def states(self) -> dict[int, State]:
        """What clients remember, by id, as far as it can be seen from here."""
        ...

    def restore(self, states: Mapping[int, State]) -> None:
        """Continue with what `states` gave; a run begins with it, or with an empty mapping."""
        ...


class _Job(NamedTuple):
    """Clients whose messages, states and data agree in shape, as entries of the plan."""

    entries: tuple[int, ...]
    clients: tuple[int, ...]


class _Found(NamedTuple):
    """What the clients of a job have returned: content, new state, rows, FLOPs; tensors [S, ...] where S clients ran as one."""

    entries: tuple[int, ...]
    batched: bool
    tensors: dict[Category, Tensors]
    state: State
    rows: Tensors
    flops: torch.Tensor


@dataclass(slots=True, weakref_slot=True)
class LocalRunner:
    """Runs the clients in this process.

    Parameters
    ----------
    batched : whether clients whose messages, states and data agree in shape run as one batch, if model and loss allow it.
        The results differ from those of one after another by rounding only. Default: what is faster, by the sizes of
        model and mini-batches alone, see `edgeopt.training.runners.choice`.
    chunk : at most so many clients in one batch, which bounds the memory. Default: all of them, or what is chosen.
    workers : threads that clients, or batches of them, are shared out to; each computes with one thread of torch. The
        results are those of one worker on one thread of torch. Layers that draw random numbers by themselves need one.
    room_mib : what the clients of a batch may take together where their number is chosen, see `Message.peak_bytes`.

    Attributes
    ----------
    ways : how clients have run so far, by the kind of the message: ``train: one after another``, or at most so many of
        them as one batch, ``train: 5 at once``. What `torch.func.vmap` refuses is told of by a `SequentialWarning`.
    """

    batched: bool | None = None
    chunk: int | None = None
    workers: int = 1
    room_mib: float = ROOM_MIB
    ways: list[str] = field(init=False, default_factory=list, repr=False)
    _states: dict[int, State] = field(init=False, default_factory=dict, repr=False)
    _changed: dict[int, State] = field(init=False, default_factory=dict, repr=False)
    _pool: ThreadPoolExecutor | None = field(init=False, default=None, repr=False)

    def __post_init__(self) -> None:
        self.batched = None if self.batched is None else flag("batched", self.batched)
        self.chunk = None if self.chunk is None else integer("chunk", self.chunk, low=1)
        self.workers = integer("workers", self.workers, low=1)
        self.room_mib = real("room_mib", self.room_mib)

    @property
    def states(self) -> dict[int, State]:
        """What clients remember, by id."""
        return {**self._states, **self._changed}

    def restore(self, states: Mapping[int, State]) -> None:
        """Continue with what `states` gave."""
        self._states, self._changed, self.ways = dict(states), {}, []

    def commit(self) -> None:
        """Make what clients remember of the round permanent."""
        self._states.update(self._changed)
        self._changed = {}

    def roll_back(self) -> None:
        """Forget what clients remember since the last `commit`."""
        self._changed = {}

    def deliver(
        self,
        algorithm: Algorithm,
        task: Task,
        plan: RoundPlan,
        messages: Mapping[int, Message],
        take: Mapping[Category, Take] = MappingProxyType({}),
    ) -> Replies:
        """Return the replies of all clients.

        A client with several entries starts each of them from the same state; of the new ones the last is kept.
        """
        reuse_memory()
        states = self.states
        jobs = self._jobs(task, plan, messages, states)
        several = self.workers > 1 and len(jobs) > 1
        drawn = torch.default_generator.get_state() if several else None

        def work(job: _Job) -> list[_Found]:
            return _run(algorithm, task, job, messages, states, seeded=not several)

        replies: Replies = {}
        new: dict[int, State] = {}
        for some in self._shared_out(work, jobs) if several else map(work, jobs):
            for found in some:
                answers, own = _answers(found, take)
                replies |= answers
                new |= own
        if drawn is not None and not torch.equal(drawn, torch.default_generator.get_state()):
            raise TrainingError(
                f"{self.workers} workers: a layer or loss drew from torch's generator, which threads share: expected 1 worker"
            )
        for entry in messages:
            client, state = int(plan.client[entry]), new[entry]
            if state or client in states:
                self._changed[client] = kept(state)
        return {entry: replies[entry] for entry in messages}

    def _jobs(
        self, task: Task, plan: RoundPlan, messages: Mapping[int, Message], states: Mapping[int, State]
    ) -> list[_Job]:
        """Return who runs together, in the order of the first of each."""
        groups: dict[Any, list[int]] = {}
        forms: dict[int, Any] = {}  # of what goes to many clients, by its id
        for entry, message in messages.items():
            key: Any = entry
            if message.batches is not None:
                task.check_batches(int(plan.client[entry]), message.batches)
            if self.batched is not False and message.batches is not None:  # without data there is nothing to compute
                client = int(plan.client[entry])
                key = (
                    message.kind, tuple(sorted(message.values.items())), message.held, message.batches,
                    task.sizes_in_epoch(client, message.batches), message.key is None, _form(states.get(client, {})),
                    *(_form_of(given, forms) for given in (message.tensors, message.rows)),
                )  # fmt: skip
            groups.setdefault(key, []).append(entry)
        jobs = []
        for entries in groups.values():
            size = self._at_once(task, messages[entries[0]], len(entries))
            for start in range(0, len(entries), size):
                own = tuple(entries[start : start + size])
                jobs.append(_Job(own, tuple(plan.client[list(own)].tolist())))
        if len(messages) > 1:
            self._note(next(iter(messages.values())).kind, max(len(job.entries) for job in jobs))
        return sorted(jobs, key=lambda job: job.entries[0])

    def _note(self, kind: str, most: int) -> None:
        way = f"{kind}: " + ("one after another" if most == ONE else f"{most} at once")
        if way not in self.ways:
            self.ways.append(way)

    def _at_once(self, task: Task, message: Message, count: int) -> int:
        """Return how many of `count` clients that agree in shape run as one batch."""
        if self.batched is None and self.chunk is None and message.batches is not None:
            return choose_chunk(task, message, count, self.room_mib)
        return self.chunk or count

    def _shared_out(self, work: Callable[[Work], Done], jobs: Sequence[Work]) -> Iterator[Done]:
        """Yield the results in order, from as many threads as there are workers; few of them wait at a time."""
        if self._pool is None:
            self._pool = _threads(self.workers)
            weakref.finalize(self, self._pool.shutdown, wait=False)
        ahead: deque[Future[Done]] = deque()
        waiting = iter(jobs)
        try:
            for job in waiting:
                ahead.append(self._pool.submit(work, job))
                if len(ahead) > self.workers + 1:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:  # after an error or Ctrl-C nothing goes on behind the back of whoever catches it
            for future in ahead:
                future.cancel()
            wait(ahead)


def _threads(count: int) -> ThreadPoolExecutor:
    """Return threads that compute with one thread of torch each; the number of those of this thread stays."""
    before, all_there = torch.get_num_threads(), Barrier(count + 1)

    def start() -> None:
        torch.get_num_threads()  # it is set for this thread when it is first looked at, and not again after that
        torch.set_num_threads(1)
        all_there.wait()

    pool = ThreadPoolExecutor(count, "edgeopt-client")
    for _ in range(count):
        pool.submit(start)
    all_there.wait()
    torch.set_num_threads(before)
    return pool


def _form(state: Any) -> Any:
    """Return names, shapes, types and devices of nested tensors."""
    if isinstance(state, torch.Tensor):
        return state.shape, state.dtype, state.device
    return tuple((name, _form(value)) for name, value in state.items())


def _form_of(given: Any, known: dict[int, Any]) -> Any:
    if (form := known.get(id(given))) is None:
        form = known[id(given)] = _form(given)
    return form


def _run(
    algorithm: Algorithm,
    task: Task,
    job: _Job,
    messages: Mapping[int, Message],
    states: Mapping[int, State],
    *,
    seeded: bool,
) -> list[_Found]:
    """Return what the clients of a job return: as one batch, or, where they are one or that is refused, each of them.

    Parameters
    ----------
    seeded : whether layers may draw from the generators of torch.
    """
    first = messages[job.entries[0]]
    at = (0, 0) if first.batches is None else (first.batches.round, first.batches.first)
    sizes = () if first.batches is None else task.sizes(job.clients[0], first.batches)

    def work(
        tensors: Any, state: State, rows: Tensors, key: torch.Tensor | None, chance: torch.Tensor | None, data: Any
    ) -> tuple[Any, State, Tensors, torch.Tensor]:
        message = replace(first, tensors=tensors, flops=0.0, rows=rows, key=key)
        with ExitStack() as stack:
            if chance is not None:
                stack.enter_context(drawing(chance))
            found = algorithm.client(task, message, state, as_batch(data[0], data[1], sizes) if data else None)
        check_answer(found)
        answer, new = found
        flops = answer.flops
        said = flops if isinstance(flops, torch.Tensor) else torch.tensor(flops, dtype=torch.float64)
        return dict(answer.tensors), new, dict(answer.rows), said

    def alone(entry: int, client: int) -> _Found:
        message = messages[entry]
        with ExitStack() as stack:
            stack.enter_context(blaming(f"round {at[0]}, client {client}, {algorithm.name}, message {first.kind!r}"))
            if seeded:
                stack.enter_context(seeded_layers(task, "client", client, *at))
            data = () if message.batches is None else tuple(x[0] for x in task.samples_of([client], message.batches))
            chance = None if seeded or not task.draws else _chance(task, [client], at)[0]
            given = dict(message.tensors), states.get(client, {}), dict(message.rows)
            return _Found((entry,), False, *work(*given, message.key, chance, data))

    refused = ""
    if len(job.entries) > 1 and (refused := can_batch(task.layers(training=True)) or "") == "":
        try:
            with ExitStack() as stack:
                if seeded:
                    stack.enter_context(seeded_layers(task, "clients", *at))
                return [_Found(job.entries, True, *_as_batch(task, work, job, messages, states, at))]
        except Exception as error:  # what vmap refuses, for example a loss that looks at the value of a tensor
            if is_out_of_memory(error):  # one after another they need less, but take the time that nobody asked for
                raise
            refused = in_words(error)
    found = [alone(entry, client) for entry, client in zip(job.entries, job.clients, strict=True)]
    if refused:
        told = f"clients run one after another, not as one batch: {refused}"
        warnings.warn(told, SequentialWarning, stacklevel=2)
    return found


def _as_batch(
    task: Task,
    work: Callable[..., Any],
    job: _Job,
    messages: Mapping[int, Message],
    states: Mapping[int, State],
    at: tuple[int, int],
) -> Any:
    """Return what the clients of a job return as one batch, tensors [S, ...]."""
    own = [messages[entry] for entry in job.entries]
    columns = [
        stacked([message.tensors for message in own]),
        stacked([states.get(client, {}) for client in job.clients]),
        stacked([message.rows for message in own]),
        (None, None) if own[0].key is None else stacked([message.key for message in own]),
        (_chance(task, job.clients, at), 0) if task.draws else (None, None),
        (() if own[0].batches is None else task.samples_of(job.clients, own[0].batches), 0),
    ]
    given, axes = zip(*columns, strict=True)
    return vmap(work, in_dims=axes)(*given)


def _chance(task: Task, clients: Sequence[int], at: tuple[int, int]) -> torch.Tensor:
    """Return keys for what layers draw at some clients, int64 [S]."""
    return torch.tensor([_seed(task, "client", client, *at) for client in clients], device=task.device)


def _answers(found: _Found, take: Mapping[Category, Take]) -> tuple[Replies, dict[int, State]]:
    """Return replies and new states by entry, with that taken of the replies that the phase takes."""
    content = dict(found.tensors)
    shapes: dict[Category, Tensors] = {}
    for category in [category for category in content if category in take]:
        given = content.pop(category)
        one = {name: (tensor[0] if found.batched else tensor).to("meta") for name, tensor in given.items()}
        take[category](found.entries, given if found.batched else {n: tensor[None] for n, tensor in given.items()})
        shapes[category] = one
    order = list(found.tensors)
    if not found.batched:
        entry = found.entries[0]
        tensors = {name: {**content, **shapes}[name] for name in order}
        return {entry: Message("reply", tensors, flops=float(found.flops), rows=found.rows)}, {entry: found.state}
    count = len(found.entries)
    flops: list[float] = found.flops.tolist()
    several = zip(
        found.entries, apart(content, count), flops, apart(found.rows, count), apart(found.state, count), strict=True
    )
    replies: Replies = {}
    states: dict[int, State] = {}
    for entry, own, work, rows, state in several:
        both = {**own, **shapes}
        replies[entry] = Message("reply", {name: both[name] for name in order}, flops=work, rows=rows)
        states[entry] = state
    return replies, states


@contextmanager
def seeded_layers(task: Task, *keys: int | str) -> Iterator[None]:
    """Let what layers draw by themselves, such as dropout, depend on the seed of the task and `keys` alone."""
    generators = _generators(torch.device(task.device))
    before = [generator.get_state() for generator in generators]
    seed = _seed(task, *keys)
    try:
        for generator in generators:
            generator.manual_seed(seed)
        with drawing(torch.tensor(seed, device=task.device)) if task.draws else nullcontext():
            yield
    finally:
        for generator, state in zip(generators, before, strict=True):
            generator.set_state(state)


def _seed(task: Task, *keys: int | str) -> int:
    return int(stream(task.seed, "layers", *keys).integers(1 << 62))


def _generators(device: torch.device) -> list[torch.Generator]:
    """Return the generators that layers on a device draw from; `torch.manual_seed` would take a tenth of a millisecond."""
    found: list[torch.Generator] = [torch.default_generator]
    if device.type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]
        found.append(
            torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
        )
    elif device.type == "mps":
        found.append(torch.mps._get_default_mps_generator())
    return found

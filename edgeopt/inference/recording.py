"""`record`: the routing of a mixture-of-experts model of transformers over texts, counted while it runs."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.inference.texts import tokenized
from edgeopt.problems.expert_caching.counting import SetCounts, counted_sets, fields_of_sets, merged
from edgeopt.problems.expert_caching.routing_trace import RoutingTrace
from edgeopt.training.trouble import in_words, is_out_of_memory
from edgeopt.validate import integer

Texts = Iterable[Any]
"""Texts of a user: strings, sequences of token ids, or what a tokenizer made: ``input_ids``, ``attention_mask`` [S, T]."""

_MOST_ROWS = 1 << 20  # rows of new counts before they are merged with the old ones
_NOT_FINITE = "model: a router returns NaN or infinities: expected finite numbers"
_LOGITS = ("encoder_router_logits", "decoder_router_logits", "router_logits")  # in the order in which layers run


class _Piece(NamedTuple):
    """Tokens of one user, [t]."""

    user: int
    ids: torch.Tensor


def record(
    model: nn.Module,
    texts_by_user: Mapping[Any, Texts] | Iterable[Texts],
    *,
    tokenizer: Callable[[str], Mapping[str, Any]] | None = None,
    top_k: int | None = None,
    batch_size: int = 8,
    max_length: int = 1024,
    name: str | None = None,
) -> RoutingTrace:
    """Run a model of transformers over what users have and count which experts their tokens take.

    Any model whose layers hand ids of experts to a module named ``experts`` (Mixtral, OLMoE, Qwen-MoE, DeepSeek, GPT-OSS,
    ...) is recorded by what they hand over, which is what runs, whatever rule chose it. Any other that gives
    ``router_logits`` (Switch, Llama 4, ...) is recorded by its K largest ones: also of tokens that Switch drops because
    an expert is full, which depends on what else is in the batch.

    Texts are read one by one, and a batch is forgotten once it is counted: memory grows with the number of different sets,
    not with that of tokens. Padding is masked and not counted. The model is left as it was.

    Parameters
    ----------
    model : of transformers, on any device and in any precision. An encoder with a decoder reads each text in both.
    texts_by_user : by name of the user, or one after another: the texts of each, as strings, as token ids, or as what a
        tokenizer made of several, ``{"input_ids": [S, T], "attention_mask": [S, T]}``. Any of them may be generators.
    tokenizer : of the model; for texts that are strings.
    top_k : experts that a token takes, of models that are recorded by logits. Default: as their configuration says.
    batch_size : pieces that run at once.
    max_length : longest piece, in tokens: longer texts are cut into pieces that do not see each other.
    name : of the model. Default: that of its configuration, or of its class.

    Returns
    -------
    RoutingTrace
        `meta` has bytes, FLOPs per token, and bits of the hidden state of an expert, taken from the module itself, and the
        names of the layers: `edgeopt.problems.ExpertCaching.from_traces` needs no more.

    Raises
    ------
    InvalidProblemError
        If the model has no experts, or layers of different ones; if it does not run on the texts, or a router returns NaN;
        if a user has no tokens.

    Examples
    --------
    A model of any local folder, and two users::

        model = AutoModelForCausalLM.from_pretrained(folder, dtype="bfloat16")
        trace = record(model, {"ann": ann, "bob": bob}, tokenizer=AutoTokenizer.from_pretrained(folder))
        problem = ExpertCaching.from_traces(trace, network)
    """
    batch_size = integer("batch_size", batch_size, low=1)
    max_length = integer("max_length", max_length, low=1)
    if not isinstance(model, nn.Module):
        raise InvalidProblemError(f"model: a {type(model).__name__}: expected a model of transformers")
    layers = _expert_layers(model)
    num_experts = _num_experts(next(iter(layers.values())))
    names: list[Any] = []
    pieces = _pieces(texts_by_user, names, tokenizer, max_length)
    counts: SetCounts | None = None
    fresh: list[SetCounts] = []
    with _running(model), torch.inference_mode(), _watching(layers) as watched:
        by_logits = False
        while batch := list(itertools.islice(pieces, batch_size)):
            ids, mask = _padded(batch)
            output = _run(model, watched, ids, mask, logits=by_logits)
            if not by_logits and (len(watched.ids) != len(watched.called) or not watched.ids):  # some are told no ids
                by_logits = True
                output = _run(model, watched, ids, mask, logits=True)
            kept = mask.flatten()  # (B * T,)
            if not (layer_count := len(watched.called)):
                raise InvalidProblemError(f"model: none of its {len(layers)} modules named experts runs: expected all")
            if by_logits:
                chosen = _largest(output, model, kept, layer_count, num_experts, top_k)
            else:
                chosen = _handed(watched, kept)
            if len(chosen) != len(kept):
                raise InvalidProblemError(f"model: its routers see {len(chosen)} of {len(kept)} tokens: expected all")
            experts = chosen.cpu()[kept].sort(dim=-1).values.to(torch.int64).numpy()  # (t, L, K)
            if experts.size and not 0 <= experts.min() <= experts.max() < num_experts:
                raise InvalidProblemError(
                    f"model: a router picks experts {experts.min()} to {experts.max()}: expected 0 to {num_experts - 1}"
                )
            user = np.repeat([piece.user for piece in batch], [len(piece.ids) for piece in batch])
            fresh.append(counted_sets(user, experts))
            if sum(len(part.user) for part in fresh) > _MOST_ROWS:
                counts, fresh = merged(fresh if counts is None else [counts, *fresh]), []
    _check_users(names, counts, fresh)
    total = merged(fresh if counts is None else [counts, *fresh])
    fields = fields_of_sets(total, int(total.layer.max()) + 1, num_experts, names)
    path_of = {layer: path for path, layer in layers.items()}
    fields["meta"] |= _costs(layers, *watched.hidden) | {"layers": [path_of[layer] for layer in watched.called]}
    if name is None:
        name = getattr(getattr(model, "config", None), "name_or_path", "") or type(model).__name__
    return RoutingTrace(name=str(name), **fields)


# --- texts ---------------------------------------------------------------------------------------------------------


def _pieces(
    texts_by_user: Any, names: list[Any], tokenizer: Callable[[str], Mapping[str, Any]] | None, max_length: int
) -> Iterator[_Piece]:
    """Yield the pieces of every user's texts, one after another, and note the names of the users."""
    by_name = isinstance(texts_by_user, Mapping)
    users = texts_by_user.items() if by_name else enumerate(_many("texts_by_user", texts_by_user))
    for number, (name, texts) in enumerate(users):
        names.append(name if isinstance(name, int | str) else str(name))
        own = [texts] if isinstance(texts, Mapping) else _many(f"texts of user {quoted(name)}", texts)
        for ids in _token_ids(name, own, tokenizer):
            yield from (_Piece(number, part) for part in torch.split(ids, max_length) if len(part))


def _many(name: str, given: Any) -> Iterable[Any]:
    """Return what can be gone through, and is no text: of that the letters would come."""
    if isinstance(given, str | bytes):
        raise InvalidProblemError(f"{name}: expected a list of texts, got one text")
    if not isinstance(given, Iterable):
        raise InvalidProblemError(f"{name} = {quoted(given)}: expected a list of texts")
    return given


def _token_ids(name: Any, texts: Texts, tokenizer: Callable[[str], Mapping[str, Any]] | None) -> Iterator[torch.Tensor]:
    """Yield the token ids [t] of each text, without padding."""
    for i, given in enumerate(texts):
        where = f"text {i} of user {quoted(name)}"
        if isinstance(given, str):
            yield _integers(where, tokenized(where, given, tokenizer), 1)
        elif isinstance(given, Mapping):
            ids = _integers(f"{where}: input_ids", given.get("input_ids"), 2)
            mask = torch.ones_like(ids) if (said := given.get("attention_mask")) is None else said
            mask = _integers(f"{where}: attention_mask", mask, 2)
            if mask.shape != ids.shape:
                raise InvalidProblemError(
                    f"{where}: attention_mask: shape {list(mask.shape)}, expected {list(ids.shape)} as input_ids"
                )
            if ((mask != 0) & (mask != 1)).any():
                raise InvalidProblemError(f"{where}: attention_mask: expected zeros and ones")
            yield from (row[real] for row, real in zip(ids, mask.bool(), strict=True))
        else:
            yield _integers(where, given, 1)


def _integers(where: str, given: Any, axes: int) -> torch.Tensor:
    try:
        ids = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        raise InvalidProblemError(f"{where} = {quoted(given)}: expected token ids") from None
    if ids.numel() == 0 and axes == 1:
        return torch.zeros(0, dtype=torch.int64)
    if ids.is_floating_point() or ids.is_complex() or ids.ndim != axes or (ids.dtype == torch.bool and axes == 1):
        raise InvalidProblemError(
            f"{where}: expected integers with {axes} {'axis' if axes == 1 else 'axes'}, got {ids.dtype} {list(ids.shape)}"
        )
    return ids.to("cpu", torch.int64)


def _padded(batch: list[_Piece]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask [B, T] of pieces, padded at their ends."""
    longest = max(len(piece.ids) for piece in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.int64)
    mask = torch.zeros(len(batch), longest, dtype=torch.bool)
    for row, real, piece in zip(ids, mask, batch, strict=True):
        row[: len(piece.ids)] = piece.ids
        real[: len(piece.ids)] = True
    return ids, mask


def _check_users(names: list[Any], counts: SetCounts | None, fresh: list[SetCounts]) -> None:
    """Refuse users without tokens, whom no row of a trace would be about."""
    found = {int(user) for part in ([] if counts is None else [counts]) + fresh for user in np.unique(part.user)}
    silent = next((name for number, name in enumerate(names) if number not in found), None)
    if silent is not None or not names:
        raise InvalidProblemError(
            "texts_by_user: expected at least one user"
            if not names
            else f"user {quoted(silent)}: expected tokens, got none"
        )


# --- the model -----------------------------------------------------------------------------------------------------


class _Watched:
    """What layers of experts were handed in a pass: which were called, ids [B * T, K], and whether weights are finite."""

    def __init__(self) -> None:
        self.called: list[nn.Module] = []
        self.ids: list[torch.Tensor] = []
        self.finite: list[torch.Tensor] = []
        self.hidden = (0, 0)  # width, and bits of a value

    def clear(self) -> None:
        """Forget the pass before."""
        self.called, self.ids, self.finite = [], [], []

    def note(self, layer: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Take in what a layer is called with; a hook."""
        self.called.append(layer)
        tensors = [given for given in (*positional, *named.values()) if isinstance(given, torch.Tensor)]
        hidden = next((given for given in tensors if given.is_floating_point()), None)
        if hidden is not None:
            self.hidden = (hidden.shape[-1], 8 * hidden.element_size())
        experts = _num_experts(layer)
        for i, given in enumerate(tensors):
            ids = not given.is_floating_point() and given.ndim == 2
            if ids and 0 < given.shape[1] < experts:  # as wide as all of them, it is a table of truth values
                self.ids.append(given)
                weights = next((t for t in tensors[i + 1 :] if t.is_floating_point() and len(t) == len(given)), None)
                whole = torch.ones(len(given), dtype=torch.bool, device=given.device)
                self.finite.append(whole if weights is None else weights.isfinite().flatten(1).all(dim=1))
                return


@contextmanager
def _watching(layers: Mapping[str, nn.Module]) -> Iterator[_Watched]:
    watched = _Watched()
    hooks = [layer.register_forward_pre_hook(watched.note, with_kwargs=True) for layer in layers.values()]
    try:
        yield watched
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _running(model: nn.Module) -> Iterator[None]:
    """Evaluate; every part is in its own mode again afterwards."""
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def _expert_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of experts by their names; routers, and what all tokens take, are not among them."""
    layers = {
        path: part for path, part in model.named_modules()
        if path.rpartition(".")[2] == "experts" and next(part.parameters(), None) is not None
    }  # fmt: skip
    if not layers:
        raise InvalidProblemError(
            f"model: {type(model).__name__} has no modules named experts: expected a mixture of them"
        )
    sizes = {_num_experts(layer): path for path, layer in layers.items()}
    if len(sizes) > 1:
        told = " and ".join(f"{count} in {path}" for count, path in sorted(sizes.items()))
        raise InvalidProblemError(f"model: layers of different numbers of experts, {told}: expected one number")
    return layers


def _num_experts(layer: nn.Module) -> int:
    """Return how many experts a module has."""
    if isinstance(said := getattr(layer, "num_experts", None), int):
        return said
    if isinstance(layer, nn.ModuleList | nn.ModuleDict):
        return len(layer)
    return len(next(layer.parameters()))


def _run(model: nn.Module, watched: _Watched, ids: torch.Tensor, mask: torch.Tensor, *, logits: bool) -> Any:
    """Run a batch; the head, whose scores of all words are the largest tensor there is, is left out where it can be."""
    watched.clear()
    body: Any = getattr(model, "base_model", model)
    device = next(model.parameters()).device
    given: dict[str, Any] = {"input_ids": ids.to(device), "attention_mask": mask.to(device, torch.int64)}
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        given |= {f"decoder_{key}": value for key, value in given.items()}
    if logits:
        given["output_router_logits"] = True
    try:
        return body(**given, use_cache=False)
    except Exception as error:  # whatever a user's module raises
        if is_out_of_memory(error):
            raise
        raise InvalidProblemError(f"model: does not run on the texts: {in_words(error)}") from error


def _largest(
    output: Any, model: nn.Module, kept: torch.Tensor, count: int, num_experts: int, top_k: int | None
) -> torch.Tensor:
    """Return the experts [B * T, L, K] with the largest outputs of each router."""
    found = [getattr(output, name, None) for name in _LOGITS]
    given = [layer for layers in found if isinstance(layers, tuple | list) for layer in layers]
    logits = [layer.flatten(0, -2) for layer in given if isinstance(layer, torch.Tensor) and layer.ndim > 1]
    if len(logits) != count:
        raise InvalidProblemError(
            f"model: {type(model).__name__} gives router_logits of {len(logits)} layers, and {count} modules named experts "
            "ran: expected as many"
        )
    for number, layer in enumerate(logits):  # (B * T, E)
        if layer.shape[1] != num_experts:
            raise InvalidProblemError(
                f"model: router_logits[{number}] are of {layer.shape[1]} experts: expected {num_experts}, as the layers have"
            )
    if top_k is None:
        config = getattr(model, "config", None)
        top_k = 1 if "Switch" in type(model).__name__ else getattr(config, "num_experts_per_tok", None)
        if not isinstance(top_k, int):
            raise InvalidProblemError(
                "top_k: the configuration does not tell how many experts a token takes: expected it"
            )
    top_k = integer("top_k", top_k, low=1, high=num_experts)
    if not all(bool(layer[kept.to(layer.device)].isfinite().all()) for layer in logits if len(layer) == len(kept)):
        raise InvalidProblemError(_NOT_FINITE)
    return torch.stack([layer.argsort(dim=-1, descending=True, stable=True)[:, :top_k] for layer in logits], dim=1)


def _handed(watched: _Watched, kept: torch.Tensor) -> torch.Tensor:
    """Return the experts [B * T, L, K] that layers were told to use."""
    if len(widths := {ids.shape[1] for ids in watched.ids}) > 1:
        raise InvalidProblemError(f"model: layers with K = {', '.join(map(str, sorted(widths)))}: expected one K")
    if not all(bool(finite[kept.to(finite.device)].all()) for finite in watched.finite if len(finite) == len(kept)):
        raise InvalidProblemError(_NOT_FINITE)
    return torch.stack([ids.to(watched.ids[0].device) for ids in watched.ids], dim=1)


def _costs(layers: Mapping[str, nn.Module], width: int, bits: int) -> dict[str, Any]:
    """Return what one expert takes, from the tensors of its module: bytes, FLOPs per token, bits of the hidden state.

    A multiply-add counts as two, biases and what is between the matrices as nothing. Packed weights, which are integers, tell
    of bytes and not of FLOPs.
    """
    costs = {}
    for path, layer in layers.items():
        count, weights = _num_experts(layer), list(layer.parameters())
        axes = 3 if any(weight.ndim >= 3 for weight in weights) else 2
        matrices = [weight for weight in weights if weight.ndim >= axes]
        flops = 2 * sum(weight.numel() for weight in matrices) / count
        packed = not all(weight.is_floating_point() for weight in matrices)
        size = sum(weight.numel() * weight.element_size() for weight in weights) / count
        costs[path] = (size, None if packed else flops)
    if len(set(costs.values())) > 1:
        (first, one), (second, other) = next(
            pair for pair in itertools.pairwise(costs.items()) if pair[0][1] != pair[1][1]
        )
        raise InvalidProblemError(
            f"model: an expert of {first} has {one[0]:g} bytes, of {second} {other[0]:g}: expected equal ones"
        )
    size, known = next(iter(costs.values()))
    told = {"bytes_per_expert": size, "d_model": width, "hidden_bits": width * bits}
    return told if known is None else told | {"flops_per_token": known}

"""Two passes of language models of transformers, one with its adapter and one without, for steered decoding.

transformers and peft are not imported here: models bring them along. Needs the extra ``llm`` to have a model at all.
"""

import hashlib
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from edgeopt import storage
from edgeopt.errors import InvalidFileError, InvalidProblemError, quoted
from edgeopt.fields import Fields, in_file
from edgeopt.inference.remote import received, top_log_probabilities
from edgeopt.inference.steering import (
    DIRECTIONS,
    LEAST_SHARE,
    OUTSIDE,
    Direction,
    Rule,
    SteeringVector,
    TokenStrengths,
    halved,
    share,
    token_strengths,
)
from edgeopt.inference.texts import tokenized
from edgeopt.validate import integer, listed

Text = str | Sequence[int] | tuple[str, str] | tuple[Sequence[int], Sequence[int]]
"""A text, or a prompt with its answer, as strings or as token ids."""

_KIND = "steering"
_IGNORED = -100


class SteeredDecoding:
    """A logits processor of transformers that steers: it runs the base model beside the adapted one.

    ``model.generate(..., logits_processor=[SteeredDecoding(model, steering)])`` steers greedy decoding, beams and sampling; of
    processors, transformers runs those that are given before temperature, top-k and top-p. One serves any number of calls
    of `generate`, one after another. The base pass has a cache of its own, whose rows follow the beams.

    Parameters
    ----------
    model : the adapted model: of peft, or any causal language model of transformers with `base`.
    steering : by `calibrate`.
    base : a second model that is the base. Default: `model` with its adapter switched off.
    attention_mask : int64 [B, T], zero where prompts are padded; generate does not tell a processor. Default: no padding.
        Each call of `generate` with padded prompts needs a processor of its own.
    use_cache : whether the base pass keeps keys and values. Models that have no cache run the whole text again for each token.
    top : the base is elsewhere, and sends only this many log-probabilities per token; see `top_log_probabilities`. Default: all.

    Raises
    ------
    InvalidProblemError
        If there is no adapter to switch off and no `base`, or the vocabularies differ.
    """

    def __init__(
        self,
        model: Any,
        steering: SteeringVector,
        *,
        base: Any = None,
        attention_mask: torch.Tensor | None = None,
        use_cache: bool = True,
        top: int | None = None,
    ) -> None:
        self.steering = _checked(steering)
        self.top = None if top is None else integer("top", top, low=1)
        self._base = Base(model, base)
        self._mask = None if attention_mask is None else torch.as_tensor(attention_mask)
        if self._mask is not None and (self._mask.ndim != 2 or not len(self._mask)):
            raise InvalidProblemError(
                f"attention_mask: shape {list(self._mask.shape)}: expected that of the prompts, [B, T]"
            )
        self._use_cache = use_cache
        self._cache: Any = None
        self._seen: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return steered log-probabilities [n, V] of the next token.

        Parameters
        ----------
        input_ids : int64 [n, T], all tokens so far; n is B, or B times the beams or samples of each prompt.
        scores : [n, V] of the adapted model.
        """
        base = self._next_scores(input_ids)
        if self.top is not None:
            base = received(*top_log_probabilities(base, self.top), base.shape[-1])
        return self.steering.steered(scores, base)

    def cached(self) -> list[torch.Tensor]:
        """Return the keys and values that the base pass keeps."""
        layers = getattr(self._cache, "layers", ())
        return [part for layer in layers for part in (layer.keys, layer.values) if part is not None]

    @torch.no_grad()
    def _next_scores(self, tokens: torch.Tensor) -> torch.Tensor:
        if tokens.ndim != 2 or not tokens.numel():
            raise InvalidProblemError(
                f"input_ids: shape {list(tokens.shape)}: expected at least one token of each text"
            )
        mask = self._whole_mask(tokens)
        rows = self._rows(tokens, mask)
        if rows is None:
            self._cache, new = None, tokens
        else:
            new = tokens[:, -1:]
            if not torch.equal(rows, torch.arange(len(rows), device=rows.device)):
                self._cache.reorder_cache(rows)
        scores, self._cache = self._base.next_scores(new, mask, self._cache, use_cache=self._use_cache)
        self._seen = tokens.clone()  # beam search writes into its own
        return scores

    def _whole_mask(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the mask [n, T] of prompts and what came after; rows of a prompt's beams are next to each other."""
        if self._mask is None:
            return torch.ones_like(tokens)
        mask = self._mask.to(tokens.device)
        if len(tokens) % len(mask) or tokens.shape[1] < mask.shape[1]:
            raise InvalidProblemError(
                f"attention_mask: shape {list(mask.shape)}, the tokens {list(tokens.shape)}: expected that of the prompts"
            )
        mask = mask.repeat_interleave(len(tokens) // len(mask), 0)
        return torch.cat([mask, mask.new_ones(len(mask), tokens.shape[1] - mask.shape[1])], 1)

    def _rows(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor | None:
        """Return the row of the cache [n] that each text continues, or None if the cache is of other texts."""
        seen, before = self._seen, tokens[:, :-1]
        if self._cache is None or seen is None or seen.shape != before.shape or seen.device != before.device:
            return None
        if torch.equal(seen, before):
            return torch.arange(len(seen), device=seen.device)
        same = (before[:, None] == seen).all(-1) & (mask[:, None] == mask).all(
            -1
        )  # a prompt's rows stay within its beams
        return same.int().argmax(1) if bool(same.any(1).all()) else None


class Base:
    """The base of an adapted model, and the scores of both.

    Parameters
    ----------
    model, base : as in `SteeredDecoding`.
    """

    def __init__(self, model: Any, base: Any = None) -> None:
        self.model: Any = model
        if not isinstance(model, torch.nn.Module) or getattr(model, "config", None) is None:
            raise InvalidProblemError(f"model: a {type(model).__name__}: expected a language model of transformers")
        adapter = getattr(model, "active_peft_config", None)
        if base is None:
            if adapter is None:
                raise InvalidProblemError(
                    "model: has no adapter to switch off: expected a model of peft, or its base as a second model"
                )
            if (bias := getattr(adapter, "bias", "none")) != "none":
                raise InvalidProblemError(
                    f"model: its adapter trains biases, bias = {quoted(bias)}, which stay when it is switched off: expected 'none'"
                )
        elif not isinstance(base, torch.nn.Module) or getattr(base, "config", None) is None:
            raise InvalidProblemError(f"base: a {type(base).__name__}: expected a language model of transformers")
        self._toggled = base is None
        self.base: Any = self.model.get_base_model() if base is None else base
        sizes = [_vocabulary(of) for of in (self.base, model)]
        if sizes[0] != sizes[1]:
            raise InvalidProblemError(
                f"base: a vocabulary of {sizes[0]} tokens: expected that of the model, {sizes[1]}"
            )
        if self.base.config.is_encoder_decoder:
            raise InvalidProblemError("model: an encoder with a decoder: expected a causal language model")
        self._switches = _switches(model) if base is None else []
        self._takes = inspect.signature(self.base.forward).parameters.keys()
        self._cache_name = "cache" if "cache" in self._takes else "past_key_values"  # as of the release of transformers

    def next_scores(
        self, new: torch.Tensor, mask: torch.Tensor, cache: Any, *, use_cache: bool
    ) -> tuple[torch.Tensor, Any]:
        """Return the base's scores [n, V] of the token after the last, and its cache; None if it has none.

        Parameters
        ----------
        new : int64 [n, t], the tokens that are not in the cache.
        mask : int64 [n, T] of all tokens.
        cache : of the tokens before, or None.
        """
        given: dict[str, Any] = {"input_ids": new, "attention_mask": mask, "use_cache": use_cache}
        if cache is not None:
            given[self._cache_name] = cache
        if "position_ids" in self._takes:  # as generate counts them: padding does not count
            positions = (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, 0)
            given["position_ids"] = positions[:, -new.shape[1] :]
        if "logits_to_keep" in self._takes:
            given["logits_to_keep"] = 1
        with self._off():
            out = self.base(**given)
        return out.logits[:, -1], getattr(out, self._cache_name, None) if use_cache else None

    def both(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the scores [b, T, V] after each token of whole texts, of the adapted model and of the base."""
        given = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        adapted = self.model(**given).logits[:, -tokens.shape[1] :]  # without those of virtual tokens
        with self._off():
            return adapted, self.base(**given).logits

    def fingerprints(self) -> dict[str, str]:
        """Return what tells the base and the adapter from others: digests of their weights."""
        base: dict[str, torch.Tensor] = {}
        adapter: dict[str, torch.Tensor] = {}
        if self._toggled:
            marks = _marks(self.model)
            for name, value in self.base.state_dict().items():
                part = adapter if any(mark in name for mark in marks) else base
                part[name.replace(".base_layer.", ".").replace(".original_module.", ".")] = value
            adapter |= {
                name: value for name, value in self.model.state_dict().items() if name.startswith("prompt_encoder.")
            }
        else:
            base, adapter = self.base.state_dict(), self.model.state_dict()
        return {"base": _digest(base), "adapter": _digest(adapter)}

    @contextmanager
    def _off(self) -> Iterator[None]:
        """Switch the adapter off; peft's `disable_adapter` looks through the whole model each time, a seventh of a small pass."""
        with nullcontext() if self._switches or not self._toggled else self.model.disable_adapter():
            on = [layer for layer in self._switches if not layer.disable_adapters]
            for layer in on:
                layer.enable_adapters(False)
            try:
                yield
            finally:
                for layer in on:
                    layer.enable_adapters(True)


def calibrate(
    model: Any,
    texts: Iterable[Text],
    *,
    tokenizer: Callable[..., Any] | None = None,
    base: Any = None,
    alpha: float = 0.1,
    rule: Rule = "mean",
    direction: Direction = "projected",
    least_share: float = LEAST_SHARE,
    batch_size: int = 8,
) -> SteeringVector:
    """Return the steering of an adapted model, its strength found on texts that the adapter was not trained on.

    With the rule ``curvature`` the strength is halved until the negative log-likelihood of the texts, with tokens outside the
    mask left as they are, is below that without steering; at last it is 0. Ours.

    Parameters
    ----------
    model, base : as in `SteeredDecoding`.
    texts : strings, which need `tokenizer`, or token ids. A pair is a prompt with its answer, and only tokens of the answer are labels;
        of a text alone, all tokens but the first are.
    tokenizer : of transformers, or whatever returns ``input_ids``.
    alpha, direction : as in `SteeringVector`.
    rule, least_share : as in `TokenStrengths.strength`.
    batch_size : texts that run at once.

    Raises
    ------
    InvalidProblemError
        If there are no texts, a text has no labels or tokens that the model does not know, or scores are nan.
    """
    pair, alpha = Base(model, base), share("alpha", alpha)
    samples = [sample_of(text, tokenizer, f"texts[{i}]") for i, text in enumerate(listed("texts", texts))]
    if not samples:
        raise InvalidProblemError("texts: none: expected at least one to calibrate on")
    parts = [
        token_strengths(adapted, other, labels, alpha=alpha, direction=direction)
        for adapted, other, labels in labelled_scores(pair, samples, batch_size)
    ]
    strength = TokenStrengths.joined(parts).strength(rule, least_share=least_share)
    steering = SteeringVector(strength=strength, alpha=alpha, direction=direction)
    return _backtracked(pair, samples, steering, batch_size) if rule == "curvature" else steering


def score_answers(
    model: Any,
    prompt: str | Sequence[int],
    answers: Sequence[str] | Sequence[Sequence[int]],
    steering: SteeringVector,
    *,
    tokenizer: Callable[..., Any] | None = None,
    base: Any = None,
) -> torch.Tensor:
    """Return the steered log-probability of each given answer to a prompt, float64 [n]: the sum over its tokens.

    Tokens outside the mask are left as they are, whatever `steering` says of them: lambda = 0.

    Parameters
    ----------
    model, base : as in `SteeredDecoding`.
    prompt, answers : strings, which need `tokenizer`, or token ids.

    Raises
    ------
    InvalidProblemError
        If there are no answers, or one has no tokens, or tokens that the model does not know.
    """
    both, steering = Base(model, base), _checked(steering)
    kept = SteeringVector(
        strength=steering.strength, alpha=steering.alpha, direction=steering.direction, outside="keep"
    )
    pairs = [(prompt, answer) for answer in listed("answers", answers)]
    samples = [sample_of(pair, tokenizer, f"answers[{i}]") for i, pair in enumerate(pairs)]
    if not samples:
        raise InvalidProblemError("answers: none: expected at least one to score")
    found = []
    for sample in samples:
        for adapted, other, labels in labelled_scores(both, [sample], 1):
            found.append(kept.steered(adapted, other).gather(-1, labels[:, None]).double().sum())
    return torch.stack(found).cpu()


def save_steering(path: str | os.PathLike[str], steering: SteeringVector, model: Any, *, base: Any = None) -> None:
    """Write a steering as JSON, with the fingerprints of the base and the adapter that it is for.

    Parameters
    ----------
    model, base : as in `SteeredDecoding`.
    """
    document = {
        "kind": _KIND, "schema_version": 1, "strength": steering.strength, "alpha": steering.alpha,
        "outside": steering.outside, "direction": steering.direction, **Base(model, base).fingerprints(),
    }  # fmt: skip
    storage.write_text(path, storage.dumps(document, indent=2) + "\n")


def load_steering(path: str | os.PathLike[str], model: Any, *, base: Any = None) -> SteeringVector:
    """Read a steering that `save_steering` wrote for this model and adapter.

    Raises
    ------
    InvalidFileError
        If it is no such file, or of another base or adapter.
    """
    values = Fields(storage.read_json(path))
    own = Base(model, base).fingerprints()
    with in_file(path):
        values.expect("kind", _KIND)
        values.expect("schema_version", 1)
        for name, found in own.items():
            if values.text(name) != found:
                raise InvalidFileError(
                    f"{name} = {quoted(values.text(name))}: of another {name}: expected {quoted(found)}"
                )
        given: dict[str, Any] = {
            "outside": values.choice("outside", OUTSIDE), "direction": values.choice("direction", DIRECTIONS)
        }  # fmt: skip
        return SteeringVector(strength=values.number("strength"), alpha=values.number("alpha"), **given)


# --- texts ---------------------------------------------------------------------------------------------------------


def sample_of(text: Text | tuple[Any, Any], tokenizer: Callable[..., Any] | None, where: str) -> tuple[list[int], int]:
    """Return the tokens of a text, and where its labels begin; `where` it stands is for messages."""
    prompt: Any = None
    answer: Any = text
    if isinstance(text, tuple) and not all(isinstance(part, int) for part in text):
        if len(text) != 2:
            raise InvalidProblemError(f"{where}: {len(text)} parts: expected a prompt and its answer")
        prompt, answer = text
    first = [] if prompt is None else _tokens(prompt, tokenizer, where)
    tokens = first + _tokens(answer, tokenizer, where, **({} if prompt is None else {"add_special_tokens": False}))
    start = max(1, len(first))
    if len(tokens) <= start:
        raise InvalidProblemError(f"{where}: {len(tokens)} tokens: expected at least one after the first")
    return tokens, start


def _tokens(text: Any, tokenizer: Callable[..., Any] | None, where: str, **options: Any) -> list[int]:
    ids = tokenized(where, text, tokenizer, **options) if isinstance(text, str) else text
    if not isinstance(ids, Iterable) or isinstance(ids, bytes):
        raise InvalidProblemError(f"{where} = {quoted(text)}: expected a text, or token ids")
    return [integer(where, token, low=0) for token in ids]


def _checked(steering: object) -> SteeringVector:
    if not isinstance(steering, SteeringVector):
        raise InvalidProblemError(
            f"steering: a {type(steering).__name__}: expected a SteeringVector, as calibrate returns"
        )
    return steering


@torch.no_grad()
def labelled_scores(
    pair: Base, samples: Sequence[tuple[list[int], int]], batch_size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield scores [n, V] of both models before the labels of a batch, and the labels [n]; nothing is dropped out."""
    device = next(pair.model.parameters()).device
    size, known_tokens = integer("batch_size", batch_size, low=1), _vocabulary(pair.model)
    for tokens, _ in samples:
        if (most := max(tokens)) >= known_tokens:
            raise InvalidProblemError(f"texts: token {most}: expected at most {known_tokens - 1}, as the model knows")
    modes = [(part, part.training) for model in (pair.model, pair.base) for part in model.modules()]
    pair.model.eval()
    pair.base.eval()
    try:
        for first in range(0, len(samples), size):
            batch = samples[first : first + size]
            longest = max(len(tokens) for tokens, _ in batch)
            ids = torch.zeros(len(batch), longest, dtype=torch.int64)  # padded on the right, where nobody looks
            labels = torch.full_like(ids, _IGNORED)
            for row, (tokens, start) in enumerate(batch):
                ids[row, : len(tokens)] = torch.tensor(tokens)
                labels[row, start : len(tokens)] = ids[row, start : len(tokens)]
            ids, after = ids.to(device), labels[:, 1:].to(device)
            known = after != _IGNORED
            adapted, other = (scores[:, :-1][known] for scores in pair.both(ids))
            yield adapted, other, after[known]
    finally:
        for part, mode in modes:
            part.training = mode


def _backtracked(
    pair: Base, samples: Sequence[tuple[list[int], int]], steering: SteeringVector, batch_size: int
) -> SteeringVector:
    tried = [
        SteeringVector(strength=own, alpha=steering.alpha, direction=steering.direction, outside="keep")
        for own in halved(steering.strength)
    ]
    losses = [0.0] * len(tried)
    for adapted, other, labels in labelled_scores(pair, samples, batch_size):
        for i, own in enumerate(tried):
            losses[i] -= float(own.steered(adapted, other).gather(-1, labels[:, None]).double().sum())
    best = next((own for own, loss in zip(tried, losses, strict=True) if loss < losses[-1]), tried[-1])
    return SteeringVector(strength=best.strength, alpha=steering.alpha, direction=steering.direction)


# --- models --------------------------------------------------------------------------------------------------------


def _vocabulary(model: Any) -> int:
    size: int = model.config.get_text_config().vocab_size
    return size


def _switches(model: Any) -> list[Any]:
    """Return the layers of a model of peft that can be switched off; adapters of virtual tokens have none."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import AuxiliaryTrainingWrapper

    return [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer | AuxiliaryTrainingWrapper)]


def _marks(model: Any) -> tuple[str, ...]:
    """Return what the names of an adapter's weights within the base's layers contain, as peft names them."""
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

    return (PEFT_TYPE_TO_PREFIX_MAPPING[model.active_peft_config.peft_type], ".modules_to_save.")


def _digest(weights: Mapping[str, torch.Tensor]) -> str:
    """Return a digest of weights by name."""
    found = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().cpu().contiguous()
        found.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]

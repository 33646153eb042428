"""Language models as sources of instructions: one of a local folder, or one behind an address, which must be allowed.

Their answers are untrusted text: they are parsed by a strict grammar, repaired and judged by what comes of them.
"""

import json
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import torch

from edgeopt.errors import EdgeOptError, InvalidFileError, quoted
from edgeopt.extras import needs
from edgeopt.models.pretrained import pretrained
from edgeopt.rl.instructions import Request
from edgeopt.validate import integer, real

MOST_BYTES = 1 << 20


@dataclass(slots=True, eq=False)
class LocalModel:
    """A causal language model of transformers from a local folder, such as SmolLM2. Needs the extra ``llm``; never downloads.

    It is loaded when it is first asked. The most likely token is taken every time: the same prompt has the same answer.

    Parameters
    ----------
    folder : with ``config.json``, weights and a tokenizer. Code that it may hold is not run.
    most_tokens : of an answer.
    device : where it runs.
    """

    folder: str
    most_tokens: int = 512
    device: str = "cpu"
    _loaded: tuple[Any, Any] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        integer("most_tokens", self.most_tokens, low=1)

    def instructions(self, request: Request) -> str:
        """Return the model's answer to the prompt."""
        model, tokenizer = self._model()
        prompt = request.prompt
        if getattr(tokenizer, "chat_template", None):
            messages = [{"role": "user", "content": prompt}]
            prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        asked = tokenizer(prompt, return_tensors="pt").input_ids.to(self.device)
        room = getattr(model.config, "max_position_embeddings", None) or asked.shape[1] + self.most_tokens
        asked = asked[
            :, -max(1, room - min(self.most_tokens, room // 2)) :
        ]  # the end has the trips and what is asked for
        tokens = min(self.most_tokens, room - asked.shape[1])
        with torch.no_grad():
            answer = model.generate(
                asked, attention_mask=torch.ones_like(asked), max_new_tokens=tokens, do_sample=False,
                pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
            )  # fmt: skip
        return str(tokenizer.decode(answer[0, asked.shape[1] :], skip_special_tokens=True))

    def _model(self) -> tuple[Any, Any]:
        if self._loaded is None:
            if not (Path(self.folder) / "config.json").is_file():
                raise InvalidFileError(f"{self.folder}: expected a folder with a model of transformers: no config.json")
            with needs("a language model", "llm"):
                import transformers  # noqa: F401
            expected = "a causal language model of transformers"
            model, tokenizer = pretrained(self.folder, expected, Path(self.folder), tokeniser=True)
            self._loaded = (model.to(self.device).eval(), tokenizer)
        return self._loaded


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpModel:
    """A language model behind an address that speaks as OpenAI's ``/v1/chat/completions``; off unless it is allowed.

    The prompt tells the address about the environment: nothing is sent unless `allow` is True. Answers are read up to a
    size, within a time; a redirection is refused.

    Parameters
    ----------
    url : ``http`` or ``https``, such as ``http://127.0.0.1:8080/v1/chat/completions``.
    model : name that the server knows the model by.
    allow : whether prompts may be sent there.
    key : sent as a bearer token, if there is one; not shown.
    timeout_s : seconds until a whole answer must be there, and between two parts of it.
    most_tokens : of an answer.
    """

    url: str
    model: str
    allow: bool = False
    key: str | None = field(default=None, repr=False)
    timeout_s: float = 60.0
    most_tokens: int = 1024

    def __post_init__(self) -> None:
        if (parts := urlsplit(self.url)).scheme not in ("http", "https") or not parts.hostname:
            raise EdgeOptError(f"url = {quoted(self.url)}: expected http:// or https:// and a host")
        if not 0 < real("timeout_s", self.timeout_s) <= 3600:
            raise EdgeOptError(f"timeout_s = {quoted(self.timeout_s)}: expected a number > 0, at most 3600")
        integer("most_tokens", self.most_tokens, low=1)

    def instructions(self, request: Request) -> str:
        """Send the prompt, and return the answer's text."""
        if self.allow is not True:
            raise EdgeOptError(f"{self.url}: nothing is sent there unless allow=True says so")
        body = {
            "model": self.model, "messages": [{"role": "user", "content": request.prompt}], "temperature": 0,
            "max_tokens": self.most_tokens,
        }  # fmt: skip
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        call = urllib.request.Request(self.url, json.dumps(body).encode(), headers, method="POST")
        opener = urllib.request.build_opener(_NoRedirection)
        try:
            with opener.open(call, timeout=self.timeout_s) as answer:
                data, deadline = b"", monotonic() + self.timeout_s
                while len(data) <= MOST_BYTES and (part := answer.read1(1 << 16)):
                    data += part
                    if monotonic() > deadline:  # the socket's own limit starts anew with every byte
                        raise TimeoutError(f"no whole answer within {self.timeout_s:g} s")
        except (urllib.error.URLError, TimeoutError, OSError) as error:
            raise EdgeOptError(f"{self.url}: {quoted(str(error))[1:-1]}") from None
        if len(data) > MOST_BYTES:
            raise EdgeOptError(f"{self.url}: an answer of more than {MOST_BYTES} bytes")
        try:
            text = json.loads(data)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError):
            text = None
        if not isinstance(text, str):
            raise EdgeOptError(f"{self.url}: expected JSON with choices[0].message.content, got {quoted(data[:80])}")
        return text


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Follow nothing: the address that was allowed is the one that is asked."""

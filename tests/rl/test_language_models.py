"""Language models as sources: a tiny one made from its configuration, a server of this process, and what is refused."""

import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from edgeopt.errors import EdgeOptError, InvalidFileError
from edgeopt.rl import HttpModel, LocalModel, Request, carried_out
from edgeopt.rl.environments import Routing, grid
from edgeopt.rl.language_models import MOST_BYTES


def request_() -> Request:
    team = Routing(grid(3), 2, seed=1)
    team.reset([1])
    return Request(team, 0, 1)


# --- a local folder ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a decoder of one block with random weights, and a tokenizer of single bytes."""
    transformers = pytest.importorskip("transformers")
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    path = tmp_path_factory.mktemp("model")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({letter: i for i, letter in enumerate([*letters, "<end>"])}, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>").save_pretrained(path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.GPT2Config(
            vocab_size=257, n_layer=1, n_embd=16, n_head=2, n_positions=128, eos_token_id=256
        )
        transformers.GPT2LMHeadModel(config).save_pretrained(path)
    return path


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("most_tokens", [12, 500])
def test_an_untrained_model_says_nonsense_that_does_no_harm(folder: Path, most_tokens: int):
    """It answers, the same every time, within its 128 positions; nothing of it is an instruction; agents go home."""
    source = LocalModel(str(folder), most_tokens=most_tokens)
    one = source.instructions(request_())
    assert one == source.instructions(request_())
    team = Routing(grid(3), 2, seed=1)
    _, rejected = carried_out(team, source, [1])
    assert team.arrived.all()
    assert rejected[-1] == "no instruction at all"


def test_a_folder_without_a_model_is_refused(tmp_path: Path):
    with pytest.raises(InvalidFileError, match=r"no config\.json"):
        LocalModel(str(tmp_path)).instructions(request_())
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InvalidFileError, match=str(tmp_path)):
        LocalModel(str(tmp_path)).instructions(request_())


# --- an address -------------------------------------------------------------------------------------------------------


@contextmanager
def server(answer: bytes, status: int = 200, location: str = "") -> Iterator[tuple[str, list[dict]]]:
    """Serve the same answer always, and keep what was sent."""
    got: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append({"body": json.loads(body), "authorization": self.headers.get("Authorization")})
            self.send_response(status)
            if location:
                self.send_header("Location", location)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    own = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=own.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{own.server_port}/v1/chat/completions", got
    finally:
        own.shutdown()
        thread.join()
        own.server_close()


def said(text: object) -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


def test_nothing_is_sent_unless_it_is_allowed():
    with server(said("[MoveTo, Intersection_1, Agent_0]")) as (url, got):
        with pytest.raises(EdgeOptError, match="allow=True"):
            HttpModel(url=url, model="m").instructions(request_())
        assert got == []
        source = HttpModel(url=url, model="m", allow=True, key="secret", most_tokens=7)
        assert source.instructions(request_()) == "[MoveTo, Intersection_1, Agent_0]"
    assert "secret" not in repr(source)
    assert got[0]["authorization"] == "Bearer secret"
    assert got[0]["body"]["max_tokens"] == 7
    assert got[0]["body"]["messages"][0]["content"] == request_().prompt


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"", "expected JSON"),
        (b"[]", "expected JSON"),
        (b"\xff\xfe", "expected JSON"),
        (b"[" * 100_000, "expected JSON"),
        (said(5), "expected JSON"),
        (b'{"choices": []}', "expected JSON"),
        (b'{"choices": {"0": 1}}', "expected JSON"),
        (b" " * (MOST_BYTES + 10), "more than"),
    ],
)
def test_answers_are_not_trusted(answer: bytes, told: str):
    with server(answer) as (url, _), pytest.raises(EdgeOptError, match=told) as found:
        HttpModel(url=url, model="m", allow=True).instructions(request_())
    assert len(str(found.value)) < 300


def test_redirections_and_errors_are_refused():
    with server(said("x")) as (other, got):
        with server(b"", 302, other) as (url, _), pytest.raises(EdgeOptError, match="302"):
            HttpModel(url=url, model="m", allow=True).instructions(request_())
        assert got == []
    with server(b"", 500) as (url, _), pytest.raises(EdgeOptError, match="500"):
        HttpModel(url=url, model="m", allow=True).instructions(request_())
    with pytest.raises(EdgeOptError, match=r"127\.0\.0\.1"):  # nobody listens there any more
        HttpModel(url=url, model="m", allow=True).instructions(request_())


def test_answers_that_drip_are_cut_off(monkeypatch: pytest.MonkeyPatch):
    """By a clock that jumps by more than the limit whenever it is looked at."""
    ticks = itertools.count(0, 100)
    monkeypatch.setattr("edgeopt.rl.language_models.monotonic", lambda: next(ticks))
    with server(said("x")) as (url, _), pytest.raises(EdgeOptError, match="within 60 s"):
        HttpModel(url=url, model="m", allow=True).instructions(request_())


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/x", "http://", "host"])
def test_other_addresses_are_refused(url: str):
    with pytest.raises(EdgeOptError, match="url"):
        HttpModel(url=url, model="m", allow=True)

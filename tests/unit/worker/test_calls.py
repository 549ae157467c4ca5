"""The order in which calls are answered, on a real model and a transport in memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from pgembed.models.encoding import Encoded
from pgembed.models.options import ModelOptions
from pgembed.models.session import Model
from pgembed.postgres.vectors import Float32
from pgembed.worker.calls import CallServer
from pgembed.worker.lifetime import Lifetime
from pgembed.worker.loader import Loader
from pgembed.worker.model_cache import ModelCache
from pgembed.worker.pending import AnsweredCall, Call, Group
from tests.harness import tiny_models

QUERY = Group("tiny", b"tiny", "query")
GONE = Group("gone", b"gone", "query")


def assert_close(answer: Float32 | str, wanted: Float32) -> None:
    assert isinstance(answer, np.ndarray), answer
    np.testing.assert_allclose(answer, wanted, atol=1e-6)


class Memory:
    """A transport whose calls and answers are lists."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.answers: dict[object, Float32 | str] = {}
        self.gone: set[object] = set()

    def take(self, timeout: float) -> list[Call]:
        taken, self.calls = self.calls, []
        return taken

    def answer(self, answers: Sequence[AnsweredCall]) -> None:
        for call, answer in answers:
            self.answers[call.reply_to] = answer

    def has_caller(self, call: Call) -> bool:
        return call.reply_to not in self.gone


class Crowd(Memory):
    """A transport where somebody asks anew for every answer, until nobody is left."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left
        self.at_first: Callable[[], None] = lambda: None

    def answer(self, answers: Sequence[AnsweredCall]) -> None:
        if not self.answers:
            self.at_first()
        super().answer(answers)
        for call, _ in answers:
            self.left -= 1
            if self.left >= 0:
                name = f"{self.left}"
                self.calls.append(Call(name, QUERY, ["a slow cat"], call.deadline))


class Bench:
    """A server that is stepped by hand."""

    def __init__(self, model: Model, transport: Memory | None = None) -> None:
        self.model = model
        self.transport = transport or Memory()
        self.loader = Loader(ModelCache(self._load))
        self.lifetime = Lifetime(5)
        self.lost = {"gone"}
        self.server = CallServer(self.transport, self.loader, self.lifetime)
        self.loader.find("tiny", b"tiny")
        self.wait()

    def _load(self, name: str, _: bytes) -> Model:
        if name in self.lost:
            raise ValueError("no such file")
        return self.model

    def post(
        self, reply_to: str, *texts: str, group: Group = QUERY, wait: float = 60
    ) -> None:
        self.transport.calls.append(
            Call(reply_to, group, list(texts), time.monotonic() + wait)
        )

    def step(self) -> None:
        self.server.take(0)
        self.server.step()

    def settle(self) -> None:
        """Step until no model is being loaded."""
        self.step()
        self.wait()
        self.step()

    def wait(self) -> None:
        """Wait until no model is being loaded."""
        while self.loader.is_loading:
            time.sleep(0.001)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tiny_models.raising_model(tmp_path_factory.mktemp("model"))
    return load(folder)


def load(folder: Path) -> Model:
    files = [(folder / f).read_bytes() for f in ("model.onnx", "tokenizer.json")]
    return Model.load(files[0], files[1], ModelOptions(query_prompt="red "), threads=1)


@pytest.fixture
def bench(model: Model) -> Iterator[Bench]:
    bench = Bench(model)
    yield bench
    bench.loader.close()


@pytest.fixture
def crowded(tmp_path: Path) -> Iterator[Bench]:
    """Return a server with a model that takes its time, and callers who come back."""
    model = load(tiny_models.slow_model(tmp_path / "slow", steps=200))
    bench = Bench(model, Crowd(left=100))
    yield bench
    bench.loader.close()


def test_a_text_that_the_tokenizer_panics_on_fails_its_call_alone(
    tmp_path: Path,
) -> None:
    bench = Bench(load(tiny_models.panicking_model(tmp_path)))
    bench.post("bad", tiny_models.PANIC_TEXT)
    bench.post("good", "a cat")
    bench.step()
    answers = bench.transport.answers
    assert "the tokenizer failed" in str(answers["bad"])
    assert_close(answers["good"], bench.model.embed(["a cat"], "query"))
    bench.post("alone", tiny_models.PANIC_TEXT)
    bench.step()
    assert answers["alone"] == answers["bad"]
    bench.loader.close()


def test_short_calls_are_answered_together(bench: Bench) -> None:
    bench.post("a", "a cat")
    bench.post("b", "the dog", "a man")
    bench.post("c", "the dog", group=Group("tiny", b"tiny", "document"))
    bench.step()
    wanted = bench.model.embed(["a cat", "the dog", "a man"], "query")
    answers = bench.transport.answers
    assert_close(answers["a"], wanted[:1])
    assert_close(answers["b"], wanted[1:])
    assert_close(answers["c"], bench.model.embed(["the dog"]))


def test_calls_join_those_that_are_being_answered(crowded: Bench) -> None:
    for i in range(100):
        crowded.post(f"first {i}", "the slow dog")
    crowded.step()
    answers = crowded.transport.answers
    assert len(answers) == 200
    wanted = crowded.model.embed(["the slow dog", "a slow cat"], "query")
    assert_close(answers["first 99"], wanted[:1])
    assert_close(answers["0"], wanted[1:])


def test_callers_who_leave_meanwhile_cost_nothing(crowded: Bench) -> None:
    for i in range(500):
        crowded.post(f"first {i}", "the slow dog")
    left = {f"first {i}" for i in range(400, 500)}
    transport = crowded.transport
    assert isinstance(transport, Crowd)
    transport.at_first = lambda: transport.gone.update(left)
    crowded.step()
    assert "first 399" in transport.answers
    assert not left & transport.answers.keys()


def test_calls_of_several_texts_end_when_all_have_run(crowded: Bench) -> None:
    texts = ["the slow dog", "a slow cat", "slow", "the slow food"]
    for i in range(100):
        crowded.post(f"first {i}", *texts)
    crowded.step()
    wanted = crowded.model.embed(texts, "query")
    for i in range(100):
        assert_close(crowded.transport.answers[f"first {i}"], wanted)


def test_nobody_joins_while_others_wait(crowded: Bench) -> None:
    for i in range(100):
        crowded.post(f"first {i}", "the slow dog")
    crowded.post("long", *["the slow dog"] * 9)
    crowded.step()
    assert "long" in crowded.transport.answers
    assert len(crowded.transport.answers) < 200


def test_a_crowd_does_not_keep_a_worker_from_stopping(crowded: Bench) -> None:
    for i in range(100):
        crowded.post(f"first {i}", "the slow dog")
    crowded.lifetime.stop()
    crowded.step()
    assert len(crowded.transport.answers) == 100


def test_a_text_waits_for_no_younger_ones(bench: Bench) -> None:
    bench.post("oldest", "a cat")
    for i in range(100):
        bench.post(f"{i}", " ".join(["dog"] * 30))
    bench.step()
    assert next(iter(bench.transport.answers)) == "oldest"
    assert len(bench.transport.answers) == 101


def test_a_short_call_overtakes_a_long_one(bench: Bench) -> None:
    texts = [f"the dog eats {i} food" for i in range(3000)]
    bench.post("long", *texts)
    bench.step()
    assert not bench.transport.answers
    bench.post("short", "a cat")
    bench.step()
    assert list(bench.transport.answers) == ["short"]
    while "long" not in bench.transport.answers:
        bench.step()
    wanted = bench.model.embed(texts, "query")
    assert_close(bench.transport.answers["long"], wanted)


def test_a_bad_text_fails_its_call_alone(bench: Bench) -> None:
    bench.post("bad", "poison")
    bench.post("good", "a cat")
    bench.step()
    assert "the model failed" in str(bench.transport.answers["bad"])
    assert isinstance(bench.transport.answers["good"], np.ndarray)


def test_a_bad_text_fails_its_long_call(bench: Bench) -> None:
    bench.post("bad", *["a cat"] * 9, "poison")
    bench.step()
    assert "the model failed" in str(bench.transport.answers["bad"])
    bench.post("good", "a cat")
    bench.step()
    assert isinstance(bench.transport.answers["good"], np.ndarray)


def test_a_model_that_cannot_be_loaded_blocks_no_other(bench: Bench) -> None:
    bench.post("lost", "a cat", group=GONE)
    bench.post("good", "a cat")
    bench.step()
    assert isinstance(bench.transport.answers["good"], np.ndarray)
    bench.settle()
    assert "'gone' cannot be loaded: no such file" in str(
        bench.transport.answers["lost"]
    )


@pytest.mark.parametrize("somebody_asks", [True, False])
def test_a_model_is_loaded_again_for_those_who_ask_later(
    bench: Bench, somebody_asks: bool
) -> None:
    """After it failed for nobody, or for somebody who has left."""
    if somebody_asks:
        bench.post("leaves", "a cat", group=GONE)
        bench.step()
        bench.transport.gone = {"leaves"}
    else:
        bench.loader.find("gone", b"gone")
    bench.wait()
    bench.step()
    bench.lost.clear()
    bench.post("later", "a cat", group=GONE)
    bench.settle()
    assert isinstance(bench.transport.answers["later"], np.ndarray)


def test_nobody_computes_for_callers_who_left(bench: Bench) -> None:
    bench.post("late", "a cat", wait=-1)
    bench.post("late and long", *["a cat"] * 50, wait=-1)
    bench.post("gone", "a cat")
    bench.transport.gone = {"gone"}
    bench.step()
    assert not bench.transport.answers


def test_a_long_call_ends_when_its_caller_leaves(bench: Bench) -> None:
    bench.post("gone", *["the dog eats food"] * 3000)
    bench.step()
    bench.transport.gone = {"gone"}
    bench.post("next", *["a cat"] * 6)
    bench.step()
    bench.step()
    assert list(bench.transport.answers) == ["next"]


def test_a_text_that_has_no_tokens_fails_alone(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(model)
    tokenize = model.tokenize

    def picky(texts: Sequence[str], side: str = "document") -> Encoded:
        if any("bad" in text for text in texts):
            raise ValueError("no token for it")
        return tokenize(texts, side)

    monkeypatch.setattr(model, "tokenize", picky)
    for text in ("a cat", "a bad cat", "the dog"):
        bench.post(text, text)
    bench.step()
    answers = bench.transport.answers
    assert "no token for it" in str(answers["a bad cat"])
    assert isinstance(answers["a cat"], np.ndarray)
    assert isinstance(answers["the dog"], np.ndarray)

"""Which models stay loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgembed.models.options import ModelOptions
from pgembed.models.session import Model
from pgembed.worker.model_cache import ModelCache
from tests.harness import tiny_models


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder: Path = tiny_models.good_model(tmp_path_factory.mktemp("model"))
    network, tokenizer = (
        (folder / name).read_bytes() for name in ("model.onnx", "tokenizer.json")
    )
    return Model.load(network, tokenizer, ModelOptions(), threads=1)


class Counting:
    """A models of two places, and the names that it loaded."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.loaded: list[str] = []
        self.now = 0.0
        self.models = ModelCache(self._load, capacity=2, clock=lambda: self.now)

    def _load(self, name: str, _: bytes) -> Model:
        self.loaded.append(name)
        return self.model

    def use(self, names: str) -> None:
        for name in names:
            self.now += 1
            self.models.get(name, name.encode())


def test_the_model_used_longest_ago_makes_room(model: Model) -> None:
    counting = Counting(model)
    counting.use("abacab")
    assert counting.loaded == ["a", "b", "c", "b"]


def test_models_that_nothing_needs_are_forgotten(model: Model) -> None:
    counting = Counting(model)
    counting.use("ab")
    counting.models.forget_all_but({b"a"})
    assert counting.models.peek(b"b") is model
    counting.now += 100
    counting.models.forget_all_but({b"a"})
    assert counting.models.peek(b"a") is model
    assert counting.models.peek(b"b") is None

"""Chunks are slices that the model reads whole and that together miss nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgembed.embeddings.chunking import Chunker
from pgembed.errors import EmbeddingError
from pgembed.models.encoding import Integers, TextEncoder
from pgembed.models.options import ModelOptions
from tests.harness import tiny_models

TOKENIZER = tiny_models.tokenizer().to_str().encode()


class Reader:
    """What chunking sees of a model: a real tokenizer."""

    def __init__(self, max_tokens: int = 64, prompt: str = "") -> None:
        self.max_tokens = max_tokens
        options = ModelOptions(max_tokens=max_tokens, document_prompt=prompt)
        self._encoder = TextEncoder(TOKENIZER, options)

    def lengths(self, texts: list[str]) -> Integers:
        return self._encoder.encode(texts, "document").lengths

    def spans(self, text: str) -> Integers:
        return self._encoder.spans(text)


words = st.lists(
    st.sampled_from(["a", "cat", "dog.", "eats", "x1y2z3", "The", "food!", "\n", "é"]),
    max_size=150,
).map(" ".join)
texts = st.one_of(words, st.text(max_size=200))


@given(text=texts, tokens=st.integers(1, 30), overlap=st.integers(0, 29))
def test_chunks_cover_the_text_and_fit(text: str, tokens: int, overlap: int) -> None:
    reader = Reader()
    chunker = Chunker.fitting(reader, tokens, min(overlap, tokens - 1))
    chunks = chunker.split(text)
    ends = {(-1, 0)}  # where the last chunk may start, and how far the text is covered
    for chunk in chunks:
        assert len(reader.spans(chunk)) <= tokens or len(reader.spans(chunk)) == 1
        ends = {
            (start, max(covered, start + len(chunk)))
            for last, covered in ends
            for start in range(last + 1, len(text))
            if text.startswith(chunk, start) and text[covered:start].strip() == ""
        }
        assert ends, "a chunk is a slice of the text, and nothing before it is left out"
    if chunks:
        assert any(text[covered:].strip() == "" for _, covered in ends)


@pytest.mark.parametrize("text", ["\u200b", "\x01", "\xad\xad", "\x1f"])
def test_a_text_that_the_tokenizer_drops_is_one_chunk(text: str) -> None:
    reader = Reader()
    assert len(reader.spans(text)) == 0
    assert Chunker.fitting(reader, 8, 0).split(text) == [text]


@given(text=words, prompt=st.sampled_from(["", "the food: "]))
def test_no_chunk_is_cut_by_the_model(text: str, prompt: str) -> None:
    reader = Reader(max_tokens=16, prompt=prompt)
    whole = Reader(max_tokens=10_000, prompt=prompt)
    for chunk in Chunker.fitting(reader, 1000, 4).split(text):
        assert whole.lengths([chunk])[0] <= 16


def test_a_chunk_ends_after_a_sentence() -> None:
    text = "the cat sleeps. the dog eats a red food"
    assert Chunker(Reader(), 5, 0).split(text)[0] == "the cat sleeps."


def test_neighbours_share_words() -> None:
    chunks = Chunker(Reader(), 4, 2).split("the cat eats a red dog food man")
    assert chunks == ["the cat eats a", "eats a red dog", "red dog food man"]


def test_a_short_text_is_one_chunk() -> None:
    assert Chunker(Reader(), 4, 1).split("  a cat  ") == ["a cat"]


def test_nothing_gives_no_chunks() -> None:
    assert Chunker(Reader(), 4, 1).split("") == []


def test_a_word_longer_than_a_chunk_is_cut() -> None:
    word = "abc1" * 10
    chunks = Chunker(Reader(), 7, 0).split(word)
    assert "".join(chunks) == word
    assert all(len(Reader().spans(chunk)) <= 7 for chunk in chunks)


def test_a_prompt_without_room_is_refused() -> None:
    with pytest.raises(EmbeddingError, match="shorter prompt"):
        Chunker.fitting(Reader(max_tokens=8, prompt="a cat the dog a man "), 5, 0)

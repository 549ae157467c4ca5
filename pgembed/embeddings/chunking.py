"""A long text as chunks: windows of the model's own tokens, cut between words."""

from __future__ import annotations

import dataclasses
import re
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pgembed.errors import EmbeddingError

Spans = NDArray[np.int64]

_SENTENCE_END = re.compile(r"[.!?。！？]['\")\]]*\s+$|\n\s*$")  # noqa: RUF001
# How far back from its last token a window may end to end between words.
_SEARCHED = 4


class ChunkModel(Protocol):
    """What chunking needs of a model."""

    @property
    def max_tokens(self) -> int:
        """Tokens the model reads of each text."""

    def lengths(self, texts: list[str]) -> Spans:
        """Tokens of each text, prompt and special tokens included."""

    def spans(self, text: str) -> Spans:
        """The characters of each token, int64 (tokens, 2), without truncation."""


@dataclasses.dataclass(frozen=True)
class Chunker:
    """Cuts texts into chunks of at most *tokens* tokens, *overlap* of them shared.

    A chunk is a slice of the text. It ends after a sentence, else after a word, when
    one ends in the last quarter of the window; its overlap starts at a word.
    """

    model: ChunkModel
    tokens: int
    overlap: int

    @classmethod
    def fitting(cls, model: ChunkModel, tokens: int, overlap: int) -> Chunker:
        """Return a chunker whose chunks the model reads whole, prompt included.

        Raises EmbeddingError when the prompt leaves no room.
        """
        room = model.max_tokens - int(model.lengths([""])[0])
        if room < 1:
            raise EmbeddingError(
                f"the document prompt fills the model's {model.max_tokens} tokens, and "
                "no chunk fits beside it: add the model with a shorter prompt"
            )
        tokens = min(tokens, room)
        return cls(model, tokens, min(overlap, tokens - 1))

    def split(self, text: str) -> list[str]:
        """Return the chunks in order; together they hold all but white space.

        A text of which the tokenizer makes nothing is a chunk as it is: the database
        awaits one of each text, and without chunks it would have a vector, too.
        """
        spans = self.model.spans(text)
        chunks = []
        start = 0
        while start < len(spans):
            end = self._end(text, spans, start)
            chunks.append(_slice(text, spans, start, end))
            if end == len(spans):
                break
            start = self._next(text, spans, start, end)
        return [chunk for chunk in chunks if chunk] or ([text] if text else [])

    def _end(self, text: str, spans: Spans, start: int) -> int:
        end = min(start + self.tokens, len(spans))
        if end < len(spans):
            earliest = max(start + 1, end - self.tokens // _SEARCHED)
            end = _boundary(text, spans, earliest, end)
        # A word cut in two may have more tokens than its halves had together.
        while end > start + 1 and self._is_too_long(text, spans, start, end):
            end -= 1
        return end

    def _is_too_long(self, text: str, spans: Spans, start: int, end: int) -> bool:
        if _starts_word(text, spans, start) and _starts_word(text, spans, end):
            return False
        return len(self.model.spans(_slice(text, spans, start, end))) > self.tokens

    def _next(self, text: str, spans: Spans, start: int, end: int) -> int:
        candidates = range(max(end - self.overlap, start + 1), end)
        return next((i for i in candidates if _starts_word(text, spans, i)), end)


def _boundary(text: str, spans: Spans, first: int, last: int) -> int:
    """Return the best token in [first, last] to start the next chunk with."""
    words = [i for i in range(last, first - 1, -1) if _starts_word(text, spans, i)]
    for i in words:
        if _SENTENCE_END.search(text, max(spans[i - 1, 0] - 8, 0), spans[i, 0]):
            return i
    if words:
        return words[0]
    # Tokens of one character share its span: do not cut within it.
    whole = (i for i in range(last, first - 1, -1) if spans[i, 0] >= spans[i - 1, 1])
    return next(whole, last)


def _starts_word(text: str, spans: Spans, i: int) -> bool:
    if i == 0 or i == len(spans):
        return True
    start = int(spans[i, 0])
    # Some tokenizers count the space before a word as part of its token.
    return text[start].isspace() or text[start - 1].isspace()


def _slice(text: str, spans: Spans, start: int, end: int) -> str:
    first = 0 if start == 0 else int(spans[start, 0])
    last = len(text) if end == len(spans) else int(spans[end, 0])
    return text[first : max(last, int(spans[end - 1, 1]))].strip()

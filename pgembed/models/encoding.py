"""Texts as token ids: the tokenizer, and the compact object that it fills."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Self

import numpy as np
import numpy.typing as npt
import tokenizers

from pgembed.errors import InferenceError, ModelError, ModelFileError
from pgembed.models.jsonfile import parse
from pgembed.models.options import ModelOptions

Integers = npt.NDArray[np.int64]
# A text with more characters per allowed token than this is cut before it is
# tokenized: a million characters cost a second or two, nearly all in vain.
_CHARACTERS_PER_TOKEN = 16
_FAR = 2  # times max_tokens that are left over


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Token ids of n texts, one after the other, without padding.

    tokens is int64 (total,), lengths int64 (n,).
    """

    tokens: Integers
    lengths: Integers
    truncated: int = 0
    """How many texts had more tokens; not known of what take() returns."""

    def __len__(self) -> int:
        return len(self.lengths)

    def texts(self) -> list[Integers]:
        """Return the tokens of each text."""
        ends = np.cumsum(self.lengths).tolist()
        return [self.tokens[i:j] for i, j in itertools.pairwise([0, *ends])]

    def take(self, rows: npt.ArrayLike) -> Self:
        """Return the texts at these positions, in this order."""
        rows = np.asarray(rows, dtype=np.int64)
        if len(self) == len(rows) == 1:
            return self  # most calls are of one short text
        lengths = self.lengths[rows]
        starts = np.cumsum(self.lengths) - self.lengths
        shift = starts[rows] - (np.cumsum(lengths) - lengths)
        return type(self)(
            self.tokens[np.arange(lengths.sum()) + np.repeat(shift, lengths)], lengths
        )

    def padded(self, pad_id: int) -> tuple[Integers, npt.NDArray[np.bool_]]:
        """Return ids, int64 (n, longest), and which of them are real, bool."""
        inside = np.arange(self.lengths.max(initial=0)) < self.lengths[:, None]
        ids = np.full(inside.shape, pad_id, dtype=np.int64)
        ids[inside] = self.tokens
        return ids, inside

    def batches(self, batch_tokens: int) -> Iterator[Integers]:
        """Yield positions, longest texts first, of at most batch_tokens padded tokens.

        Every batch has at least one text.
        """
        order = np.argsort(-self.lengths, kind="stable")
        start = 0
        while start < len(order):
            longest = max(int(self.lengths[order[start]]), 1)
            end = start + max(batch_tokens // longest, 1)
            yield order[start:end]
            start = end


class TextEncoder:
    """A tokenizer that truncates at max_tokens and never pads.

    Truncation and padding in tokenizer.json are overruled. Raises ModelFileError
    when the file cannot be read, and InferenceError for texts that it fails on.
    """

    def __init__(self, tokenizer_bytes: bytes, options: ModelOptions) -> None:
        self._bytes = tokenizer_bytes
        self._options = options
        self._truncating = _read(tokenizer_bytes)
        self._truncating.enable_truncation(options.max_tokens)
        self._whole: tokenizers.Tokenizer | None = None

    def encode(self, texts: Sequence[str], side: str) -> Encoded:
        """Return the tokens of the texts with this side's prompt before each."""
        prompt = self._options.prompt(side)
        limit = self._options.max_tokens * _CHARACTERS_PER_TOKEN
        prepared = [_prepare(prompt + text if prompt else text) for text in texts]
        short = [t if len(t) <= limit else _cut(t, limit) for t in prepared]
        with _failing_as(_refused_text):
            encodings = self._truncating.encode_batch_fast(short)
            for i, text in enumerate(prepared):
                # Only what lies far from the end of the part is as in the whole.
                if short[i] is not text and len(encodings[i].overflowing) < _FAR:
                    encodings[i] = self._truncating.encode(text)
        truncated = sum(bool(encoding.overflowing) for encoding in encodings)
        return _pack([encoding.ids for encoding in encodings], truncated)

    def spans(self, text: str) -> Integers:
        """Return where each token of the whole text lies, int64 (tokens, 2).

        Positions are characters, the end exclusive; without prompt, special tokens
        and truncation.
        """
        if self._whole is None:
            whole = _read(self._bytes)
            whole.no_truncation()
            self._whole = whole
        with _failing_as(_refused_text):
            encoding = self._whole.encode(_prepare(text), add_special_tokens=False)
        return np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)


def padding_id(tokenizer_bytes: bytes) -> int:
    """Return the id of the padding token, 0 when the tokenizer has none."""
    padding = parse(tokenizer_bytes, "tokenizer.json", dict).get("padding")
    if isinstance(padding, dict) and isinstance(padding.get("pad_id"), int):
        return int(padding["pad_id"])
    tokenizer = _read(tokenizer_bytes)
    for token in ("[PAD]", "<pad>", "<|endoftext|>"):
        found = tokenizer.token_to_id(token)
        if found is not None:
            return int(found)
    return 0


def _read(tokenizer_bytes: bytes) -> tokenizers.Tokenizer:
    with _failing_as(_refused_file):
        tokenizer = tokenizers.Tokenizer.from_buffer(tokenizer_bytes)
    tokenizer.no_padding()
    return tokenizer


@contextlib.contextmanager
def _failing_as(explain: Callable[[BaseException], ModelError]) -> Iterator[None]:
    """Raise what *explain* makes of any error of the library, a panic included."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # the library's panics are no Exception
        raise explain(error) from None


def _refused_text(error: BaseException) -> InferenceError:
    return InferenceError(
        f"the tokenizer failed: {error}; leave the text out, or use another model"
    )


def _refused_file(error: BaseException) -> ModelFileError:
    return ModelFileError(
        f"tokenizer.json cannot be loaded ({error}): get the model's files again, "
        f"or save its tokenizer in the fast format"
    )


def _prepare(text: str) -> str:
    """Replace lone surrogates, which are no text, so that one spoils no batch."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _cut(text: str, limit: int) -> str:
    """Return the beginning, up to white space if there is any in its second half."""
    end = max(text.rfind(space, limit // 2, limit) for space in " \n\t\u3000")
    return text[: limit if end < 0 else end]


def _pack(ids: list[list[int]], truncated: int) -> Encoded:
    lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
    tokens = np.fromiter(
        itertools.chain.from_iterable(ids), dtype=np.int64, count=int(lengths.sum())
    )
    return Encoded(tokens, lengths, truncated)

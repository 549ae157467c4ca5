from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgembed.errors import InferenceError, ModelFileError
from pgembed.models.encoding import Encoded, TextEncoder, padding_id
from pgembed.models.options import ModelOptions
from tests.harness import tiny_models

TOKENIZER = tiny_models.tokenizer(max_length=5).to_str().encode()


def encoder(**options: int | str) -> TextEncoder:
    return TextEncoder(TOKENIZER, ModelOptions.from_json(options))


def split(encoded: Encoded) -> list[list[int]]:
    parts = np.split(encoded.tokens, np.cumsum(encoded.lengths)[:-1])
    return [part.tolist() for part in parts]


def ids(*tokens: str) -> list[int]:
    return [tiny_models.vocabulary()[token] for token in tokens]


def test_limits_of_the_file_are_overruled() -> None:
    """The file says 5 tokens, padded to 5."""
    encoded = encoder(max_tokens=8).encode(["a cat", "the dog eats food " * 5], "query")
    assert split(encoded) == [
        ids("[CLS]", "a", "cat", "[SEP]"),
        ids("[CLS]", "the", "dog", "eats", "food", "the", "dog", "[SEP]"),
    ]


def test_prompt_counts_as_part_of_the_text() -> None:
    encoded = encoder(max_tokens=4, query_prompt="the ").encode(["red cat"], "query")
    assert split(encoded) == [ids("[CLS]", "the", "red", "[SEP]")]


def test_odd_texts_have_tokens() -> None:
    texts = ["", "\0", "\ud800", "a\0cat", "\U0001f600", " " * 100_000]
    encoded = encoder(max_tokens=8).encode(texts, "document")
    assert (encoded.lengths >= 2).all()
    assert split(encoded)[0] == ids("[CLS]", "[SEP]")


def test_one_lone_surrogate_leaves_other_texts_alone() -> None:
    encoded = encoder().encode(["a cat", "a \udfff"], "document")
    assert split(encoded)[0] == ids("[CLS]", "a", "cat", "[SEP]")


@pytest.mark.parametrize(
    "text",
    [
        "cat " * 10_000,
        " " * 10_000 + "a cat",
        "x" * 10_000,
        ("y" * 150 + " ") * 100,
        "a cat" + " " * 500 + "dog " * 500,
    ],
)
def test_long_texts_are_cut_where_it_changes_nothing(text: str) -> None:
    tokenizer = tiny_models.tokenizer()
    tokenizer.enable_truncation(16)
    encoded = encoder(max_tokens=16).encode([text, "a"], "document")
    assert split(encoded)[0] == tokenizer.encode(text).ids


def test_spans_cover_the_whole_text() -> None:
    text = "the cat\0 eats " * 10
    spans = encoder(max_tokens=8).spans(text)
    assert spans.dtype == np.int64
    assert len(spans) == 30
    assert [text[start:end] for start, end in spans[:3]] == ["the", "cat", "eats"]
    assert encoder().spans("").shape == (0, 2)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=20), st.data())
def test_take_picks_texts(lengths: list[int], data: st.DataObject) -> None:
    sizes = np.array(lengths)
    encoded = Encoded(np.arange(sizes.sum()), sizes)
    rows = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=20))
    taken = encoded.take(rows)
    whole = np.split(encoded.tokens, np.cumsum(sizes)[:-1])
    assert taken.lengths.tolist() == [lengths[row] for row in rows]
    assert taken.tokens.tolist() == [token for row in rows for token in whole[row]]


@given(st.lists(st.integers(0, 40), max_size=50), st.integers(1, 100))
def test_batches_hold_every_text_once_within_the_budget(
    lengths: list[int], budget: int
) -> None:
    encoded = Encoded(np.zeros(sum(lengths), np.int64), np.array(lengths, np.int64))
    batches = list(encoded.batches(budget))
    rows = [row for batch in batches for row in batch.tolist()]
    assert sorted(rows) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * encoded.lengths[batch].max()
        assert padded <= budget or len(batch) == 1


def test_padding_fills_up_to_the_longest() -> None:
    encoded = Encoded(np.array([5, 6, 7]), np.array([1, 2]))
    padded, inside = encoded.padded(9)
    assert padded.tolist() == [[5, 9], [6, 7]]
    assert inside.tolist() == [[True, False], [True, True]]


def test_padding_token() -> None:
    assert padding_id(TOKENIZER) == tiny_models.vocabulary()["[PAD]"]
    assert padding_id(tiny_models.tokenizer().to_str().encode()) == 0


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"no json",
        b'{"model": {"type": 1}}',
        # The library panics, which is no Exception.
        TOKENIZER.replace(
            b'"normalizer":{',
            b'"normalizer":{"type":"Precompiled","precompiled_charsmap":"AAAA"},"x":{',
        ),
    ],
)
def test_unreadable_tokenizer(data: bytes) -> None:
    with pytest.raises(ModelFileError, match=r"tokenizer\.json cannot be loaded"):
        TextEncoder(data, ModelOptions())


def test_a_panic_of_the_library_is_an_error(tmp_path: Path) -> None:
    folder = tiny_models.panicking_model(tmp_path)
    file = (folder / "tokenizer.json").read_bytes()
    panicking = TextEncoder(file, ModelOptions())
    with pytest.raises(InferenceError, match=r"the tokenizer failed: .*retry-limit"):
        panicking.encode(["a cat", tiny_models.PANIC_TEXT], "document")
    with pytest.raises(InferenceError, match=r"the tokenizer failed: .*retry-limit"):
        panicking.spans(tiny_models.PANIC_TEXT)
    assert len(panicking.encode(["a cat"], "document")) == 1

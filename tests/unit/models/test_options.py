from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from pgembed.errors import ModelError
from pgembed.models.options import ModelOptions


def test_json_round_trip() -> None:
    options = ModelOptions(
        pooling="cls",
        normalize=False,
        max_tokens=77,
        output="last_hidden_state",
        dimensions=64,
        distance="l2",
        document_prompt="passage: ",
        query_prompt="query: ",
        pad_id=1,
    )
    assert ModelOptions.from_json(json.loads(json.dumps(options.to_json()))) == options


def test_canonical_spelling_names_every_option() -> None:
    names = {field.name for field in dataclasses.fields(ModelOptions)}
    assert set(json.loads(ModelOptions().canonical())) == names


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"pooling": "max"}, "pooling is 'max', but must be one of mean, cls, last"),
        ({"distance": "l1"}, "distance is 'l1', but must be one of cosine, l2"),
        ({"max_tokens": 0}, "max_tokens is 0, but must be between 1"),
        ({"max_tokens": "9"}, "max_tokens is '9', but must be a whole number"),
        ({"max_tokens": True}, "max_tokens is True, but must be a whole number"),
        (
            {"dimensions": 16_001},
            "dimensions is 16001, but must be between 1 and 16000",
        ),
        ({"normalize": 1}, "normalize is 1, but must be true or false"),
        ({"query_prompt": None}, "query_prompt is None, but must be a string"),
        ({"query_prompt": "a\0b"}, "query_prompt is 'a.x00b', which is no text"),
        ({"output": "\ud800"}, "output is '.ud800', which is no text"),
        ({"pool": "mean"}, "'pool' is not an option of a model: use one of dimensions"),
    ],
)
def test_bad_values_are_named_with_what_is_allowed(
    values: dict[str, Any], says: str
) -> None:
    with pytest.raises(ModelError, match=says):
        ModelOptions.from_json(values)


def test_prompts_are_per_side() -> None:
    options = ModelOptions(document_prompt="d: ", query_prompt="q: ")
    assert (options.prompt("document"), options.prompt("query")) == ("d: ", "q: ")
    with pytest.raises(ModelError, match="side is 'both'"):
        options.prompt("both")

"""What a model is told beside its files: pooling, prompts, limits, distance."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Self

from pgembed.errors import ModelError

POOLINGS = ("mean", "cls", "last", "none")
DISTANCES = ("cosine", "l2", "inner_product")
MAX_DIMENSIONS = 16_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """How texts become vectors; part of what identifies a model.

    Raises ModelError for a value that is not allowed.
    """

    pooling: str = "mean"
    """mean, cls (first token), last (last token) or none (one vector per text)."""
    normalize: bool = True
    """Whether vectors are scaled to length 1."""
    max_tokens: int = 512
    """Tokens read of each text, special tokens and prompt included."""
    output: str = ""
    """The ONNX output to use; empty: chosen when the model is added."""
    dimensions: int | None = None
    """Numbers kept of each vector (Matryoshka); None: as many as there are."""
    distance: str = "cosine"
    """The distance the vectors are made for: cosine, l2 or inner_product."""
    document_prompt: str = ""
    """Put before every document."""
    query_prompt: str = ""
    """Put before every query."""
    pad_id: int = 0
    """The token that fills shorter texts up to the longest of a batch."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_type(field.name, str(field.type), getattr(self, field.name))
        _check_choice("pooling", self.pooling, POOLINGS)
        _check_choice("distance", self.distance, DISTANCES)
        _check_range("max_tokens", self.max_tokens, 1, 1_000_000)
        _check_range("pad_id", self.pad_id, 0, 2**31 - 1)
        if self.dimensions is not None:
            _check_range("dimensions", self.dimensions, 1, MAX_DIMENSIONS)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the options that a JSON object describes.

        Raises ModelError for an unknown name or a value that is not allowed.
        """
        check_names(values)
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """Return the options as a JSON object with every name in it."""
        return dataclasses.asdict(self)

    def canonical(self) -> bytes:
        """Return the one JSON spelling that is hashed."""
        return json.dumps(
            self.to_json(), sort_keys=True, separators=(",", ":"), ensure_ascii=True
        ).encode()

    def prompt(self, side: str) -> str:
        """Return what goes before a text on this side: document or query.

        Raises ModelError for another side.
        """
        _check_choice("side", side, ("document", "query"))
        return self.query_prompt if side == "query" else self.document_prompt


def check_names(values: Mapping[str, Any]) -> None:
    """Raise ModelError unless every name is an option of ModelOptions."""
    known = sorted(field.name for field in dataclasses.fields(ModelOptions))
    for name in values:
        if name not in known:
            raise ModelError(
                f"{name!r} is not an option of a model: use one of {', '.join(known)}"
            )


_TYPES: dict[str, tuple[str, tuple[type, ...]]] = {
    "str": ("a string", (str,)),
    "bool": ("true or false", (bool,)),
    "int": ("a whole number", (int,)),
    "int | None": ("a whole number or null", (int, type(None))),
}


def _check_type(name: str, annotation: str, value: object) -> None:
    wanted, types = _TYPES[annotation]
    if not isinstance(value, types) or (
        isinstance(value, bool) and annotation != "bool"
    ):
        raise ModelError(f"model option {name} is {value!r}, but must be {wanted}")
    if isinstance(value, str) and not is_text(value):
        raise ModelError(
            f"model option {name} is {value[:40]!r}, which is no text for PostgreSQL: "
            "leave NUL and lone surrogates out"
        )


def is_text(value: str) -> bool:
    """Whether PostgreSQL takes it: without NUL and lone surrogates."""
    return "\0" not in value and not any("\ud800" <= c <= "\udfff" for c in value)


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ModelError(
            f"model option {name} is {value!r}, but must be one of {', '.join(allowed)}"
        )


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ModelError(
            f"model option {name} is {value}, but must be between {low} and {high}"
        )

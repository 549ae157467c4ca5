"""Models by name, in the database: add, list, remove, fetch, load."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from pgembed.errors import ModelError, ModelFileError
from pgembed.models import store
from pgembed.models.candidate import (
    ONNX_FILE,
    TOKENIZER_FILE,
    Candidate,
    model_hash,
)
from pgembed.models.options import ModelOptions, is_text
from pgembed.models.session import Model
from pgembed.models.sources import resolve

Connection = psycopg.Connection[Any]
Report = Callable[[str], None]

_LONGEST_NAME = 255  # bytes, as pgembed.add_model() has it


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """A model as the database knows it."""

    name: str
    hash: bytes
    """SHA-256 over its files and options: what identifies its vectors."""
    source: str
    dimensions: int
    distance: str
    max_tokens: int
    options: ModelOptions
    created_at: datetime.datetime

    def __post_init__(self) -> None:
        if not isinstance(self.options, ModelOptions):
            options = ModelOptions.from_json(self.options)
            object.__setattr__(self, "options", options)


_SELECT = """
    SELECT name, hash, source, dimensions, distance, max_tokens, options, created_at
    FROM pgembed.model
"""


def add_model(
    connection: Connection,
    name: str,
    source: str,
    overrides: Mapping[str, Any] | None = None,
    *,
    quantize: bool = False,
    report: Report | None = None,
) -> ModelRecord:
    """Resolve, check and store a model under a name; again is a no-op.

    overrides are fields of ModelOptions. Raises ModelSourceError or ModelFileError
    for a source that cannot be used and ModelError when the name belongs to other
    files or options already.
    """
    _check_name(name)
    find_model(connection, name)  # where pgembed is not, it fails before the work
    candidate = resolve(source, overrides, quantize=quantize, report=report)
    return store_model(connection, name, candidate)


def _check_name(name: str) -> None:
    if not name:
        raise ModelError("the name of a model is empty: give it one, minilm say")
    if not is_text(name):
        raise ModelError(
            f"the name of the model, {name[:40]!r}, is no text for PostgreSQL: leave "
            "NUL and lone surrogates out"
        )
    if (size := len(name.encode())) > _LONGEST_NAME:
        raise ModelError(
            f"the name of the model, {name[:40]!r}..., has {size} bytes: choose one of "
            f"at most {_LONGEST_NAME}"
        )


def store_model(connection: Connection, name: str, candidate: Candidate) -> ModelRecord:
    """Store checked files under a name, in one transaction; again is a no-op.

    Raises ModelError when the name belongs to other files or options already.
    """
    with connection.transaction():
        _lock(connection)
        record = find_model(connection, name)
        if record is None:
            _insert(connection, name, candidate)
        elif record.hash != candidate.hash:
            raise ModelError(
                f"model {name!r} exists with other files or options (hash "
                f"{record.hash.hex()[:12]}, not {candidate.hash.hex()[:12]}), and a "
                f"name never changes its files: choose another name or remove it first"
            )
        for data in candidate.files.values():
            store.put(connection, data)
    return get_model(connection, name)


def find_model(connection: Connection, name: str) -> ModelRecord | None:
    """Return the model of this name, or None."""
    with connection.cursor(row_factory=class_row(ModelRecord)) as cursor:
        return cursor.execute(_SELECT + "WHERE name = %s", [name]).fetchone()


def get_model(connection: Connection, name: str) -> ModelRecord:
    """Return the model of this name; raises ModelError when there is none."""
    record = find_model(connection, name)
    if record is None:
        known = ", ".join(model.name for model in list_models(connection))
        raise ModelError(
            f"there is no model {name!r} (there are: {known or 'none'}): add it with: "
            f"pgembed model add {shlex.quote(name)} SOURCE"
        )
    return record


def list_models(connection: Connection) -> list[ModelRecord]:
    """Return all models, by name."""
    with connection.cursor(row_factory=class_row(ModelRecord)) as cursor:
        return cursor.execute(_SELECT + "ORDER BY name").fetchall()


def remove_model(connection: Connection, name: str) -> None:
    """Remove a model, and files that no other model has.

    Raises ModelError when it is unknown, or in use: the embeddings are named.
    """
    get_model(connection, name)
    try:
        connection.execute("SELECT pgembed.drop_model(%s)", [name])
    except psycopg.errors.DependentObjectsStillExist as error:
        message = error.diag
        raise ModelError(
            f"{message.message_primary}. {message.message_detail} "
            f"{message.message_hint}"
        ) from None


def fetch(
    connection: Connection, name: str, cache_dir: Path | None = None
) -> dict[str, bytes]:
    """Return a model's files, path → bytes, each checked against its SHA-256.

    cache_dir keeps them for the next time; a corrupt cached file is fetched again.
    Raises ModelFileError when the database has lost or changed a file.
    """
    rows = connection.execute(
        "SELECT path, sha256, bytes FROM pgembed.model_file WHERE model = %s", [name]
    ).fetchall()
    files = {}
    for path, sha256, size in rows:
        try:
            files[path] = store.get(connection, sha256, size, cache_dir)
        except ModelFileError as error:
            raise ModelFileError(
                f"file {path} of model {name!r}: {error}; repair it by adding the "
                f"model again from the same source"
            ) from None
    return files


def load(
    connection: Connection,
    name: str,
    wanted: bytes | None = None,
    *,
    cache_dir: Path | None = None,
    threads: int = 0,
) -> Model:
    """Fetch a model's files, verify them and return it ready to run.

    Raises ModelError for an unknown name, or when the model has not the hash *wanted*
    any more, and ModelFileError for files that are missing, corrupt or not those the
    model's hash was made of.
    """
    record = get_model(connection, name)
    if wanted not in (None, record.hash):
        raise ModelError(f"model {name!r} was replaced meanwhile: ask again")
    files = fetch(connection, name, cache_dir)
    if model_hash(files, record.options) != record.hash:
        raise ModelFileError(
            f"the files and options of model {name!r} are not those of its hash "
            f"{record.hash.hex()[:12]}: remove it and add it again"
        )
    return Model.load(
        files[ONNX_FILE], files[TOKENIZER_FILE], record.options, threads=threads
    )


def _lock(connection: Connection) -> None:
    # Nobody may add or remove a model meanwhile: a file may be shared with another.
    connection.execute("LOCK TABLE pgembed.model IN SHARE ROW EXCLUSIVE MODE")


def _insert(connection: Connection, name: str, candidate: Candidate) -> None:
    options = candidate.options
    connection.execute(
        """
        INSERT INTO pgembed.model
            (name, hash, source, dimensions, distance, max_tokens, options)
        VALUES (%s, %s, %s, %s, %s, %s, %s)
        """,
        [
            name,
            candidate.hash,
            candidate.source,
            options.dimensions,
            options.distance,
            options.max_tokens,
            Jsonb(options.to_json()),
        ],
    )
    with connection.cursor() as cursor:
        cursor.executemany(
            """
            INSERT INTO pgembed.model_file (model, path, sha256, bytes)
            VALUES (%s, %s, %s, %s)
            """,
            [
                (name, path, hashlib.sha256(data).digest(), len(data))
                for path, data in candidate.files.items()
            ],
        )

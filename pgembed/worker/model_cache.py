"""The models a process keeps loaded."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Collection

from pgembed.models.session import Model

_log = logging.getLogger(__name__)

_CAPACITY = 4
_UNUSED_SECONDS = 60.0


@dataclasses.dataclass
class _Loaded:
    model: Model
    used: float


class ModelCache:
    """Loaded models by hash; the one used longest ago makes room."""

    def __init__(
        self,
        load: Callable[[str, bytes], Model],
        *,
        capacity: int = _CAPACITY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load = load
        self._capacity = capacity
        self._clock = clock
        self._loaded: dict[bytes, _Loaded] = {}
        self._lock = threading.Lock()

    def get(self, name: str, model_hash: bytes) -> Model:
        """Return the model, loaded if need be; raises whatever loading raises."""
        with self._lock:
            if model_hash not in self._loaded:
                model = self._read(name, model_hash)
                self._loaded[model_hash] = _Loaded(model, self._clock())
            model = self._use(self._loaded[model_hash])
            while len(self._loaded) > self._capacity:
                del self._loaded[min(self._loaded, key=lambda h: self._loaded[h].used)]
            return model

    def peek(self, model_hash: bytes) -> Model | None:
        """Return the model if it is loaded; counts as its use."""
        loaded = self._loaded.get(model_hash)
        return None if loaded is None else self._use(loaded)

    def forget_all_but(self, hashes: Collection[bytes]) -> None:
        """Forget the other models, once they have not been used for a minute."""
        before = self._clock() - _UNUSED_SECONDS
        with self._lock:
            for model_hash, loaded in list(self._loaded.items()):
                if model_hash not in hashes and loaded.used < before:
                    del self._loaded[model_hash]

    def _use(self, loaded: _Loaded) -> Model:
        loaded.used = self._clock()
        return loaded.model

    def _read(self, name: str, model_hash: bytes) -> Model:
        started = time.monotonic()
        model = self._load(name, model_hash)
        _log.info("loaded model %s in %.1f s", name, time.monotonic() - started)
        return model

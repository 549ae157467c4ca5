"""Models loaded in the background, so that one that is slow to load delays no other."""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor

from pgembed.models.session import Model
from pgembed.worker.model_cache import ModelCache


class Loader:
    """A models that does not keep its user waiting."""

    def __init__(self, models: ModelCache) -> None:
        self._models = models
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._loading: dict[bytes, Future[Model]] = {}

    def find(self, name: str, model_hash: bytes) -> Model | None:
        """Return the model, or None while it is being loaded.

        Raises what loading it raised; the next time it is tried again.
        """
        future = self._loading.get(model_hash)
        if future is None:
            model = self._models.peek(model_hash)
            if model is None:
                self._loading[model_hash] = self._pool.submit(
                    self._models.get, name, model_hash
                )
            return model
        if not future.done():
            return None
        del self._loading[model_hash]
        return future.result()

    def forget(self, *, but: Collection[bytes]) -> None:
        """Forget what came of loading other models than those of *but*.

        A model stays in the cache; a failure is not news to whoever asks later.
        """
        for model_hash, future in list(self._loading.items()):
            if future.done() and model_hash not in but:
                del self._loading[model_hash]

    @property
    def is_loading(self) -> bool:
        """Whether a model is on its way."""
        return any(not future.done() for future in self._loading.values())

    def close(self) -> None:
        """Load nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

"""add_model from SQL: one process per request, watched by a thread."""

from __future__ import annotations

import json
import logging
import subprocess
import threading
from collections.abc import Callable
from uuid import UUID

from pgembed.embeddings import calls
from pgembed.embeddings.calls import Request
from pgembed.settings import Settings
from pgembed.worker.lifetime import Lifetime, Stopped
from pgembed.worker.link import Link
from pgembed.worker.spawn import spawn

_log = logging.getLogger(__name__)
_SLICE = 0.5


class Additions:
    """Runs the requests one after the other, beside everything else."""

    def __init__(self, settings: Settings, lifetime: Lifetime) -> None:
        self._dsn = settings.dsn
        self._lifetime = lifetime
        self._turn = threading.Lock()

    def begin(self, request: Request, taker: UUID) -> None:
        """Have a request of table pgembed.call done, and answered as who took it."""
        self.add(
            request.model,
            request.contents,
            lambda error: self._answer(request.id, taker, error),
        )

    def add(
        self, model: str, contents: list[str], answered: Callable[[str | None], None]
    ) -> None:
        """Have a model added, from source and options.

        *answered* is called from another thread, with None when the model is there,
        else with why not.
        """

        def run() -> None:
            with self._turn:
                try:
                    error = self._add(model, *contents)
                except Exception as problem:  # whoever waits is to hear of it
                    error = f"{type(problem).__name__}: {problem}"
            answered(error)

        threading.Thread(target=run, daemon=True).start()

    def _answer(self, call_id: int, taker: UUID, error: str | None) -> None:
        link = Link(self._dsn, "add_model", self._lifetime, finishing=True)
        try:
            answer = calls.Answer(call_id, error=error)
            link.run(lambda c: calls.answer(c, taker, [answer]))
        except Stopped:
            pass
        finally:
            link.close()

    def _add(self, model: str, source: str, options: str) -> str | None:
        """Return None when the model is there, else why not."""
        _log.info("adding model %s from %s", model, source)
        message = {
            "dsn": self._dsn,
            "name": model,
            "source": source,
            "options": json.loads(options),
        }
        process = spawn("pgembed.worker.add_model", stdout=subprocess.PIPE)
        with process:
            output = self._result(process, json.dumps(message).encode())
        if process.returncode == 0:
            return None
        return output.decode(errors="replace") or (
            f"the process that was to add the model ended with status "
            f"{process.returncode}: the worker's log says why"
        )

    def _result(self, process: subprocess.Popen[bytes], message: bytes) -> bytes:
        given: bytes | None = message
        while True:
            try:
                return process.communicate(given, timeout=_SLICE)[0]
            except subprocess.TimeoutExpired:
                given = None
                if self._lifetime.stopping:
                    process.kill()

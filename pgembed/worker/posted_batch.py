"""One posted batch, in a process and a session of its own.

The request comes as a line of JSON on standard input, which stays open: its end means
that the batch is to end. Progress and outcome go as lines of JSON to standard output.

A batch holds SQL of the caller's: predicates, and with them the functions and operators
these call, triggers on the table of results, row-level security. It runs in a session
that the caller's role itself has logged in to, not in the worker's session after SET
ROLE or SET SESSION AUTHORIZATION: a function could undo these with RESET, then or in a
deferred trigger at COMMIT, since the session would still be the worker's. PostgreSQL's
own maintenance commands forbid that by a security-restricted operation, which a client
cannot enter. In a session of the caller's there is nothing to get back to. The worker's
own session reads models and records layouts; no SQL of a caller's reaches it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg

from pgembed import logs
from pgembed.batch.engine import cores
from pgembed.batch.execute import Options
from pgembed.batch.job import Frame, read_workload, run_batch, run_join
from pgembed.batch.layout import build_layout, drop_layout
from pgembed.batch.posted import Posted, Progress
from pgembed.batch.precision import check_precision
from pgembed.batch.result import Report
from pgembed.batch.workload import Workload
from pgembed.errors import PgembedError, SettingError, WorkerError
from pgembed.postgres.connection import Connection, connect, is_transient
from pgembed.settings import memory_bytes
from pgembed.worker.sessions import connect_as
from pgembed.worker.spawn import read_line

_log = logging.getLogger(__name__)

# Beside calls (0) and embedding (5): a batch takes what these leave.
_NICENESS = 10
_SAY_SECONDS = 0.2
_CANCEL_SECONDS = 3.0
_LAYOUT_OPTIONS = {"list_rows", "least_rows", "memory", "precision"}
_STDIN = 0


class _Voice:
    """Says on standard output how far the batch is, not more often than needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._progress = Progress()
        self._next = 0.0

    def say(self, **fields: Any) -> None:
        with self._lock:
            sys.stdout.write(json.dumps(fields) + "\n")
            sys.stdout.flush()

    def stage(self, stage: str, share: float) -> None:
        news = stage != self._progress.stage
        self._progress.stage, self._progress.share = stage, share
        self._tell(news)

    def answered(self, done: int, queries: int) -> None:
        self._progress.queries, self._progress.queries_done = queries, done
        self._tell(news=True)

    def _tell(self, news: bool) -> None:
        if news or time.monotonic() >= self._next:
            self._next = time.monotonic() + _SAY_SECONDS
            self.say(progress=vars(self._progress))


class _Run:
    """The batch *posted*, with the worker's session and the caller's."""

    def __init__(
        self,
        posted: Posted,
        own: Connection,
        session: Connection,
        cache_dir: Path,
        memory: int,
        voice: _Voice,
    ) -> None:
        self.posted, self.own, self.session = posted, own, session
        self.cache_dir, self.memory, self.voice = cache_dir, memory, voice
        self.layouts = cache_dir.parent / "layouts"

    def carry_out(self) -> int:
        """Do it; return the rows written, or those of the layout."""
        if self.posted.kind == "search":
            return self._search()
        if self.posted.kind == "join":
            return self._join()
        if self.posted.kind == "build_layout":
            return self._build_layout()
        return self._drop_layout()

    def _begin(self, connection: Connection) -> None:
        """Set what the batch runs under until its transaction ends.

        Not in the session, which behind a pooler others use next.
        """
        # When this process is killed, a statement that still runs is for nobody.
        with contextlib.suppress(psycopg.Error), connection.transaction():
            # Not on every platform.
            connection.execute("SET LOCAL client_connection_check_interval = 1000")
        for name, value in self.posted.settings.items():
            connection.execute(
                "SELECT pg_catalog.set_config(%s, %s, true)", [name, value]
            )

    def _frame(self) -> Frame:
        return Frame(self.own, self.cache_dir, self._begin, self._finish)

    def _options(self) -> Options:
        recall = self.posted.recall
        return Options(
            recall if recall is not None else 1.0,
            self.memory,
            cores(),
            progress=self.voice.stage,
            answered=self.voice.answered,
        )

    def _search(self) -> int:
        posted = self.posted
        rows, _ = run_batch(
            self.session,
            posted.embedding,
            str(posted.queries),
            str(posted.results),
            k=posted.k or 10,
            options=self._options(),
            frame=self._frame(),
        )
        return rows

    def _join(self) -> int:
        posted = self.posted
        rows, _ = run_join(
            self.session,
            posted.embedding,
            str(posted.results),
            asking=posted.queries,
            k=posted.k or 10,
            filter=posted.options.get("filter"),
            predicate=posted.options.get("predicate"),
            options=self._options(),
            frame=self._frame(),
        )
        return rows

    def _build_layout(self) -> int:
        posted = self.posted
        options = _layout_options(posted.options)
        self.voice.stage("building", 0.0)
        layout = build_layout(
            self.session,
            posted.embedding,
            workload=self._workload(posted.queries) if posted.queries else None,
            root=self.layouts,
            recorder=self.own,
            memory=self.memory,
            begin=self._begin,
            **options,
        )
        self._finish(self.session, layout.rows, None)
        return layout.rows

    def _workload(self, queries: str) -> Workload:
        with self.session.transaction():
            self._begin(self.session)
            return read_workload(self.session, self.posted.embedding, queries)

    def _drop_layout(self) -> int:
        drop_layout(self.own, self.posted.embedding, root=self.layouts)
        self._finish(self.session, 0, None)
        return 0

    def _finish(self, connection: Connection, rows: int, report: Report | None) -> None:
        summary = None
        if report is not None:
            summary = {
                "queries": report.queries,
                "strategy": report.strategy,
                "rows": report.rows,
                "conditions": report.conditions,
                "measured_recall": report.recall and round(report.recall, 4),
                "layout": report.layout,
                "memory": self.memory,
                "seconds": {k: round(v, 3) for k, v in report.seconds.items()},
            }
        connection.execute(
            "SELECT pgembed._finish_batch(%s::int8, %s::int8, %s::int8, %s::jsonb)",
            [
                self.posted.id,
                self.posted.lease,
                rows,
                None if summary is None else json.dumps(summary),
            ],
        )


def _session(dsn: str, posted: Posted, own: Connection) -> Connection:
    if posted.caller is None:
        raise WorkerError(
            "the role that posted the batch was dropped or renamed, or was left behind "
            "when the database moved to other roles: post it anew"
        )
    return connect_as(
        dsn, posted.caller, own, whose="the role that posted the batch", purpose="batch"
    )


def _memory(posted: Posted, most: str) -> int:
    """Return how many bytes the batch may use; SettingError for more than *most*."""
    limit = memory_bytes(most)
    asked = posted.options.get("memory", most)
    if memory_bytes(asked) > limit:
        raise SettingError(
            f"the batch asks for memory {asked!r}, but a batch of this worker may use "
            f"{most}: post it with less, or start the worker with a larger "
            "--batch-memory (PGEMBED_BATCH_MEMORY)"
        )
    return memory_bytes(asked)


def _layout_options(given: Mapping[str, Any]) -> dict[str, Any]:
    unknown = sorted(given.keys() - _LAYOUT_OPTIONS)
    if unknown:
        raise SettingError(
            f"there is no option {unknown[0]!r} of layouts: the options are "
            f"{', '.join(sorted(_LAYOUT_OPTIONS))}"
        )
    options = {name: given[name] for name in given.keys() - {"memory"}}
    for name in options.keys() - {"precision"}:
        if type(options[name]) is not int or options[name] < 1:
            raise SettingError(
                f"the option {name} is {options[name]!r}, but must be a whole number "
                "of at least 1"
            )
    if "precision" in options:
        check_precision(options["precision"])
    return options


def _watch(sessions: list[Connection]) -> None:
    """Cancel what runs, and end, when standard input ends."""
    while os.read(_STDIN, 1024):
        pass
    for session in sessions:
        with contextlib.suppress(Exception):
            session.cancel_safe(timeout=_CANCEL_SECONDS)
    os._exit(2)


def main() -> int:
    """Read the request, do it, and return the exit status."""
    request = json.loads(read_line())
    logs.configure("WARNING", request["log_format"])
    with contextlib.suppress(OSError):
        os.nice(_NICENESS)
    posted = Posted(**request["posted"])
    voice = _Voice()
    sessions: list[Connection] = []
    threading.Thread(target=_watch, args=(sessions,), daemon=True).start()
    try:
        memory = _memory(posted, request["batch_memory"])
        with connect(request["dsn"], purpose="batch worker") as own:
            session = _session(request["dsn"], posted, own)
            sessions.append(session)
            with session:
                cache_dir = Path(request["cache_dir"])
                run = _Run(posted, own, session, cache_dir, memory, voice)
                rows = run.carry_out()
    except Exception as error:  # whatever it is, the caller is to know
        if not isinstance(error, (PgembedError, psycopg.Error)):
            _log.exception("batch %d failed", posted.id)
        message = str(error).strip() or type(error).__name__
        voice.say(error=message, transient=is_transient(error))
        return 1
    voice.say(rows=rows)
    return 0


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)

"""Whatever users and workers do, in whatever order, it converges."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    rule,
    run_state_machine_as_test,
)

from pgembed.postgres.connection import connect
from tests.harness.models import register_model
from tests.harness.server import Databases
from tests.harness.sql_worker import (
    Claim,
    Connection,
    SqlWorker,
    assert_converged,
    expire,
    rows,
    value,
)
from tests.integration.embeddings.support import declare

NAMES = ("docs_body", "cut", "cleared")

keys = st.integers(1, 6)
bodies = st.sampled_from([None, "", "  ", "one", "two words", "three words now", "é"])
names = st.sampled_from(NAMES)
contents = st.sampled_from(["body", "<{body}>", "{body} {id}"])


OPTIONS: dict[str, dict[str, object]] = {
    "docs_body": {"target_column": "b"},
    "cut": {"chunk_tokens": 8},
    "cleared": {"target_column": "c", "on_change": "clear"},
}


def declare_one(connection: Connection, name: str, content: str) -> None:
    """Declare one of the three embeddings, of this content."""
    declare(connection, "docs", content, name=name, **OPTIONS[name])


class Machine(RuleBasedStateMachine):
    """A table with three embeddings, its users, and workers that may die."""

    connection: Connection
    claims = Bundle[Claim]("claims")

    @initialize()
    def begin(self) -> None:
        self.worker = SqlWorker(self.connection)
        rows(self.connection, "TRUNCATE docs")
        for name in NAMES:
            rows(self.connection, "SELECT pgembed.resume_embedding(%s)", name)

    def _write(self, query: str, *parameters: object) -> None:
        # Keys that are taken: the user's statement fails, and with it what it captured.
        with contextlib.suppress(Exception), self.connection.transaction():
            rows(self.connection, query, *parameters)

    @contextlib.contextmanager
    def _unless_dropped(self, claim: Claim) -> Iterator[None]:
        """Let a call fail because the embedding of its claim is gone, and only then."""
        query = "SELECT count(*) FROM pgembed.embedding WHERE id = %s"
        if value(self.connection, query, claim.embedding):
            yield
        else:
            with contextlib.suppress(psycopg.errors.UndefinedTable):
                yield

    @rule(key=keys, body=bodies)
    def insert(self, key: int, body: str | None) -> None:
        self._write("INSERT INTO docs VALUES (%s, %s)", key, body)

    @rule(key=keys, body=bodies)
    def upsert(self, key: int, body: str | None) -> None:
        self._write(
            "INSERT INTO docs VALUES (%s, %s) "
            "ON CONFLICT (id) DO UPDATE SET body = excluded.body",
            key,
            body,
        )

    @rule(key=keys, body=bodies)
    def update(self, key: int, body: str | None) -> None:
        self._write("UPDATE docs SET body = %s WHERE id = %s", body, key)

    @rule(key=keys)
    def delete(self, key: int) -> None:
        self._write("DELETE FROM docs WHERE id = %s", key)

    @rule(key=keys, other=keys, body=bodies)
    def rekey(self, key: int, other: int, body: str | None) -> None:
        self._write(
            "UPDATE docs SET id = %s, body = %s WHERE id = %s", other, body, key
        )

    @rule(turn=st.integers(1, 5))
    def rotate(self, turn: int) -> None:
        self._write("UPDATE docs SET id = (id + %s) %% 6 + 1", turn)

    @rule(key=keys, body=bodies)
    def replace(self, key: int, body: str | None) -> None:
        self._write(
            "WITH gone AS (DELETE FROM docs WHERE id = %s) "
            "INSERT INTO docs VALUES (%s, %s)",
            key,
            key,
            body,
        )

    @rule(key=keys, body=bodies)
    def roll_back(self, key: int, body: str | None) -> None:
        with self.connection.transaction(force_rollback=True):
            rows(self.connection, "DELETE FROM docs WHERE id = %s", key)
            rows(self.connection, "UPDATE docs SET body = %s", body)

    @rule()
    def truncate(self) -> None:
        self._write("TRUNCATE docs")

    @rule(target=claims, name=names, most=st.integers(1, 4))
    def claim(self, name: str, most: int) -> Claim:
        self.worker.work()
        return self.worker.claim(name, most)

    @rule(claim=consumes(claims))
    def complete(self, claim: Claim) -> None:
        with self._unless_dropped(claim):
            assert self.worker.complete(claim) == sorted(claim.slots)

    @rule(claim=claims)
    def complete_and_forget(self, claim: Claim) -> None:
        with self._unless_dropped(claim):
            self.worker.complete(claim)

    @rule(claim=consumes(claims), last=st.booleans())
    def fail(self, claim: Claim, last: bool) -> None:
        with self._unless_dropped(claim):
            self.worker.fail(claim, max_attempts=1 if last else 3)

    @rule(claim=consumes(claims))
    def release(self, claim: Claim) -> None:
        with self._unless_dropped(claim):
            self.worker.release(claim)

    @rule(claim=claims)
    def renew(self, claim: Claim) -> None:
        with self._unless_dropped(claim):
            self.worker.renew(claim)

    @rule(name=names)
    def expire(self, name: str) -> None:
        expire(self.connection, name)

    @rule(name=names)
    def pause(self, name: str) -> None:
        rows(self.connection, "SELECT pgembed.pause_embedding(%s)", name)

    @rule(name=names)
    def resume(self, name: str) -> None:
        rows(self.connection, "SELECT pgembed.resume_embedding(%s)", name)

    @rule(name=names, content=contents)
    def redefine(self, name: str, content: str) -> None:
        rows(self.connection, "SELECT pgembed.drop_embedding(%s, true)", name)
        declare_one(self.connection, name, content)

    @rule(name=names)
    def retry(self, name: str) -> None:
        rows(self.connection, "SELECT pgembed.retry_failed(%s)", name)

    @rule(name=names)
    def reconcile(self, name: str) -> None:
        rows(self.connection, "SELECT pgembed.reconcile(%s)", name)

    def teardown(self) -> None:
        for name in NAMES:
            rows(self.connection, "SELECT pgembed.resume_embedding(%s)", name)
            expire(self.connection, name)
            self.worker.drain()
            assert_converged(self.connection, name)
            rows(self.connection, "SELECT pgembed.retry_failed(%s)", name)
            self.worker.drain()
            assert_converged(self.connection, name)
        assert rows(self.connection, "SELECT * FROM pgembed.failures") == []


@pytest.fixture(params=["", "DEFERRABLE INITIALLY DEFERRED"], ids=["plain", "deferred"])
def prepared(request: pytest.FixtureRequest, server: Databases) -> Iterator[Connection]:
    """Return a database with the table and its three embeddings."""
    with (
        server.database(server.installed_template()) as name,
        connect(server.dsn(name), purpose="test") as connection,
    ):
        register_model(connection)
        rows(
            connection,
            f"CREATE TABLE docs (id int PRIMARY KEY {request.param}, body text)",
        )
        for embedding in NAMES:
            declare_one(connection, embedding, "body")
        yield connection


def test_it_converges(prepared: Connection) -> None:
    machine = type("Prepared", (Machine,), {"connection": prepared})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=20,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )

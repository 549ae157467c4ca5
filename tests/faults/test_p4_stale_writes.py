"""P4: a vector is written only if the row's version is still the one that was read."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgembed.worker.crash_points import Point
from tests.harness.oracle import assert_converged
from tests.harness.processes import worker_process
from tests.integration.worker.running import (
    Connection,
    add_good,
    create_docs,
    insert,
    is_drained,
    vectors,
    wait_until,
)

TEXTS = ("a cat", "the dog", "a man", "red food", "blue food", "sleeps", "eats", "cat")
CHANGES = """
    UPDATE docs SET body = 'changed' WHERE id = 1;
    UPDATE docs SET body = NULL WHERE id = 2;
    DELETE FROM docs WHERE id = 3;
    UPDATE docs SET id = 40 WHERE id = 4;
    DELETE FROM docs WHERE id = 5;
    INSERT INTO docs (id, body) VALUES (5, 'another row of the same key');
    UPDATE docs SET id = 60 WHERE id = 6;
    UPDATE docs SET id = 6 WHERE id = 7;
    UPDATE docs SET id = 7 WHERE id = 60;
    INSERT INTO docs (id, body) VALUES (9, 'new');
"""


@pytest.mark.parametrize(
    "point", ["claimed", "read", "embedded", "before_commit", "after_commit"]
)
def test_rows_that_change_at(
    point: Point, dsn: str, connection: Connection, tmp_path: Path
) -> None:
    """Updated, emptied, deleted, re-keyed, replaced, swapped."""
    model = add_good(connection, tmp_path)
    create_docs(connection, *TEXTS)
    with worker_process(dsn, tmp_path, stop_at=point) as worker:
        worker.wait_stopped()
        connection.execute(CHANGES)
        worker.go_on()
        wait_until(lambda: is_drained(connection))
        assert worker.terminate() == 0
    assert_converged(connection, model)
    assert vectors(connection).keys() == {1, 2, 5, 6, 7, 8, 9, 40}


@pytest.mark.parametrize("point", ["claimed", "before_commit"])
def test_a_table_that_is_emptied_and_filled_again(
    point: Point, dsn: str, connection: Connection, tmp_path: Path
) -> None:
    model = add_good(connection, tmp_path)
    create_docs(connection, *TEXTS)
    with worker_process(dsn, tmp_path, stop_at=point) as worker:
        worker.wait_stopped()
        connection.execute("TRUNCATE docs")
        insert(connection, *reversed(TEXTS))
        worker.go_on()
        wait_until(lambda: is_drained(connection))
        assert worker.terminate() == 0
    assert_converged(connection, model)


def test_a_change_that_is_rolled_back(
    dsn: str, connection: Connection, tmp_path: Path
) -> None:
    """The version that was read is the version again, and its vector is written."""
    model = add_good(connection, tmp_path)
    create_docs(connection, *TEXTS)
    with worker_process(dsn, tmp_path, stop_at="before_commit") as worker:
        worker.wait_stopped()
        with connection.transaction(force_rollback=True):
            connection.execute("UPDATE docs SET body = 'never'")
            connection.execute("DELETE FROM docs WHERE id = 1")
        worker.go_on()
        wait_until(lambda: is_drained(connection))
        assert worker.terminate() == 0
    assert worker.log().count("docs_body:") == 1, "embedded once"
    assert_converged(connection, model)

"""Bad input to the SQL functions: the right error, and nothing changed."""

from __future__ import annotations

import psycopg
import pytest

from tests.faults.bad_input.cases import ids, read
from tests.faults.bad_input.conftest import Stage

CASES = read("sql.tsv")


@pytest.mark.parametrize(("state", "message", "statement"), CASES, ids=ids(CASES))
def test_sql(stage: Stage, state: str, message: str, statement: str) -> None:
    with pytest.raises(psycopg.Error) as caught, stage.open.transaction():
        stage.open.execute(statement.encode())
    assert caught.value.sqlstate == state
    assert (caught.value.diag.message_primary or "").startswith(message)


def test_messages_are_short(stage: Stage) -> None:
    """A megabyte that was given by mistake does not come back as an error."""
    for statement in (
        "SELECT pgembed.drop_embedding(repeat('x', 1000000))",
        "SELECT pgembed.drop_model(repeat('x', 1000000))",
        "SELECT * FROM pgembed.search(NULL::items, '[1,0,0]'::vector, "
        "filter => jsonb_build_object(repeat('x', 1000000), 1))",
        "SELECT * FROM pgembed.search(NULL::items, '[1,0,0]'::vector, "
        "filter => jsonb_build_object('price', repeat('x', 1000000)))",
    ):
        with pytest.raises(psycopg.Error) as caught, stage.open.transaction():
            stage.open.execute(statement.encode())
        assert len(caught.value.diag.message_primary or "") < 1000, statement

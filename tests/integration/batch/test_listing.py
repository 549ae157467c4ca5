"""Rows and condition bits, in one answer of the server or in several."""

from __future__ import annotations

import numpy as np
import pytest

from pgembed.batch.packing import Packing
from pgembed.batch.passing import Conditions
from pgembed.batch.predicates import compile_conditions, read_listing
from pgembed.batch.rows import Tables, look_up, rank_by_key
from pgembed.batch.source import describe
from pgembed.batch.workload import Condition
from tests.integration.batch.test_layout_search import create
from tests.integration.search.support import Connection


@pytest.mark.parametrize("partitions", [0, 3])
def test_pieces_make_the_whole(connection: Connection, partitions: int) -> None:
    source = describe(connection, create(connection, partitions=partitions))
    # More than one word of bits, all of which stand for known rows.
    given = [Condition(f'{{"n": {i}}}') for i in range(70)]
    conditions, _ = compile_conditions(connection, source, given)
    tables = Tables()
    whole = read_listing(connection, source, tables, Packing.of(conditions))
    cut = read_listing(
        connection, source, tables, Packing.of(conditions), rows=6000, memory=20_000
    )
    assert len(whole.ids) == 6000
    one, other = np.argsort(whole.ids), np.argsort(cut.ids)
    assert (whole.ids[one] == cut.ids[other]).all()
    assert (whole.xmins[one] == cut.xmins[other]).all()
    assert (whole.words[:, one] == cut.words[:, other]).all()
    rows = look_up(connection, source, tables, cut.ids, "t.n")
    numbers = np.zeros(6000, np.int64)
    for place, number in rows:
        numbers[place] = number
    for i in (0, 62, 63, 69):
        bits = cut.words[i // 63] >> np.uint64(i % 63) & np.uint64(1)
        assert (bits.astype(bool) == (numbers == i)).all()


def test_ranks_follow_the_keys(connection: Connection) -> None:
    source = describe(connection, create(connection))
    tables = Tables()
    ids = read_listing(connection, source, tables).ids[::-7]
    keys = [0] * len(ids)
    for place, key in look_up(connection, source, tables, ids, "t.id"):
        keys[place] = key
    ranks = rank_by_key(connection, source, tables, ids)
    assert np.argsort(ranks).tolist() == np.argsort(keys).tolist()


def test_rounds_that_fit_into_memory(connection: Connection) -> None:
    source = describe(connection, create(connection))
    many = [Condition(f'{{"n": {{"lt": {i}}}}}') for i in range(300)]
    conditions = Conditions(connection, source, many)
    rounds = conditions.rounds(6000, 4 * 24 * 6000)
    assert [len(part.shared) for part in rounds] == [63, 63, 63, 63, 48]
    everything = [number for part in rounds for number in part.shared + part.alone]
    assert sorted(everything) == list(range(300))


def test_conditions_share_their_terms(connection: Connection) -> None:
    source = describe(connection, create(connection))
    filters = [
        '{"id": {"lt": 3000}, "n": {"lt": 50}}',
        '{"id": {"lt": 4000}, "n": {"lt": 50}}',
        '{"n": {"lt": 50}}',
        "{}",
    ]
    conditions = Conditions(connection, source, [Condition(text) for text in filters])
    (part,) = conditions.rounds(6000, 1 << 29)
    assert len(part.packing.tests()) == 3


def test_what_is_made_of_shared_terms_is_shared(connection: Connection) -> None:
    source = describe(connection, create(connection))
    connection.execute("CREATE INDEX ON p (n, id)")
    parts = ['"n": 5', '"id": {"lt": 600}']
    both = Condition(f"{{{', '.join(parts)}}}")
    (alone,) = Conditions(connection, source, [both]).rounds(6000, 1 << 29)
    assert alone.alone == (0,)
    given = [both, *(Condition(f"{{{part}}}") for part in parts)]
    (shared,) = Conditions(connection, source, given).rounds(6000, 1 << 29)
    assert shared.shared == (0, 1, 2)
    assert len(shared.packing.tests()) == 2

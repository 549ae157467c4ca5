"""Tasks of any shape, gone through together, against NumPy's own sort."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgembed.batch import engine
from pgembed.batch.metric import Metric
from pgembed.batch.vectors import Vectors, squared_norms

_ROWS, _QUERIES = 900, 24

tasks = st.lists(
    st.tuples(
        st.sets(st.integers(0, _QUERIES - 1), min_size=1),
        st.integers(0, _ROWS - 1),
        st.integers(1, 300),
        st.booleans(),
    ),
    max_size=25,
)


@settings(max_examples=150, deadline=None)
@given(
    tasks=tasks,
    width=st.integers(1, 8),
    threads=st.integers(1, 2),
    words=st.integers(1, 2),
    seed=st.integers(0, 99),
    block=st.sampled_from([500, 3000, 1 << 18]),
)
def test_the_best_of_all_tasks(
    tasks: list[tuple[set[int], int, int, bool]],
    width: int,
    threads: int,
    words: int,
    seed: int,
    block: int,
) -> None:
    random = np.random.default_rng(seed)
    rows = random.standard_normal((_ROWS, 4)).astype(np.float32)
    queries = random.standard_normal((_QUERIES, 4)).astype(np.float32)
    metric = Metric("l2", queries, Vectors([rows], squared_norms(rows)))
    bits = random.integers(0, 8, (words, _ROWS)).astype(np.uint64)
    masks = random.integers(0, 4, (_QUERIES, words)).astype(np.uint64)
    values = masks & random.integers(0, 4, masks.shape).astype(np.uint64)
    tests = engine.Tests(bits, masks, values)
    asked = np.arange(len(metric.queries))
    scan = engine.Scan(metric, width, asked=asked, tests=tests, threads=threads)
    meets = (bits.T[None] & masks[:, None] == values[:, None]).all(axis=2)
    offered = np.zeros((_QUERIES, _ROWS), bool)
    given_tasks = []
    for chosen, start, count, as_slice in tasks:
        owners = np.array(sorted(chosen))
        places = np.arange(start, min(_ROWS, start + count))
        # No query is compared with a row twice: lists and conditions are disjoint.
        places = places[~offered[np.ix_(owners, places)].any(axis=0)]
        if not len(places):
            continue
        together = as_slice and places[-1] - places[0] + 1 == len(places)
        part = slice(int(places[0]), int(places[-1]) + 1) if together else places
        given_tasks.append(engine.Task(owners, part, tested=True))
        offered[np.ix_(owners, places)] = True
    with pytest.MonkeyPatch.context() as patch:
        # Blocks that some tasks fill and others share.
        patch.setattr(engine, "_SCORES", block)
        scan.run(given_tasks)
    distances = ((queries[:, None] - rows[None]) ** 2).sum(axis=2)
    distances[~(offered & meets)] = np.inf
    _, found = scan.best(np.arange(_QUERIES))
    for query in range(_QUERIES):
        expected = np.argsort(distances[query], kind="stable")[:width]
        expected = expected[np.isfinite(distances[query][expected])]
        assert sorted(found[query][found[query] >= 0]) == sorted(expected)

"""What the machine does: floating-point operations, and this process's memory."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits


def blas_rate(dimensions: int) -> float:
    """Return floating-point operations per second of matrix products on all cores."""
    cores = len(os.sched_getaffinity(0))
    random = np.random.default_rng(0)
    rows = random.standard_normal((65_536, dimensions)).astype(np.float32)
    queries = random.standard_normal((256, dimensions)).astype(np.float32)

    def work(_: int) -> float:
        out = np.empty((256, 1024), np.float32)
        for start in range(0, len(rows), 1024):
            np.matmul(queries, rows[start : start + 1024].T, out=out)
        return 2.0 * len(rows) * len(queries) * dimensions

    best = 0.0
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(cores) as pool:
        for _ in range(5):
            start = time.perf_counter()
            done = sum(pool.map(work, range(2 * cores)))
            best = max(best, done / (time.perf_counter() - start))
    return best


class peak_memory:  # noqa: N801 - used as a function
    """Watch the anonymous memory of this process; yields how to ask for the peak."""

    def __enter__(self) -> Callable[[], int]:
        self._peak, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return lambda: self._peak

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            for line in _status():
                if line.startswith("RssAnon"):
                    self._peak = max(self._peak, int(line.split()[1]) * 1024)


def _status() -> Iterator[str]:
    yield from Path("/proc/self/status").read_text().splitlines()

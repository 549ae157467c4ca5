"""What a worker's processes count, for Prometheus.

Where PROMETHEUS_MULTIPROC_DIR is set, the values are kept in files of that folder,
which the supervisor reads; elsewhere in memory, where nobody asks for them.
"""

from __future__ import annotations

from prometheus_client import Counter, Histogram

ROWS = Counter("pgembed_rows", "Rows embedded.", ["embedding"])
TOKENS = Counter("pgembed_tokens", "Tokens embedded, without padding.", ["embedding"])
TRUNCATED = Counter(
    "pgembed_truncated",
    "Rows with more text than the model, or a claim, reads of it.",
    ["embedding"],
)
FAILURES = Counter(
    "pgembed_failures", "Attempts at a row that ended in an error.", ["embedding"]
)
MODEL_SECONDS = Counter(
    "pgembed_model_seconds", "Seconds for which models ran, on all cores.", ["model"]
)
CALL_SECONDS = Histogram(
    "pgembed_call_seconds",
    "Seconds from taking a call to answering it.",
    ["model", "side"],
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
)

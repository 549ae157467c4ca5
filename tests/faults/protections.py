"""Protections, how to take each away, and the tests that must then fail."""

from __future__ import annotations

import dataclasses
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Edit:
    """A text in a file of the project, and what is put in its place."""

    file: str
    text: str
    instead: str

    def apply(self, root: Path) -> None:
        """Change the file below *root*.

        Raises ValueError unless it holds the text exactly once.
        """
        path = root / self.file
        before = path.read_text(encoding="utf-8")
        count = before.count(self.text)
        if count != 1:
            raise ValueError(
                f"{self.file} holds {self.text!r} {count} times, not once: "
                "name what the protection consists of now"
            )
        path.write_text(before.replace(self.text, self.instead), encoding="utf-8")


@dataclasses.dataclass(frozen=True)
class Protection:
    """What is taken away, and the tests each of which must fail without it."""

    name: str
    removed: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]


_CLAIM = "sql/41_claim.sql"
_COMPLETE = "sql/42_complete.sql"
_EMBEDDINGS = "tests/integration/embeddings"

PROTECTIONS = (
    Protection(
        "lease fence",
        "the lease as a condition of write-back",
        (
            Edit(
                _COMPLETE,
                "'WHERE j.pgembed_lease = $1 AND j.pgembed_slot = ANY ($2)', job)",
                "'WHERE $1 IS NOT NULL AND j.pgembed_slot = ANY ($2)', job)",
            ),
            Edit(
                _COMPLETE,
                "'WHERE j.pgembed_lease = $1 AND j.pgembed_slot = ANY ($2) '",
                "'WHERE $1 IS NOT NULL AND j.pgembed_slot = ANY ($2) '",
            ),
            Edit(
                _COMPLETE,
                "r.slot = ANY ($5) AND j.pgembed_lease = $1 AND",
                "r.slot = ANY ($5) AND $1 IS NOT NULL AND",
            ),
        ),
        (
            "tests/faults/test_p3_leases.py::"
            "test_a_zombie_does_not_end_the_work_of_another",
            f"{_EMBEDDINGS}/test_fences.py::test_zombie_changes_nothing",
        ),
    ),
    Protection(
        "version check",
        "the row's version as a condition of write-back",
        (
            Edit(_COMPLETE, "AND h.pgembed_version <> r.version", "AND false"),
            Edit(_COMPLETE, "'AND j.pgembed_version = r.version AND", "'AND"),
        ),
        (
            "tests/faults/test_p4_stale_writes.py::test_rows_that_change_at",
            f"{_EMBEDDINGS}/test_fences.py::test_rows_changed_while_they_are_embedded",
        ),
    ),
    Protection(
        "version check at the very end",
        "the version as a condition of the write itself, after the rows are locked",
        (Edit(_COMPLETE, "'AND j.pgembed_version = r.version AND", "'AND"),),
        (
            f"{_EMBEDDINGS}/test_fences.py::"
            "test_row_changed_after_the_stale_ones_were_handed_back",
        ),
    ),
    Protection(
        "SKIP LOCKED lock",
        "write-back waits for source rows that users have locked",
        (
            Edit(
                _COMPLETE,
                "'FOR NO KEY UPDATE OF s SKIP LOCKED) AS r'",
                "'FOR NO KEY UPDATE OF s) AS r'",
            ),
        ),
        (f"{_EMBEDDINGS}/test_locks.py::test_rows_that_a_user_holds",),
    ),
    Protection(
        "locking the source rows first",
        "write-back takes the job and then the row, users the row and then the job",
        (
            Edit(
                _COMPLETE,
                "'FOR NO KEY UPDATE OF s SKIP LOCKED) AS r'",
                "') AS r'",
            ),
        ),
        (
            f"{_EMBEDDINGS}/test_concurrency.py::"
            "test_users_and_workers_without_a_deadlock",
        ),
    ),
    Protection(
        "SKIP LOCKED claim",
        "claims pick jobs without locking them",
        (
            Edit(
                _CLAIM,
                "'ORDER BY j.pgembed_available_at LIMIT $2 FOR UPDATE SKIP LOCKED)",
                "'ORDER BY j.pgembed_available_at LIMIT $2)",
            ),
        ),
        (
            f"{_EMBEDDINGS}/test_concurrency.py::"
            "test_a_claim_passes_by_what_another_is_just_taking",
        ),
    ),
    Protection(
        "WHEN clause",
        "every UPDATE is captured, of whatever column",
        (
            Edit(
                "sql/32_triggers.sql",
                "'FOR EACH ROW WHEN (' || changed || ')'",
                "'FOR EACH ROW'",
            ),
        ),
        (f"{_EMBEDDINGS}/test_capture.py::test_changes",),
    ),
    Protection(
        "ENABLE ALWAYS",
        "the triggers fire for the sessions of users only",
        (
            Edit(
                "sql/32_triggers.sql",
                "THEN 'O'\n    ELSE 'A'\nEND;",
                "THEN 'O'\n    ELSE 'O'\nEND;",
            ),
        ),
        ("tests/faults/test_p1_capture.py::test_logical_replication",),
    ),
    Protection(
        "search_path pin",
        "the trigger functions use the search_path of whoever writes the table",
        (
            Edit(
                "sql/32_triggers.sql",
                "'SET search_path = pg_catalog, pg_temp AS %L'",
                "'AS %L'",
            ),
        ),
        (
            f"{_EMBEDDINGS}/test_privileges.py::"
            "test_definer_functions_pin_their_search_path",
            f"{_EMBEDDINGS}/test_places.py::test_hostile_search_path",
        ),
    ),
    Protection(
        "hash check of a file",
        "what the database gives is taken for the file of that hash",
        (
            Edit(
                "pgembed/models/store.py",
                "if hashlib.sha256(data).digest() != sha256:\n        raise",
                "if False:\n        raise",
            ),
        ),
        (
            "tests/integration/models/test_registry.py::"
            "test_damaged_files_are_refused_and_can_be_repaired",
        ),
    ),
    Protection(
        "hash check of the cache",
        "what the cache holds is taken for the file of that hash",
        (
            Edit(
                "pgembed/models/store.py",
                "if hashlib.sha256(data).digest() != sha256:\n        _log",
                "if False:\n        _log",
            ),
        ),
        (
            "tests/integration/models/test_registry.py::"
            "test_a_corrupt_cached_file_is_fetched_again",
        ),
    ),
    Protection(
        "hash check of a model",
        "files and options are taken for those of the model's hash",
        (
            Edit(
                "pgembed/models/registry.py",
                "if model_hash(files, record.options) != record.hash:",
                "if False:",
            ),
        ),
        (
            "tests/integration/models/test_registry.py::"
            "test_options_that_were_tampered_with_are_refused",
        ),
    ),
    Protection(
        "external-data refusal",
        "tensors may keep their data in other files",
        (
            Edit(
                "pgembed/models/checks.py",
                "if tensor.external_data or tensor.data_location"
                " != onnx.TensorProto.DEFAULT:",
                "if False:",
            ),
        ),
        (
            "tests/unit/models/test_checks.py::"
            "test_external_data_is_refused_wherever_it_hides",
        ),
    ),
    Protection(
        "no way out of a model's folder",
        "names and links may lead anywhere",
        (
            Edit(
                "pgembed/models/folder.py",
                "if not path.is_relative_to(self._root):",
                "if False:",
            ),
        ),
        (
            "tests/unit/models/test_folder.py::test_no_way_out",
            "tests/unit/models/test_sources.py::"
            "test_a_link_out_of_the_folder_is_refused",
        ),
    ),
    Protection(
        "RLS invoker",
        "pgembed.search runs as its owner",
        (
            Edit(
                "sql/84_search.sql",
                "ROWS 10 COST 100000\nAS $$\nDECLARE\n    p pg_catalog.record;\n"
                "    f pg",
                "ROWS 10 COST 100000 SECURITY DEFINER\nAS $$\nDECLARE\n"
                "    p pg_catalog.record;\n    f pg",
            ),
        ),
        (
            "tests/integration/search/test_search_security.py::"
            "test_each_tenant_finds_its_own_rows",
            "tests/faults/test_p8_rights.py::test_privileges_are_those_of_the_file",
        ),
    ),
    Protection(
        "bisect",
        "an error of a batch is an error of all its texts",
        (
            Edit(
                "pgembed/worker/batching.py",
                "if len(rows) == 1 or part.blamed:",
                "if part.rows is not None:",
            ),
        ),
        (
            "tests/integration/worker/test_embedding.py::test_a_poison_row_fails_alone",
            "tests/unit/worker/test_batching.py::test_poison_texts_fail_alone",
        ),
    ),
    Protection(
        "check of the vectors",
        "NaN, infinity and length 0 are stored",
        (
            Edit(
                "pgembed/worker/batching.py",
                "if len(bad):",
                "if False:",
            ),
        ),
        ("tests/unit/worker/test_batching.py::test_unusable_vectors_are_errors",),
    ),
    Protection(
        "rescuer",
        "jobs under a lease that expired are left to whoever held it",
        (
            Edit(
                _CLAIM,
                "'WHERE j.pgembed_available_at <= now() '\n            'ORDER BY",
                "'WHERE j.pgembed_available_at <= now() AND j.pgembed_lease IS NULL '\n"
                "            'ORDER BY",
            ),
            Edit(
                _CLAIM,
                "AND j.pgembed_attempts = $1 '",
                "AND j.pgembed_attempts = $1 AND j.pgembed_lease IS NULL '",
            ),
        ),
        (
            f"{_EMBEDDINGS}/test_fences.py::test_zombie_changes_nothing",
            f"{_EMBEDDINGS}/test_claim.py::"
            "test_crashes_make_claims_smaller_and_end_in_failures",
        ),
    ),
    Protection(
        "counting attempts",
        "a row that kills its worker is claimed for ever",
        (
            Edit(
                _CLAIM,
                "'pgembed_attempts = j.pgembed_attempts + 1, pgembed_available_at",
                "'pgembed_attempts = j.pgembed_attempts + 0, pgembed_available_at",
            ),
        ),
        (
            f"{_EMBEDDINGS}/test_claim.py::"
            "test_crashes_make_claims_smaller_and_end_in_failures",
        ),
    ),
    Protection(
        "renewal",
        "a lease ends while its holder still works",
        (
            Edit(
                _CLAIM,
                "SET pgembed_available_at = now() + $2 WHERE j.ctid = ANY (ARRAY('\n"
                "        'SELECT r.ctid FROM %1$s AS r WHERE r.pgembed_lease = $1",
                "SET pgembed_available_at = now() + $2 WHERE j.ctid = ANY (ARRAY('\n"
                "        'SELECT r.ctid FROM %1$s AS r WHERE r.pgembed_lease = -$1",
            ),
        ),
        (f"{_EMBEDDINGS}/test_claim.py::test_renew",),
    ),
    Protection(
        "protocol of workers",
        "workers of every version are accepted, and take a missing function for a"
        " missing embedding",
        (
            Edit(
                "sql/50_workers.sql",
                "IF protocol NOT BETWEEN oldest AND newest THEN",
                "IF false THEN",
            ),
        ),
        (
            "tests/faults/test_p2_versions.py::"
            "test_an_old_worker_on_a_new_schema[embedded]",
        ),
    ),
    Protection(
        "silence towards busy workers",
        "every write notifies, also while a worker looks by itself",
        (
            Edit(
                "sql/31_capture.sql",
                ") AND NOT pgembed._is_watched() THEN",
                ") THEN",
            ),
            Edit(
                "sql/31_capture.sql",
                "WHERE w.watching_until > clock_timestamp()\n    ) THEN",
                "WHERE false\n    ) THEN",
            ),
        ),
        ("tests/faults/test_write_load.py::test_busy_workers_are_not_notified",),
    ),
    Protection(
        "quoting of columns",
        "a filter's column name is taken as it is",
        (
            Edit(
                "sql/71_filter_terms.sql",
                "expression := format('%s.%I', qualifier, bare);",
                "expression := format('%s.%s', qualifier, bare);",
            ),
        ),
        ("tests/integration/search/test_injection.py::test_any_name_can_be_a_column",),
    ),
    Protection(
        "install squatting",
        "objects of others in the schema are accepted",
        (
            Edit(
                "pgembed/postgres/guards.py",
                "WHERE %(all)s OR (\n",
                "WHERE %(all)s AND (\n",
            ),
        ),
        (
            "tests/integration/postgres/test_install.py::"
            "test_objects_of_others_in_our_schema_are_refused",
        ),
    ),
    Protection(
        "limit of a frame",
        "a frame on the worker's socket may be of any length",
        (
            Edit(
                "pgembed/worker/frames.py",
                "if length > self._max_body:",
                "if False:",
            ),
        ),
        (
            "tests/unit/worker/test_frames.py::"
            "test_what_is_no_frame_is_refused_by_its_header",
        ),
    ),
)

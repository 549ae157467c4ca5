"""Terms: what conditions are made of, as SQL."""

from __future__ import annotations

import dataclasses

REFERENCE = "$1::pg_catalog._text"


@dataclasses.dataclass(frozen=True)
class Term:
    """A part of conditions as SQL, whose filter refers to *values* as one parameter."""

    filter: str | None
    predicate: str | None
    values: tuple[str, ...]

    def sql(self, parameter: int = 1) -> str:
        """Return the condition; its values are ``$parameter``."""
        reference = f"${parameter}::pg_catalog._text"
        parts = [self.filter.replace(REFERENCE, reference)] if self.filter else []
        if self.predicate is not None:
            # The newline ends a comment in which a predicate may end.
            parts.append(f"({self.predicate}\n)")
        return " AND ".join(parts) or "true"

    @property
    def parameters(self) -> list[list[str]]:
        """The parameters that :meth:`sql` refers to: one, or none."""
        return [list(self.values)] if self.values else []

"""The errors pgembed raises.

    PgembedError
    ├── SettingError          a setting or a command-line argument makes no sense
    ├── ConnectError          the database cannot be reached
    │   └── StandbyError      the server that was reached takes no writes
    ├── InstallError          the schema cannot be installed, upgraded or removed
    ├── ServerError           the embedded server cannot be started or stopped
    ├── VectorError           an array or a column does not hold usable vectors
    ├── ModelError            a model is unknown, unusable or does not fit
    │   ├── ModelSourceError  the source cannot be found or read
    │   ├── ModelFileError    a file is corrupt, hostile or not what its hash says
    │   └── InferenceError    the model ran and gave no usable vector
    ├── EmbeddingError        an embedding is unknown or cannot be declared
    ├── FilterError           a filter names an unknown column or operator
    └── WorkerError           a worker cannot start or go on

Each message says what happened, with which value, and what to do about it.
"""

from __future__ import annotations

from collections.abc import Sequence


class PgembedError(Exception):
    """Base class of every error that pgembed raises on purpose."""


class SettingError(PgembedError):
    """A setting or a command-line argument makes no sense."""


class ConnectError(PgembedError):
    """The database cannot be reached."""


class StandbyError(ConnectError):
    """The server that was reached is a standby, which takes no writes."""


class InstallError(PgembedError):
    """The schema cannot be installed, upgraded or removed."""


class ServerError(PgembedError):
    """The embedded server cannot be started or stopped."""


class VectorError(PgembedError):
    """An array or a column does not hold usable vectors."""


class ModelError(PgembedError):
    """A model is unknown, unusable or does not fit."""


class ModelSourceError(ModelError):
    """The source of a model cannot be found or read."""


class ModelFileError(ModelError):
    """A model's file is corrupt, hostile or not what its hash says."""


class InferenceError(ModelError):
    """The model ran and gave no usable vector.

    positions says for which of the texts; empty when that is not known.
    """

    def __init__(self, message: str, positions: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.positions = tuple(positions)


class EmbeddingError(PgembedError):
    """An embedding is unknown or cannot be declared."""


class FilterError(PgembedError):
    """A filter names an unknown column or operator, or a value that does not cast."""


class WorkerError(PgembedError):
    """A worker cannot start or go on."""

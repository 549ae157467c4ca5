"""Files and options of a model that have been checked, and the hash of both."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping

from pgembed.errors import ModelError
from pgembed.models.options import ModelOptions
from pgembed.models.session import PROBE, Model

# A probe as long as max_tokens finds position tables that are too short; beyond
# this, attention over one text would need gigabytes.
_LONGEST_PROBE = 2048

ONNX_FILE, TOKENIZER_FILE = "model.onnx", "tokenizer.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model that may be stored: its files were loaded and gave a vector."""

    source: str
    files: Mapping[str, bytes]
    options: ModelOptions

    @property
    def hash(self) -> bytes:
        """What identifies the model's vectors: SHA-256 over files and options."""
        return model_hash(self.files, self.options)


def model_hash(files: Mapping[str, bytes], options: ModelOptions) -> bytes:
    """Return the SHA-256 over the sorted paths and hashes, and the options."""
    total = hashlib.sha256()
    for path in sorted(files):
        digest = hashlib.sha256(files[path]).hexdigest()
        total.update(f"{path}\0{digest}\n".encode())
    total.update(options.canonical())
    return total.digest()


def check(
    source: str, onnx_bytes: bytes, tokenizer_bytes: bytes, options: ModelOptions
) -> Candidate:
    """Load the files and embed probe texts; return them with complete options.

    Raises ModelFileError, InferenceError or ModelError when they are of no use.
    """
    model = Model.load(onnx_bytes, tokenizer_bytes, options)
    words = min(options.max_tokens, _LONGEST_PROBE)
    try:
        model.embed([PROBE * words, PROBE])
    except ModelError as error:
        raise ModelError(
            f"the model cannot read {words} tokens ({error}): "
            f"state fewer with the option max_tokens"
        ) from error
    return Candidate(
        source=source,
        files={ONNX_FILE: onnx_bytes, TOKENIZER_FILE: tokenizer_bytes},
        options=model.options,
    )

"""Files and options of a model that have been checked, and the hash of both."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping

import numpy as np

from pgembed.errors import ModelError
from pgembed.models.options import ModelOptions
from pgembed.models.session import PROBE, Model

# A probe as long as max_tokens finds position tables that are too short; beyond
# this, attention over one text would need gigabytes.
_LONGEST_PROBE = 2048
# Operators for int8 scale a whole batch together: all-MiniLM-L6-v2 has 0.99 with them,
# and 0.7 to 0.8 when its attention mask is taken away.
_LOWEST_COSINE = 0.9

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
    for side in ("document", "query"):
        _check_room(model, side)
    _check_padding(model)
    return Candidate(
        source=source,
        files={ONNX_FILE: onnx_bytes, TOKENIZER_FILE: tokenizer_bytes},
        options=model.options,
    )


def _check_room(model: Model, side: str) -> None:
    """Refuse a limit that leaves no token for the text."""
    with_text, without = model.lengths([PROBE, ""], side).tolist()
    if without < with_text <= model.max_tokens:
        return
    prompt = len(model.spans(model.options.prompt(side)))
    raise ModelError(
        f"max_tokens is {model.max_tokens}, which special tokens and the {prompt} "
        f"tokens of the {side} prompt fill, so that every text would get the same "
        f"vector: state more with the option max_tokens, or a shorter prompt"
    )


def _check_padding(model: Model) -> None:
    """Refuse a network that reads what shorter texts are filled up with."""
    encoded = model.tokenize([PROBE, f"{PROBE} " * 8])
    alone, beside = model.run(encoded.take([0]))[0], model.run(encoded)[0]
    cosine = alone @ beside / np.sqrt((alone @ alone) * (beside @ beside))
    if cosine < _LOWEST_COSINE:
        raise ModelError(
            f"the network reads the padding of shorter texts: the vectors of a text "
            f"alone and of the same text beside a longer one have a cosine of only "
            f"{cosine:.2f}. Export the model with the input attention_mask"
        )

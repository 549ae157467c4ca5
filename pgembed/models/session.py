"""One loaded model: texts in, a float32 array out."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import onnxruntime

from pgembed.errors import InferenceError, ModelError, ModelFileError
from pgembed.models import pooling
from pgembed.models.checks import check_graph
from pgembed.models.encoding import Encoded, Integers, TextEncoder
from pgembed.models.options import ModelOptions
from pgembed.models.pooling import Floats

PROBE = "A man is eating food."
_DTYPES = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
_SHOWN = 10  # positions named in a message


class Model:
    """A network with its tokenizer, ready to embed; safe to share between threads."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        encoder: TextEncoder,
        options: ModelOptions,
    ) -> None:
        self._session = session
        self._encoder = encoder
        self._inputs = {i.name: _dtype(i) for i in session.get_inputs()}
        self._outputs = {o.name: o.shape for o in session.get_outputs()}
        output = options.output or choose_output(self._outputs, options.pooling)
        if output not in self._outputs:
            raise ModelError(
                f"the model has no output {output!r}: it has {', '.join(self._outputs)}"
            )
        self.options = dataclasses.replace(options, output=output)

    @classmethod
    def load(
        cls,
        onnx_bytes: bytes,
        tokenizer_bytes: bytes,
        options: ModelOptions,
        *,
        threads: int = 0,
    ) -> Self:
        """Check the files, create the session and embed one probe text.

        threads 0 means all cores this process may use. Raises ModelFileError for
        files that cannot be loaded, InferenceError when the probe gives no usable
        vector and ModelError when its size is not options.dimensions.
        """
        check_graph(onnx_bytes)
        encoder = TextEncoder(tokenizer_bytes, options)
        model = cls(_session(onnx_bytes, threads), encoder, options)
        size = model.embed([PROBE]).shape[1]
        if options.dimensions is None:
            model.options = dataclasses.replace(model.options, dimensions=size)
        return model

    @property
    def dimensions(self) -> int:
        """Numbers in each vector."""
        return self.options.dimensions or 0

    @property
    def max_tokens(self) -> int:
        """Tokens read of each text."""
        return self.options.max_tokens

    def tokenize(self, texts: Sequence[str], side: str = "document") -> Encoded:
        """Return the tokens of the texts: prompt before, cut at max_tokens.

        Lone surrogates become U+FFFD. side is document or query.
        """
        return self._encoder.encode(texts, side)

    def lengths(self, texts: Sequence[str], side: str = "document") -> Integers:
        """Return how many tokens each text has, int64 (n,), at most max_tokens."""
        return self._encoder.encode(texts, side).lengths

    def spans(self, text: str) -> Integers:
        """Return the characters of each token of the whole text, int64 (tokens, 2).

        Without prompt, special tokens and truncation: what chunking needs.
        """
        return self._encoder.spans(text)

    def run(self, encoded: Encoded) -> Floats:
        """Return the vectors of the texts, float32 (n, dimensions), as one batch.

        Raises InferenceError, naming the texts, for vectors that are not finite or
        have length 0, and for texts without tokens.
        """
        return self._run(encoded, np.arange(len(encoded)))

    def embed(
        self,
        texts: Sequence[str],
        side: str = "document",
        *,
        batch_tokens: int = 1024,
    ) -> Floats:
        """Return the vectors of the texts, float32 (n, dimensions), in their order.

        Texts of like length are run together, batch_tokens padded tokens at a time.
        Raises InferenceError as run does; its positions are those in texts.
        """
        encoded = self.tokenize(texts, side)
        order = list(encoded.batches(batch_tokens))
        if not order:
            return np.empty((0, self.dimensions), dtype=np.float32)
        parts = [self._run(encoded.take(rows), rows) for rows in order]
        vectors = np.empty((len(encoded), parts[0].shape[1]), dtype=np.float32)
        vectors[np.concatenate(order)] = np.concatenate(parts)
        return vectors

    def _run(self, encoded: Encoded, positions: Integers) -> Floats:
        if not len(encoded):
            return np.empty((0, self.dimensions), dtype=np.float32)
        _refuse(positions[encoded.lengths == 0], "no tokens to read")
        hidden = self._infer(encoded)
        vectors = pooling.pool(hidden, encoded.lengths, self.options.pooling)
        return self._finish(vectors, positions)

    def _infer(self, encoded: Encoded) -> Floats:
        ids, inside = encoded.padded(self.options.pad_id)
        arrays = {
            "input_ids": ids,
            "attention_mask": inside,
            "token_type_ids": np.zeros_like(ids),
        }
        feeds = {
            name: arrays[name].astype(kind, copy=False)
            for name, kind in self._inputs.items()
        }
        try:
            (hidden,) = self._session.run([self.options.output], feeds)
        except Exception as error:  # the runtime's errors share no other base
            raise InferenceError(
                f"the model failed on a batch of {ids.shape[0]} texts of up to "
                f"{ids.shape[1]} tokens: {error}"
            ) from error
        self._check_shape(hidden, ids.shape)
        return np.asarray(hidden, dtype=np.float32)

    def _check_shape(self, hidden: Any, shape: tuple[int, ...]) -> None:
        wanted = shape[:1] if self.options.pooling == "none" else shape
        given = np.shape(hidden)
        if given[:-1] != wanted or not given[-1]:
            raise InferenceError(
                f"output {self.options.output!r} has shape {given} for token ids of "
                f"shape {shape}, which does not fit pooling {self.options.pooling!r}: "
                f"add the model anew with another output or pooling"
            )

    def _finish(self, vectors: Floats, positions: Integers) -> Floats:
        size = self.options.dimensions or vectors.shape[1]
        if vectors.shape[1] < size:
            raise ModelError(
                f"the model gives {vectors.shape[1]} dimensions, but {size} were "
                f"stated: add it anew with at most {vectors.shape[1]}"
            )
        vectors = np.ascontiguousarray(vectors[:, :size])
        norms = pooling.lengths_of(vectors)
        _refuse(positions[~np.isfinite(norms)], "NaN or infinity in the vector")
        _refuse(positions[norms == 0], "a vector of length 0")
        if self.options.normalize:
            vectors /= norms[:, None].astype(np.float32)
        return vectors


def choose_output(outputs: dict[str, Any], pooling: str) -> str:
    """Return the output to use among those of a network, {name: shape}."""
    if pooling == "none":
        names, rank = ("sentence_embedding", "pooler_output"), 2
    else:
        names, rank = ("last_hidden_state", "token_embeddings"), 3
    fitting = [name for name, shape in outputs.items() if len(shape) == rank]
    for name in (*names, *fitting):
        if name in outputs:
            return name
    raise ModelError(
        f"no output of the model fits pooling {pooling!r}; it has "
        f"{', '.join(f'{name} {shape}' for name, shape in outputs.items())}: "
        f"name one with the option output, or choose another pooling"
    )


def _session(onnx_bytes: bytes, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    options.enable_mem_pattern = False  # every batch has another shape
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Otherwise the first bytes decide, and the checked graph need not be the one run.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    try:
        return onnxruntime.InferenceSession(
            onnx_bytes, options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # the runtime's errors share no other base
        raise ModelFileError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load the model: {error}"
        ) from error


def _dtype(value: Any) -> Any:
    if value.type not in _DTYPES:
        raise ModelFileError(
            f"input {value.name!r} of the model is a {value.type}, but must be one of "
            f"{', '.join(_DTYPES)}: export the model anew"
        )
    return _DTYPES[value.type]


def _refuse(positions: Integers, what: str) -> None:
    if len(positions):
        bad = sorted(positions.tolist())
        shown = ", ".join(map(str, bad[:_SHOWN]))
        more = f" and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise InferenceError(
            f"{len(bad)} of the texts cannot be embedded, there is {what} "
            f"(positions {shown}{more}): leave them out, or use another model",
            bad,
        )

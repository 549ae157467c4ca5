"""Which ONNX graphs may be loaded: one self-contained file, known operators only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx

from pgembed.errors import ModelFileError

MAX_BYTES = 2**31 - 1
"""A protobuf message, and so an ONNX file without external data, is smaller."""
DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids"})
# Operators of an allowed domain that name a file to be read.
_FILE_OPERATORS = frozenset({"EPContext"})


def check_graph(data: bytes) -> None:
    """Refuse bytes that are not a plain text-embedding network in one file.

    Raises ModelFileError for what is too large, not ONNX, keeps tensors in other
    files, uses operators of unknown domains or wants inputs that are not tokens.
    """
    if len(data) > MAX_BYTES:
        raise ModelFileError(
            f"the ONNX file has {len(data)} bytes, more than the {MAX_BYTES} that one "
            f"file can hold: use a smaller model, or its int8 weights"
        )
    model = _parse(data)
    for message in _walk(model):
        _check_message(message)
    _check_domains(model)
    _check_inputs(model)


def ranks(data: bytes) -> set[int]:
    """Return how many axes the graph's outputs have: 3 per token, 2 per text."""
    return {
        len(output.type.tensor_type.shape.dim) for output in _parse(data).graph.output
    }


def _parse(data: bytes) -> onnx.ModelProto:
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception:  # protobuf's error, a package that has no types
        raise ModelFileError(
            f"the model file ({len(data)} bytes) is not ONNX: "
            f"get it again, or export the model anew"
        ) from None
    if not model.graph.node:
        raise ModelFileError(
            f"the model file ({len(data)} bytes) holds no ONNX graph: "
            f"get it again, or export the model anew"
        )
    return model


def _walk(message: Any) -> Iterator[Any]:
    """Yield a message and all below it, wherever the format may put them."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for child in value if field.is_repeated else (value,):
            yield from _walk(child)


def _check_message(message: Any) -> None:
    if isinstance(message, onnx.TensorProto):
        _check_tensor(message)
    elif isinstance(message, onnx.NodeProto):
        _check_node(message)


def _check_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.external_data or tensor.data_location != onnx.TensorProto.DEFAULT:
        raise ModelFileError(
            f"tensor {tensor.name!r} keeps its data in another file, which is "
            f"refused: save the model as one file without external data"
        )


def _check_node(node: onnx.NodeProto) -> None:
    if node.domain not in DOMAINS or node.op_type in _FILE_OPERATORS:
        raise ModelFileError(
            f"node {node.name!r} uses operator {node.op_type!r} of domain "
            f"{node.domain!r}, which is refused: export the model with standard "
            f"ONNX operators"
        )


def _check_domains(model: onnx.ModelProto) -> None:
    imports = {opset.domain for opset in model.opset_import}
    unknown = sorted(imports - DOMAINS)
    if unknown:
        raise ModelFileError(
            f"the model imports operators of {', '.join(map(repr, unknown))}, which "
            f"are refused: export it with standard ONNX operators"
        )


def _check_inputs(model: onnx.ModelProto) -> None:
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = {value.name for value in model.graph.input} - constants
    unknown = sorted(inputs - INPUTS)
    if unknown or "input_ids" not in inputs:
        raise ModelFileError(
            f"the model takes the inputs {', '.join(sorted(inputs))}: it must take "
            f"input_ids, may take {', '.join(sorted(INPUTS - {'input_ids'}))}, "
            f"and nothing else"
        )

"""A small builder of ONNX graphs, deterministic to the byte."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

_OPSET, _IR_VERSION = 20, 9  # the first with Gelu


class Graph:
    """Nodes and constants, each value known by its name."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, values: npt.ArrayLike) -> str:
        """Add an initializer under this name and return the name."""
        array = np.ascontiguousarray(values).reshape(np.shape(values))
        self._constants[name] = numpy_helper.from_array(array, name)
        return name

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        name = f"{operator}_{len(self._nodes)}"
        self._nodes.append(
            helper.make_node(operator, inputs, [name], name=name, **attributes)
        )
        return name

    def serialize(self, hidden: str, size: int) -> bytes:
        """Return the model: tokens and mask in, last_hidden_state (b, s, size) out."""
        self._nodes.append(
            helper.make_node("Identity", [hidden], ["last_hidden_state"])
        )
        tokens = [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"])
            for name in ("input_ids", "attention_mask")
        ]
        output = helper.make_tensor_value_info(
            "last_hidden_state", TensorProto.FLOAT, ["batch", "tokens", size]
        )
        graph = helper.make_graph(
            self._nodes, "encoder", tokens, [output], list(self._constants.values())
        )
        model = helper.make_model(
            graph,
            producer_name="pgembed",
            ir_version=_IR_VERSION,
            opset_imports=[helper.make_opsetid("", _OPSET)],
        )
        data: bytes = model.SerializeToString(deterministic=True)
        return data

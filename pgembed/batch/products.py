"""Matrix products by ONNX Runtime, which models need anyway.

Faster than NumPy's BLAS at what batches multiply: with 16 queries of 128 dimensions two
to three times, with 256 by an eighth to two thirds, depending on which of its kernels
BLAS chooses (measured: ``tests/benchmarks/batch_search``).
"""

from __future__ import annotations

from typing import cast

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper

Float32 = NDArray[np.float32]


def _session() -> onnxruntime.InferenceSession:
    values, queries, scores = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (
            ("values", ["n", "d"]),
            ("queries", ["m", "d"]),
            ("scores", ["n", "m"]),
        )
    )
    node = helper.make_node("Gemm", ["values", "queries"], ["scores"], transB=1)
    graph = helper.make_graph([node], "products", [values, queries], [scores])
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


_SESSION = _session()


def products(values: Float32, queries: Float32) -> Float32:
    """Return the products (n, m) of *values* (n, d) and *queries* (m, d).

    On the core that calls, without Python's lock.
    """
    (scores,) = _SESSION.run(None, {"values": values, "queries": queries})
    return cast("Float32", scores)

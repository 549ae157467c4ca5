from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from pgembed.errors import ModelFileError, ModelSourceError
from pgembed.models.encoding import TextEncoder
from pgembed.models.folder import Folder
from pgembed.models.modules import Modules
from pgembed.models.options import ModelOptions
from tests.harness import tiny_models

MODULE = "sentence_transformers.models."
TRANSFORMER = {"path": "", "type": f"{MODULE}Transformer"}
POOLING = {"path": "1_Pooling", "type": f"{MODULE}Pooling"}
NORMALIZE = {"path": "2_Normalize", "type": f"{MODULE}Normalize"}


def read(folder: Path, **files: Any) -> Modules:
    """Write JSON files, __ in their names for a slash, and read the folder."""
    for name, values in files.items():
        path = folder / (name.replace("__", "/") + ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    return Modules(Folder(folder))


def test_a_bare_folder_says_little(tmp_path: Path) -> None:
    options = read(tmp_path).options()
    assert options == {
        "max_tokens": 512,
        "distance": "cosine",
        "document_prompt": "",
        "query_prompt": "",
    }


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_cls_token": True, "include_prompt": True}, "cls"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "mean"}, "mean"),
    ],
)
def test_pooling(tmp_path: Path, pooling: dict[str, Any], expected: str) -> None:
    modules = [TRANSFORMER, POOLING]
    found = read(tmp_path, modules=modules, **{"1_Pooling__config": pooling})
    assert found.options()["pooling"] == expected
    assert found.options()["normalize"] is False


@pytest.mark.parametrize(
    "pooling",
    [
        {"pooling_mode_max_tokens": True},
        {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
        {},
    ],
)
def test_pooling_that_cannot_be_honoured(
    tmp_path: Path, pooling: dict[str, Any]
) -> None:
    with pytest.raises(ModelSourceError, match="only mean, cls and lasttoken"):
        read(tmp_path, modules=[POOLING], **{"1_Pooling__config": pooling})


def test_pooling_without_the_prompt(tmp_path: Path) -> None:
    pooling = {"pooling_mode_mean_tokens": True, "include_prompt": False}
    with pytest.raises(ModelSourceError, match="pools without the prompt"):
        read(tmp_path, modules=[POOLING], **{"1_Pooling__config": pooling})


def test_normalize(tmp_path: Path) -> None:
    found = read(tmp_path, modules=[TRANSFORMER, NORMALIZE])
    assert found.options()["normalize"] is True


def test_dense_is_refused(tmp_path: Path) -> None:
    dense = {"path": "3_Dense", "type": f"{MODULE}Dense"}
    with pytest.raises(ModelSourceError, match="a module of type 'Dense'"):
        read(tmp_path, modules=[TRANSFORMER, dense])


@pytest.mark.parametrize(
    ("prompts", "default", "query", "document"),
    [
        ({"query": "q: ", "passage": "p: "}, None, "q: ", "p: "),
        ({"x": "say: "}, "x", "say: ", "say: "),
        ({"query": "q: ", "document": ""}, "query", "q: ", ""),
        ({"query": "q: ", "document": "", "passage": "p: "}, None, "q: ", ""),
        ({"query": "q: ", "corpus": "c: "}, "query", "q: ", "c: "),
        ({"query": "q: "}, None, "q: ", ""),
    ],
)
def test_prompts(
    tmp_path: Path,
    prompts: dict[str, str],
    default: str | None,
    query: str,
    document: str,
) -> None:
    """The first that is there counts, also when it is empty; then the default."""
    config = {"prompts": prompts, "default_prompt_name": default}
    options = read(tmp_path, config_sentence_transformers=config).options()
    assert options["query_prompt"] == query
    assert options["document_prompt"] == document


def test_distance(tmp_path: Path) -> None:
    found = read(tmp_path, config_sentence_transformers={"similarity_fn_name": "dot"})
    assert found.options()["distance"] == "inner_product"
    config = {"similarity_fn_name": "manhattan"}
    with pytest.raises(ModelSourceError, match="compares vectors by 'manhattan'"):
        read(tmp_path, config_sentence_transformers=config).options()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"sentence_bert_config": {"max_seq_length": 256}}, 256),
        ({"tokenizer_config": {"model_max_length": 384}}, 384),
        ({"tokenizer_config": {"model_max_length": 10**30}}, 512),
        ({"config": {"max_position_embeddings": 128}}, 128),
        (
            {
                "sentence_bert_config": {"max_seq_length": None},
                "config": {"max_position_embeddings": 64},
            },
            64,
        ),
    ],
)
def test_max_tokens(tmp_path: Path, files: dict[str, Any], expected: int) -> None:
    assert read(tmp_path, **files).options()["max_tokens"] == expected


def test_a_transformer_in_a_folder_of_its_own(tmp_path: Path) -> None:
    module = {**TRANSFORMER, "path": "0_Transformer"}
    files = {"0_Transformer__config": {"max_position_embeddings": 99}}
    found = read(tmp_path, modules=[module], **files)
    assert found.options()["max_tokens"] == 99
    (tmp_path / "0_Transformer" / "model.onnx").touch()
    assert found.find("model.onnx") == "0_Transformer/model.onnx"


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"modules": {"a": 1}}, "modules.json in .* is not a JSON array"),
        ({"modules": 5}, "modules.json in .* is not a JSON array"),
        ({"modules": ["a"]}, "modules.json in .* lists what is not a JSON object"),
        (
            {"modules": [POOLING], "1_Pooling__config": []},
            "1_Pooling/config.json in .* is not a JSON object",
        ),
        ({"config": [1]}, "config.json in .* is not a JSON object"),
        (
            {"config_sentence_transformers": {"prompts": ["query"]}},
            "prompts in config_sentence_transformers.json is not a JSON object",
        ),
        (
            {"config_sentence_transformers": {"prompts": {"query": 5}}},
            "query in config_sentence_transformers.json is not a JSON string",
        ),
        (
            {"config_sentence_transformers": {"default_prompt_name": []}},
            "default_prompt_name in .* is not a JSON string",
        ),
        (
            {"config_sentence_transformers": {"similarity_fn_name": ["dot"]}},
            "similarity_fn_name in .* is not a JSON string",
        ),
    ],
)
def test_files_that_do_not_hold_what_they_should(
    tmp_path: Path, files: dict[str, Any], says: str
) -> None:
    with pytest.raises(ModelFileError, match=says):
        read(tmp_path, **files).options()


def test_the_tokenizer_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelSourceError, match=r"has no tokenizer\.json"):
        read(tmp_path).tokenizer()


def test_lower_case_first(tmp_path: Path) -> None:
    tokenizer = tiny_models.tokenizer()
    tokenizer.normalizer = None
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_str())
    plain = tokenizers.Tokenizer.from_buffer(read(tmp_path).tokenizer())
    assert plain.encode("CAT").tokens == ["[CLS]", "[UNK]", "[SEP]"]
    found = read(tmp_path, sentence_bert_config={"do_lower_case": True})
    lower = tokenizers.Tokenizer.from_buffer(found.tokenizer())
    assert lower.encode("CAT").tokens == ["[CLS]", "cat", "[SEP]"]


@pytest.mark.parametrize(
    ("tokenizer", "says"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a JSON object"),
        ('{"normalizer": "\\ud800"}', "cannot be loaded"),
    ],
)
def test_a_broken_tokenizer_in_lower_case(
    tmp_path: Path, tokenizer: str, says: str
) -> None:
    (tmp_path / "tokenizer.json").write_text(tokenizer)
    found = read(tmp_path, sentence_bert_config={"do_lower_case": True})
    with pytest.raises(ModelFileError, match=f"tokenizer.json {says}"):
        TextEncoder(found.tokenizer(), ModelOptions())

"""What the files of a sentence-transformers folder say about its model."""

from __future__ import annotations

import json
from typing import Any

from pgembed.errors import ModelFileError, ModelSourceError
from pgembed.models.folder import MAX_JSON_BYTES, Folder
from pgembed.models.jsonfile import field, parse

_POOLING_MODES = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
    "mean": "mean",
    "cls": "cls",
    "lasttoken": "last",
}
_SENTENCE_TRANSFORMERS = "config_sentence_transformers.json"
_DISTANCES = {"cosine": "cosine", "dot": "inner_product", "euclidean": "l2"}
_NO_LIMIT = 1_000_000  # tokenizers without a limit state a number beyond this


class Modules:
    """The modules of a model folder: a transformer, maybe pooling and normalising.

    Raises ModelSourceError for modules that cannot be honoured, and ModelFileError,
    as its methods do, for a file that does not hold what it should.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._transformer = ""
        self._derived: dict[str, Any] = {}
        modules = folder.json("modules.json", list)
        if modules:
            self._derived["normalize"] = False
        for module in modules:
            self._read_module(module)

    def options(self) -> dict[str, Any]:
        """Return what the folder says, as fields of ModelOptions."""
        return {**self._prompts(), **self._distance(), **self._derived} | {
            "max_tokens": self._max_tokens()
        }

    def config(self) -> dict[str, Any]:
        """Return config.json: the architecture and its sizes."""
        return self._json("config.json")

    def find(self, *names: str) -> str | None:
        """Return the first of these files, beside the transformer or at the top."""
        below = [f"{self._transformer}/{name}" for name in names if self._transformer]
        return self._folder.find(*below, *names)

    def tokenizer(self) -> bytes:
        """Return tokenizer.json, made to lower case first where the model says so."""
        name = self.find("tokenizer.json")
        if name is None:
            raise ModelSourceError(
                f"{self._folder} has no tokenizer.json: save the model's tokenizer in "
                f"the fast format, or use another source"
            )
        data = self._folder.read(name, MAX_JSON_BYTES)
        if self._json("sentence_bert_config.json").get("do_lower_case"):
            data = _lower_first(data)
        return data

    def _json(self, name: str) -> dict[str, Any]:
        found = self.find(name)
        return self._folder.json(found, dict) if found else {}

    def _read_module(self, module: Any) -> None:
        if not isinstance(module, dict):
            raise ModelFileError(
                f"modules.json in {self._folder} lists what is not a JSON object: "
                f"get the model's files again"
            )
        kind = str(module.get("type", "")).rpartition(".")[2]
        path = str(module.get("path", ""))
        if kind == "Transformer":
            self._transformer = path
        elif kind == "Pooling":
            self._derived["pooling"] = self._pooling(path)
        elif kind == "Normalize":
            self._derived["normalize"] = True
        else:
            raise ModelSourceError(
                f"{self._folder} has a module of type {kind!r}, which cannot be "
                f"honoured (only Transformer, Pooling and Normalize can): export the "
                f"whole model as one ONNX file and add it with pooling 'none'"
            )

    def _pooling(self, path: str) -> str:
        file = f"{path}/config.json"
        config = self._folder.json(file, dict)
        if config.get("include_prompt") is False:
            raise ModelSourceError(
                f"{self._folder} pools without the prompt (include_prompt in {file} "
                f"is false), which cannot be honoured: use another model"
            )
        modes = {key for key, value in config.items() if value is True}
        modes = {mode for mode in modes if mode.startswith("pooling_mode")}
        if isinstance(config.get("pooling_mode"), str):
            modes = {config["pooling_mode"]}
        known = [_POOLING_MODES.get(mode) for mode in modes]
        if len(known) != 1 or known[0] is None:
            raise ModelSourceError(
                f"{self._folder} pools by {', '.join(sorted(modes)) or 'nothing'}, "
                f"which cannot be honoured: only mean, cls and lasttoken alone can"
            )
        return known[0]

    def _prompts(self) -> dict[str, Any]:
        file = _SENTENCE_TRANSFORMERS
        config = self._json(file)
        prompts = field(config, "prompts", dict, file)
        default = field(config, "default_prompt_name", str, file)

        def prompt(*names: str) -> str:
            # The first that is there counts, empty or not.
            name = next((name for name in names if name in prompts), default)
            return field(prompts, name, str, file)

        return {
            "document_prompt": prompt("document", "passage", "corpus"),
            "query_prompt": prompt("query"),
        }

    def _distance(self) -> dict[str, Any]:
        file = _SENTENCE_TRANSFORMERS
        name = field(self._json(file), "similarity_fn_name", str, file) or "cosine"
        if name not in _DISTANCES:
            raise ModelSourceError(
                f"{self._folder} compares vectors by {name!r}, which cannot be "
                f"honoured: only {', '.join(_DISTANCES)} can"
            )
        return {"distance": _DISTANCES[name]}

    def _max_tokens(self) -> int:
        config = self.config()
        stated = (
            self._json("sentence_bert_config.json").get("max_seq_length"),
            self._json("tokenizer_config.json").get("model_max_length"),
            config.get("max_position_embeddings"),
        )
        limits = [n for n in stated if isinstance(n, int) and 0 < n < _NO_LIMIT]
        return limits[0] if limits else 512


def _lower_first(data: bytes) -> bytes:
    values = parse(data, "tokenizer.json", dict)
    steps = [{"type": "Lowercase"}]
    if values.get("normalizer"):
        steps.append(values["normalizer"])
    values["normalizer"] = {"type": "Sequence", "normalizers": steps}
    return json.dumps(values, ensure_ascii=False).encode("utf-8", "surrogatepass")

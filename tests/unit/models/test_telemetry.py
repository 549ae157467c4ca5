"""What is run here is reported to nobody."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import tiny_models

USES = {
    "a model": """
import sys
from pathlib import Path
from pgembed.models.options import ModelOptions
from pgembed.models.session import Model

files = [Path(sys.argv[1]) / name for name in ("model.onnx", "tokenizer.json")]
Model.load(*(file.read_bytes() for file in files), ModelOptions()).embed(["a cat"])
""",
    "int8 weights": """
import sys
from pathlib import Path
from pgembed.models.quantize import quantize_int8

quantize_int8((Path(sys.argv[1]) / "model.onnx").read_bytes())
""",
    "products of a batch": """
import numpy as np
from pgembed.batch.products import products

products(np.ones((3, 2), np.float32), np.ones((1, 2), np.float32))
""",
    "the hub": """
import pgembed
from huggingface_hub import constants

assert constants.HF_HUB_DISABLE_TELEMETRY
""",
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_no_use_leaves_anything_to_report(tmp_path: Path, use: str) -> None:
    """ONNX Runtime would keep an id of the user there, and what it has to upload."""
    model, home = tiny_models.good_model(tmp_path / "model"), tmp_path / "home"
    home.mkdir()
    done = python(use, str(model), HOME=str(home))
    assert (done.returncode, done.stderr) == (0, "")
    assert list(home.rglob("*onnxruntime*")) == []


def test_what_the_user_has_set_stays() -> None:
    shown = "import os, pgembed; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    assert python(shown, ORT_DISABLE_TELEMETRY="0").stdout == "0\n"


def python(
    code: str, *arguments: str, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run the code in a process that has no more than this of what may be set."""
    hidden = ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "XDG_CACHE_HOME")
    inherited = {k: v for k, v in os.environ.items() if k not in hidden}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**inherited, **environ},
    )

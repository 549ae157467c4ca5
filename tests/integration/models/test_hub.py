"""The hub's own client against a small hub on this machine."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from pgembed.errors import ModelSourceError
from pgembed.models import hub
from pgembed.models.sources import resolve
from tests.harness import tiny_models

COMMIT = "0123456789" * 4


class Handler(http.server.BaseHTTPRequestHandler):
    folder: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(path)
        if path.startswith("/api/models/org/name/"):
            files = sorted(self.folder.rglob("*"))
            names = [str(f.relative_to(self.folder)) for f in files if f.is_file()]
            if "/tree/" in path:
                entries = [self.entry(name) for name in names]
                data = json.dumps(entries).encode()
            else:
                siblings = [{"rfilename": name} for name in names]
                info = {"id": "org/name", "sha": COMMIT, "siblings": siblings}
                data = json.dumps(info).encode()
        elif path.startswith("/org/name/resolve/"):
            data = (self.folder / path.split("/", 5)[5]).read_bytes()
        else:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')  # noqa: S324
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def entry(self, name: str) -> dict[str, object]:
        data = (self.folder / name).read_bytes()
        oid = hashlib.sha1(data).hexdigest()  # noqa: S324
        return {"type": "file", "path": name, "size": len(data), "oid": oid}

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tiny_models.good_model(tmp_path / "hub")
    (folder / "onnx").mkdir()
    (folder / "model.onnx").rename(folder / "onnx" / "model.onnx")
    (folder / "model.safetensors").write_bytes(b"not wanted")
    settings = {"max_seq_length": 77}
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture
def asked() -> list[str]:
    return []


@pytest.fixture
def snapshot(model: Path, asked: list[str], tmp_path: Path) -> Iterator[hub.Snapshot]:
    """Return the hub's client, pointed to a server that has org/name only."""
    handler = type("Bound", (Handler,), {"folder": model, "asked": asked})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        yield functools.partial(
            huggingface_hub.snapshot_download,
            endpoint=f"http://127.0.0.1:{server.server_port}",
            cache_dir=tmp_path / "cache",
            token=False,
        )
        server.shutdown()
        thread.join()


def test_a_model_of_the_hub(
    snapshot: hub.Snapshot, asked: list[str], tmp_path: Path
) -> None:
    candidate = resolve("org/name", snapshot=snapshot)
    assert candidate.options.max_tokens == 77
    assert candidate.options.dimensions == tiny_models.DIMENSIONS
    assert not any("safetensors" in path for path in asked)
    # The client's cache is made of links, which are followed within it.
    (link,) = (tmp_path / "cache").rglob("model.onnx")
    assert link.is_symlink()


def test_the_cache_serves_when_the_hub_is_gone(
    snapshot: hub.Snapshot, tmp_path: Path
) -> None:
    first = resolve("org/name", snapshot=snapshot)
    gone = functools.partial(
        huggingface_hub.snapshot_download,
        endpoint="http://127.0.0.1:9",
        cache_dir=tmp_path / "cache",
        token=False,
    )
    assert resolve("org/name", snapshot=gone).hash == first.hash


def test_no_such_model(snapshot: hub.Snapshot) -> None:
    with pytest.raises(ModelSourceError, match=r"org/other cannot be had .*404"):
        resolve("org/other", snapshot=snapshot)

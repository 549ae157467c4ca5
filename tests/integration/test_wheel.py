"""The wheel is complete: what it holds, and that it installs the schema."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

INSTALL = """
import sys
from pathlib import Path
import pgembed
from pgembed.postgres.connection import connect
from pgembed.postgres.schema import install, resource_dir

folder = Path(pgembed.__file__).parent
assert folder.is_relative_to(sys.prefix), folder
assert resource_dir("sql") == folder / "_sql"
assert resource_dir("migrations") == folder / "_migrations"
with connect(sys.argv[1]) as connection:
    print(install(connection))
    print(install(connection))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a wheel built from the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation"]
    run([*command, "--outdir", str(folder), str(ROOT)], folder)
    [path] = folder.glob("pgembed_vector-*.whl")
    return path


def run(command: list[str], folder: Path) -> str:
    result = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def clean_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of a new environment that has the wheel."""
    folder = tmp_path_factory.mktemp("clean") / "venv"
    run([sys.executable, "-m", "venv", "--without-pip", str(folder)], folder.parent)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", f"--python={python}", "install", "--no-index"]
    options = ["--no-deps", "--disable-pip-version-check"]
    run([*pip, *options, str(wheel)], folder)
    # The dependencies come from here, after the wheel's own code; a plain path in
    # a .pth file does not run this environment's .pth files, so the checkout stays out.
    site = run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        folder,
    ).strip()
    packages = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (Path(site) / "dependencies.pth").write_text("\n".join(sorted(packages)))
    return python


@pytest.mark.slow
def test_wheel_holds_what_an_installation_needs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    expected = {"pgembed/py.typed", "pgembed/_migrations/env.py"}
    for source, target in (
        ("sql", "_sql"),
        ("migrations/versions", "_migrations/versions"),
    ):
        expected |= {
            f"pgembed/{target}/{path.name}"
            for path in (ROOT / source).iterdir()
            if path.suffix in (".sql", ".py")
        }
    expected |= {
        str(path.relative_to(ROOT)) for path in (ROOT / "pgembed").rglob("*.py")
    }
    assert expected <= names
    assert not [name for name in names if "__pycache__" in name or "tests" in name]


@pytest.mark.slow
def test_wheel_installs_the_schema(
    clean_python: Path, empty_dsn: str, tmp_path: Path
) -> None:
    command = [str(clean_python), "-W", "error", "-c", INSTALL, empty_dsn]
    first, second = run(command, tmp_path).splitlines()
    assert first.startswith("installed pgembed")
    assert second.endswith("already up to date")


@pytest.mark.slow
def test_wheel_brings_the_command(
    clean_python: Path, empty_dsn: str, tmp_path: Path
) -> None:
    pgembed = clean_python.with_name("pgembed")
    assert "install" in run([str(pgembed), "--help"], tmp_path)
    run([str(pgembed), "install", "--dsn", empty_dsn], tmp_path)

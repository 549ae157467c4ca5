"""What only calls over a Unix socket can meet: other listeners, restarts, folders."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from psycopg import errors

from pgembed.models.session import Model
from pgembed.postgres.connection import connect as open_connection
from pgembed.postgres.connection import extension_schema, fetch_one
from pgembed.postgres.doctor import verify
from pgembed.postgres.schema import install
from pgembed.worker import frames
from pgembed.worker.frames import FrameReader
from pgembed.worker.socketplace import SocketPlace
from tests.conftest import Connect
from tests.harness.roles import ordinary_role
from tests.harness.server import Databases
from tests.integration.worker.running import (
    Connection,
    answering,
    child_process,
    wait_until,
)

pytestmark = pytest.mark.parametrize("transport", ["plpython"], indirect=True)

Unanswered = errors.ObjectNotInPrerequisiteState
EMBED = "SELECT pgembed.embed('tiny', %s)"


def embed(connection: Connection, text: str = "a cat") -> Any:
    return fetch_one(connection, EMBED, (text,))[0]


def place_of(connection: Connection) -> SocketPlace:
    place = SocketPlace.of(connection, None)
    assert place is not None
    return place


def transport_finding(connection: Connection) -> tuple[str, str]:
    [finding] = [f for f in verify(connection) if f.subject == "transport"]
    return finding.level, finding.message


@contextlib.contextmanager
def listening(
    connection: Connection, talk: Callable[[socket.socket], None]
) -> Iterator[threading.Event]:
    """Take a worker's place for one connection, and *talk* to it.

    Yields an event that is set when that is over and the socket is gone.
    """
    listener, path = place_of(connection).listen()
    listener.setblocking(True)
    over = threading.Event()

    def run() -> None:
        with listener:
            caller, _ = listener.accept()
        path.unlink()
        with caller, contextlib.suppress(OSError):
            talk(caller)
        over.set()

    thread = threading.Thread(target=run)
    thread.start()
    yield over
    thread.join()


def greet(caller: socket.socket) -> frames.Frame:
    """Greet, and return the request that comes."""
    caller.sendall(frames.GREETING_BYTES)
    reader = FrameReader()
    while True:
        for frame in reader.feed(caller.recv(4096)):
            return frame


def test_the_next_worker_is_found(
    dsn: str, connection: Connection, model: Model
) -> None:
    wanted = model.embed(["a cat"])[0]
    for _ in range(2):
        with answering(dsn):
            np.testing.assert_allclose(embed(connection), wanted, atol=1e-6)
            assert transport_finding(connection)[0] == "ok"
    level, message = transport_finding(connection)
    assert level == "warning"
    assert "there is no worker's socket in" in message


def test_a_worker_that_was_killed_is_replaced(
    dsn: str, connection: Connection, model: Model
) -> None:
    connection.execute("SET pgembed.call_timeout = '60s'")
    with child_process("calls", dsn) as process:
        assert embed(connection) is not None
        process.kill()
        process.wait()
        with answering(dsn):
            assert embed(connection, "the dog") is not None
    assert list(place_of(connection).folder.iterdir()) == []


@pytest.mark.usefixtures("model")
def test_a_worker_ends_when_another_database_takes_the_name_of_its_own(
    dsn: str, databases: Databases, connection: Connection, connect: Connect
) -> None:
    """The supervisor starts it again, and SQL functions find the socket's new name."""
    name = connection.info.dbname
    rename = "ALTER DATABASE {} RENAME TO {}"
    admin = connect(databases.dsn())
    with (
        databases.database(databases.installed_template("plpython")) as other,
        child_process("calls", dsn) as process,
    ):
        assert embed(connection) is not None
        admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false".encode())
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
            [name],
        )
        wait_until(lambda: is_unused(admin, name))
        for old, new in ((name, f"{name}_old"), (other, name)):
            admin.execute(rename.format(old, new).encode())
        assert process.wait(30) == 1
    admin.execute(f"DROP DATABASE {name}_old WITH (FORCE)".encode())


def is_unused(admin: Connection, database: str) -> bool:
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s"
    return bool(fetch_one(admin, query, [database]) == (0,))


@pytest.mark.usefixtures("model")
def test_a_call_survives_the_worker_that_took_it(
    dsn: str, connection: Connection, connect: Connect
) -> None:
    caller = connect(dsn)
    caller.execute("SET pgembed.call_timeout = '60s'")
    answers: list[object] = []
    with listening(connection, lambda c: void(greet(c))) as taken:
        thread = threading.Thread(target=lambda: answers.append(embed(caller)))
        thread.start()
        taken.wait(30)
        with answering(dsn):
            thread.join(30)
    assert answers != []
    assert answers[0] is not None


def void(_: object) -> None:
    pass


def answer(body: Callable[[frames.Frame], bytes]) -> Callable[[socket.socket], None]:
    """Return a worker that answers with these bytes and hangs up."""
    return lambda caller: caller.sendall(body(greet(caller)))


BAD_ANSWERS = {
    "no frame": lambda _: b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "too long": lambda _: b"pe\x02\x10" + b"\xff" * 8,
    "other call": lambda f: frames.encode_answer(f.number + 1, np.zeros((1, 8), "f4")),
    "two vectors": lambda f: frames.encode_answer(f.number, np.zeros((2, 8), "f4")),
    "greeting": lambda _: frames.GREETING_BYTES,
    "cut": lambda f: frames.encode_answer(f.number, np.zeros((1, 8), "f4"))[:-2],
}


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("body", BAD_ANSWERS.values(), ids=BAD_ANSWERS)
def test_bad_answers_are_no_answers(
    dsn: str, connection: Connection, body: Callable[[frames.Frame], bytes]
) -> None:
    connection.execute("SET pgembed.call_timeout = '200ms'")
    with (
        listening(connection, answer(body)),
        pytest.raises(errors.ObjectNotInPrerequisiteState, match="no worker answered"),
    ):
        embed(connection)
    connection.execute("SET pgembed.call_timeout = '30s'")
    with answering(dsn):
        assert embed(connection) is not None


@pytest.mark.usefixtures("model")
def test_a_busy_worker_may_greet_late(connection: Connection) -> None:
    connection.execute("SET pgembed.call_timeout = '60s'")
    left: list[bytes] = []

    def talk(caller: socket.socket) -> None:
        # Many times as long as the backend waits before it looks for a cancel.
        caller.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            left.append(caller.recv(1))
        caller.settimeout(60)
        zero = np.zeros((1, 8), np.float32)
        caller.sendall(frames.encode_answer(greet(caller).number, zero))

    with listening(connection, talk):
        assert embed(connection) is not None
    assert left == []


def test_a_worker_that_never_greets_is_left_for_another(
    dsn: str, connection: Connection, model: Model
) -> None:
    connection.execute("SET pgembed.call_timeout = '60s'")
    wanted = model.embed(["a cat"])[0]
    silent, path = place_of(connection).listen()
    with silent, answering(dsn):
        np.testing.assert_allclose(embed(connection), wanted, atol=1e-6)
        path.unlink()


def test_a_worker_that_comes_later_is_found_beside_a_silent_one(
    dsn: str, connection: Connection, model: Model
) -> None:
    connection.execute("SET pgembed.call_timeout = '30s'")
    silent, path = place_of(connection).listen()
    dialled = threading.Event()

    def dial() -> None:
        with silent:
            caller, _ = silent.accept()
            dialled.set()
            with caller:
                caller.recv(1)  # until it is left

    silent.setblocking(True)
    listening = threading.Thread(target=dial)
    listening.start()
    answered: list[Any] = []
    calling = threading.Thread(target=lambda: answered.append(embed(connection)))
    calling.start()
    assert dialled.wait(30)
    with answering(dsn):
        calling.join()
    listening.join()
    path.unlink()
    np.testing.assert_allclose(answered[0], model.embed(["a cat"])[0], atol=1e-6)


def test_a_silent_worker_is_tried_once(
    dsn: str, connection: Connection, model: Model
) -> None:
    """However the dice fall, the second choice is another one."""
    place = place_of(connection)
    silent = [place.listen() for _ in range(3)]
    with contextlib.ExitStack() as stack, answering(dsn):
        for listener, path in silent:
            stack.enter_context(listener)
            stack.callback(path.unlink)
        wait_until(lambda: len(list(place.folder.glob(f"{place.prefix}*"))) == 4)
        connection.execute("SET pgembed.call_timeout = '4.5s'")
        assert embed(connection) is not None


@pytest.mark.usefixtures("model")
def test_a_socket_that_is_there_is_not_called_missing(connection: Connection) -> None:
    connection.execute("SET pgembed.call_timeout = '300ms'")
    listener, path = place_of(connection).listen()
    with listener, pytest.raises(Unanswered, match="no worker answered") as caught:
        embed(connection)
    path.unlink()
    assert "socket" not in str(caught.value.diag.message_detail)
    with pytest.raises(Unanswered, match="no worker answered") as caught:
        embed(connection)
    assert "no worker's socket" in str(caught.value.diag.message_detail)


@pytest.mark.usefixtures("model")
def test_what_is_no_number_is_refused(connection: Connection) -> None:
    vector = np.full((1, 8), np.nan, np.float32)
    talk = answer(lambda frame: frames.encode_answer(frame.number, vector))
    with listening(connection, talk), pytest.raises(errors.DataException, match="NaN"):
        embed(connection)


@pytest.mark.usefixtures("worker")
def test_a_folder_open_to_everybody_is_not_used(
    dsn: str, connection: Connection, connect: Connect
) -> None:
    assert embed(connection) is not None
    other = connect(dsn)
    other.execute("SET pgembed.call_timeout = '200ms'")
    folder = place_of(connection).folder
    mode = folder.stat().st_mode
    folder.chmod(0o755)
    try:
        with pytest.raises(errors.ObjectNotInPrerequisiteState) as caught:
            embed(other)
    finally:
        folder.chmod(mode)
    assert "everybody may enter" in str(caught.value.diag.message_detail)
    assert embed(other) is not None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can listen as another user")
@pytest.mark.usefixtures("model")
def test_a_stranger_s_socket_is_not_trusted(connection: Connection) -> None:
    connection.execute("SET pgembed.call_timeout = '200ms'")
    place = place_of(connection)
    listener, path = place.listen()
    listener.close()
    path.unlink()
    # The kernel remembers who called listen().
    program = (
        "import os, socket, sys\n"
        "s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1])\n"
        "os.chmod(sys.argv[1], 0o777); os.setgid(65534); os.setuid(65534)\n"
        "s.listen(); print('ready', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        with pytest.raises(errors.ObjectNotInPrerequisiteState) as caught:
            embed(connection)
        assert process.stdin is not None
        process.stdin.close()
    path.unlink()
    assert "user 65534 listens there" in str(caught.value.diag.message_detail)


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize(
    "query",
    [
        "SELECT pgembed.embed('tiny', 'cat')",
        "SELECT pgembed.embed_batch('tiny', '{a}')",
    ],
)
@pytest.mark.parametrize("setting", ["statement_timeout", "pgembed.call_timeout"])
def test_a_call_that_is_given_up_is_withdrawn(
    connection: Connection, query: str, setting: str
) -> None:
    """The worker sees the session hang up, which stays open itself."""
    came: list[bytes] = []

    def talk(caller: socket.socket) -> None:
        greet(caller)
        caller.settimeout(10)
        came.append(caller.recv(1))

    connection.execute(f"SET {setting} = '300ms'".encode())
    with listening(connection, talk) as over:
        with pytest.raises((errors.QueryCanceled, errors.ObjectNotInPrerequisiteState)):
            connection.execute(query.encode())
        assert over.wait(30)
        assert came == [b""]


@pytest.mark.usefixtures("model")
def test_a_backend_that_waits_can_be_ended(
    dsn: str, connection: Connection, connect: Connect
) -> None:
    caller = connect(dsn)
    caller.execute("SET pgembed.call_timeout = '60s'")
    failed: list[BaseException] = []

    def call() -> None:
        with pytest.raises(errors.AdminShutdown) as caught:
            embed(caller)
        failed.append(caught.value)

    thread = threading.Thread(target=call)
    thread.start()
    active = "SELECT state = 'active' FROM pg_stat_activity WHERE pid = %s"
    pid = (caller.info.backend_pid,)
    wait_until(lambda: fetch_one(connection, active, pid)[0])
    ended = "SELECT pg_terminate_backend(%s, 5000)"
    assert fetch_one(connection, ended, pid)[0]
    thread.join(30)
    assert len(failed) == 1


@pytest.mark.usefixtures("worker")
def test_many_backends_get_their_own_answers(dsn: str, model: Model) -> None:
    wrong: list[str] = []

    def call(caller: int) -> None:
        with open_connection(dsn) as connection:
            for i in range(10):
                text = f"the dog eats food {caller} {i}"
                given = embed(connection, text)
                wanted = model.embed([text])[0]
                if not np.allclose(np.asarray(given), wanted, atol=1e-6):
                    wrong.append(text)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_float_keeps_its_bits(connection: Connection, model: Model) -> None:
    values = np.array([[1 / 3, 1e-30, -7.1234567e8, 0, 1, -1, 0.1, 3.4e38]], np.float32)
    talk = answer(lambda frame: frames.encode_answer(frame.number, values))
    with listening(connection, talk):
        given = embed(connection)
    np.testing.assert_array_equal(given, values[0])
    assert model.dimensions == 8


def test_the_transport_is_kept_until_another_is_named(
    databases: Databases, connection: Connection
) -> None:
    assert install(connection).transport == "plpython"
    assert extension_schema(connection, "dblink") is None
    folder = str(databases.socket_dir)
    assert install(connection, transport="dblink").transport == "dblink"
    report = install(connection)
    assert (report.changed, report.transport) == (False, "dblink")
    assert transport_finding(connection) == ("ok", "dblink")
    talk = fetch_one(connection, "SELECT to_regproc('pgembed._talk')")
    assert talk[0] is None
    assert SocketPlace.of(connection, None) is None
    assert install(connection, transport="auto").transport == "plpython"
    assert place_of(connection).folder == Path(folder)


def test_without_its_extension_the_doctor_tells(connection: Connection) -> None:
    connection.execute("DROP EXTENSION plpython3u CASCADE")
    level, message = transport_finding(connection)
    assert level == "error"
    assert "CREATE EXTENSION plpython3u" in message


def test_an_ordinary_owner_keeps_dblink(
    databases: Databases, connect: Connect, transport: str
) -> None:
    with databases.database() as name:
        superuser = connect(databases.dsn(name))
        for extension in ("vector", "dblink", transport + "3u"):
            superuser.execute(f"CREATE EXTENSION {extension}".encode())
        with ordinary_role(databases.dsn(name)) as role_dsn:
            owner = connect(role_dsn)
            assert install(owner).transport == "dblink"
            owner.close()
        superuser.close()

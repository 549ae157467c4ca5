"""The operations in migrations written by hand: online, offline, in branches."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import (
    Connection,
    Engine,
    Integer,
    MetaData,
    Text,
    create_engine,
    text,
)
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, mapped_column

from pgembed.alembic import InstallPgembedOp
from pgembed.errors import EmbeddingError, InstallError
from pgembed.postgres.connection import connect
from pgembed.postgres.schema import install
from pgembed.sqlalchemy import Embedding
from tests.harness.models import register_model
from tests.harness.roles import ordinary_role
from tests.integration.alembic.project import Project
from tests.integration.alembic.test_round_trips import EMBEDDED, PLAIN, embedding, model
from tests.integration.sqlalchemy.conftest import url
from tests.integration.sqlalchemy.support import embeddings

CREATE = 'op.create_embedding("docs", "body", model="tiny")'
DROP = 'op.drop_embedding("docs_body")'
TABLE = 'op.execute("CREATE TABLE docs (id int PRIMARY KEY, body text, title text)")'
NO_TABLE = 'op.execute("DROP TABLE docs")'


def alter(changes: str) -> str:
    """Return a migration that changes docs_body."""
    return f'op.alter_embedding("docs_body", {changes})'


def dsn_of(engine: Engine) -> str:
    """Return the DSN of an engine."""
    plain = engine.url.set(drivername="postgresql")
    return plain.render_as_string(hide_password=False)


def run_script(engine: Engine, script: str) -> None:
    """Run a script of offline mode, as psql would."""
    with psycopg.connect(dsn_of(engine), autocommit=True) as connection:
        connection.execute(script.encode())


def forget_versions(project: Project) -> None:
    """Drop the table that Alembic made for itself."""
    with project.engine.begin() as connection:
        connection.execute(text("DROP TABLE IF EXISTS alembic_version"))


def written(project: Project) -> None:
    """Write three migrations: a table, its embedding, a change of it."""
    project.write(1, TABLE, NO_TABLE)
    project.write(2, CREATE, DROP)
    project.write(
        3,
        alter("index='none', on_change='clear'"),
        alter("index='hnsw', on_change='keep'"),
    )


def test_offline_scripts_do_the_same(project: Project) -> None:
    """Upgrade and downgrade as SQL leave the catalogs of the online ones."""
    written(project)
    project.upgrade()
    full = project.catalog()
    project.downgrade("base")
    forget_versions(project)
    emptied = project.catalog()
    run_script(project.engine, project.script())
    assert project.catalog() == full
    run_script(project.engine, project.script("0003:base", down=True))
    forget_versions(project)
    assert project.catalog() == emptied


def test_install_in_a_migration(empty_dsn: str, tmp_path: Path) -> None:
    """With the application's tables around it, and out again."""
    engine = create_engine(url(empty_dsn))
    project = Project(tmp_path / "migrations", engine)
    steps = [TABLE, "op.install_pgembed()", "op.execute('SELECT docs FROM docs')"]
    undo = [NO_TABLE, "op.uninstall_pgembed()"]
    project.write(1, "\n    ".join(steps), "\n    ".join(reversed(undo)))
    project.write(2, "op.install_pgembed()", "pass")
    project.write(3, CREATE, DROP)
    project.upgrade("0001")
    with connect(empty_dsn, purpose="test") as connection:
        assert not install(connection).changed
        register_model(connection)
    project.upgrade()
    assert list(embeddings(engine)) == ["docs_body"]
    project.downgrade("0001")
    with connect(empty_dsn, purpose="test") as connection:
        connection.execute("SELECT pgembed.drop_model('tiny')")
    project.downgrade("base")
    assert not any("pgembed" in row[1] for row in project.catalog())
    engine.dispose()


@pytest.fixture
def others(empty_dsn: str, tmp_path: Path) -> Iterator[Project]:
    """Yield migrations that installed pgembed, which others use now, too."""
    engine = create_engine(url(empty_dsn))
    project = Project(tmp_path / "migrations", engine)
    project.write(1, "op.install_pgembed()", "op.uninstall_pgembed()")
    project.upgrade()
    with connect(empty_dsn, purpose="test") as connection:
        register_model(connection)
        connection.execute("CREATE TABLE theirs (id int PRIMARY KEY, body text)")
        connection.execute("SELECT pgembed.create_embedding('theirs', 'body', 'tiny')")
    yield project
    engine.dispose()


def is_installed(project: Project) -> bool:
    """Whether the database has pgembed."""
    return any("pgembed" in row[1] for row in project.catalog())


def test_what_others_use_stays(
    others: Project, caplog: pytest.LogCaptureFixture
) -> None:
    """A downgrade does not take away their models and embeddings."""
    others.downgrade("base")
    assert list(embeddings(others.engine)) == ["theirs_body"]
    assert "still embedding theirs_body, model tiny: op.uninst" in caplog.text
    others.upgrade()
    with others.engine.begin() as connection:
        connection.execute(text("SELECT pgembed.drop_embedding('theirs_body')"))
    others.downgrade("base")
    assert "still model tiny: op.uninstall_pgembed(force=True)" in caplog.text
    assert is_installed(others)


def test_what_others_use_stays_offline(others: Project) -> None:
    run_script(others.engine, others.script("0001:base", down=True))
    assert list(embeddings(others.engine)) == ["theirs_body"]


def test_uninstalling_by_force(others: Project) -> None:
    others.write(2, "op.uninstall_pgembed(force=True)", "op.install_pgembed()")
    script = others.script("0001:0002")
    others.upgrade()
    assert not is_installed(others)
    others.downgrade("0001")
    assert is_installed(others)
    run_script(others.engine, script)
    assert not is_installed(others)


def test_install_offline(empty_dsn: str, tmp_path: Path) -> None:
    """The script makes what the installer makes, which finds nothing to do."""
    engine = create_engine(url(empty_dsn))
    project = Project(tmp_path / "migrations", engine)
    project.write(1, "op.install_pgembed()\n    " + TABLE, "op.uninstall_pgembed()")
    run_script(engine, project.script())
    with connect(empty_dsn, purpose="test") as connection:
        assert not install(connection).changed
    run_script(engine, project.script("0001:base", down=True))
    assert not any("pgembed" in row[1] for row in project.catalog())
    engine.dispose()


def test_install_offline_where_it_is(engine: Engine, tmp_path: Path) -> None:
    """Nothing is changed, and the error says what to do."""
    project = Project(tmp_path / "migrations", engine)
    project.write(1, TABLE + "\n    op.install_pgembed()", "pass")
    with pytest.raises(psycopg.errors.RaiseException, match="already here") as raised:
        run_script(engine, project.script())
    hint = raised.value.diag.message_hint
    assert hint is not None
    assert "Leave op.install_pgembed() out" in hint
    assert not any("docs" in row[1] for row in project.catalog())


def test_install_offline_equals_install_online(
    empty_dsn: str, engine: Engine, tmp_path: Path
) -> None:
    """The catalogs are the same."""
    other = create_engine(url(empty_dsn))
    project = Project(tmp_path / "migrations", other)
    project.write(1, "op.install_pgembed()", "op.uninstall_pgembed()")
    run_script(other, project.script())
    with other.begin() as connection:
        connection.execute(text("DROP TABLE alembic_version"))
    assert project.catalog() == Project(tmp_path / "other", engine).catalog()
    other.dispose()


def test_autogenerate_installs_pgembed(empty_dsn: str, tmp_path: Path) -> None:
    """Where models have embeddings and the database has no pgembed."""
    engine = create_engine(url(empty_dsn))
    project = Project(tmp_path / "migrations", engine)
    text_ = project.revise(EMBEDDED(), 1)
    up, down = text_.partition("def upgrade")[2].split("def downgrade")
    assert up.index("op.install_pgembed()") < up.index("op.create_table")
    assert down.index("op.drop_table") < down.index("op.uninstall_pgembed()")
    with pytest.raises(EmbeddingError, match="pgembed model add tiny"):
        project.upgrade()
    assert not any("pgembed" in row[1] for row in project.catalog())
    engine.dispose()


def test_what_is_written(project: Project) -> None:
    """The text of migrations is what one would write by hand."""
    project.revise(PLAIN(), 1)
    project.upgrade()
    made = project.revise(EMBEDDED(), 2)
    assert "import pgembed.alembic\n" in made
    assert "    op.create_embedding('article', 'body', model='tiny')\n" in made
    assert "    op.drop_embedding('article_body')\n" in made
    assert "VECTOR" not in made
    project.upgrade()
    changed = project.revise(model(body_embedding=embedding(index="none"))(), 3)
    assert "op.alter_embedding('article_body', index='none')" in changed
    assert "op.alter_embedding('article_body', index='hnsw')" in changed
    moved = project.differences(model(body_embedding=embedding(name="other"))())
    assert [each[0] for each in moved] == ["remove_embedding", "add_embedding"]


def test_indexes_of_workers_are_no_difference(project: Project) -> None:
    """Nor are the jobs, triggers and functions of embeddings."""
    metadata = model(body_embedding=embedding(), parts=embedding(
        chunk_tokens=8, name="parts"))()  # fmt: skip
    project.revise(metadata, 1)
    project.upgrade()
    with psycopg.connect(dsn_of(project.engine), autocommit=True) as connection:
        rows = connection.execute(
            "SELECT s.statement FROM pgembed.embedding AS e, "
            "LATERAL pgembed._index_statements(e.id) AS s"
        ).fetchall()
        assert len(rows) == 2
        for (statement,) in rows:
            connection.execute(statement)
    assert project.differences(metadata) == []
    dropped = project.revise(MetaData(), 2)
    assert dropped.count("op.drop_embedding") == 2
    gone = [line for line in dropped.splitlines() if "op.drop_index" in line]
    assert len(gone) == 1
    assert "ix_article_body" in gone[0]
    project.upgrade()
    assert project.differences(MetaData()) == []


def test_indexes_on_advice_are_no_difference(project: Project) -> None:
    """Those that pgembed advise creates; another one is dropped, as ever."""
    project.revise(EMBEDDED(), 1)
    project.upgrade()
    with project.engine.begin() as connection:
        for target, definition in (
            ('{"title": {"eq": "a"}}', "USING hnsw (body_embedding vector_l2_ops)"),
            ('["id"]', "(id) INCLUDE (body_embedding)"),
        ):
            name = connection.scalar(
                text(
                    "SELECT pgembed._advised_name(e, :target) FROM pgembed.embedding e"
                ),
                {"target": target},
            )
            connection.execute(text(f"CREATE INDEX {name} ON article {definition}"))
    assert project.differences(EMBEDDED()) == []
    with project.engine.begin() as connection:
        connection.execute(text("CREATE INDEX pgembed_mine ON article (title)"))
    (found,) = project.differences(EMBEDDED())
    assert (found[0], found[1].name) == ("remove_index", "pgembed_mine")


def test_mapped_partitions_keep_their_vectors(project: Project) -> None:
    """A class of their own need not know what they have of the partitioned table."""

    class Base(DeclarativeBase):
        pass

    class Article(Base):
        __tablename__ = "article"
        year = mapped_column(Integer, primary_key=True)
        body = mapped_column(Text)
        body_embedding = Embedding("body", model="tiny")

    class Part(Base):
        __tablename__ = "article_1"
        year = mapped_column(Integer, primary_key=True)
        body = mapped_column(Text)

    statements = "SELECT s.statement FROM pgembed._index_statements(1) AS s"
    with psycopg.connect(dsn_of(project.engine), autocommit=True) as connection:
        connection.execute(
            """
            CREATE TABLE article (year int PRIMARY KEY, body text)
                PARTITION BY RANGE (year);
            CREATE TABLE article_1 PARTITION OF article FOR VALUES FROM (1) TO (9);
            SELECT pgembed.create_embedding('article', 'body', 'tiny');
            """
        )
        while rows := connection.execute(statements).fetchall():
            connection.execute(rows[0][0])
            assert project.differences(Base.metadata) == []
        connection.execute("CREATE INDEX mine ON article_1 (body)")
    (found,) = project.differences(Base.metadata)
    assert (found[0], found[1].name) == ("remove_index", "mine")


def test_other_tables_keep_their_embeddings(project: Project) -> None:
    """Embeddings of tables that are not in the models are nobody's business."""
    with project.engine.begin() as connection:
        connection.execute(text("CREATE TABLE mine (id int PRIMARY KEY, body text)"))
        connection.execute(
            text("SELECT pgembed.create_embedding('mine', 'body', 'tiny')")
        )

    def include(item: Any, name: str, kind: str, reflected: bool, other: Any) -> bool:
        return not (kind == "table" and name == "mine")

    project.options["include_object"] = include
    project.revise(PLAIN(), 1)
    project.upgrade()
    assert project.differences(PLAIN()) == []
    assert list(embeddings(project.engine)) == ["mine_body"]


def test_branches(project: Project) -> None:
    """Two branches, each with embeddings, merged and parted again."""
    project.write(1, TABLE, NO_TABLE)
    project.write(2, CREATE, DROP, head="0001", branch_label="texts")
    project.write(
        3,
        'op.create_embedding("docs", "title", model="tiny", index="none")',
        'op.drop_embedding("docs_title")',
        head="0001",
        splice=True,
        branch_label="titles",
    )
    project.upgrade("texts@head")
    assert list(embeddings(project.engine)) == ["docs_body"]
    project.upgrade("heads")
    assert list(embeddings(project.engine)) == ["docs_body", "docs_title"]
    project.downgrade("texts@0001")
    assert list(embeddings(project.engine)) == ["docs_title"]
    project.downgrade("base")
    assert embeddings(project.engine) == {}


def test_vectors_survive_another_content(project: Project) -> None:
    """Until the new ones are there; with another model they do not."""
    project.write(1, TABLE, NO_TABLE)
    project.write(2, CREATE, DROP)
    project.write(3, alter("content='title'"), alter("content='body'"))
    project.write(4, alter("storage='halfvec'"), alter("storage='vector'"))
    project.upgrade("0002")
    with project.engine.begin() as connection:
        connection.execute(text("INSERT INTO docs VALUES (1, 'a', 'b', '[1,2,3]')"))
    project.upgrade("0003")
    count = text("SELECT count(body_embedding) FROM docs")
    pending = text("SELECT sum(pending) FROM pgembed.embedding_status")
    with project.engine.begin() as connection:
        connection.execute(text("SELECT pgembed._work()"))
        assert connection.scalar(count) == 1
        assert connection.scalar(pending) == 1
    project.upgrade("0004")
    with project.engine.begin() as connection:
        assert connection.scalar(count) == 0


def test_a_column_that_gets_another_type(project: Project) -> None:
    """Between the two statements of the README."""
    steps = (
        'op.execute("DROP TRIGGER pgembed_1_update ON docs")',
        'op.alter_column("docs", "id", type_=sa.BigInteger())',
        "op.execute(\"SELECT pgembed.reconcile('docs_body')\")",
    )
    project.write(1, f"{TABLE}\n    {CREATE}", "pass")
    project.write(2, "\n    ".join(("import sqlalchemy as sa", *steps)), "pass")
    project.upgrade()
    with project.engine.begin() as connection:
        connection.execute(text("INSERT INTO docs VALUES (5000000000, 'a', 'b')"))
        keys = connection.scalars(text("SELECT id FROM pgembed.job_1")).all()
        assert keys == [5_000_000_000]
        assert connection.scalar(text("SELECT blocked FROM pgembed.embedding")) is None


CHUNKED = CREATE.replace(")", ", chunk_tokens=8)")
GRANTED = """
    SELECT c.relname, p.attname, x.grantor, x.grantee, x.privilege_type, x.is_grantable
    FROM pg_class c, LATERAL (
        SELECT NULL, c.relacl UNION ALL SELECT a.attname, a.attacl
        FROM pg_attribute a WHERE a.attrelid = c.oid AND NOT a.attisdropped
    ) AS p (attname, acl), aclexplode(p.acl) AS x
    WHERE c.relname LIKE 'docs%' ORDER BY 1, 2, 3, 4, 5
"""


def granted_anew(project: Project, change: str, *statements: str) -> list[list[Any]]:
    """Return what is granted on the tables before and after a change."""
    project.write(2, alter(change), "pass")
    project.upgrade("0001")
    found = []
    with project.engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))
        found.append(list(connection.execute(text(GRANTED))))
    project.upgrade()
    with project.engine.begin() as connection:
        found.append(list(connection.execute(text(GRANTED))))
    return found


@pytest.mark.parametrize(
    ("create", "change"),
    [
        (CREATE, "storage='halfvec'"),
        (CHUNKED, "storage='halfvec'"),
        (CHUNKED, "content='title'"),
        (CHUNKED, "chunk_tokens=16"),
    ],
)
@pytest.mark.parametrize("is_guarded", [False, True])
def test_what_was_granted_is_granted_again(
    project: Project, create: str, change: str, is_guarded: bool
) -> None:
    table = "docs" if create == CREATE else "docs_body_chunk"
    vector = "body_embedding" if create == CREATE else "embedding"
    project.write(1, f"{TABLE}\n    {create}", "pass")
    with ordinary_role(dsn_of(project.engine)) as role_dsn:
        role = conninfo_to_dict(role_dsn)["user"]
        before, after = granted_anew(
            project,
            change,
            f"ALTER TABLE docs {'EN' if is_guarded else 'DIS'}ABLE ROW LEVEL SECURITY",
            "SELECT pgembed.reconcile('docs_body')",
            f"GRANT SELECT ON {table} TO PUBLIC",
            f"GRANT SELECT, DELETE ON {table} TO {role} WITH GRANT OPTION",
            f"GRANT SELECT (id, {vector}) ON {table} TO PUBLIC",
            f"GRANT UPDATE ({vector}) ON {table} TO {role} WITH GRANT OPTION",
        )
    assert before == after
    assert len(after) > 6


def test_grants_do_not_outlive_policies(project: Project) -> None:
    """Which go with the chunks that they were to hide."""
    project.write(1, f"{TABLE}\n    {CHUNKED}", "pass")
    before, after = granted_anew(
        project,
        "storage='halfvec'",
        "ALTER TABLE docs_body_chunk ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY mine ON docs_body_chunk USING (chunk = 0)",
        "GRANT SELECT ON docs_body_chunk TO PUBLIC",
    )
    assert len(before) > 1
    assert after == []


def test_what_was_granted_on_a_column_says_nothing_about_chunks(
    project: Project,
) -> None:
    project.write(1, f"{TABLE}\n    {CREATE}", "pass")
    grant = "GRANT SELECT (body_embedding) ON docs TO PUBLIC"
    before, after = granted_anew(project, "chunk_tokens=8", grant)
    assert (len(before), after) == (1, [])


@pytest.mark.parametrize(
    "change", ["content='title'", "storage='halfvec'", "index='none'"]
)
@pytest.mark.parametrize("paused", [False, True])
def test_a_paused_embedding_stays_paused(
    project: Project, change: str, paused: bool
) -> None:
    project.write(1, f"{TABLE}\n    {CREATE}", f"{DROP}\n    {NO_TABLE}")
    project.write(2, alter(change), "pass")
    project.upgrade("0001")
    with project.engine.begin() as connection:
        if paused:
            connection.execute(text("SELECT pgembed.pause_embedding('docs_body')"))
    project.upgrade()
    with project.engine.begin() as connection:
        found = connection.scalar(text("SELECT paused FROM pgembed.embedding"))
    assert found is paused


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        (alter("idx='none'"), "changes content, model, .*idx was given"),
        ('op.alter_embedding("docs_body")', "nothing was given"),
        (alter("index='flat'"), "index is 'flat'.*hnsw, ivfflat, none"),
        ('op.drop_embedding("other")', "'other'.*docs_body"),
        ('op.create_embedding("docs", "bdy", model="tiny")', "no column bdy"),
        ('op.create_embedding("docs", "body", model="no")', "pgembed model add no"),
        (CREATE, "already an embedding 'docs_body'"),
    ],
)
def test_errors(project: Project, statement: str, message: str) -> None:
    """They say what to do, and the migration changes nothing."""
    project.write(1, f"{TABLE}\n    {CREATE}", f"{DROP}\n    {NO_TABLE}")
    project.write(2, statement, "pass")
    project.upgrade("0001")
    before = project.catalog()
    with pytest.raises(EmbeddingError, match=f"(?s){message}"):
        project.upgrade()
    assert project.catalog() == before


def test_a_database_without_pgembed(empty_dsn: str, tmp_path: Path) -> None:
    """The error names both remedies."""
    engine = create_engine(url(empty_dsn))
    project = Project(tmp_path / "migrations", engine)
    project.write(1, f"{TABLE}\n    {CREATE}", "pass")
    with pytest.raises(EmbeddingError, match=r"'pgembed install', or op\.install_pge"):
        project.upgrade()
    project.write(2, "op.uninstall_pgembed()", "pass", head="0001")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE alembic_version (version_num text)"))
        connection.execute(text("INSERT INTO alembic_version VALUES ('0001')"))
    with pytest.raises(InstallError, match="no installation"):
        project.upgrade()
    engine.dispose()


def test_an_asynchronous_environment(empty_dsn: str) -> None:
    """The installer waits for the server itself."""

    def upgrade(connection: Connection) -> None:
        context = MigrationContext.configure(connection)
        with context.begin_transaction():
            Operations(context).invoke(InstallPgembedOp())

    async def run() -> None:
        engine = create_async_engine(url(empty_dsn))
        try:
            async with engine.connect() as connection:
                await connection.run_sync(upgrade)
        finally:
            await engine.dispose()

    with pytest.raises(InstallError, match=r"asynchronous.*'pgembed install'.*engine"):
        asyncio.run(run())


def test_irreversible_operations_say_so() -> None:
    """A drop or a change by hand does not know what was before."""
    from pgembed.alembic import AlterEmbeddingOp, DropEmbeddingOp

    for operation in (DropEmbeddingOp("x"), AlterEmbeddingOp("x", {"index": "none"})):
        with pytest.raises(EmbeddingError, match="by hand"):
            operation.reverse()


def test_alembic_itself_needs_no_plug_in(project: Project) -> None:
    """The program, an env.py that imports only the models: nothing is lost."""
    folder = project.folder.parent
    (folder / "models.py").write_text(
        "from sqlalchemy import orm\n"
        "from pgembed.sqlalchemy import Embedding\n"
        "class Base(orm.DeclarativeBase): pass\n"
        "class Page(Base):\n"
        "    __tablename__ = 'page'\n"
        "    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)\n"
        "    body: orm.Mapped[str]\n"
        "    body_embedding = Embedding('body', model='tiny')\n"
    )
    (project.folder / "env.py").write_text(
        "import sqlalchemy\n"
        "from alembic import context\n"
        "from models import Base\n"
        f"engine = sqlalchemy.create_engine({url(dsn_of(project.engine))!r})\n"
        "with engine.connect() as connection:\n"
        "    context.configure(connection=connection, target_metadata=Base.metadata)\n"
        "    with context.begin_transaction():\n"
        "        context.run_migrations()\n"
    )
    (folder / "alembic.ini").write_text(
        "[alembic]\nscript_location = migrations\nprepend_sys_path = .\n"
        "path_separator = os\n"
    )
    for words in (["revision", "--autogenerate"], ["upgrade", "head"], ["check"]):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "alembic", *words],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert list(embeddings(project.engine)) == ["page_body"]

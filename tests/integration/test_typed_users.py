# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who uses a column as text, asked of a real server: what passes, what fails, and what cannot be seen."""

from __future__ import annotations

import contextlib
import json
import pathlib
import typing as t
import uuid

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import ConnectionOptions
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import PlanError
from ansible_collections.surefoot.dbops.plugins.module_utils._module import Invocation
from ansible_collections.surefoot.dbops.plugins.module_utils._plan import load_plan
from ansible_collections.surefoot.dbops.plugins.module_utils._preflight import Finding, Wanted, preflight
from ansible_collections.surefoot.dbops.plugins.module_utils._status import read_status
from ansible_collections.surefoot.dbops.plugins.modules import postgresql_backup
from ansible_collections.surefoot.dbops.tests.support.migrations import run
from ansible_collections.surefoot.dbops.tests.support.pgserver import Database
from ansible_collections.surefoot.dbops.tests.support.rbac import SET, fill

pytestmark = pytest.mark.versions

CHANGES = ({"table": "public.profiles", "column": "tenant_id", "to": "uuid"},)
TENANT = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"


@pytest.fixture
def rbac(database: Database) -> Database:
    """The tables of the baseline, with statements counted from now on."""
    if not database.query("SELECT 1 FROM pg_available_extensions WHERE name = 'pg_stat_statements'"):
        pytest.skip("this PostgreSQL comes without pg_stat_statements")
    database.query("CREATE SCHEMA statistics; CREATE EXTENSION pg_stat_statements SCHEMA statistics")
    run(SET, database, only=("000_baseline",), include_manual=("000_baseline",))
    return database


def finding(database: Database, changes: t.Sequence[t.Mapping[str, str]] = CHANGES, **params: t.Any) -> Finding:
    options = ConnectionOptions.from_params({**database.params, **params})
    found = preflight(options, Wanted(type_changes=changes)).findings
    return next(item for item in found if item.criterion == "preflight.typed_users")


def kinds(found: Finding) -> set[str]:
    return {kind for user in found.measured["found"] for kind in user["kinds"]}


def use(database: Database) -> None:
    """What works with either type."""
    database.query("SELECT id, email FROM profiles WHERE tenant_id = %s", (TENANT,))
    database.query("SELECT p.id FROM profiles p JOIN user_roles r ON r.user_id = p.id WHERE lower(p.email) = 'a'")
    database.query("INSERT INTO profiles (tenant_id, email) VALUES (%s, 'a@example.com')", (TENANT,))


def test_clients_that_use_the_column_as_it_is_pass(rbac: Database) -> None:
    use(rbac)
    rbac.query(
        "CREATE FUNCTION members(uuid) RETURNS bigint LANGUAGE sql AS"
        " 'SELECT count(*) FROM profiles WHERE tenant_id::uuid = $1'"
    )
    found = finding(rbac)
    assert found.verdict == "pass", found.line()
    assert found.measured["statements"] == 2 and found.measured["functions"] == 1
    assert found.measured["found"] == []


@pytest.mark.parametrize(
    ("kind", "query"),
    [
        ("cast", "SELECT id FROM profiles WHERE tenant_id::text = 'geheim'"),
        ("text value", "SELECT id FROM profiles p WHERE p.tenant_id = 'geheim'::text"),
        ("pattern", "SELECT id FROM profiles WHERE tenant_id LIKE 'geheim%'"),
        ("pattern", "DELETE FROM profiles WHERE tenant_id ~ 'geheim'"),
        ("concatenation", "SELECT 'geheim' || tenant_id FROM profiles"),
        ("text function", "UPDATE profiles SET email = email WHERE lower(tenant_id) = 'geheim'"),
        # The server keeps the text of a block as it was typed, and no other statement's on every version.
        ("literal", "DO $$BEGIN PERFORM FROM profiles WHERE tenant_id = 'geheim'; END$$"),
        ("every column", "SELECT * FROM profiles"),
    ],
)
def test_each_kind_of_use_fails_and_shows_no_literal(kind: str, query: str, rbac: Database) -> None:
    use(rbac)
    rbac.query(query)
    found = finding(rbac)
    assert found.verdict == "fail" and kinds(found) == {kind}, found.line()
    (user,) = found.measured["found"]
    assert user["calls"] >= 1 and "profiles" in user["statement"]
    shown = json.dumps([found.to_dict(), found.evidence().to_dict()], default=str)
    assert "geheim" not in shown and kind in found.details["kinds"]


@pytest.mark.parametrize(
    ("kind", "definition"),
    [
        ("pattern", "f(uuid) RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM profiles WHERE tenant_id ~ $$x$$'"),
        ("text signature", "f(t text) RETURNS int LANGUAGE sql AS 'SELECT 1 FROM profiles WHERE tenant_id = t'"),
        ("literal", "f() RETURNS int LANGUAGE sql AS $$SELECT 1 FROM profiles WHERE tenant_id = 'acme'$$"),
        (
            "cast",
            "f() RETURNS void LANGUAGE plpgsql AS $$BEGIN EXECUTE 'DELETE FROM profiles WHERE tenant_id::text = $1'"
            " USING 'x'; END$$",
        ),
        # By the catalog, change_type refuses this one as well; the rehearsal would be the first to say so.
        (
            "text function",
            "f() RETURNS bigint LANGUAGE sql BEGIN ATOMIC SELECT count(*) FROM profiles WHERE lower(tenant_id) = 'x';"
            " END",
        ),
    ],
)
def test_functions_are_named(kind: str, definition: str, rbac: Database) -> None:
    use(rbac)
    rbac.query(f"CREATE FUNCTION {definition}")
    found = finding(rbac)
    assert found.verdict == "fail" and kind in kinds(found), found.line()
    (user,) = found.measured["found"]
    assert user["name"].startswith("f(") and "statement" not in user


def test_a_trigger_of_the_table_needs_no_name_of_it(rbac: Database) -> None:
    use(rbac)
    rbac.query(
        "CREATE FUNCTION guard() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN IF NEW.tenant_id LIKE 'x%%' THEN RETURN NULL; END IF; RETURN NEW; END$$"
    )
    assert finding(rbac).verdict == "pass"
    rbac.query("CREATE TRIGGER g BEFORE INSERT ON profiles FOR EACH ROW EXECUTE FUNCTION guard()")
    found = finding(rbac)
    assert found.verdict == "fail" and found.measured["found"][0]["name"] == "guard()"


def test_another_database_and_another_table_say_nothing(rbac: Database) -> None:
    use(rbac)
    rbac.query("SELECT * FROM user_roles WHERE tenant_id::text LIKE 'x'")
    rbac.query("CREATE SCHEMA audit; CREATE TABLE audit.profiles (tenant_id text)")
    rbac.query("SELECT id FROM profiles, audit.profiles AS a WHERE a.tenant_id LIKE 'x'")
    assert finding(rbac).verdict == "pass"


def test_what_is_not_counted_is_not_measured(rbac: Database) -> None:
    silent = finding(rbac)
    assert (
        silent.verdict == "not_measured"
        and "knows no statement that uses the column of public.profiles" in silent.summary
    )
    use(rbac)
    role = f"blind_{uuid.uuid4().hex[:8]}"
    rbac.query(f"CREATE ROLE {role} LOGIN")
    try:
        blind = finding(rbac, login_user=role)
        assert blind.verdict == "not_measured" and "GRANT pg_monitor" in blind.summary
    finally:
        rbac.query(f"DROP ROLE {role}")
    rbac.query("DROP EXTENSION pg_stat_statements")
    missing = finding(rbac)
    assert missing.verdict == "not_measured" and "CREATE EXTENSION pg_stat_statements" in missing.remedy
    # The gate shows no more than what was measured.
    assert "shared_preload_libraries" in missing.evidence().measured


def test_no_change_of_type_and_a_table_to_be_made_ask_nothing(rbac: Database) -> None:
    assert finding(rbac, ()).verdict == "not_applicable"
    later = ({"table": "public.later", "column": "a", "to": "uuid"},)
    assert finding(rbac, later).verdict == "not_applicable"
    with pytest.raises(PlanError, match="has no schema"):
        Wanted.from_params(
            {"database_free_space": None, "tables": [], "relations_exist": [], "type_changes": [{"table": "later"}]}
        )


def test_the_plan_says_which_columns_and_our_own_statements_are_no_clients(rbac: Database) -> None:
    fill(rbac, 200, every=50)
    use(rbac)

    def changes() -> list[dict[str, str]]:
        status = read_status(
            load_plan(str(SET)),
            ConnectionOptions.from_params(rbac.params),
            ledger_schema="surefoot",
            to=None,
            only=(),
            include_manual=(),
            history=0,
            validate=False,
            allow_session_pooler=False,
        )
        return t.cast("list[dict[str, str]]", status.to_dict()["type_changes"])

    assert changes() == list(CHANGES)
    run(SET, rbac)
    assert changes() == []
    run(SET, rbac, state="rolled_back", to="1_1_profiles_tenant_uuid")
    assert changes() == list(CHANGES)
    found = finding(rbac, changes())
    # Nothing of the run, its sweeps, checks and its way back is taken for a client.
    assert found.verdict == "pass", found.line()


def test_a_backup_of_ours_is_no_client(rbac: Database, tmp_path: pathlib.Path) -> None:
    """Else a NO-GO for want of statements would be a GO when the run is tried again."""
    rbac.query("INSERT INTO tenants VALUES (%s, 'a')", (TENANT,))
    given = {"dest": str(tmp_path), "hashes": "full", "bindir": rbac.server.bindir}
    spec = postgresql_backup.argument_spec().argument_spec
    values = {name: option.get("default") for name, option in spec.items()}
    done = Invocation({**values, **rbac.params, **given}, check_mode=False, diff=False).perform(postgresql_backup.run)
    assert done["changed"], done
    read = rbac.query("SELECT query FROM statistics.pg_stat_statements WHERE query ~ 'tenant_id'")
    assert any("hashtextextended" in row[0] for row in read) and any(row[0].startswith("COPY") for row in read)
    assert finding(rbac).verdict == "not_measured"


def test_a_run_and_its_way_back_are_no_clients(rbac: Database) -> None:
    """The same, with every text that a run sends."""
    rbac.query("INSERT INTO tenants VALUES (%s, 'a')", (TENANT,))
    run(SET, rbac)
    run(SET, rbac, state="rolled_back", to="1_1_profiles_tenant_uuid")
    assert rbac.scalar("SELECT count(*) FROM statistics.pg_stat_statements WHERE query ~ 'pg_typeof.*tenant_id'") >= 1
    assert finding(rbac).verdict == "not_measured"


def test_prepared_statements_of_every_column_fail_once_after_the_swap(rbac: Database) -> None:
    """Why the kind is listed: what the remedy says happens."""
    fill(rbac, 20, every=1000)
    with contextlib.closing(rbac.connect()) as client, client.cursor() as cursor:
        cursor.execute("PREPARE everything AS SELECT * FROM profiles")
        cursor.execute("EXECUTE everything")
        assert kinds(finding(rbac)) == {"every column"}
        run(SET, rbac)
        with pytest.raises(Exception, match="cached plan must not change result type"):
            cursor.execute("EXECUTE everything")

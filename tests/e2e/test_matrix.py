# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rollback matrix: each class of failure provoked on a real server, and the state it promises."""

from __future__ import annotations

import contextlib
import dataclasses
import http.server
import threading
import typing as t

import psycopg2
import pytest

from ansible_collections.surefoot.dbops.tests.support.pgserver import running_server, temporary_database

from .conftest import App, Outcome

ORDERS = "CREATE TABLE public.orders (id bigint PRIMARY KEY, amount numeric NOT NULL);"
DROP_ORDERS = "DROP TABLE public.orders;"


@dataclasses.dataclass
class Service:
    """An application: it asks its database for each answer, and says with a status what came of it."""

    port: int

    def endpoint(self, name: str) -> dict[str, t.Any]:
        return {"name": name, "url": f"http://127.0.0.1:{self.port}/{name}"}


@contextlib.contextmanager
def serving(queries: t.Mapping[str, str], dsn: str, *, denied: int = 403) -> t.Iterator[Service]:
    """``queries``: path -> what is asked of the database. No privilege is ``denied``, any other error a 500."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status = 200
            try:
                with contextlib.closing(psycopg2.connect(dsn)) as connection, connection.cursor() as cursor:
                    cursor.execute(queries[self.path.lstrip("/")])
                    connection.commit()
            except psycopg2.errors.InsufficientPrivilege:
                status = denied
            except psycopg2.Error:
                status = 500
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_words: t.Any) -> None:
            """Not on the terminal."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Service(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()


def assert_rescued(app: App, outcome: Outcome, *, kind: str, before: str, rolled_back: list[str]) -> dict[str, t.Any]:
    """The state that `roll back now` promises; returns run.json."""
    assert outcome.returncode != 0, outcome.output
    assert app.applied() == []
    assert app.schema() == before
    run = app.last_run()
    assert run["outcome"] == "rescued", outcome.output
    assert kind in [failure["kind"] for failure in run["judgement"]["failures"]]
    assert run["judgement"]["decision"] == "roll_back"
    assert run["rolled_back"] == rolled_back
    assert "ROLLED BACK what this run had applied: " + ", ".join(rolled_back) in outcome.summary()
    assert kind in outcome.summary()
    assert "To roll back" not in outcome.summary()
    return run


def assert_stays(app: App, outcome: Outcome, *, kind: str, decision: str, applied: list[str]) -> dict[str, t.Any]:
    """What was applied is there, and said to be; returns run.json."""
    assert app.applied() == applied
    run = app.last_run()
    assert run["applied"] == applied
    assert run["rolled_back"] == []
    assert kind in [failure["kind"] for failure in run["judgement"]["failures"]], run["judgement"]
    assert run["judgement"]["decision"] == decision
    assert kind in outcome.summary()
    assert app.evidence()["rescue.decision"]["verdict"] == "fail"
    return run


# --- syntax error ----------------------------------------------------------------------------------------------------


def test_a_syntax_error_in_the_second_of_three_takes_the_first_back(app: App) -> None:
    before = app.schema()
    app.migration("001_orders", ORDERS, DROP_ORDERS)
    app.migration("002_broken", "ALTER TABLE public.orders ADD COLUM note text;", "SELECT 1;")
    app.migration("003_later", "CREATE TABLE public.later ();", "DROP TABLE public.later;")

    outcome = app.migrate()

    assert_rescued(app, outcome, kind="syntax_error", before=before, rolled_back=["001_orders"])
    assert "002_broken.sql:1:" in outcome.summary()
    assert app.evidence()["rescue.decision"]["measured"] == {"decision": "roll_back", "severity": "CRITICAL"}


def test_a_syntax_error_that_took_itself_back_leaves_nothing_to_decide(app: App) -> None:
    before = app.schema()
    app.migration("001_broken", ORDERS + "\nALTER TABLE public.orders ADD COLUM note text;", DROP_ORDERS)

    outcome = app.migrate()

    assert outcome.returncode != 0
    assert app.schema() == before
    run = assert_stays(app, outcome, kind="syntax_error", decision="fix_forward", applied=[])
    assert (run["outcome"], run["failed_phase"]) == ("failed", "migration")
    assert "no migration was applied by this run" in outcome.summary()


def test_what_failed_half_way_outside_a_transaction_is_taken_back_too(app: App) -> None:
    app.database.query("CREATE TABLE public.readings (id bigint, at timestamptz)")
    app.database.query("INSERT INTO public.readings SELECT i % 5, now() FROM generate_series(1, 10) AS i")
    before = app.schema()
    app.migration(
        "001_indexes",
        "CREATE INDEX CONCURRENTLY readings_at ON public.readings (at);\n"
        "CREATE UNIQUE INDEX CONCURRENTLY readings_id ON public.readings (id);",
        "DROP INDEX CONCURRENTLY IF EXISTS public.readings_id;\nDROP INDEX CONCURRENTLY IF EXISTS public.readings_at;",
        transaction=False,
    )
    outcome = app.migrate()
    assert_rescued(app, outcome, kind="syntax_error", before=before, rolled_back=["001_indexes"])


# --- verification ----------------------------------------------------------------------------------------------------


def test_a_check_that_fails_after_the_commit_takes_everything_back(app: App) -> None:
    before = app.schema()
    app.migration("001_orders", ORDERS, DROP_ORDERS)
    check = {"name": "an order is refused without an amount", "statement": "INSERT INTO public.orders VALUES (1, 0)"}
    app.migration(
        "002_amounts",
        "ALTER TABLE public.orders ALTER COLUMN amount SET DEFAULT 0;",
        "ALTER TABLE public.orders ALTER COLUMN amount DROP DEFAULT;",
        verify=[{**check, "expect_error": "check_violation", "when": "after_commit"}],
    )
    outcome = app.migrate()
    run = assert_rescued(
        app, outcome, kind="verification_failed", before=before, rolled_back=["002_amounts", "001_orders"]
    )
    assert check["name"] in run["judgement"]["line"]


def test_a_check_of_what_is_encrypted_has_a_class_of_its_own(app: App) -> None:
    before = app.schema()
    app.migration("001_orders", ORDERS, DROP_ORDERS)
    app.migration(
        "002_cards",
        "CREATE TABLE public.cards (number text);\nINSERT INTO public.cards VALUES ('4111111111111111');",
        "DROP TABLE public.cards;",
        verify=[
            {
                "name": "no card number can be read",
                "criterion": "app.cards.encrypted",
                "query": "SELECT count(*) FROM public.cards WHERE number ~ '^[0-9]+$'",
                "expect": {"scalar": 0},
                "when": "after_commit",
            }
        ],
    )
    outcome = app.migrate()
    run = assert_rescued(
        app, outcome, kind="encryption_not_working", before=before, rolled_back=["002_cards", "001_orders"]
    )
    assert run["judgement"]["severity"] == "HIGH"


# --- the application -------------------------------------------------------------------------------------------------


@pytest.fixture
def reader(app: App) -> t.Iterator[str]:
    """How the application connects: a role that may read a table of before the migration."""
    role = f"reader_{app.database.name}"
    app.database.query("CREATE TABLE public.accounts (id bigint PRIMARY KEY, name text)")
    app.database.query(f"CREATE ROLE {role} LOGIN")
    app.database.query(f"GRANT SELECT ON public.accounts TO {role}")
    server = app.database.server
    yield f"host={server.host} port={server.port} user={role} dbname={app.database.name}"
    app.database.query(f"DROP OWNED BY {role}")
    app.database.query(f"DROP ROLE {role}")


QUERIES = {"accounts": "SELECT id, name FROM public.accounts", "time": "SELECT now()"}


def test_queries_that_are_denied_take_everything_back(app: App, reader: str) -> None:
    before = app.schema()
    role = reader.partition("user=")[2].partition(" ")[0]
    app.migration("001_orders", ORDERS, DROP_ORDERS)
    app.migration(
        "002_lock_down",
        f"REVOKE ALL ON public.accounts FROM {role};",
        f"GRANT SELECT ON public.accounts TO {role};",
    )
    with serving(QUERIES, reader) as service:
        outcome = app.migrate(
            surefoot_endpoints=[service.endpoint("accounts"), service.endpoint("time")], surefoot_observe_requests=2
        )
    assert_rescued(app, outcome, kind="queries_denied", before=before, rolled_back=["002_lock_down", "001_orders"])
    assert app.evidence()["http.no_new_403"]["verdict"] == "fail"


def test_what_is_denied_and_hidden_by_the_application_stands_in_the_server_log(app: App) -> None:
    """The application answers 200 all the same."""
    settings = {"logging_collector": True, "log_destination": "csvlog"}
    with running_server(settings=settings) as server, temporary_database(server) as database:
        app.database = database
        database.query("CREATE TABLE public.accounts (id bigint PRIMARY KEY, name text)")
        database.query("CREATE ROLE reader LOGIN")
        database.query("GRANT SELECT ON public.accounts TO reader")
        before = app.schema()
        app.migration(
            "001_lock_down",
            "REVOKE ALL ON public.accounts FROM reader;",
            "GRANT SELECT ON public.accounts TO reader;",
        )
        dsn = f"host={server.host} port={server.port} user=reader dbname={database.name}"
        with serving(QUERIES, dsn, denied=200) as service:
            outcome = app.migrate(surefoot_endpoints=[service.endpoint("accounts")], surefoot_observe_requests=2)
        run = assert_rescued(app, outcome, kind="queries_denied", before=before, rolled_back=["001_lock_down"])
        assert "serverlog.permission_denied" in run["judgement"]["line"]
        assert app.evidence()["http.no_new_403"]["verdict"] == "pass"


def test_one_endpoint_that_breaks_is_fixed_forward(app: App, reader: str) -> None:
    app.migration(
        "001_rename",
        "ALTER TABLE public.accounts RENAME COLUMN name TO title;",
        "ALTER TABLE public.accounts RENAME COLUMN title TO name;",
    )
    with serving(QUERIES, reader) as service:
        outcome = app.migrate(
            surefoot_endpoints=[service.endpoint("accounts"), service.endpoint("time")], surefoot_observe_requests=2
        )
    assert outcome.returncode != 0
    run = assert_stays(app, outcome, kind="endpoint_broken", decision="fix_forward", applied=["001_rename"])
    assert (run["outcome"], run["failed_phase"]) == ("failed", "probes_after")
    assert "fix forward" in outcome.errors[-1]
    assert "To roll back: ansible-playbook rollback.yml -i staging -e surefoot_to=001_rename" in outcome.summary()


def test_an_endpoint_that_stays_broken_is_no_reason_to_go_back(app: App, reader: str) -> None:
    app.migration("001_orders", ORDERS, DROP_ORDERS)
    with serving({**QUERIES, "old": "SELECT * FROM public.gone"}, reader) as service:
        outcome = app.migrate(surefoot_endpoints=[service.endpoint("old")], surefoot_observe_requests=2)
    assert outcome.returncode != 0
    run = assert_stays(app, outcome, kind="endpoint_broken", decision="fix_forward", applied=["001_orders"])
    assert run["outcome"] == "failed"


# --- slow queries ----------------------------------------------------------------------------------------------------


@pytest.fixture
def looked_up(app: App) -> list[dict[str, str]]:
    """A table with an index, a migration that drops it, and the query that needs it."""
    app.database.query("CREATE TABLE public.events (id bigint, at timestamptz, what text)")
    app.database.query(
        "INSERT INTO public.events SELECT i, now(), repeat('x', 100) FROM generate_series(1, 60000) AS i"
    )
    app.database.query("CREATE INDEX events_id ON public.events (id)")
    app.database.query("VACUUM ANALYZE public.events")
    app.migration("001_no_index", "DROP INDEX public.events_id;", "CREATE INDEX events_id ON public.events (id);")
    return [{"name": "event", "query": "SELECT * FROM public.events WHERE id = 4711"}]


def test_slow_queries_are_monitored_and_the_report_says_so(app: App, looked_up: list[dict[str, str]]) -> None:
    outcome = app.migrate(surefoot_queries=looked_up, surefoot_observe_runs=16)

    assert outcome.returncode == 0, outcome.output
    run = assert_stays(app, outcome, kind="slow_queries", decision="monitor", applied=["001_no_index"])
    assert run["outcome"] == "succeeded"
    report = (app.run_directories()[-1] / "report.html").read_text(encoding="utf-8")
    assert "slow_queries" in report
    assert "Seq Scan" in report


def test_the_policy_overrides_the_matrix(app: App, looked_up: list[dict[str, str]]) -> None:
    before = app.schema()
    outcome = app.migrate(
        policy={"rollback": {"slow_queries": "roll_back"}}, surefoot_queries=looked_up, surefoot_observe_runs=16
    )
    assert_rescued(app, outcome, kind="slow_queries", before=before, rolled_back=["001_no_index"])


def test_a_policy_that_asks_rolls_nothing_back(app: App) -> None:
    app.migration("001_orders", ORDERS, DROP_ORDERS)
    app.migration("002_broken", "SELEC 1;", "SELECT 1;")
    outcome = app.migrate(policy={"rollback": {"syntax_error": "ask"}})
    assert outcome.returncode != 0
    run = assert_stays(app, outcome, kind="syntax_error", decision="ask", applied=["001_orders"])
    assert run["outcome"] == "failed"
    assert "roll back with the rollback playbook, or fix forward" in outcome.errors[-1]
    assert "-e surefoot_to=001_orders" in outcome.summary()


# --- limits ----------------------------------------------------------------------------------------------------------


def test_a_lock_held_longer_than_the_budget_takes_everything_back(app: App) -> None:
    app.database.query("CREATE TABLE public.accounts (id bigint)")
    before = app.schema()
    app.migration("001_orders", ORDERS, DROP_ORDERS)
    app.migration(
        "002_slow",
        "ALTER TABLE public.accounts ADD COLUMN name text;\nSELECT pg_sleep(60);",
        "ALTER TABLE public.accounts DROP COLUMN name;",
    )
    outcome = app.migrate(policy={"lock_budget": "300ms"})
    assert_rescued(app, outcome, kind="lock_budget_exceeded", before=before, rolled_back=["001_orders"])


def test_a_lock_that_cannot_be_had_takes_everything_back(app: App) -> None:
    app.database.query("CREATE TABLE public.accounts (id bigint)")
    before = app.schema()
    app.migration("001_orders", ORDERS, DROP_ORDERS)
    app.migration(
        "002_note",
        "ALTER TABLE public.accounts ADD COLUMN name text;",
        "ALTER TABLE public.accounts DROP COLUMN name;",
        lock_timeout="50ms",
    )
    with contextlib.closing(app.database.connect()) as other, other.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("LOCK TABLE public.accounts IN ROW EXCLUSIVE MODE")
        outcome = app.migrate()
    assert_rescued(app, outcome, kind="lock_budget_exceeded", before=before, rolled_back=["001_orders"])


def test_a_limit_of_the_watch_takes_everything_back(app: App, reader: str) -> None:
    before = app.schema()
    app.migration(
        "001_rename",
        "ALTER TABLE public.accounts RENAME COLUMN name TO title;",
        "ALTER TABLE public.accounts RENAME COLUMN title TO name;",
    )
    app.migration("002_long", "SELECT pg_sleep(60);", "SELECT 1;", statement_timeout="90s")
    with serving(QUERIES, reader) as service:
        outcome = app.migrate(
            policy={"watch_samples": 1},
            surefoot_watch={"interval": "200ms", "endpoints": [{"url": service.endpoint("accounts")["url"]}]},
        )
    assert_rescued(app, outcome, kind="watch_limit", before=before, rolled_back=["001_rename"])
    assert app.evidence()["watch.endpoints"]["verdict"] == "fail"


# --- what a rollback would lose --------------------------------------------------------------------------------------


def test_a_rollback_that_would_lose_too_much_asks_instead(app: App) -> None:
    app.database.query("CREATE TABLE public.clients (id bigint)")
    app.database.query("INSERT INTO public.clients SELECT generate_series(1, 5)")
    app.migration("001_orders", ORDERS, DROP_ORDERS)
    app.migration(
        "002_clients",
        "ALTER TABLE public.clients ADD COLUMN name text;",
        "DROP TABLE public.clients;",
        rollback_loses=["public.clients"],
    )
    app.migration("003_broken", "SELEC 1;", "SELECT 1;")

    outcome = app.migrate(policy={"rollback_max_lost_rows": 4})

    assert outcome.returncode != 0
    run = assert_stays(app, outcome, kind="syntax_error", decision="roll_back", applied=["001_orders", "002_clients"])
    assert run["outcome"] == "failed"
    assert "would lose 5 rows, more than rollback_max_lost_rows (4)" in outcome.errors[-1]
    assert "Nothing was rolled back" in outcome.errors[-1]
    assert "NOT ROLLED BACK: 5 rows would be lost" in outcome.summary()
    assert "-e surefoot_to=001_orders" in outcome.summary()
    assert app.database.scalar("SELECT count(*) FROM public.clients") == 5


def test_what_the_migrations_wrote_themselves_is_dumped_and_no_reason_to_ask(app: App) -> None:
    before = app.schema()
    app.migration("001_orders", ORDERS, DROP_ORDERS, rollback_loses=["public.orders"])
    app.migration("002_first", "INSERT INTO public.orders VALUES (1, 10), (2, 20);", "DELETE FROM public.orders;")
    app.migration("003_broken", "SELEC 1;", "SELECT 1;")

    outcome = app.migrate()

    run = assert_rescued(app, outcome, kind="syntax_error", before=before, rolled_back=["002_first", "001_orders"])
    assert run["lost_tables"] == ["public.orders"]
    dump = app.run_directories()[-1] / "losses" / "public.orders.dump"
    restored = app.run_program("pg_restore", "--data-only", "--file=-", str(dump))
    assert "1\t10\n2\t20\n" in restored


@pytest.mark.parametrize("accepted", [0, 1000])
def test_what_the_application_wrote_since_is(app: App, reader: str, accepted: int) -> None:
    """The same failure, with rows that only the application can write again."""
    before = app.schema()
    role = reader.partition("user=")[2].partition(" ")[0]
    orders = "CREATE TABLE public.orders (id bigint GENERATED ALWAYS AS IDENTITY, amount numeric);"
    grant = f"GRANT INSERT ON public.orders TO {role};\nREVOKE ALL ON public.accounts FROM {role};"
    back = f"GRANT SELECT ON public.accounts TO {role};"
    app.migration("001_orders", orders + grant, DROP_ORDERS + back, rollback_loses=["public.orders"])
    with serving({**QUERIES, "order": "INSERT INTO public.orders (amount) VALUES (10)"}, reader) as service:
        outcome = app.migrate(
            policy={"rollback_max_lost_rows": accepted},
            surefoot_endpoints=[service.endpoint("accounts"), service.endpoint("order")],
            surefoot_observe_requests=2,
        )
    if accepted:
        assert_rescued(app, outcome, kind="queries_denied", before=before, rolled_back=["001_orders"])
        return
    assert outcome.returncode != 0
    assert_stays(app, outcome, kind="queries_denied", decision="roll_back", applied=["001_orders"])
    written = app.database.scalar("SELECT count(*) FROM public.orders")
    assert written > 0
    assert f"would lose {written} rows" in outcome.errors[-1]


def test_a_rollback_after_which_something_is_left_says_so(app: App) -> None:
    app.migration("001_orders", ORDERS + "CREATE TABLE public.extra ();", DROP_ORDERS)
    app.migration("002_broken", "SELEC 1;", "SELECT 1;")
    check = {"name": "nothing is left", "query": "SELECT to_regclass('public.extra')", "expect": {"scalar": None}}
    outcome = app.migrate(surefoot_run_rollback_checks=[check])
    assert outcome.returncode != 0
    assert app.applied() == []
    assert app.last_run()["outcome"] == "failed"
    assert "BUT THAT IS NOT PROVEN: " in outcome.summary()
    assert "nothing is left" in outcome.summary(), outcome.output


def test_a_rollback_that_fails_says_so(app: App) -> None:
    app.migration("001_orders", ORDERS, "DROP TABLE public.order;")
    app.migration("002_broken", "SELEC 1;", "SELECT 1;")
    outcome = app.migrate()
    assert outcome.returncode != 0
    assert app.applied() == ["001_orders"]
    assert app.last_run()["outcome"] == "failed"
    assert "ROLLED BACK what" not in outcome.summary()
    assert 'NOT ROLLED BACK: table "order" does not exist' in outcome.summary()
    assert "-e surefoot_to=001_orders" in outcome.summary()

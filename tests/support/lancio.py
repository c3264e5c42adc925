# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The platform migrations in tests: applying, rolling back, checking and dumping them; what they must produce.

``apply`` and ``roll_back`` send the files as they are, the way psql would, so that the files are tested apart from the
runner. Whoever wants the runner instead changes these two.
"""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import re
import subprocess
import typing as t

from psycopg2 import sql
from psycopg2.extensions import connection as Connection

from ansible_collections.surefoot.dbops.plugins.module_utils._checks import CheckResult, run_checks
from ansible_collections.surefoot.dbops.plugins.module_utils._plan import Migration, Plan, SqlStep, load_plan
from ansible_collections.surefoot.dbops.tests.support.pgserver import Database

DIRECTORY = pathlib.Path(__file__).resolve().parents[2] / "playbooks" / "migrations" / "lancio_platform"

DATABASES = "006_add_platform_databases_table"
RLS = "006_enable_rls_with_permissive_policies"
REGISTRATION = "006_register_railway_databases"
RESTRICTIVE = "007_restrictive_rls_policies"

KEY = "correct horse battery staple"
MONGODB_URL = (
    "mongodb://mongo:mongo-secret-4711@mongodb.railway.internal:27017/?authSource=admin&password=query-secret-1"
)
REDIS_URL = "redis://default:redis-secret-0815@redis.railway.internal:6379/0"
SECRETS = {"railway_mongodb_url": MONGODB_URL, "railway_redis_url": REDIS_URL}
# What must be found nowhere outside the client.
NEEDLES = (KEY, "mongo-secret-4711", "redis-secret-0815", "query-secret-1")

VIEWS = (
    "databases_safe",
    "databases_with_connection_strings",
    "organization_billing_overview",
    "organizations_with_stats",
    "project_resources",
    "projects_with_credentials",
    "subscriptions_with_orgs",
)

# Name and argument types -> result type, as the catalog shows them.
FUNCTIONS_BEFORE_006 = {
    "update_updated_at_column()": "trigger",
    "generate_slug(input_text text)": "text",
    "get_organization_by_slug(org_slug text)": "platform.organizations",
    "get_project_by_ref(project_ref text)": "platform.projects",
    "get_credentials_by_project_ref(project_ref text)": "platform.credentials",
    "get_active_subscription(org_id uuid)": "platform.subscriptions",
    "calculate_usage_cost(org_id uuid, start_period timestamp with time zone, end_period timestamp with time zone)": (
        "numeric"
    ),
    "get_available_credits(org_id uuid)": "numeric",
    "is_free_tier(org_id uuid)": "boolean",
    "is_organization_owner(p_user_id uuid, p_organization_id uuid)": "boolean",
    "has_project_access(p_user_id uuid, p_project_id uuid)": "boolean",
    "get_active_feature_flags(p_organization_id uuid)": "TABLE(flag_key text, flag_name text, enabled boolean)",
}

# "!" is NOT NULL.
COLUMNS = """
addons: id uuid!, project_id uuid!, addon_type text!, addon_variant text!, quantity integer, price_per_unit numeric,
    metadata jsonb, status text, activated_at timestamptz, deactivated_at timestamptz, created_at timestamptz,
    updated_at timestamptz
api_keys: id uuid!, organization_id uuid!, user_id uuid!, name text!, key_prefix text!, key_hash text!, scopes
    jsonb, last_used_at timestamptz, expires_at timestamptz, revoked_at timestamptz, created_at timestamptz
audit_logs: id uuid!, organization_id uuid, project_id uuid, user_id uuid, event_type text!, resource_type text,
    resource_id uuid, action text!, ip_address inet, user_agent text, metadata jsonb, severity text, created_at
    timestamptz
billing_plans: id text!, name text!, description text, price numeric!, interval text!, features jsonb, limits jsonb,
    max_projects integer, max_members integer, active boolean, sort_order integer, created_at timestamptz,
    updated_at timestamptz
compute_config: id uuid!, project_id uuid!, instance_size text!, cpu_cores numeric, memory_gb numeric, architecture
    text, is_dedicated boolean, status text, created_at timestamptz, updated_at timestamptz
credentials: id uuid!, project_id uuid!, anon_key text!, service_role_key text!, jwt_secret text!, created_at
    timestamptz!, updated_at timestamptz!
credits: id uuid!, organization_id uuid!, amount numeric!, remaining numeric!, description text, status text!,
    expires_at timestamptz, created_at timestamptz, updated_at timestamptz
customer_profiles: id uuid!, organization_id uuid!, company_name text, address_line1 text, address_line2 text, city
    text, state text, postal_code text, country text, tax_id text, created_at timestamptz, updated_at timestamptz
databases: id uuid!, project_id uuid!, name text!, type text!, host text!, port integer!, database text, username
    text, password text, connection_string text!, connection_string_encrypted bytea, ssl_enabled boolean, config
    jsonb, metadata jsonb, status text!, health_check_status text, last_health_check_at timestamptz,
    health_check_error text, created_at timestamptz!, updated_at timestamptz!
disk_config: id uuid!, project_id uuid!, size_gb integer!, io_budget integer!, autoscale_enabled boolean,
    autoscale_limit_gb integer, status text, created_at timestamptz, updated_at timestamptz
feature_flags: id uuid!, flag_key text!, flag_name text!, description text, enabled boolean, rollout_percentage
    integer, created_at timestamptz, updated_at timestamptz
invoices: id uuid!, organization_id uuid!, stripe_invoice_id text, invoice_number text, amount_due numeric!,
    amount_paid numeric, amount_remaining numeric, currency text, status text!, period_start bigint, period_end
    bigint, due_date bigint, paid_at bigint, invoice_pdf text, hosted_invoice_url text, created_at timestamptz,
    updated_at timestamptz
organization_feature_flags: id uuid!, organization_id uuid!, flag_id uuid!, enabled boolean!, created_at
    timestamptz, updated_at timestamptz
organization_invitations: id uuid!, organization_id uuid!, invited_email text!, invited_by uuid!, role text!, token
    text!, expires_at timestamptz!, accepted_at timestamptz, created_at timestamptz
organization_members: id uuid!, organization_id uuid!, user_id uuid!, role text!, invited_at timestamptz, invited_by
    uuid, joined_at timestamptz, created_at timestamptz, updated_at timestamptz
organizations: id uuid!, name text!, slug text!, billing_email text, created_at timestamptz!, updated_at
    timestamptz!
payment_methods: id uuid!, organization_id uuid!, stripe_payment_method_id text!, type text!, is_default boolean,
    card_brand text, card_last4 text, card_exp_month integer, card_exp_year integer, billing_details jsonb,
    created_at timestamptz, updated_at timestamptz
project_addons: id uuid!, project_id uuid!, addon_id text!, addon_variant text, quantity integer, price_per_unit
    numeric, status text, activated_at timestamptz, deactivated_at timestamptz, created_at timestamptz, updated_at
    timestamptz
project_members: id uuid!, project_id uuid!, user_id uuid!, role text!, added_by uuid, created_at timestamptz,
    updated_at timestamptz
project_metrics: id uuid!, project_id uuid!, timestamp timestamptz!, cpu_usage numeric, memory_usage numeric,
    disk_io_budget numeric, disk_usage_gb numeric, network_in_bytes bigint, network_out_bytes bigint,
    active_connections integer, query_count integer, created_at timestamptz
projects: id uuid!, organization_id uuid!, name text!, slug text!, ref text!, database_host text!, database_port
    integer!, database_name text!, database_user text!, database_password text!, postgres_meta_url text!,
    supabase_url text!, status text!, created_at timestamptz!, updated_at timestamptz!
subscriptions: id uuid!, organization_id uuid!, plan_id text!, plan_name text!, status text!, billing_cycle_anchor
    bigint, current_period_start bigint, current_period_end bigint, next_invoice_at bigint, usage_billing_enabled
    boolean, spend_cap_enabled boolean, spend_cap_amount numeric, customer_balance numeric, billing_via_partner
    boolean, billing_partner text, cached_egress_enabled boolean, stripe_customer_id text, stripe_subscription_id
    text, created_at timestamptz, updated_at timestamptz
tax_ids: id uuid!, organization_id uuid!, type text!, value text!, country text, status text, created_at
    timestamptz, updated_at timestamptz
usage_metrics: id uuid!, organization_id uuid, project_id uuid, metric_type text!, metric_value numeric!,
    metric_unit text!, period_start timestamptz!, period_end timestamptz!, cost numeric, metadata jsonb, created_at
    timestamptz
user_sessions: id uuid!, user_id uuid!, token text!, refresh_token text, ip_address inet, user_agent text,
    expires_at timestamptz!, last_activity_at timestamptz, created_at timestamptz
users: id uuid!, email text!, username text, first_name text, last_name text, avatar_url text, phone text,
    password_hash text, mfa_enabled boolean, email_confirmed_at timestamptz, banned_until timestamptz, deleted_at
    timestamptz, metadata jsonb, last_sign_in_at timestamptz, created_at timestamptz, updated_at timestamptz
"""

KEYS = """
addons: FK (project_id) -> projects(id) ON DELETE CASCADE
api_keys: FK (organization_id) -> organizations(id) ON DELETE CASCADE; FK (user_id) -> users(id) ON DELETE CASCADE;
    UNIQUE (key_hash)
audit_logs: FK (organization_id) -> organizations(id) ON DELETE SET NULL; FK (project_id) -> projects(id) ON DELETE
    SET NULL; FK (user_id) -> users(id) ON DELETE SET NULL
compute_config: FK (project_id) -> projects(id) ON DELETE CASCADE; UNIQUE (project_id)
credentials: FK (project_id) -> projects(id) ON DELETE CASCADE; UNIQUE (project_id)
credits: FK (organization_id) -> organizations(id) ON DELETE CASCADE
customer_profiles: FK (organization_id) -> organizations(id) ON DELETE CASCADE; UNIQUE (organization_id)
databases: FK (project_id) -> projects(id) ON DELETE CASCADE
disk_config: FK (project_id) -> projects(id) ON DELETE CASCADE; UNIQUE (project_id)
feature_flags: UNIQUE (flag_key)
invoices: FK (organization_id) -> organizations(id) ON DELETE CASCADE; UNIQUE (stripe_invoice_id)
organization_feature_flags: FK (flag_id) -> feature_flags(id) ON DELETE CASCADE; FK (organization_id) ->
    organizations(id) ON DELETE CASCADE; UNIQUE (organization_id, flag_id)
organization_invitations: FK (invited_by) -> users(id) ON DELETE CASCADE; FK (organization_id) -> organizations(id)
    ON DELETE CASCADE; UNIQUE (token)
organization_members: FK (invited_by) -> users(id) ON DELETE SET NULL; FK (organization_id) -> organizations(id) ON
    DELETE CASCADE; FK (user_id) -> users(id) ON DELETE CASCADE; UNIQUE (organization_id, user_id)
organizations: UNIQUE (slug)
payment_methods: FK (organization_id) -> organizations(id) ON DELETE CASCADE; UNIQUE (stripe_payment_method_id)
project_addons: FK (project_id) -> projects(id) ON DELETE CASCADE; UNIQUE (project_id, addon_id)
project_members: FK (added_by) -> users(id) ON DELETE SET NULL; FK (project_id) -> projects(id) ON DELETE CASCADE;
    FK (user_id) -> users(id) ON DELETE CASCADE; UNIQUE (project_id, user_id)
project_metrics: FK (project_id) -> projects(id) ON DELETE CASCADE
projects: FK (organization_id) -> organizations(id) ON DELETE CASCADE; UNIQUE (ref)
subscriptions: FK (organization_id) -> organizations(id) ON DELETE CASCADE; UNIQUE (organization_id)
tax_ids: FK (organization_id) -> organizations(id) ON DELETE CASCADE; UNIQUE (organization_id, type, value)
usage_metrics: FK (organization_id) -> organizations(id) ON DELETE CASCADE; FK (project_id) -> projects(id) ON
    DELETE CASCADE
user_sessions: FK (user_id) -> users(id) ON DELETE CASCADE; UNIQUE (refresh_token); UNIQUE (token)
users: UNIQUE (email); UNIQUE (username)
"""


def columns() -> dict[str, dict[str, tuple[str, bool]]]:
    """Table -> column -> (type, not null)."""
    found: dict[str, dict[str, tuple[str, bool]]] = {}
    for table, text in _entries(COLUMNS):
        found[table] = {}
        for entry in text.replace("timestamptz", "timestamp_with_time_zone").split(", "):
            name, kind = entry.split(" ")
            found[table][name] = (kind.rstrip("!").replace("_", " "), kind.endswith("!"))
    return found


def keys() -> dict[str, set[str]]:
    """Table -> its foreign keys and unique constraints."""
    return {table: set(text.split("; ")) for table, text in _entries(KEYS)}


def _entries(text: str) -> t.Iterator[tuple[str, str]]:
    for line in re.sub(r"\n {4}", " ", text.strip()).splitlines():
        table, rest = line.split(": ", 1)
        yield table, rest


def plan() -> Plan:
    """The plan of the migration set."""
    return load_plan(str(DIRECTORY))


def ids() -> list[str]:
    """All migrations in the order of the plan."""
    return [migration.id for migration in plan().migrations]


def apply(
    database: Database,
    upto: str | None = None,
    *,
    only: str | None = None,
    variables: t.Mapping[str, t.Any] | None = None,
    secrets: t.Mapping[str, str] | None = None,
    key: str | None = KEY,
    user: str | None = None,
) -> None:
    """Apply migrations, all up to and including ``upto`` or one alone; ``key`` None leaves the key out."""
    chosen = [only] if only else ids()[: ids().index(upto or REGISTRATION) + 1]
    for name in chosen:
        migration = plan().migration(name)
        (step,) = migration.steps
        assert isinstance(step, SqlStep)
        _run(database, migration, pathlib.Path(step.path), variables or {}, secrets or SECRETS, key, user)


def roll_back(database: Database, name: str, *, user: str | None = None) -> None:
    """Run the rollback file of one migration."""
    migration = plan().migration(name)
    assert migration.rollback
    (step,) = migration.rollback
    assert isinstance(step, SqlStep)
    _run(database, migration, pathlib.Path(step.path), {}, {}, None, user)


def _run(
    database: Database,
    migration: Migration,
    path: pathlib.Path,
    variables: t.Mapping[str, t.Any],
    secrets: t.Mapping[str, str],
    key: str | None,
    user: str | None,
) -> None:
    text = path.read_text(encoding="utf-8")
    for name in plan().secret_variables:
        query = f"(SELECT value FROM pg_temp.surefoot_secret WHERE name = '{name}')"
        text = text.replace(f":'{name}'", query)
    for name, value in {**plan().variables, **variables}.items():
        text = re.sub(rf"(?<![:\w]):{name}\b", str(value).lower(), text)
    key = key if migration.session_settings else None
    with contextlib.closing(session(database, key=key, user=user)) as connection, connection.cursor() as cursor:
        if "surefoot_secret" in text:
            _send_secrets(connection, secrets)
        cursor.execute(text)


def _send_secrets(connection: Connection, secrets: t.Mapping[str, str]) -> None:
    with connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE surefoot_secret (name text, value text)")
        rows = io.StringIO("".join(f"{name}\t{value}\n" for name, value in secrets.items()))
        cursor.copy_expert("COPY pg_temp.surefoot_secret FROM STDIN", rows)


def session(database: Database, *, key: str | None = KEY, user: str | None = None) -> Connection:
    """A connection; the key travels as a startup option."""
    keywords: dict[str, t.Any] = {}
    if key is not None:
        escaped = key.replace("\\", "\\\\").replace(" ", "\\ ")
        keywords["options"] = f"-c app.database_encryption_key={escaped}"
    if user is not None:
        keywords["user"] = user
    return database.connect(**keywords)


def verify(database: Database, name: str, *, variables: t.Mapping[str, t.Any] | None = None) -> list[CheckResult]:
    """Run the checks of one migration."""
    migration = plan().migration(name)
    with contextlib.closing(session(database, key=KEY if migration.session_settings else None)) as connection:
        return run_checks(
            connection,
            migration.verify,
            variables={**plan().variables, **(variables or {})},
            secret_variables={},
            phase="verify",
            inside_transaction=False,
            migration=name,
        )


def load_demo_data(database: Database, *, audit_rows: int = 200) -> None:
    """Fill a database at migration 005."""
    text = (DIRECTORY / "demo_data.sql").read_text(encoding="utf-8")
    options = f"-c demo.audit_rows={audit_rows}"
    with contextlib.closing(database.connect(options=options)) as connection, connection.cursor() as cursor:
        cursor.execute(text)


def store(database: Database, url: str, *, kind: str = "redis", name: str = "test", **more: t.Any) -> str:
    """Insert a row into platform.databases for Lancio Studio, the URL by way of a table; return its id."""
    names = ["project_id", "name", "type", "connection_string", *more]
    with contextlib.closing(session(database)) as connection, connection.cursor() as cursor:
        _send_secrets(connection, {"url": url})
        command = sql.SQL("INSERT INTO platform.databases ({}) SELECT {}, s.value{} FROM {} RETURNING id").format(
            sql.SQL(", ").join(map(sql.Identifier, names)),
            sql.SQL(", ").join([sql.SQL("p.id"), sql.Literal(name), sql.Literal(kind)]),
            sql.SQL("").join(sql.SQL(", {}").format(sql.Literal(value)) for value in more.values()),
            sql.SQL("platform.projects AS p, pg_temp.surefoot_secret AS s WHERE p.name = 'Lancio Studio'"),
        )
        cursor.execute(command)
        return str(cursor.fetchall()[0][0])


def catalog(database: Database) -> str:
    """Everything pg_dump says about the schema, without the random key of newer releases."""
    server = database.server
    argv = [os.path.join(server.bindir, "pg_dump"), "--schema-only", "--no-password", "--dbname", database.dsn]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return "\n".join(line for line in done.stdout.splitlines() if not re.match(r"\\(un)?restrict ", line))

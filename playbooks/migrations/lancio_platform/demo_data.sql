-- Copyright (c) 2026, Surefoot contributors
-- GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
-- SPDX-License-Identifier: GPL-3.0-or-later

-- Data for demonstrations and tests, for a database at migration 005; not part of the plan. Nothing in it is real.
-- The same rows on every run: ids are computed, times are fixed; rows that are there already stay.
--
-- How much: settings, because SQL variables cannot have defaults (PGOPTIONS='-c demo.audit_rows=10000', or SET before).
--     demo.organizations  3        beside Lancio
--     demo.projects       2        for each of them, beside Lancio Studio
--     demo.users          60       at least five for each organization
--     demo.audit_rows     100000

BEGIN;

SET LOCAL TimeZone = 'UTC';

CREATE FUNCTION pg_temp.scale(setting text, fallback integer) RETURNS integer
    LANGUAGE sql STABLE
AS $$
    SELECT coalesce(nullif(current_setting(setting, true), '')::integer, fallback);
$$;

CREATE FUNCTION pg_temp.demo_id(kind text, number bigint) RETURNS uuid
    LANGUAGE sql IMMUTABLE
AS $$
    SELECT md5('surefoot demo ' || kind || ' ' || number)::uuid;
$$;

-- One row for each user and organization; the first five of each organization have the five roles, every tenth user is
-- also a member of the next organization.
CREATE TEMPORARY TABLE demo_member ON COMMIT DROP AS
SELECT
    u.number AS user_number,
    (u.number - 1) % o.total + 1 AS organization_number,
    CASE
        WHEN (u.number - 1) / o.total < 5
            THEN ('{owner,admin,billing_admin,developer,member}'::text[])[(u.number - 1) / o.total + 1]
        WHEN (u.number - 1) / o.total % 3 = 0 THEN 'developer'
        ELSE 'member'
    END AS role
FROM (SELECT pg_temp.scale('demo.organizations', 3) AS total) AS o
CROSS JOIN generate_series(1, pg_temp.scale('demo.users', 60)) AS u (number);

INSERT INTO demo_member (user_number, organization_number, role)
SELECT m.user_number, m.organization_number % pg_temp.scale('demo.organizations', 3) + 1, 'member'
FROM demo_member AS m
WHERE m.user_number % 10 = 0
  AND pg_temp.scale('demo.organizations', 3) > 1;

INSERT INTO platform.organizations (id, name, slug, billing_email, created_at, updated_at)
SELECT
    pg_temp.demo_id('organization', n), 'Demo Company ' || n, 'demo-company-' || n, 'billing@demo' || n || '.example',
    '2025-01-01'::timestamptz + n * interval '1 day', '2025-06-01'::timestamptz
FROM generate_series(1, pg_temp.scale('demo.organizations', 3)) AS n
ON CONFLICT DO NOTHING;

INSERT INTO platform.projects (
    id, organization_id, name, slug, ref, database_host, database_port, database_name, database_user,
    database_password,
    postgres_meta_url, supabase_url, status, created_at, updated_at
)
SELECT
    pg_temp.demo_id('project', o * 1000 + n), pg_temp.demo_id('organization', o), 'Project ' || o || '.' || n,
    'project-' || o || '-' || n, 'demoref' || o || 'x' || n, 'db.demo' || o || '.example', 5432, 'postgres',
    'postgres',
    md5('demo password ' || o || '.' || n), 'http://meta.demo' || o || '.example',
    'https://api.demo' || o || '.example',
    CASE WHEN n % 5 = 0 THEN 'paused' ELSE 'active' END, '2025-01-10'::timestamptz, '2025-06-01'::timestamptz
FROM generate_series(1, pg_temp.scale('demo.organizations', 3)) AS o
CROSS JOIN generate_series(1, pg_temp.scale('demo.projects', 2)) AS n
ON CONFLICT DO NOTHING;

INSERT INTO platform.credentials (id, project_id, anon_key, service_role_key, jwt_secret)
SELECT
    md5('demo credentials ' || p.ref)::uuid, p.id, 'anon-' || md5('anon ' || p.ref),
    'service-' || md5('service ' || p.ref),
    md5('jwt ' || p.ref)
FROM platform.projects AS p
ON CONFLICT DO NOTHING;

INSERT INTO platform.users (
    id, email, username, first_name, last_name, password_hash, mfa_enabled, email_confirmed_at, last_sign_in_at,
    created_at, updated_at
)
SELECT
    pg_temp.demo_id('user', n), 'user' || n || '@demo.example', 'user' || n,
    ('{Ada,Blaise,Carl,Dorothy,Emmy,Felix,Grace,Henri,Ida,Jean}'::text[])[n % 10 + 1],
    ('{Adler,Brandt,Costa,Dias,Eriksen,Fontaine,Gruber,Haas}'::text[])[n % 8 + 1],
    'demo-hash-' || md5('user ' || n), n % 4 = 0, '2025-02-01'::timestamptz,
    '2025-11-01'::timestamptz - n * interval '1 hour',
    '2025-01-15'::timestamptz + n * interval '1 minute', '2025-11-01'::timestamptz
FROM generate_series(1, pg_temp.scale('demo.users', 60)) AS n
ON CONFLICT DO NOTHING;

INSERT INTO platform.organization_members (id, organization_id, user_id, role, joined_at)
SELECT
    pg_temp.demo_id('member', m.organization_number * 1000000::bigint + m.user_number),
    pg_temp.demo_id('organization', m.organization_number), pg_temp.demo_id('user', m.user_number), m.role,
    '2025-02-01'::timestamptz
FROM demo_member AS m
ON CONFLICT DO NOTHING;

INSERT INTO platform.organization_members (id, organization_id, user_id, role, joined_at)
SELECT
    pg_temp.demo_id('Lancio member', n), o.id, pg_temp.demo_id('user', n),
    ('{owner,admin,billing_admin,developer,member}'::text[])[n], '2025-02-01'::timestamptz
FROM platform.organizations AS o
CROSS JOIN generate_series(1, least(5, pg_temp.scale('demo.users', 60))) AS n
WHERE o.slug = 'lancio'
ON CONFLICT DO NOTHING;

-- Developers work in every project of their organization, members in the first.
INSERT INTO platform.project_members (id, project_id, user_id, role, added_by)
SELECT
    md5('demo project member ' || p.ref || ' ' || m.user_number)::uuid, p.id,
    pg_temp.demo_id('user', m.user_number), m.role,
    pg_temp.demo_id('user', m.organization_number)
FROM demo_member AS m
JOIN platform.projects AS p ON p.organization_id = pg_temp.demo_id('organization', m.organization_number)
WHERE m.role = 'developer' OR (m.role = 'member' AND p.slug LIKE '%-1')
ON CONFLICT DO NOTHING;

INSERT INTO platform.organization_invitations (id, organization_id, invited_email, invited_by, role, token,
expires_at)
SELECT
    pg_temp.demo_id('invitation', o), pg_temp.demo_id('organization', o), 'guest' || o || '@demo.example',
    pg_temp.demo_id('user', o), 'member', 'demo-invitation-' || md5('invitation ' || o), '2030-01-01'::timestamptz
FROM generate_series(1, pg_temp.scale('demo.organizations', 3)) AS o
ON CONFLICT DO NOTHING;

INSERT INTO platform.user_sessions (
    id, user_id, token, refresh_token, ip_address, user_agent, expires_at, last_activity_at
)
SELECT
    pg_temp.demo_id('session', u * 10 + n), pg_temp.demo_id('user', u),
    'demo-session-' || md5('session ' || u || ' ' || n),
    'demo-refresh-' || md5('refresh ' || u || ' ' || n), ('192.0.2.' || u % 250 + 1)::inet,
    ('{Firefox,Chrome,Safari}'::text[])[u % 3 + 1], '2030-01-01'::timestamptz, '2025-11-01'::timestamptz
FROM generate_series(1, pg_temp.scale('demo.users', 60)) AS u
CROSS JOIN generate_series(1, 2) AS n
ON CONFLICT DO NOTHING;

INSERT INTO platform.api_keys (id, organization_id, user_id, name, key_prefix, key_hash, scopes, expires_at)
SELECT
    pg_temp.demo_id('api key', m.organization_number * 1000000::bigint + m.user_number),
    pg_temp.demo_id('organization', m.organization_number), pg_temp.demo_id('user', m.user_number), 'Command line',
    'demo_' || substr(md5('key ' || m.user_number), 1, 6),
    md5('key hash ' || m.organization_number || ' ' || m.user_number),
    '["read"]', '2030-01-01'::timestamptz
FROM demo_member AS m
WHERE m.role <> 'member'
ON CONFLICT DO NOTHING;

INSERT INTO platform.feature_flags (id, flag_key, flag_name, description, enabled, rollout_percentage)
SELECT
    pg_temp.demo_id('flag', n), ('{branching,read_replicas,log_drains,vector_buckets}'::text[])[n],
    ('{Branching,Read replicas,Log drains,Vector buckets}'::text[])[n], 'Demo flag', n % 2 = 1, n * 25
FROM generate_series(1, 4) AS n
ON CONFLICT DO NOTHING;

INSERT INTO platform.organization_feature_flags (id, organization_id, flag_id, enabled)
SELECT
    pg_temp.demo_id('organization flag', o), pg_temp.demo_id('organization', o), pg_temp.demo_id('flag', o % 4 + 1),
    true
FROM generate_series(1, pg_temp.scale('demo.organizations', 3)) AS o
ON CONFLICT DO NOTHING;

-- Billing: everything an organization has, for each organization, Lancio included.

INSERT INTO platform.customer_profiles (id, organization_id, company_name, address_line1, city, postal_code, country)
SELECT md5('demo profile ' || o.slug)::uuid, o.id, o.name || ' Ltd', '1 Main Street', 'Springfield', '12345', 'US'
FROM platform.organizations AS o
ON CONFLICT DO NOTHING;

INSERT INTO platform.subscriptions (
    id, organization_id, plan_id, plan_name, status, billing_cycle_anchor, current_period_start, current_period_end,
    next_invoice_at, stripe_customer_id, stripe_subscription_id
)
SELECT
    md5('demo subscription ' || o.slug)::uuid, o.id, p.id, p.name, 'active', 1735689600, 1761955200, 1764547200,
    1764547200,
    'cus_demo_' || o.slug, 'sub_demo_' || o.slug
FROM platform.organizations AS o
JOIN platform.billing_plans AS p ON p.id = CASE WHEN o.slug LIKE '%-3' THEN 'free' ELSE 'pro' END
ON CONFLICT DO NOTHING;

INSERT INTO platform.payment_methods (
    id, organization_id, stripe_payment_method_id, type, is_default, card_brand, card_last4, card_exp_month,
    card_exp_year
)
SELECT md5('demo card ' || o.slug)::uuid, o.id, 'pm_demo_' || o.slug, 'card', true, 'visa', '4242', 12, 2030
FROM platform.organizations AS o
ON CONFLICT DO NOTHING;

INSERT INTO platform.invoices (
    id, organization_id, stripe_invoice_id, invoice_number, amount_due, amount_paid, amount_remaining, status,
    period_start, period_end, due_date, paid_at, created_at
)
SELECT
    md5('demo invoice ' || o.slug || ' ' || n)::uuid, o.id, 'in_demo_' || o.slug || '_' || n,
    upper(o.slug) || '-' || n,
    25, CASE WHEN n < 12 THEN 25 ELSE 0 END, CASE WHEN n < 12 THEN 0 ELSE 25 END,
    CASE WHEN n < 12 THEN 'paid' ELSE 'open' END,
    1735689600 + (n - 1) * 2592000, 1735689600 + n * 2592000, 1735689600 + n * 2592000 + 1209600,
    CASE WHEN n < 12 THEN 1735689600 + n * 2592000 + 86400 END, '2025-01-01'::timestamptz + n * interval '30 days'
FROM platform.organizations AS o
CROSS JOIN generate_series(1, 12) AS n
ON CONFLICT DO NOTHING;

INSERT INTO platform.credits (id, organization_id, amount, remaining, description, status, expires_at)
SELECT md5('demo credit ' || o.slug)::uuid, o.id, 100, 40, 'Welcome credit', 'active', '2030-01-01'::timestamptz
FROM platform.organizations AS o
ON CONFLICT DO NOTHING;

INSERT INTO platform.tax_ids (id, organization_id, type, value, country, status)
SELECT
    md5('demo tax id ' || o.slug)::uuid, o.id, 'eu_vat',
    'DE' || right('00000000' || length(o.slug), 9), 'DE', 'verified'
FROM platform.organizations AS o
ON CONFLICT DO NOTHING;

-- Projects: configuration, addons, and thirty days of measurements.

INSERT INTO platform.compute_config (id, project_id, instance_size, cpu_cores, memory_gb, architecture)
SELECT md5('demo compute ' || p.ref)::uuid, p.id, 'small', 2, 2, 'arm64'
FROM platform.projects AS p
ON CONFLICT DO NOTHING;

INSERT INTO platform.disk_config (id, project_id, size_gb, io_budget, autoscale_enabled, autoscale_limit_gb)
SELECT md5('demo disk ' || p.ref)::uuid, p.id, 16, 200, true, 64
FROM platform.projects AS p
ON CONFLICT DO NOTHING;

INSERT INTO platform.addons (id, project_id, addon_type, addon_variant, price_per_unit, activated_at)
SELECT md5('demo addon ' || p.ref)::uuid, p.id, 'pitr', 'pitr_7', 100, '2025-03-01'::timestamptz
FROM platform.projects AS p
ON CONFLICT DO NOTHING;

INSERT INTO platform.project_addons (id, project_id, addon_id, addon_variant, price_per_unit, activated_at)
SELECT md5('demo project addon ' || p.ref)::uuid, p.id, 'custom_domain', 'cd_default', 10, '2025-03-01'::timestamptz
FROM platform.projects AS p
ON CONFLICT DO NOTHING;

INSERT INTO platform.project_metrics (
    id, project_id, "timestamp", cpu_usage, memory_usage, disk_io_budget, disk_usage_gb, network_in_bytes,
    network_out_bytes, active_connections, query_count
)
SELECT
    md5('demo metric ' || p.ref || ' ' || n)::uuid, p.id, '2025-10-01'::timestamptz + n * interval '6 hours',
    20 + n % 50, 40 + n % 30, 100 - n % 20, 4 + n * 0.05, n * 1000003::bigint, n * 2000003::bigint, 5 + n % 20,
    1000 + n * 7
FROM platform.projects AS p
CROSS JOIN generate_series(1, 120) AS n
ON CONFLICT DO NOTHING;

INSERT INTO platform.usage_metrics (
    id, organization_id, project_id, metric_type, metric_value, metric_unit, period_start, period_end, cost
)
SELECT
    md5('demo usage ' || p.ref || ' ' || n)::uuid, p.organization_id, p.id,
    ('{egress,storage_size,compute_hours}'::text[])[n % 3 + 1], n * 1.5, ('{GB,GB,hours}'::text[])[n % 3 + 1],
    '2025-10-01'::timestamptz + n * interval '1 day', '2025-10-02'::timestamptz + n * interval '1 day', n * 0.01
FROM platform.projects AS p
CROSS JOIN generate_series(1, 30) AS n
ON CONFLICT DO NOTHING;

INSERT INTO platform.audit_logs (
    id, organization_id, project_id, user_id, event_type, resource_type, resource_id, action, ip_address, user_agent,
    metadata, severity, created_at
)
SELECT
    pg_temp.demo_id('audit', n), m.organization_id, m.project_id, m.user_id,
    (ARRAY['auth.login', 'project.update', 'member.invite', 'api_key.create', 'billing.update'])[n % 5 + 1],
    (ARRAY['user', 'project', 'member', 'api_key', 'subscription'])[n % 5 + 1], m.project_id,
    (ARRAY['login', 'update', 'invite', 'create', 'update'])[n % 5 + 1], ('198.51.100.' || n % 250 + 1)::inet,
    (ARRAY['Firefox', 'Chrome', 'Safari'])[n % 3 + 1], jsonb_build_object('request', n),
    CASE WHEN n % 100 = 0 THEN 'warning' ELSE 'info' END, '2025-11-20'::timestamptz - n * interval '20 seconds'
FROM generate_series(1, pg_temp.scale('demo.audit_rows', 100000)) AS n
JOIN (
    SELECT
        row_number() OVER (ORDER BY d.organization_number, d.user_number) - 1 AS position,
        count(*) OVER () AS total,
        pg_temp.demo_id('organization', d.organization_number) AS organization_id,
        pg_temp.demo_id('user', d.user_number) AS user_id,
        pg_temp.demo_id(
            'project', d.organization_number * 1000 + d.user_number % pg_temp.scale('demo.projects', 2) + 1
        ) AS project_id
    FROM demo_member AS d
) AS m ON m.position = n % m.total
ON CONFLICT DO NOTHING;

DROP FUNCTION pg_temp.demo_id(text, bigint);
DROP FUNCTION pg_temp.scale(text, integer);

COMMIT;

-- Copyright (c) 2026, Surefoot contributors
-- GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
-- SPDX-License-Identifier: GPL-3.0-or-later

-- 002: plans, subscriptions, invoices and what a project consumes.

BEGIN;

CREATE TABLE platform.billing_plans (
    id text PRIMARY KEY,
    name text NOT NULL,
    description text,
    price numeric NOT NULL DEFAULT 0,
    "interval" text NOT NULL DEFAULT 'month',
    features jsonb DEFAULT '[]'::jsonb,
    limits jsonb DEFAULT '{}'::jsonb,
    max_projects integer,
    max_members integer,
    active boolean DEFAULT true,
    sort_order integer DEFAULT 0,
    created_at timestamptz DEFAULT now(),
    updated_at timestamptz DEFAULT now()
);

INSERT INTO platform.billing_plans (id, name, description, price, max_projects, max_members, sort_order)
VALUES
    ('free', 'Free', 'To try the platform', 0, 2, 5, 1),
    ('pro', 'Pro', 'For production projects', 25, 20, 50, 2),
    ('team', 'Team', 'For companies with several teams', 599, 100, 500, 3),
    ('enterprise', 'Enterprise', 'By agreement', 0, NULL, NULL, 4);

CREATE TABLE platform.customer_profiles (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    organization_id uuid NOT NULL UNIQUE REFERENCES platform.organizations (id) ON DELETE CASCADE,
    company_name text,
    address_line1 text,
    address_line2 text,
    city text,
    state text,
    postal_code text,
    country text,
    tax_id text,
    created_at timestamptz DEFAULT now(),
    updated_at timestamptz DEFAULT now()
);

CREATE TABLE platform.subscriptions (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    organization_id uuid NOT NULL UNIQUE REFERENCES platform.organizations (id) ON DELETE CASCADE,
    plan_id text NOT NULL DEFAULT 'free',
    plan_name text NOT NULL DEFAULT 'Free',
    status text NOT NULL DEFAULT 'active',
    billing_cycle_anchor bigint,
    current_period_start bigint,
    current_period_end bigint,
    next_invoice_at bigint,
    usage_billing_enabled boolean DEFAULT false,
    spend_cap_enabled boolean DEFAULT true,
    spend_cap_amount numeric,
    customer_balance numeric DEFAULT 0,
    billing_via_partner boolean DEFAULT false,
    billing_partner text,
    cached_egress_enabled boolean DEFAULT false,
    stripe_customer_id text,
    stripe_subscription_id text,
    created_at timestamptz DEFAULT now(),
    updated_at timestamptz DEFAULT now()
);

CREATE TABLE platform.payment_methods (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    organization_id uuid NOT NULL REFERENCES platform.organizations (id) ON DELETE CASCADE,
    stripe_payment_method_id text NOT NULL UNIQUE,
    type text NOT NULL,
    is_default boolean DEFAULT false,
    card_brand text,
    card_last4 text,
    card_exp_month integer,
    card_exp_year integer,
    billing_details jsonb DEFAULT '{}'::jsonb,
    created_at timestamptz DEFAULT now(),
    updated_at timestamptz DEFAULT now()
);

CREATE INDEX idx_payment_methods_organization_id ON platform.payment_methods (organization_id);

CREATE TABLE platform.invoices (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    organization_id uuid NOT NULL REFERENCES platform.organizations (id) ON DELETE CASCADE,
    stripe_invoice_id text UNIQUE,
    invoice_number text,
    amount_due numeric NOT NULL DEFAULT 0,
    amount_paid numeric DEFAULT 0,
    amount_remaining numeric DEFAULT 0,
    currency text DEFAULT 'usd',
    status text NOT NULL DEFAULT 'draft',
    period_start bigint,
    period_end bigint,
    due_date bigint,
    paid_at bigint,
    invoice_pdf text,
    hosted_invoice_url text,
    created_at timestamptz DEFAULT now(),
    updated_at timestamptz DEFAULT now()
);

CREATE INDEX idx_invoices_organization_id ON platform.invoices (organization_id, created_at DESC);
CREATE INDEX idx_invoices_status ON platform.invoices (status);

CREATE TABLE platform.credits (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    organization_id uuid NOT NULL REFERENCES platform.organizations (id) ON DELETE CASCADE,
    amount numeric NOT NULL,
    remaining numeric NOT NULL,
    description text,
    status text NOT NULL DEFAULT 'active',
    expires_at timestamptz,
    created_at timestamptz DEFAULT now(),
    updated_at timestamptz DEFAULT now()
);

CREATE INDEX idx_credits_organization_id ON platform.credits (organization_id);

CREATE TABLE platform.tax_ids (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    organization_id uuid NOT NULL REFERENCES platform.organizations (id) ON DELETE CASCADE,
    type text NOT NULL,
    value text NOT NULL,
    country text,
    status text DEFAULT 'pending',
    created_at timestamptz DEFAULT now(),
    updated_at timestamptz DEFAULT now(),
    UNIQUE (organization_id, type, value)
);

CREATE TABLE platform.usage_metrics (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    organization_id uuid REFERENCES platform.organizations (id) ON DELETE CASCADE,
    project_id uuid REFERENCES platform.projects (id) ON DELETE CASCADE,
    metric_type text NOT NULL,
    metric_value numeric NOT NULL,
    metric_unit text NOT NULL,
    period_start timestamptz NOT NULL,
    period_end timestamptz NOT NULL,
    cost numeric DEFAULT 0,
    metadata jsonb DEFAULT '{}'::jsonb,
    created_at timestamptz DEFAULT now()
);

CREATE INDEX idx_usage_metrics_organization_id ON platform.usage_metrics (organization_id, period_start);
CREATE INDEX idx_usage_metrics_project_id ON platform.usage_metrics (project_id, period_start);

CREATE TABLE platform.compute_config (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    project_id uuid NOT NULL UNIQUE REFERENCES platform.projects (id) ON DELETE CASCADE,
    instance_size text NOT NULL DEFAULT 'micro',
    cpu_cores numeric,
    memory_gb numeric,
    architecture text,
    is_dedicated boolean DEFAULT false,
    status text DEFAULT 'active',
    created_at timestamptz DEFAULT now(),
    updated_at timestamptz DEFAULT now()
);

CREATE TABLE platform.disk_config (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    project_id uuid NOT NULL UNIQUE REFERENCES platform.projects (id) ON DELETE CASCADE,
    size_gb integer NOT NULL DEFAULT 8,
    io_budget integer NOT NULL DEFAULT 100,
    autoscale_enabled boolean DEFAULT false,
    autoscale_limit_gb integer,
    status text DEFAULT 'active',
    created_at timestamptz DEFAULT now(),
    updated_at timestamptz DEFAULT now()
);

CREATE TABLE platform.addons (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    project_id uuid NOT NULL REFERENCES platform.projects (id) ON DELETE CASCADE,
    addon_type text NOT NULL,
    addon_variant text NOT NULL,
    quantity integer DEFAULT 1,
    price_per_unit numeric DEFAULT 0,
    metadata jsonb DEFAULT '{}'::jsonb,
    status text DEFAULT 'active',
    activated_at timestamptz DEFAULT now(),
    deactivated_at timestamptz,
    created_at timestamptz DEFAULT now(),
    updated_at timestamptz DEFAULT now()
);

CREATE INDEX idx_addons_project_id ON platform.addons (project_id);

CREATE TABLE platform.project_addons (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    project_id uuid NOT NULL REFERENCES platform.projects (id) ON DELETE CASCADE,
    addon_id text NOT NULL,
    addon_variant text,
    quantity integer DEFAULT 1,
    price_per_unit numeric DEFAULT 0,
    status text DEFAULT 'active',
    activated_at timestamptz DEFAULT now(),
    deactivated_at timestamptz,
    created_at timestamptz DEFAULT now(),
    updated_at timestamptz DEFAULT now(),
    UNIQUE (project_id, addon_id)
);

CREATE TABLE platform.project_metrics (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    project_id uuid NOT NULL REFERENCES platform.projects (id) ON DELETE CASCADE,
    "timestamp" timestamptz NOT NULL DEFAULT now(),
    cpu_usage numeric,
    memory_usage numeric,
    disk_io_budget numeric,
    disk_usage_gb numeric,
    network_in_bytes bigint,
    network_out_bytes bigint,
    active_connections integer,
    query_count integer,
    created_at timestamptz DEFAULT now()
);

CREATE INDEX idx_project_metrics_project_id ON platform.project_metrics (project_id, "timestamp" DESC);

CREATE TRIGGER update_billing_plans_updated_at BEFORE UPDATE ON platform.billing_plans
    FOR EACH ROW EXECUTE FUNCTION platform.update_updated_at_column();
CREATE TRIGGER update_customer_profiles_updated_at BEFORE UPDATE ON platform.customer_profiles
    FOR EACH ROW EXECUTE FUNCTION platform.update_updated_at_column();
CREATE TRIGGER update_subscriptions_updated_at BEFORE UPDATE ON platform.subscriptions
    FOR EACH ROW EXECUTE FUNCTION platform.update_updated_at_column();
CREATE TRIGGER update_payment_methods_updated_at BEFORE UPDATE ON platform.payment_methods
    FOR EACH ROW EXECUTE FUNCTION platform.update_updated_at_column();
CREATE TRIGGER update_invoices_updated_at BEFORE UPDATE ON platform.invoices
    FOR EACH ROW EXECUTE FUNCTION platform.update_updated_at_column();
CREATE TRIGGER update_credits_updated_at BEFORE UPDATE ON platform.credits
    FOR EACH ROW EXECUTE FUNCTION platform.update_updated_at_column();
CREATE TRIGGER update_tax_ids_updated_at BEFORE UPDATE ON platform.tax_ids
    FOR EACH ROW EXECUTE FUNCTION platform.update_updated_at_column();
CREATE TRIGGER update_compute_config_updated_at BEFORE UPDATE ON platform.compute_config
    FOR EACH ROW EXECUTE FUNCTION platform.update_updated_at_column();
CREATE TRIGGER update_disk_config_updated_at BEFORE UPDATE ON platform.disk_config
    FOR EACH ROW EXECUTE FUNCTION platform.update_updated_at_column();
CREATE TRIGGER update_addons_updated_at BEFORE UPDATE ON platform.addons
    FOR EACH ROW EXECUTE FUNCTION platform.update_updated_at_column();
CREATE TRIGGER update_project_addons_updated_at BEFORE UPDATE ON platform.project_addons
    FOR EACH ROW EXECUTE FUNCTION platform.update_updated_at_column();

CREATE FUNCTION platform.get_active_subscription(org_id uuid) RETURNS platform.subscriptions
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT s.*
    FROM platform.subscriptions AS s
    WHERE s.organization_id = org_id
      AND s.status IN ('active', 'trialing');
$$;

-- A metric belongs to the organization directly or through its project. The period is half open.
CREATE FUNCTION platform.calculate_usage_cost(org_id uuid, start_period timestamptz, end_period timestamptz)
    RETURNS numeric
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(sum(m.cost), 0)
    FROM platform.usage_metrics AS m
    LEFT JOIN platform.projects AS p ON p.id = m.project_id
    WHERE coalesce(m.organization_id, p.organization_id) = org_id
      AND m.period_start >= start_period
      AND m.period_start < end_period;
$$;

CREATE FUNCTION platform.get_available_credits(org_id uuid) RETURNS numeric
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(sum(c.remaining), 0)
    FROM platform.credits AS c
    WHERE c.organization_id = org_id
      AND c.status = 'active'
      AND (c.expires_at IS NULL OR c.expires_at > now());
$$;

CREATE FUNCTION platform.is_free_tier(org_id uuid) RETURNS boolean
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT NOT EXISTS (
        SELECT FROM platform.subscriptions AS s
        WHERE s.organization_id = org_id
          AND s.status IN ('active', 'trialing')
          AND s.plan_id <> 'free'
    );
$$;

CREATE VIEW platform.subscriptions_with_orgs AS
SELECT
    s.id,
    s.organization_id,
    o.name AS organization_name,
    o.slug AS organization_slug,
    o.billing_email,
    s.plan_id,
    s.plan_name,
    s.status,
    s.current_period_start,
    s.current_period_end,
    s.next_invoice_at,
    s.usage_billing_enabled,
    s.spend_cap_enabled,
    s.spend_cap_amount,
    s.customer_balance,
    s.created_at,
    s.updated_at
FROM platform.subscriptions AS s
JOIN platform.organizations AS o ON o.id = s.organization_id;

CREATE VIEW platform.organization_billing_overview AS
SELECT
    o.id AS organization_id,
    o.name AS organization_name,
    o.slug AS organization_slug,
    s.plan_id,
    s.plan_name,
    s.status AS subscription_status,
    i.invoice_count,
    i.amount_open,
    c.credits_remaining
FROM platform.organizations AS o
LEFT JOIN platform.subscriptions AS s ON s.organization_id = o.id
LEFT JOIN LATERAL (
    SELECT count(*) AS invoice_count, coalesce(sum(v.amount_remaining), 0) AS amount_open
    FROM platform.invoices AS v
    WHERE v.organization_id = o.id
) AS i ON true
LEFT JOIN LATERAL (
    SELECT coalesce(sum(d.remaining), 0) AS credits_remaining
    FROM platform.credits AS d
    WHERE d.organization_id = o.id AND d.status = 'active'
) AS c ON true;

CREATE VIEW platform.project_resources AS
SELECT
    p.id AS project_id,
    p.organization_id,
    p.name AS project_name,
    p.ref AS project_ref,
    p.status AS project_status,
    cc.instance_size,
    cc.cpu_cores,
    cc.memory_gb,
    dc.size_gb AS disk_size_gb,
    dc.io_budget AS disk_io_budget,
    dc.autoscale_enabled AS disk_autoscale_enabled,
    (SELECT count(*) FROM platform.addons AS a WHERE a.project_id = p.id AND a.status = 'active') AS active_addon_count
FROM platform.projects AS p
LEFT JOIN platform.compute_config AS cc ON cc.project_id = p.id
LEFT JOIN platform.disk_config AS dc ON dc.project_id = p.id;

COMMIT;

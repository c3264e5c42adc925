-- Copyright (c) 2026, Surefoot contributors
-- GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
-- SPDX-License-Identifier: GPL-3.0-or-later

-- 001: schema platform with organizations, projects and their credentials.

BEGIN;

CREATE SCHEMA IF NOT EXISTS platform;

COMMENT ON SCHEMA platform IS 'Organizations, projects, billing, users and connected databases of the platform';

CREATE FUNCTION platform.update_updated_at_column() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    NEW.updated_at := now();
    RETURN NEW;
END;
$$;

COMMENT ON FUNCTION platform.update_updated_at_column() IS 'Trigger: sets updated_at to the time of the transaction';

CREATE FUNCTION platform.generate_slug(input_text text) RETURNS text
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT trim(BOTH '-' FROM regexp_replace(lower(input_text), '[^a-z0-9]+', '-', 'g'));
$$;

COMMENT ON FUNCTION platform.generate_slug(text) IS
    'Lower case, with runs of other characters than a-z and 0-9 turned into one hyphen';

CREATE TABLE platform.organizations (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name text NOT NULL,
    slug text NOT NULL UNIQUE,
    billing_email text,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE platform.projects (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    organization_id uuid NOT NULL REFERENCES platform.organizations (id) ON DELETE CASCADE,
    name text NOT NULL,
    slug text NOT NULL,
    ref text NOT NULL UNIQUE,
    database_host text NOT NULL,
    database_port integer NOT NULL DEFAULT 5432,
    database_name text NOT NULL,
    database_user text NOT NULL,
    database_password text NOT NULL,
    postgres_meta_url text NOT NULL,
    supabase_url text NOT NULL,
    status text NOT NULL DEFAULT 'active',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX idx_projects_organization_id ON platform.projects (organization_id);
CREATE INDEX idx_projects_status ON platform.projects (status);

CREATE TABLE platform.credentials (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    project_id uuid NOT NULL UNIQUE REFERENCES platform.projects (id) ON DELETE CASCADE,
    anon_key text NOT NULL,
    service_role_key text NOT NULL,
    jwt_secret text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE TRIGGER update_organizations_updated_at BEFORE UPDATE ON platform.organizations
    FOR EACH ROW EXECUTE FUNCTION platform.update_updated_at_column();
CREATE TRIGGER update_projects_updated_at BEFORE UPDATE ON platform.projects
    FOR EACH ROW EXECUTE FUNCTION platform.update_updated_at_column();
CREATE TRIGGER update_credentials_updated_at BEFORE UPDATE ON platform.credentials
    FOR EACH ROW EXECUTE FUNCTION platform.update_updated_at_column();

CREATE FUNCTION platform.get_organization_by_slug(org_slug text) RETURNS platform.organizations
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT o.* FROM platform.organizations AS o WHERE o.slug = org_slug;
$$;

CREATE FUNCTION platform.get_project_by_ref(project_ref text) RETURNS platform.projects
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT p.* FROM platform.projects AS p WHERE p.ref = project_ref;
$$;

CREATE FUNCTION platform.get_credentials_by_project_ref(project_ref text) RETURNS platform.credentials
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT c.*
    FROM platform.credentials AS c
    JOIN platform.projects AS p ON p.id = c.project_id
    WHERE p.ref = project_ref;
$$;

CREATE VIEW platform.organizations_with_stats AS
SELECT
    o.id,
    o.name,
    o.slug,
    o.billing_email,
    o.created_at,
    o.updated_at,
    count(p.id) AS project_count,
    count(p.id) FILTER (WHERE p.status = 'active') AS active_project_count
FROM platform.organizations AS o
LEFT JOIN platform.projects AS p ON p.organization_id = o.id
GROUP BY o.id;

CREATE VIEW platform.projects_with_credentials AS
SELECT
    p.id,
    p.organization_id,
    p.name,
    p.slug,
    p.ref,
    p.database_host,
    p.database_port,
    p.database_name,
    p.database_user,
    p.postgres_meta_url,
    p.supabase_url,
    p.status,
    p.created_at,
    p.updated_at,
    c.anon_key,
    c.service_role_key,
    c.jwt_secret
FROM platform.projects AS p
LEFT JOIN platform.credentials AS c ON c.project_id = p.id;

COMMIT;

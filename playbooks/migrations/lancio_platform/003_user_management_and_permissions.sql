-- Copyright (c) 2026, Surefoot contributors
-- GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
-- SPDX-License-Identifier: GPL-3.0-or-later

-- 003: users, sessions, API keys, memberships, invitations, feature flags, and pgcrypto for 006.

BEGIN;

-- Where pgcrypto is installed already (Supabase: schema extensions) it stays where it is.
CREATE EXTENSION IF NOT EXISTS pgcrypto SCHEMA public;

CREATE TABLE platform.users (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    email text NOT NULL UNIQUE,
    username text UNIQUE,
    first_name text,
    last_name text,
    avatar_url text,
    phone text,
    password_hash text,
    mfa_enabled boolean DEFAULT false,
    email_confirmed_at timestamptz,
    banned_until timestamptz,
    deleted_at timestamptz,
    metadata jsonb DEFAULT '{}'::jsonb,
    last_sign_in_at timestamptz,
    created_at timestamptz DEFAULT now(),
    updated_at timestamptz DEFAULT now()
);

CREATE TABLE platform.user_sessions (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id uuid NOT NULL REFERENCES platform.users (id) ON DELETE CASCADE,
    token text NOT NULL UNIQUE,
    refresh_token text UNIQUE,
    ip_address inet,
    user_agent text,
    expires_at timestamptz NOT NULL,
    last_activity_at timestamptz DEFAULT now(),
    created_at timestamptz DEFAULT now()
);

CREATE INDEX idx_user_sessions_user_id ON platform.user_sessions (user_id);
CREATE INDEX idx_user_sessions_expires_at ON platform.user_sessions (expires_at);

CREATE TABLE platform.organization_members (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    organization_id uuid NOT NULL REFERENCES platform.organizations (id) ON DELETE CASCADE,
    user_id uuid NOT NULL REFERENCES platform.users (id) ON DELETE CASCADE,
    role text NOT NULL CHECK (role IN ('owner', 'admin', 'billing_admin', 'developer', 'member')),
    invited_at timestamptz,
    invited_by uuid REFERENCES platform.users (id) ON DELETE SET NULL,
    joined_at timestamptz DEFAULT now(),
    created_at timestamptz DEFAULT now(),
    updated_at timestamptz DEFAULT now(),
    UNIQUE (organization_id, user_id)
);

CREATE INDEX idx_organization_members_user_id ON platform.organization_members (user_id);
CREATE INDEX idx_organization_members_invited_by ON platform.organization_members (invited_by);

CREATE TABLE platform.organization_invitations (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    organization_id uuid NOT NULL REFERENCES platform.organizations (id) ON DELETE CASCADE,
    invited_email text NOT NULL,
    invited_by uuid NOT NULL REFERENCES platform.users (id) ON DELETE CASCADE,
    role text NOT NULL CHECK (role IN ('owner', 'admin', 'billing_admin', 'developer', 'member')),
    token text NOT NULL UNIQUE,
    expires_at timestamptz NOT NULL DEFAULT now() + interval '7 days',
    accepted_at timestamptz,
    created_at timestamptz DEFAULT now()
);

CREATE INDEX idx_organization_invitations_organization_id ON platform.organization_invitations (organization_id);
CREATE INDEX idx_organization_invitations_invited_by ON platform.organization_invitations (invited_by);
CREATE INDEX idx_organization_invitations_invited_email ON platform.organization_invitations (invited_email);

CREATE TABLE platform.project_members (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    project_id uuid NOT NULL REFERENCES platform.projects (id) ON DELETE CASCADE,
    user_id uuid NOT NULL REFERENCES platform.users (id) ON DELETE CASCADE,
    role text NOT NULL CHECK (role IN ('owner', 'admin', 'billing_admin', 'developer', 'member')),
    added_by uuid REFERENCES platform.users (id) ON DELETE SET NULL,
    created_at timestamptz DEFAULT now(),
    updated_at timestamptz DEFAULT now(),
    UNIQUE (project_id, user_id)
);

CREATE INDEX idx_project_members_user_id ON platform.project_members (user_id);
CREATE INDEX idx_project_members_added_by ON platform.project_members (added_by);

CREATE TABLE platform.api_keys (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    organization_id uuid NOT NULL REFERENCES platform.organizations (id) ON DELETE CASCADE,
    user_id uuid NOT NULL REFERENCES platform.users (id) ON DELETE CASCADE,
    name text NOT NULL,
    key_prefix text NOT NULL,
    key_hash text NOT NULL UNIQUE,
    scopes jsonb DEFAULT '[]'::jsonb,
    last_used_at timestamptz,
    expires_at timestamptz,
    revoked_at timestamptz,
    created_at timestamptz DEFAULT now()
);

CREATE INDEX idx_api_keys_organization_id ON platform.api_keys (organization_id);
CREATE INDEX idx_api_keys_user_id ON platform.api_keys (user_id);

CREATE TABLE platform.feature_flags (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    flag_key text NOT NULL UNIQUE,
    flag_name text NOT NULL,
    description text,
    enabled boolean DEFAULT false,
    rollout_percentage integer DEFAULT 0 CHECK (rollout_percentage BETWEEN 0 AND 100),
    created_at timestamptz DEFAULT now(),
    updated_at timestamptz DEFAULT now()
);

CREATE TABLE platform.organization_feature_flags (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    organization_id uuid NOT NULL REFERENCES platform.organizations (id) ON DELETE CASCADE,
    flag_id uuid NOT NULL REFERENCES platform.feature_flags (id) ON DELETE CASCADE,
    enabled boolean NOT NULL DEFAULT true,
    created_at timestamptz DEFAULT now(),
    updated_at timestamptz DEFAULT now(),
    UNIQUE (organization_id, flag_id)
);

CREATE INDEX idx_organization_feature_flags_flag_id ON platform.organization_feature_flags (flag_id);

CREATE TRIGGER update_users_updated_at BEFORE UPDATE ON platform.users
    FOR EACH ROW EXECUTE FUNCTION platform.update_updated_at_column();
CREATE TRIGGER update_organization_members_updated_at BEFORE UPDATE ON platform.organization_members
    FOR EACH ROW EXECUTE FUNCTION platform.update_updated_at_column();
CREATE TRIGGER update_project_members_updated_at BEFORE UPDATE ON platform.project_members
    FOR EACH ROW EXECUTE FUNCTION platform.update_updated_at_column();
CREATE TRIGGER update_feature_flags_updated_at BEFORE UPDATE ON platform.feature_flags
    FOR EACH ROW EXECUTE FUNCTION platform.update_updated_at_column();
CREATE TRIGGER update_organization_feature_flags_updated_at BEFORE UPDATE ON platform.organization_feature_flags
    FOR EACH ROW EXECUTE FUNCTION platform.update_updated_at_column();

CREATE FUNCTION platform.is_organization_owner(p_user_id uuid, p_organization_id uuid) RETURNS boolean
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT EXISTS (
        SELECT FROM platform.organization_members AS m
        WHERE m.user_id = p_user_id
          AND m.organization_id = p_organization_id
          AND m.role = 'owner'
    );
$$;

-- Owners and administrators of the organization reach all its projects; others need a row in project_members.
CREATE FUNCTION platform.has_project_access(p_user_id uuid, p_project_id uuid) RETURNS boolean
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT EXISTS (
        SELECT
        FROM platform.projects AS p
        JOIN platform.organization_members AS m ON m.organization_id = p.organization_id AND m.user_id = p_user_id
        LEFT JOIN platform.project_members AS pm ON pm.project_id = p.id AND pm.user_id = p_user_id
        WHERE p.id = p_project_id
          AND (m.role IN ('owner', 'admin') OR pm.id IS NOT NULL)
    );
$$;

-- What the organization decided for a flag wins over the flag's own setting.
CREATE FUNCTION platform.get_active_feature_flags(p_organization_id uuid)
    RETURNS TABLE (flag_key text, flag_name text, enabled boolean)
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT f.flag_key, f.flag_name, coalesce(o.enabled, f.enabled, false)
    FROM platform.feature_flags AS f
    LEFT JOIN platform.organization_feature_flags AS o ON o.flag_id = f.id AND o.organization_id = p_organization_id
    WHERE coalesce(o.enabled, f.enabled, false)
    ORDER BY f.flag_key;
$$;

COMMIT;

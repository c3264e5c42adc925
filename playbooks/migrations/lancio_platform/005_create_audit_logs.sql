-- Copyright (c) 2026, Surefoot contributors
-- GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
-- SPDX-License-Identifier: GPL-3.0-or-later

-- 005: the audit log.

BEGIN;

-- An audit_logs made by other means may have other columns: IF NOT EXISTS would pass over it and fail later, on an
-- index of a column that is not there. One with all the columns is taken as it is.
DO $$
DECLARE
    difference text;
BEGIN
    IF to_regclass('platform.audit_logs') IS NULL THEN
        RETURN;
    END IF;
    SELECT string_agg(
        format('%I %s (found: %s)', w.name, w.type, coalesce(format_type(a.atttypid, a.atttypmod), 'no such column')),
        ', ' ORDER BY w.position
    )
    INTO difference
    FROM unnest(
        ARRAY['id', 'organization_id', 'project_id', 'user_id', 'event_type', 'resource_type', 'resource_id', 'action',
              'ip_address', 'user_agent', 'metadata', 'severity', 'created_at'],
        ARRAY['uuid', 'uuid', 'uuid', 'uuid', 'text', 'text', 'uuid', 'text',
              'inet', 'text', 'jsonb', 'text', 'timestamp with time zone']
    ) WITH ORDINALITY AS w (name, type, position)
    LEFT JOIN pg_attribute AS a
        ON a.attrelid = to_regclass('platform.audit_logs') AND a.attname = w.name
        AND a.attnum > 0 AND NOT a.attisdropped
    WHERE a.attname IS NULL OR format_type(a.atttypid, a.atttypmod) <> w.type;
    IF difference IS NOT NULL THEN
        RAISE EXCEPTION 'platform.audit_logs exists already with other columns; needed: %', difference
            USING ERRCODE = 'duplicate_table',
                  HINT = 'Rename the old table, run this migration again, then copy the rows you want to keep.';
    END IF;
END;
$$;

CREATE TABLE IF NOT EXISTS platform.audit_logs (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    organization_id uuid REFERENCES platform.organizations (id) ON DELETE SET NULL,
    project_id uuid REFERENCES platform.projects (id) ON DELETE SET NULL,
    user_id uuid REFERENCES platform.users (id) ON DELETE SET NULL,
    event_type text NOT NULL,
    resource_type text,
    resource_id uuid,
    action text NOT NULL,
    ip_address inet,
    user_agent text,
    metadata jsonb DEFAULT '{}'::jsonb,
    severity text DEFAULT 'info',
    created_at timestamptz DEFAULT now()
);

CREATE INDEX IF NOT EXISTS idx_audit_logs_organization_id ON platform.audit_logs (organization_id, created_at DESC);
CREATE INDEX IF NOT EXISTS idx_audit_logs_project_id ON platform.audit_logs (project_id, created_at DESC);
CREATE INDEX IF NOT EXISTS idx_audit_logs_user_id ON platform.audit_logs (user_id, created_at DESC);
CREATE INDEX IF NOT EXISTS idx_audit_logs_event_type ON platform.audit_logs (event_type);
CREATE INDEX IF NOT EXISTS idx_audit_logs_created_at ON platform.audit_logs (created_at DESC);

COMMIT;

-- Copyright (c) 2026, Surefoot contributors
-- GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
-- SPDX-License-Identifier: GPL-3.0-or-later

-- Rollback of 006, step 2: no permissive policies, no row level security, views as before.

BEGIN;

DROP FUNCTION platform.test_rls_policies();
DROP FUNCTION platform.verify_rls_enabled();

DO $$
DECLARE
    tables text;
    target record;
    owner name;
BEGIN
    -- Without row level security their rules would be void.
    SELECT string_agg(DISTINCT c.relname, ', ')
    INTO tables
    FROM pg_policy AS p
    JOIN pg_class AS c ON c.oid = p.polrelid
    WHERE c.relnamespace = 'platform'::regnamespace
      AND p.polname <> left('permissive_all_' || c.relname, 63);
    IF tables IS NOT NULL THEN
        RAISE EXCEPTION 'tables with policies that are not from migration 006: %', tables
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = 'Roll back the migration they come from first (007 by its own rollback file).';
    END IF;

    FOR target IN
        SELECT c.relname
        FROM pg_class AS c
        WHERE c.relnamespace = 'platform'::regnamespace AND c.relkind IN ('r', 'p')
        ORDER BY c.relname
    LOOP
        EXECUTE format('DROP POLICY IF EXISTS %I ON platform.%I',
                       left('permissive_all_' || target.relname, 63), target.relname);
        EXECUTE format('ALTER TABLE platform.%I DISABLE ROW LEVEL SECURITY', target.relname);
    END LOOP;

    IF current_setting('server_version_num')::integer >= 150000 THEN
        FOR target IN
            SELECT c.relname FROM pg_class AS c
            WHERE c.relnamespace = 'platform'::regnamespace AND c.relkind = 'v'
            ORDER BY c.relname
        LOOP
            EXECUTE format('ALTER VIEW platform.%I RESET (security_invoker)', target.relname);
        END LOOP;
        RETURN;
    END IF;

    SELECT pg_get_userbyid(c.relowner) INTO owner FROM pg_class AS c WHERE c.oid = 'platform.organizations'::regclass;
    FOR target IN
        SELECT c.relname FROM pg_class AS c
        WHERE c.relnamespace = 'platform'::regnamespace AND c.relkind = 'v'
          AND pg_get_userbyid(c.relowner) = 'platform_view_owner'
        ORDER BY c.relname
    LOOP
        EXECUTE format('ALTER VIEW platform.%I OWNER TO %I', target.relname, owner);
    END LOOP;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'platform_view_owner') THEN
        REVOKE ALL ON ALL TABLES IN SCHEMA platform FROM platform_view_owner;
        REVOKE ALL ON SCHEMA platform FROM platform_view_owner;
        -- Roles belong to the whole server: other databases may use this one, or an administrator made it.
        BEGIN
            DROP ROLE platform_view_owner;
        EXCEPTION
            WHEN dependent_objects_still_exist OR insufficient_privilege THEN
                RAISE NOTICE 'role platform_view_owner stays: other databases use it, or somebody else made it';
        END;
    END IF;
END;
$$;

-- What the rollback is for, checked while it can still be undone.
DO $$
DECLARE
    policies bigint;
    tables bigint;
BEGIN
    SELECT count(*) INTO policies FROM pg_policies WHERE schemaname = 'platform';
    SELECT count(*) INTO tables FROM pg_tables WHERE schemaname = 'platform' AND rowsecurity;
    IF policies > 0 OR tables > 0 THEN
        RAISE EXCEPTION 'schema platform still has % policies and % tables with row level security', policies, tables
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
END;
$$;

COMMIT;

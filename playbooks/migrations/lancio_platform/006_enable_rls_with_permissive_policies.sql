-- Copyright (c) 2026, Surefoot contributors
-- GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
-- SPDX-License-Identifier: GPL-3.0-or-later

-- 006, step 2: row level security on every table of the schema, with policies that allow everything.
--
-- What the application sees does not change. The tables are taken from the catalog: a typed list forgets the table
-- that was created one step before. Policies do nothing for the tables' owner and for superusers.

BEGIN;

DO $$
DECLARE
    tables text;
    target record;
BEGIN
    -- On a table that has its own rules already, a policy that allows everything would open it.
    SELECT string_agg(c.relname, ', ' ORDER BY c.relname)
    INTO tables
    FROM pg_class AS c
    WHERE c.relnamespace = 'platform'::regnamespace
      AND c.relkind IN ('r', 'p')
      AND (
          (c.relrowsecurity AND NOT EXISTS (SELECT FROM pg_policy AS p WHERE p.polrelid = c.oid))
          OR EXISTS (
              SELECT FROM pg_policy AS p
              WHERE p.polrelid = c.oid AND p.polname <> left('permissive_all_' || c.relname, 63)
          )
      );
    IF tables IS NOT NULL THEN
        RAISE EXCEPTION 'row level security is in use already on: %', tables
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = 'This migration would open these tables to everybody. Drop their policies first, or skip it.';
    END IF;

    FOR target IN
        SELECT c.oid, c.relname, left('permissive_all_' || c.relname, 63) AS policy
        FROM pg_class AS c
        WHERE c.relnamespace = 'platform'::regnamespace AND c.relkind IN ('r', 'p')
        ORDER BY c.relname
    LOOP
        EXECUTE format('ALTER TABLE platform.%I ENABLE ROW LEVEL SECURITY', target.relname);
        IF NOT EXISTS (SELECT FROM pg_policy AS p WHERE p.polrelid = target.oid) THEN
            EXECUTE format('CREATE POLICY %I ON platform.%I FOR ALL TO PUBLIC USING (true) WITH CHECK (true)',
                           target.policy, target.relname);
        END IF;
    END LOOP;
END;
$$;

-- A view reads its tables as its owner, whom policies do not bind. From PostgreSQL 15 a view can read them as its
-- reader; before that, it gets an owner who owns no table and is bound by the policies.
DO $$
DECLARE
    problem text;
    target record;
BEGIN
    IF current_setting('server_version_num')::integer >= 150000 THEN
        -- A role that may read a view but not the tables below it would lose the view.
        SELECT string_agg(DISTINCT format('%s (view %s, table %s)', reader.name, v.relname, t.relname), '; ')
        INTO problem
        FROM pg_class AS v
        CROSS JOIN LATERAL aclexplode(v.relacl) AS acl
        CROSS JOIN LATERAL (
            SELECT CASE WHEN acl.grantee = 0 THEN 'public'::name ELSE pg_get_userbyid(acl.grantee) END AS name
        ) AS reader
        JOIN pg_rewrite AS r ON r.ev_class = v.oid
        JOIN pg_depend AS d
            ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
            AND d.refclassid = 'pg_class'::regclass AND d.refobjid <> v.oid AND d.refobjsubid > 0
        JOIN pg_class AS t ON t.oid = d.refobjid
        WHERE v.relnamespace = 'platform'::regnamespace
          AND v.relkind = 'v'
          AND acl.privilege_type = 'SELECT'
          AND acl.grantee <> v.relowner
          AND NOT has_column_privilege(reader.name, t.oid, d.refobjsubid::smallint, 'SELECT');
        IF problem IS NOT NULL THEN
            RAISE EXCEPTION 'roles that read a view without SELECT on its tables would lose it: %', problem
                USING ERRCODE = 'object_not_in_prerequisite_state',
                      HINT = 'Grant them SELECT on the columns the view shows, or revoke the view.';
        END IF;
        FOR target IN
            SELECT c.relname FROM pg_class AS c
            WHERE c.relnamespace = 'platform'::regnamespace AND c.relkind = 'v'
            ORDER BY c.relname
        LOOP
            EXECUTE format('ALTER VIEW platform.%I SET (security_invoker = true)', target.relname);
        END LOOP;
        RETURN;
    END IF;

    SELECT string_agg(c.relname, ', ' ORDER BY c.relname)
    INTO problem
    FROM pg_class AS c
    WHERE c.relnamespace = 'platform'::regnamespace
      AND c.relkind = 'v'
      AND c.relowner <> (SELECT o.relowner FROM pg_class AS o WHERE o.oid = 'platform.organizations'::regclass)
      AND pg_get_userbyid(c.relowner) <> 'platform_view_owner';
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION 'views with another owner than platform.organizations: %', problem
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = 'Give tables and views of the schema one owner.';
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'platform_view_owner') THEN
        BEGIN
            CREATE ROLE platform_view_owner NOLOGIN;
        EXCEPTION
            WHEN insufficient_privilege THEN
                RAISE EXCEPTION 'before PostgreSQL 15 the views need an owner of their own; % may not create roles',
                    current_user
                    USING ERRCODE = 'insufficient_privilege',
                          HINT = format('Have an administrator run: CREATE ROLE platform_view_owner NOLOGIN; '
                                        'GRANT platform_view_owner TO %I;', current_user);
        END;
    END IF;
    IF EXISTS (
        SELECT FROM pg_roles
        WHERE rolname = 'platform_view_owner' AND (rolsuper OR rolbypassrls OR rolcanlogin)
    ) THEN
        RAISE EXCEPTION 'role platform_view_owner may log in or is not bound by row level security'
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = 'ALTER ROLE platform_view_owner NOLOGIN NOSUPERUSER NOBYPASSRLS;';
    END IF;
    SELECT pg_get_userbyid(o.relowner) AS name INTO target
    FROM pg_class AS o WHERE o.oid = 'platform.organizations'::regclass;
    -- The tables' owner goes on owning the views through membership. CREATE is needed to become owner only.
    IF NOT pg_has_role(target.name, 'platform_view_owner', 'USAGE') THEN
        EXECUTE format('GRANT platform_view_owner TO %I', target.name);
    END IF;
    IF NOT pg_has_role(current_user, 'platform_view_owner', 'MEMBER') THEN
        EXECUTE format('GRANT platform_view_owner TO %I', current_user);
    END IF;
    GRANT USAGE, CREATE ON SCHEMA platform TO platform_view_owner;
    FOR target IN
        SELECT DISTINCT t.relname
        FROM pg_class AS v
        JOIN pg_rewrite AS r ON r.ev_class = v.oid
        JOIN pg_depend AS d
            ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
            AND d.refclassid = 'pg_class'::regclass AND d.refobjid <> v.oid
        JOIN pg_class AS t ON t.oid = d.refobjid AND t.relkind IN ('r', 'p', 'v')
        WHERE v.relnamespace = 'platform'::regnamespace AND v.relkind = 'v'
        ORDER BY t.relname
    LOOP
        EXECUTE format('GRANT SELECT ON platform.%I TO platform_view_owner', target.relname);
    END LOOP;
    FOR target IN
        SELECT c.relname FROM pg_class AS c
        WHERE c.relnamespace = 'platform'::regnamespace AND c.relkind = 'v'
        ORDER BY c.relname
    LOOP
        EXECUTE format('ALTER VIEW platform.%I OWNER TO platform_view_owner', target.relname);
    END LOOP;
    REVOKE CREATE ON SCHEMA platform FROM platform_view_owner;
END;
$$;

CREATE OR REPLACE FUNCTION platform.verify_rls_enabled()
    RETURNS TABLE (table_name text, rls_enabled boolean, policy_count bigint)
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT
        c.relname::text,
        c.relrowsecurity,
        (SELECT count(*) FROM pg_policy AS p WHERE p.polrelid = c.oid)
    FROM pg_class AS c
    WHERE c.relnamespace = 'platform'::regnamespace AND c.relkind IN ('r', 'p')
    ORDER BY c.relname;
$$;

COMMENT ON FUNCTION platform.verify_rls_enabled() IS
    'For each table of the schema: is row level security on, and how many policies has it';

CREATE OR REPLACE FUNCTION platform.test_rls_policies()
    RETURNS TABLE (test_name text, test_result boolean, description text)
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    offenders text;
    target name;
BEGIN
    SELECT string_agg(v.table_name, ', ') INTO offenders
    FROM platform.verify_rls_enabled() AS v WHERE NOT v.rls_enabled;
    RETURN QUERY SELECT 'rls_enabled_on_all_tables'::text, offenders IS NULL,
        coalesce('row level security is off on: ' || offenders, 'row level security is on for every table');

    SELECT string_agg(v.table_name, ', ') INTO offenders
    FROM platform.verify_rls_enabled() AS v WHERE v.policy_count = 0;
    RETURN QUERY SELECT 'every_table_has_a_policy'::text, offenders IS NULL,
        coalesce('no policy, so nobody but the owner sees a row: ' || offenders, 'every table has at least one policy');

    -- Either every table is open (006) or none is (007); a mixture is a migration gone wrong.
    SELECT string_agg(c.relname, ', ' ORDER BY c.relname) INTO offenders
    FROM pg_class AS c
    WHERE c.relnamespace = 'platform'::regnamespace
      AND c.relkind IN ('r', 'p')
      AND EXISTS (SELECT FROM pg_policy AS p JOIN pg_class AS o ON o.oid = p.polrelid
                  WHERE o.relnamespace = c.relnamespace AND p.polname LIKE 'permissive\_all\_%')
      AND NOT EXISTS (
          SELECT FROM pg_policies AS p
          WHERE p.schemaname = 'platform' AND p.tablename = c.relname
            AND p.policyname = left('permissive_all_' || c.relname, 63)
            AND p.permissive = 'PERMISSIVE' AND p.cmd = 'ALL' AND p.roles = '{public}'
            AND p.qual = 'true' AND p.with_check = 'true'
      );
    RETURN QUERY SELECT 'policies_are_of_one_kind'::text, offenders IS NULL,
        coalesce('other tables are open, these are not: ' || offenders,
                 'either every table has its permissive policy or none has');

    -- security_invoker (from PostgreSQL 15) or an owner who is bound by the policies.
    SELECT string_agg(v.relname, ', ' ORDER BY v.relname) INTO offenders
    FROM pg_class AS v
    JOIN pg_roles AS owner ON owner.oid = v.relowner
    WHERE v.relnamespace = 'platform'::regnamespace
      AND v.relkind = 'v'
      AND NOT coalesce(v.reloptions && '{security_invoker=true,security_invoker=on,security_invoker=1}', false)
      AND (owner.rolsuper OR owner.rolbypassrls OR EXISTS (
          SELECT FROM pg_class AS t
          WHERE t.relnamespace = v.relnamespace AND t.relkind IN ('r', 'p') AND t.relowner = v.relowner
      ));
    RETURN QUERY SELECT 'views_obey_policies'::text, offenders IS NULL,
        coalesce('views that read past the policies: ' || offenders, 'no view reads past the policies');

    SELECT string_agg(p.proname, ', ' ORDER BY p.proname) INTO offenders
    FROM pg_proc AS p
    WHERE p.pronamespace = 'platform'::regnamespace
      AND p.prosecdef
      AND (
          NOT EXISTS (SELECT FROM unnest(p.proconfig) AS s (setting) WHERE s.setting LIKE 'search\_path=%')
          OR EXISTS (
              SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS acl
              WHERE acl.grantee = 0 AND acl.privilege_type = 'EXECUTE'
          )
      );
    RETURN QUERY SELECT 'security_definer_is_closed'::text, offenders IS NULL,
        coalesce('no pinned search_path, or open to PUBLIC: ' || offenders,
                 'SECURITY DEFINER functions have a pinned search_path and are not open to PUBLIC');

    -- A policy whose expression fails would show here as an error, not as a wrong answer.
    FOR target IN
        SELECT c.relname FROM pg_class AS c
        WHERE c.relnamespace = 'platform'::regnamespace AND c.relkind IN ('r', 'p')
          AND has_table_privilege(c.oid, 'SELECT')
        ORDER BY c.relname
    LOOP
        EXECUTE format('SELECT FROM platform.%I LIMIT 1', target);
    END LOOP;
    RETURN QUERY SELECT 'tables_can_be_queried'::text, true, 'every table the caller may read answers a query'::text;
END;
$$;

COMMENT ON FUNCTION platform.test_rls_policies() IS
    'Tests of policies, views and SECURITY DEFINER functions of the schema';

COMMIT;

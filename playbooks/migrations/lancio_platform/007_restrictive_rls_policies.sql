-- Copyright (c) 2026, Surefoot contributors
-- GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
-- SPDX-License-Identifier: GPL-3.0-or-later

-- 007: policies by membership, in place of the ones that allow everything.
--
-- Manual: apply it when the application does the following, not before.
--   1. It connects as a role that owns no table of this schema, is no superuser and has no BYPASSRLS.
--   2. In each transaction, first of all, it says for whom it works:
--          SELECT set_config('app.current_user_id', '<users.id>', true);
--          SELECT set_config('app.current_org_id', '<organizations.id>', true);
--      (true: for this transaction only, so that a pooled connection cannot carry it over to the next user.) Without
--      app.current_user_id only plans and feature flags are visible; without app.current_org_id only what is the
--      user's own, and the list of the user's organizations.
--   3. Sign-up, sign-in, creating organizations, accepting invitations, collecting metrics and usage, and callbacks of
--      the payment service run under another role (the tables' owner, or one with BYPASSRLS): they act for nobody yet,
--      or for everybody. Before PostgreSQL 15 the views obey the policies for everybody, them included: use the tables.
--   4. A role that is created after this migration gets EXECUTE on the functions platform.current_*() and
--      platform.is_member_of_current_org() beside its privileges on the tables: its queries call them.
-- The policies trust the two settings. Whoever can send any SQL as the application's role can set them: they guard
-- against a forgotten WHERE clause, not against somebody who holds the application's password.
--
-- Roles in organization_members: owner, admin, billing_admin, developer, member. Owners and admins of the organization
-- reach all its projects; the others those where project_members names them, with the role they have there.
-- Below: oa = owner and admin of the organization, b = with billing_admin, p = those who reach the project,
-- poa = the project's owner and admin, pd = with the project's developer.
--
--   table                                          read           write
--   organizations                                  members        update oa; delete owner
--   organization_members                           members        oa, owners only by owners; members may leave
--   organization_invitations                       oa             oa, owners only by owners
--   organization_feature_flags                     members        oa
--   audit_logs                                     oa             insert by members, about themselves
--   subscriptions, invoices, credits               members        oa b
--   customer_profiles, payment_methods, tax_ids    oa b           oa b
--   users                                          oneself        update oneself (colleagues: organization_directory())
--   user_sessions                                  oneself        oneself
--   api_keys                                       oneself        oneself
--   projects                                       p              insert, delete oa; update oa poa
--   project_members                                p              oa poa, owners only by owners
--   credentials                                    oa pd          oa poa
--   databases                                      p              insert, update oa pd; delete oa poa
--   decrypted connection strings                   oa pd
--   compute_config, disk_config                    p              oa poa
--   addons, project_addons                         p b            oa b
--   usage_metrics                                  p b            nobody
--   project_metrics                                p              nobody
--   billing_plans, feature_flags                   everybody      nobody

BEGIN;

DO $$
DECLARE
    problem text;
BEGIN
    -- The functions below read memberships past the policies: they must belong to the owner of the tables.
    SELECT string_agg(c.relname, ', ' ORDER BY c.relname)
    INTO problem
    FROM pg_class AS c
    WHERE c.relnamespace = 'platform'::regnamespace
      AND c.relkind IN ('r', 'p')
      AND NOT pg_has_role(current_user, c.relowner, 'USAGE');
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION '% does not own these tables: %', current_user, problem
            USING ERRCODE = 'insufficient_privilege',
                  HINT = 'Apply this migration as the owner of the tables.';
    END IF;
    SELECT string_agg(c.relname, ', ' ORDER BY c.relname)
    INTO problem
    FROM pg_class AS c
    WHERE c.relnamespace = 'platform'::regnamespace
      AND c.relkind IN ('r', 'p')
      AND (c.relforcerowsecurity OR NOT c.relrowsecurity OR NOT EXISTS (
          SELECT FROM pg_policy AS p
          WHERE p.polrelid = c.oid AND p.polname = left('permissive_all_' || c.relname, 63)
      ));
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION 'tables that are not as migration 006 leaves them: %', problem
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = 'Apply 006_enable_rls_with_permissive_policies again; FORCE ROW LEVEL SECURITY must be off.';
    END IF;
END;
$$;

-- --------------------------------------------------------------------------------
-- Who asks. Policies call these as (SELECT ...): then they run once a statement, not once a row.
-- SECURITY DEFINER: a policy on organization_members that reads organization_members under the same policy never ends.
-- --------------------------------------------------------------------------------

CREATE FUNCTION platform.current_user_id() RETURNS uuid
    LANGUAGE sql STABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT nullif(current_setting('app.current_user_id', true), '')::uuid;
$$;

CREATE FUNCTION platform.current_org_id() RETURNS uuid
    LANGUAGE sql STABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT nullif(current_setting('app.current_org_id', true), '')::uuid;
$$;

-- All organizations of the current user, whichever is the current one. Deleted and banned users have none.
CREATE FUNCTION platform.current_user_organizations() RETURNS SETOF uuid
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT m.organization_id
    FROM platform.organization_members AS m
    JOIN platform.users AS u ON u.id = m.user_id
    WHERE m.user_id = platform.current_user_id()
      AND u.deleted_at IS NULL
      AND (u.banned_until IS NULL OR u.banned_until <= now());
$$;

-- The current organization if the current user is a member of it, else NULL, which equals nothing.
CREATE FUNCTION platform.current_org_as_member() RETURNS uuid
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT o.id
    FROM platform.current_user_organizations() AS o (id)
    WHERE o.id = platform.current_org_id();
$$;

-- The same for members with one of these roles.
CREATE FUNCTION platform.current_org_as(VARIADIC org_roles text[]) RETURNS uuid
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT m.organization_id
    FROM platform.organization_members AS m
    WHERE m.organization_id = platform.current_org_as_member()
      AND m.user_id = platform.current_user_id()
      AND m.role = ANY (org_roles);
$$;

-- Projects of the current organization, for a member with one of these roles in the organization or one of those in
-- the project.
CREATE FUNCTION platform.current_projects_as(org_roles text[], project_roles text[]) RETURNS SETOF uuid
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT p.id
    FROM platform.projects AS p
    WHERE p.organization_id = platform.current_org_as_member()
      AND (
          p.organization_id = platform.current_org_as(VARIADIC org_roles)
          OR EXISTS (
              SELECT FROM platform.project_members AS pm
              WHERE pm.project_id = p.id
                AND pm.user_id = platform.current_user_id()
                AND pm.role = ANY (project_roles)
          )
      );
$$;

CREATE FUNCTION platform.is_member_of_current_org(member_id uuid) RETURNS boolean
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT EXISTS (
        SELECT FROM platform.organization_members AS m
        WHERE m.organization_id = platform.current_org_as_member()
          AND m.user_id = member_id
    );
$$;

-- Who the colleagues are: users itself shows only oneself, since its rows hold password hashes.
CREATE FUNCTION platform.organization_directory()
    RETURNS TABLE (user_id uuid, email text, username text, first_name text, last_name text, avatar_url text, role text)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT u.id, u.email, u.username, u.first_name, u.last_name, u.avatar_url, m.role
    FROM platform.organization_members AS m
    JOIN platform.users AS u ON u.id = m.user_id
    WHERE m.organization_id = platform.current_org_as_member()
      AND u.deleted_at IS NULL
    ORDER BY u.email;
$$;

-- The function of 006 runs as the tables' owner, past the policies: it must ask by itself from now on.
CREATE OR REPLACE FUNCTION platform.decrypt_database_connection_string(database_id uuid) RETURNS text
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    row_project_id uuid;
    ciphertext bytea;
    decrypt_call text;
    plaintext text;
    identity text;
    key text;
BEGIN
    SELECT d.project_id, d.connection_string_encrypted
    INTO row_project_id, ciphertext
    FROM platform.databases AS d
    WHERE d.id = database_id
      AND d.project_id IN (SELECT platform.current_projects_as('{owner,admin}', '{owner,admin,developer}'));
    IF ciphertext IS NULL THEN
        RETURN NULL;
    END IF;

    key := nullif(current_setting('app.database_encryption_key', true), '');
    IF key IS NULL THEN
        RAISE EXCEPTION 'app.database_encryption_key is not set, so connection strings cannot be decrypted'
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = 'Give the key as a startup option of the connection (-c app.database_encryption_key=...).';
    END IF;
    SELECT format('SELECT %I.pgp_sym_decrypt($1, $2)', n.nspname)
    INTO decrypt_call
    FROM pg_extension AS e
    JOIN pg_namespace AS n ON n.oid = e.extnamespace
    WHERE e.extname = 'pgcrypto';
    IF decrypt_call IS NULL THEN
        RAISE EXCEPTION 'extension pgcrypto is not installed, so connection strings cannot be decrypted'
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = 'Have an administrator run: CREATE EXTENSION pgcrypto;';
    END IF;

    BEGIN
        EXECUTE decrypt_call INTO plaintext USING ciphertext, key;
    EXCEPTION
        WHEN external_routine_invocation_exception THEN
            RAISE EXCEPTION 'the connection string of database % cannot be decrypted: wrong key or damaged data',
                database_id
                USING ERRCODE = 'external_routine_invocation_exception',
                      HINT = 'app.database_encryption_key must be the key the row was stored with.';
    END;
    identity := concat_ws('|', 'platform.databases.connection_string', database_id::text, row_project_id::text, '');
    IF NOT starts_with(plaintext, identity) THEN
        RAISE EXCEPTION 'the encrypted connection string of database % belongs to another row', database_id
            USING ERRCODE = 'data_corrupted',
                  HINT = 'Set connection_string to the full URL again, and find out who copied the encrypted column.';
    END IF;
    RETURN substr(plaintext, length(identity) + 1);
END;
$$;

COMMENT ON FUNCTION platform.decrypt_database_connection_string(uuid) IS
    'The full URL; NULL if there is none or it is not for the current user. Needs app.database_encryption_key';

-- Not to PUBLIC, but to every role that can reach the tables at all: its queries call these through the policies.
DO $$
DECLARE
    signature text;
    reader name;
BEGIN
    FOREACH signature IN ARRAY ARRAY[
        'platform.current_user_id()', 'platform.current_org_id()', 'platform.current_user_organizations()',
        'platform.current_org_as_member()', 'platform.current_org_as(text[])',
        'platform.current_projects_as(text[], text[])',
        'platform.is_member_of_current_org(uuid)', 'platform.organization_directory()'
    ]
    LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', signature);
        FOR reader IN
            SELECT DISTINCT pg_get_userbyid(acl.grantee)
            FROM pg_class AS c
            CROSS JOIN LATERAL aclexplode(c.relacl) AS acl
            WHERE c.relnamespace = 'platform'::regnamespace
              AND c.relkind IN ('r', 'p', 'v')
              AND acl.grantee <> 0
              AND acl.grantee <> c.relowner
            ORDER BY 1
        LOOP
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %I', signature, reader);
        END LOOP;
    END LOOP;
END;
$$;

-- --------------------------------------------------------------------------------
-- The policies
-- --------------------------------------------------------------------------------

DO $$
DECLARE
    target name;
BEGIN
    FOR target IN
        SELECT c.relname FROM pg_class AS c
        WHERE c.relnamespace = 'platform'::regnamespace AND c.relkind IN ('r', 'p')
        ORDER BY c.relname
    LOOP
        EXECUTE format('DROP POLICY %I ON platform.%I', left('permissive_all_' || target, 63), target);
    END LOOP;
END;
$$;

-- For everybody to read

CREATE POLICY billing_plans_select ON platform.billing_plans FOR SELECT USING (true);
CREATE POLICY feature_flags_select ON platform.feature_flags FOR SELECT USING (true);

-- The user's own

CREATE POLICY users_select ON platform.users FOR SELECT
    USING (id = (SELECT platform.current_user_id()));
CREATE POLICY users_update ON platform.users FOR UPDATE
    USING (
        id = (SELECT platform.current_user_id())
        AND deleted_at IS NULL AND (banned_until IS NULL OR banned_until <= now())
    )
    WITH CHECK (id = (SELECT platform.current_user_id()));

CREATE POLICY user_sessions_own ON platform.user_sessions FOR ALL
    USING (user_id = (SELECT platform.current_user_id()))
    WITH CHECK (user_id = (SELECT platform.current_user_id()));

CREATE POLICY api_keys_own ON platform.api_keys FOR ALL
    USING (
        user_id = (SELECT platform.current_user_id())
        AND organization_id = (SELECT platform.current_org_as_member())
    )
    WITH CHECK (
        user_id = (SELECT platform.current_user_id())
        AND organization_id = (SELECT platform.current_org_as_member())
    );

-- The organization

CREATE POLICY organizations_select ON platform.organizations FOR SELECT
    USING (id IN (SELECT platform.current_user_organizations()));
CREATE POLICY organizations_update ON platform.organizations FOR UPDATE
    USING (id = (SELECT platform.current_org_as('owner', 'admin')))
    WITH CHECK (id = (SELECT platform.current_org_as('owner', 'admin')));
CREATE POLICY organizations_delete ON platform.organizations FOR DELETE
    USING (id = (SELECT platform.current_org_as('owner')));

-- Only an owner makes, changes or removes an owner; otherwise an admin could take the organization over.
CREATE POLICY organization_members_select ON platform.organization_members FOR SELECT
    USING (
        organization_id = (SELECT platform.current_org_as_member())
        OR user_id = (SELECT platform.current_user_id())
    );
CREATE POLICY organization_members_insert ON platform.organization_members FOR INSERT
    WITH CHECK (
        organization_id = (SELECT platform.current_org_as('owner', 'admin'))
        AND (role <> 'owner' OR organization_id = (SELECT platform.current_org_as('owner')))
    );
CREATE POLICY organization_members_update ON platform.organization_members FOR UPDATE
    USING (
        organization_id = (SELECT platform.current_org_as('owner', 'admin'))
        AND (role <> 'owner' OR organization_id = (SELECT platform.current_org_as('owner')))
    )
    WITH CHECK (
        organization_id = (SELECT platform.current_org_as('owner', 'admin'))
        AND (role <> 'owner' OR organization_id = (SELECT platform.current_org_as('owner')))
    );
CREATE POLICY organization_members_delete ON platform.organization_members FOR DELETE
    USING (
        organization_id = (SELECT platform.current_org_as_member())
        AND (
            (role <> 'owner' AND (
                user_id = (SELECT platform.current_user_id())
                OR organization_id = (SELECT platform.current_org_as('owner', 'admin'))
            ))
            OR organization_id = (SELECT platform.current_org_as('owner'))
        )
    );

CREATE POLICY organization_invitations_select ON platform.organization_invitations FOR SELECT
    USING (organization_id = (SELECT platform.current_org_as('owner', 'admin')));
CREATE POLICY organization_invitations_insert ON platform.organization_invitations FOR INSERT
    WITH CHECK (
        organization_id = (SELECT platform.current_org_as('owner', 'admin'))
        AND invited_by = (SELECT platform.current_user_id())
        AND (role <> 'owner' OR organization_id = (SELECT platform.current_org_as('owner')))
    );
CREATE POLICY organization_invitations_update ON platform.organization_invitations FOR UPDATE
    USING (organization_id = (SELECT platform.current_org_as('owner', 'admin')))
    WITH CHECK (
        organization_id = (SELECT platform.current_org_as('owner', 'admin'))
        AND (role <> 'owner' OR organization_id = (SELECT platform.current_org_as('owner')))
    );
CREATE POLICY organization_invitations_delete ON platform.organization_invitations FOR DELETE
    USING (organization_id = (SELECT platform.current_org_as('owner', 'admin')));

CREATE POLICY organization_feature_flags_select ON platform.organization_feature_flags FOR SELECT
    USING (organization_id = (SELECT platform.current_org_as_member()));
CREATE POLICY organization_feature_flags_insert ON platform.organization_feature_flags FOR INSERT
    WITH CHECK (organization_id = (SELECT platform.current_org_as('owner', 'admin')));
CREATE POLICY organization_feature_flags_update ON platform.organization_feature_flags FOR UPDATE
    USING (organization_id = (SELECT platform.current_org_as('owner', 'admin')))
    WITH CHECK (organization_id = (SELECT platform.current_org_as('owner', 'admin')));
CREATE POLICY organization_feature_flags_delete ON platform.organization_feature_flags FOR DELETE
    USING (organization_id = (SELECT platform.current_org_as('owner', 'admin')));

-- Append only: nobody who acts as a user changes or removes what is logged.
CREATE POLICY audit_logs_select ON platform.audit_logs FOR SELECT
    USING (organization_id = (SELECT platform.current_org_as('owner', 'admin')));
CREATE POLICY audit_logs_insert ON platform.audit_logs FOR INSERT
    WITH CHECK (
        organization_id = (SELECT platform.current_org_as_member())
        AND user_id = (SELECT platform.current_user_id())
        AND (project_id IS NULL OR project_id IN (
            SELECT platform.current_projects_as('{owner,admin}', '{owner,admin,billing_admin,developer,member}')
        ))
    );

-- Billing

CREATE POLICY subscriptions_select ON platform.subscriptions FOR SELECT
    USING (organization_id = (SELECT platform.current_org_as_member()));
CREATE POLICY subscriptions_insert ON platform.subscriptions FOR INSERT
    WITH CHECK (organization_id = (SELECT platform.current_org_as('owner', 'admin', 'billing_admin')));
CREATE POLICY subscriptions_update ON platform.subscriptions FOR UPDATE
    USING (organization_id = (SELECT platform.current_org_as('owner', 'admin', 'billing_admin')))
    WITH CHECK (organization_id = (SELECT platform.current_org_as('owner', 'admin', 'billing_admin')));
CREATE POLICY subscriptions_delete ON platform.subscriptions FOR DELETE
    USING (organization_id = (SELECT platform.current_org_as('owner', 'admin', 'billing_admin')));

CREATE POLICY invoices_select ON platform.invoices FOR SELECT
    USING (organization_id = (SELECT platform.current_org_as_member()));
CREATE POLICY invoices_insert ON platform.invoices FOR INSERT
    WITH CHECK (organization_id = (SELECT platform.current_org_as('owner', 'admin', 'billing_admin')));
CREATE POLICY invoices_update ON platform.invoices FOR UPDATE
    USING (organization_id = (SELECT platform.current_org_as('owner', 'admin', 'billing_admin')))
    WITH CHECK (organization_id = (SELECT platform.current_org_as('owner', 'admin', 'billing_admin')));
CREATE POLICY invoices_delete ON platform.invoices FOR DELETE
    USING (organization_id = (SELECT platform.current_org_as('owner', 'admin', 'billing_admin')));

CREATE POLICY credits_select ON platform.credits FOR SELECT
    USING (organization_id = (SELECT platform.current_org_as_member()));
CREATE POLICY credits_insert ON platform.credits FOR INSERT
    WITH CHECK (organization_id = (SELECT platform.current_org_as('owner', 'admin', 'billing_admin')));
CREATE POLICY credits_update ON platform.credits FOR UPDATE
    USING (organization_id = (SELECT platform.current_org_as('owner', 'admin', 'billing_admin')))
    WITH CHECK (organization_id = (SELECT platform.current_org_as('owner', 'admin', 'billing_admin')));
CREATE POLICY credits_delete ON platform.credits FOR DELETE
    USING (organization_id = (SELECT platform.current_org_as('owner', 'admin', 'billing_admin')));

CREATE POLICY customer_profiles_select ON platform.customer_profiles FOR SELECT
    USING (organization_id = (SELECT platform.current_org_as('owner', 'admin', 'billing_admin')));
CREATE POLICY customer_profiles_insert ON platform.customer_profiles FOR INSERT
    WITH CHECK (organization_id = (SELECT platform.current_org_as('owner', 'admin', 'billing_admin')));
CREATE POLICY customer_profiles_update ON platform.customer_profiles FOR UPDATE
    USING (organization_id = (SELECT platform.current_org_as('owner', 'admin', 'billing_admin')))
    WITH CHECK (organization_id = (SELECT platform.current_org_as('owner', 'admin', 'billing_admin')));
CREATE POLICY customer_profiles_delete ON platform.customer_profiles FOR DELETE
    USING (organization_id = (SELECT platform.current_org_as('owner', 'admin', 'billing_admin')));

CREATE POLICY payment_methods_select ON platform.payment_methods FOR SELECT
    USING (organization_id = (SELECT platform.current_org_as('owner', 'admin', 'billing_admin')));
CREATE POLICY payment_methods_insert ON platform.payment_methods FOR INSERT
    WITH CHECK (organization_id = (SELECT platform.current_org_as('owner', 'admin', 'billing_admin')));
CREATE POLICY payment_methods_update ON platform.payment_methods FOR UPDATE
    USING (organization_id = (SELECT platform.current_org_as('owner', 'admin', 'billing_admin')))
    WITH CHECK (organization_id = (SELECT platform.current_org_as('owner', 'admin', 'billing_admin')));
CREATE POLICY payment_methods_delete ON platform.payment_methods FOR DELETE
    USING (organization_id = (SELECT platform.current_org_as('owner', 'admin', 'billing_admin')));

CREATE POLICY tax_ids_select ON platform.tax_ids FOR SELECT
    USING (organization_id = (SELECT platform.current_org_as('owner', 'admin', 'billing_admin')));
CREATE POLICY tax_ids_insert ON platform.tax_ids FOR INSERT
    WITH CHECK (organization_id = (SELECT platform.current_org_as('owner', 'admin', 'billing_admin')));
CREATE POLICY tax_ids_update ON platform.tax_ids FOR UPDATE
    USING (organization_id = (SELECT platform.current_org_as('owner', 'admin', 'billing_admin')))
    WITH CHECK (organization_id = (SELECT platform.current_org_as('owner', 'admin', 'billing_admin')));
CREATE POLICY tax_ids_delete ON platform.tax_ids FOR DELETE
    USING (organization_id = (SELECT platform.current_org_as('owner', 'admin', 'billing_admin')));

-- A row names an organization, a project, or both; if both, the project is one of the organization's.
CREATE POLICY usage_metrics_select ON platform.usage_metrics FOR SELECT
    USING (
        (organization_id IS NULL
            OR organization_id = (SELECT platform.current_org_as_member()))
        AND (project_id IS NULL OR project_id IN (
            SELECT platform.current_projects_as(
                '{owner,admin,billing_admin}', '{owner,admin,billing_admin,developer,member}')
        ))
        AND (project_id IS NOT NULL
            OR organization_id = (SELECT platform.current_org_as('owner', 'admin', 'billing_admin')))
    );

-- Projects

-- Owners and admins by the row's own column: a row just inserted is not yet in current_projects_as.
CREATE POLICY projects_select ON platform.projects FOR SELECT
    USING (
        organization_id = (SELECT platform.current_org_as('owner', 'admin'))
        OR id IN (SELECT platform.current_projects_as('{}', '{owner,admin,billing_admin,developer,member}'))
    );
CREATE POLICY projects_insert ON platform.projects FOR INSERT
    WITH CHECK (organization_id = (SELECT platform.current_org_as('owner', 'admin')));
CREATE POLICY projects_update ON platform.projects FOR UPDATE
    USING (id IN (SELECT platform.current_projects_as('{owner,admin}', '{owner,admin}')))
    WITH CHECK (
        id IN (SELECT platform.current_projects_as('{owner,admin}', '{owner,admin}'))
        AND organization_id = (SELECT platform.current_org_as_member())
    );
CREATE POLICY projects_delete ON platform.projects FOR DELETE
    USING (organization_id = (SELECT platform.current_org_as('owner', 'admin')));

-- Only members of the organization, and owners of a project only by its owners.
CREATE POLICY project_members_select ON platform.project_members FOR SELECT
    USING (project_id IN (
        SELECT platform.current_projects_as('{owner,admin}', '{owner,admin,billing_admin,developer,member}')
    ));
CREATE POLICY project_members_insert ON platform.project_members FOR INSERT
    WITH CHECK (
        project_id IN (SELECT platform.current_projects_as('{owner,admin}', '{owner,admin}'))
        AND (role <> 'owner' OR project_id IN (SELECT platform.current_projects_as('{owner,admin}', '{owner}')))
        AND platform.is_member_of_current_org(user_id)
    );
CREATE POLICY project_members_update ON platform.project_members FOR UPDATE
    USING (
        project_id IN (SELECT platform.current_projects_as('{owner,admin}', '{owner,admin}'))
        AND (role <> 'owner' OR project_id IN (SELECT platform.current_projects_as('{owner,admin}', '{owner}')))
    )
    WITH CHECK (
        project_id IN (SELECT platform.current_projects_as('{owner,admin}', '{owner,admin}'))
        AND (role <> 'owner' OR project_id IN (SELECT platform.current_projects_as('{owner,admin}', '{owner}')))
        AND platform.is_member_of_current_org(user_id)
    );
CREATE POLICY project_members_delete ON platform.project_members FOR DELETE
    USING (
        project_id IN (SELECT platform.current_projects_as('{owner,admin}', '{owner,admin}'))
        AND (role <> 'owner' OR project_id IN (SELECT platform.current_projects_as('{owner,admin}', '{owner}')))
    );

CREATE POLICY credentials_select ON platform.credentials FOR SELECT
    USING (project_id IN (
        SELECT platform.current_projects_as('{owner,admin}', '{owner,admin,developer}')
    ));
CREATE POLICY credentials_insert ON platform.credentials FOR INSERT
    WITH CHECK (project_id IN (
        SELECT platform.current_projects_as('{owner,admin}', '{owner,admin}')
    ));
CREATE POLICY credentials_update ON platform.credentials FOR UPDATE
    USING (project_id IN (
        SELECT platform.current_projects_as('{owner,admin}', '{owner,admin}')
    ))
    WITH CHECK (project_id IN (
        SELECT platform.current_projects_as('{owner,admin}', '{owner,admin}')
    ));
CREATE POLICY credentials_delete ON platform.credentials FOR DELETE
    USING (project_id IN (
        SELECT platform.current_projects_as('{owner,admin}', '{owner,admin}')
    ));

CREATE POLICY databases_select ON platform.databases FOR SELECT
    USING (project_id IN (
        SELECT platform.current_projects_as('{owner,admin}', '{owner,admin,billing_admin,developer,member}')
    ));
CREATE POLICY databases_insert ON platform.databases FOR INSERT
    WITH CHECK (project_id IN (
        SELECT platform.current_projects_as('{owner,admin}', '{owner,admin,developer}')
    ));
CREATE POLICY databases_update ON platform.databases FOR UPDATE
    USING (project_id IN (
        SELECT platform.current_projects_as('{owner,admin}', '{owner,admin,developer}')
    ))
    WITH CHECK (project_id IN (
        SELECT platform.current_projects_as('{owner,admin}', '{owner,admin,developer}')
    ));
CREATE POLICY databases_delete ON platform.databases FOR DELETE
    USING (project_id IN (
        SELECT platform.current_projects_as('{owner,admin}', '{owner,admin}')
    ));

CREATE POLICY compute_config_select ON platform.compute_config FOR SELECT
    USING (project_id IN (
        SELECT platform.current_projects_as('{owner,admin}', '{owner,admin,billing_admin,developer,member}')
    ));
CREATE POLICY compute_config_insert ON platform.compute_config FOR INSERT
    WITH CHECK (project_id IN (
        SELECT platform.current_projects_as('{owner,admin}', '{owner,admin}')
    ));
CREATE POLICY compute_config_update ON platform.compute_config FOR UPDATE
    USING (project_id IN (
        SELECT platform.current_projects_as('{owner,admin}', '{owner,admin}')
    ))
    WITH CHECK (project_id IN (
        SELECT platform.current_projects_as('{owner,admin}', '{owner,admin}')
    ));
CREATE POLICY compute_config_delete ON platform.compute_config FOR DELETE
    USING (project_id IN (
        SELECT platform.current_projects_as('{owner,admin}', '{owner,admin}')
    ));

CREATE POLICY disk_config_select ON platform.disk_config FOR SELECT
    USING (project_id IN (
        SELECT platform.current_projects_as('{owner,admin}', '{owner,admin,billing_admin,developer,member}')
    ));
CREATE POLICY disk_config_insert ON platform.disk_config FOR INSERT
    WITH CHECK (project_id IN (
        SELECT platform.current_projects_as('{owner,admin}', '{owner,admin}')
    ));
CREATE POLICY disk_config_update ON platform.disk_config FOR UPDATE
    USING (project_id IN (
        SELECT platform.current_projects_as('{owner,admin}', '{owner,admin}')
    ))
    WITH CHECK (project_id IN (
        SELECT platform.current_projects_as('{owner,admin}', '{owner,admin}')
    ));
CREATE POLICY disk_config_delete ON platform.disk_config FOR DELETE
    USING (project_id IN (
        SELECT platform.current_projects_as('{owner,admin}', '{owner,admin}')
    ));

CREATE POLICY addons_select ON platform.addons FOR SELECT
    USING (project_id IN (
        SELECT platform.current_projects_as(
            '{owner,admin,billing_admin}', '{owner,admin,billing_admin,developer,member}')
    ));
CREATE POLICY addons_insert ON platform.addons FOR INSERT
    WITH CHECK (project_id IN (
        SELECT platform.current_projects_as('{owner,admin,billing_admin}', '{}')
    ));
CREATE POLICY addons_update ON platform.addons FOR UPDATE
    USING (project_id IN (
        SELECT platform.current_projects_as('{owner,admin,billing_admin}', '{}')
    ))
    WITH CHECK (project_id IN (
        SELECT platform.current_projects_as('{owner,admin,billing_admin}', '{}')
    ));
CREATE POLICY addons_delete ON platform.addons FOR DELETE
    USING (project_id IN (
        SELECT platform.current_projects_as('{owner,admin,billing_admin}', '{}')
    ));

CREATE POLICY project_addons_select ON platform.project_addons FOR SELECT
    USING (project_id IN (
        SELECT platform.current_projects_as(
            '{owner,admin,billing_admin}', '{owner,admin,billing_admin,developer,member}')
    ));
CREATE POLICY project_addons_insert ON platform.project_addons FOR INSERT
    WITH CHECK (project_id IN (
        SELECT platform.current_projects_as('{owner,admin,billing_admin}', '{}')
    ));
CREATE POLICY project_addons_update ON platform.project_addons FOR UPDATE
    USING (project_id IN (
        SELECT platform.current_projects_as('{owner,admin,billing_admin}', '{}')
    ))
    WITH CHECK (project_id IN (
        SELECT platform.current_projects_as('{owner,admin,billing_admin}', '{}')
    ));
CREATE POLICY project_addons_delete ON platform.project_addons FOR DELETE
    USING (project_id IN (
        SELECT platform.current_projects_as('{owner,admin,billing_admin}', '{}')
    ));

CREATE POLICY project_metrics_select ON platform.project_metrics FOR SELECT
    USING (project_id IN (
        SELECT platform.current_projects_as('{owner,admin}', '{owner,admin,billing_admin,developer,member}')
    ));

COMMIT;

-- Copyright (c) 2026, Surefoot contributors
-- GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
-- SPDX-License-Identifier: GPL-3.0-or-later

-- Rollback of 007: back to the policies of 006 that allow everything.

BEGIN;

DO $$
DECLARE
    target record;
BEGIN
    FOR target IN
        SELECT c.relname, p.polname
        FROM pg_policy AS p
        JOIN pg_class AS c ON c.oid = p.polrelid
        WHERE c.relnamespace = 'platform'::regnamespace
        ORDER BY c.relname, p.polname
    LOOP
        EXECUTE format('DROP POLICY %I ON platform.%I', target.polname, target.relname);
    END LOOP;
    FOR target IN
        SELECT c.relname, left('permissive_all_' || c.relname, 63) AS policy
        FROM pg_class AS c
        WHERE c.relnamespace = 'platform'::regnamespace AND c.relkind IN ('r', 'p')
        ORDER BY c.relname
    LOOP
        EXECUTE format('CREATE POLICY %I ON platform.%I FOR ALL TO PUBLIC USING (true) WITH CHECK (true)',
                       target.policy, target.relname);
    END LOOP;
END;
$$;

-- As in 006_add_platform_databases_table.sql.
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
    WHERE d.id = database_id;
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
    'The full URL; NULL if there is no such database. Needs app.database_encryption_key in the session';

DROP FUNCTION platform.organization_directory();
DROP FUNCTION platform.is_member_of_current_org(uuid);
DROP FUNCTION platform.current_projects_as(text[], text[]);
DROP FUNCTION platform.current_org_as(text[]);
DROP FUNCTION platform.current_org_as_member();
DROP FUNCTION platform.current_user_organizations();
DROP FUNCTION platform.current_org_id();
DROP FUNCTION platform.current_user_id();

COMMIT;

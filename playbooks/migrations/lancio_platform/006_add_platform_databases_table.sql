-- Copyright (c) 2026, Surefoot contributors
-- GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
-- SPDX-License-Identifier: GPL-3.0-or-later

-- 006, step 1: registry of the MongoDB, Redis and PostgreSQL databases a project uses.
--
-- A connection string is stored encrypted only. The key is never stored: it comes with the session, as the setting
-- app.database_encryption_key (a startup option, so that it is in no statement). Rows are written as
--     INSERT INTO platform.databases (project_id, name, type, connection_string)
--     VALUES (..., 'redis://user:password@host:6379/0')
-- and read back as redis://***@host:6379/0. Host, port, database, username and ssl_enabled come from the URL unless
-- they are given.

BEGIN;

-- The table needs pgcrypto of 003. It is not created here: a rollback could not tell whose it is.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_extension WHERE extname = 'pgcrypto') THEN
        RAISE EXCEPTION 'extension pgcrypto is not installed in database %', current_database()
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = 'Apply migration 003 first, or have an administrator run: CREATE EXTENSION pgcrypto;';
    END IF;
END;
$$;

CREATE TABLE platform.databases (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    project_id uuid NOT NULL REFERENCES platform.projects (id) ON DELETE CASCADE,
    name text NOT NULL CONSTRAINT databases_name_not_blank CHECK (btrim(name) <> ''),
    type text NOT NULL CONSTRAINT databases_type_known CHECK (type IN ('mongodb', 'redis', 'postgresql')),
    host text NOT NULL CONSTRAINT databases_host_not_blank CHECK (btrim(host) <> ''),
    port integer NOT NULL CONSTRAINT databases_port_in_range CHECK (port BETWEEN 1 AND 65535),
    database text,
    username text,
    password text,
    connection_string text NOT NULL,
    connection_string_encrypted bytea,
    ssl_enabled boolean,
    config jsonb DEFAULT '{}'::jsonb,
    metadata jsonb DEFAULT '{}'::jsonb,
    status text NOT NULL DEFAULT 'active'
        CONSTRAINT databases_status_known CHECK (status IN ('active', 'inactive', 'error', 'maintenance')),
    health_check_status text DEFAULT 'unknown'
        CONSTRAINT databases_health_known CHECK (health_check_status IN ('healthy', 'unhealthy', 'unknown')),
    last_health_check_at timestamptz,
    health_check_error text,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX idx_databases_project_id ON platform.databases (project_id);
CREATE INDEX idx_databases_type ON platform.databases (type);
CREATE INDEX idx_databases_status ON platform.databases (status);
CREATE INDEX idx_databases_project_type_status ON platform.databases (project_id, type, status);
CREATE INDEX idx_databases_health ON platform.databases (health_check_status, last_health_check_at)
    WHERE health_check_status IS NOT NULL;
CREATE INDEX idx_databases_created_at ON platform.databases (created_at DESC);
CREATE INDEX idx_databases_updated_at ON platform.databases (updated_at DESC);

COMMENT ON TABLE platform.databases IS 'Databases a project uses, with encrypted connection strings';
COMMENT ON COLUMN platform.databases.connection_string IS
    'Written as the full URL; kept as scheme://***@host:port/database, without user, password and query';
COMMENT ON COLUMN platform.databases.connection_string_encrypted IS
    'pgp_sym_encrypt (AES-256) of row identity and URL; read it with platform.decrypt_database_connection_string(id)';
COMMENT ON COLUMN platform.databases.password IS
    'Never the password: NULL or ***. The password is part of connection_string';

-- SECURITY DEFINER so that writers of the table need no privilege on the schema that holds pgcrypto. That schema is
-- looked up instead of put into search_path: where others may create functions in it, a better matching overload of a
-- built-in function would run with the owner's rights and see the key.
-- BEFORE triggers run before constraints are checked: a refused row that reaches the server log is redacted already.
CREATE FUNCTION platform.encrypt_database_connection_string() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    redacted_url CONSTANT text := '^[A-Za-z][A-Za-z0-9+.-]*://\*\*\*@';
    -- RFC 3986 with a list of hosts (MongoDB): scheme, user information, hosts, database, query.
    -- "@", "/", "?" and "#" inside user names and passwords must be percent-encoded: otherwise their end cannot be told
    -- and a part of a password could pass for a host.
    full_url CONSTANT text := '^([A-Za-z][A-Za-z0-9+.-]*)://'
        || '(?:([A-Za-z0-9._~!$&''()*+,;=:%-]*)@)?'
        || '((?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~%-]+)(?::[0-9]{1,5})?'
        || '(?:,(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~%-]+)(?::[0-9]{1,5})?)*)'
        || '(?:/([A-Za-z0-9._~!$&''()*+,;=:%-]*))?'
        || '(\?[A-Za-z0-9._~!$&''()*+,;=:%/?-]*)?$';
    given CONSTANT text := NEW.connection_string;
    parts text[];
    scheme text;
    first_host text;
    url_host text;
    url_port integer;
    url_database text;
    url_username text;
    url_ssl boolean;
    encrypt_call text;
    key text;
BEGIN
    IF given IS NULL OR given ~ redacted_url THEN
        -- Not a new URL: a column changed that has nothing to do with it, or a dumped row comes back.
        IF NEW.password IS NOT NULL AND NEW.password <> '***' THEN
            RAISE EXCEPTION 'a password alone cannot be stored in platform.databases'
                USING ERRCODE = 'invalid_parameter_value',
                      HINT = 'Set connection_string to the full URL with the new password.';
        END IF;
        IF given IS NULL THEN
            RETURN NEW;
        END IF;
        IF TG_OP = 'INSERT' THEN
            IF NEW.connection_string_encrypted IS NULL THEN
                RAISE EXCEPTION 'connection_string is redacted text and there is no encrypted one beside it'
                    USING ERRCODE = 'invalid_parameter_value',
                          HINT = 'Set connection_string to the full URL.';
            END IF;
        ELSIF given IS DISTINCT FROM OLD.connection_string THEN
            RAISE EXCEPTION 'connection_string is the redacted text of another URL'
                USING ERRCODE = 'invalid_parameter_value',
                      HINT = 'Set connection_string to the full URL, or leave it as it is.';
        ELSIF NEW.connection_string_encrypted IS DISTINCT FROM OLD.connection_string_encrypted THEN
            RAISE EXCEPTION 'connection_string_encrypted cannot be set'
                USING ERRCODE = 'invalid_parameter_value',
                      HINT = 'Set connection_string to the full URL; it is encrypted on the way in.';
        ELSIF (NEW.id, NEW.project_id) IS DISTINCT FROM (OLD.id, OLD.project_id) THEN
            RAISE EXCEPTION 'the encrypted connection string belongs to the row''s id and project'
                USING ERRCODE = 'invalid_parameter_value',
                      HINT = 'Set connection_string to the full URL in the same UPDATE that changes id or project_id.';
        END IF;
        RETURN NEW;
    END IF;

    parts := regexp_match(given, full_url);
    IF parts IS NULL OR given ~ '%(?![0-9A-Fa-f]{2})' THEN
        RAISE EXCEPTION 'connection_string is not a URL of the form scheme://user:password@host:port/database'
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'Percent-encode reserved characters in user name and password. The value is not shown here.';
    END IF;
    scheme := lower(parts[1]);
    IF (NEW.type = 'mongodb' AND scheme NOT IN ('mongodb', 'mongodb+srv'))
       OR (NEW.type = 'redis' AND scheme NOT IN ('redis', 'rediss'))
       OR (NEW.type = 'postgresql' AND scheme NOT IN ('postgresql', 'postgres')) THEN
        RAISE EXCEPTION 'connection_string is not the URL of a % database', NEW.type
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'Schemes: mongodb, mongodb+srv; redis, rediss; postgresql, postgres.';
    END IF;
    IF NEW.password IS NOT NULL AND NEW.password <> '***' AND strpos(coalesce(parts[2], ''), ':') = 0 THEN
        RAISE EXCEPTION 'password is given but connection_string holds none'
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'Put the password into connection_string; the column password does not keep it.';
    END IF;

    first_host := split_part(parts[3], ',', 1);
    url_host := coalesce(substring(first_host FROM '^\[(.*)\]'), split_part(first_host, ':', 1));
    url_port := coalesce(
        substring(first_host FROM ':([0-9]{1,5})$')::integer,
        CASE WHEN scheme LIKE 'mongodb%' THEN 27017 WHEN scheme LIKE 'redis%' THEN 6379 ELSE 5432 END);
    IF first_host ~ '^\[[^]]*\]$' THEN
        url_port := CASE WHEN scheme LIKE 'mongodb%' THEN 27017 WHEN scheme LIKE 'redis%' THEN 6379 ELSE 5432 END;
    END IF;
    url_database := nullif(parts[4], '');
    -- User information without a colon may be a bare password (old Redis style): not shown.
    IF strpos(parts[2], ':') > 0 THEN
        url_username := nullif(split_part(parts[2], ':', 1), '');
    END IF;
    url_ssl := scheme IN ('rediss', 'mongodb+srv')
        OR coalesce(parts[5] ~* '[?&]((tls|ssl)=true|sslmode=(require|verify-ca|verify-full))(&|$)', false);

    key := nullif(current_setting('app.database_encryption_key', true), '');
    IF key IS NULL THEN
        RAISE EXCEPTION 'app.database_encryption_key is not set: the URL cannot be encrypted, nothing was stored'
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = 'Give the key as a startup option of the connection (-c app.database_encryption_key=...).';
    END IF;
    SELECT format('SELECT %I.pgp_sym_encrypt($1, $2, $3)', n.nspname)
    INTO encrypt_call
    FROM pg_extension AS e
    JOIN pg_namespace AS n ON n.oid = e.extnamespace
    WHERE e.extname = 'pgcrypto';
    IF encrypt_call IS NULL THEN
        RAISE EXCEPTION 'extension pgcrypto is not installed: the URL cannot be encrypted, nothing was stored'
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = 'Have an administrator run: CREATE EXTENSION pgcrypto;';
    END IF;

    -- pgp_sym_encrypt takes no associated data: the row's identity goes inside, and decryption compares it.
    EXECUTE encrypt_call INTO NEW.connection_string_encrypted
        USING concat_ws('|', 'platform.databases.connection_string', NEW.id::text, NEW.project_id::text, given),
              key, 'cipher-algo=aes256'::text;

    NEW.connection_string := scheme || '://***@' || parts[3] || coalesce('/' || url_database, '');
    IF NEW.password IS NOT NULL THEN
        NEW.password := '***';
    END IF;
    IF TG_OP = 'INSERT' THEN
        NEW.host := coalesce(NEW.host, url_host);
        NEW.port := coalesce(NEW.port, url_port);
        NEW.database := coalesce(NEW.database, url_database);
        NEW.username := coalesce(NEW.username, url_username);
        NEW.ssl_enabled := coalesce(NEW.ssl_enabled, url_ssl);
    ELSE
        -- Columns this UPDATE leaves alone follow the new URL.
        NEW.host := CASE WHEN NEW.host IS DISTINCT FROM OLD.host THEN NEW.host ELSE url_host END;
        NEW.port := CASE WHEN NEW.port IS DISTINCT FROM OLD.port THEN NEW.port ELSE url_port END;
        NEW.database := CASE WHEN NEW.database IS DISTINCT FROM OLD.database THEN NEW.database ELSE url_database END;
        NEW.username := CASE WHEN NEW.username IS DISTINCT FROM OLD.username THEN NEW.username ELSE url_username END;
        NEW.ssl_enabled :=
            CASE WHEN NEW.ssl_enabled IS DISTINCT FROM OLD.ssl_enabled THEN NEW.ssl_enabled ELSE url_ssl END;
    END IF;
    RETURN NEW;
END;
$$;

COMMENT ON FUNCTION platform.encrypt_database_connection_string() IS
    'Trigger: encrypts connection_string, keeps redacted text in its place, fills the columns taken from the URL';

-- SECURITY DEFINER: readers need no privilege on the encrypted column. The caller's session must hold the key.
CREATE FUNCTION platform.decrypt_database_connection_string(database_id uuid) RETURNS text
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

CREATE FUNCTION platform.get_project_databases(p_project_id uuid, p_type text DEFAULT NULL)
    RETURNS TABLE (
        id uuid, name text, type text, host text, port integer, database text, ssl_enabled boolean, status text,
        health_check_status text, last_health_check_at timestamptz, created_at timestamptz, updated_at timestamptz
    )
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT
        d.id, d.name, d.type, d.host, d.port, d.database, d.ssl_enabled, d.status,
        d.health_check_status, d.last_health_check_at, d.created_at, d.updated_at
    FROM platform.databases AS d
    WHERE d.project_id = p_project_id
      AND (p_type IS NULL OR d.type = p_type)
    ORDER BY d.type, d.name;
$$;

COMMENT ON FUNCTION platform.get_project_databases(uuid, text) IS
    'The databases of a project, of one type if given; no credentials';

-- Drivers like to quote URLs in their messages, hence the replacement.
CREATE FUNCTION platform.update_database_health(p_database_id uuid, p_status text, p_error text DEFAULT NULL)
    RETURNS boolean
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    UPDATE platform.databases AS d
    SET health_check_status = p_status,
        health_check_error = regexp_replace(p_error, '://[^[:space:]]*@', '://***@', 'g'),
        last_health_check_at = now()
    WHERE d.id = p_database_id;
    RETURN FOUND;
END;
$$;

COMMENT ON FUNCTION platform.update_database_health(uuid, text, text) IS
    'Records healthy, unhealthy or unknown, and the error; false if there is no such database';

REVOKE ALL ON FUNCTION platform.encrypt_database_connection_string() FROM PUBLIC;
REVOKE ALL ON FUNCTION platform.decrypt_database_connection_string(uuid) FROM PUBLIC;
REVOKE ALL ON FUNCTION platform.get_project_databases(uuid, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION platform.update_database_health(uuid, text, text) FROM PUBLIC;

-- Triggers of one kind run in the order of their names: this one first.
CREATE TRIGGER encrypt_databases_connection_string BEFORE INSERT OR UPDATE ON platform.databases
    FOR EACH ROW EXECUTE FUNCTION platform.encrypt_database_connection_string();
CREATE TRIGGER update_databases_updated_at BEFORE UPDATE ON platform.databases
    FOR EACH ROW EXECUTE FUNCTION platform.update_updated_at_column();

-- Also while session_replication_role is replica (data loads): nothing gets past encryption.
ALTER TABLE platform.databases ENABLE ALWAYS TRIGGER encrypt_databases_connection_string;

CREATE VIEW platform.databases_safe AS
SELECT
    d.id, d.project_id, d.name, d.type, d.host, d.port, d.database, d.ssl_enabled, d.status,
    d.health_check_status, d.last_health_check_at, d.created_at, d.updated_at
FROM platform.databases AS d;

COMMENT ON VIEW platform.databases_safe IS 'Databases without credentials, for the public API';

CREATE VIEW platform.databases_with_connection_strings AS
SELECT
    d.id, d.project_id, d.name, d.type, d.host, d.port, d.database, d.username, d.ssl_enabled, d.status,
    d.health_check_status, d.last_health_check_at, d.created_at, d.updated_at,
    platform.decrypt_database_connection_string(d.id) AS connection_string
FROM platform.databases AS d;

COMMENT ON VIEW platform.databases_with_connection_strings IS
    'Databases with full URLs: restricted; readers also need EXECUTE on decrypt_database_connection_string and the key';

REVOKE ALL ON platform.databases, platform.databases_safe, platform.databases_with_connection_strings FROM PUBLIC;

COMMIT;

-- Copyright (c) 2026, Surefoot contributors
-- GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
-- SPDX-License-Identifier: GPL-3.0-or-later
-- The composite foreign key is the rule; this says whose permission is missing. It has no race to win: what it overlooks,
-- the key refuses. Its name sorts before those of the key's own triggers, so that its message is the one clients see.
CREATE FUNCTION public.validate_sidebar_permissions() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $func$
BEGIN
    IF NEW.requires_permission IS NOT NULL AND NOT EXISTS (
        SELECT FROM public.permissions AS p
        WHERE p.name = NEW.requires_permission AND p.tenant_id = NEW.tenant_id
    ) THEN
        RAISE EXCEPTION 'Violation: Permission % not found in tenant %', NEW.requires_permission, NEW.tenant_id
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END;
$func$;
REVOKE ALL ON FUNCTION public.validate_sidebar_permissions() FROM PUBLIC;
CREATE CONSTRAINT TRIGGER "A_trg_validate_sidebar_perms"
AFTER INSERT OR UPDATE ON public.sidebar_features
DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION public.validate_sidebar_permissions();

-- Copyright (c) 2026, Surefoot contributors
-- GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
-- SPDX-License-Identifier: GPL-3.0-or-later
DROP TRIGGER IF EXISTS "A_trg_validate_sidebar_perms" ON public.sidebar_features;
DROP FUNCTION IF EXISTS public.validate_sidebar_permissions();

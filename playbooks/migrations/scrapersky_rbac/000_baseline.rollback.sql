-- Copyright (c) 2026, Surefoot contributors
-- GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
-- SPDX-License-Identifier: GPL-3.0-or-later
DROP TABLE public.sidebar_features, public.permissions, public.user_roles, public.roles, public.profiles, public.tenants;

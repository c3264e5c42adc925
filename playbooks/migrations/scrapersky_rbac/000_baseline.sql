-- Copyright (c) 2026, Surefoot contributors
-- GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
-- SPDX-License-Identifier: GPL-3.0-or-later
-- What the integrity migrations find: tenants as text in profiles, and nothing that binds the tables to each other.
CREATE TABLE public.tenants (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name text NOT NULL
);
CREATE TABLE public.profiles (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    tenant_id text,
    email text NOT NULL
);
CREATE INDEX profiles_tenant_id ON public.profiles (tenant_id);
CREATE TABLE public.roles (
    id integer PRIMARY KEY,
    name text NOT NULL
);
CREATE TABLE public.user_roles (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_id uuid NOT NULL,
    role_id integer NOT NULL,
    tenant_id uuid NOT NULL
);
CREATE TABLE public.permissions (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    tenant_id uuid NOT NULL,
    name text NOT NULL
);
CREATE TABLE public.sidebar_features (
    feature_id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    tenant_id uuid NOT NULL,
    name text NOT NULL DEFAULT '',
    requires_permission text
);

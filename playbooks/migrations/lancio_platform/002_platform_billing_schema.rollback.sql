-- Copyright (c) 2026, Surefoot contributors
-- GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
-- SPDX-License-Identifier: GPL-3.0-or-later

-- Rollback of 002. The rows of these tables are lost.

BEGIN;

DROP VIEW platform.project_resources;
DROP VIEW platform.organization_billing_overview;
DROP VIEW platform.subscriptions_with_orgs;
DROP FUNCTION platform.is_free_tier(uuid);
DROP FUNCTION platform.get_available_credits(uuid);
DROP FUNCTION platform.calculate_usage_cost(uuid, timestamptz, timestamptz);
DROP FUNCTION platform.get_active_subscription(uuid);
DROP TABLE platform.project_metrics;
DROP TABLE platform.project_addons;
DROP TABLE platform.addons;
DROP TABLE platform.disk_config;
DROP TABLE platform.compute_config;
DROP TABLE platform.usage_metrics;
DROP TABLE platform.tax_ids;
DROP TABLE platform.credits;
DROP TABLE platform.invoices;
DROP TABLE platform.payment_methods;
DROP TABLE platform.subscriptions;
DROP TABLE platform.customer_profiles;
DROP TABLE platform.billing_plans;

COMMIT;

# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
#   make demo    a PostgreSQL server, a platform with data, and migration 006 on it
#   make stop    stop that server (its data stays)
#   make clean   remove that server, its data and everything else that was made here, except run directories
#   make test    everything CI runs; each part is a target of its own, see `make help`
#
# PYTHON names the Python to make .venv with (3.11 or newer), JOBS the number of test processes.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

JOBS ?= 2
VERSIONS ?= 14 18
BIN := $(CURDIR)/.venv/bin

# Explicitly, because ansible ignores the ansible.cfg of a directory that others may write to.
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
export ANSIBLE_COLLECTIONS_PATH := $(CURDIR)/build/tree
# ansible refuses to start in a locale that is not UTF-8.
export LC_ALL := $(or $(firstword $(filter %UTF-8 %utf8,$(LC_ALL) $(LANG))),C.UTF-8)
export PATH := $(BIN):$(PATH)

.PHONY: help demo stop clean bootstrap dev test lint format mypy ansible-lint docs changelog unit package integration \
	versions test-matrix cloud faults e2e molecule sanity bench

help:
	@sed -n '5,10s/^# \{0,2\}//p' $(firstword $(MAKEFILE_LIST))
	@echo "Parts of make test, cheap to dear: lint mypy docs changelog package unit ansible-lint integration versions cloud faults e2e molecule sanity"
	@echo "Not in make test: bench (ratios against psql), test-matrix (all integration tests on 14, 16, 17, 18), format"

bootstrap:
	@scripts/bootstrap run

dev:
	@scripts/bootstrap dev

demo: bootstrap
	@ansible-playbook playbooks/demo.yml -i inventories/local
	@ansible-playbook playbooks/migrate_006.yml -i inventories/local

stop:
	@scripts/stop stopped

clean:
	@scripts/stop absent
	@rm -rf .venv build .ansible .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache tests/output
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One target after the other, also under -j: they share build/ and the machine.
test:
	@start=$$SECONDS; \
	for target in lint mypy docs changelog package unit ansible-lint integration versions cloud faults e2e molecule sanity; do \
		echo; echo "=== make $$target"; before=$$SECONDS; \
		$(MAKE) --no-print-directory $$target || { echo "=== make $$target FAILED"; exit 1; }; \
		summary+=$$(printf '\n%4d s  %s' $$((SECONDS - before)) $$target); \
	done; \
	echo; echo "=== everything passed in $$((SECONDS - start)) s:$$summary"

lint: dev
	@ruff check .
	@ruff format --check .
	@yamllint --strict .

format: dev
	@ruff check --fix .
	@ruff format .

mypy: dev
	@mypy

# A home of its own: a copy of the collection that the user has installed would be looked at instead of this one.
ansible-lint: dev
	@ANSIBLE_HOME=$(CURDIR)/build/ansible-home ansible-lint --offline --profile production

docs: dev
	@antsibull-docs lint-collection-docs --plugin-docs --validate-collection-refs self .

changelog: dev
	@antsibull-changelog lint

unit: dev
	@python -m pytest tests/unit -q -n $(JOBS)

integration: dev
	@python -m pytest tests/integration -q -n $(JOBS)

versions: dev
	@for version in $(VERSIONS); do \
		echo "PostgreSQL $$version"; bindir=$$(python scripts/find_postgresql.py $$version); \
		SUREFOOT_TEST_PG_BINDIR=$$bindir python -m pytest tests/integration -q -n $(JOBS) -m versions; \
	done

test-matrix: dev
	@for version in 14 16 17 18; do \
		echo "PostgreSQL $$version"; bindir=$$(python scripts/find_postgresql.py $$version); \
		SUREFOOT_TEST_PG_BINDIR=$$bindir python -m pytest tests/integration -q -n $(JOBS); \
	done

# Against a local moto server, a GraphQL server, Redis and PgBouncer: nothing of it leaves the machine.
cloud: dev
	@python -m pytest tests/cloud -q -n $(JOBS)

# SUREFOOT_FAULT_RUNS is the number of random moments of killing.
faults: dev
	@python -m pytest tests/faults -q -n $(JOBS)

e2e: dev
	@python -m pytest tests/e2e -q -n $(JOBS)

# What an earlier run left of its state would let this one skip the preparation.
molecule: dev
	@molecule --base-config .config/molecule/config.yml reset --all
	@molecule --base-config .config/molecule/config.yml test --all

sanity: dev
	@scripts/sanity

package: dev
	@scripts/check-package

bench: dev
	@for script in tests/benchmarks/bench_*.py; do python "$$script"; done

# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of all tests: a private server per session (per worker under pytest-xdist), a fresh database per test."""

from __future__ import annotations

import typing as t

import hypothesis
import pytest

from ansible_collections.surefoot.dbops.tests.support.pgserver import (
    Database,
    PgServer,
    running_server,
    temporary_database,
)

# No timing asserts: these machines are noisy.
hypothesis.settings.register_profile("surefoot", hypothesis.settings(hypothesis.settings.default, deadline=None))
hypothesis.settings.load_profile("surefoot")


@pytest.fixture(scope="session")
def pg_server() -> t.Iterator[PgServer]:
    """A private server; ``SUREFOOT_TEST_PG_BINDIR`` names the programs to use instead of the newest found."""
    with running_server() as server:
        yield server


@pytest.fixture
def database(pg_server: PgServer) -> t.Iterator[Database]:
    """A fresh, empty database."""
    with temporary_database(pg_server) as fresh:
        yield fresh

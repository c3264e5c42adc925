# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

from __future__ import annotations


class ModuleDocFragment:
    # Matches registry_argument_spec() in module_utils/_argspec.py.
    DOCUMENTATION = r"""
options:
  schema:
    description: Schema of the table of registered databases.
    type: str
    default: platform
  table:
    description: Name of that table.
    type: str
    default: databases
  columns:
    description:
      - Names of its columns where they differ, by what they are for. The keys are C(id), C(project_id), C(name),
        C(type), C(host), C(port), C(connection_string), C(connection_string_encrypted) (C(bytea)) and C(metadata)
        (C(jsonb)), which a table must have, and C(database), C(username), C(ssl_enabled), C(status),
        C(health_check_status), C(health_check_error) and C(last_health_check_at), which it may have.
      - A column of the first kind that is missing is an error, and so is one of the second kind that is named here.
    type: dict
    default: {}
  encryption:
    description:
      - With V(trigger), a row trigger of the table encrypts C(connection_string) on its way in, with the key it finds
        in O(key_setting), and O(decrypt_function) reads it back. A table without such a trigger is refused.
      - With V(client), the URL is sealed on the host that executes the module, with AES-256-GCM, bound to project, name
        and type of its row. The server never sees the key. A table that encrypts by itself is refused.
    type: str
    choices: [trigger, client]
    default: trigger
  encryption_key:
    description:
      - The key of the URLs, at least 16 characters.
      - With O(encryption=trigger) it travels as a startup option of a connection that is closed afterwards, never in a
        statement.
    type: str
  key_setting:
    description: The setting in which trigger and decrypting function look for the key. With O(encryption=trigger) only.
    type: str
    default: app.database_encryption_key
  decrypt_function:
    description:
      - The function that takes the id of a row and returns its URL, in O(schema) unless it names another one.
      - With O(encryption=trigger) only.
    type: str
    default: decrypt_database_connection_string
requirements:
  - redis (redis-py) for URLs of Redis, pymongo for URLs of MongoDB
  - cryptography for O(encryption=client)
"""

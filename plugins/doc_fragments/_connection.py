# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

from __future__ import annotations


class ModuleDocFragment:
    # Matches connection_argument_spec() in module_utils/_argspec.py.
    DOCUMENTATION = r"""
options:
  login_url:
    description:
      - The database as a URL, C(postgresql://user:password@host:port/database?sslmode=verify-full).
      - Mutually exclusive with O(login_host), O(login_port), O(login_user), O(login_password), and
        O(login_unix_socket). With O(login_db) it is another database of the same server.
    type: str
  login_host:
    description: Host name or address of the server. Without it and without a URL, libpq's default socket is used.
    type: str
  login_port:
    description: Port of the server. libpq's default is V(5432).
    type: int
  login_user:
    description: Role to log in with.
    type: str
  login_password:
    description:
      - Password of the role.
      - Without one, libpq looks into E(PGPASSFILE) as it always does.
    type: str
  login_db:
    description: Database to connect to.
    type: str
  login_unix_socket:
    description: Directory of the server's Unix socket. Wins over O(login_host).
    type: path
  session_role:
    description:
      - Role to take on after login.
      - Everything the module does, its own bookkeeping included, is done as this role.
    type: str
  ssl_mode:
    description:
      - Whether and how TLS is used. V(verify-full) is what a production database should have.
      - libpq's default is V(prefer), which neither demands TLS nor checks who answers.
    type: str
    choices: [disable, allow, prefer, require, verify-ca, verify-full]
  ca_cert:
    description: File of the certificate authorities the server's certificate is checked against.
    type: path
    aliases: [ssl_rootcert]
  ssl_cert:
    description: File of the client certificate.
    type: path
  ssl_key:
    description: File of the client certificate's private key.
    type: path
  connect_params:
    description: Further libpq connection keywords, such as C(target_session_attrs).
    type: dict
requirements:
  - psycopg2 (or psycopg2-binary) >= 2.8 for the Python that runs the module
"""

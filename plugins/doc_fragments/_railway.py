# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

from __future__ import annotations


class ModuleDocFragment:
    # Matches railway_argument_spec() in module_utils/_argspec.py.
    DOCUMENTATION = r"""
options:
  project_token:
    description:
      - Token of one environment of a Railway project, sent as C(Project-Access-Token).
      - Without it and without O(api_token), the environment variable E(RAILWAY_TOKEN) is used, as by Railway's own
        program. Railway's Terraform provider keeps an account token under that name; such a token belongs into
        O(api_token).
      - A token given as an option is used alone, whatever the environment has. Two options, or both environment
        variables, are refused.
    type: str
  api_token:
    description:
      - Token of an account or a workspace, sent as C(Authorization) with C(Bearer).
      - Without it and without O(project_token), the environment variable E(RAILWAY_API_TOKEN) is used.
    type: str
  project:
    description:
      - Name or id of the project. Two projects of the same name are refused, with their ids.
      - The default is E(RAILWAY_PROJECT_ID). With a project token it may be left out, and must be the token's when it
        is given.
      - By id it costs fewer requests, and reaches projects that another workspace shares.
    type: str
  environment:
    description:
      - Name or id of the environment, such as V(production).
      - The default is E(RAILWAY_ENVIRONMENT_ID). With a project token as for O(project).
    type: str
  api_url:
    description: Address of the API. Without TLS only this machine is allowed.
    type: str
    default: https://backboard.railway.com/graphql/v2
  ca_cert:
    description: File of the certificate authorities to trust instead of the system's.
    type: path
  timeout:
    description: How long one attempt may take as a whole.
    type: str
    default: 30s
  retry_wait:
    description:
      - How long to wait in all before repeating requests. After 429, too many requests, as long as C(Retry-After) says;
        without an answer or with a server error up to three times, at growing intervals.
      - A wait that would exceed it is not begun.
    type: str
    default: 60s
"""

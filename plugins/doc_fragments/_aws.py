# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

from __future__ import annotations


class ModuleDocFragment:
    # Matches aws_argument_spec() in module_utils/_argspec.py.
    DOCUMENTATION = r"""
options:
  region:
    description:
      - The AWS region.
      - Without it, E(AWS_REGION), E(AWS_DEFAULT_REGION), or that of the profile.
    type: str
    aliases: [aws_region]
  profile:
    description:
      - A profile of the AWS configuration of the host that executes the module. One with C(role_arn) assumes a role.
      - Without it and without keys, E(AWS_PROFILE) or E(AWS_DEFAULT_PROFILE).
    type: str
    aliases: [aws_profile]
  access_key:
    description:
      - The access key, with O(secret_key).
      - Without it and without O(profile), botocore looks by its own rules, at E(AWS_ACCESS_KEY_ID), the files of the
        AWS configuration and the role of the host among others.
    type: str
    aliases: [aws_access_key, aws_access_key_id]
  secret_key:
    description: The secret access key.
    type: str
    aliases: [aws_secret_key, aws_secret_access_key]
  session_token:
    description: The session token of temporary credentials.
    type: str
    aliases: [aws_session_token]
  endpoint_url:
    description:
      - URL of the service instead of AWS's own. It applies to every service the module calls.
      - Without it, E(AWS_URL), or E(AWS_ENDPOINT_URL) as botocore reads it.
    type: str
    aliases: [aws_endpoint_url]
  aws_ca_bundle:
    description: File of CA certificates to trust instead of the usual ones. Without it, E(AWS_CA_BUNDLE).
    type: path
  validate_certs:
    description: Whether the certificate of the endpoint must be valid.
    type: bool
    default: true
  aws_config:
    description:
      - Arguments of C(botocore.config.Config), such as C(retries), C(read_timeout) or C(proxies). They are no secrets
        to Ansible.
      - By default, a call is tried four times by botocore's C(standard) retry mode. What AWS throttles is tried again
        for a minute beyond that.
    type: dict
attributes:
  check_mode:
    description: Can run in C(check_mode) and return changed status prediction without modifying the target.
  diff_mode:
    description: Will return details on what has changed (or possibly needs changing in C(check_mode)) in diff mode.
  idempotent:
    description:
      - When run twice in a row outside check mode, with the same arguments, the second invocation indicates no change.
      - This assumes that the system controlled or queried by the module has not changed in a relevant way.
  action_group:
    description: Use C(group/surefoot.dbops.rds) in C(module_defaults) to set defaults for this module.
    support: full
    membership:
      - surefoot.dbops.rds
requirements:
  - boto3
"""

#!/usr/bin/python
# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: postgresql_evidence
short_description: Anchor the evidence of a run, or tell whether it was altered
version_added: 0.1.0
author:
  - Surefoot contributors (@surefoot)
description:
  - Each line of C(evidence.jsonl) carries the sha256 of the line before it. The sha256 of the last line is the head of
    this chain.
  - With O(state=anchored), the sha256 of every other file of the run directory is recorded in the chain, which seals
    them, and the head is kept in the ledger of the database the run worked on. Make it the last task of a run.
  - With O(state=verified), tells whether the run directory is what was sealed and anchored. The task fails when it was
    altered, and names the file and the line.
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
    details:
      - A head says nothing to a reader.
  idempotent:
    support: full
    details:
      - Nothing is recorded again when no file has changed since the last seal.
options:
  state:
    description:
      - V(anchored) seals the run directory and keeps the head.
      - V(verified) only reads.
    type: str
    choices: [anchored, verified]
    default: verified
  run_dir:
    description: The run directory, on the host that executes the module.
    type: path
    required: true
  run_id:
    description: Identifier of the run. By default what C(run.json) says, else the name of the run directory.
    type: str
  ledger_schema:
    description: Schema of the ledger.
    type: str
    default: surefoot
  sign_key:
    description:
      - Sign the head with this SSH key, by C(ssh-keygen -Y sign -n surefoot). The signature lies beside it, in
        C(evidence.head.sig).
      - A private key without a passphrase, or the public key of one that C(ssh-agent) holds.
      - Used with O(state=anchored).
    type: path
  allowed_signers:
    description:
      - Demand a signature of the head by one of these signers. The format is that of C(ssh-keygen), ALLOWED SIGNERS.
      - Used with O(state=verified).
    type: path
  expected_head:
    description:
      - A head that was kept elsewhere, such as the one of a sign-off. It must be the digest of a line of the chain;
        what was written up to that line is then as it was.
      - Used with O(state=verified).
    type: str
notes:
  - Without any connection option the ledger is not asked, and O(state=verified) can only tell whether chain and seal
    fit together.
  - Who can write to the ledger as well as to the run directory can make both fit. Against them, sign the head, or keep
    it elsewhere.
seealso:
  - module: surefoot.dbops.sign_off
extends_documentation_fragment:
  - surefoot.dbops._attributes
  - surefoot.dbops._connection
"""

EXAMPLES = r"""
- name: Anchor the evidence at the end of a run
  surefoot.dbops.postgresql_evidence:
    state: anchored
    login_url: "{{ lookup('ansible.builtin.env', 'DATABASE_URL') }}"
    run_dir: /var/lib/surefoot/runs/20261122T020000Z-5f0c1f

- name: Sign it as well, with a key that ssh-agent holds
  surefoot.dbops.postgresql_evidence:
    state: anchored
    login_url: "{{ lookup('ansible.builtin.env', 'DATABASE_URL') }}"
    run_dir: /var/lib/surefoot/runs/20261122T020000Z-5f0c1f
    sign_key: ~/.ssh/id_ed25519.pub

- name: Verify it a year later
  surefoot.dbops.postgresql_evidence:
    login_url: "{{ lookup('ansible.builtin.env', 'DATABASE_URL') }}"
    run_dir: /var/lib/surefoot/runs/20261122T020000Z-5f0c1f
    allowed_signers: /etc/surefoot/allowed_signers

- name: Verify a copy without the database
  surefoot.dbops.postgresql_evidence:
    run_dir: /srv/audit/20261122T020000Z-5f0c1f
    expected_head: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
"""

RETURN = r"""
status:
  description:
    - V(intact) means that everything is as it was, and that somebody else than the run directory says so.
    - V(unanchored) means that nothing else keeps the head. Chain and seal fit together.
    - V(altered) fails the task. See RV(findings).
  returned: always
  type: str
  sample: intact
run_id:
  description: The run.
  returned: always
  type: str
  sample: 20261122T020000Z-5f0c1f
head:
  description: The sha256 of the last line of C(evidence.jsonl); null without evidence.
  returned: always
  type: str
  sample: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
records:
  description: Number of lines of the chain.
  returned: always
  type: int
  sample: 48
files:
  description: Number of files under the last seal; null when there is none.
  returned: always
  type: int
  sample: 14
anchors:
  description: What else says that the head is right, of C(ledger), C(signature) and C(expected_head).
  returned: always
  type: list
  elements: str
  sample: [ledger, signature]
signed_by:
  description: The principal of O(allowed_signers) whose signature is valid; null without one.
  returned: always
  type: str
  sample: oncall@example.com
findings:
  description: What is not as it was written.
  returned: always
  type: list
  elements: dict
  contains:
    file:
      description: File of the run directory.
      type: str
      sample: report.json
    line:
      description: Line of C(evidence.jsonl), from 1; null for another file.
      type: int
      sample: 7
    problem:
      description: What is wrong.
      type: str
      sample: is not what it was when sealed
  sample: []
unsealed:
  description: Files that were added after the seal. They are not evidence, and no finding.
  returned: always
  type: list
  elements: str
  sample: [notes-of-the-auditor.pdf]
evidence:
  description: One record with the criterion C(report.chain). It is not added to the chain it is about.
  returned: always
  type: list
  elements: dict
  sample: [{criterion: report.chain, phase: report, verdict: pass, measured: intact, required: intact}]
error:
  description: The error as an object, with C(code), C(message) and C(remedy).
  returned: failure
  type: dict
  sample: {code: verification, message: the evidence of run r1 was altered, remedy: Do not rely on it.}
"""

import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._argspec import ArgumentSpec, connection_argument_spec
from ansible_collections.surefoot.dbops.plugins.module_utils._chain import anchor, run_id_of, verify
from ansible_collections.surefoot.dbops.plugins.module_utils._module import Invocation, connection_options, run_module

_ADDRESSES = ("login_url", "login_host", "login_unix_socket", "login_db", "connect_params")


def argument_spec() -> ArgumentSpec:
    """The module's options and their constraints."""
    return ArgumentSpec(
        argument_spec={
            "state": {"type": "str", "choices": ["anchored", "verified"], "default": "verified"},
            "run_dir": {"type": "path", "required": True},
            "run_id": {"type": "str"},
            "ledger_schema": {"type": "str", "default": "surefoot"},
            "sign_key": {"type": "path", "no_log": False},
            "allowed_signers": {"type": "path"},
            "expected_head": {"type": "str"},
        },
    ).merge(connection_argument_spec())


def run(module: Invocation) -> dict[str, t.Any]:
    """Options to the library and back."""
    params = module.params
    # Taken out of the options: a line of this task in the timeline would come after the seal.
    run_dir = params.pop("run_dir")
    run_id = params["run_id"] or run_id_of(run_dir)
    options = connection_options(module) if any(params.get(name) for name in _ADDRESSES) else None
    if params["state"] == "anchored":
        outcome = anchor(
            run_dir,
            run_id,
            options,
            ledger_schema=params["ledger_schema"],
            sign_key=params["sign_key"],
            check_mode=module.check_mode,
        )
    else:
        outcome = verify(
            run_dir,
            run_id,
            options,
            ledger_schema=params["ledger_schema"],
            allowed_signers=params["allowed_signers"],
            expected_head=params["expected_head"],
        )
    return outcome.results()


def main() -> None:
    """Entry point."""
    run_module(argument_spec(), run)


if __name__ == "__main__":
    main()

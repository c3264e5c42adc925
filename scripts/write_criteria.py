# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write docs/criteria.md from plugins/module_utils/_criteria.py: scripts/write_criteria.py, in the virtual environment.

The tables are written in source order, so that a reader finds the boxes as the documents have them.
"""

from __future__ import annotations

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "criteria.md"

_HEAD = """\
# Criteria

Written by `scripts/write_criteria.py` from `plugins/module_utils/_criteria.py`; do not edit.
[The gate](gate.md) says how they are judged.

## What a criterion demands

The policy's key `criteria` sets a criterion to `required` or `optional`. Where it is silent, this holds:

| default | demands |
|---|---|
"""


def page() -> str:
    """The page's text."""
    from ansible_collections.surefoot.dbops.plugins.module_utils import _criteria as c

    lines = [_HEAD.rstrip("\n")]
    lines += [f"| {name} | {text} |" for name, text in c.DEFAULTS.items()]
    lines += ["", "## The tick boxes of the source documents", ""]
    lines += [f"{len(c.BOXES)} boxes. A box holds when all of its criteria do.", ""]
    for document, title in c.DOCUMENTS.items():
        lines += [f"### {title}", "", "| line | section | box | stage | criteria |", "|---|---|---|---|---|"]
        for box in c.BOXES:
            if box.document == document:
                names = ", ".join(f"`{name}`" for name in box.criteria)
                names += f" of `{box.migration}`" if box.migration else ""
                lines.append(f"| {box.line} | {box.section} | {box.text} | {box.stage} | {names} |")
        lines.append("")
    lines += ["## The criteria", ""]
    lines += ["| criterion | stage | default | switched by | measured by |", "|---|---|---|---|---|"]
    for item in c.CRITERIA.values():
        switch = f"`{item.policy_key}`" if item.policy_key else ""
        lines.append(f"| `{item.id}` | {', '.join(item.stages)} | {item.default} | {switch} | {item.how} |")
    lines += [
        "",
        "Beside these, every check of the plan is a criterion: it must hold after its migration was applied. Whatever",
        "else a record names must not fail.",
        "",
        "## What a person may attest",
        "",
        "Where no measurement exists. Nothing else can be attested; it can only be waived.",
        "",
        "| attestation | stage | default | says |",
        "|---|---|---|---|",
    ]
    for name in c.ATTESTATIONS:
        item = c.CRITERIA[name]
        lines.append(f"| `{name}` | {', '.join(item.stages)} | {item.default} | {item.how} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "build" / "tree"))
    PAGE.write_text(page(), encoding="utf-8")

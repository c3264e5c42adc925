# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The SQL files the splitter is tried on; those whose bytes no checkout keeps as they are get written here."""

from __future__ import annotations

import os
import pathlib

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_WRITTEN = _ROOT / "build" / "corpus"
_ODD_BYTES = {
    "byte_order_mark.sql": b"\xef\xbb\xbf-- first line\nselect 'with a byte order mark';\n",
    "crlf.sql": (
        b"create table crlf_t (a text);\r\ninsert into crlf_t values ('one\r\ntwo'); -- c\r\n"
        b"/* x\r\n*/ select 1\r\n;\r\n"
        b"copy crlf_t from stdin;\r\nrow\r\n\\.\r\nselect $$a\r\nb$$;\r\n"
    ),
    "lone_return.sql": (
        b"create table lone_t (a int); -- comment\rinsert into lone_t values (1);\n"
        b"-- other\rinsert into lone_t values (2);\n"
    ),
}


def corpus() -> list[pathlib.Path]:
    """Every file, by name."""
    _WRITTEN.mkdir(parents=True, exist_ok=True)
    for name, content in _ODD_BYTES.items():
        partial = _WRITTEN / f".{name}.{os.getpid()}"
        partial.write_bytes(content)
        partial.replace(_WRITTEN / name)  # several pytest workers do this at the same time
    kept = (_ROOT / "tests" / "fixtures" / "sql").glob("*.sql")
    return sorted([*kept, *(_WRITTEN / name for name in _ODD_BYTES)], key=lambda path: path.name)

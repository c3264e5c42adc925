# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""Text with units to numbers, and database values to what JSON can hold."""

from __future__ import annotations

import datetime
import decimal
import math
import re
import typing as t
import uuid

from ansible_collections.surefoot.dbops.plugins.module_utils._errors import PlanError

_DURATION_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE_UNITS = {"": 1, "B": 1, "KB": 2**10, "MB": 2**20, "GB": 2**30, "TB": 2**40}
_NUMBER_UNIT = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", re.ASCII)
_PERCENTAGE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*%?\s*", re.ASCII)


def parse_duration(value: object) -> float:
    """Seconds of ``500ms``, ``30s``, ``5m``, ``2h``, ``1d``, or of a bare number of seconds.

    :raises PlanError: not a duration, or negative
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0 and math.isfinite(value):
        return float(value)
    match = _NUMBER_UNIT.fullmatch(value) if isinstance(value, str) else None
    if match and (match.group(2) or "s") in _DURATION_UNITS:
        return float(match.group(1)) * _DURATION_UNITS[match.group(2) or "s"]
    raise PlanError(f"{value!r} is not a duration", remedy="Write a number with us, ms, s, m, h or d, such as 500ms.")


def parse_size(value: object) -> int:
    """Bytes of ``1GB``, ``512 MB``, or of a bare number of bytes; units are powers of 1024, as in PostgreSQL.

    :raises PlanError: not a size
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _NUMBER_UNIT.fullmatch(value) if isinstance(value, str) else None
    if match and match.group(2).upper() in _SIZE_UNITS:
        return round(float(match.group(1)) * _SIZE_UNITS[match.group(2).upper()])
    raise PlanError(f"{value!r} is not a size", remedy="Write a number with B, kB, MB, GB or TB, such as 1GB.")


def parse_percentage(value: object) -> float:
    """A number above 0 and up to 100, with or without ``%``.

    :raises PlanError: not such a percentage
    """
    match = _PERCENTAGE.fullmatch(str(value))
    if match and not isinstance(value, bool) and 0 < float(match.group(1)) <= 100:
        return float(match.group(1))
    raise PlanError(f"{value!r} is not a percentage", remedy="Give one above 0 and up to 100, such as 90%.")


def parse_rate(value: object) -> int:
    """Bytes per minute of a rate such as ``1GB/min``.

    :raises PlanError: not a rate
    """
    size, slash, unit = str(value).partition("/")
    if isinstance(value, str) and slash and unit.strip() == "min":
        return parse_size(size)
    raise PlanError(f"{value!r} is not a rate", remedy="Write a size per min, such as 1GB/min.")


def parse_count(value: object, least: int = 0) -> int:
    """A whole number of at least ``least``.

    :raises PlanError: not one
    """
    if isinstance(value, bool) or not re.fullmatch(r"[0-9]{1,9}", str(value)) or int(str(value)) < least:
        raise PlanError(f"{value!r} is not a number from {least} on", remedy="Give a whole number.")
    return int(str(value))


def milliseconds(seconds: float) -> int:
    """Whole milliseconds for a PostgreSQL setting; never 0, which would mean "no limit"."""
    return max(1, round(seconds * 1000))


def human_duration(seconds: float) -> str:
    """A duration as an operator says it: ``450 ms``, ``3.2 s``, ``4 min 5 s``, ``2 h 3 min``."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def human_size(size: float) -> str:
    """A size as an operator says it, in powers of 1024."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TB"


def to_plain(value: t.Any) -> t.Any:
    """What JSON can hold of a value psycopg2 returned, without loss where JSON allows it.

    Decimal, uuid, network and range values become their PostgreSQL text, bytea becomes ``\\x`` hex, timestamps ISO
    8601, intervals seconds; NaN and infinities, which JSON lacks, become text.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, decimal.Decimal):
        return int(value) if value.is_finite() and value == value.to_integral_value() else str(value)
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, (bytes, bytearray, memoryview)):
        return "\\x" + bytes(value).hex()
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, t.Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_plain(item) for item in value]
    return str(value)

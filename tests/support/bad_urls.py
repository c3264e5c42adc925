# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""URLs that must be refused. Each holds a secret whose every part has NEEDLE in it, wherever a parser would cut it."""

from __future__ import annotations

NEEDLE = "Zq7v"
_A, _B = f"{NEEDLE}Alpha", f"{NEEDLE}Bravo"

# (name, kind or None, URL)
BAD_URLS: tuple[tuple[str, str | None, str], ...] = (
    # lenient redis-py: each of these is taken by its parser
    ("redis: unescaped slash in the password", "redis", f"redis://default:{_A}/{_B}@h:6379/0"),
    ("redis: digits, then a slash, in the password", "redis", f"redis://{_A}:123/{_B}@h:6379/0"),
    ("redis: unescaped @ in the password", "redis", f"redis://default:{_A}@{_B}@h:6379/0"),
    ("redis: unescaped ? in the password", "redis", f"redis://default:{_A}?{_B}@h:6379/0"),
    ("redis: unescaped # in the password", "redis", f"redis://default:{_A}#{_B}@h:6379/0"),
    ("redis: unescaped brackets in the password", "redis", f"redis://default:{_A}[{_B}]@h:6379/0"),
    ("redis: no host", "redis", f"redis://default:{_A}@/0"),
    ("redis: a port and no host", "redis", f"redis://default:{_A}@:6379/0"),
    ("redis: an empty port", "redis", f"redis://default:{_A}@h:/0"),
    ("redis: a database that is no number", "redis", f"redis://default:{_A}@h:6379/abc"),
    ("redis: an extra path", "redis", f"redis://default:{_A}@h:6379/0/{_B}"),
    ("redis: a list of hosts", "redis", f"redis://default:{_A}@a,b:6379/0"),
    ("redis: ?ssl=true, which redis-py ignores", "redis", f"redis://default:{_A}@h:6379/0?ssl=true"),
    ("redis: an unknown query key", "redis", f"redis://default:{_A}@h:6379/0?{_B}=1"),
    ("redis: a negative database", "redis", f"redis://default:{_A}@h:6379/-1"),
    ("redis: a database in path and query", "redis", f"redis://default:{_A}@h:6379/0?db=1"),
    ("redis: a user that may be a password", "redis", f"redis://{_A}@h:6379/0"),
    ("redis: a password in the query", "redis", f"redis://h:6379/0?password={_A}"),
    ("redis: port 0", "redis", f"redis://default:{_A}@h:0/0"),
    ("redis: a port too large", "redis", f"redis://default:{_A}@h:99999/0"),
    ("redis: a port that is no number", "redis", f"redis://default:{_A}@h:{_B}/0"),
    ("redis: an option of TLS without TLS", "redis", f"redis://default:{_A}@h:6379/0?ssl_cert_reqs=none"),
    ("redis: an empty password", "redis", f"redis://{_A}:@h:6379/0"),
    ("redis: a socket", "redis", f"unix://default:{_A}@/tmp/redis.sock"),
    ("redis: an upper-case scheme", "redis", f"REDIS://default:{_A}@h:6379/0"),
    ("redis: valkey", "redis", f"valkey://default:{_A}@h:6379/0"),
    ("redis: sentinel", "redis", f"redis+sentinel://default:{_A}@h:6379/0"),
    ("redis: an IPv6 address without brackets", "redis", f"redis://default:{_A}@::1:6379/0"),
    ("redis: a broken IPv6 address", "redis", f"redis://default:{_A}@[::zz]:6379/0"),
    # MongoDB
    ("mongodb: a wrong escape", "mongodb", f"mongodb://u:{_A}%zz{_B}@h/db"),
    ("mongodb: a lonely percent", "mongodb", f"mongodb://u:{_A}%@h/db"),
    ("mongodb: escapes that are not UTF-8", "mongodb", f"mongodb://u:{_A}%ff{_B}@h/db"),
    ("mongodb: an escaped line break", "mongodb", f"mongodb://u:{_A}%0a{_B}@h/db"),
    ("mongodb: unescaped colon in the password", "mongodb", f"mongodb://u:{_A}:{_B}@h/db"),
    ("mongodb: unescaped slash in the password", "mongodb", f"mongodb://u:{_A}/{_B}@h/db"),
    ("mongodb: unescaped @ in the password", "mongodb", f"mongodb://u:{_A}@{_B}@h/db"),
    ("mongodb: no host", "mongodb", f"mongodb://u:{_A}@/db"),
    ("mongodb: an empty host in the list", "mongodb", f"mongodb://u:{_A}@a,,b/db"),
    ("mongodb: an unknown option", "mongodb", f"mongodb://u:{_A}@h/db?{_B}=1"),
    ("mongodb: a value that an option does not take", "mongodb", f"mongodb://u:{_A}@h/db?tls={_B}"),
    ("mongodb: an option twice", "mongodb", f"mongodb://u:{_A}@h/db?tls=true&tls=false"),
    ("mongodb: a collection behind the database", "mongodb", f"mongodb://u:{_A}@h/db.{_B}"),
    ("mongodb: a socket as host", "mongodb", f"mongodb://u:{_A}@%2Ftmp%2Fm.sock/db"),
    ("mongodb+srv: a port", "mongodb", f"mongodb+srv://u:{_A}@a.b.example:27017/db"),
    ("mongodb+srv: two hosts", "mongodb", f"mongodb+srv://u:{_A}@a.b.example,c.d.example/db"),
    ("mongodb+srv: a host of two parts", "mongodb", f"mongodb+srv://u:{_A}@b.example/db"),
    ("mongodb: an option of mongodb+srv", "mongodb", f"mongodb://u:{_A}@h/db?srvMaxHosts=1"),
    # PostgreSQL
    ("postgresql: unescaped slash in the password", "postgresql", f"postgresql://u:{_A}/{_B}@h:5432/db"),
    ("postgresql: unescaped @ in the password", "postgresql", f"postgresql://u:{_A}@{_B}@h:5432/db"),
    ("postgresql: no host", "postgresql", f"postgresql://u:{_A}@/db"),
    ("postgresql: an unknown keyword", "postgresql", f"postgresql://u:{_A}@h/db?{_B}=1"),
    ("postgresql: a password in the query", "postgresql", f"postgresql://u@h/db?password={_A}"),
    ("postgresql: another host in the query", "postgresql", f"postgresql://u:{_A}@h/db?host={_B}"),
    ("postgresql: an sslmode that is none", "postgresql", f"postgresql://u:{_A}@h/db?sslmode={_B}"),
    ("postgresql: keywords instead of a URL", "postgresql", f"host=h user=u password={_A}"),
    # any of them
    ("a reference of Railway that was not resolved", None, f"redis://default:{_A}${{{{Redis.{_B}}}}}@h:6379/0"),
    ("a template of Ansible that was not resolved", None, f"redis://default:{{{{ {_A} }}}}@h:6379/0"),
    ("a placeholder", None, f"redis://default:<{_A}>@h:6379/0"),
    ("a space at its end", None, f"redis://default:{_A}@h:6379/0 "),
    ("a line break at its end", None, f"redis://default:{_A}@h:6379/0\n"),
    ("characters beyond ASCII", None, f"redis://default:{_A}\u00e9{_B}@h:6379/0"),
    ("no scheme", None, f"{_A}@h:6379/0"),
    ("a scheme of something else", None, f"https://u:{_A}@h:6379/0"),
    ("redacted text", None, f"redis://***@h:6379/0?{_A}=1"),
    ("a backslash", None, f"redis://default:{_A}\\{_B}@h:6379/0"),
    ("a URL of another kind", "redis", f"mongodb://u:{_A}@h/db"),
)

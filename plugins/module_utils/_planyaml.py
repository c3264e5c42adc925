# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""A plan's YAML: nodes to values, every complaint with its place."""

from __future__ import annotations

import math
import re
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._checks import nearest
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import Location, PlanError
from ansible_collections.surefoot.dbops.plugins.module_utils._steps import NAME, Throttle, identifier, split_qualified
from ansible_collections.surefoot.dbops.plugins.module_utils._values import (
    parse_count,
    parse_duration,
    parse_percentage,
    parse_rate,
)

try:
    import yaml

    # The one built on libyaml is about ten times as fast.
    _Loader: t.Any = getattr(yaml, "CSafeLoader", None) or yaml.SafeLoader
    YAML_ERROR: ImportError | None = None
except ImportError as exc:
    YAML_ERROR = exc

# Values of a plan are small; more than this is an anchor that multiplies itself.
_MAX_NODES = 500_000
_MAX_DEPTH = 50

_STR, _INT, _FLOAT, _BOOL, _NULL = (f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null"))
_TIMESTAMP, _MERGE = "tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:merge"
_TEXT_TAGS = (_STR, _INT, _FLOAT, _TIMESTAMP, _BOOL)
_TRUE = ("true", "yes", "on")
_LIMITS: dict[str, t.Callable[[str], float]] = {
    "max_lag": parse_duration,
    "max_wal_rate": parse_rate,
    "max_waiters": parse_count,
    "max_connections_used": parse_percentage,
}
THROTTLE_KEYS = ("pause", *_LIMITS)


def is_scalar(node: t.Any) -> bool:
    """Whether a node is a text, number or boolean."""
    return isinstance(node, yaml.ScalarNode)


class PlanYaml:
    """One YAML document: nodes to values, every complaint with its place."""

    def __init__(self, text: str, file: str) -> None:
        self.file = file
        self._budget = _MAX_NODES
        self._loader = self._open(text)

    def _open(self, text: str) -> t.Any:
        try:
            return _Loader(text)
        except yaml.reader.ReaderError as exc:
            raise self._reader_error(text, exc) from None

    def _reader_error(self, text: str, exc: t.Any) -> PlanError:
        before = text[: exc.position] if isinstance(exc.position, int) else ""
        location = Location(self.file, before.count("\n") + 1, len(before) - before.rfind("\n"))
        return PlanError(f"YAML syntax error: {exc.reason}", location=location)

    def root(self, text: str) -> t.Any:
        """The document's root node; None for an empty document.

        :raises PlanError: a syntax error, or more than one document
        """
        try:
            return self._loader.get_single_node()
        except yaml.reader.ReaderError as exc:
            raise self._reader_error(text, exc) from None
        except yaml.MarkedYAMLError as exc:
            mark = exc.problem_mark or exc.context_mark
            location = Location(self.file, mark.line + 1, mark.column + 1) if mark else Location(self.file)
            problem = " ".join(str(exc.problem or exc.context or "not valid").split())
            remedy = "Check indentation, colons and quotes there and on the line before."
            raise PlanError(f"YAML syntax error: {problem}", location=location, remedy=remedy) from None
        except (yaml.YAMLError, RecursionError) as exc:
            problem = "nested too deeply" if isinstance(exc, RecursionError) else " ".join(str(exc).split())
            raise PlanError(f"YAML syntax error: {problem}", location=Location(self.file)) from None
        finally:
            self._loader.dispose()

    def at(self, node: t.Any) -> Location:
        mark = node.start_mark
        return Location(self.file, mark.line + 1, mark.column + 1)

    def text_at(self, node: t.Any) -> Location:
        """Where the text of a scalar begins: a block scalar's on the next line, at a column that YAML does not tell."""
        mark = node.start_mark
        if getattr(node, "style", None) in ("|", ">"):
            return Location(self.file, mark.line + 2)
        quote = 1 if getattr(node, "style", None) in ("'", '"') else 0
        return Location(self.file, mark.line + 1, mark.column + 1 + quote)

    def _spend(self, node: t.Any) -> None:
        self._budget -= 1
        if self._budget < 0:
            remedy = "Look for an anchor that contains its own alias."
            raise PlanError("the plan is too large", location=self.at(node), remedy=remedy)

    def entries(self, node: t.Any, what: str) -> dict[str, tuple[t.Any, t.Any]]:
        """Key -> (key node, value node), merges (``<<``) resolved.

        :raises PlanError: not a mapping, a key that is no scalar, or one given twice
        """
        self._spend(node)
        if not isinstance(node, yaml.MappingNode):
            raise PlanError(f"{what} is not a mapping", location=self.at(node))
        own: dict[str, tuple[t.Any, t.Any]] = {}
        merged: dict[str, tuple[t.Any, t.Any]] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise PlanError(f"a key of {what} is not a text", location=self.at(key))
            if key.tag == _MERGE:
                for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    for name, entry in self.entries(source, "what << merges").items():
                        merged.setdefault(name, entry)
                continue
            if key.value in own:
                first = own[key.value][0].start_mark.line + 1
                raise PlanError(f"{what} has the key {key.value} twice (also on line {first})", location=self.at(key))
            own[key.value] = (key, value)
        return {**merged, **own} if merged else own

    def fields(self, node: t.Any, what: str, known: t.Sequence[str]) -> dict[str, t.Any]:
        """Key -> value node of a mapping with a fixed set of keys.

        :raises PlanError: an unknown key
        """
        found = {}
        for name, (key, value) in self.entries(node, what).items():
            if name not in known:
                raise PlanError(f"unknown key {name} in {what}", location=self.at(key), remedy=nearest(name, known))
            found[name] = value
        return found

    def items(self, node: t.Any, what: str) -> list[t.Any]:
        """Nodes of a list.

        :raises PlanError: not a list
        """
        self._spend(node)
        if not isinstance(node, yaml.SequenceNode):
            raise PlanError(f"{what} is not a list", location=self.at(node))
        return list(node.value)

    def text(self, node: t.Any, what: str) -> str:
        """A text as written; ``006`` stays ``006``.

        :raises PlanError: not a scalar, or empty
        """
        if not isinstance(node, yaml.ScalarNode) or node.tag not in _TEXT_TAGS:
            raise PlanError(f"{what} is not a text", location=self.at(node))
        if not node.value.strip():
            raise PlanError(f"{what} is empty", location=self.at(node))
        return str(node.value).strip()

    def one_or_more(self, node: t.Any, what: str) -> list[t.Any]:
        """The nodes of a list that is not empty, or the one node."""
        if not isinstance(node, yaml.SequenceNode):
            return [node]
        if not node.value:
            raise PlanError(f"{what} is empty", location=self.at(node), remedy="Leave the key out.")
        return self.items(node, what)

    def texts(self, node: t.Any, what: str) -> tuple[str, ...]:
        """One text or a list of different texts."""
        values = []
        for item in self.one_or_more(node, what):
            value = self.text(item, f"an entry of {what}" if item is not node else what)
            if value in values:
                raise PlanError(f"{what} has {value} twice", location=self.at(item))
            values.append(value)
        return tuple(values)

    def is_flag(self, node: t.Any) -> bool:
        """Whether a node is true or false."""
        return is_scalar(node) and node.tag == _BOOL

    def flag(self, node: t.Any, what: str) -> bool:
        """:raises PlanError: neither true nor false"""
        if not isinstance(node, yaml.ScalarNode) or node.tag != _BOOL:
            raise PlanError(f"{what} is not true or false", location=self.at(node))
        return str(node.value).lower() in _TRUE

    def integer(self, node: t.Any, what: str, minimum: int) -> int:
        """:raises PlanError: not a whole number of at least the minimum"""
        if isinstance(node, yaml.ScalarNode) and node.tag == _INT and re.fullmatch(r"[0-9][0-9_]*", node.value):
            number = int(node.value)
            if number >= minimum:
                return number
        raise PlanError(f"{what} is not a whole number of at least {minimum}", location=self.at(node))

    def duration(self, node: t.Any, what: str, *, positive: bool = True) -> float:
        """Seconds.

        :raises PlanError: not a duration, or 0 where that would mean "no limit"
        """
        text = self.text(node, what)
        try:
            seconds = parse_duration(text)
        except PlanError as exc:
            raise PlanError(f"{what}: {exc.message}", remedy=exc.remedy, location=self.at(node)) from None
        if positive and seconds <= 0:
            remedy = "Every wait has a limit here, such as 30s."
            raise PlanError(f"{what} is 0", location=self.at(node), remedy=remedy)
        return seconds

    def throttle(self, fields: t.Mapping[str, t.Any]) -> Throttle:
        """Of the keys ``THROTTLE_KEYS``: what a backfill leaves to others.

        :raises PlanError: a value that cannot be
        """
        values: dict[str, float] = {}
        if "pause" in fields:
            values["pause"] = self.duration(fields["pause"], "pause", positive=False)
        for name, read in _LIMITS.items():
            if name not in fields:
                continue
            text = self.text(fields[name], name)
            try:
                values[name] = math.inf if text.lower() == "none" else read(text)
            except PlanError as exc:
                raise PlanError(f"{name}: {exc.message}", remedy=exc.remedy, location=self.at(fields[name])) from None
        return Throttle(**values)

    def choice(self, node: t.Any, what: str, choices: t.Sequence[str]) -> str:
        """:raises PlanError: none of the choices"""
        text = self.text(node, what)
        if text not in choices:
            remedy = nearest(text, choices)
            raise PlanError(f"{what} is {text}", location=self.at(node), remedy=remedy)
        return text

    def plain(self, node: t.Any, depth: int = 0) -> t.Any:
        """A node as Python values: texts, numbers, booleans, None, lists, dicts; a date stays a text.

        :raises PlanError: a tag of another kind, or too deep
        """
        self._spend(node)
        if depth > _MAX_DEPTH:
            raise PlanError("the value is nested too deeply", location=self.at(node))
        if isinstance(node, yaml.MappingNode):
            return {name: self.plain(value, depth + 1) for name, (_key, value) in self.entries(node, "a value").items()}
        if isinstance(node, yaml.SequenceNode):
            return [self.plain(item, depth + 1) for item in node.value]
        if node.tag in (_STR, _TIMESTAMP):
            return node.value
        if node.tag == _NULL:
            return None
        if node.tag == _BOOL:
            return node.value.lower() in _TRUE
        if node.tag == _INT and re.fullmatch(r"[-+]?(0|[1-9][0-9_]*)", node.value):
            return int(node.value)
        if node.tag == _FLOAT and ":" not in node.value:
            # YAML writes .inf and .nan where Python writes inf and nan.
            return float(node.value.lower().replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))
        if node.tag in (_INT, _FLOAT):
            # 0o17, 017, 0x1F, 12:30: YAML 1.1 makes numbers of them that nobody expects.
            remedy = "Quote it when it is a text; write a number in decimal."
            raise PlanError(f"{node.value} is not a plain number", location=self.at(node), remedy=remedy)
        raise PlanError(f"the tag {node.tag} is not supported", location=self.at(node))

    def column(self, text: str, node: t.Any) -> str:
        """The real name of a column, written as SQL does.

        :raises PlanError: not a name
        """
        return self.name(text, node, "a column")

    def name(self, text: str, node: t.Any, what: str) -> str:
        """The real name of an object, written as SQL does, without its schema.

        :raises PlanError: not a name
        """
        if not NAME.fullmatch(text):
            remedy = "Write it as SQL does; a name of other characters goes in double quotes, such as '\"Order No\"'."
            raise PlanError(f"{text!r} is not the name of {what}", location=self.at(node), remedy=remedy)
        return identifier(text)

    def table(self, node: t.Any, what: str) -> str:
        """A schema-qualified name, as written.

        :raises PlanError: it is not
        """
        text = self.text(node, what)
        try:
            split_qualified(text)
        except PlanError as exc:
            raise PlanError(f"{what}: {exc.message}", remedy=exc.remedy, location=self.at(node)) from None
        return text

    def locator(self, root: t.Any) -> t.Callable[..., Location]:
        """Where the parts of a mapping stand: the place of a key, of a list's item, or of a text."""

        def line_of(*path: str | int, text: bool = False) -> Location:
            node, place = root, root
            for part in path:
                if isinstance(node, yaml.MappingNode):
                    entry = self.entries(node, "a check").get(str(part))
                    if entry is None:
                        break
                    place, node = entry
                elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                    place = node = node.value[part]
                else:
                    break
            return self.text_at(node) if text else self.at(place)

        return line_of

# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""Drawings of a report as inline SVG, and the one way text becomes markup.

Colours are classes: the page's style sheet gives them for light, dark and paper. Nothing is told by colour alone: bars
differ in outline and hatching as well, and every value stands beside its mark.
"""

from __future__ import annotations

import html
import math
import re
import typing as t
import unicodedata

from ansible_collections.surefoot.dbops.plugins.module_utils._values import human_duration

Facts = t.Mapping[str, t.Any]

_WIDTH = 1000
_LABEL_WIDTH = 300
_LABEL_COLUMNS = 40  # that fit into it in a wide font
_SHOWN_LOCKS = 12
_SHOWN_QUERIES = 20
LEVELS = ("low", "medium", "high", "critical")

# Control characters, halves of surrogate pairs, and the characters that turn the direction of what follows them.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")
_STEPS = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    *(1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21600, 43200, 86400, 172800, 604800),
)


class Markup(str):
    """Text that is markup already; everything else is escaped on its way into an element."""

    __slots__ = ()


def clean(value: t.Any) -> str:
    """Text that shows what it holds: characters that cannot be seen, or that reorder others, as their code."""
    text = str(value).replace("\r\n", "\n")
    return _UNSEEN.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def escape(value: t.Any) -> Markup:
    """Markup of a text; markup as it is; nothing of None."""
    if isinstance(value, Markup):
        return value
    return Markup("" if value is None else html.escape(clean(value), quote=True))


def join(parts: t.Iterable[t.Any], separator: str = "") -> Markup:
    """Several texts or markups as one."""
    return Markup(separator.join(escape(part) for part in parts))


def element(name: str, *children: t.Any, **attributes: t.Any) -> Markup:
    """An element. ``class_`` is class and ``aria_label`` aria-label; an attribute that is None is left out."""
    text = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{text}>{join(children)}</{name}>")


def shorten(value: t.Any, characters: int) -> str:
    """On one line and at most so wide; wide characters count twice, combining ones not at all."""
    text, width = " ".join(clean(value).split()), 0
    for position, character in enumerate(text):
        width += _columns(character)
        if width > characters:
            return text[: max(position - 1, 0)].rstrip() + "\N{HORIZONTAL ELLIPSIS}"
    return text


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


# --- the parts of a drawing ------------------------------------------------------------------------------------------


def _picture(name: str, height: float, title: str, description: str, *parts: t.Any, width: float = _WIDTH) -> Markup:
    return element(
        "svg",
        element("title", title, id=f"{name}-picture"),
        element("desc", description, id=f"{name}-words"),
        *parts,
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_labelledby=f"{name}-picture {name}-words",
        class_="drawing" if width == _WIDTH else "small drawing",
        xmlns=None,
    )


def _text(x: float, y: float, value: t.Any, *, class_: str = "ink", anchor: str | None = None) -> Markup:
    return element("text", value, x=f"{x:.1f}", y=f"{y:.1f}", class_=class_, text_anchor=anchor)


def _line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    return element("line", x1=f"{x1:.1f}", y1=f"{y1:.1f}", x2=f"{x2:.1f}", y2=f"{y2:.1f}", class_=class_)


def _bar(x: float, y: float, width: float, height: float, class_: str) -> Markup:
    return element(
        "rect",
        x=f"{x:.1f}",
        y=f"{y:.1f}",
        width=f"{max(width, 2.5):.1f}",
        height=f"{height:g}",
        rx="1.5",
        class_=class_,
    )


def _diamond(x: float, y: float, class_: str) -> Markup:
    return element("path", d=f"M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6z", class_=class_)


def number(value: t.Any) -> float | None:
    """A finite number; None for what is none (a text such as NaN, a boolean)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


class _Axis:
    """Seconds to pixels."""

    def __init__(self, low: float, high: float, left: float, right: float) -> None:
        self.low, self.high, self.left, self.right = low, max(high, low + 1e-9), left, right

    def x(self, seconds: float) -> float:
        share = (min(max(seconds, self.low), self.high) - self.low) / (self.high - self.low)
        return self.left + share * (self.right - self.left)

    def ticks(self, most: int) -> list[float]:
        span = self.high - self.low
        step = next((step for step in _STEPS if span / step <= most), span / most)
        first = -(-self.low // step)
        count = int((self.high - first * step) / step + 1e-6) + 1
        return [(first + index) * step for index in range(max(count, 0))]


def _offset(seconds: float) -> str:
    """A time before or after T as people write it: T-30m, T, T+10s."""
    if abs(seconds) < 1e-9:
        return "T"
    sign, amount = ("+" if seconds > 0 else "\N{MINUS SIGN}"), abs(seconds)
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if amount >= size and amount % size < 1e-6:
            return f"T{sign}{amount / size:g}{unit}"
    return f"T{sign}{amount:g}s"


def duration(seconds: float) -> str:
    """As :func:`human_duration`, with no rest of nought, and tenths below ten milliseconds."""
    if seconds < 0.01:
        return f"{seconds * 1000:.1f} ms" if seconds else "0"
    text = human_duration(seconds)
    return text[:-4] if text.endswith((" 0 s",)) and len(text) > 3 else text.replace(" 0 min", "").replace(".0 s", " s")


# --- planned against actual ------------------------------------------------------------------------------------------


def timeline(phases: t.Sequence[Facts], *, name: str = "timeline") -> Markup:
    """Planned and actual times of the phases side by side, each on a scale of its own, around the same T.

    :param phases: ``timeline.phases`` of the report
    """
    planned = [phase["planned"] for phase in phases if phase["planned"]]
    actual = [span for phase in phases for span in phase["actual"]]
    axes = (
        _Axis(*_reach(planned), _LABEL_WIDTH, _LABEL_WIDTH + 310),
        _Axis(*_reach(actual), _LABEL_WIDTH + 370, _WIDTH - 60),
    )
    top, row = 46.0, 38.0
    bottom = top + row * len(phases)
    parts: list[t.Any] = [_hatching(name)]
    for axis, title, spans in zip(axes, ("Planned", "Actual"), (planned, actual)):
        parts.append(_text(axis.left, 14, title if spans else f"{title}: nothing recorded", class_="ink strong"))
        for tick in axis.ticks(5) if spans else ():
            zero = abs(tick) < 1e-9
            parts.append(_line(axis.x(tick), top - 6, axis.x(tick), bottom, "zero" if zero else "grid"))
            parts.append(_text(axis.x(tick), top - 12, _offset(tick), class_="muted", anchor="middle"))
    for index, phase in enumerate(phases):
        y = top + row * index
        parts.append(_line(0, y, _WIDTH, y, "grid"))
        parts.append(_text(0, y + (16 if phase["owner"] else 23), shorten(phase["title"], _LABEL_COLUMNS)))
        parts.append(_text(0, y + 30, shorten(phase["owner"] or "", _LABEL_COLUMNS), class_="muted"))
        if phase["planned"]:
            parts += _spans(axes[0], y, [phase["planned"]], "planned", name)
        parts += _spans(axes[1], y, phase["actual"], "actual", name)
    parts.append(_line(0, bottom, _WIDTH, bottom, "grid"))
    return _picture(name, bottom + 6, "Planned and actual timeline", _timeline_words(phases), *parts)


def _reach(spans: t.Sequence[Facts]) -> tuple[float, float]:
    if not spans:
        return 0.0, 1.0
    low = min(0.0, *(span["at"] for span in spans), 0.0)
    high = max(0.0, *(span["at"] + span["seconds"] for span in spans), 0.0)
    return low, high


def _spans(axis: _Axis, y: float, spans: t.Sequence[Facts], kind: str, name: str) -> t.Iterator[Markup]:
    if not spans:
        return
    for span in spans:
        failed = bool(span.get("failed"))
        left, right = axis.x(span["at"]), axis.x(span["at"] + span["seconds"])
        if not span["seconds"]:
            yield _diamond(left, y + 19, f"mark {kind}")
            continue
        yield _bar(left, y + 13, right - left, 12, f"bar {kind}{' failed' if failed else ''}")
        if kind == "planned":
            yield _fill(left, y + 13, right - left, 12, name)
    total = sum(span["seconds"] for span in spans)
    words = [duration(total) if total else "", "failed" if any(span.get("failed") for span in spans) else ""]
    end = max(axis.x(span["at"] + span["seconds"]) for span in spans)
    label = " ".join(filter(None, words))
    # Beside the bar; before it where the text would leave the drawing.
    room = axis.right + 58 - end
    if 7 * len(label) + 8 <= room:
        yield _text(end + 8, y + 23, label, class_="value")
    else:
        yield _text(min(axis.x(span["at"]) for span in spans) - 8, y + 23, label, class_="value", anchor="end")


def _hatching(name: str) -> Markup:
    lines = element("path", d="M0 6L6 0", class_="hatch")
    pattern = element("pattern", lines, id=f"{name}-hatch", width="6", height="6", patternUnits="userSpaceOnUse")
    return element("defs", pattern)


def _fill(x: float, y: float, width: float, height: float, name: str) -> Markup:
    return element(
        "rect",
        x=f"{x:.1f}",
        y=f"{y:.1f}",
        width=f"{max(width, 2.5):.1f}",
        height=f"{height:g}",
        fill=f"url(#{name}-hatch)",
    )


def _timeline_words(phases: t.Sequence[Facts]) -> str:
    parts = []
    for phase in phases:
        planned, spans = phase["planned"], phase["actual"]
        words = f"planned {_offset(planned['at'])} for {duration(planned['seconds'])}" if planned else "not planned"
        took = f"took {duration(sum(span['seconds'] for span in spans))}" if spans else "no time recorded"
        parts.append(f"{phase['title']}: {words}, {took}.")
    return " ".join(parts)


# --- locks -----------------------------------------------------------------------------------------------------------


def locks(
    rehearsed: t.Sequence[Facts], target: t.Sequence[Facts], budget: float | None, *, name: str = "locks"
) -> Markup:
    """How long locks that block others were held: on the shadow lock by lock, on the target migration by migration.

    :param rehearsed: ``locks.rehearsal`` of the report, longest first
    :param target: ``locks.target`` of the report
    :param budget: seconds; None draws no limit
    """
    shown = list(rehearsed[:_SHOWN_LOCKS])
    longest = max([row["held_seconds"] or 0 for row in (*shown, *target)] + [0.0])
    axis = _Axis(0.0, max(longest, budget or 0.0, 0.001) * 1.04, _LABEL_WIDTH + 30, _WIDTH - 220)
    groups = [("Rehearsal, on the shadow", shown, _lock_label), ("Production, as watched", target, _target_label)]
    parts: list[t.Any] = [_hatching(name)]
    y = 44.0
    for title, rows, label in groups:
        if not rows:
            continue
        parts.append(_text(0, y, title, class_="ink strong"))
        y += 12
        for row in rows:
            held, (first, second, beside) = row["held_seconds"], label(row)
            over = budget is not None and (held or 0) > budget
            parts.append(_line(0, y, _WIDTH, y, "grid"))
            parts.append(_text(0, y + 16, shorten(first, _LABEL_COLUMNS)))
            parts.append(_text(0, y + 30, shorten(second, _LABEL_COLUMNS), class_="muted"))
            if held is not None:
                kind = "planned" if rows is shown else "actual"
                end = axis.x(held)
                parts.append(_bar(axis.left, y + 13, end - axis.left, 12, f"bar {kind}{' failed' if over else ''}"))
                if rows is shown:
                    parts.append(_fill(axis.left, y + 13, end - axis.left, 12, name))
                words = f"{duration(held)}{', over budget' if over else ''}"
                parts.append(_text(end + 8, y + 16, words, class_="value"))
                parts.append(_text(end + 8, y + 30, shorten(beside, 32), class_="muted value"))
            else:
                parts.append(_text(axis.left + 8, y + 23, beside, class_="muted"))
            y += 38
        parts.append(_line(0, y, _WIDTH, y, "grid"))
        y += 28
    bottom = y - 28
    for tick in axis.ticks(5):
        parts.insert(1, _line(axis.x(tick), 24, axis.x(tick), bottom, "grid"))
        parts.append(_text(axis.x(tick), 18, duration(tick), class_="muted", anchor="middle"))
    if budget is not None:
        parts.insert(1, _line(axis.x(budget), 6, axis.x(budget), bottom, "limit"))
        parts.append(_text(axis.x(budget) + 6, 12, f"budget {duration(budget)}", class_="value"))
    if len(rehearsed) > len(shown):
        parts.append(
            _text(0, bottom + 18, f"{len(rehearsed) - len(shown)} shorter ones are in report.json.", class_="muted")
        )
        bottom += 18
    return _picture(name, bottom + 8, "Locks that block others", _lock_words(shown, target, budget), *parts)


def _lock_label(row: Facts) -> tuple[str, str, str]:
    second = ", ".join(filter(None, [row["mode"], row["tag"]]))
    return str(row["relation"]), second, f"blocks {'reads and writes' if 'SELECT' in row['blocks'] else 'writes'}"


def _target_label(row: Facts) -> tuple[str, str, str]:
    held = "no lock seen that blocks others" if row["held_seconds"] is None else "longest hold"
    return str(row["migration"]), f"rehearsed: {_or_none(row['rehearsed_seconds'])}", held


def _or_none(seconds: float | None) -> str:
    return "none" if seconds is None else duration(seconds)


def _lock_words(rehearsed: t.Sequence[Facts], target: t.Sequence[Facts], budget: float | None) -> str:
    parts = [f"The budget is {duration(budget)}."] if budget is not None else []
    for row in rehearsed:
        parts.append(f"Rehearsal: {row['mode']} on {row['relation']} for {_or_none(row['held_seconds'])}.")
    for row in target:
        parts.append(f"Production: {row['migration']} held one for {_or_none(row['held_seconds'])}.")
    return " ".join(parts)


# --- latency ---------------------------------------------------------------------------------------------------------


def latency(rows: t.Sequence[Facts], *, name: str = "latency") -> Markup:
    """Before and after of each query or endpoint; the bars of a row share a scale, rows do not.

    :param rows: ``latency`` of the report: medians and 95th percentiles in milliseconds
    """
    shown = list(rows[:_SHOWN_QUERIES])
    top, height, left, right = 30.0, 46.0, _LABEL_WIDTH + 30.0, _WIDTH - 250.0
    bottom = top + height * len(shown)
    parts: list[t.Any] = [
        _hatching(name),
        _bar(left, 4, 16, 10, "bar planned"),
        _fill(left, 4, 16, 10, name),
        _text(left + 24, 13, "before"),
        _bar(left + 90, 4, 16, 10, "bar actual"),
        _text(left + 114, 13, "after"),
        _line(left + 176, 9, left + 192, 9, "whisker"),
        _line(left + 192, 4, left + 192, 14, "whisker"),
        _text(left + 200, 13, "95th percentile"),
        _line(left + 312, 3, left + 312, 15, "limit"),
        _text(left + 320, 13, "limit"),
    ]
    for index, row in enumerate(shown):
        y = top + height * index
        values = [row[side][key] for side in ("before", "after") for key in ("median_ms", "p95_ms")] + [row["limit_ms"]]
        axis = _Axis(0.0, max([value for value in values if value is not None] + [1e-6]), left, right)
        parts.append(_line(0, y, _WIDTH, y, "grid"))
        parts.append(_text(0, y + 20, shorten(row["name"], _LABEL_COLUMNS)))
        parts.append(_text(0, y + 34, shorten(_kind_words(row), _LABEL_COLUMNS), class_="muted"))
        for side, at in (("before", y + 8), ("after", y + 25)):
            kind = "planned" if side == "before" else f"actual{' failed' if row['regression'] else ''}"
            parts += _whiskered(axis, at, row[side], kind, name)
        if row["limit_ms"] is not None:
            parts.append(_line(axis.x(row["limit_ms"]), y + 4, axis.x(row["limit_ms"]), y + height - 4, "limit"))
        parts.append(_text(right + 16, y + 20, _change(row), class_="value"))
        parts.append(_text(right + 16, y + 34, row["judgement"], class_="muted"))
    parts.append(_line(0, bottom, _WIDTH, bottom, "grid"))
    if len(rows) > len(shown):
        parts.append(_text(0, bottom + 18, f"{len(rows) - len(shown)} more are in report.json.", class_="muted"))
        bottom += 18
    words = " ".join(f"{row['name']}: {_change(row)}, {row['judgement']}." for row in shown)
    return _picture(name, bottom + 8, "Latency before and after", words, *parts)


def _whiskered(axis: _Axis, y: float, side: Facts, kind: str, name: str) -> t.Iterator[Markup]:
    median, p95 = side["median_ms"], side["p95_ms"]
    if median is not None:
        yield _bar(axis.left, y, axis.x(median) - axis.left, 12, f"bar {kind}")
        if kind == "planned":
            yield _fill(axis.left, y, axis.x(median) - axis.left, 12, name)
    if p95 is not None:
        start = axis.x(median) if median is not None else axis.left
        yield _line(start, y + 6, axis.x(p95), y + 6, "whisker")
        yield _line(axis.x(p95), y + 1, axis.x(p95), y + 11, "whisker")


def _kind_words(row: Facts) -> str:
    return ", ".join(filter(None, [row["kind"], row["where"]]))


def _milliseconds(value: float) -> str:
    digits = next((digits for limit, digits in ((0.1, 3), (10, 2), (100, 1)) if value < limit), 0)
    return f"{value:.{digits}f}"


def _change(row: Facts) -> str:
    before, after = row["before"]["median_ms"], row["after"]["median_ms"]
    if before is None and after is None:
        return "not measured"
    if before is None or after is None:
        one, when = (before, "before") if after is None else (after, "after")
        return f"{_milliseconds(one)} ms {when}"
    change = f" ({row['change']:+.0%})" if row["change"] is not None else ""
    return f"{_milliseconds(before)} \N{RIGHTWARDS ARROW} {_milliseconds(after)} ms{change}".replace(
        "-", "\N{MINUS SIGN}"
    )


# --- watch -----------------------------------------------------------------------------------------------------------


def sparkline(series: Facts, *, name: str) -> Markup:
    """One measure of the watch over the time of the apply, with its limit.

    :param series: one of ``watch.series`` of the report
    """
    width, height, left, right = 300.0, 64.0, 2.0, 298.0
    points = [(point[0], point[1]) for point in series["points"]]
    limit = series["limit"]
    values = [value for _time, value in points]
    high = max([*values, limit if limit is not None else 0.0, 1e-9]) * 1.05
    low = min([*values, 0.0])
    axis = _Axis(points[0][0], points[-1][0], left, right) if points else _Axis(0, 1, left, right)

    def y(value: float) -> float:
        return float(4 + (high - value) / (high - low) * (height - 10))

    parts: list[t.Any] = [_line(left, y(low), right, y(low), "grid")]
    if limit is not None:
        parts.append(_line(left, y(limit), right, y(limit), "limit"))
    if len(points) == 1:
        parts.append(_diamond(left + 6, y(values[0]), "mark actual"))
    elif points:
        path = "L".join(f"{axis.x(time):.1f} {y(value):.1f}" for time, value in points)
        parts.append(element("path", d=f"M{path}", class_="curve"))
    words = f"{len(points)} samples, {series['shown_worst']}"
    if limit is not None:
        words += f", limit {series['shown_limit']}"
    return _picture(name, height, str(series["title"]), words, *parts, width=width)


# --- risk ------------------------------------------------------------------------------------------------------------


def risk_matrix(risks: t.Sequence[Facts], *, name: str = "risk") -> Markup:
    """Probability against impact; each risk by its number in the table beside it.

    :param risks: ``risks`` of the report
    """
    left, top, cell_width, cell_height = 84.0, 26.0, 82.0, 46.0
    parts: list[t.Any] = []
    for column, impact in enumerate(LEVELS):
        parts.append(_text(left + cell_width * (column + 0.5), 14, impact, class_="muted", anchor="middle"))
    for line, probability in enumerate(reversed(LEVELS)):
        y = top + cell_height * line
        parts.append(_text(left - 12, y + cell_height / 2 + 4, probability, class_="muted", anchor="end"))
        for column, impact in enumerate(LEVELS):
            x = left + cell_width * column
            heat = (LEVELS.index(probability) + column + 1) // 2
            parts.append(_bar(x + 1, y + 1, cell_width - 2, cell_height - 2, f"cell heat{min(heat, 3)}"))
            inside = [
                str(risk["number"]) for risk in risks if risk["probability"] == probability and risk["impact"] == impact
            ]
            if inside:
                label = shorten(", ".join(inside), 15)
                parts.append(
                    _text(x + cell_width / 2, y + cell_height / 2 + 5, label, class_="ink strong", anchor="middle")
                )
    bottom = top + cell_height * len(LEVELS)
    parts.append(_text(left + cell_width * 2, bottom + 18, "impact", class_="ink", anchor="middle"))
    parts.append(_text(0, 14, "probability", class_="ink"))
    placed = [f"{risk['number']}: probability {risk['probability']}, impact {risk['impact']}." for risk in risks]
    return _picture(name, bottom + 24, "Risk matrix", " ".join(placed), *parts, width=left + 4 * cell_width + 4)

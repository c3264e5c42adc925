# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""SQL files as a stream of statements, cut where psql would cut them.

The lexical rules are those of "SQL Syntax: Lexical Structure" and of psql's page in PostgreSQL's manual, checked
against psql itself (tests/integration/test_sqltext_against_psql.py). Two differences, both where psql sends what the
server then refuses: ``standard_conforming_strings`` takes effect at once (psql: from the next line), and an ``E''``
string continued on the next line keeps its backslash rules (psql: forgets them).

The scanner works on bytes: every byte that means something to the lexer is ASCII, so UTF-8 needs no decoding to be cut.
A statement is first tried on a fast path that only counts; what that cannot judge is lexed run by run. When the buffer
ends inside a statement, more is read and that statement is scanned again; the buffer doubles, so this stays linear.
"""

from __future__ import annotations

import codecs
import hashlib
import itertools
import re
import typing as t
from decimal import Decimal

from ansible_collections.surefoot.dbops.plugins.module_utils._errors import Location, SqlTextError

CHUNK_SIZE = 256 * 1024

# A backend needs roughly ten times a statement's size to parse it, and this process about three times.
MAX_STATEMENT_SIZE = 64 * 1024 * 1024

# Reads grow with the statement that does not fit; this keeps the buffer near the limit above.
_LARGEST_READ = 16 * 1024 * 1024

# Longer statements are lexed: cutting them at every quote would take many times their size.
_FAST_SIZE = 64 * 1024

# Text below this size is tokenised for the hash in one call.
_FEW_TOKENS = 32 * 1024

# Enough for every decision by table; statements are not tokenised further.
HEAD_TOKENS = 64

# The repetition inside the run expressions is bounded because the `re` module keeps state for every round.
_ROUNDS = 400

_WORD = rb"[A-Za-z_\x80-\xff][A-Za-z0-9_$\x80-\xff]*"


def _run_expression(strings: bytes, word_guard: bytes) -> t.Pattern[bytes]:
    """Matches as many complete, unremarkable tokens as possible; stops before everything the scanner must look at."""
    return re.compile(
        rb"(?:[ \t\n\r\f\v]+"
        + strings
        + rb"|"
        + word_guard
        + _WORD
        + rb"|[0-9]+"
        + rb"|[+*<>=~!@#%^&|`?,.\[\]{}]+"
        + rb"|-(?!-)|/(?!\*)|::|:="
        + rb'|"[^"]*"'
        + rb"|\$[0-9]+"
        + rb"){0,%d}" % _ROUNDS
    )


_PLAIN_STRING = rb"|'[^']*'"
# Without standard_conforming_strings only these prefixes keep backslashes literal.
_BITS_STRING = rb"|[bBxX]'[^']*'|[uU]&'[^']*(?:''[^']*)*'"
_NO_ESCAPE = rb"(?![eE]')"
_NO_ROUTINE_WORD = rb"(?!(?:[bB][eE][gG][iI][nN]|[cC][aA][sS][eE]|[eE][nN][dD])(?![A-Za-z0-9_$\x80-\xff]))"
# [standard_conforming_strings][statement may be a routine with a BEGIN ATOMIC body]
_RUN = {
    (True, False): _run_expression(_PLAIN_STRING, _NO_ESCAPE),
    (True, True): _run_expression(_PLAIN_STRING, _NO_ESCAPE + _NO_ROUTINE_WORD),
    (False, False): _run_expression(_BITS_STRING, _NO_ESCAPE),
    (False, True): _run_expression(_BITS_STRING, _NO_ESCAPE + _NO_ROUTINE_WORD),
}

_ESCAPE_PIECE = re.compile(rb"[^'\\]*(?:(?:\\[\s\S]|'')[^'\\]*){0,%d}" % _ROUNDS)
_CONTINUATION = re.compile(
    rb"(?:[ \t\f\v]|--[^\n\r]*)*[\n\r](?:[ \t\n\r\f\v]|--[^\n\r]*[\n\r])*(?=')",
)
_DOLLAR = re.compile(rb"\$(?:[A-Za-z_\x80-\xff][A-Za-z0-9_\x80-\xff]*)?\$")
_BLOCK_EDGE = re.compile(rb"/\*|\*/")
_LINE_COMMENT = re.compile(rb"--[^\n\r]*")
_VARIABLE = re.compile(
    rb":(?:([A-Za-z0-9_\x80-\xff]+)"
    rb"|'([A-Za-z0-9_\x80-\xff]+)'"
    rb'|"([A-Za-z0-9_\x80-\xff]+)"'
    rb"|\{\?([A-Za-z0-9_\x80-\xff]+)\})"
)
_STYLES = ("raw", "literal", "identifier")
_ROUTINE_WORD = re.compile(_WORD)
_SPACE = re.compile(rb"[ \t\n\r\f\v]*")
_META = re.compile(
    rb"\\[^\s\\]*(?:[^\\'\"`\n\r]+|'(?:[^'\\\n\r]|\\[^\n\r]|'')*'|\"[^\"\n\r]*\"|`[^`\n\r]*`){0,4000}",
)
_META_NAME = re.compile(rb"\\(?:[;:]|[^\s\\;]*)")
_COPY_LINE_REST = re.compile(rb"[ \t\r\f\v]*(?:--[^\n]*)?(?:\n|\Z)")
_COPY_END = re.compile(rb"\n\\\.\r?\n")
_COPY_END_HERE = re.compile(rb"\\\.\r?\n")
_COPY_END_OF_FILE = re.compile(rb"(?:\A|\n)\\\.\r?\Z")

# In the text outside quotes: what the fast path leaves to the runs.
_REMARKABLE = re.compile(rb"[\"$\\]|--|/\*|:(?=[A-Za-z_'\"{\x80-\xff])(?<!::)|:::|:[0-9]+[A-Za-z_\x80-\xff]")
_SIMPLE_IDENTIFIER = re.compile(rb'"[^"\'();$\\:/*-]*"')
_BEGIN = re.compile(rb"(?i)begin")

# The canonical tokens that the token hash is made of, in text without comments, dollar and escape strings.
_DIGEST_TOKEN = re.compile(
    rb"[bBxX]'[^']*'|(?:[eEnN]|[uU]&)?'[^']*(?:''[^']*)*'"
    rb'|(?:[uU]&)?"[^"]*(?:""[^"]*)*"'
    rb"|" + _WORD + rb"|0[xX][0-9A-Fa-f_]+|\.?[0-9](?:[eE][+-][0-9]|(?![eE]')[A-Za-z0-9_.\x80-\xff])*"
    rb"|\$[0-9]+|::|:="
    # A trailing + or - belongs to an operator only when it has one of the characters standard SQL has not.
    rb"|[+\-*/<>=]*[~!@#%^&|`?][+\-*/<>=~!@#%^&|`?]*|[+\-*/<>=]*[*/<>=]"
    rb"|[^ \t\n\r\f\v]"
)

_BIDI = re.compile("[\u202a-\u202e\u2066-\u2069]")

_HI = "\x80-\U0010ffff"
_TEXT_TOKEN = re.compile(
    rf"""
    (?P<space>[ \t\n\r\f\v]+|--[^\n\r]*)
    |(?P<block>/\*)
    |(?P<string>[bBxX]'[^']*'|(?:[nN]|[uU]&)?'[^']*(?:''[^']*)*')
    |(?P<escape>[eE]')
    |(?P<quoted>(?:[uU]&)?"[^"]*(?:""[^"]*)*")
    |(?P<dollar>\$(?:[A-Za-z_{_HI}][A-Za-z0-9_{_HI}]*)?\$)
    |(?P<word>[A-Za-z_{_HI}][A-Za-z0-9_${_HI}]*)
    |(?P<number>0[xX][0-9A-Fa-f_]+|\.?[0-9](?:[eE][+-][0-9]|(?![eE]')[A-Za-z0-9_.{_HI}])*)
    |(?P<parameter>\$[0-9]+)
    |(?P<variable>:(?![0-9]+(?![A-Za-z0-9_{_HI}]))[A-Za-z0-9_{_HI}]+
        |:'(?![0-9]+')[A-Za-z0-9_{_HI}]+'|:"(?![0-9]+")[A-Za-z0-9_{_HI}]+")
    |(?P<operator>::|:=|[+\-*/<>=]*[~!@\#%^&|`?][+\-*/<>=~!@\#%^&|`?]*|[+\-*/<>=]*[*/<>=]|[+\-])
    |(?P<punctuation>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_TEXT_ESCAPE = re.compile(r"[eE]'[^'\\]*(?:(?:\\[\s\S]|'')[^'\\]*)*'")
_TEXT_PLAIN_ESCAPE = re.compile(r"'[^'\\]*(?:(?:\\[\s\S]|'')[^'\\]*)*'")
_TEXT_CONTINUATION = re.compile(_CONTINUATION.pattern.decode("ascii"))
_TEXT_BLOCK_EDGE = re.compile(r"/\*|\*/")
_KINDS = {"quoted": "quoted_identifier", "dollar": "dollar_string", "escape": "string"}
_ESCAPE = re.compile(
    r"''|\\(?:([0-7]{1,3})|x([0-9A-Fa-f]{1,2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|([\s\S]))",
)
_ESCAPE_LETTERS = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_UNICODE_ESCAPE = re.compile(r"\\(?:(\\)|\+([0-9A-Fa-f]{6})|([0-9A-Fa-f]{4}))")
_ASCII_LOWER = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)}


class Token(t.NamedTuple):
    """One significant token.

    ``kind`` is word, quoted_identifier, string, dollar_string, number, parameter, variable, operator or punctuation;
    ``value`` is what it means: unquoted, words in lower case; ``offset`` counts characters in the statement's text.
    """

    kind: str
    text: str
    value: str
    offset: int


class VariableRef(t.NamedTuple):
    """A reference to a variable: ``:name`` (raw), ``:'name'`` (literal) or ``:"name"`` (identifier)."""

    name: str
    style: str
    offset: int
    length: int


class Statement:
    """One statement, or one psql command (then ``meta`` is set and ``text`` is empty).

    Attributes beside the properties: ``name`` (the file), ``line`` and ``column`` of the first token (from 1),
    ``index`` (from 0, psql commands count too), ``copy_data``, ``meta``, ``standard_strings`` (the setting it is read
    under) and ``crlf_inside`` (a string or body holds CRLF).
    """

    __slots__ = (
        "_atoms", "_head", "_head_complete", "_raw", "_text", "_variables", "_variable_spans",
        "column", "copy_data", "crlf_inside", "index", "line", "meta", "name", "standard_strings",
    )  # fmt: skip

    def __init__(
        self,
        raw: bytes,
        *,
        name: str = "<sql>",
        line: int = 1,
        column: int = 1,
        index: int = 0,
        meta: str | None = None,
        standard_strings: bool = True,
        crlf_inside: bool = False,
        variable_spans: tuple[tuple[int, int, str, str], ...] = (),
        atoms: tuple[tuple[int, int, str], ...] = (),
    ) -> None:
        self._raw = raw
        self._text: str | None = None
        self._head: tuple[Token, ...] = ()
        self._head_complete = False
        self._variables: tuple[VariableRef, ...] | None = None if variable_spans else ()
        self._variable_spans = variable_spans
        self._atoms = atoms
        self.name = name
        self.line = line
        self.column = column
        self.index = index
        self.meta = meta
        self.copy_data: CopyData | None = None
        self.standard_strings = standard_strings
        self.crlf_inside = crlf_inside

    @property
    def raw(self) -> bytes:
        """The text as bytes of UTF-8."""
        return self._raw

    @property
    def text(self) -> str:
        """From the first token to before the ``;``; variables are not substituted."""
        if self._text is None:
            self._text = self._raw.decode("utf-8")
        return self._text

    @property
    def head(self) -> tuple[Token, ...]:
        """The first 64 significant tokens."""
        return self.peek(HEAD_TOKENS)

    def peek(self, count: int) -> tuple[Token, ...]:
        """The first ``count`` significant tokens, or more when they are known already."""
        if len(self._head) >= count or (self._head_complete and self._head):
            return self._head
        self._head = tuple(itertools.islice(tokens(self.text, standard_strings=self.standard_strings), count))
        self._head_complete = len(self._head) < count
        return self._head

    @property
    def variables(self) -> tuple[VariableRef, ...]:
        """The references in the order of the text."""
        if self._variables is None:
            raw, ascii_only = self._raw, self._raw.isascii()
            found = []
            for start, end, name, style in self._variable_spans:
                offset = start if ascii_only else len(raw[:start].decode("utf-8"))
                length = end - start if ascii_only else len(raw[start:end].decode("utf-8"))
                found.append(VariableRef(name, style, offset, length))
            self._variables = tuple(found)
        return self._variables

    def tokens(self) -> t.Iterator[Token]:
        """All significant tokens, made as they are asked for."""
        return tokens(self.text, standard_strings=self.standard_strings)

    def location_of(self, offset: int) -> tuple[int, int]:
        """Line and column in the file (from 1) of a 0-based character offset in ``text``."""
        before = self.text[:offset]
        newlines = before.count("\n")
        if not newlines:
            return self.line, self.column + len(before)
        return self.line + newlines, len(before) - before.rfind("\n")

    def location(self, offset: int = 0) -> Location:
        """The place of an offset in ``text``, for an error."""
        return Location(self.name, *self.location_of(offset))

    def __repr__(self) -> str:
        start = self.meta if self.meta is not None else self.text[:60]
        return f"<Statement {self.index} at {self.name}:{self.line}:{self.column} {start!r}>"


class CopyData:
    """The rows after ``COPY ... FROM STDIN``: a file to read once, before the next statement is asked for."""

    def __init__(self, scanner: Scanner, statement: Statement) -> None:
        self._scanner = scanner
        self._statement = statement

    def read(self, size: int = -1) -> bytes:
        """At most ``size`` bytes, ``b""`` at the end; without a size, everything that is left.

        :raises SqlTextError: the file ends before the terminating ``\\.`` line, or is not valid UTF-8
        """
        if size is None or size < 0:
            return b"".join(iter(lambda: self._scanner.read_copy(self._statement, CHUNK_SIZE), b""))
        return self._scanner.read_copy(self._statement, size) if size else b""

    def readable(self) -> bool:
        """For consumers that ask before they read."""
        return True


class _More(Exception):
    """The buffer ends inside a token or statement; says what was open and where it began."""

    def __init__(self, what: str, start: int) -> None:
        super().__init__(what)
        self.what = what
        self.start = start


class Scanner:
    """One pass over one stream of bytes. Ask for ``statements()`` once; the hashes are complete when it is exhausted.

    :param stream: opened in binary mode; only ``read(n)`` is used
    :param name: of the file, for locations
    :param hash_tokens: also compute ``token_sha256``
    :param chunk_size: bytes read at a time at least
    :param fast: try the fast path (the tests compare both)
    """

    def __init__(
        self,
        stream: t.BinaryIO,
        name: str,
        *,
        hash_tokens: bool = False,
        chunk_size: int = CHUNK_SIZE,
        fast: bool = True,
    ) -> None:
        self._stream = stream
        self._chunk_size = chunk_size
        self._fast = fast
        self._buffer = b""
        self._eof = False
        self._decoder = codecs.getincrementaldecoder("utf-8")("strict")
        self._undecoded = 0
        # Line and column of one byte of the buffer; everything else is counted from there.
        self._mark = 0
        self._mark_line = 1
        self._mark_column = 1
        self._position = 0
        self._copying: Statement | None = None
        self._copy_end = 0
        self._copy_done = False
        self._copy_hash: t.Any = None
        self._raw_hash = hashlib.sha256()
        self._token_hash: t.Any = hashlib.sha256() if hash_tokens else None
        self._tokens: list[bytes] = []
        self._strings = _StringSetting()
        self._has_return = False
        self.name = name
        self.size = 0
        self.crlf_lines: list[int] = []
        self.crlf_count = 0
        self.had_byte_order_mark = False

    @property
    def raw_sha256(self) -> str:
        """Of the bytes read so far: the whole file once ``statements()`` is exhausted."""
        return self._raw_hash.hexdigest()

    @property
    def token_sha256(self) -> str:
        """Of the significant tokens: white space and comments between tokens do not count.

        Words keep their case; every token ends with a NUL (which no token can hold), every statement with an empty
        token.
        """
        self._flush_tokens()
        return str(self._token_hash.hexdigest())

    # -- places

    def _advance_mark(self, position: int) -> None:
        if position != self._mark:
            self._mark_line, self._mark_column = self._place(position)
            self._mark = position

    def _place(self, position: int) -> tuple[int, int]:
        buffer, mark = self._buffer, self._mark
        newlines = buffer.count(b"\n", mark, position)
        if newlines:
            start = buffer.rfind(b"\n", mark, position) + 1
            column = 1
        else:
            start = mark
            column = self._mark_column
        # A cut sequence at the end is harmless here.
        line = buffer[start:position]
        width = len(line) if line.isascii() else len(line.decode("utf-8", "ignore"))
        return self._mark_line + newlines, column + width

    def _location(self, position: int) -> Location:
        return Location(self.name, *self._place(position))

    def _error(self, message: str, position: int, remedy: str | None = None) -> SqlTextError:
        return SqlTextError(message, location=self._location(position), remedy=remedy)

    # -- reading

    def _fill(self, keep_from: int) -> int:
        """Read on; drops what lies before ``keep_from`` and returns its new position (0).

        Grows with what is kept, so that rescanning a long statement stays linear.
        """
        kept = len(self._buffer) - keep_from
        self._advance_mark(keep_from)
        self._mark = 0
        chunk = self._stream.read(max(self._chunk_size, min(kept, _LARGEST_READ)))
        self._buffer = self._buffer[keep_from:] + chunk
        if not chunk:
            self._eof = True
            if self._undecoded:
                raise self._not_utf8(len(self._buffer) - self._undecoded)
            return 0
        self._raw_hash.update(chunk)
        first = self.size == 0
        self.size += len(chunk)
        self._validate(chunk, kept)
        if first:
            self._strip_byte_order_mark()
        return 0

    def _strip_byte_order_mark(self) -> None:
        # A stream may hand out a byte at a time.
        while len(self._buffer) < 3 and not self._eof and b"\xef\xbb\xbf".startswith(self._buffer):
            chunk = self._stream.read(self._chunk_size)
            if not chunk:
                break
            self._raw_hash.update(chunk)
            self.size += len(chunk)
            start = len(self._buffer)
            self._buffer += chunk
            self._validate(chunk, start)
        if self._buffer.startswith(b"\xef\xbb\xbf"):
            self._buffer = self._buffer[3:]
            self.had_byte_order_mark = True

    def _validate(self, chunk: bytes, start: int) -> None:
        """Strict UTF-8, no NUL, no bidi controls; ``start`` is the position of ``chunk`` in the buffer."""
        if not self._has_return and b"\r" in chunk:
            self._has_return = True
        if b"\0" in chunk:
            raise self._error(
                "NUL byte in a SQL file",
                start + chunk.index(b"\0"),
                "psql would skip what follows it; remove the byte.",
            )
        if self._undecoded or not chunk.isascii():
            pending = self._undecoded
            try:
                text = self._decoder.decode(chunk)
            except UnicodeDecodeError as exc:
                raise self._not_utf8(start - pending + exc.start) from None
            self._undecoded = len(self._decoder.getstate()[0])
            found = _BIDI.search(text)
            if found:
                position = start - pending + len(text[: found.start()].encode("utf-8"))
                raise self._error(
                    f"bidirectional control character U+{ord(found.group()):04X}",
                    position,
                    "It can make code look like something else; remove it, or write it as an escape"
                    " (U&'\\202E', E'\\u202E').",
                )

    def _not_utf8(self, position: int) -> SqlTextError:
        return self._error(
            "not valid UTF-8", position, "Convert the file to UTF-8 (for pg_dump output: pg_dump --encoding=UTF8)."
        )

    # -- statements

    def statements(self) -> t.Iterator[Statement]:
        """The statements in order.

        :raises SqlTextError: with the place and the remedy
        """
        index = 0
        position = self._fill(0)
        while True:
            start = self._skip_space(position)
            if start < 0:
                self._flush_tokens()
                return
            if self._buffer[start : start + 1] == b"\\":
                statement, position = self._meta(start, index)
            else:
                statement, position = self._statement(start, index)
            self._position = position
            if statement is None:
                continue
            index += 1
            yield statement
            if self._copying is not None:
                while self.read_copy(statement, CHUNK_SIZE):
                    pass
                self._copying = None
            position = self._position

    def _skip_space(self, position: int) -> int:
        """The start of the next statement or psql command; -1 at the end of the file."""
        while True:
            buffer = self._buffer
            position = _SPACE.match(buffer, position).end()  # type: ignore[union-attr]
            two = buffer[position : position + 2]
            if two == b"--":
                end = _LINE_COMMENT.match(buffer, position).end()  # type: ignore[union-attr]
                if end < len(buffer) or self._eof:
                    position = end
                    continue
            elif two == b"/*":
                end = _block_end(buffer, position)
                if end >= 0:
                    position = end
                    continue
                if self._eof:
                    raise self._error("comment is never closed", position, "Close it with */ (comments nest).")
            elif two[:1] == b";":
                position += 1
                continue
            elif two == b"\xef\xbb" and len(buffer) == position + 2 and not self._eof:
                pass
            elif two == b"\xef\xbb" and buffer.startswith(b"\xef\xbb\xbf", position):
                raise self._error(
                    "byte order mark inside the file",
                    position,
                    "It remains where files were joined; remove it, the server takes it for a part of the statement.",
                )
            elif len(two) == 2 or (two and self._eof):
                return position
            elif self._eof:
                return -1
            if len(buffer) - position > MAX_STATEMENT_SIZE:
                raise self._error("comment larger than 64 MiB", position)
            position = self._fill(position)

    def _statement(self, start: int, index: int) -> tuple[Statement | None, int]:
        while True:
            buffer = self._buffer
            if self._fast:
                end = self._fast_end(start)
                if end >= 0:
                    return self._make(start, end, end + 1, index, (), (), None)
            if not self._eof and buffer.find(b";", start) < 0:
                if len(buffer) - start > MAX_STATEMENT_SIZE:
                    raise self._too_large(start)
                start = self._fill(start)
                continue
            try:
                end, after, variables, atoms = self._scan(start)
            except _More as more:
                if self._eof:
                    raise self._error(_OPEN[more.what][0], more.start, _OPEN[more.what][1]) from None
                if len(buffer) - start > MAX_STATEMENT_SIZE:
                    raise self._too_large(start) from None
                start = self._fill(start)
                continue
            first = _first_word(buffer, start)
            if first == b"copy" and self._copies_from_stdin(buffer[start:end]):
                rest = _COPY_LINE_REST.match(buffer, after)
                if rest is not None and rest.end() == len(buffer) and not self._eof and buffer[-1:] != b"\n":
                    start = self._fill(start)
                    continue
                if rest is None:
                    if not self._eof and b"\n" not in buffer[after:]:
                        start = self._fill(start)
                        continue
                    raise self._error(
                        "text after COPY ... FROM STDIN on the same line",
                        after,
                        "Its rows start on the next line; move the text behind the \\. line.",
                    )
                return self._make(start, end, rest.end(), index, variables, atoms, first)
            return self._make(start, end, after, index, variables, atoms, None)

    def _too_large(self, start: int) -> SqlTextError:
        return self._error(
            f"statement larger than {MAX_STATEMENT_SIZE // (1024 * 1024)} MiB",
            start,
            "Load the rows with COPY ... FROM STDIN, or split the statement: a server needs about ten times its size.",
        )

    def _fast_end(self, start: int) -> int:
        """Where the statement ends when plain counting can tell, else -1.

        Up to the first remarkable token, quotes outside are exactly the odd ones; so when no part outside quotes holds
        anything remarkable, all the parts are what they seem.
        """
        buffer = self._buffer
        end = buffer.find(b";", start)
        for _attempt in range(8):
            if end < 0 or end - start > _FAST_SIZE:
                return -1
            piece = buffer[start:end]
            if b"'" in piece:
                parts = piece.split(b"'")
                if not len(parts) & 1:
                    end = buffer.find(b";", end + 1)
                    continue
                outside = b"'".join(parts[::2])
                if b"\\" in piece and (not self._strings.standard or b"e'" in outside or b"E'" in outside):
                    return -1
            else:
                outside = piece
            break
        else:
            return -1
        if b'"' in outside:
            outside = _SIMPLE_IDENTIFIER.sub(b"q", outside)
        if _REMARKABLE.search(outside) is not None:
            return -1
        opened = outside.count(b"(")
        if opened != outside.count(b")") or (
            opened and (outside.find(b")") < outside.find(b"(") or outside.rfind(b"(") > outside.rfind(b")"))
        ):
            return -1
        if outside[:1] in b"cC" and (outside[:4].lower() == b"copy" or _BEGIN.search(outside) is not None):
            return -1
        return end

    def _scan(self, start: int) -> tuple[int, int, list[tuple[int, int, str, str]], list[tuple[int, int, str]]]:
        """Find the end of the statement that starts at ``start`` by lexing it.

        :return: end, position after the terminator, variables and atoms, both relative to ``start``
        """
        buffer = self._buffer
        length = len(buffer)
        standard = self._strings.standard
        creating = _first_word(buffer, start) == b"create"
        run = _RUN[standard, creating]
        position = start
        parens: list[int] = []
        begins: list[int] = []
        routine: bool | None = None
        variables: list[tuple[int, int, str, str]] = []
        atoms: list[tuple[int, int, str]] = []
        while True:
            end = run.match(buffer, position).end()  # type: ignore[union-attr]
            progress = end > position
            position = end
            if position - start > MAX_STATEMENT_SIZE:
                raise self._too_large(start)
            byte = buffer[position : position + 1]
            if byte == b";":
                if not parens and not begins:
                    return position, position + 1, variables, atoms
                position += 1
            elif byte == b"(":
                parens.append(position)
                position += 1
            elif byte == b")":
                if parens:
                    parens.pop()
                position += 1
            elif byte == b"'":
                if standard:
                    if buffer.find(b"'", position + 1) < 0:
                        raise _More("string", position)
                    if not progress:
                        position = buffer.index(b"'", position + 1) + 1
                else:
                    position = self._escape_string(position, position + 1, start, atoms)
            elif byte == b"$":
                found = _DOLLAR.match(buffer, position)
                if found is None:
                    position += 1
                    continue
                close = buffer.find(found.group(), found.end())
                if close < 0:
                    raise _More("dollar", position)
                end = close + len(found.group())
                atoms.append((position - start, end - start, "token"))
                position = end
            elif byte == b"-":
                if buffer.startswith(b"--", position):
                    end = _LINE_COMMENT.match(buffer, position).end()  # type: ignore[union-attr]
                    atoms.append((position - start, end - start, "comment"))
                    position = end
                elif not progress:
                    position += 1
            elif byte == b"/":
                if buffer.startswith(b"/*", position):
                    end = _block_end(buffer, position)
                    if end < 0:
                        raise _More("comment", position)
                    atoms.append((position - start, end - start, "comment"))
                    position = end
                elif not progress:
                    position += 1
            elif byte == b":":
                found = _VARIABLE.match(buffer, position)
                group = found.lastindex if found is not None else None
                if found is None or group is None or found.group(group).isdigit():
                    # "::" and ":=" are left here only by the bound on a run's rounds.
                    position += 2 if buffer[position + 1 : position + 2] in (b":", b"=") else 1
                    continue
                if found.end() == length and not self._eof:
                    raise _More("statement", start)
                if group == 4:
                    raise self._error(
                        "a test for a variable is not supported",
                        position,
                        "Write the SQL for both cases as two migrations.",
                    )
                span = (position - start, found.end() - start, found.group(group).decode("utf-8"), _STYLES[group - 1])
                variables.append(span)
                # What follows a variable is lexed afresh, as psql does after pasting its value.
                atoms.append((span[0], span[1], "token"))
                position = found.end()
            elif byte == b"\\":
                self._refuse_meta(position, start)
            elif byte == b"":
                if not self._eof:
                    raise _More("statement", start)
                if parens:
                    raise _More("parenthesis", parens[-1])
                if begins:
                    raise _More("begin", begins[-1])
                return len(buffer[:length].rstrip(b" \t\n\r\f\v")), length, variables, atoms
            elif byte in b"eE" and buffer[position + 1 : position + 2] == b"'":
                position = self._escape_string(position, position + 2, start, atoms)
            elif byte in b"bBcCeE" and creating:
                word = _ROUTINE_WORD.match(buffer, position)
                if word is None:
                    position += 1
                    continue
                position, value = word.end(), word.group().lower()
                if parens or value not in (b"begin", b"case", b"end"):
                    continue
                if routine is None:
                    routine = _is_routine(buffer[start:position])
                    creating = routine
                    if not routine:
                        run = _RUN[standard, False]
                        continue
                if value == b"begin" or (value == b"case" and begins):
                    begins.append(word.start())
                elif value == b"end" and begins:
                    begins.pop()
            elif byte == b'"':
                close = buffer.find(b'"', position + 1)
                if close < 0:
                    raise _More("identifier", position)
                if not progress:
                    position = close + 1
            elif not progress:
                position += 1

    def _escape_string(self, start: int, position: int, base: int, atoms: list[tuple[int, int, str]]) -> int:
        """Past a string with backslash escapes and its continuations; ``position`` is behind the opening quote."""
        buffer = self._buffer
        opened = start
        while True:
            while True:
                end = _ESCAPE_PIECE.match(buffer, position).end()  # type: ignore[union-attr]
                if end == len(buffer) or (buffer[end : end + 1] == b"\\" and end + 1 == len(buffer)):
                    raise _More("string", opened)
                if buffer[end : end + 1] == b"'" and buffer[end + 1 : end + 2] != b"'":
                    break
                position = end
            end += 1
            atoms.append((start - base, end - base, "token"))
            more = _CONTINUATION.match(buffer, end)
            if more is None:
                return end
            atoms.append((end - base, more.end() - base, "comment"))
            start = more.end()
            position = start + 1

    def _make(
        self,
        start: int,
        end: int,
        after: int,
        index: int,
        variables: t.Sequence[tuple[int, int, str, str]],
        atoms: t.Sequence[tuple[int, int, str]],
        copy: bytes | None,
    ) -> tuple[Statement | None, int]:
        raw = self._buffer[start:end]
        self._advance_mark(start)
        standard = self._strings.standard
        statement = Statement(
            raw,
            name=self.name,
            line=self._mark_line,
            column=self._mark_column,
            index=index,
            standard_strings=standard,
            variable_spans=tuple(variables),
            atoms=tuple(atoms),
        )
        if self._has_return and b"\r\n" in raw:
            self._note_crlf(statement)
        if self._token_hash is not None:
            self._hash(statement)
        if raw[:1] in b"sSrRdDcCeEaAbB":
            self._strings.follow(statement)
        if copy is not None:
            self._begin_copy(statement)
        return statement, after

    def _note_crlf(self, statement: Statement) -> None:
        for token in statement.tokens():
            if token.kind in ("string", "dollar_string", "quoted_identifier") and "\r\n" in token.text:
                statement.crlf_inside = True
                self.crlf_count += 1
                if len(self.crlf_lines) < 5:
                    self.crlf_lines.append(statement.location_of(token.offset)[0])
                return

    # -- psql commands

    def _meta(self, start: int, index: int) -> tuple[Statement | None, int]:
        while not self._eof and self._buffer.find(b"\n", start) < 0:
            start = self._fill(start)
        buffer = self._buffer
        found = t.cast("re.Match[bytes]", _META.match(buffer, start))  # it matches a backslash, which is here
        name = _META_NAME.match(buffer, start)
        end = found.end()
        if name is not None and name.group() in (b"\\;", b"\\:", b"\\"):
            self._refuse_meta(start, start)
        stop = buffer[end : end + 1]
        if stop not in (b"", b"\n", b"\r", b"\\"):
            raise self._error("unterminated quote in a psql command", end)
        text = buffer[start:end].decode("utf-8").rstrip(" \t\r\f\v")
        self._advance_mark(start)
        statement = Statement(
            b"", name=self.name, line=self._mark_line, column=self._mark_column, index=index, meta=text
        )
        if self._token_hash is not None:
            self._tokens += [b"\\", text.encode("utf-8"), b""]
        # "\\" ends a psql command within the line; anything else after a backslash is the next command.
        return statement, end + 2 if buffer[end : end + 2] == b"\\\\" else end

    def _refuse_meta(self, position: int, start: int) -> t.NoReturn:
        if not self._eof and self._buffer.find(b"\n", position) < 0:
            raise _More("statement", start)
        found = _META_NAME.match(self._buffer, position)
        command = (found.group() if found else b"\\").decode("utf-8", "replace")
        raise self._error(f"psql command {command} inside a statement", position, mid_statement_remedy(command))

    # -- COPY

    def _copies_from_stdin(self, raw: bytes) -> bool:
        depth = 0
        previous = ""
        for token in tokens(raw.decode("utf-8"), standard_strings=self._strings.standard):
            if token.kind == "punctuation":
                depth += (token.text == "(") - (token.text == ")")
            elif token.kind == "word" and depth == 0 and previous == "from":
                # The grammar takes either word here; both mean the client's connection.
                return token.value in ("stdin", "stdout")
            previous = token.value if token.kind == "word" and depth == 0 else ""
        return False

    def _begin_copy(self, statement: Statement) -> None:
        statement.copy_data = CopyData(self, statement)
        self._copying = statement
        self._copy_end = -1
        self._copy_done = False
        self._copy_line_start = True
        self._copy_hash = hashlib.sha256() if self._token_hash is not None else None

    def read_copy(self, statement: Statement, size: int) -> bytes:
        """Up to ``size`` bytes of the rows of ``statement``; see :class:`CopyData`."""
        if self._copying is not statement or self._copy_done:
            return b""
        if self._position >= self._copy_end and not self._find_copy_end(statement):
            return b""
        end = min(self._copy_end, self._position + size)
        data = self._buffer[self._position : end]
        self._position = end
        self._copy_line_start = data[-1:] == b"\n"
        if self._copy_hash is not None:
            self._copy_hash.update(data)
        return data

    def _find_copy_end(self, statement: Statement) -> bool:
        """Set how far the buffer is known to be rows; False at the terminating line."""
        while True:
            buffer, position = self._buffer, self._position
            if self._copy_line_start:
                here = _COPY_END_HERE.match(buffer, position)
                if here is None and self._eof:
                    here = re.compile(rb"\\\.\r?\Z").match(buffer, position)
                if here is not None:
                    self._position = here.end()
                    self._copy_done = True
                    if self._copy_hash is not None:
                        self._tokens += [b"\\.", self._copy_hash.hexdigest().encode("ascii"), b""]
                    return False
            found = _COPY_END.search(buffer, position)
            if found is not None:
                self._copy_end = found.start() + 1
                return True
            # The last four bytes may be the beginning of the terminating line.
            if len(buffer) - position > 4 and not self._eof:
                self._copy_end = len(buffer) - 4
                return True
            if self._eof:
                tail = _COPY_END_OF_FILE.search(buffer, position)
                if tail is not None and buffer[tail.start() : tail.start() + 1] == b"\n":
                    self._copy_end = tail.start() + 1
                    return True
                raise SqlTextError(
                    "the rows of COPY ... FROM STDIN never end",
                    location=Location(self.name, statement.line, statement.column),
                    remedy="End them with a line that holds only \\. (backslash, full stop).",
                )
            self._position = self._fill(position)

    # -- the token hash

    def _hash(self, statement: Statement) -> None:
        raw = statement.raw
        position = 0
        for start, end, kind in statement._atoms:
            self._collect(raw, position, start)
            if kind == "token":
                self._tokens.append(raw[start:end])
            position = end
        self._collect(raw, position, len(raw))
        self._tokens.append(b"")

    def _collect(self, raw: bytes, start: int, end: int) -> None:
        if end - start < _FEW_TOKENS:
            self._tokens += _DIGEST_TOKEN.findall(raw, start, end)
        else:
            # A list of all tokens of a long statement would be many times its size.
            found = (match.group() for match in _DIGEST_TOKEN.finditer(raw, start, end))
            while True:
                batch = list(itertools.islice(found, 10000))
                if not batch:
                    break
                self._tokens += batch
                self._flush_tokens()
        if len(self._tokens) > 20000:
            self._flush_tokens()

    def _flush_tokens(self) -> None:
        if self._tokens and self._token_hash is not None:
            self._token_hash.update(b"\0".join(self._tokens) + b"\0")
            self._tokens = []


class _StringSetting:
    """What ``standard_conforming_strings`` is, as far as the text itself says.

    A runner has to connect with it on, which is every server's default since 9.1.
    """

    def __init__(self) -> None:
        self.standard = True
        self._in_transaction = False
        self._before: bool | None = None
        self._local: bool | None = None

    def follow(self, statement: Statement) -> None:
        """Note what a statement does to the setting.

        :raises SqlTextError: it sets something that is neither on nor off
        """
        raw = statement.raw
        word = _first_word(raw, 0)
        if word not in _SETTING_WORDS:
            return
        if word in (b"set", b"select") and b"standard_conforming_strings" not in raw.lower():
            return
        head = [token.value for token in statement.head]
        if word in (b"begin", b"start"):
            self._in_transaction, self._before, self._local = True, self.standard, None
        elif word in (b"commit", b"end", b"rollback", b"abort"):
            if "to" in head[:4] or "prepared" in head[:2]:
                return
            if self._in_transaction and self._before is not None:
                if word in (b"rollback", b"abort"):
                    self.standard = self._before
                elif self._local is not None:
                    self.standard = self._local
            self._in_transaction = "chain" in head and "no" not in head
            self._before, self._local = self.standard, None
        elif word == b"reset":
            if head[1:2] in (["all"], ["standard_conforming_strings"]):
                self.standard, self._local = True, None
        elif word == b"discard":
            if head[1:2] == ["all"]:
                self.standard = True
        elif word == b"set":
            scope = head[1] if head[1:2] in (["local"], ["session"]) else ""
            rest = head[2:] if scope else head[1:]
            if rest[:1] == ["standard_conforming_strings"]:
                self._set(statement, rest[2] if len(rest) > 2 else "", local=scope == "local")
        elif "set_config" in head:
            at = head.index("set_config")
            if head[at + 1 : at + 4] == ["(", "standard_conforming_strings", ","]:
                local = "".join(head[at + 5 : at + 7]).startswith(",t")
                self._set(statement, head[at + 4], local=local)

    def _set(self, statement: Statement, value: str, *, local: bool) -> None:
        new = _BOOLEANS.get(value.lower())
        if new is None:
            raise SqlTextError(
                "standard_conforming_strings is set to something this tool cannot judge",
                location=statement.location(),
                remedy="Write on or off.",
            )
        if local and self._local is None:
            self._local = self.standard
        elif not local:
            self._local = None
        self.standard = new


_SETTING_WORDS = frozenset(b"set reset select discard begin start commit end rollback abort".split())
_BOOLEANS = {
    "on": True, "true": True, "yes": True, "1": True, "default": True, "t": True, "y": True,
    "off": False, "false": False, "no": False, "0": False, "f": False, "n": False,
}  # fmt: skip

_OPEN = {
    "string": ("string is never closed", "Close it with ' (and write '' for a quote inside)."),
    "dollar": ("dollar-quoted string is never closed", "Close it with the same tag."),
    "identifier": ("quoted identifier is never closed", 'Close it with ".'),
    "comment": ("comment is never closed", "Close it with */ (comments nest)."),
    "parenthesis": ("parenthesis is never closed", "Close it: a ; inside parentheses does not end a statement."),
    "begin": ("BEGIN ATOMIC or CASE is never closed", "Close it with END;."),
    "statement": ("statement is never closed", "End it with ;."),
}

_MID_STATEMENT = {
    "\\;": "End the statement with ; instead: every statement is sent on its own.",
    "\\:": "Write the colon with a space after it, or the cast as CAST(... AS ...).",
    "\\g": "End the statement with ; instead.",
    "\\gx": "End the statement with ; instead.",
    "\\gexec": "Run the generated statements from a DO block with EXECUTE.",
    "\\gset": "Use a DO block, or a variable of the plan.",
    "\\gdesc": "Remove it.",
    "\\bind": "Write the values in the statement, or use variables of the plan.",
    "\\crosstabview": "End the statement with ; instead; a migration shows no tables.",
    "\\watch": "End the statement with ; instead; waiting for a condition is a check of the plan.",
}


def mid_statement_remedy(command: str) -> str:
    """What to do about a psql command before the statement's end."""
    return _MID_STATEMENT.get(command, "End the statement before it with ; and start the command on a line of its own.")


def _block_end(text: bytes, position: int) -> int:
    """Past the comment that opens at ``position``; -1 when it does not close."""
    depth = 0
    for edge in _BLOCK_EDGE.finditer(text, position):
        depth += 1 if edge.group() == b"/*" else -1
        if not depth:
            return edge.end()
    return -1


def _first_word(text: bytes, position: int) -> bytes:
    found = _ROUTINE_WORD.match(text, position)
    return found.group().lower() if found is not None else b""


def _is_routine(raw: bytes) -> bool:
    """The statement begins CREATE [OR REPLACE] FUNCTION or PROCEDURE, as psql judges it."""
    words: list[str] = []
    for token in tokens(raw.decode("utf-8", "replace")):
        if token.kind == "word":
            words.append(token.value)
            if len(words) == 4:
                break
    if words[1:3] == ["or", "replace"]:
        del words[1:3]
    return words[:1] == ["create"] and words[1:2] in (["function"], ["procedure"])


def tokens(text: str, *, standard_strings: bool = True) -> t.Iterator[Token]:
    """The significant tokens of one statement's text, made as they are asked for.

    :param standard_strings: whether backslashes in plain quotes are literal
    """
    position = 0
    match = _TEXT_TOKEN.match
    length = len(text)
    escaping = False
    while position < length:
        found = t.cast("re.Match[str]", match(text, position))  # its last alternative takes any character
        group = found.lastgroup
        end = found.end()
        if group == "space":
            position = end
            continue
        if group == "block":
            depth = 0
            for edge in _TEXT_BLOCK_EDGE.finditer(text, position):
                depth += 1 if edge.group() == "/*" else -1
                if not depth:
                    break
            position = edge.end() if not depth else length
            continue
        if group == "operator" or group == "punctuation":
            cut = _comment_in_operator(text, position, end) if end - position > 1 else end
            yield Token(group, text[position:cut], text[position:cut], position)
            position = cut
            continue
        if group == "word":
            word = found.group()
            value = word.lower() if word.isascii() else word.translate(_ASCII_LOWER)
            yield Token("word", word, value, position)
        elif group == "dollar":
            close = text.find(found.group(), end)
            body_end = close if close >= 0 else length
            yield Token("dollar_string", text[position : body_end + end - position], text[end:body_end], position)
            end = body_end + end - position
        elif group == "escape" or (
            group == "string" and (escaping or (not standard_strings and text[position] in "'nN"))
        ):
            start = position + (0 if text[position] == "'" else 1)
            whole = _TEXT_PLAIN_ESCAPE.match(text, start)
            end = whole.end() if whole else length
            yield Token("string", text[position:end], _unescape(text[start + 1 : end - 1]), position)
            # An escape string goes on after a line break with the same rules.
            more = _TEXT_CONTINUATION.match(text, end)
            escaping = more is not None
            position = more.end() if more is not None else end
            continue
        elif group == "string":
            yield Token("string", found.group(), _plain_value(found.group()), position)
        elif group == "quoted":
            yield Token("quoted_identifier", found.group(), _identifier_value(found.group()), position)
        elif group == "variable":
            yield Token("variable", found.group(), found.group().strip(":'\""), position)
        else:
            yield Token(str(group), found.group(), found.group(), position)
        escaping = False
        position = end


def _comment_in_operator(text: str, start: int, end: int) -> int:
    """An operator stops before a comment that starts within its characters."""
    for mark in ("/*", "--"):
        at = text.find(mark, start, end + 1)
        if at > start:
            end = min(end, at)
    kept = text[start:end]
    if kept[-1] in "+-" and len(kept) > 1 and not set(kept) & set("~!@#%^&|`?"):
        end = start + max(1, len(kept.rstrip("+-")))
    return end


def _plain_value(text: str) -> str:
    first = text.index("'")
    body = text[first + 1 : -1].replace("''", "'")
    return _unicode_value(body) if text[:1] in "uU" else body


def _identifier_value(text: str) -> str:
    first = text.index('"')
    body = text[first + 1 : -1].replace('""', '"')
    return _unicode_value(body) if first else body


def _unicode_value(body: str) -> str:
    def replace(found: t.Match[str]) -> str:
        digits = found.group(2) or found.group(3)
        return chr(int(digits, 16)) if digits and int(digits, 16) < 0x110000 else "\\"

    return _UNICODE_ESCAPE.sub(replace, body)


def _unescape(body: str) -> str:
    def replace(found: t.Match[str]) -> str:
        octal, hexadecimal, short, long, letter = found.groups()
        if octal:
            return chr(int(octal, 8) & 0xFF)
        digits = hexadecimal or short or long
        if digits:
            return chr(int(digits, 16)) if int(digits, 16) < 0x110000 else "?"
        return _ESCAPE_LETTERS.get(letter, letter) if letter else "'"

    return _ESCAPE.sub(replace, body)


def statements(stream: t.BinaryIO, *, name: str) -> t.Iterator[Statement]:
    """The statements of a stream of bytes.

    :param name: of the file, for locations
    :raises SqlTextError: with file, line and column
    """
    return Scanner(stream, name).statements()


def token_digest(stream: t.BinaryIO, *, name: str = "<sql>") -> str:
    """SHA-256 over the significant tokens, COPY rows and psql commands of a stream.

    :raises SqlTextError: the text cannot be cut into statements
    """
    scanner = Scanner(stream, name, hash_tokens=True)
    for _statement in scanner.statements():
        pass
    return scanner.token_sha256


def render(
    statement: Statement,
    values: t.Mapping[str, t.Any],
    quote_literal: t.Callable[[t.Any], str],
    quote_identifier: t.Callable[[str], str],
) -> str:
    """The statement's text with its variables replaced.

    ``:'name'`` and ``:"name"`` are quoted by the callables; ``:name`` takes numbers and booleans only. Numbers are
    pasted as psql pastes them (``part_:n`` gives ``part_3``), except that no comment, operator or quote can arise at
    the edges.

    :raises SqlTextError: a name without a value, or a raw reference to something else than a number or boolean
    """
    text = statement.text
    if not statement.variables:
        return text
    pieces: list[str] = []
    position = 0
    for reference in statement.variables:
        if reference.name not in values:
            shown = text[reference.offset : reference.offset + reference.length]
            remedy = "Define it under `variables`."
            if reference.style == "raw":
                remedy += " If it is an array slice, put a space after the colon."
            location = statement.location(reference.offset)
            raise SqlTextError(f"variable {shown} has no value", location=location, remedy=remedy)
        value = values[reference.name]
        if reference.style == "literal":
            pasted = quote_literal(value)
        elif reference.style == "identifier":
            pasted = quote_identifier(str(value))
        else:
            pasted = _raw_value(statement, reference, value)
        before = text[position : reference.offset]
        pieces.append(before)
        last = before[-1:] or (pieces[-2][-1:] if len(pieces) > 1 else "")
        pasted_raw = reference.style == "raw"
        if _would_join(last, pasted[:1], pasted_raw):
            pieces.append(" ")
        pieces.append(pasted)
        position = reference.offset + reference.length
        if not pasted_raw and _would_join(pasted[-1:], text[position : position + 1], False):
            pieces.append(" ")
    pieces.append(text[position:])
    return "".join(pieces)


def _would_join(last: str, first: str, raw: bool) -> bool:
    """Two characters at the edge of a pasted value would make one token of two."""
    if not last or not first:
        return False
    if first == "-" and last in "+-*/<>=~!@#%^&|`?":
        return True
    quotes, wordy = "'\"", last.isalnum() or last in "_$" or last > "\x7f"
    if first in quotes:
        return wordy or last in "'\"&"
    return not raw and (wordy or last in quotes) and (first.isalnum() or first in "_$" or first > "\x7f")


def _raw_value(statement: Statement, reference: VariableRef, value: t.Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) or (isinstance(value, (float, Decimal)) and Decimal(value).is_finite()):
        return str(value)
    raise SqlTextError(
        f"variable :{reference.name} is not a number or boolean",
        location=statement.location(reference.offset),
        remedy=f"Write :'{reference.name}' for a value or :\"{reference.name}\" for an identifier.",
    )

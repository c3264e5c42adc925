# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bytes to statements: where they are cut, what is refused, what the hashes see, what variables become."""

from __future__ import annotations

import hashlib
import io
import pathlib
import typing as t
from decimal import Decimal

import hypothesis
import pytest
from hypothesis import strategies as st

from ansible_collections.surefoot.dbops.plugins.module_utils import _sqltext
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import SqlTextError
from ansible_collections.surefoot.dbops.plugins.module_utils._sqltext import (
    Scanner,
    Statement,
    render,
    statements,
    token_digest,
    tokens,
)
from ansible_collections.surefoot.dbops.tests.support.corpus import corpus

CORPUS = corpus()


def texts(sql: str | bytes) -> list[str]:
    data = sql.encode() if isinstance(sql, str) else sql
    return [entry.text if entry.meta is None else entry.meta for entry in statements(io.BytesIO(data), name="f.sql")]


def refused(sql: str | bytes) -> str:
    with pytest.raises(SqlTextError) as raised:
        texts(sql)
    return str(raised.value)


def digest(sql: str | bytes) -> str:
    return token_digest(io.BytesIO(sql.encode() if isinstance(sql, str) else sql))


def everything(data: bytes, **options: t.Any) -> t.Any:
    """All a scan yields, or its error."""
    scanner = Scanner(io.BytesIO(data), "f.sql", hash_tokens=True, **options)
    found = []
    try:
        for entry in scanner.statements():
            rows = entry.copy_data.read() if entry.copy_data is not None else None
            place = (entry.line, entry.column, entry.index)
            found.append((place, entry.text, entry.meta, rows, entry.variables, entry.head, entry.crlf_inside))
    except SqlTextError as exc:
        return str(exc)
    return found, scanner.token_sha256, scanner.raw_sha256, scanner.size, scanner.crlf_lines


# -- cutting


def test_the_torture_file_is_cut_as_psql_cuts_it() -> None:
    path = next(path for path in CORPUS if path.stem == "torture")
    with path.open("rb") as stream:
        found = list(statements(stream, name="torture.sql"))
    assert [entry.text.split("\n")[0] for entry in found] == [
        "create table a$$b (i int)",
        "create table c$$d (j int)",
        "select 'nested ok'",
        "select 'it''s; ok', E'back\\'s; ok', U&'d\\0061t\\+000061; ok', $q$ ; $$ ; $q$",
        "select 'multi'",
        "create rule r as on insert to a$$b do also (insert into c$$d values(1); insert into c$$d values(2))",
        "create function ba(x int) returns int begin atomic select case when x>0 then 1 else 2 end; select 3; end",
        "set standard_conforming_strings=off",
        "select 'a\\'; select b'",
        "reset standard_conforming_strings",
        "copy c$$d from stdin",
        'create table "semi;colon" ("a;b" int, "q""$$;" int)',
    ]


@pytest.mark.parametrize(
    ("sql", "wanted"),
    [
        ("select 1;select 2", ["select 1", "select 2"]),
        (";; ;-- x\n;", []),
        ("", []),
        ("-- only a comment; here", []),
        ("/* a /* b; */ ; */", []),
        ("select ';'';';select 2", ["select ';'';'", "select 2"]),
        ("select E'\\';';select 2", ["select E'\\';'", "select 2"]),
        ("select '\\';select 2", ["select '\\'", "select 2"]),
        ("select namee'\\';select 2", ["select namee'\\'", "select 2"]),
        ("select E'a'\n '\\';';select 2", ["select E'a'\n '\\';'", "select 2"]),
        ("select E'a' -- x;\n '\\';';select 2", ["select E'a' -- x;\n '\\';'", "select 2"]),
        ("select E'a' '\\';select 2", ["select E'a' '\\'", "select 2"]),
        ("select $$;$$;select 2", ["select $$;$$", "select 2"]),
        ("select $a$;$$;$b$;$a$;select 2", ["select $a$;$$;$b$;$a$", "select 2"]),
        ("select $1$$;$$;select 2", ["select $1$$;$$", "select 2"]),
        ("select a$$;select b$$", ["select a$$", "select b$$"]),
        ('select "a"";";select 2', ['select "a"";"', "select 2"]),
        ("select 1-- ;\n;select 2", ["select 1-- ;\n", "select 2"]),
        ("select 1-- ;\r;select 2", ["select 1-- ;\r", "select 2"]),
        ("select 1/**/;/*;*/select 2", ["select 1/**/", "select 2"]),
        ("select 1 */*;*/ 2;select 2", ["select 1 */*;*/ 2", "select 2"]),
        ("select 1 +--;\n 2;select 2", ["select 1 +--;\n 2", "select 2"]),
        ("create rule r as on x do (a;b);c", ["create rule r as on x do (a;b)", "c"]),
        ("create function begin_atomic() as 'a;';b", ["create function begin_atomic() as 'a;'", "b"]),
        ("create table begin (begin int);b", ["create table begin (begin int)", "b"]),
        ("create procedure p() begin atomic a; b; end;c", ["create procedure p() begin atomic a; b; end", "c"]),
        (
            "create or replace function f() begin atomic select case when a then case b when 1 then 2 end end; end;x",
            [
                "create or replace function f() begin atomic select case when a then case b when 1 then 2 end end; end",
                "x",
            ],
        ),
        ("select 1::int[1:2];x", ["select 1::int[1:2]", "x"]),
        ("\\echo a; b\nselect 1", ["\\echo a; b", "select 1"]),
        ("\\t on \\\\ select 1;", ["\\t on", "select 1"]),
        ("select 1; \\echo 'a\\nb' \\x\n", ["select 1", "\\echo 'a\\nb'", "\\x"]),
        ("\ufeffselect 1", ["select 1"]),
        ("select 1\r\n;\r\nselect 2\r\n", ["select 1\r\n", "select 2"]),
    ],
)
def test_statements_end_where_the_lexer_says(sql: str, wanted: list[str]) -> None:
    assert texts(sql) == wanted


def test_string_rules_follow_the_setting() -> None:
    sql = (
        "set standard_conforming_strings = off; a '\\';'; SET LOCAL standard_conforming_strings TO on; b '\\';"
        "begin; set standard_conforming_strings=0; c '\\';'; rollback; d '\\';"
        "begin; set local standard_conforming_strings=off; e '\\';'; commit; f '\\';"
        "select pg_catalog.set_config('standard_conforming_strings', 'off', false); g '\\';'; reset all; h '\\';"
    )
    found = [text for text in texts(sql) if len(text.split("'")[0]) == 2]
    assert found == ["a '\\';'", "b '\\'", "c '\\';'", "d '\\'", "e '\\';'", "f '\\'", "g '\\';'", "h '\\'"]


def test_places_count_lines_and_characters() -> None:
    sql = "-- é\n  select 'größe',\n x;  /* ß\n */ select 2;"
    first, second = statements(io.BytesIO(sql.encode()), name="f.sql")
    assert (first.line, first.column, second.line, second.column) == (2, 3, 4, 5)
    assert first.location_of(first.text.index("x")) == (3, 2)
    assert first.location_of(first.text.index(",")) == (2, 17)


def test_copy_rows_are_a_stream_between_statements() -> None:
    rows = b"".join(b"%d\tit's; -- $$ \\N /*\r\n" % number for number in range(1000))
    data = b"copy t (a, b) from stdin; -- comment\n" + rows + b"\\.\r\nselect 1;copy t from stdin;\n\\.\nselect 2"
    for chunk in (1, 7, 1000, 1 << 20):
        scan = Scanner(io.BytesIO(data), "f.sql", chunk_size=chunk).statements()
        copy = next(scan)
        assert copy.copy_data is not None
        pieces = list(iter(lambda: copy.copy_data.read(8192), b""))  # noqa: B023
        assert b"".join(pieces) == rows
        assert max(map(len, pieces)) <= 8192
        after = next(scan)
        assert (after.text, after.line) == ("select 1", 1003)
        empty = next(scan)
        assert empty.copy_data is not None and empty.copy_data.read() == b""
        assert next(scan).text == "select 2"


def test_unread_copy_rows_are_skipped() -> None:
    assert texts("copy t from stdin;\n;';\n\\.\nselect 1") == ["copy t from stdin", "select 1"]


@pytest.mark.parametrize(
    ("sql", "streams"),
    [
        ("copy t from stdin;\n\\.\n", True),
        ('COPY t (a, "from", b) FROM STDIN WITH (FORMAT csv);\n\\.\n', True),
        ("copy " + "t (" + ", ".join(f"c{n}" for n in range(100)) + ") from stdin;\n\\.\n", True),
        ("copy t from stdout;\n\\.\n", True),
        ("copy t from 'stdin';", False),
        ("copy t to stdin;", False),
        ("copy (select 1 from stdin) to '/x';", False),
        ("copy t from program 'x';", False),
    ],
)
def test_only_copy_from_the_client_has_rows(sql: str, streams: bool) -> None:
    first = next(statements(io.BytesIO(sql.encode()), name="f.sql"))
    assert (first.copy_data is not None) is streams


# -- refusals


@pytest.mark.parametrize(
    ("sql", "place", "words"),
    [
        ("select 1;\n select 'a;\n", "f.sql:2:9", "string is never closed"),
        ("select 1;\n select e'a\\';\n", "f.sql:2:9", "string is never closed"),
        ('select 1;\n select "a;', "f.sql:2:9", "quoted identifier is never closed"),
        ("select 1;\n do $x$ $$ ;", "f.sql:2:5", "dollar-quoted string is never closed"),
        ("select 1;\n select /* /* */ ;", "f.sql:2:9", "comment is never closed"),
        ("select 1;\n /* /* */ ;", "f.sql:2:2", "comment is never closed"),
        ("select 1;\n select (1, (2);", "f.sql:2:9", "parenthesis is never closed"),
        ("create function f() begin atomic select case when 1 then 2 end;", "f.sql:1:21", "never closed"),
        ("copy t from stdin;\n1\n2\n", "f.sql:1:1", "never end"),
        ("copy t from stdin; select 1;\n1\n\\.\n", "f.sql:1:19", "same line"),
        ("select 1\n\\gexec\n", "f.sql:2:1", "DO block"),
        ("select 1 \\; select 2;", "f.sql:1:10", "End the statement with ;"),
        ("select 1 \\gset x\n", "f.sql:1:10", "DO block"),
        ("select (\n\\crosstabview\n", "f.sql:2:1", "\\crosstabview"),
        ("\\; select 1;", "f.sql:1:1", "End the statement with ;"),
        ("\\echo 'open\nselect 1;", "f.sql:1:7", "unterminated quote"),
        ("select :{?x};", "f.sql:1:8", "two migrations"),
        ("select 1;\n\ufeffselect 2;", "f.sql:2:1", "byte order mark"),
        ("set standard_conforming_strings = :x;", "f.sql:1:1", "on or off"),
        (b"select 1;\n-- \xe4\n", "f.sql:2:4", "not valid UTF-8"),
        (b"select 1;\n-- x\xc3", "f.sql:2:5", "not valid UTF-8"),
        (b"insert 1;\x00 insert 2;", "f.sql:1:10", "NUL"),
        ("select 1;\n-- é \u202e\n", "f.sql:2:6", "U+202E"),
        ("copy t from stdin;\na\u2066b\n\\.\n", "f.sql:2:2", "U+2066"),
    ],
)
def test_what_cannot_be_run_is_refused_where_it_begins(sql: str | bytes, place: str, words: str) -> None:
    message = refused(sql)
    assert f"({place})" in message
    assert words in message
    assert "\n" not in message
    # Whatever the pieces the file is read in.
    data = sql.encode() if isinstance(sql, str) else sql
    assert {everything(data, chunk_size=size) for size in (1, 2, 3, 5, 1000)} == {message}


def test_a_statement_beyond_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sqltext, "MAX_STATEMENT_SIZE", 10_000)
    monkeypatch.setattr(_sqltext, "_FAST_SIZE", 5_000)
    rows = ", ".join(["(1, 'x')"] * 2000)
    for chunk in (100, 1 << 20):
        found = everything(f"select 1;\ninsert into t values {rows};".encode(), chunk_size=chunk)
        assert "COPY" in found and "f.sql:2:1" in found


# -- chunks, the two paths, the property


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_the_size_of_reads_changes_nothing(path: pathlib.Path) -> None:
    data = path.read_bytes()
    whole = everything(data)
    assert not isinstance(whole, str)
    for size in [*range(1, 40), 64, 100, 257, len(data) - 1]:
        assert everything(data, chunk_size=size) == whole
    assert everything(data, fast=False) == whole


def test_the_pieces_of_a_long_statement_are_scanned_once_more_not_once_per_read() -> None:
    data = b"insert into t values " + b",".join([b"(1, 'a;b', E'\\'')"] * 20_000) + b";select 2"
    assert everything(data, chunk_size=512) == everything(data)


def test_the_hash_of_a_long_statement_is_that_of_its_tokens() -> None:
    rows = [f"({number}, 'a b')" for number in range(5000)]
    assert digest("insert into t values " + ",".join(rows)) == digest("insert into t values\n" + " ,\n".join(rows))


FRAGMENTS = [
    "select", "'a'", "'it''s'", "E'b\\'s'", "e'x'", "$$ ; $$", "$q$ ' $q$", "$1", "(", ")", ";", " ", "\n", "\r\n",
    "--c;'\n", "-- x\r", "/* ; /* ' */ */", '"i;d"', '"a""b"', "::text", ":v", ":'v'", ':"v"', "[1:2]", "a$$b",
    "U&'\\0041'", "b'01'", "+", "-", "/", "*", "@", "1e5", ".5", "create function", "create or replace procedure",
    "begin", "case", "end", "set standard_conforming_strings=off;", "reset standard_conforming_strings;", "'\\'",
    "é", "ß'", "\\echo hi\n", "\\;", "copy t from stdin;\n1\n\\.\n", "begin;", "commit;",
    "insert into t values (1,'x');", "\n'cont'", ":=", "1:", "<>-", "\t", "-- c\n", "'x'\n",
]  # fmt: skip


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(st.lists(st.sampled_from(FRAGMENTS), max_size=16), st.integers(1, 30))
def test_both_paths_and_all_chunk_sizes_agree(parts: list[str], size: int) -> None:
    data = "".join(parts).encode()
    whole = everything(data, fast=False)
    assert everything(data) == whole
    assert everything(data, chunk_size=size) == whole


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(st.lists(st.sampled_from(FRAGMENTS), max_size=16))
def test_statements_and_their_tokens_are_pieces_of_the_text(parts: list[str]) -> None:
    sql = "".join(parts)
    try:
        found = list(statements(io.BytesIO(sql.encode()), name="f.sql"))
    except SqlTextError:
        return
    lines = sql.split("\n")
    position = 0
    for entry in found:
        text = entry.text if entry.meta is None else entry.meta
        start = sum(len(line) + 1 for line in lines[: entry.line - 1]) + entry.column - 1
        # In order, without overlap, at the place it claims; what is left out holds no token.
        assert sql[start : start + len(text)] == text
        assert start >= position
        if entry.meta is None and found[entry.index - 1].copy_data is None:
            between = sql[position:start].replace("\\\\", "")
            assert all(token.text == ";" for token in tokens(between))
        position = start + len(text)
        for token in entry.tokens() if entry.meta is None else ():
            assert text[token.offset : token.offset + len(token.text)] == token.text


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(
    st.lists(
        st.sampled_from(
            [
                "select",
                "a",
                "1",
                "2.5",
                "'s;'",
                "E'\\''",
                '"q"',
                "$$d$$",
                "(x)",
                "+",
                "-",
                "=",
                "@>",
                "::",
                ",",
                ";",
                "||",
                "<",
            ]
        ),
        min_size=1,
        max_size=12,
    ),
    st.lists(st.sampled_from([" ", "\n", "\r\n", " /* c */ ", "\t-- c ' $$ ;\n", "  "]), min_size=12, max_size=12),
)
def test_white_space_and_comments_between_tokens_do_not_reach_the_hash(parts: list[str], gaps: list[str]) -> None:
    plain = " ".join(parts)
    spaced = "".join(gap + part for gap, part in zip(gaps, parts)) + "\n"
    assert digest(plain) == digest(spaced)


# -- hashes


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("-- note\nDELETE FROM t;", "-- noteDELETE FROM t;"),
        ("select a b", "select ab"),
        ("select 1 1", "select 11"),
        ("select 'a' ; 'b'", "select 'a;b'"),
        ("select a - -1", "select a --1\n"),
        ("select a@-1", "select a@ -1"),
        ("select e'x'", "select e 'x'"),
        ("select U&'x'", "select U & 'x'"),
        ("select 'a''b'", "select 'a' 'b'"),
        ("select 'a\r\nb'", "select 'a\nb'"),
        ("select $$a  b$$", "select $$a b$$"),
        ("select 'x  y'", "select 'x y'"),
        ("a; b", "a b"),
        ("(a; b)", "(a b)"),
        ('select "A"', 'select "a"'),
        ("copy t from stdin;\n1\n\\.\n", "copy t from stdin;\n2\n\\.\n"),
        ("\\echo a", "\\echo b"),
        ("select 1_000", "select 1 _000"),
    ],
)
def test_a_different_meaning_has_a_different_token_hash(one: str, other: str) -> None:
    assert digest(one) != digest(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("select a=-1", "select a = - 1"),
        ("select a+/* x */b", "select a + b"),
        ("select f(1,2)", "-- c\nselect f ( 1 , 2 ) ;\n"),
        ("a;b", "a;\r\n\r\nb;;\n"),
        ("insert into t values ('a', 1);", "insert into t\nvalues('a',1) -- it's\n;"),
        ("\ufeffselect 1", "select 1"),
        ("select E'a'\n'b'", "select E'a' -- c\n\n 'b'"),
    ],
)
def test_only_layout_differs_so_the_token_hash_is_the_same(one: str, other: str) -> None:
    assert digest(one) == digest(other)


def test_the_raw_hash_is_that_of_the_bytes() -> None:
    data = "\ufeffselect 'ä';\r\ncopy t from stdin;\n1\n\\.\n-- end".encode()
    scanner = Scanner(io.BytesIO(data), "f.sql", chunk_size=2)
    list(scanner.statements())
    assert (scanner.raw_sha256, scanner.size) == (hashlib.sha256(data).hexdigest(), len(data))


def test_crlf_inside_strings_and_bodies_is_noted_with_its_line() -> None:
    data = b"select 1,\r\n 2;\r\nselect 'a\r\nb';\r\ndo $$x\r\n$$; -- c\r\n/*\r\n*/ select 3;"
    found, _token, _raw, _size, lines = everything(data)
    assert [entry[-1] for entry in found] == [False, True, True, False]
    assert lines == [3, 5]


# -- tokens


def test_tokens_say_what_they_are_and_mean() -> None:
    sql = """Select "Q""x", U&"d\\0061", 'it''s', E'a\\n\\'\\x41', N'n', $t$b$t$, $1, 1.5e-3, :v, :'w', :"x",
             a.b::int -- c
             <> /* c */ @-1"""
    found = [(token.kind, token.value) for token in tokens(sql) if token.text != ","]
    assert found == [
        ("word", "select"),
        ("quoted_identifier", 'Q"x'),
        ("quoted_identifier", "da"),
        ("string", "it's"),
        ("string", "a\n'A"),
        ("string", "n"),
        ("dollar_string", "b"),
        ("parameter", "$1"),
        ("number", "1.5e-3"),
        ("variable", "v"),
        ("variable", "w"),
        ("variable", "x"),
        ("word", "a"),
        ("punctuation", "."),
        ("word", "b"),
        ("operator", "::"),
        ("word", "int"),
        ("operator", "<>"),
        ("operator", "@-"),
        ("number", "1"),
    ]


def test_the_head_is_bounded() -> None:
    assert len(Statement(b"select " + b"1," * 500).head) == 64


# -- variables


def variables(sql: str) -> list[tuple[str, str, int, int]]:
    (entry,) = statements(io.BytesIO(sql.encode()), name="f.sql")
    return [tuple(reference) for reference in entry.variables]


def test_references_are_found_outside_quotes_and_comments_only() -> None:
    sql = "select 'ö', :a, :'b', :\"c\", ':no', \":no\", $$:no$$, /* :no */ x::no, y := 1, z[1:2], z[1:d] -- :no"
    assert [name for name, _style, _offset, _length in variables(sql)] == ["a", "b", "c", "d"]
    assert [style for _name, style, _offset, _length in variables(sql)] == ["raw", "literal", "identifier", "raw"]
    for name, style, offset, length in variables(sql):
        assert (
            sql[offset : offset + length]
            == {"raw": f":{name}", "literal": f":'{name}'", "identifier": f':"{name}"'}[style]
        )


def _literal(value: t.Any) -> str:
    return "NULL" if value is None else "'" + str(value).replace("'", "''") + "'"


def _identifier(value: str) -> str:
    return '"' + value.replace('"', '""') + '"'


def rendered(sql: str, **values: t.Any) -> str:
    (entry,) = statements(io.BytesIO(sql.encode()), name="f.sql")
    return render(entry, values, _literal, _identifier)


@pytest.mark.parametrize(
    ("sql", "value", "wanted"),
    [
        ("select :x", 5, "select 5"),
        ("select :x", True, "select true"),
        ("select :x", Decimal("1.50"), "select 1.50"),
        ("select t_:x", 3, "select t_3"),
        ("select 1-:x", -5, "select 1- -5"),
        ("select :'x'", "it's", "select 'it''s'"),
        ("select :'x'", None, "select NULL"),
        ('select :"x"', 'a"b', 'select "a""b"'),
        ("select e:'x'", "\\", "select e '\\'"),
        ("select 'a':'x''b'", "c", "select 'a' 'c' 'b'"),
        ("select U&:'x'", "c", "select U& 'c'"),
        ("select 'é', :'x', :'x'", "ü", "select 'é', 'ü', 'ü'"),
    ],
)
def test_values_become_text_that_cannot_join_what_stands_beside_it(sql: str, value: t.Any, wanted: str) -> None:
    assert rendered(sql, x=value) == wanted


@pytest.mark.parametrize("value", ["1; drop table t", "5", None, float("nan"), Decimal("inf"), [1]])
def test_raw_references_take_numbers_and_booleans_only(value: t.Any) -> None:
    with pytest.raises(SqlTextError, match=r"not a number or boolean \(f\.sql:1:8\)"):
        rendered("select :x", x=value)


def test_a_name_without_a_value_is_an_error_with_its_place() -> None:
    with pytest.raises(SqlTextError, match=r"variable :n has no value \(f\.sql:2:5\).*space after the colon"):
        rendered("select\n a[1:n]")

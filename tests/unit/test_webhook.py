# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What may be sent where, and how a message looks: without a server."""

from __future__ import annotations

import json
import pathlib
import typing as t

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._errors import EnvironmentProblem, PlanError
from ansible_collections.surefoot.dbops.plugins.module_utils._webhook import (
    Address,
    Delivery,
    Message,
    check_headers,
    check_token,
    read_messages,
    read_targets,
    render,
    sign_off_body,
)

HOOK = "https://hooks.example.com/services/T000/B000/verysecretpath"


# --- tokens


@pytest.mark.parametrize(
    "token",
    [None, "", "   ", "\n", "{{ sign_off_token }}", "{% raw %}", "<token>", "Bearer <your-token>", "$TOKEN", "${TOKEN}"]
    + [
        "%TOKEN%",
        "token",
        "CHANGEME",
        "None",
        "undefined",
        "abc def",
        "abc\n",
        '"abcdef"',
        "abc\r\nX-Admin: 1",
        "tökén",
    ],
)
def test_a_token_that_is_none_is_refused_and_not_repeated(token: str | None) -> None:
    with pytest.raises(PlanError) as caught:
        check_token(token)
    message = str(caught.value)
    assert message.startswith("the token of the sign-off ") and "\n" not in message
    assert not token or token.strip() in ("", "token") or token not in message


@pytest.mark.parametrize("token", ["s3cr3t-T0ken_with.all~of+it/==", "eyJhbGciOiJIUzI1NiJ9.e30.x-y_z", "tokenised"])
def test_a_token_that_could_be_one_is_taken(token: str) -> None:
    assert check_token(token) == token


# --- addresses


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("{{ hook }}", "a template that was not filled in"),
        ("https://hooks.example.com/<secret>", "angle brackets"),
        ("https://hooks.example.com/$HOOK_TOKEN", "shell variable"),
        ("hooks.example.com/secretpath", "is not a URL"),
        ("ftp://hooks.example.com/secretpath", "is not a URL"),
        ("file:///etc/passwd", "is not a URL"),
        ("https:///secretpath", "is not a URL"),
        ("https://hooks.example.com:port/secretpath", "is not a URL"),
        ("https://hooks.example.com/secret path", "is not a URL"),
        ("https://hooks.example.com/secret\r\nX: y", "is not a URL"),
        ("https://hooks.exämple.com/secretpath", "is not a URL"),
        ("https://user:secretpath@hooks.example.com/", "holds a user or password"),
        ("http://hooks.example.com/secretpath", "without TLS"),
    ],
)
def test_an_address_that_cannot_be_is_refused_and_not_repeated(url: str, reason: str) -> None:
    with pytest.raises(PlanError) as caught:
        Address.parse(url, what="url")
    assert reason in str(caught.value)
    assert "secretpath" not in str(caught.value)


def test_an_address_shows_its_host_only() -> None:
    address = Address.parse(HOOK + "?key=alsosecret", what="url")
    assert (address.host, address.port, address.secure) == ("hooks.example.com", 443, True)
    assert address.target == "/services/T000/B000/verysecretpath?key=alsosecret"
    assert "secret" not in repr(address)


def test_http_is_for_this_machine_or_on_demand() -> None:
    assert Address.parse("http://127.0.0.1:8080/x", what="url").port == 8080
    assert Address.parse("http://[::1]/x", what="url").origin == "[::1]"
    assert Address.parse("http://hooks.example.com/x", what="url", allow_http=True).port == 80


# --- targets and headers


def test_two_targets_of_one_host_need_names() -> None:
    with pytest.raises(PlanError, match=r"two targets are called hooks.example.com. Give each a name"):
        read_targets([{"url": HOOK}, {"url": HOOK + "2"}], allow_http=False)
    targets = read_targets([{"url": HOOK}, {"url": HOOK + "2", "name": "dba", "kind": "teams"}], allow_http=False)
    assert [(target.name, target.kind) for target in targets] == [("hooks.example.com", "slack"), ("dba", "teams")]
    assert "secret" not in repr(targets)
    with pytest.raises(PlanError, match="there is no target"):
        read_targets([], allow_http=False)


@pytest.mark.parametrize(
    "headers",
    [{"X-Key": "sesame\r\nX-Admin: 1"}, {"X Key": "sesame"}, {"X-Key": ""}, {"X-Key": "{{ sesame }}"}]
    + [{"X-Key": "sesameé"}, {"X:Key": "sesame"}, {"X-Key": "$SESAME_TOKEN"}],
)
def test_a_header_that_cannot_be_is_refused_and_its_value_not_repeated(headers: dict[str, str]) -> None:
    with pytest.raises(PlanError) as caught:
        check_headers(headers, what="targets[1]")
    assert "sesame" not in str(caught.value).lower()
    assert check_headers({"Authorization": "Bearer abc"}, what="x") == {"Authorization": "Bearer abc"}


@pytest.mark.parametrize("values", [{"timeout": 0}, {"timeout": -1}, {"attempts": 0}])
def test_a_delivery_that_could_never_happen_is_refused(values: dict[str, t.Any]) -> None:
    with pytest.raises(PlanError):
        Delivery(**values)


# --- messages


TEXT = """# Migration 006

**Starts** at 02:00 UTC, see [the plan](https://wiki.example.com/006) & <!channel>.
"""


def test_slack_gets_its_own_markup_and_no_channel_can_be_called() -> None:
    text = render(Message("m", TEXT), "slack", "r1")["text"]
    assert text.splitlines() == [
        "*Migration 006*",
        "",
        "*Starts* at 02:00 UTC, see <https://wiki.example.com/006|the plan> &amp; &lt;!channel&gt;.",
    ]


def test_teams_gets_an_adaptive_card() -> None:
    payload = render(Message("m", TEXT), "teams", "r1")
    (attachment,) = payload["attachments"]
    assert attachment["contentType"] == "application/vnd.microsoft.card.adaptive"
    block = attachment["content"]["body"][0]
    assert block["wrap"] is True and block["text"].startswith("**Migration 006**\n\n**Starts**")


def test_json_gets_the_text_as_it_is() -> None:
    payload = render(Message("pre-migration", TEXT), "json", "r1")
    assert (payload["run_id"], payload["message"], payload["text"]) == ("r1", "pre-migration", TEXT)


@pytest.mark.parametrize(("kind", "limit"), [("slack", 40_000), ("teams", 28 * 1024)])
def test_a_message_that_is_too_long_is_cut_and_says_so(kind: str, limit: int) -> None:
    whole = json.dumps(render(Message("m", "x" * 100_000), kind, "r1"))
    assert len(whole) < limit
    assert "cut here; the whole message is in the run directory" in whole


def test_messages_are_looked_up_in_the_run_directory_or_by_their_path(tmp_path: pathlib.Path) -> None:
    (tmp_path / "messages").mkdir()
    (tmp_path / "messages" / "ciso.md").write_text("# In the run\n", encoding="utf-8")
    (tmp_path / "other.md").write_text("# By its path\n", encoding="utf-8")
    found = read_messages(["ciso.md", str(tmp_path / "other.md")], str(tmp_path))
    assert [(message.name, message.text) for message in found] == [("ciso", "# In the run"), ("other", "# By its path")]
    (tmp_path / "messages" / "empty.md").write_text(" \n", encoding="utf-8")
    (tmp_path / "messages" / "latin.md").write_bytes(b"\xff")
    for name, reason in (("absent.md", "No such file"), ("empty.md", "is empty"), ("latin.md", "not UTF-8")):
        with pytest.raises(EnvironmentProblem, match=reason):
            read_messages([name], str(tmp_path))


# --- the body of a sign-off


def test_the_body_comes_from_the_run_directory_and_what_is_given_goes_before(tmp_path: pathlib.Path) -> None:
    with pytest.raises(PlanError, match="no decision to sign off"):
        sign_off_body(str(tmp_path), "r1", {"decision": None})
    summary = {"applied": ["006"], "outcome": "succeeded", "actor": {"os_user": "deploy"}}
    (tmp_path / "run.json").write_text(json.dumps(summary), encoding="utf-8")
    (tmp_path / "gate.json").write_text('{"decision": "GO"}', encoding="utf-8")
    body = sign_off_body(str(tmp_path), "r1", {"decision": None, "applied": None, "actor": None})
    assert body == {"run_id": "r1", "decision": "GO", **summary}
    assert sign_off_body(str(tmp_path), "r1", {"decision": "NO-GO", "applied": []})["applied"] == []
    stages = {"go": {"decision": "GO"}, "sign_off": {"decision": "NO-GO"}}
    (tmp_path / "gate.json").write_text(json.dumps({"decision": "GO", "stages": stages}), encoding="utf-8")
    assert sign_off_body(str(tmp_path), "r1", {})["decision"] == "NO-GO"
    (tmp_path / "gate.json").write_text("{", encoding="utf-8")
    with pytest.raises(EnvironmentProblem, match=r"gate.json of .* cannot be read"):
        sign_off_body(str(tmp_path), "r1", {})

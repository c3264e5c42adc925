# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Messages and the sign-off against a real HTTP(S) server: what arrives, what is tried again, and what stays secret."""

from __future__ import annotations

import contextlib
import dataclasses
import http.server
import json
import os
import pathlib
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import typing as t

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils import _webhook
from ansible_collections.surefoot.dbops.plugins.module_utils._chain import head, read_chain, verify
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import EnvironmentProblem, VerificationFailed
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import Evidence, record
from ansible_collections.surefoot.dbops.plugins.module_utils._webhook import (
    Address,
    Delivery,
    Message,
    Sent,
    notify,
    read_targets,
    sign_off,
)
from ansible_collections.surefoot.dbops.tests.support.migrations import ModuleProcess, environment

SECRET = "T0pSecretWebhookPath"
TOKEN = "s3cr3t-bearer-token.of~sign+off"
QUICK = Delivery(timeout=5, attempts=3, first_delay=0.01)


@dataclasses.dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: t.Any


class Service:
    """A server that answers POST with the statuses given, one a call, the last one for all that follow.

    A status may be a function that takes the handler and answers by itself.
    """

    def __init__(self, *statuses: t.Any, context: ssl.SSLContext | None = None) -> None:
        self.statuses = list(statuses) or [200]
        self.requests: list[Request] = []
        service = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                service.requests.append(Request("POST", self.path, headers, json.loads(body)))
                status = service.statuses.pop(0) if len(service.statuses) > 1 else service.statuses[0]
                if callable(status):
                    status(self)
                    return
                self.send_response(status)
                if 300 <= status < 400:
                    self.send_header("Location", f"http://127.0.0.1:{service.port}/elsewhere/{SECRET}")
                self.end_headers()
                # A service that repeats what it was sent must not bring it into our messages.
                self.wfile.write(self.path.encode() + str(self.headers.get("Authorization")).encode())

            def do_CONNECT(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                service.requests.append(Request("CONNECT", self.path, headers, None))
                self.send_error(403)

            def log_message(self, *_arguments: t.Any) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            def handle_error(self, *_arguments: t.Any) -> None:
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        if context is not None:
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def url(self, scheme: str = "http", host: str = "127.0.0.1") -> str:
        return f"{scheme}://{host}:{self.port}/hook/{SECRET}"

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_exc: t.Any) -> None:
        self.server.shutdown()
        self.server.server_close()


def drop(handler: http.server.BaseHTTPRequestHandler) -> None:
    """Close the connection without an answer."""
    handler.connection.shutdown(socket.SHUT_RDWR)


def drip(stop: threading.Event) -> t.Callable[[http.server.BaseHTTPRequestHandler], None]:
    """A byte of an endless header now and then: no read ever times out."""

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        with contextlib.suppress(OSError):
            handler.connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while not stop.wait(0.1):
                handler.connection.sendall(b"x")

    return answer


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def run_dir(tmp_path: pathlib.Path) -> pathlib.Path:
    """A finished run."""
    directory = tmp_path / "r1"
    (directory / "messages").mkdir(parents=True)
    (directory / "messages" / "pre.md").write_text("# Migration 006\n", encoding="utf-8")
    summary = {"run_id": "r1", "applied": ["006"], "outcome": "succeeded", "actor": {"os_user": "deploy"}}
    (directory / "run.json").write_text(json.dumps(summary), encoding="utf-8")
    (directory / "gate.json").write_text('{"decision": "GO"}', encoding="utf-8")
    record(str(directory), [Evidence("gate.decision", "gate", "pass", "GO", "GO", "policy")])
    return directory


def send(
    service: Service | str,
    run_dir: pathlib.Path | None,
    *,
    text: str = "hello",
    delivery: Delivery = QUICK,
    **options: t.Any,
) -> Sent:
    url = service if isinstance(service, str) else service.url()
    targets = read_targets([{"url": url, "kind": "json", "name": "dba", **options.pop("target", {})}], allow_http=False)
    values: dict[str, t.Any] = {"run_id": "r1", "required": False, **options}
    return notify(targets, [Message("pre", text)], delivery, run_dir=str(run_dir) if run_dir else None, **values)


def records(run_dir: pathlib.Path, criterion: str) -> list[t.Mapping[str, t.Any]]:
    return [item for item in read_chain(str(run_dir)).records if item and item["criterion"] == criterion]


def everything_in(run_dir: pathlib.Path) -> str:
    return "".join(path.read_text(encoding="utf-8") for path in run_dir.rglob("*") if path.is_file())


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


# --- notify: what arrives


def test_a_message_arrives_with_its_headers_and_is_recorded_by_host_only(run_dir: pathlib.Path) -> None:
    with Service(204) as service:
        sent = send(service, run_dir, target={"headers": {"X-Key": TOKEN}})
    (request,) = service.requests
    assert request.path == f"/hook/{SECRET}"
    assert request.headers["x-key"] == TOKEN
    assert request.headers["content-type"] == "application/json; charset=utf-8"
    assert request.body["text"] == "hello" and request.body["run_id"] == "r1"
    (evidence,) = records(run_dir, "notify.sent")
    assert (evidence["verdict"], evidence["measured"]["host"], evidence["measured"]["status"]) == (
        "pass",
        "127.0.0.1",
        204,
    )
    assert evidence["details"]["key"] == request.headers["idempotency-key"]
    assert sent.changed and sent.entries[0]["outcome"] == "sent" and sent.warnings == []
    assert SECRET not in everything_in(run_dir) + repr(sent) and TOKEN not in everything_in(run_dir) + repr(sent)


def test_a_message_is_sent_once_a_run_and_target_and_again_when_it_changed(run_dir: pathlib.Path) -> None:
    with Service() as service:
        assert send(service, run_dir).changed
        again = send(service, run_dir)
        assert (again.changed, again.entries[0]["outcome"], again.evidence) == (False, "sent before", [])
        assert len(service.requests) == 1
        assert send(service, run_dir, text="hello again").changed
        assert send(service, run_dir, run_id="r2").changed
        assert send(service, run_dir, target={"name": "ciso"}).changed
    keys = [request.headers["idempotency-key"] for request in service.requests]
    assert len(keys) == 4 and len(set(keys)) == 4


def test_what_was_refused_is_sent_by_the_next_task(run_dir: pathlib.Path) -> None:
    with Service(404, 200) as service:
        assert not send(service, run_dir).changed
        assert send(service, run_dir).changed
    assert [item["verdict"] for item in records(run_dir, "notify.sent")] == ["fail", "pass"]


def test_check_mode_calls_nobody_and_writes_nothing(run_dir: pathlib.Path) -> None:
    before = head(str(run_dir))
    with Service() as service:
        sent = send(service, run_dir, check_mode=True)
        assert (sent.changed, sent.entries[0]["outcome"]) == (True, "would be sent")
    assert service.requests == [] and head(str(run_dir)) == before


def test_without_a_run_directory_a_message_is_sent_each_time() -> None:
    with Service() as service:
        send(service, None)
        send(service, None)
    assert len(service.requests) == 2


# --- notify: what goes wrong


def test_server_errors_and_lost_connections_are_tried_again_with_the_same_key(run_dir: pathlib.Path) -> None:
    with Service(503, drop, 200) as service:
        sent = send(service, run_dir)
    assert sent.entries[0]["outcome"] == "sent" and sent.entries[0]["attempts"] == 3
    assert len({request.headers["idempotency-key"] for request in service.requests}) == 1


@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 401, 403, 404, 429])
def test_redirects_and_refusals_are_neither_followed_nor_tried_again(run_dir: pathlib.Path, status: int) -> None:
    with Service(status) as service:
        sent = send(service, run_dir)
    assert [request.path for request in service.requests] == [f"/hook/{SECRET}"]
    (warning,) = sent.warnings
    assert f"the message pre did not reach dba: 127.0.0.1 answered {status} " in warning
    assert ("redirects are not followed" in warning) == (status < 400)
    assert SECRET not in warning + everything_in(run_dir)


def test_attempts_end_and_the_delays_grow(run_dir: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    delays: list[float] = []
    monkeypatch.setattr(_webhook.time, "sleep", delays.append)
    monkeypatch.setattr(_webhook.random, "uniform", lambda _low, high: high)
    with Service(500) as service:
        sent = send(service, run_dir, delivery=Delivery(timeout=5, attempts=7))
    assert len(service.requests) == 7
    assert delays == [0.5, 1, 2, 4, 8, 10]
    assert "answered 500 Internal Server Error" in sent.warnings[0]


@pytest.mark.parametrize("kind", ["silent", "dripping"])
def test_a_service_that_does_not_answer_is_given_up(run_dir: pathlib.Path, kind: str) -> None:
    stop = threading.Event()
    answer = drip(stop) if kind == "dripping" else lambda _handler: stop.wait(30)
    with Service(answer) as service:
        try:
            sent = send(service, run_dir, delivery=Delivery(timeout=0.5, attempts=2, first_delay=0.01))
        finally:
            stop.set()
    assert "127.0.0.1 did not answer within 0.5 s" in sent.warnings[0]
    assert len(service.requests) == 2


def test_a_service_that_is_not_there_is_named_by_host(run_dir: pathlib.Path) -> None:
    sent = send(f"http://127.0.0.1:{closed_port()}/{SECRET}", run_dir)
    assert "127.0.0.1 cannot be reached: connection refused" in sent.warnings[0]
    assert sent.entries[0]["attempts"] == QUICK.attempts
    (evidence,) = records(run_dir, "notify.sent")
    assert (evidence["verdict"], evidence["measured"]["status"]) == ("fail", None)


def test_required_fails_after_all_others_were_sent(run_dir: pathlib.Path) -> None:
    with Service(410) as gone, Service(200) as good:
        entries = [{"url": gone.url(), "name": "gone"}, {"url": good.url(), "name": "good"}]
        with pytest.raises(EnvironmentProblem, match="did not reach gone: .*The webhook was removed") as caught:
            notify(
                read_targets(entries, allow_http=False),
                [Message("pre", "hello")],
                QUICK,
                run_id="r1",
                run_dir=str(run_dir),
                required=True,
            )
    assert len(good.requests) == 1
    assert [entry["outcome"] for entry in caught.value.results["sent"]] == ["failed", "sent"]
    assert SECRET not in str(caught.value) + str(caught.value.to_dict())


# --- TLS and proxies


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Certificate of localhost (its own authority) and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("the program openssl is not installed")
    home = tmp_path_factory.mktemp("https")
    names = [str(home / "cert.pem"), str(home / "key.pem")]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
        + ["-addext", "subjectAltName=DNS:localhost", "-out", names[0], "-keyout", names[1]],
        check=True,
        capture_output=True,
    )
    return names[0], names[1]


def test_https_needs_a_certificate_that_fits(run_dir: pathlib.Path, certificate: tuple[str, str]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    trusting = dataclasses.replace(QUICK, ca_cert=certificate[0])
    with Service(context=context) as service:
        unknown = send(service.url("https", "localhost"), run_dir)
        wrong_name = send(service.url("https", "127.0.0.1"), run_dir, delivery=trusting)
        assert service.requests == []
        assert send(service.url("https", "localhost"), run_dir, delivery=trusting).changed
    for sent in (unknown, wrong_name):
        assert "shows a certificate that cannot be verified (see ca_cert)" in sent.warnings[0]
        assert sent.entries[0]["attempts"] == 1
    missing = dataclasses.replace(QUICK, ca_cert=certificate[0] + ".absent")
    assert "ca_cert is unusable" in send("https://localhost:1/x", run_dir, text="2", delivery=missing).warnings[0]


def test_a_timeout_over_tls_is_one_too(run_dir: pathlib.Path, certificate: tuple[str, str]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    stop = threading.Event()
    with Service(drip(stop), context=context) as service:
        delivery = Delivery(timeout=1, attempts=1, ca_cert=certificate[0])
        try:
            sent = send(service.url("https", "localhost"), run_dir, delivery=delivery)
        finally:
            stop.set()
    assert "did not answer within 1 s" in sent.warnings[0]


def test_a_proxy_of_the_environment_sees_the_host_but_no_path(
    run_dir: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Service() as proxy, Service() as service:
        monkeypatch.setenv("https_proxy", f"http://user:pass@127.0.0.1:{proxy.port}")
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        refused = send(f"https://hooks.example.com/{SECRET}", run_dir, delivery=Delivery(attempts=1))
        assert "hooks.example.com closed the connection" in refused.warnings[0]
        (request,) = proxy.requests
        assert (request.method, request.path) == ("CONNECT", "hooks.example.com:443")
        assert request.headers["proxy-authorization"] == "Basic dXNlcjpwYXNz"
        assert "pass" not in refused.warnings[0]
        assert send(service, run_dir).changed and proxy.requests[1].path == service.url()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert send(service, run_dir, text="direct").changed
    assert [item.body["text"] for item in service.requests] == ["direct"]


# --- the sign-off


def post(service: Service | str, run_dir: pathlib.Path, **options: t.Any) -> dict[str, t.Any]:
    url = service if isinstance(service, str) else service.url()
    address = Address.parse(url, what="url")
    delivery = dataclasses.replace(QUICK, retry_lost=False)
    values: dict[str, t.Any] = {"run_id": "r1", "given": {}, **options}
    return sign_off(address, TOKEN, delivery, run_dir=str(run_dir), **values)


def test_the_completion_is_posted_once_with_token_key_and_head(run_dir: pathlib.Path) -> None:
    with Service(201) as service:
        results = post(service, run_dir)
        again = post(service, run_dir)
    (request,) = service.requests
    assert request.headers["authorization"] == f"Bearer {TOKEN}"
    assert request.headers["idempotency-key"] == "r1"
    assert request.body == {
        "run_id": "r1",
        "decision": "GO",
        "outcome": "succeeded",
        "applied": ["006"],
        "actor": {"os_user": "deploy"},
        "evidence_head": results["head"],
    }
    assert (results["outcome"], results["status"], again["outcome"], again["changed"]) == (
        "posted",
        201,
        "posted before",
        False,
    )
    assert [item["verdict"] for item in records(run_dir, "sign_off.posted")] == ["pass"]
    # The head that was sent vouches for the sealed files and all evidence before the call.
    proof = verify(str(run_dir), "r1", None, ledger_schema="surefoot", expected_head=request.body["evidence_head"])
    assert (proof.status, proof.examination.sealed) == ("intact", 3)
    assert TOKEN not in everything_in(run_dir) + str(results)


def test_the_sign_off_is_tried_again_after_server_errors_only(run_dir: pathlib.Path) -> None:
    with Service(500, 502, 200) as service:
        assert post(service, run_dir)["attempts"] == 3
    assert len({json.dumps(request.body, sort_keys=True) for request in service.requests}) == 1


@pytest.mark.parametrize("answer", [302, 308, 400, 401, 429, drop])
def test_the_sign_off_is_not_repeated_otherwise(run_dir: pathlib.Path, answer: t.Any) -> None:
    with Service(answer) as service:
        with pytest.raises(EnvironmentProblem) as caught:
            post(service, run_dir)
        assert len(service.requests) == 1
    message = str(caught.value)
    assert message.startswith("the sign-off was not accepted: 127.0.0.1 ")
    assert ("the idempotency key makes a second call safe" in message) == (answer is drop)
    assert TOKEN not in message + everything_in(run_dir) and SECRET not in message + everything_in(run_dir)
    assert caught.value.results["outcome"] == "failed"
    with Service(200) as service:
        assert post(service, run_dir)["outcome"] == "posted"


def test_broken_evidence_is_not_signed_off(run_dir: pathlib.Path) -> None:
    record(str(run_dir), [Evidence("gate.window", "gate", "pass", 1, 1, "clock")])
    path = run_dir / "evidence.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"GO"', b'"NO"', 1))
    with Service() as service, pytest.raises(VerificationFailed, match="line 1 was changed.*Do not sign it off"):
        post(service, run_dir)
    assert service.requests == []


# --- as tasks


def module(name: str, check: bool = False, **params: t.Any) -> tuple[dict[str, t.Any], str]:
    outcome = ModuleProcess(params, module=name, check=check).wait()
    return outcome.result, outcome.stdout + outcome.stderr


def test_the_modules_show_no_secret_in_any_result(run_dir: pathlib.Path) -> None:
    with Service(200, 401, 200, 500) as service:
        target = {"url": service.url(), "headers": {"Authorization": f"Bearer {TOKEN}"}, "name": "dba"}
        sent, one = module("notify", targets=[target], messages=["pre.md"], run_dir=str(run_dir))
        refused, two = module("notify", targets=[target], text="x", run_dir=str(run_dir), required=True)
        posted, three = module("sign_off", url=service.url(), token=TOKEN, run_dir=str(run_dir))
        os.rename(run_dir / "evidence.jsonl", run_dir / "elsewhere")
        failed, four = module("sign_off", url=service.url(), token=TOKEN, run_dir=str(run_dir), attempts=1)
    assert (sent["changed"], sent["sent"][0]["outcome"], sent["sent"][0]["message"]) == (True, "sent", "pre")
    assert refused["failed"] and "answered 401 Unauthorized" in refused["msg"]
    assert (posted["changed"], posted["outcome"], posted["run_id"]) == (True, "posted", "r1")
    assert failed["failed"] and "answered 500" in failed["msg"]
    assert SECRET not in one + two + three + four and TOKEN not in one + two + three + four


def test_a_token_that_was_not_filled_in_fails_the_task_before_any_call(run_dir: pathlib.Path) -> None:
    with Service() as service:
        for token in ("", "{{ token }}", "$TOKEN"):
            result, _output = module("sign_off", url=service.url(), token=token, run_dir=str(run_dir))
            assert result["failed"] and result["error"]["code"] == "plan", result
        result, _output = module("sign_off", url=service.url(), token=TOKEN, run_dir=str(run_dir), check=True)
        assert (result["outcome"], result["changed"]) == ("would be posted", True)
    assert service.requests == []


PLAY = """
- hosts: localhost
  connection: local
  gather_facts: false
  vars:
    ansible_python_interpreter: "{{ ansible_playbook_python }}"
  tasks:
    - surefoot.dbops.notify:
        targets:
          - url: "{{ lookup('ansible.builtin.env', 'HOOK') }}"
            headers: {Authorization: "Bearer {{ lookup('ansible.builtin.env', 'TOKEN') }}"}
        messages: [pre.md]
        run_dir: "{{ lookup('ansible.builtin.env', 'RUN') }}"
    - surefoot.dbops.sign_off:
        url: "{{ lookup('ansible.builtin.env', 'HOOK') }}"
        token: "{{ lookup('ansible.builtin.env', 'TOKEN') }}"
        run_dir: "{{ lookup('ansible.builtin.env', 'RUN') }}"
"""


def test_a_playbook_at_vvv_shows_neither_address_nor_token(run_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "play.yml").write_text(PLAY, encoding="utf-8")
    ansible = str(pathlib.Path(sys.executable).with_name("ansible-playbook"))
    with Service() as service:
        done = subprocess.run(
            [ansible, "-i", "localhost,", "-vvv", "play.yml"],
            cwd=tmp_path,
            env=environment(HOOK=service.url(), TOKEN=TOKEN, RUN=str(run_dir)),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [request.headers["authorization"] for request in service.requests] == [f"Bearer {TOKEN}"] * 2
    assert "outcome: posted" in done.stdout and "AnsiballZ" not in done.stdout
    shown = done.stdout + done.stderr + everything_in(run_dir)
    assert SECRET not in shown and TOKEN not in shown

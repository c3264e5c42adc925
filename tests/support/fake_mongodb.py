# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A FAKE of a MongoDB server: it speaks just enough of the wire protocol for a driver to find it, log in or be refused,
and ping.

What it answers: ``hello`` and its older names as a standalone server (or as a secondary without a primary), ``ping``,
``buildInfo``, ``endSessions``; ``saslStart`` is refused with code 18, as a wrong password is, so that a URL with
credentials always fails and one without always succeeds.

What it leaves untested: a login that succeeds, SCRAM itself, replica sets and their discovery, ``mongodb+srv``,
compression, and whatever else a real server does. No real MongoDB server was run.
"""

from __future__ import annotations

import contextlib
import socketserver
import struct
import threading
import typing as t

import bson

_OP_REPLY, _OP_QUERY, _OP_MSG = 1, 2004, 2013


class _Handler(socketserver.BaseRequestHandler):
    server: FakeMongoDB

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                head = self._read(16)
                if head is None:
                    return
                length, request, _response, opcode = struct.unpack("<iiii", head)
                body = self._read(length - 16)
                if body is None:
                    return
                if opcode == _OP_MSG:
                    # Flags, then a section of kind 0 with the command.
                    answer = bson.encode(self.server.answer(bson.decode(_first_document(body[5:]))))
                    reply, code = struct.pack("<iB", 0, 0) + answer, _OP_MSG
                elif opcode == _OP_QUERY:
                    # Flags, name of the collection, two numbers, then the command.
                    document = body[body.index(b"\x00", 4) + 9 :]
                    answer = bson.encode(self.server.answer(bson.decode(_first_document(document))))
                    reply, code = struct.pack("<iqii", 8, 0, 0, 1) + answer, _OP_REPLY
                else:
                    return
                self.request.sendall(struct.pack("<iiii", 16 + len(reply), 0, request, code) + reply)

    def _read(self, size: int) -> bytes | None:
        data = b""
        while len(data) < size:
            piece = self.request.recv(size - len(data))
            if not piece:
                return None
            data += piece
        return data


def _first_document(data: bytes) -> bytes:
    (length,) = struct.unpack("<i", data[:4])
    return data[:length]


class FakeMongoDB(socketserver.ThreadingTCPServer):
    """Not a MongoDB server. ``commands`` are the names of what it was asked, in order."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, *, primary: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.primary = primary
        self.commands: list[str] = []

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def handle_error(self, *_args: t.Any) -> None:
        pass  # a driver that goes away in the middle

    def answer(self, command: dict[str, t.Any]) -> dict[str, t.Any]:
        name = next(iter(command))
        self.commands.append(name)
        if name.lower() in ("hello", "ismaster"):
            hello: dict[str, t.Any] = {
                "ok": 1,
                "helloOk": True,
                "isWritablePrimary": self.primary,
                "ismaster": self.primary,
                "minWireVersion": 0,
                "maxWireVersion": 21,
                "maxBsonObjectSize": 16 * 1024**2,
                "maxMessageSizeBytes": 48_000_000,
                "maxWriteBatchSize": 100_000,
                "readOnly": False,
            }
            if not self.primary:
                address = f"127.0.0.1:{self.port}"
                hello.update(secondary=True, setName="fake", hosts=[address], me=address)
            return hello
        if name in ("ping", "endSessions"):
            return {"ok": 1}
        if name == "buildInfo":
            return {"ok": 1, "version": "0.0.0-fake"}
        if name == "saslStart":
            return {"ok": 0, "code": 18, "codeName": "AuthenticationFailed", "errmsg": "Authentication failed."}
        return {"ok": 0, "code": 59, "codeName": "CommandNotFound", "errmsg": f"no such command: {name}"}


@contextlib.contextmanager
def fake_mongodb(*, primary: bool = True) -> t.Iterator[FakeMongoDB]:
    """A fake that lives as long as the block."""
    server = FakeMongoDB(primary=primary)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

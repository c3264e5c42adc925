# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real moto server process, and a shim in front of it.

The shim is a fake, as moto is one. It adds what moto lacks, as the documentation of AWS has it: pending maintenance
actions, modifications that wait, states that are passed through, windows that go over the end of the week or touch the
backup window, throttling, events, log files. What real AWS accepts, and in which words it refuses, it cannot show.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import datetime
import functools
import http.client
import http.server
import pathlib
import re
import socket
import subprocess
import sys
import threading
import time
import typing as t
import urllib.parse
import xml.etree.ElementTree as ET

REGION = "eu-central-1"
# Long ones: whatever contains a secret is masked in a task's output.
ACCESS_KEY, SECRET_KEY = "AKIASUREFOOTTESTKEY0", "s3cret/Of+A-Test/That+Is-Long-Enough0000"
ACCOUNT = "123456789012"
_XMLNS = "http://rds.amazonaws.com/doc/2014-10-31/"


@dataclasses.dataclass
class Making:
    """How a snapshot comes about: the percentages of successive looks, and what else they show."""

    percents: list[int] = dataclasses.field(default_factory=list)
    final: str = "available"
    facts: dict[str, str] = dataclasses.field(default_factory=dict)


class Shim(http.server.ThreadingHTTPServer):
    """What the tests set, and what they ask afterwards."""

    daemon_threads = True

    def __init__(self, moto: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.moto = urllib.parse.urlsplit(moto)
        self.reset()

    def reset(self) -> None:
        self.calls: list[tuple[str, dict[str, str]]] = []
        self.pending: dict[str, list[dict[str, str]]] = {}  # by instance
        self.pending_is_known = True  # False: moto's own answer, HTML with status 500
        self.modified: dict[str, dict[str, str]] = {}  # PendingModifiedValues
        self.facts: dict[str, dict[str, str]] = {}  # elements of an instance that are shown instead of moto's
        self.statuses: dict[str, list[str]] = {}  # of successive looks; the last one stays
        self.windows: dict[str, str] = {}
        self.lag = 0  # looks for which a new window does not show yet
        self.shown_later: dict[str, list[str]] = {}
        self.snapshots: dict[str, Making] = {}
        self.throttled: collections.Counter[str] = collections.Counter()
        self.refused: dict[str, tuple[int, str, str]] = {}  # action: status, code, text
        self.refusals: dict[str, list[tuple[int, str, str] | None]] = {}  # of successive calls; None answers
        self.events: list[dict[str, t.Any]] | None = None
        self.log_files: dict[str, pathlib.Path] = {}
        self.portion = 4096
        self.clock = datetime.timedelta(0)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def refusal(self, action: str) -> tuple[int, str, str] | None:
        """What the next call of this action is refused with."""
        following = self.refusals.get(action)
        return following.pop(0) if following else self.refused.get(action)

    def actions(self, *names: str) -> list[str]:
        """The calls there were, in order; those of these names, if any are given."""
        return [action for action, _arguments in self.calls if not names or action in names]

    def writes(self) -> list[tuple[str, dict[str, str]]]:
        """The calls that changed something."""
        reading = ("Describe", "List", "Download", "Get")
        return [(action, arguments) for action, arguments in self.calls if not action.startswith(reading)]

    def handle_error(self, *_args: t.Any) -> None:
        pass


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Shim
    protocol_version = "HTTP/1.1"

    def log_message(self, *_args: t.Any) -> None:
        pass

    def date_time_string(self, timestamp: float | None = None) -> str:
        moment = time.time() if timestamp is None else timestamp
        return super().date_time_string(moment + self.server.clock.total_seconds())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        arguments = dict(urllib.parse.parse_qsl(body.decode("utf-8", errors="replace"), keep_blank_values=True))
        action = arguments.pop("Action", "")
        arguments.pop("Version", None)
        if not action:  # CloudWatch speaks another protocol
            self.server.calls.append((self.path.rpartition("/")[2], {}))
            self._send(*self._forward(body))
            return
        self.server.calls.append((action, arguments))
        if self.server.throttled[action] > 0:
            self.server.throttled[action] -= 1
            self._error(400, "Throttling", "Rate exceeded")
        elif refusal := self.server.refusal(action):
            self._error(*refusal)
        else:
            behaviour = getattr(self, "on_" + action, None)
            if behaviour is None:
                self._send(*self._forward(body))
            else:
                behaviour(arguments, body)

    # --- actions

    def on_DescribePendingMaintenanceActions(self, arguments: dict[str, str], body: bytes) -> None:
        if not self.server.pending_is_known:
            self._send(*self._forward(body))
            return
        name = arguments["ResourceIdentifier"].rpartition(":")[2]
        actions = "".join(
            "<PendingMaintenanceAction>" + _elements(item) + "</PendingMaintenanceAction>"
            for item in self.server.pending.get(name, ())
        )
        found = (
            f"<ResourcePendingMaintenanceActions><ResourceIdentifier>{arguments['ResourceIdentifier']}"
            f"</ResourceIdentifier><PendingMaintenanceActionDetails>{actions}</PendingMaintenanceActionDetails>"
            "</ResourcePendingMaintenanceActions>"
        )
        self._answer(
            "DescribePendingMaintenanceActions",
            f"<PendingMaintenanceActions>{found if actions else ''}</PendingMaintenanceActions>",
        )

    def on_DescribeDBInstances(self, arguments: dict[str, str], body: bytes) -> None:
        status, headers, answer = self._forward(body)
        if status == 200:
            root = ET.fromstring(answer)
            for node in _found(root, "DBInstance"):
                self._show_instance(node)
            answer = ET.tostring(root)
        self._send(status, headers, answer)

    def _show_instance(self, node: ET.Element) -> None:
        name = _text(node, "DBInstanceIdentifier")
        shim = self.server
        queue = shim.shown_later.get(name)
        if queue:
            _set(node, "PreferredMaintenanceWindow", queue.pop(0))
        elif name in shim.windows:
            _set(node, "PreferredMaintenanceWindow", shim.windows[name])
        if shim.statuses.get(name):
            states = shim.statuses[name]
            _set(node, "DBInstanceStatus", states.pop(0) if len(states) > 1 else states[0])
        for element, value in shim.facts.get(name, {}).items():
            _set(node, element, value)
        if shim.modified.get(name):
            for old in _found(node, "PendingModifiedValues"):
                node.remove(old)
            text = f"<PendingModifiedValues>{_elements(shim.modified[name])}</PendingModifiedValues>"
            node.append(ET.fromstring(text))

    def on_ModifyDBInstance(self, arguments: dict[str, str], body: bytes) -> None:
        window = arguments.get("PreferredMaintenanceWindow")
        if window is not None:
            # moto refuses windows that are legal; ours is kept here.
            name = arguments["DBInstanceIdentifier"]
            shim = self.server
            before = shim.windows.get(name)
            if before is None:
                before = self._moto_window(name)
            shim.shown_later[name] = [before] * shim.lag
            shim.windows[name] = window.lower()
            fields = urllib.parse.parse_qsl(body.decode("utf-8"), keep_blank_values=True)
            body = urllib.parse.urlencode([pair for pair in fields if pair[0] != "PreferredMaintenanceWindow"]).encode()
        self._send(*self._forward(body))

    def _moto_window(self, name: str) -> str:
        form = {"Action": "DescribeDBInstances", "Version": "2014-10-31", "DBInstanceIdentifier": name}
        _status, _headers, answer = self._forward(urllib.parse.urlencode(form).encode())
        return _text(_found(ET.fromstring(answer), "DBInstance")[0], "PreferredMaintenanceWindow")

    def on_DescribeDBSnapshots(self, arguments: dict[str, str], body: bytes) -> None:
        status, headers, answer = self._forward(body)
        if status == 200:
            root = ET.fromstring(answer)
            for node in _found(root, "DBSnapshot"):
                making = self.server.snapshots.get(_text(node, "DBSnapshotIdentifier"))
                if making is not None:
                    self._show_snapshot(node, making)
            answer = ET.tostring(root)
        self._send(status, headers, answer)

    on_CreateDBSnapshot = on_DescribeDBSnapshots

    def _show_snapshot(self, node: ET.Element, making: Making) -> None:
        for element, value in making.facts.items():
            _set(node, element, value)
        if making.percents:
            percent = making.percents.pop(0)
            # The last one stays when it is not 100: a snapshot that never finishes.
            if not making.percents and percent < 100:
                making.percents.append(percent)
            if percent < 100:
                _set(node, "Status", "creating")
                _set(node, "PercentProgress", str(percent))
                return
        _set(node, "Status", making.final)
        _set(node, "PercentProgress", "100")

    def on_DescribeEvents(self, arguments: dict[str, str], body: bytes) -> None:
        if self.server.events is None:
            self._send(*self._forward(body))
            return
        start = int(arguments.get("Marker", "0"))
        page = self.server.events[start : start + 2]  # two a page, so that paging is needed
        shown = "".join(
            "<Event>"
            + _elements({"SourceIdentifier": arguments["SourceIdentifier"], "SourceType": "db-instance"})
            + f"<Message>{item['message']}</Message><Date>{item['time']}</Date><EventCategories>"
            + "".join(f"<EventCategory>{name}</EventCategory>" for name in item["categories"])
            + "</EventCategories></Event>"
            for item in page
        )
        more = start + 2 < len(self.server.events)
        self._answer("DescribeEvents", f"<Events>{shown}</Events>" + (f"<Marker>{start + 2}</Marker>" if more else ""))

    def on_DescribeDBLogFiles(self, arguments: dict[str, str], _body: bytes) -> None:
        since = int(arguments.get("FileLastWritten", "0"))
        shown = ""
        for name, path in self.server.log_files.items():
            found = path.stat()
            if found.st_mtime * 1000 >= since:
                shown += (
                    f"<DescribeDBLogFilesDetails><LogFileName>{name}</LogFileName>"
                    f"<LastWritten>{int(found.st_mtime * 1000)}</LastWritten><Size>{found.st_size}</Size>"
                    "</DescribeDBLogFilesDetails>"
                )
        self._answer("DescribeDBLogFiles", f"<DescribeDBLogFiles>{shown}</DescribeDBLogFiles>")

    def on_DownloadDBLogFilePortion(self, arguments: dict[str, str], _body: bytes) -> None:
        data = self.server.log_files[arguments["LogFileName"]].read_bytes()
        start = int(arguments.get("Marker", "0").rpartition(":")[2])
        end = min(len(data), start + self.server.portion)
        # Whole characters; lines may be cut in two.
        while start < end < len(data) and data[end] & 0xC0 == 0x80:
            end += 1
        text = data[start:end].decode("utf-8").replace("&", "&amp;").replace("<", "&lt;")
        pending = "true" if end < len(data) else "false"
        self._answer(
            "DownloadDBLogFilePortion",
            f"<LogFileData>{text}</LogFileData><Marker>1:{end}</Marker>"
            f"<AdditionalDataPending>{pending}</AdditionalDataPending>",
        )

    # --- answers

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        moto = self.server.moto
        connection = http.client.HTTPConnection(moto.hostname or "", moto.port, timeout=30)
        skipped = ("content-length", "host", "connection", "transfer-encoding")
        headers = {name: value for name, value in self.headers.items() if name.lower() not in skipped}
        try:
            connection.request("POST", self.path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
            return answer.status, dict(answer.getheaders()), content
        finally:
            connection.close()

    def _send(self, status: int, headers: t.Mapping[str, str], content: bytes) -> None:
        self.send_response(status)
        skipped = ("content-length", "connection", "transfer-encoding", "date", "server")
        for name, value in headers.items():
            if name.lower() not in skipped:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _answer(self, action: str, inner: str) -> None:
        text = (
            f'<{action}Response xmlns="{_XMLNS}"><{action}Result>{inner}</{action}Result>'
            f"<ResponseMetadata><RequestId>0</RequestId></ResponseMetadata></{action}Response>"
        )
        self._send(200, {"Content-Type": "text/xml"}, text.encode("utf-8"))

    def _error(self, status: int, code: str, text: str) -> None:
        content = (
            f'<ErrorResponse xmlns="{_XMLNS}"><Error><Type>Sender</Type><Code>{code}</Code>'
            f"<Message>{text}</Message></Error><RequestId>0</RequestId></ErrorResponse>"
        )
        self._send(status, {"Content-Type": "text/xml"}, content.encode("utf-8"))


def _found(root: ET.Element, name: str) -> list[ET.Element]:
    return [node for node in root.iter() if node.tag.rpartition("}")[2] == name]


def _text(node: ET.Element, name: str) -> str:
    return next((child.text or "" for child in node if child.tag.rpartition("}")[2] == name), "")


def _set(node: ET.Element, name: str, value: str) -> None:
    for child in node:
        if child.tag.rpartition("}")[2] == name:
            child.text = value
            return
    ET.SubElement(node, name).text = value


def _elements(values: t.Mapping[str, str]) -> str:
    return "".join(f"<{name}>{value}</{name}>" for name, value in values.items())


# --- running ----------------------------------------------------------------------------------------------------------


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def moto_server() -> t.Iterator[str]:
    """A moto server in a process of its own; its URL."""
    for _attempt in range(5):  # another process may take the port between our look and its start
        port = _free_port()
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            if _answers(process, port):
                # Whatever it prints is read, so that it never waits for a reader.
                reader = threading.Thread(target=_drain, args=(process.stdout,), daemon=True)
                reader.start()
                yield f"http://127.0.0.1:{port}"
                return
        finally:
            process.terminate()
            process.wait(30)
            if process.stdout is not None:
                process.stdout.close()
    raise RuntimeError("the moto server does not start")


def _drain(stream: t.IO[bytes] | None) -> None:
    with contextlib.suppress(ValueError, OSError):
        while stream is not None and stream.read(65536):
            pass


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/moto-api/data.json")
            if connection.getresponse().status == 200 and process.poll() is None:
                return True
        except OSError:
            time.sleep(0.1)
        finally:
            connection.close()
    return False


@contextlib.contextmanager
def running_shim(moto: str) -> t.Iterator[Shim]:
    """The shim in front of a moto server."""
    shim = Shim(moto)
    thread = threading.Thread(target=shim.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield shim
    finally:
        shim.shutdown()
        shim.server_close()
        thread.join()


@functools.cache
def client(url: str, service: str = "rds") -> t.Any:
    """A boto3 client for what the tests set up and look at themselves."""
    import boto3

    return boto3.client(
        service,
        endpoint_url=url,
        region_name=REGION,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
    )


def reset_moto(url: str) -> None:
    """Forget everything that was made."""
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    with contextlib.closing(connection):
        connection.request("POST", "/moto-api/reset")
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise RuntimeError(f"moto cannot be reset: {answer.status}")


def make_instance(url: str, name: str = "platform-prod", **more: t.Any) -> dict[str, t.Any]:
    """A Multi-AZ instance with encrypted storage, in a subnet group."""
    ec2, rds = client(url, "ec2"), client(url)
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    subnets = [
        ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.0.{number}.0/24", AvailabilityZone=f"{REGION}{zone}")["Subnet"]
        for number, zone in enumerate("ab")
    ]
    group = re.sub(r"[^a-z-]", "", name) + "-group"
    with contextlib.suppress(rds.exceptions.DBSubnetGroupAlreadyExistsFault):
        rds.create_db_subnet_group(
            DBSubnetGroupName=group,
            DBSubnetGroupDescription="of the tests",
            SubnetIds=[subnet["SubnetId"] for subnet in subnets],
        )
    arguments: dict[str, t.Any] = {
        "DBInstanceIdentifier": name,
        "Engine": "postgres",
        "EngineVersion": "15.8",
        "DBInstanceClass": "db.m7g.large",
        "AllocatedStorage": 100,
        "MasterUsername": "postgres",
        "MasterUserPassword": "a-password-of-the-tests",
        "DBSubnetGroupName": group,
        "StorageEncrypted": True,
        "MultiAZ": True,
        "AutoMinorVersionUpgrade": True,
        "PreferredMaintenanceWindow": "sun:08:00-sun:09:00",
        "PreferredBackupWindow": "03:00-03:30",
        "BackupRetentionPeriod": 7,
        "Tags": [{"Key": "owner", "Value": "platform"}],
        **more,
    }
    return dict(rds.create_db_instance(**arguments)["DBInstance"])

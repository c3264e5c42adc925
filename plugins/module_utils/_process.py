# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""Noticing that the work must stop: a signal, or the death of the playbook that asked for it.

A module sits under a shell, a worker process and ansible-playbook. Killing any of them leaves the module running:
libpq does not return from a query because somebody upstream died. So the main thread watches while a second thread
works.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import types
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._errors import Interrupted

_POLL_SECONDS = 0.1
_LAST_ATTEMPTS = 300
_MAX_ANCESTORS = 8
# The names under which the controlling programs run; the chain of ancestors is watched up to the last of them.
_CONTROLLERS = (b"ansible", b"molecule", b"receptor")

T = t.TypeVar("T")


def _stat(pid: int) -> tuple[int, int] | None:
    """(parent pid, start time in clock ticks) from /proc; None without /proc or when the process is gone or a
    zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:
            # The command name is in parentheses and may contain anything; the fields begin after the last one.
            fields = stream.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else (int(fields[1]), int(fields[19]))


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot, which tells it from a later one of the same pid; None without
    /proc, or when it is gone."""
    entry = _stat(pid)
    return entry[1] if entry else None


def lives(pid: int, started: int | None) -> bool:
    """Whether the process of this pid and start time is there; without a start time, whether the pid is."""
    if started is not None:
        return start_time(pid) == started
    try:  # a machine without /proc
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def is_ancestor(pid: int, started: int | None) -> bool:
    """Whether it is this process, or one that this one descends from."""
    current = os.getpid()
    for _step in range(_MAX_ANCESTORS):
        entry = _stat(current)
        if entry is None:  # a machine without /proc
            return pid in (os.getpid(), os.getppid())
        if current == pid:
            return entry[1] == started
        current = entry[0]
    return False


def _is_controller(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as stream:
            words = stream.read().split(b"\0")
    except OSError:
        return False
    # Not anywhere in it: the login of a user named ansible (sshd: ansible@pts/0) ends, and nohup outlives it.
    if b"python" in os.path.basename(words[0]):
        words = [word for word in words[1:] if not word.startswith(b"-")]
    return bool(words) and os.path.basename(words[0]).startswith(_CONTROLLERS)


class AncestorWatch:
    """The chain of processes up to the playbook, remembered by pid and start time (a pid alone may be reused)."""

    def __init__(self) -> None:
        self._parent = os.getppid()
        self._chain: list[tuple[int, int]] = []
        chain: list[tuple[int, int]] = []
        pid = self._parent
        for _step in range(_MAX_ANCESTORS):
            entry = _stat(pid) if pid > 1 else None
            if entry is None:
                break
            chain.append((pid, entry[1]))
            if _is_controller(pid):
                self._chain = list(chain)
            pid = entry[0]

    def lost(self) -> str | None:
        """Why the work has no master any more; None while it has."""
        if os.getppid() != self._parent:
            return "the process that started this task is gone"
        for pid, started in self._chain:
            entry = _stat(pid)
            if entry is None or entry[1] != started:
                return f"ansible-playbook (or its worker, process {pid}) is gone"
        return None


@contextlib.contextmanager
def _signals_to(handler: t.Callable[[int, types.FrameType | None], None]) -> t.Iterator[None]:
    wanted = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # else the user said so, with nohup
        wanted.append(signal.SIGHUP)
    previous = {number: signal.signal(number, handler) for number in wanted}
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def run_interruptible(work: t.Callable[[], T], cancel: t.Callable[[str], None]) -> T:
    """Run ``work`` in a thread; call ``cancel(reason)``, again and again until the work ends, once the work must stop.

    The thread does blocking calls into libpq, which release the interpreter lock. ``cancel`` must be quick,
    thread-safe, and tolerate being called when there is nothing to cancel. Off the main thread, where no signal
    arrives, the work runs in place.

    :raises Interrupted: the work was told to stop and did not raise anything of its own
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    watch = AncestorWatch()
    reasons: list[str] = []
    outcome: list[T] = []
    failure: list[BaseException] = []
    done = threading.Event()

    def target() -> None:
        try:
            outcome.append(work())
        except BaseException as exc:  # handed to the main thread, whatever it is
            failure.append(exc)
        finally:
            done.set()

    def on_signal(number: int, _frame: types.FrameType | None) -> None:
        reasons.append(f"signal {signal.Signals(number).name} received")

    thread = threading.Thread(target=target, name="surefoot-work", daemon=True)
    with _signals_to(on_signal):
        thread.start()
        try:
            while not done.wait(_POLL_SECONDS):
                lost = None if reasons else watch.lost()
                if lost:
                    reasons.append(lost)
                if reasons:
                    cancel(reasons[0])
        except BaseException as exc:  # Ansible's own task timeout arrives as an exception in this thread
            for _attempt in range(_LAST_ATTEMPTS):
                cancel(f"{type(exc).__name__} in the controlling process")
                if done.wait(_POLL_SECONDS):
                    break
            raise
        thread.join()
    if failure:
        raise failure[0]
    if not outcome:
        raise Interrupted(reasons[0] if reasons else "the work ended without a result")
    return outcome[0]

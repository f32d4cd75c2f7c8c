"""Who stands between a job and its confined child, so that whatever the child starts ends with either of them.

    hubbot ── keeper ── child ── what it starts

Where the kernel lets it, the keeper is the first process of a PID namespace: when it ends, the kernel ends all others
in there, and none of them can see, let alone signal, a process outside. Elsewhere it is a subreaper: what loses its
parent becomes its own child, and it ends them one by one before it ends itself.

It reads nothing of a stranger's.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

import psutil

from hubbot.confine.kernel import LIBC, prctl

__all__ = ["KERNELS", "NAMESPACE", "SUBREAPER", "stand_between"]

NAMESPACE, SUBREAPER = "pid namespace", "subreaper"

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_NEWNS, _NEWUSER, _NEWPID = 0x00020000, 0x10000000, 0x20000000
_MS_REC_PRIVATE, _MS_NOSUID_NODEV_NOEXEC = 1 << 14 | 1 << 18, 2 | 4 | 8
_MS_BIND, _MS_REMOUNT_READ_ONLY = 1 << 12, 1 << 5 | 1

KERNELS = "sys sysrq-trigger irq bus fs".split()  # what root sets the kernel by, in /proc


def stand_between(parent: int, *, namespace: bool = True) -> str:
    """Go on as a child of a keeper, which ends with `parent`. Returns what it keeps with; the caller's process is the keeper.

    namespace: whether to try for one. Call it before any thread exists.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(1)
    if namespace and _in_namespace():
        return NAMESPACE
    _fork_worker(tidy=True)
    return SUBREAPER


def _in_namespace() -> bool:
    """True in the worker inside of one; False where none can be had. The process before never returns from a success."""
    told, tell = os.pipe()
    outside = os.getpid()
    door = os.fork()
    if door == 0:
        os.close(told)
        _open_namespace(outside, tell)
        _fork_worker(tidy=False)  # with the keeper, the kernel ends what is left
        return True
    os.close(tell)
    opened = os.read(told, 1)
    os.close(told)
    if opened:
        _keep(door, tidy=True)
    os.waitpid(door, 0)
    return False


def _open_namespace(outside: int, tell: int) -> None:
    """Return as the first process of a namespace with a /proc of its own, said with a byte; else end."""
    _heed_signals()
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != outside or not _unshare():
        os._exit(1)
    first = os.fork()
    if first:
        os.close(tell)
        _keep(first, tidy=False)
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    alone = LIBC.mount(None, b"/", None, _MS_REC_PRIVATE, None) == 0
    if not alone or LIBC.mount(b"proc", b"/proc", b"proc", _MS_NOSUID_NODEV_NOEXEC, None) != 0:
        os._exit(1)
    for name in KERNELS:
        _make_read_only(b"/proc/" + name.encode())
    try:
        os.write(tell, b"1")
        os.close(tell)
    except OSError:  # nobody reads any more: whom this should end with has ended already
        os._exit(1)


def _make_read_only(path: bytes) -> None:
    """As containers have it, where the kernel lets it."""
    if LIBC.mount(path, path, None, _MS_BIND, None) == 0:
        LIBC.mount(None, path, None, _MS_BIND | _MS_REMOUNT_READ_ONLY | _MS_NOSUID_NODEV_NOEXEC, None)


def _unshare() -> bool:
    """Root's right, or anybody's in a user namespace of their own, where they stay who they are."""
    if LIBC.unshare(_NEWNS | _NEWPID) == 0:
        return True
    user, group = os.geteuid(), os.getegid()
    if user == 0 or LIBC.unshare(_NEWNS | _NEWPID | _NEWUSER) != 0:
        return False
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    except OSError:
        return False
    return True


def _fork_worker(*, tidy: bool) -> None:
    """Return in a child; this process keeps it."""
    worker = os.fork()
    if worker:
        _keep(worker, tidy=tidy)
    _heed_signals()


def _heed_signals() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _keep(child: int, *, tidy: bool) -> NoReturn:
    """Wait for the child's end, then end what it left, then end as it did: 128 and the number where a signal ended it."""
    ended = 0
    status = 0
    while ended != child:
        ended, status = os.waitpid(-1, 0)
    if tidy:
        _end_descendants()
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def _end(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 -- the signature is signal's
    _end_descendants()
    os._exit(128 + number)


def _end_descendants() -> None:
    """Until none is left: those of a process that is ended become this one's children."""
    while True:
        for child in psutil.Process().children():
            with suppress(psutil.NoSuchProcess):
                child.kill()
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return

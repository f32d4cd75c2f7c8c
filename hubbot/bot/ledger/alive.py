"""Which workers still live, told by the kernel and not by a clock.

A worker holds an exclusive lock on a file of its own, beside the state file, for as long as its process
lives. The kernel drops the lock when the process ends, however it ends. So a lost worker is known at
once, a slow one is never taken for dead, and no clock can jump in between. SQLite's WAL is confined to
one machine as well, so the lock reaches as far as the state file does.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hubbot.bot.ledger.store import spoken


def _folder(state: Path) -> Path:
    return state.with_name(state.name + ".workers")


@contextmanager
def worker(state: Path) -> Iterator[str]:
    """A name for this worker, alive until the block or the process ends."""
    name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    path = _folder(state) / name
    with spoken(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        yield name
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def lives(state: Path, name: str | None) -> bool:
    """Whether the worker's process still holds its lock; what a dead one left is cleared away."""
    if not name or "/" in name:  # a damaged row: no worker has such a name, and no other file is to be touched
        return False
    path = _folder(state) / name
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    with suppress(FileNotFoundError):
        path.unlink()
    return False

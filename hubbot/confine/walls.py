"""Walls that the Linux kernel puts around the process that reads strangers' files.

Everything here is one-way: once up, a wall cannot be taken down by the process or its children. Each
function says what it achieved; a kernel that lacks a mechanism is reported, never ignored in silence.

    files     Landlock (kernel 5.13+): reads and writes outside the listed folders are refused, and so
              is reading the memory or environment of a process outside the wall
    network   seccomp (kernel 3.17+): no socket but a local one can be made, and none be connected;
              Landlock (kernel 6.7+) refuses TCP on top of it. The same filter refuses what else
              `hubbot.confine.seccomp` lists
    rights    a process of root keeps the right to read and write its folders, and no other

Numbers and layouts come from the kernel's headers linux/{landlock,capability,prctl}.h.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hubbot.confine.kernel import LIBC, prctl
from hubbot.confine.seccomp import refuse_calls

__all__ = ["Walls", "hide_memory", "raise_walls"]

_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38


@dataclass(frozen=True, slots=True, kw_only=True)
class Walls:
    """What the kernel enforces around the child; a word for the mechanism, or `none`."""

    files: str
    network: str
    rights: str
    processes: str = "none"  # what its own children cannot outlive

    @property
    def complete(self) -> bool:
        return "none" not in (self.files, self.network)


def raise_walls(
    *, home: Path, writable: Iterable[Path], readable: Iterable[Path], listed: Iterable[Path] = ()
) -> Walls:
    """Confine this thread and all that it starts. Call it before any other thread exists.

    home: a folder to do anything in; writable: files and folders to read and write, though without
    making symbolic links, which another process might follow; readable: to read only; listed: whose
    names may be listed, as Python does where it looks for a package. Missing ones are left out.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if prctl(_PR_SET_NO_NEW_PRIVS, 1) != 0:
        return Walls(files="none", network="none", rights="none")
    rights = _drop_capabilities()
    files, tcp = _landlock(
        [
            (home, _ANYTHING),
            *((path, _WRITE) for path in writable),
            *((path, _READ) for path in readable),
            *((path, _READ_DIR) for path in listed),
        ]
    )
    network = " + ".join(name for name in (refuse_calls(), tcp) if name) or "none"
    return Walls(files=files or "none", network=network, rights=rights)


def hide_memory() -> None:
    """Close /proc/PID/{environ,mem} of this process to others of the same user (and to its children)."""
    prctl(_PR_SET_DUMPABLE, 0)


# --- Landlock ------------------------------------------------------------------------------------------

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same number on every architecture
_RULE_PATH_BENEATH = 1
_VERSION_FLAG = 1

_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_FILE = 1 << 4, 1 << 5, 1 << 7, 1 << 8
_MAKE_DEVICES, _MAKE_LINK = 1 << 6 | 1 << 9 | 1 << 10 | 1 << 11, 1 << 12  # with sockets and FIFOs: granted nowhere
_REFER, _TRUNCATE = 1 << 13, 1 << 14  # ABI 2, ABI 3
_TCP = 0b11  # bind, connect: ABI 4
_SCOPES = 0b11  # abstract unix sockets, signals: ABI 6

_READ = _READ_FILE | _READ_DIR
_WRITE = _READ | _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_FILE | _REFER | _TRUNCATE
_ANYTHING = _WRITE | _MAKE_LINK
_ON_FILES = _WRITE_FILE | _READ_FILE | _TRUNCATE  # what a rule for a plain file may grant


def _landlock(rules: Iterable[tuple[Path, int]]) -> tuple[str, str]:
    """Returns the words for files and TCP, empty where the kernel has no such wall."""
    abi = LIBC.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION_FLAG))
    if abi < 1:
        return "", ""
    known = (1 << 13) - 1 | (_REFER if abi >= 2 else 0) | (_TRUNCATE if abi >= 3 else 0)
    refused = (_ANYTHING | _MAKE_DEVICES) & known  # unless a rule grants it; EXECUTE is left alone
    attributes = struct.pack("=QQQ", refused, _TCP if abi >= 4 else 0, _SCOPES if abi >= 6 else 0)
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    ruleset = LIBC.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(size), ctypes.c_uint32(0))
    if ruleset < 0:
        return "", ""
    try:
        for path, rights in rules:
            _allow(ruleset, path, rights & known)
        if LIBC.syscall(_RESTRICT_SELF, ruleset, ctypes.c_uint32(0)) != 0:
            return "", ""
    finally:
        os.close(ruleset)
    return f"landlock {abi}", f"landlock {abi}" if abi >= 4 else ""


def _allow(ruleset: int, path: Path, rights: int) -> None:
    try:
        file = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # what does not exist or cannot be reached needs no rule
    try:
        granted = rights if path.is_dir() else rights & _ON_FILES
        rule = struct.pack("=Qi", granted, file)
        LIBC.syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, ctypes.c_uint32(0))
    finally:
        os.close(file)


# --- capabilities --------------------------------------------------------------------------------------

_CAPABILITY_VERSION = 0x20080522
_KEPT = 0b1011  # CHOWN, DAC_OVERRIDE, FOWNER: files of a volume may belong to another user


def _drop_capabilities() -> str:
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    now = ctypes.create_string_buffer(24)
    with suppress(struct.error):
        if LIBC.capget(header, now) != 0:
            return "none"
    effective, permitted, _, _, _, _ = struct.unpack("=6I", now.raw[:24])
    wanted = struct.pack("=6I", effective & _KEPT, permitted & _KEPT, 0, 0, 0, 0)
    return "files only" if LIBC.capset(header, wanted) == 0 else "none"

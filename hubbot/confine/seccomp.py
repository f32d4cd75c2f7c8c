"""The system calls that a confined process does without, as a filter that the kernel runs before each of them.

For what Landlock does not know of: it looks at opened files, not at their owners and modes, nor at other processes,
sockets and shared memory. The table says what is refused and with which error.

Numbers from the kernel's tables of system calls; layouts from linux/{seccomp,filter}.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from hubbot.confine.kernel import prctl

__all__ = ["refuse_calls"]

_PR_SET_SECCOMP = 22
_NOTHING = 0  # the call is left undone and answers well: who copies a file sets its mode and times and needs neither

_NEW_NAMESPACE = 0x7E020000  # CLONE_NEW*: NS, CGROUP, UTS, IPC, USER, PID, NET
_SETS_ID = 0o6000
_MAKES_FILE = os.O_CREAT | 0o20000000  # __O_TMPFILE
_DATAGRAM, _TYPE = socket.SOCK_DGRAM, 0xF
# TIOCSTI and TIOCLINUX type into a terminal; FS_IOC_SETFLAGS, SETVERSION, FSSETXATTR mark a file, as immutable say.
_IOCTLS = (0x5412, 0x541C, 0x40086602, 0x40087602, 0x401C5820)


@dataclass(frozen=True, slots=True)
class _Test:
    """One of the call's arguments, its low 32 bits: masked, compared."""

    argument: int
    operation: Literal["is", "is not", "has"]
    value: int
    mask: int = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class _Rule:
    """Calls that fail with an error where all tests hold."""

    calls: str
    error: int = errno.EPERM
    tests: tuple[_Test, ...] = ()


_RULES = (
    # the network: local sockets alone, which CUDA insists on, and no way to name whom to speak to
    _Rule("connect", errno.ECONNREFUSED),
    _Rule("io_uring_setup", errno.EACCES),  # makes sockets, too
    _Rule("socket", errno.EACCES, (_Test(0, "is not", socket.AF_UNIX),)),
    _Rule("socket socketpair", errno.EACCES, (_Test(1, "is", _DATAGRAM, _TYPE),)),
    # other processes of the same user
    _Rule("prlimit64 sched_setscheduler sched_setparam sched_setattr", tests=(_Test(0, "is not", 0),)),
    _Rule("setpriority", tests=(_Test(0, "is not", 0),)),  # PRIO_PROCESS
    _Rule("setpriority ioprio_set", tests=(_Test(1, "is not", 0),)),
    _Rule("ioprio_set", tests=(_Test(0, "is not", 1),)),  # IOPRIO_WHO_PROCESS
    _Rule("migrate_pages move_pages", tests=(_Test(0, "is not", 0),)),
    _Rule("ptrace process_vm_readv process_vm_writev pidfd_getfd process_madvise kcmp"),
    _Rule("add_key request_key keyctl bpf perf_event_open userfaultfd"),
    # what outlives the process
    _Rule("shmget shmat msgget semget mq_open"),
    # owners, modes, times and attributes of files, anywhere
    _Rule("chmod fchmod fchmodat fchmodat2 utime utimes futimesat utimensat", _NOTHING),
    _Rule("chown fchown lchown fchownat file_setattr"),
    _Rule("setxattr lsetxattr fsetxattr setxattrat removexattr lremovexattr fremovexattr removexattrat"),
    _Rule("creat", tests=(_Test(1, "has", _SETS_ID),)),
    _Rule("open", tests=(_Test(1, "has", _MAKES_FILE), _Test(2, "has", _SETS_ID))),
    _Rule("openat", tests=(_Test(2, "has", _MAKES_FILE), _Test(3, "has", _SETS_ID))),
    _Rule("mknod mknodat"),
    _Rule("openat2", errno.ENOSYS),  # its mode lies in memory, where no filter looks
    *(_Rule("ioctl", tests=(_Test(1, "is", number),)) for number in _IOCTLS),
    # namespaces, in which a process has every right
    _Rule("unshare setns"),
    _Rule("clone", tests=(_Test(0, "has", _NEW_NAMESPACE),)),
    _Rule("clone3", errno.ENOSYS),  # as openat2; the C library then takes clone
)

_X86_64, _AARCH64 = "x86_64", "aarch64"
_AUDIT = {_X86_64: 0xC000003E, _AARCH64: 0xC00000B7}
_NUMBERS: dict[str, tuple[int | None, int | None]] = {  # of x86-64, of aarch64, which never had some
    "socket": (41, 198),
    "socketpair": (53, 199),
    "connect": (42, 203),
    "io_uring_setup": (425, 425),
    "prlimit64": (302, 261),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440),
    "kcmp": (312, 272),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "file_setattr": (469, 469),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "removexattrat": (466, 466),
    "creat": (85, None),
    "open": (2, None),
    "openat": (257, 56),
    "openat2": (437, 437),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "ioctl": (16, 29),
    "unshare": (272, 97),
    "setns": (308, 268),
    "clone": (56, 220),
    "clone3": (435, 435),
}

_LOAD, _AND, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06  # BPF operations
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000  # SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO | errno
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data, where an argument has 8 bytes
_X32 = 0x40000000  # system calls of the x32 ABI carry this bit

_Step = tuple[int, int, int, int]  # operation, how many steps to jump over where it holds and where not, operand


def refuse_calls() -> str:
    """Put the filter up for this thread and all that it starts. Returns `seccomp`, empty where the kernel has none."""
    machine = platform.machine()
    if machine not in _AUDIT:
        return ""
    program = [*_entrance(_AUDIT[machine]), *(step for rule in _RULES for step in _steps(rule, machine))]
    program.append((_RETURN, 0, 0, _ALLOW))
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in program))
    header = struct.pack("@HP", len(program), ctypes.addressof(code))
    return "seccomp" if prctl(_PR_SET_SECCOMP, 2, ctypes.c_char_p(header)) == 0 else ""


def _entrance(architecture: int) -> Iterator[_Step]:
    """Programs of another architecture or ABI have other numbers: they may call nothing."""
    yield (_LOAD, 0, 0, _ARCHITECTURE)
    yield (_EQUAL, 1, 0, architecture)
    yield (_RETURN, 0, 0, _FAIL | errno.ENOSYS)
    yield (_LOAD, 0, 0, _NUMBER)
    yield (_AT_LEAST, 0, 1, _X32)
    yield (_RETURN, 0, 0, _FAIL | errno.ENOSYS)


def _steps(rule: _Rule, machine: str) -> list[_Step]:
    column = [_X86_64, _AARCH64].index(machine)
    numbers = [number for call in rule.calls.split() if (number := _NUMBERS[call][column]) is not None]
    if not numbers:
        return []
    body: list[_Step] = [(_RETURN, 0, 0, _FAIL | rule.error)]
    for test in reversed(rule.tests):
        body = [*_tested(test, over=len(body)), *body]
    heads: list[_Step] = [(_EQUAL, len(numbers) - 1 - place, 0, number) for place, number in enumerate(numbers)]
    heads[-1] = (_EQUAL, 0, len(body), numbers[-1])
    return [(_LOAD, 0, 0, _NUMBER), *heads, *body]


def _tested(test: _Test, *, over: int) -> list[_Step]:
    """Steps that jump over so many where the test does not hold."""
    load = [(_LOAD, 0, 0, _ARGUMENTS + 8 * test.argument), (_AND, 0, 0, test.mask)]
    match test.operation:
        case "is":
            return [*load, (_EQUAL, 0, over, test.value)]
        case "is not":
            return [*load, (_EQUAL, over, 0, test.value)]
        case "has":
            return [*load, (_ANY_BIT, 0, over, test.value)]

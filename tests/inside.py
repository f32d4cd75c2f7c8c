"""Functions that tests run inside hubbot.confine.isolate: each does what a hostile model might try."""

import ctypes
import errno
import fcntl
import mmap
import os
import platform
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from hubbot.errors import UnsafeSource


def echo(argument):
    return argument


def environment(_):
    return Path("/proc/self/environ").read_bytes().decode()


def attempt(argument):
    """Do what `argument` says; returns "done", or the name of the error that stopped it."""
    try:
        _ATTEMPTS[argument["do"]](argument)
    except OSError as error:
        return type(error).__name__
    return "done"


def attempts(arguments):
    return [attempt(argument) for argument in arguments]


def _connect(argument):
    with socket.create_connection(("127.0.0.1", argument["port"]), timeout=5):
        pass


def _datagram(argument):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", ("127.0.0.1", argument["port"]))


def _unix(argument):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(argument["path"])


def _ring(_):
    """io_uring_setup: a second way to open sockets."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(425, 1, ctypes.create_string_buffer(120)) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _move_link(argument):
    link = Path(os.environ["HOME"]) / "link"  # where links are allowed
    link.symlink_to(argument["to"])
    link.rename(argument["path"])


def _as_a_grandchild(argument):
    code = f"open({argument['path']!r}, 'w')"
    if subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL, check=False).returncode:
        raise PermissionError


def _name_a_thread_of_a_grandchild(_):
    """What CUDA does as it starts."""
    code = "import os; open(f'/proc/self/task/{os.getpid()}/comm', 'w').write('named')"
    if subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL, check=False).returncode:
        raise PermissionError


def _system_call(number, *arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(number, *map(ctypes.c_long, arguments)) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _datagram_by_path(argument):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", argument["path"])


def _datagram_of_a_pair(argument):
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    pair[0].sendto(b"x", argument["path"])


def _large_file(argument):
    with Path(argument["path"]).open("wb") as file:
        file.truncate(argument["bytes"])


def _large_memory(argument):
    try:
        mmap.mmap(-1, argument["bytes"], flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)  # MAP_NORESERVE
    except OSError as error:
        raise PermissionError from error


_ATTEMPTS = {
    "chmod": lambda a: Path(a["path"]).chmod(0o4755),
    "fchmod": lambda a: os.fchmod(os.open(a["path"], os.O_RDONLY), 0o4755),
    "utime": lambda a: os.utime(a["path"], (1, 1)),
    "chown": lambda a: os.chown(a["path"], 12345, 12345),
    "xattr": lambda a: os.setxattr(a["path"], "user.x", b"x"),
    "setuid-file": lambda a: os.close(os.open(a["path"], os.O_CREAT | os.O_WRONLY, 0o4755)),
    "setuid-node": lambda a: os.mknod(a["path"], 0o104755),
    "foreign-limits": lambda _: resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1)),
    "foreign-priority": lambda _: os.setpriority(os.PRIO_PROCESS, os.getppid(), 19),
    "own-limits": lambda _: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)),
    "datagram-by-path": _datagram_by_path,
    "datagram-of-a-pair": _datagram_of_a_pair,
    "shared-memory": lambda _: Path("/dev/shm/hubbot-left-behind").write_text("x"),
    "system-v-memory": lambda _: _system_call(29 if platform.machine() == "x86_64" else 194, 0, 4096, 0o1600),
    "user-namespace": lambda _: _system_call(272 if platform.machine() == "x86_64" else 97, 0x10000000),
    "name-thread-of-grandchild": _name_a_thread_of_a_grandchild,
    "large-file": _large_file,
    "large-memory": _large_memory,
    "connect": _connect,
    "datagram": _datagram,
    "unix": _unix,
    "ring": _ring,
    "netlink": lambda _: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close(),
    "write": lambda a: Path(a["path"]).write_text("x"),
    "append": lambda a: Path(a["path"]).open("a").close(),
    "truncate": lambda a: os.truncate(a["path"], 0),
    "remove": lambda a: Path(a["path"]).unlink(),
    "read": lambda a: Path(a["path"]).read_bytes(),
    "link": lambda a: Path(a["path"]).symlink_to(a["to"]),
    "move-link": _move_link,
    "hardlink": lambda a: Path(a["path"]).hardlink_to(a["to"]),
    "parent-environment": lambda _: Path(f"/proc/{os.getppid()}/environ").read_bytes(),
    "parent-memory": lambda _: Path(f"/proc/{os.getppid()}/mem").open("rb").close(),
    "signal-parent": lambda _: os.kill(os.getppid(), 0),
    "grandchild": _as_a_grandchild,
    "import-hubbot": lambda _: subprocess.run([sys.executable, "-P", "-c", "import hubbot.llamacpp"], check=True),
}


def refuse(argument):
    raise UnsafeSource(argument)


def crash(_):
    return dict[str, int]()["missing"]


def run_out_of(what):
    if what == "quota":
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
    if what == "memory":
        bytearray(2**62)
    import torch

    if what == "torch":
        torch.empty(2**50)
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


def fill(argument):
    """Write tensors until the disk of `folder` is full."""
    import torch
    from safetensors.torch import save_file

    for number in range(10_000):
        path = Path(argument["folder"]) / str(number)
        if argument["how"] == "tensors":
            save_file({"x": torch.zeros(250_000)}, path)
        else:
            path.write_bytes(bytes(1_000_000))


def unserialisable(_):
    return object()


def kill_itself(_):
    os.kill(os.getpid(), signal.SIGKILL)


def wait(argument):
    """Say where one is, then wait for a signal."""
    Path(argument["pid"]).write_text(str(os.getpid()))
    time.sleep(60)


def compute(_):
    import torch

    return (torch.ones(64, 64) @ torch.ones(64, 64)).sum().item()


def load_llama(_):
    from hubbot import llamacpp

    ctypes.CDLL(str(llamacpp.find().bin / "libllama.so"))
    llamacpp.run_tool("llama-quantize", ["--help"], timeout=60)
    return str(llamacpp.find().bin)


def architecture(folder):
    from hubbot.model import read_facts

    return read_facts(Path(folder)).architecture


def copy(argument):
    return shutil.copy2(argument["path"], argument["to"])


def leave_behind(argument):
    """Answer, while a process of another session, deaf to SIGTERM, holds a lock and every open file of this one."""
    told, tell = os.pipe()
    if os.fork() == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        fcntl.flock(os.open(argument["lock"], os.O_CREAT | os.O_RDWR), fcntl.LOCK_EX)
        os.write(tell, b"1")
        time.sleep(600)
        os._exit(0)
    os.read(told, 1)
    return "answered"


def linger(argument):
    leave_behind(argument)
    time.sleep(600)


def limits(_):
    return [resource.getrlimit(number)[0] for number in (resource.RLIMIT_DATA, resource.RLIMIT_CPU)]

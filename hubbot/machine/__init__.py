"""What this machine offers to one job: disk, memory and cores that are really there for it."""

from __future__ import annotations

import os
import platform
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from hubbot.machine import nvidia
from hubbot.machine.peak import disk_used

__all__ = ["Machine", "cores", "measure_machine"]

_NO_LIMIT = 2**60  # cgroup v1 writes a number near 2^63 where there is no limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Resources in bytes, free at the moment of measuring."""

    cpu: str
    cores: int
    ram: int  # installed, or the container's limit
    ram_free: int
    disk_free: int  # where the work folder lies
    gpu: str | None = None
    vram: int | None = None
    vram_free: int | None = None
    driver: str | None = None
    system: str = ""
    cards: int = 0  # GPUs that share a sweep; their memory is that of the smallest

    @property
    def hardware(self) -> dict[str, str | int | None]:
        """The record's part about the machine."""
        return {
            "cpu": self.cpu,
            "cores": self.cores,
            "ram": self.ram,
            "gpu": self.gpu,
            "vram": self.vram,
            "driver": self.driver,
            "system": self.system,
        }


def measure_machine(work: Path, device: str, *, ours: Path | None = None) -> Machine:
    """work: folder to be written to, need not exist yet. device: auto, cpu, cuda or cuda:N.

    ours: what a run that goes on finds there and uses again, so that it counts as free disk.
    Limits of the container or service (cgroup versions 1 and 2) count as the machine's own.
    """
    memory = psutil.virtual_memory()
    limit, used = _cgroup_memory()
    cards = nvidia.gpus_of(device)
    return Machine(
        cpu=_cpu_name(),
        cores=cores(),
        ram=min(memory.total, limit),
        ram_free=max(0, min(memory.available, limit - used)),
        disk_free=shutil.disk_usage(_existing(work)).free + (disk_used(ours) if ours else 0),
        gpu=_names(cards),
        vram=min((card.total for card in cards), default=None),
        vram_free=min((card.free for card in cards), default=None),
        driver=cards[0].driver if cards else None,
        cards=len(cards),
        system=f"{platform.system()} {platform.release()}, {platform.machine()}",
    )


def _names(cards: Sequence[nvidia.Gpu]) -> str | None:
    """As `2 x NVIDIA A10`; different ones beside each other."""
    counted = Counter(card.name for card in cards)
    told = [f"{number} x {name}" if number > 1 else name for name, number in counted.items()]
    return ", ".join(told) or None


def _existing(path: Path) -> Path:
    """The nearest folder above that is there already."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())


def cores() -> int:
    """Cores that this process may use, by affinity and by the container's share of time."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_text("cpu.max", "cpu,cpuacct/cpu.cfs_quota_us").split()
    if quota and quota[0].lstrip("-").isdecimal() and int(quota[0]) > 0:
        period = int(quota[1]) if len(quota) > 1 else 100_000
        allowed = min(allowed, max(1, -(-int(quota[0]) // period)))
    return allowed


def _cgroup_memory() -> tuple[int, int]:
    """The strictest limit on this process and what counts against it, without pages that can be dropped."""
    limit = _cgroup_text("memory.max", "memory/memory.limit_in_bytes").strip()
    if not limit.isdecimal() or int(limit) > _NO_LIMIT:
        return _NO_LIMIT, 0
    used = int(_cgroup_text("memory.current", "memory/memory.usage_in_bytes").strip() or 0)
    rows = dict(
        line.split() for line in _cgroup_text("memory.stat", "memory/memory.stat").splitlines() if line.count(" ") == 1
    )
    droppable = int(rows.get("inactive_file", rows.get("total_inactive_file", 0)))
    return int(limit), max(0, used - droppable)


def _cgroup_text(version2: str, version1: str) -> str:
    """A control file of this process' group; empty where there is none.

    Inside a container the group is mounted as the root; outside, /proc/self/cgroup names the folder below it.
    """
    root = Path("/sys/fs/cgroup")
    own = [line.split(":", 2) for line in _text(Path("/proc/self/cgroup")).splitlines()]
    folders = {controllers: path.lstrip("/") for _, controllers, path in (row for row in own if len(row) == 3)}
    controller, _, file = version1.partition("/")
    places = [root / folders.get("", "") / version2, root / version2]
    places += [root / controller / folders.get(controller, "") / file, root / version1]
    return next((text for text in map(_text, places) if text), "")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _cpu_name() -> str:
    for line in _text(Path("/proc/cpuinfo")).splitlines():
        if line.startswith(("model name", "Hardware")):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

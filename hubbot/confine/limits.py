"""How much memory, processor time and file a confined process may take."""

from __future__ import annotations

import resource
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hubbot.machine import measure_machine

__all__ = ["Limits", "limits_of"]

_BESIDE = 4 * 2**30  # bytes that libraries set aside and hardly touch
_A_CORE = 2**26  # and what they set aside for each core: a thread's stack and heap, in one pool or two
_LARGEST_FILE = 2**43  # bytes: a plan's files have a hole as large as the model, which no disk needs to hold


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of each single process."""

    memory: int  # bytes of what it writes to: heap, stacks, buffers; mapped files do not count
    processor: int  # seconds, all threads together
    file: int  # bytes of the largest file

    def keep(self) -> None:
        """Put them on this process and all that it starts, and offer it first where the kernel has to end one."""
        for number, most in (
            (resource.RLIMIT_DATA, self.memory),
            (resource.RLIMIT_CPU, self.processor),
            (resource.RLIMIT_FSIZE, self.file),
        ):
            hard = resource.getrlimit(number)[1]
            least = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(number, (least, least))
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")


def limits_of(folder: Path, *, seconds: float, memory: int | None) -> Limits:
    """Limits that honest work stays far below. folder: where it works; memory: bytes that it is meant to keep to."""
    machine = measure_machine(folder, "cpu")
    return Limits(
        memory=min(machine.ram, 2 * memory if memory else machine.ram) + _BESIDE + machine.cores * _A_CORE,
        processor=int(seconds * machine.cores) + 1,
        file=_LARGEST_FILE,
    )

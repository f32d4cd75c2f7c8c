"""Peak memory and disk of a run, sampled by a thread while the work goes on."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from hubbot.domain import Peak
from hubbot.machine import nvidia

__all__ = ["PeakMeter", "disk_used"]

_EVERY = 0.2  # seconds
_DISK_EVERY = 10  # samples: walking the folder costs more than reading a counter


class PeakMeter:
    """Inside `with`, the highest memory of this process and its children, of the GPU, and of a folder's disk.

        with PeakMeter(work, device="cuda:0") as meter:
            …
        meter.peak

    rss: sum over the process tree; a page that two of them share counts twice.
    vram: what the whole GPU gained since the beginning; other users of the GPU count too.
    disk: blocks that files under the folders occupy; holes of sparse files do not count.
    """

    def __init__(self, *folders: Path, device: str = "cpu") -> None:
        self._folders = folders
        self._device = device
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak", daemon=True)
        self._free_before = self._vram_free()
        self._rss = self._disk = self._vram = 0

    @property
    def peak(self) -> Peak:
        return Peak(rss=self._rss or None, vram=self._vram if self._free_before is not None else None, disk=self._disk)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._sample(disk=True)

    def _watch(self) -> None:
        count = 0
        while not self._stop.wait(_EVERY):
            self._sample(disk=count % _DISK_EVERY == 0)
            count += 1

    def _sample(self, *, disk: bool) -> None:
        self._rss = max(self._rss, _tree_rss())
        free = self._vram_free()
        if free is not None and self._free_before is not None:
            self._vram = max(self._vram, self._free_before - free)
        if disk:
            self._disk = max(self._disk, sum(disk_used(folder) for folder in self._folders))

    def _vram_free(self) -> int | None:
        card = nvidia.gpu_of(self._device)
        return None if card is None else card.free


def disk_used(folder: Path) -> int:
    """Bytes that the files under a folder occupy on disk; links are not followed, hard links count once."""
    total = 0
    seen: set[tuple[int, int]] = set()
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # gone since it was listed
                status = (Path(place) / name).lstat()
                key = (status.st_dev, status.st_ino)
                total += 0 if key in seen else status.st_blocks * 512
                seen.add(key)
    return total


def _tree_rss() -> int:
    total = 0
    with suppress(psutil.Error):
        own = psutil.Process()
        for process in (own, *own.children(recursive=True)):
            with suppress(psutil.Error):
                total += process.memory_info().rss
    return total

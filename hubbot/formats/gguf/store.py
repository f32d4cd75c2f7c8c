"""GGUF files while they are written: laid out whole at once, filled tensor by tensor.

A file under work/ ends in `.partial` until it is complete. Bytes go to their place with pwrite, so
parts may arrive in any order, from any thread, and again after a kill. What lies under the final name
meanwhile, an earlier release, stays whole until its successor takes that name.
"""

from __future__ import annotations

import os
from io import FileIO
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hubbot.formats.gguf.layout import Shard

__all__ = ["GgufFile"]

Bytes = npt.NDArray[np.uint8]


class GgufFile:
    """One shard on disk."""

    def __init__(self, shard: Shard, partial: Path, final: Path, *, ours: bool = False) -> None:
        """Create `partial`, or take up the one that a killed run left; `final` is where it goes at the end.

        ours: a file under the final name is this very run's, which was killed after that renaming.
        """
        self.shard = shard
        self.path = partial
        self.final = final
        self.placed = {placed.tensor.name: placed for placed in shard.tensors}
        partial.parent.mkdir(parents=True, exist_ok=True)
        if ours and final.exists() and not partial.exists():
            final.replace(partial)  # some of the others may still have to be renamed
        self._descriptor = os.open(partial, os.O_RDWR | os.O_CREAT, 0o644)
        self.fresh = os.fstat(self._descriptor).st_size != shard.bytes or not self._same_infos()
        if self.fresh:
            os.ftruncate(self._descriptor, 0)  # of another layout: nothing in it is ours
            os.ftruncate(self._descriptor, shard.bytes)
        _write(self._descriptor, shard.header, 0)

    def _same_infos(self) -> bool:
        ours = self.shard.header[self.shard.infos :]
        return os.pread(self._descriptor, len(ours), self.shard.infos) == ours

    def write_rows(self, name: str, first_row: int, data: Bytes) -> None:
        """Put encoded rows at their place. data: uint8, whole rows."""
        placed = self.placed[name]
        _write(self._descriptor, data.data, placed.offset + first_row * placed.row_bytes)

    def read(self, name: str) -> Bytes:
        """The bytes of one tensor as they are on disk: uint8 [bytes]."""
        placed = self.placed[name]
        data = np.empty(placed.bytes, np.uint8)
        with self.path.open("rb", buffering=0) as file:
            file.seek(placed.offset)
            _read_into(file, data)
        return data

    def replace_header(self, shard: Shard) -> None:
        """Put another header of the same length in the place of the first."""
        if len(shard.header) != len(self.shard.header) or shard.bytes != self.shard.bytes:
            msg = f"the new header of {self.final.name} has another length than the first"
            raise ValueError(msg)
        _write(self._descriptor, shard.header, 0)
        self.shard = shard

    def flush(self) -> None:
        """Have the disk hold what was written so far."""
        if self._descriptor >= 0:
            os.fsync(self._descriptor)

    def finish(self) -> Path:
        """Flush to disk and rename to the final name; calling it again is harmless."""
        if self._descriptor >= 0:
            self.flush()
            os.close(self._descriptor)
            self._descriptor = -1
            self.final.parent.mkdir(parents=True, exist_ok=True)
            self.path.replace(self.final)
            self.path = self.final
        return self.path

    def close(self) -> None:
        """Let go of the file, finished or not."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _write(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data).cast("B")
    while view:
        done = os.pwrite(descriptor, view, offset)
        view, offset = view[done:], offset + done


def _read_into(file: FileIO, data: Bytes) -> None:
    view = data.data
    while view:
        done = file.readinto(view)
        if not done:
            msg = "the file ends before its tensors do"
            raise EOFError(msg)
        view = view[done:]

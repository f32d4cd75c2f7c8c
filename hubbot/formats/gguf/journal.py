"""What the parts of a run have left behind, for the run that goes on after a kill.

For each part one file under work/: the names of the GGUF tensors written, and the importance entries
that its calibration gave.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hubbot.formats.gguf.imatrix import ImportanceEntry

__all__ = ["Journal"]

_NAMES = "tensors written"


class Journal:
    """The parts done so far."""

    def __init__(self, work: Path) -> None:
        self._folder = work / "parts"
        self._folder.mkdir(parents=True, exist_ok=True)

    def record(self, part: str, tensors: Sequence[str], entries: Mapping[str, ImportanceEntry]) -> None:
        """Note that a part is written; by atomic rename, so a half-written note never counts."""
        arrays: dict[str, Any] = {f"sums {name}": entry.sums for name, entry in entries.items()}
        arrays[_NAMES] = np.array(list(tensors), dtype=np.str_)
        arrays |= {f"tokens {name}": np.array(entry.tokens) for name, entry in entries.items()}
        partial = self._folder / f"{part}.npz.partial"
        with partial.open("wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self._folder / f"{part}.npz")

    def written(self) -> set[str]:
        """Names of the GGUF tensors of all parts done."""
        names: set[str] = set()
        for path in self._notes():
            with np.load(path) as note:
                names.update(str(name) for name in note[_NAMES])
        return names

    def entries(self) -> dict[str, ImportanceEntry]:
        """GGUF tensor -> importance entry, of all parts done."""
        entries = {}
        for path in self._notes():
            with np.load(path) as note:
                for key in note.files:
                    kind, _, name = key.partition(" ")
                    if kind == "sums":
                        entries[name] = ImportanceEntry(sums=note[key], tokens=int(note[f"tokens {name}"]))
        return entries

    def forget(self) -> None:
        """Remove the notes: the files are finished."""
        for path in self._notes():
            path.unlink()

    def _notes(self) -> list[Path]:
        return sorted(self._folder.glob("*.npz"))

"""What the parts of a run have left behind, for the run that goes on after a kill.

For each part one file under work/: the names of the GGUF tensors written, and the importance entries
that its calibration gave. When all are there, one more: the names that the finished files take.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from hubbot.formats.gguf.imatrix import ImportanceEntry
from hubbot.formats.notes import write_json
from hubbot.model.snapshot import plain_name

__all__ = ["Journal"]

_NAMES = "tensors written"
_LARGEST = 2**20  # bytes of a note of names


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
        partial.replace(self._note(part))

    def holds(self, part: str) -> bool:
        """Whether a part is noted as written."""
        return self._note(part).exists()

    def complete(self, finals: Sequence[str]) -> None:
        """Note that all is written and that the files are about to take their final names."""
        write_json(self._finals, list(finals))

    def finals(self) -> frozenset[str]:
        """The final names that files of this run have, or are about to take.

        None where the note is not one that `complete` writes: the sweep's process, which reads strangers' files, might write others.
        """
        if not self._finals.exists() or self._finals.stat().st_size > _LARGEST:
            return frozenset()
        with suppress(ValueError, RecursionError):
            found = json.loads(self._finals.read_text(encoding="utf-8"))
            if isinstance(found, list) and all(isinstance(name, str) and plain_name(name) for name in found):
                return frozenset(found)
        return frozenset()

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
                        tokens = note[f"tokens {name}"]
                        entries[name] = ImportanceEntry(sums=note[key], tokens=tokens if tokens.ndim else int(tokens))
        return entries

    def forget(self) -> None:
        """Remove the notes: what they tell of is gone."""
        for path in (*self._notes(), self._finals):
            path.unlink(missing_ok=True)

    @property
    def _finals(self) -> Path:
        return self._folder / "finals.json"

    def _note(self, part: str) -> Path:
        return self._folder / f"{part}.npz"

    def _notes(self) -> list[Path]:
        return sorted(self._folder.glob("*.npz"))

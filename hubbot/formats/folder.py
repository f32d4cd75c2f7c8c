"""A variant as a complete Hugging Face folder: shards, config.json, tokenizer and what else loads with it.

The shards are laid out in `<name>.partial` under the work folder before the first part, and every part's tensors go straight
to their places in them. What a part has left behind is noted beside, one file a part: with that note it counts as stored.
The folder takes its name when it is whole. So a folder under the final name is always complete, and a killed run finds
its parts.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch

from hubbot.domain import Source
from hubbot.errors import Unsupported
from hubbot.formats.notes import write_json
from hubbot.formats.protocol import Cost, VariantFiles
from hubbot.formats.shards import TensorSpec, index_json, shard_bytes, split_shards
from hubbot.formats.store import ShardStore
from hubbot.model import ModelFacts
from hubbot.model.companions import is_carried
from hubbot.model.parts import Part

__all__ = ["FolderWriter", "VariantFolder", "companions", "finished_folders", "folder_cost", "to_json"]

_PARTIAL = ".partial"
_SIDE_BY_SIDE = 4  # parts that are written at a time


def to_json(value: object) -> str:
    """JSON as Hugging Face libraries write it."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def companions(source: Source) -> list[str]:
    """The source's files, relative to its folder, that a variant carries unchanged."""
    return sorted(path for path in source.files if is_carried(path))


def folder_cost(
    specs: Sequence[TensorSpec], facts: ModelFacts, source: Source, texts: Mapping[str, str], shard_size: int
) -> Cost:
    """Exact size of a folder with these tensors. texts: file name -> contents."""
    shards = split_shards(specs, shard_size)
    weight_bytes = _weight_bytes(specs)
    others = sum(len(text.encode()) for text in texts.values())
    others += sum((Path(source.folder) / name).stat().st_size for name in companions(source))
    if len(shards) > 1:
        others += len(index_json(shards).encode())
    return Cost(
        file_bytes=sum(shard_bytes(shard) for shard in shards) + others,
        weight_bytes=weight_bytes,
        bits_per_weight=8 * weight_bytes / facts.parameters,
    )


def finished_folders(work: Path, out: Path) -> list[Path]:
    """The finished folders of a run. work: where it made them, one folder a variant; out: where folders go."""
    return [out / summary.stem for summary in sorted(work.glob("*.json")) if _has_its_name(summary, out / summary.stem)]


def _has_its_name(summary: Path, out: Path) -> bool:
    """Whether a folder was renamed after its summary, which is written when nothing lies under the final name."""
    return summary.exists() and out.exists() and not summary.with_suffix(_PARTIAL).exists()


class VariantFolder:
    """Where one variant is made, and what besides tensors goes into it."""

    def __init__(
        self,
        *,
        source: Source,
        facts: ModelFacts,
        work: Path,
        out: Path,
        texts: Mapping[str, str],
        specs: Iterable[TensorSpec],
        shard_size: int,
    ) -> None:
        """Lay out the shards, or take up those that a killed run left.

        work: folder of the notes on its parts; the shards are made beside it. out: the finished folder. texts: file name ->
        contents, config.json among them. specs: all tensors. shard_size: bytes.
        Raises Unsupported where two tensors have one name.
        """
        self.out = out
        self._source = source
        self._facts = facts
        self._notes = work
        self._partial = work.with_suffix(_PARTIAL)
        self._summary = work.with_suffix(".json")
        self._texts = texts
        self._shards = split_shards(specs, shard_size)
        self._store = ShardStore(self._partial, self._shards)
        if not (self._finished or self._store.is_laid_out()):
            self._forget()  # first: shards of a new layout hold nothing yet
            self._store.lay_out()

    def refuse_others(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Raise Unsupported for tensors that the files were not laid out for."""
        self._store.refuse_others(tensors)

    def store(
        self,
        part: Part,
        tensors: Mapping[str, torch.Tensor],
        *,
        covers: Iterable[str],
        notes: Iterable[str] = (),
        errors: Mapping[str, float] | None = None,
    ) -> None:
        """Put a part's tensors into the files; nothing is done where a killed run had finished them already.

        covers: the source's tensors that they stand for. notes and errors: for the record.
        Raises Unsupported for tensors that the files were not laid out for.
        """
        if self._finished:
            return
        self._store.write(tensors)
        note = {"tensors": list(tensors), "covers": list(covers), "notes": list(notes), "errors": dict(errors or {})}
        self._notes.mkdir(parents=True, exist_ok=True)
        write_json(self._note(part), note)

    def holds(self, part: Part) -> bool:
        """Whether a killed run has stored this part, or finished them all."""
        return self._finished or self._note(part).exists()

    def finish(self) -> VariantFiles:
        """Write the other files, rename, and drop the notes. Repeating it is harmless."""
        if not self._finished:
            summary = self._summed_up()
            self._write_others()
            shutil.rmtree(self.out, ignore_errors=True)
            self.out.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._summary, summary)
            self._partial.replace(self.out)
        shutil.rmtree(self._notes, ignore_errors=True)
        found = json.loads(self._summary.read_text(encoding="utf-8"))
        return VariantFiles(
            paths=tuple(sorted(path for path in self.out.rglob("*") if path.is_file())),
            weight_bytes=found["weight_bytes"],
            notes=tuple(found["notes"]),
            layer_errors=found["errors"],
        )

    @property
    def _finished(self) -> bool:
        return _has_its_name(self._summary, self.out)

    def _note(self, part: Part) -> Path:
        return self._notes / f"{part.name}.json"

    def _forget(self) -> None:
        """Drop what was noted: it tells of files that are gone, or of another layout."""
        self._summary.unlink(missing_ok=True)
        shutil.rmtree(self._notes, ignore_errors=True)

    def _summed_up(self) -> dict[str, Any]:
        """Of all parts. Raises Unsupported where tensors of the source, or of the files, are in none of them."""
        notes = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(self._notes.glob("*.json"))]
        covered = {name for note in notes for name in note["covers"]}
        self._refuse_missing([name for name in self._facts.tensors if name not in covered], len(self._facts.tensors))
        stored = {name for note in notes for name in note["tensors"]}
        self._refuse_missing(sorted(self._store.names - stored), len(self._store.names))
        return {
            "weight_bytes": _weight_bytes(spec for shard in self._shards for spec in shard),
            "notes": [said for note in notes for said in note["notes"]],
            "errors": {name: error for note in notes for name, error in note["errors"].items()},
        }

    def _refuse_missing(self, missing: Sequence[str], count: int) -> None:
        if missing:
            msg = (
                f"{self.out.name} lacks {len(missing)} of {count} tensors, {missing[0]} the first: no part of the model "
                "holds them. Leave GPTQ and bitsandbytes variants out for this model."
            )
            raise Unsupported(msg)

    def _write_others(self) -> None:
        if len(self._shards) > 1:
            (self._partial / "model.safetensors.index.json").write_text(index_json(self._shards), encoding="utf-8")
        for name, text in self._texts.items():
            (self._partial / name).write_text(text, encoding="utf-8")
        for name in companions(self._source):
            target = self._partial / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(self._source.folder) / name, target)


class FolderWriter:
    """Stores parts that lie on a card while the caller goes on; what lies in the host's memory at once, to hold it no longer."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_SIDE_BY_SIDE, thread_name_prefix="folder")
        self._running: list[Future[None]] = []

    def store(self, folder: VariantFolder, part: Part, tensors: Mapping[str, torch.Tensor], **remarks: Any) -> None:
        """As the folder does. tensors must not change until `wait`."""
        folder.refuse_others(tensors)  # while the caller can leave this variant behind
        if any(tensor.is_cuda for tensor in tensors.values()):
            self._running.append(self._pool.submit(folder.store, part, tensors, **remarks))
        else:
            folder.store(part, tensors, **remarks)

    def wait(self) -> None:
        """Wait until all is stored. Raises the first error."""
        running, self._running = self._running, []
        wait(running)
        for future in running:
            future.result()


def _weight_bytes(specs: Iterable[TensorSpec]) -> int:
    """Bytes of what the weights are made of; bitsandbytes' JSON texts in the form of tensors are not."""
    return sum(spec.size for spec in specs if ".quant_state." not in spec.name)

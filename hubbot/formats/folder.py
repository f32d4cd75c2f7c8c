"""A variant as a complete Hugging Face folder: shards, config.json, tokenizer and what else loads with it.

Parts are kept under the work folder, one file a part, until all are there; then they are merged into
`<name>.partial` beside the final folder, which takes its name when it is whole. So a folder under
the final name is always complete, and a killed run finds its parts.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hubbot.domain import Source
from hubbot.errors import Unsupported
from hubbot.formats.protocol import Cost, VariantFiles
from hubbot.formats.shards import (
    TensorSpec,
    index_json,
    pack_shards,
    read_metadata,
    read_specs,
    save_part,
    shard_bytes,
    split_shards,
)
from hubbot.model import ModelFacts
from hubbot.model.companions import is_carried
from hubbot.model.parts import Part

__all__ = ["FolderWriter", "VariantFolder", "companions", "finish_folders", "folder_cost", "merged_folders", "to_json"]

_SIDE_BY_SIDE = 4  # folders that are written at a time


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


def merged_folders(parts: Path, out: Path) -> list[Path]:
    """The finished folders of a run. parts: where it keeps its parts, one folder a variant; out: where folders go."""
    begun = [summary.with_suffix("") for summary in sorted(parts.glob("*.json"))]
    return [out / folder.name for folder in begun if (out / folder.name).exists() and not folder.exists()]


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantFolder:
    """Where one variant is made, and what besides tensors goes into it.

    parts: folder of the part files. out: the finished folder. texts: file name -> contents, config.json
    among them. shard_size: bytes.
    """

    source: Source
    facts: ModelFacts
    parts: Path
    out: Path
    texts: Mapping[str, str]
    shard_size: int

    def store(
        self,
        part: Part,
        tensors: Mapping[str, torch.Tensor],
        *,
        covers: Iterable[str],
        notes: Iterable[str] = (),
        errors: Mapping[str, float] | None = None,
    ) -> None:
        """Keep a part's tensors; nothing is done where a killed run had merged them all already.

        covers: the source's tensors that they stand for. notes and errors: for the record.
        """
        if self._merged:
            return
        remarks = {"covers": list(covers), "notes": list(notes), "errors": dict(errors or {})}
        save_part(tensors, self._part(part), {"format": "pt", "hubbot": json.dumps(remarks)})

    def holds(self, part: Part) -> bool:
        """Whether a killed run has stored this part, or merged them all."""
        return self._merged or self._part(part).exists()

    def _part(self, part: Part) -> Path:
        return self.parts / f"{part.name}.safetensors"

    @property
    def _merged(self) -> bool:
        return self.out.name in {folder.name for folder in merged_folders(self.parts.parent, self.out.parent)}

    def finish(self) -> VariantFiles:
        """Merge the parts, write the other files, rename, and drop the parts. Repeating it is harmless."""
        summary = self.parts.with_suffix(".json")
        if self.parts.exists():
            parts = sorted(self.parts.glob("*.safetensors"))
            text = to_json(self._summary(parts))
            partial = self.out.with_name(f"{self.out.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            self._fill(partial, parts)
            summary.write_text(text, encoding="utf-8")
            shutil.rmtree(self.out, ignore_errors=True)
            partial.replace(self.out)
            done = self.parts.with_suffix(".done")
            shutil.rmtree(done, ignore_errors=True)
            self.parts.replace(done)  # in one step: a half-emptied folder would look like one to merge
            shutil.rmtree(done)
        found = json.loads(summary.read_text(encoding="utf-8"))
        return VariantFiles(
            paths=tuple(sorted(path for path in self.out.rglob("*") if path.is_file())),
            weight_bytes=found["weight_bytes"],
            notes=tuple(found["notes"]),
            layer_errors=found["errors"],
        )

    def _summary(self, parts: Sequence[Path]) -> dict[str, Any]:
        remarks = [json.loads(read_metadata(path)["hubbot"]) for path in parts]
        covered = {name for remark in remarks for name in remark["covers"]}
        missing = [name for name in self.facts.tensors if name not in covered]
        if missing:
            msg = (
                f"{self.out.name} lacks {len(missing)} of {len(self.facts.tensors)} tensors of the source, {missing[0]} the "
                "first: no part of the model holds them. Leave GPTQ and bitsandbytes variants out for this model."
            )
            raise Unsupported(msg)
        return {
            "weight_bytes": sum(_weight_bytes(read_specs(path)) for path in parts),
            "notes": [note for remark in remarks for note in remark["notes"]],
            "errors": {name: error for remark in remarks for name, error in remark["errors"].items()},
        }

    def _fill(self, folder: Path, parts: Sequence[Path]) -> None:
        pack_shards(parts, folder, self.shard_size)
        for name, text in self.texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        for name in companions(self.source):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(self.source.folder) / name, target)


class FolderWriter:
    """Stores parts that lie on a card while the caller goes on; what lies in the host's memory at once, to hold it no longer."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_SIDE_BY_SIDE, thread_name_prefix="folder")
        self._running: list[Future[None]] = []

    def store(self, folder: VariantFolder, part: Part, tensors: Mapping[str, torch.Tensor], **remarks: Any) -> None:
        """As the folder does. tensors must not change until `wait`."""
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


def finish_folders(folders: Mapping[str, VariantFolder]) -> dict[str, VariantFiles]:
    """Finish several side by side: a disk takes more than one file at a time."""
    with ThreadPoolExecutor(_SIDE_BY_SIDE, thread_name_prefix="folder") as pool:
        finished = pool.map(VariantFolder.finish, folders.values())
        return dict(zip(folders, finished, strict=True))


def _weight_bytes(specs: Iterable[TensorSpec]) -> int:
    """Bytes of what the weights are made of; bitsandbytes' JSON texts in the form of tensors are not."""
    return sum(spec.size for spec in specs if ".quant_state." not in spec.name)

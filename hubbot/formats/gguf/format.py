"""The GGUF family: llama.cpp's file types, written while the sweep walks the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from hubbot.domain import Family, Gguf, Source, TextRecord
from hubbot.errors import HubbotError, SourceRefused, Unsupported
from hubbot.formats.gguf import codec
from hubbot.formats.gguf.converter import Captured
from hubbot.formats.gguf.cuda.queue import CardQueue
from hubbot.formats.gguf.decoded import DecodedTensor
from hubbot.formats.gguf.encode import EncodingQueue, Job
from hubbot.formats.gguf.graph import evaluate
from hubbot.formats.gguf.imatrix import ImportanceEntry, write_imatrix
from hubbot.formats.gguf.inputs import Inputs
from hubbot.formats.gguf.journal import Journal
from hubbot.formats.gguf.mmproj import plan_vision, write_vision
from hubbot.formats.gguf.naming import file_stem, shard_names
from hubbot.formats.gguf.origins import Origins, decoded_tensor
from hubbot.formats.gguf.otherwise import refuse_other_positions
from hubbot.formats.gguf.plan import Facts, GgufPlan, VariantPlan, costs_of, is_lossless, plan_files
from hubbot.formats.gguf.rounded import Curvatures, write_rounded
from hubbot.formats.gguf.snapshot import Snapshot
from hubbot.formats.gguf.store import GgufFile
from hubbot.formats.protocol import Cost, Encoded, InputStatistics, Needs, VariantFiles
from hubbot.machine import cores
from hubbot.model.parts import Part, PartKind
from hubbot.settings import GgufSettings

__all__ = ["GgufFormat", "costs", "plan_unread"]

_FLUSHED = 8  # files at a time at the end
_STORED = frozenset((torch.bfloat16, torch.float16, torch.float32))


def costs(
    variants: Sequence[Gguf],
    source: Source,
    facts: Facts,
    work: Path,
    settings: GgufSettings,
    *,
    text: str = "",
    quantized_by: str | None = None,
    context: int,
) -> dict[str, Cost | Unsupported]:
    """Variant name -> exact size, from headers, configuration and tokenizer alone; or why llama.cpp has no recipe for it.

    text: the calibration text's name, and quantized_by: who makes the files; both stand in their headers. context: tokens
    of the texts that the files are measured on.
    Raises Unsupported where llama.cpp's converter cannot take the model, or llama.cpp reads such texts otherwise.
    """
    plan = plan_unread(variants, source, facts, work, settings, text=text, quantized_by=quantized_by)
    names = [tensor.name for tensor in plan.model.tensors]
    refuse_other_positions(facts.config, plan.model.metadata, names, context)
    vision = plan_vision(source, facts, Snapshot(facts).read, quantized_by=quantized_by)
    note = "; ".join(filter(None, (*plan.notes, vision.note))) or None
    found = {
        name: replace(cost, file_bytes=cost.file_bytes + vision.bytes, note=note)
        for name, cost in costs_of(plan).items()
    }
    return {**found, **plan.refused}


def plan_unread(
    variants: Sequence[Gguf],
    source: Source,
    facts: Facts,
    work: Path,
    settings: GgufSettings,
    *,
    text: str,
    quantized_by: str | None,
) -> GgufPlan:
    """The files as they are planned while no text is read; see `costs`."""
    return plan_files(
        variants,
        source,
        facts,
        work,
        imatrix=_unread_text(text) if settings.imatrix else None,
        settings=settings,
        quantized_by=quantized_by,
        read=Snapshot(facts).read,
    )


def _unread_text(name: str) -> TextRecord:
    """Stands for a calibration text that is not fetched yet: only its name takes room, only its presence shapes a recipe."""
    return TextRecord(dataset=name, revision=None, sha256="", windows=0, length=0)


class GgufFormat:
    """Writes `out/gguf/<model>-<TYPE>.gguf` for every variant, and the importance matrix beside them."""

    family = Family.GGUF

    def __init__(
        self,
        *,
        variants: Sequence[Gguf],
        source: Source,
        facts: Facts,
        work: Path,
        out: Path,
        settings: GgufSettings,
        calibration: TextRecord | None = None,
        quantized_by: str | None = None,
        decoded: bool = True,
        threads: int | None = None,
        device: str = "cpu",
    ) -> None:
        """Plan and lay out the files; takes up files that a killed run left in `work`.

        calibration: the text behind the importance matrix; None, or settings.imatrix off, makes static files.
        decoded: whether encode() offers decoded weights; without, it does less work. device: encodes and decodes
        what it can to ggml's bytes.
        """
        self.variants = tuple(variants)
        self._source = source
        self._facts = facts
        self._settings = settings
        self._text = calibration if settings.imatrix else None
        self._quantized_by = quantized_by
        self._decoded = decoded
        self._work = work / "gguf"
        self._out = out / "gguf"
        self._snapshot = Snapshot(facts)
        self._plan = self._make_plan(None)
        self._vision = plan_vision(source, facts, self._snapshot.read, quantized_by=quantized_by)
        for refusal in self._plan.refused.values():
            raise refusal
        if unknown := [name for name, variant in self._plan.variants.items() if variant.probes]:
            msg = f"Which tensor of {unknown[0]} gets which type was not measured. Make it by `hubbot run`, which does that first."
            raise Unsupported(msg)
        squares = Needs.SQUARES if self._plan.imatrix_file else Needs.NOTHING
        self.needs = Needs.HESSIAN if any(variant.hessian for variant in self._plan.variants.values()) else squares
        self._journal = Journal(self._work)
        self._files = {name: self._open(variant) for name, variant in self._plan.variants.items()}
        if any(file.fresh for files in self._files.values() for file in files):
            self._journal.forget()  # its parts were written to files that are gone, or of another layout
        self._device = torch.device(device)
        self._queue = self._open_queue(threads or cores())
        self._origins = Origins(self._plan.model, facts.tensors)
        self._inputs = Inputs(self._origins)

    @property
    def plan(self) -> GgufPlan:
        return self._plan

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the record should know about these files."""
        told = self._plan.notes + ((self._vision.note,) if self._vision.note else ())
        transformed = self._origins.transformed
        if not transformed:
            return told
        return (
            *told,
            f"{len(transformed)} tensors are transformed by llama.cpp's converter and not measured ({transformed[0]}, …)",
        )

    @property
    def _sees(self) -> bool:
        """Whether the checkpoint holds more than the text that these files are of."""
        return bool(self._vision.files or self._vision.note)

    def holds(self, part: Part) -> bool:
        return self._journal.holds(part.name)

    def encode(
        self, part: Part, weights: Mapping[str, torch.Tensor], statistics: Mapping[str, InputStatistics]
    ) -> Mapping[str, Mapping[str, Encoded]]:
        """Encode and store every tensor of a part for every variant; see the protocol."""
        tensors = [tensor for tensor in self._plan.model.tensors if tensor.leaves and tensor.leaves[0] in part.tensors]
        # the head gets no importance, as with llama.cpp's own tools
        entries = {} if part.kind is PartKind.HEAD else self._entries(tensors, statistics)
        hessians = self._hessians(tensors, statistics)
        self._queue.forget()
        self._encode_tensors(tensors, weights, entries, hessians)
        self._journal.record(part.name, [tensor.name for tensor in tensors], entries)
        return self._decodable(tensors, weights) if self._decoded else {variant.name: {} for variant in self.variants}

    def finish(self) -> Mapping[str, VariantFiles]:
        """Write what no part held, flush, rename; raises if a tensor's encoder needs statistics it never got."""
        done = self._journal.written()
        left = [tensor for tensor in self._plan.model.tensors if tensor.name not in done]
        lost = [tensor.name for tensor in left if tensor.leaves and tensor.name.startswith("blk.") and tensor.rows > 1]
        if lost and self._plan.imatrix_file:
            msg = f"{len(lost)} matrices such as {lost[0]} were never encoded, and their calibration is gone. Remove {self._work} and run again."
            raise HubbotError(msg)
        self._encode_tensors(left, {}, {}, {})
        entries = self._journal.entries()
        imatrix = self._finish_imatrix(entries)
        finals = [file.final.name for files in self._files.values() for file in files]
        self._journal.complete([*finals, *self._vision.files])
        vision = write_vision(self._vision, self._snapshot.read, self._work, self._out)
        with ThreadPoolExecutor(_FLUSHED, thread_name_prefix="gguf-flush") as pool:
            list(pool.map(GgufFile.flush, (file for files in self._files.values() for file in files)))
        finished = {}
        for name, files in self._files.items():
            paths = tuple(file.finish() for file in files)
            variant = self._plan.variants[name]
            extra = (imatrix,) if imatrix and variant.importance else ()
            finished[name] = VariantFiles(
                paths=(*paths, *extra, *vision),
                weight_bytes=variant.weight_bytes,
                weights=sum(tensor.weights for tensor in self._plan.model.tensors) if self._sees else None,
                notes=(*self.notes, *variant.notes, *variant.recipe.notes),
            )
        self._queue.close()
        return finished

    def close(self) -> None:
        """Let go of threads and files; what is written stays for the next run."""
        self._queue.close()
        for files in self._files.values():
            for file in files:
                file.close()

    def _make_plan(self, entries: int | None) -> GgufPlan:
        return plan_files(
            self.variants,
            self._source,
            self._facts,
            self._work,
            imatrix=self._text,
            settings=self._settings,
            quantized_by=self._quantized_by,
            read=self._snapshot.read,
            entries=entries,
        )

    def _open(self, variant: VariantPlan) -> tuple[GgufFile, ...]:
        names = shard_names(f"{file_stem(self._source.name)}-{variant.name}", len(variant.shards))
        ours = self._journal.finals()
        return tuple(
            GgufFile(shard, self._work / f"{name}.partial", self._out / name, ours=name in ours)
            for shard, name in zip(variant.shards, names, strict=True)
        )

    def _open_queue(self, threads: int) -> EncodingQueue | CardQueue:
        cores_queue = EncodingQueue(threads)
        if self._device.type != "cuda":
            return cores_queue
        kinds = {kind for variant in self._plan.variants.values() for kind in variant.recipe.kinds.values()}
        return CardQueue(self._device, cores_queue, kinds=kinds, keep=self._decoded)

    # --- encoding ---------------------------------------------------------------------------------

    @cached_property
    def _homes(self) -> dict[str, list[tuple[str, GgufFile, int]]]:
        """GGUF tensor -> (variant, file, type) of every file that holds it."""
        homes: dict[str, list[tuple[str, GgufFile, int]]] = {}
        for name, files in self._files.items():
            for file in files:
                for tensor, placed in file.placed.items():
                    homes.setdefault(tensor, []).append((name, file, placed.kind))
        return homes

    def _encode_tensors(
        self,
        tensors: Sequence[Captured],
        weights: Mapping[str, torch.Tensor],
        entries: Mapping[str, ImportanceEntry],
        hessians: Mapping[str, Sequence[torch.Tensor | None]],
    ) -> None:
        try:
            try:
                self._submit(tensors, weights, entries, hessians)
                self._round(tensors, weights, entries, hessians)
            finally:
                self._queue.wait()
        except ValueError as error:
            msg = f"{self._source.name} cannot be quantized: {error}. Mend the checkpoint."
            raise SourceRefused(msg) from error

    def _submit(
        self,
        tensors: Sequence[Captured],
        weights: Mapping[str, torch.Tensor],
        entries: Mapping[str, ImportanceEntry],
        hessians: Mapping[str, Sequence[torch.Tensor | None]],
    ) -> None:
        """Give the queue what ggml's encoders do, the slow tensors first: small ones then fill the cores while the last chunks run."""
        for tensor in sorted(tensors, key=lambda tensor: -tensor.weights):
            for weighed, homes in self._by_importance(tensor.name, rounded=tensor.name in hessians):
                entry = entries.get(tensor.name) if weighed else None
                self._queue.submit(lambda t=tensor, h=homes, e=entry: self._job(t, weights, h, e))  # type: ignore[misc]

    def _round(
        self,
        tensors: Sequence[Captured],
        weights: Mapping[str, torch.Tensor],
        entries: Mapping[str, ImportanceEntry],
        hessians: Mapping[str, Sequence[torch.Tensor | None]],
    ) -> None:
        """What takes all of the Hessian, while the queue encodes the rest."""
        curvatures = Curvatures()
        rounded = [tensor for tensor in tensors if tensor.name in hessians]
        for tensor in sorted(rounded, key=lambda one: [id(each) for each in hessians[one.name]]):
            if homes := self._rounded_homes(tensor.name):
                job = self._job(tensor, weights, homes, entries.get(tensor.name))
                write_rounded(job, hessians[tensor.name], curvatures)

    def _by_importance(self, name: str, *, rounded: bool) -> Iterator[tuple[bool, list[tuple[GgufFile, int]]]]:
        """The files of a tensor, those with and those without an importance matrix apart.

        rounded: leave those out that take it rounded by its Hessian.
        """
        for weighed in (False, True):
            homes = [
                (file, kind)
                for variant, file, kind in self._homes[name]
                if self._plan.variants[variant].importance is weighed
                and not (rounded and self._plan.variants[variant].rounds(kind))
            ]
            if homes:
                yield weighed, homes

    def _rounded_homes(self, name: str) -> list[tuple[GgufFile, int]]:
        """The files that take a tensor rounded by its Hessian."""
        return [(file, kind) for variant, file, kind in self._homes[name] if self._plan.variants[variant].rounds(kind)]

    def _job(
        self,
        tensor: Captured,
        weights: Mapping[str, torch.Tensor],
        homes: Sequence[tuple[GgufFile, int]],
        entry: ImportanceEntry | None,
    ) -> Job:
        targets: dict[int, list[GgufFile]] = {}
        for file, kind in homes:
            targets.setdefault(kind, []).append(file)
        blind = [kind for kind in targets if entry is None and codec.requires_importance(kind)]
        if blind:
            msg = (
                f"{tensor.name} is to become {codec.type_name(blind[0])}, which needs an importance matrix, and the "
                "calibration saw no input of it. Take a larger GGUF type."
            )
            raise Unsupported(msg)
        return Job(
            name=tensor.name,
            rows=self._rows_of(tensor, weights),
            kind=tensor.kind,
            targets=targets,
            importance=entry.vector() if entry else None,
        )

    def _rows_of(self, tensor: Captured, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The tensor's values in llama.cpp's row order: as stored where the converter moves nothing but rows."""

        def source(name: str) -> torch.Tensor:
            return (weights[name] if name in weights else self._snapshot.read(name)).detach()

        if self._origins.untouched(tensor):
            raw = source(tensor.leaves[0])
            if raw.dtype in _STORED:
                return raw.reshape(-1, tensor.columns)
        elif (moved := self._moved_rows(tensor, source)) is not None:
            return moved
        values = evaluate(tensor.value, lambda name: source(name).cpu())
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).reshape(-1, tensor.columns)

    def _moved_rows(self, tensor: Captured, source: Callable[[str], torch.Tensor]) -> torch.Tensor | None:
        """On a card, a tensor whose rows the converter moves about; None where the converter has to do it."""
        origins = self._origins.trace(tensor) if self._device.type == "cuda" else None
        leaves = {name: source(name) for name in origins or {}}
        dtypes = {leaf.dtype for leaf in leaves.values()}
        if not origins or len(dtypes) != 1 or not dtypes <= _STORED:
            return None
        moved = torch.empty((tensor.rows, tensor.columns), dtype=dtypes.pop(), device=self._device)
        for name, rows in origins.items():
            ours, theirs = (torch.from_numpy(index).to(self._device) for index in (rows.ours, rows.theirs))
            found = leaves[name].to(self._device).reshape(-1, leaves[name].shape[-1])[theirs]
            moved[ours] = found if rows.columns is None else found[:, torch.from_numpy(rows.columns).to(self._device)]
        return moved

    # --- the importance matrix --------------------------------------------------------------------

    def _entries(
        self, tensors: Sequence[Captured], statistics: Mapping[str, InputStatistics]
    ) -> dict[str, ImportanceEntry]:
        """GGUF tensor -> importance, from the statistics of the linear layers it is made of."""
        if not self._plan.imatrix_file:
            return {}
        entries = {tensor.name: self._inputs.importance(tensor, statistics) for tensor in tensors}
        return {name: entry for name, entry in entries.items() if entry is not None}

    def _hessians(
        self, tensors: Sequence[Captured], statistics: Mapping[str, InputStatistics]
    ) -> dict[str, Sequence[torch.Tensor | None]]:
        """GGUF tensor -> the Hessian of each of its experts, or its only one; tensors without any are left out."""
        if self.needs is not Needs.HESSIAN:
            return {}
        found = {tensor.name: self._inputs.hessians(tensor, statistics) for tensor in tensors}
        return {name: hessians for name, hessians in found.items() if any(one is not None for one in hessians)}

    def _finish_imatrix(self, entries: Mapping[str, ImportanceEntry]) -> Path | None:
        """Publish the matrix, and have the headers say how many entries it really has."""
        if not (self._plan.imatrix_file and self._text and entries):
            return None
        path = self._out / self._plan.imatrix_file
        if len(entries) != self._plan.entries:
            self._plan = self._make_plan(len(entries))
            for name, files in self._files.items():
                for file, shard in zip(files, self._plan.variants[name].shards, strict=True):
                    file.replace_header(shard)
        self._out.mkdir(parents=True, exist_ok=True)
        partial = self._work / f"{path.name}.partial"
        write_imatrix(partial, entries, dataset=self._text.dataset, chunks=self._text.windows, length=self._text.length)
        partial.replace(path)
        return path

    # --- decoding ---------------------------------------------------------------------------------

    def _decodable(
        self, tensors: Sequence[Captured], weights: Mapping[str, torch.Tensor]
    ) -> dict[str, dict[str, Encoded]]:
        made: dict[tuple[object, ...], DecodedTensor] = {}
        result: dict[str, dict[str, Encoded]] = {variant.name: {} for variant in self.variants}
        matrices = [tensor for tensor in tensors if len(tensor.shape) > 1]
        for leaf in dict.fromkeys(leaf for tensor in matrices for leaf in tensor.leaves):
            holders = self._origins.holders(leaf)
            for name, variant in self._plan.variants.items():
                kinds = [variant.recipe.kinds[held.tensor.name] for held in holders]
                if all(is_lossless(kind, held.tensor.kind) for kind, held in zip(kinds, holders, strict=True)):
                    continue
                key = (leaf, variant.importance, variant.hessian, *kinds)  # equal types and weighing: equal bytes
                if key not in made:
                    shape = tuple(self._facts.tensors[leaf].shape)
                    made[key] = decoded_tensor(shape, holders, self._place(name), weights.get(leaf), self._device)
                result[name][leaf] = made[key]
        return result

    def _place(self, variant: str) -> Callable[[Captured], tuple[int, Callable[[], torch.Tensor]]]:
        weighed, rounded = self._plan.variants[variant].importance, self._plan.variants[variant].hessian

        def place(tensor: Captured) -> tuple[int, Callable[[], torch.Tensor]]:
            file = next(file for file in self._files[variant] if tensor.name in file.placed)
            kind = file.placed[tensor.name].kind

            def read() -> torch.Tensor:
                kept = None if rounded else self._queue.kept(tensor.name, kind, weighed=weighed)
                return torch.from_numpy(file.read(tensor.name)) if kept is None else kept

            return kind, read

        return place

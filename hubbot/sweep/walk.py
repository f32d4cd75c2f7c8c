"""One sweep: every block of a model is read once and serves every variant.

where a variant is rounded by the loss of the whole model, a pass forth and one back come first (hubbot.sweep.gradients)
for part in embedding, block 0, block 1, …, head:
    calibrate    the original block on the calibration windows: X'X of every linear layer
    encode       the part for every variant: the very bytes that are published
    advance      the evaluation windows, through the original and through every decoded variant
the head turns all streams into perplexity and divergence, token by token
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from hubbot.domain import ExpertUse, Perplexity, Score
from hubbot.errors import Unsupported
from hubbot.formats.protocol import Encoded, Format, InputStatistics, Needs, VariantFiles
from hubbot.machine.heap import give_back, return_large_blocks
from hubbot.model import TensorInfo
from hubbot.model.parts import Part, PartKind
from hubbot.sweep.blocks import BlockModel
from hubbot.sweep.gradients import measure_gradients
from hubbot.sweep.group import ALONE, Group
from hubbot.sweep.judge import Verdicts, judge
from hubbot.sweep.kept import bands_of
from hubbot.sweep.passage import Passage
from hubbot.sweep.references import References
from hubbot.sweep.streams import CheckpointClock, Progress, Streams, load_checkpoint, save_checkpoint, timed
from hubbot.sweep.telling import Telling, silently
from hubbot.sweep.weights import CheckpointWeights
from hubbot.sweep.windows import Windows, joined

__all__ = ["SweepInput", "SweepResult", "sweep"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepInput:
    """What one sweep walks over.

    folder: the checkpoint. tensors: checkpoint name -> where it lies in it. parts: its layout.
    calibration and evaluation: windows, or None to go without. conversations: windows of a second text to measure on, of
    the same length.
    work: where the checkpoint of the sweep lies; the same input with the same folder goes on from it.
    references: where the first tokens' logits of every variant are kept for the load check.
    group: the processes that share the walk, each with a card, with variants and with a `work` of its own.
    resumable: write checkpoints; the disk has room for two.
    """

    folder: Path
    tensors: Mapping[str, TensorInfo]
    parts: tuple[Part, ...]
    calibration: Windows | None
    evaluation: Windows | None
    work: Path
    device: torch.device
    references: References | None = None
    conversations: Windows | None = None
    group: Group = ALONE
    resumable: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepResult:
    base: Perplexity | None
    scores: dict[str, Score]
    files: dict[str, VariantFiles]
    failed: dict[str, str]  # variant -> why its family could not make it
    layer_errors: dict[str, dict[str, float]]  # variant -> checkpoint tensor -> |W - W'|^2 / |W|^2
    experts: tuple[ExpertUse, ...]  # how the calibration tokens fell to them, of each block that has some
    seconds: dict[str, float]  # per variant: decoding and its stream; per step: the rest
    conversations: Verdicts | None = None  # what was measured on them


def sweep(
    task: SweepInput, formats: Sequence[Format], telling: Telling = silently, *, what: str | None = None
) -> SweepResult:
    """Make and measure every variant of the formats in one walk over the parts.

    A format that raises Unsupported on the way is left behind with its reason, and the others go on.
    what: the variants in words, where their names would say nothing.
    """
    return_large_blocks()
    walk = _Walk(task, formats, telling)
    walk.measure_gradients()
    with telling(f"sweep of {what or _names(formats)}", len(task.parts), "parts") as advance:
        verdicts = walk.through(advance)
    files = walk.finished()
    found = verdicts[0] if verdicts else None
    return SweepResult(
        base=found.base if found else None,
        scores=found.scores if found else {},
        conversations=verdicts[1] if len(verdicts) > 1 else None,
        files=files,
        failed=walk.progress.failed,
        layer_errors=walk.progress.layer_errors,
        experts=tuple(walk.progress.experts),
        seconds=walk.progress.seconds,
    )


class _Walk:
    def __init__(self, task: SweepInput, formats: Sequence[Format], telling: Telling) -> None:
        self._task, self._telling = task, telling
        self._texts = [text for text in (task.evaluation, task.conversations) if text]
        self._formats = formats
        self._group = task.group
        self._checkpoint = task.work / "streams.safetensors"
        self._gradients = task.work / "gradients"
        self._clock = CheckpointClock()
        self._on_card: tuple[Part, Mapping[str, torch.Tensor]] | None = None
        streams, self.progress = self._taken_up() or (Streams(), Progress())
        self._passage = self._open(streams)

    def _taken_up(self) -> tuple[Streams, Progress] | None:
        """The last checkpoint, unless a family has lost what it had stored up to there: then all begins anew.

        So it does where the processes that share the walk were killed at different parts.
        """
        found = load_checkpoint(self._checkpoint)
        done = self._task.parts[: found[1].parts_done] if found else ()
        failed = found[1].failed if found else {}
        families = _without(self._formats, failed)
        if not all(family.holds(part) for family in families for part in done):
            found = None
        everywhere = self._group.all_gather(found[1].parts_done if found else 0)
        return found if len(set(everywhere)) == 1 else None

    def through(self, advance: Callable[[int], None]) -> list[Verdicts]:
        """What was measured on each text. advance: called behind each part."""
        parts = self._task.parts
        if self._passage and self._passage.model.tied and self.progress.parts_done:
            # The head of a tied model computes with the encoded embedding, which lived in memory.
            self._passage.keep_embedding(self._encode(parts[0], {}))
        verdicts: list[Verdicts] = []
        for number, part in enumerate(parts):
            if number >= self.progress.parts_done and any(self._group.all_gather(bool(self._going))):
                verdicts = self._step(part)
                self._on_card = None
                give_back()
                if part.kind is not PartKind.HEAD:
                    self.progress.parts_done = number + 1
                    self._save()
            advance(1)
        return verdicts

    def finished(self) -> dict[str, VariantFiles]:
        """The files of every family that made its own."""
        files: dict[str, VariantFiles] = {}
        for family in self._going:
            with timed(self.progress.seconds, f"files {family.family}"):
                files |= self._attempt(family, family.finish)
        return files

    @property
    def _going(self) -> list[Format]:
        return _without(self._formats, self.progress.failed)

    def _needs(self) -> Needs:
        """Of all processes: one whose variants ask for nothing still carries its share of the windows."""
        own = [family.needs.value for family in self._going]
        return Needs(max(max(own, default=0) for own in self._group.all_gather(own)))

    def measure_gradients(self) -> None:
        """Before all else, where a format wants them; it is left behind where there are none to be had."""
        task, passage, seconds = self._task, self._passage, self.progress.seconds
        if passage is None or task.calibration is None or self._needs() is not Needs.GRADIENTS:
            return
        if all(self._group.all_gather(self._gradients.exists())):
            return
        asking = [each for each in self._going if each.needs is Needs.GRADIENTS]
        try:
            with timed(seconds, "gradients"):
                earlier = measure_gradients(
                    passage.model,
                    task.parts,
                    self._weights,
                    task.calibration,
                    self._gradients,
                    self._group,
                    self._telling,
                )
            seconds["gradients"] += earlier
        except Unsupported as error:
            for each in asking:
                self._leave(each, error)
        self._on_card = None
        give_back()
        self._save()

    def _weighed(self, part: Part, statistics: Mapping[str, InputStatistics]) -> Mapping[str, InputStatistics]:
        """With what errors of the layers' outputs do to the loss, where a family of this process wants to know."""
        if not any(family.needs is Needs.GRADIENTS for family in self._going):
            return statistics
        bands = bands_of(self._gradients, part, self._task.device)
        return {name: replace(seen, bands=bands.get(name, ())) for name, seen in statistics.items()}

    def _attempt(self, family: Format, step: Callable[[], Mapping[str, T]]) -> Mapping[str, T]:
        """What a family's step gives; nothing, and no more of this family, where it cannot be done."""
        try:
            return step()
        except Unsupported as error:
            self._leave(family, error)
            return {}

    def _leave(self, family: Format, error: Unsupported) -> None:
        names = [variant.name for variant in family.variants]
        self.progress.failed |= dict.fromkeys(names, str(error))
        if self._passage:
            self._passage.leave(names)

    def _step(self, part: Part) -> list[Verdicts]:
        verdicts = self._passed(part, self._passage) if self._passage else self._only_encoded(part)
        for family in self._going:
            with timed(self.progress.seconds, f"files {family.family}"):
                family.holds(part)
        return verdicts

    def _only_encoded(self, part: Part) -> list[Verdicts]:
        self._encode(part, {})
        return []

    def _passed(self, part: Part, passage: Passage) -> list[Verdicts]:
        """A part through calibration, encoders and evaluation; what was measured, behind the head."""
        with timed(self.progress.seconds, "weights"):
            passage.enter(part, self._weights)
        match part.kind:
            case PartKind.EMBEDDING:
                passage.embed(part, self._encode(part, {}))
            case PartKind.BLOCK:
                # no Hessian outlives the encoding
                decoders = self._encode(part, self._weighed(part, passage.calibrate(part, self._needs())))
                passage.advance(part, decoders)
            case PartKind.HEAD:
                statistics = passage.calibrate_head(part, self._needs())
                return self._judge(passage, self._encode(part, statistics))
        return []

    def _judge(self, passage: Passage, decoders: Mapping[str, Mapping[str, Encoded]]) -> list[Verdicts]:
        if not self._texts:
            return []
        if passage.model.tied:
            passage.enter_tied_head(self._weights(self._task.parts[0]))
        passage.gather_base()
        return judge(passage, passage.head_decoders(decoders), self._texts, self._task.references)

    def _encode(self, part: Part, statistics: Mapping[str, InputStatistics]) -> dict[str, Mapping[str, Encoded]]:
        decoders: dict[str, Mapping[str, Encoded]] = {}
        for family in self._going:
            with timed(self.progress.seconds, f"encode {family.family}"):
                weights = self._weights(part)
                decoders |= self._attempt(family, lambda f=family, w=weights: f.encode(part, w, statistics))  # type: ignore[misc]
        return decoders

    def _weights(self, part: Part) -> Mapping[str, torch.Tensor]:
        """A part's tensors as stored: read when asked for, or lying on the card from when they were first wanted."""
        stored = CheckpointWeights(self._task.folder, self._task.tensors, part.tensors)
        if self._task.device.type != "cuda":
            return stored
        if self._on_card is None or self._on_card[0] != part:
            self._on_card = None  # first, so that it makes room
            self._on_card = part, {name: tensor.to(self._task.device) for name, tensor in stored.items()}
        return self._on_card[1]

    def _open(self, streams: Streams) -> Passage | None:
        """None where nothing passes through the model: static variants that nobody evaluates need none of it."""
        task = self._task
        calibration = task.calibration if self._needs() is not Needs.NOTHING else None
        if calibration is None and not self._texts:
            return None
        return Passage(
            model=BlockModel(task.folder, task.parts, task.device),
            variants=[variant.name for family in self._going for variant in family.variants],
            calibration=calibration,
            evaluation=joined(self._texts),
            streams=streams,
            progress=self.progress,
            group=self._group,
            work=task.work,
        )

    def _save(self) -> None:
        streams = self._passage.streams if self._passage else Streams()
        if not (self._task.resumable and self._group.all_gather(self._clock.due(streams.bytes))[0]):
            return
        start = time.monotonic()
        with timed(self.progress.seconds, "checkpoint"):
            save_checkpoint(self._checkpoint, streams, self.progress)
        self._clock.spent(time.monotonic() - start)


def _names(formats: Sequence[Format]) -> str:
    return ", ".join(variant.name for family in formats for variant in family.variants)


def _without(formats: Sequence[Format], failed: Mapping[str, str]) -> list[Format]:
    """The families that have not given up."""
    return [family for family in formats if not any(variant.name in failed for variant in family.variants)]

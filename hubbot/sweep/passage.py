"""Carrying the windows of every stream through the part of the model that has its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from hubbot.formats.protocol import Encoded, InputStatistics, Needs
from hubbot.model.parts import Part
from hubbot.sweep.arguments import Arguments
from hubbot.sweep.attention import HalfProducts
from hubbot.sweep.batches import batch_tokens
from hubbot.sweep.blocks import BlockModel
from hubbot.sweep.calibration import StatisticsCollector
from hubbot.sweep.companions import Companions
from hubbot.sweep.experts import ExpertStatistics
from hubbot.sweep.given import Key
from hubbot.sweep.group import Group
from hubbot.sweep.home import Home
from hubbot.sweep.installed import Weights
from hubbot.sweep.shared import SharedStates, handed_on
from hubbot.sweep.streams import Progress, Streams, timed
from hubbot.sweep.windows import Windows

__all__ = ["Decoders", "Passage", "same_encoded"]

_ROWS = 1024  # of a matrix that are compared at once

Decoders = Mapping[str, Mapping[str, Encoded]]  # variant -> checkpoint name -> encoded tensor


class Passage:
    """The streams of one sweep and the model that they pass through.

    calibration and evaluation: windows, or None. progress takes the layer errors and the time spent. group: who shares the
    sweep; each process carries its share of the calibration's and the original's windows, and its own variants' whole.
    work: where tables of what goes with the tokens lie.
    """

    def __init__(
        self,
        *,
        model: BlockModel,
        variants: Sequence[str],
        calibration: Windows | None,
        evaluation: Windows | None,
        streams: Streams,
        progress: Progress,
        group: Group,
        work: Path,
    ) -> None:
        self.model = model
        self.variants = tuple(variants)
        self.streams = streams
        self.progress = progress
        self._group = group
        self._batch = batch_tokens(str(model.device))
        self._calibration = self._share_of(calibration) if calibration else None
        self._base = self._share_of(evaluation) if evaluation else None
        self._evaluation = evaluation
        self._embedding: Decoders = {}
        self._arguments = Arguments(model)
        self._home = Home.of(model, self._calibration, evaluation, len(self.variants))
        streams.hidden = {name: self._home.taken_in(tensor) for name, tensor in streams.hidden.items()}
        for left in streams.shared.values():
            left.update({name: self._home.taken_in(tensor) for name, tensor in left.items()})
        texts = [text for text in (evaluation, calibration) if text]
        self._companions = Companions(model, work / "companions", texts, self._at_once(texts[0]))

    def leave(self, variants: Iterable[str]) -> None:
        """Carry these variants no further."""
        gone = set(variants)
        self.variants = tuple(name for name in self.variants if name not in gone)
        for name in gone:
            self.streams.hidden.pop(name, None)
            self.streams.shared.pop(name, None)

    def enter(self, part: Part, weights: Weights) -> None:
        """Put the original weights that a part computes with into the model."""
        self.model.enter(part, weights)

    def embed(self, part: Part, decoders: Decoders) -> None:
        """Begin all streams; every variant with its own decoded embedding."""
        self._companions.make("base")
        if self._calibration:
            self.streams.hidden["calibration"] = self._embedded(self._calibration)
            self._companions.share("calibration", "base")
        if self._evaluation and self._base:
            self.streams.hidden["base"] = self._embedded(self._base)
            for first, *others in same_encoded(decoders, self.variants):
                with self.decoded(first, decoders), timed(self.progress.seconds, first):
                    hidden = self.streams.hidden[first] = self._embedded(self._evaluation)
                    if decoders.get(first):
                        self._companions.make(first)
                    else:
                        self._companions.share(first, "base")
                for variant in others:
                    with timed(self.progress.seconds, variant):
                        self.streams.hidden[variant] = self._home.empty(hidden.shape).copy_(hidden)
                        self._companions.share(variant, first)
        self.model.remove(part)
        self.keep_embedding(decoders)

    def keep_embedding(self, decoders: Decoders) -> None:
        """A tied head computes with the encoded embedding: keep its bytes until then."""
        if self.model.tied:
            self._embedding = {
                variant: {name: each for name, each in encoded.items() if self.model.serves_head(name)}
                for variant, encoded in decoders.items()
            }

    def enter_tied_head(self, embedding: Mapping[str, torch.Tensor]) -> None:
        """Put the weights that serve the embedding and the head back into the model."""
        self.model.install({name: embedding[name] for name in embedding if self.model.serves_head(name)})

    def head_decoders(self, decoders: Decoders) -> Decoders:
        """The head's decoders, with the embedding's where it is the head too."""
        return {name: {**self._embedding.get(name, {}), **decoders.get(name, {})} for name in self.variants}

    def calibrate(self, part: Part, needs: Needs) -> Mapping[str, InputStatistics]:
        """Carry the calibration windows through the original block and sum what its linear layers see."""
        if not self._calibration:
            return {}
        device = self.model.device
        collector = StatisticsCollector(self.model.linear_weights(part), needs, device)
        experts = ExpertStatistics(self.model.expert_weights(part), self.model.parameter, needs, device)
        quick = HalfProducts() if device.type == "cuda" else nullcontext()
        with timed(self.progress.seconds, "calibration"):
            with quick, collector.listening(), experts.listening():
                self._carry("calibration", part, after_batch=collector.next_batch)
            found = {**collector.statistics(self._group), **experts.statistics(self._group)}
        use = experts.use(part.index, max((seen.tokens for seen in found.values()), default=0))
        self.progress.experts += [use] if use else []
        return found

    def calibrate_head(self, part: Part, needs: Needs) -> Mapping[str, InputStatistics]:
        """What the head's own linear layers see of the calibration windows; nothing where the embedding is the head."""
        linears = self.model.linear_weights(part)
        if not self._calibration or not linears:
            return {}
        collector = StatisticsCollector(linears, needs, self.model.device)
        with timed(self.progress.seconds, "calibration"):
            with collector.listening():
                hidden, size = self.streams.hidden["calibration"], self._at_once(self._calibration)
                for first in range(0, len(hidden), size):  # not once for a share without windows
                    rows = hidden[first : first + size].flatten(0, 1)
                    self.model.reach_head(rows.to(self.model.device))
                    collector.next_batch()
            return collector.statistics(self._group)

    def advance(self, part: Part, decoders: Decoders) -> None:
        """Carry the evaluation windows through the original block and through every decoded variant."""
        if self._evaluation:
            with timed(self.progress.seconds, "base"):
                self._carry("base", part)
            for variant in self.variants:
                with timed(self.progress.seconds, variant), self.decoded(variant, decoders):
                    self._carry(variant, part)
        self.model.remove(part)

    def gather_base(self) -> None:
        """Let every process have the original's stream whole: its variants are compared with it at the head."""
        if self._evaluation is None or self._base is None or self._group.size == 1:
            return
        windows = self._evaluation
        with timed(self.progress.seconds, "base"):
            whole = self._home.empty((windows.count, windows.length, self.model.passage.layout.width)).zero_()
            share = windows.share(self._group.rank, self._group.size, self._at_once(windows))
            whole[share] = self.streams.hidden["base"]
            self._group.all_reduce(whole)
            self.streams.hidden["base"] = whole

    @contextmanager
    def decoded(self, variant: str, decoders: Decoders) -> Iterator[None]:
        """Inside, the part that is entered computes with the variant's decoded weights."""
        encoded = decoders.get(variant, {})
        originals: dict[str, torch.Tensor] = {}
        errors = self.progress.layer_errors.setdefault(variant, {})
        for names in self.model.together(encoded):
            originals |= self._exchange({name: encoded[name] for name in names}, errors)
        yield
        self.model.install(originals, passing=True)

    def _exchange(self, encoded: Mapping[str, Encoded], errors: dict[str, float]) -> dict[str, torch.Tensor]:
        """Install what some tensors decode to; what was there, by name. Nothing decoded outlives its place in the model."""
        originals: dict[str, torch.Tensor] = {}
        weights = {name: each.decode().to(self.model.device) for name, each in encoded.items()}
        for name, weight in weights.items():
            if (original := self.model.installed(name)) is not None:
                originals[name] = original
                errors[name] = _relative_error(original, weight)
        self.model.install(weights, passing=True)
        return originals

    def _carry(self, stream: str, part: Part, after_batch: Callable[[], None] = lambda: None) -> None:
        hidden = self.streams.hidden[stream]
        length = hidden.shape[1]

        def through_block(rows: torch.Tensor, windows: slice) -> torch.Tensor:
            arguments = self._arguments.of(length, rows.shape[0])[part.index]
            states = self._states_of(stream, windows)
            given = arguments.replaced(self._of_stream(stream, part, windows, states))
            carried = self.model.run_block(part.index, rows, given, states)
            after_batch()
            return carried

        self._home.replace(hidden, through_block, max(1, self._batch // length))

    def _of_stream(self, stream: str, part: Part, windows: slice, states: SharedStates) -> dict[Key, Any]:
        """A block's arguments that are a stream's and some windows' own."""
        carried = {"calibration": self._calibration, "base": self._base}.get(stream, self._evaluation)
        beside = self._companions.of(stream, part.index, carried.tokens[windows]) if carried else {}
        passing = self.model.passage
        return (
            beside | dict.fromkeys(passing.shared[part.index], states) | handed_on(passing.handed[part.index], states)
        )

    def _states_of(self, stream: str, windows: slice) -> SharedStates:
        return SharedStates(
            self.streams.shared.setdefault(stream, {}),
            windows,
            self.model.device,
            lambda some: self._home.empty((len(self.streams.hidden[stream]), *some.shape[1:]), some.dtype),
        )

    def _embedded(self, windows: Windows) -> torch.Tensor:
        hidden = self._home.empty((windows.count, windows.length, self.model.passage.layout.width))
        batch = self._at_once(windows)
        for first in range(0, windows.count, batch):
            hidden[first : first + batch] = self.model.embed(windows.tokens[first : first + batch])
        return hidden

    def _at_once(self, windows: Windows) -> int:
        """How many windows pass together."""
        return max(1, self._batch // windows.length)

    def _share_of(self, windows: Windows) -> Windows:
        """What this process carries: whole batches, so that each is computed as one process alone would."""
        return windows.only(windows.share(self._group.rank, self._group.size, self._at_once(windows)))


def same_encoded(decoders: Decoders, variants: Sequence[str]) -> list[list[str]]:
    """Variants grouped by what a part is encoded to, so that each distinct one is decoded once."""
    groups: dict[tuple[tuple[str, int], ...], list[str]] = {}
    for variant in variants:
        key = tuple((name, id(encoded)) for name, encoded in sorted(decoders.get(variant, {}).items()))
        groups.setdefault(key, []).append(variant)
    return list(groups.values())


def _relative_error(original: torch.Tensor, decoded: torch.Tensor) -> float:
    """|W - W'|^2 / |W|^2; the squared error itself where the original is zero. Some rows at a time: no third matrix."""
    pairs = list(zip(original.split(_ROWS), decoded.split(_ROWS), strict=True))  # type: ignore[no-untyped-call]
    energy = float(sum(wanted.float().square().sum() for wanted, _ in pairs))
    error = float(sum((found - wanted.float()).square().sum() for wanted, found in pairs))
    return error / energy if energy else error

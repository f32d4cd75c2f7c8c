"""Carrying the windows of every stream through the part of the model that has its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from hubbot.formats.protocol import Encoded, InputStatistics, Needs
from hubbot.model.parts import Part
from hubbot.sweep.arguments import Arguments
from hubbot.sweep.batches import batch_tokens
from hubbot.sweep.blocks import BlockModel
from hubbot.sweep.calibration import StatisticsCollector
from hubbot.sweep.experts import ExpertStatistics
from hubbot.sweep.home import Home
from hubbot.sweep.streams import Progress, Streams, timed
from hubbot.sweep.windows import Windows

__all__ = ["Decoders", "Passage"]

_ROWS = 1024  # of a matrix that are compared at once

Decoders = Mapping[str, Mapping[str, Encoded]]  # variant -> checkpoint name -> encoded tensor


class Passage:
    """The streams of one sweep and the model that they pass through.

    calibration and evaluation: windows, or None. progress takes the layer errors and the time spent.
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
    ) -> None:
        self.model = model
        self.variants = tuple(variants)
        self.streams = streams
        self.progress = progress
        self._calibration = calibration
        self._evaluation = evaluation
        self._embedding: Decoders = {}
        self._arguments = Arguments(model)
        self._batch = batch_tokens(str(model.device))
        self._home = Home.of(model, calibration, evaluation, len(self.variants))
        streams.hidden = {name: self._home.taken_in(tensor) for name, tensor in streams.hidden.items()}

    def leave(self, variants: Iterable[str]) -> None:
        """Carry these variants no further."""
        gone = set(variants)
        self.variants = tuple(name for name in self.variants if name not in gone)
        for name in gone:
            self.streams.hidden.pop(name, None)

    def enter(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Put a part's original weights into the model."""
        self.model.install(weights)

    def embed(self, part: Part, decoders: Decoders) -> None:
        """Begin all streams; every variant with its own decoded embedding."""
        if self._calibration:
            self.streams.hidden["calibration"] = self._embedded(self._calibration)
        if self._evaluation:
            self.streams.hidden["base"] = self._embedded(self._evaluation)
            for variant in self.variants:
                with self.decoded(variant, decoders), timed(self.progress.seconds, variant):
                    self.streams.hidden[variant] = self._embedded(self._evaluation)
        self.model.remove(part)
        self.keep_embedding(decoders)

    def keep_embedding(self, decoders: Decoders) -> None:
        """A tied head computes with the encoded embedding: keep its bytes until then."""
        if self.model.tied:
            self._embedding = decoders

    def head_decoders(self, decoders: Decoders) -> Decoders:
        """The head's decoders, with the embedding's where it is the head too."""
        return {name: {**self._embedding.get(name, {}), **decoders.get(name, {})} for name in self.variants}

    def calibrate(self, part: Part, needs: Needs) -> Mapping[str, InputStatistics]:
        """Carry the calibration windows through the original block and sum what its linear layers see."""
        if not self._calibration:
            return {}
        collector = StatisticsCollector(self.model.linear_weights(part), needs)
        experts = ExpertStatistics(self.model.expert_weights(part), self.model.parameter, needs)
        with timed(self.progress.seconds, "calibration"), collector.listening(), experts.listening():
            self._carry("calibration", part, after_batch=collector.next_batch)
        found = {**collector.statistics(), **experts.statistics()}
        use = experts.use(part.index, max((seen.tokens for seen in found.values()), default=0))
        self.progress.experts += [use] if use else []
        return found

    def calibrate_head(self, part: Part, needs: Needs) -> Mapping[str, InputStatistics]:
        """What the head's own linear layers see of the calibration windows; nothing where the embedding is the head."""
        linears = self.model.linear_weights(part)
        if not self._calibration or not linears:
            return {}
        collector = StatisticsCollector(linears, needs)
        rows = self.streams.hidden["calibration"].flatten(0, 1)
        with timed(self.progress.seconds, "calibration"), collector.listening():
            for first in range(0, len(rows), self._batch):
                batch = rows[first : first + self._batch].to(self.model.device)
                self.model.reach_head(batch, linears.values())
                collector.next_batch()
        return collector.statistics()

    def advance(self, part: Part, decoders: Decoders) -> None:
        """Carry the evaluation windows through the original block and through every decoded variant."""
        if self._evaluation:
            with timed(self.progress.seconds, "base"):
                self._carry("base", part)
            for variant in self.variants:
                with timed(self.progress.seconds, variant), self.decoded(variant, decoders):
                    self._carry(variant, part)
        self.model.remove(part)

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

        def through_block(rows: torch.Tensor) -> torch.Tensor:
            arguments = self._arguments.of(length, rows.shape[0])[part.index]
            carried = self.model.run_block(part.index, rows, arguments)
            after_batch()
            return carried

        self._home.replace(hidden, through_block, max(1, self._batch // length))

    def _embedded(self, windows: Windows) -> torch.Tensor:
        hidden = self._home.empty((windows.count, windows.length, self.model.hidden_size))
        batch = max(1, self._batch // windows.length)
        for first in range(0, windows.count, batch):
            hidden[first : first + batch] = self.model.embed(windows.tokens[first : first + batch])
        return hidden


def _relative_error(original: torch.Tensor, decoded: torch.Tensor) -> float:
    """|W - W'|^2 / |W|^2; the squared error itself where the original is zero. Some rows at a time: no third matrix."""
    pairs = list(zip(original.split(_ROWS), decoded.split(_ROWS), strict=True))  # type: ignore[no-untyped-call]
    energy = float(sum(wanted.float().square().sum() for wanted, _ in pairs))
    error = float(sum((found - wanted.float()).square().sum() for wanted, found in pairs))
    return error / energy if energy else error

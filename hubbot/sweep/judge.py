"""At the head: all streams become log-probabilities of the same tokens, compared batch by batch.

Base and variants reach the head together, so divergence needs no saved logits.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from hubbot.domain import Perplexity, Score
from hubbot.sweep.batches import logit_bytes
from hubbot.sweep.passage import Decoders, Passage, same_encoded
from hubbot.sweep.references import References
from hubbot.sweep.scores import BaseScores, VariantScores
from hubbot.sweep.streams import timed
from hubbot.sweep.windows import Windows

__all__ = ["Verdicts", "judge"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    base: Perplexity
    scores: dict[str, Score] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Batch:
    """Consecutive rows of one window's hidden states and the tokens that they should predict."""

    text: int
    window: int  # of that text
    place: int  # among the windows of all texts
    rows: slice
    targets: torch.Tensor


def judge(
    passage: Passage, decoders: Decoders, texts: Sequence[Windows], references: References | None
) -> list[Verdicts]:
    """Perplexity of the base and every variant's scores on each text; the head's original weights must be entered.

    references: of the first text.
    """
    court = _Court(passage, decoders, texts, references)
    found = [Verdicts(base=base) for base in court.base()]
    for variants in same_encoded(decoders, passage.variants):
        for verdicts, scores in zip(found, court.compare(variants, found), strict=True):
            verdicts.scores.update(scores)
    return found


class _Court:
    def __init__(
        self, passage: Passage, decoders: Decoders, texts: Sequence[Windows], references: References | None
    ) -> None:
        self._passage, self._decoders = passage, decoders
        self._texts, self._references = texts, references

    def base(self) -> list[Perplexity]:
        scores = [BaseScores() for _ in self._texts]
        with timed(self._passage.progress.seconds, "base"):
            for batch in self._batches():
                logits = self._logits("base", batch)
                self._keep("base", batch, logits)
                scores[batch.text].add(logits.log_softmax(-1), batch.targets, window=batch.window)
        return [found.result() for found in scores]

    def compare(self, variants: Sequence[str], found: Sequence[Verdicts]) -> list[dict[str, Score]]:
        """Scores, text by text, of variants that share one decoded head. found: what is known of the base."""
        passage, model, seconds = self._passage, self._passage.model, self._passage.progress.seconds
        names = [name for name in self._decoders.get(variants[0], {}) if model.installed(name) is not None]
        originals = {name: model.installed(name) for name in names}
        scores = [{variant: VariantScores() for variant in variants} for _ in self._texts]
        with passage.decoded(variants[0], self._decoders):
            self._share_errors(variants, names)
            changed = {name: model.installed(name) for name in names}
            for batch in self._batches():
                with timed(seconds, "base"):
                    self._install(originals)
                    reference = self._logits("base", batch).log_softmax(-1)
                    self._install(changed)
                for variant in variants:
                    with timed(seconds, variant):
                        logits = self._logits(variant, batch)
                        self._keep(variant, batch, logits)
                        kept = scores[batch.text][variant]
                        kept.add(reference, logits.log_softmax(-1), batch.targets, window=batch.window)
        with timed(seconds, "intervals"):
            return [
                {variant: kept.result(verdicts.base) for variant, kept in each.items()}
                for each, verdicts in zip(scores, found, strict=True)
            ]

    def _batches(self) -> Iterator[_Batch]:
        size = max(16, logit_bytes(str(self._passage.model.device)) // (4 * self._passage.model.vocab_size))
        places = itertools.count()
        for text, windows in enumerate(self._texts):
            for window in range(windows.count):
                place = next(places)
                for start in range(windows.first_target[window] - 1, windows.length - 1, size):
                    rows = slice(start, min(start + size, windows.length - 1))
                    targets = windows.tokens[window, rows.start + 1 : rows.stop + 1]
                    yield _Batch(text, window, place, rows, targets.to(self._passage.model.device))

    def _logits(self, stream: str, batch: _Batch) -> torch.Tensor:
        hidden = self._passage.streams.hidden[stream][batch.place, batch.rows]
        return self._passage.model.head(hidden.to(self._passage.model.device)).float()

    def _install(self, tensors: Mapping[str, torch.Tensor | None]) -> None:
        self._passage.model.install({name: tensor for name, tensor in tensors.items() if tensor is not None})

    def _share_errors(self, variants: Sequence[str], names: Sequence[str]) -> None:
        errors = self._passage.progress.layer_errors
        for variant in variants[1:]:
            errors.setdefault(variant, {}).update({name: errors[variants[0]][name] for name in names})

    def _keep(self, stream: str, batch: _Batch, logits: torch.Tensor) -> None:
        if self._references is not None and batch.text == 0:
            self._references.add(stream, batch.window, batch.rows.start, logits)

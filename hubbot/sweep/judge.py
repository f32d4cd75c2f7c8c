"""At the head: all streams become log-probabilities of the same tokens, compared batch by batch.

Base and variants reach the head together, so divergence needs no saved logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from hubbot.domain import Perplexity, Score
from hubbot.sweep.batches import logit_bytes
from hubbot.sweep.passage import Decoders, Passage
from hubbot.sweep.references import References
from hubbot.sweep.scores import BaseScores, VariantScores
from hubbot.sweep.streams import timed
from hubbot.sweep.windows import Windows

__all__ = ["Verdicts", "judge"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    base: Perplexity | None = None
    scores: dict[str, Score] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Batch:
    """Consecutive rows of one window's hidden states and the tokens that they should predict."""

    window: int
    rows: slice
    targets: torch.Tensor


def judge(passage: Passage, decoders: Decoders, evaluation: Windows, references: References | None) -> Verdicts:
    """Perplexity of the base and every variant's scores; the head's original weights must be entered."""
    court = _Court(passage, decoders, evaluation, references)
    base = court.base()
    scores: dict[str, Score] = {}
    for variants in _same_head(decoders, passage.variants):
        scores |= court.compare(variants, base)
    return Verdicts(base=base, scores=scores)


class _Court:
    def __init__(
        self, passage: Passage, decoders: Decoders, evaluation: Windows, references: References | None
    ) -> None:
        self._passage, self._decoders = passage, decoders
        self._evaluation, self._references = evaluation, references

    def base(self) -> Perplexity:
        scores = BaseScores()
        with timed(self._passage.progress.seconds, "base"):
            for batch in self._batches():
                logits = self._logits("base", batch)
                self._keep("base", batch, logits)
                scores.add(logits.log_softmax(-1), batch.targets, window=batch.window)
        return scores.result()

    def compare(self, variants: Sequence[str], base: Perplexity) -> dict[str, Score]:
        """Scores of variants that share one decoded head."""
        passage, model = self._passage, self._passage.model
        names = [name for name in self._decoders.get(variants[0], {}) if model.installed(name) is not None]
        originals = {name: model.installed(name) for name in names}
        scores = {variant: VariantScores() for variant in variants}
        with passage.decoded(variants[0], self._decoders):
            self._share_errors(variants, names)
            changed = {name: model.installed(name) for name in names}
            for batch in self._batches():
                self._install(originals)
                reference = self._logits("base", batch).log_softmax(-1)
                self._install(changed)
                for variant in variants:
                    with timed(passage.progress.seconds, variant):
                        logits = self._logits(variant, batch)
                        self._keep(variant, batch, logits)
                        scores[variant].add(reference, logits.log_softmax(-1), batch.targets, window=batch.window)
        return {variant: found.result(base) for variant, found in scores.items()}

    def _batches(self) -> Iterator[_Batch]:
        windows = self._evaluation
        size = max(16, logit_bytes(str(self._passage.model.device)) // (4 * self._passage.model.vocab_size))
        for window in range(windows.count):
            for start in range(windows.first_target[window] - 1, windows.length - 1, size):
                rows = slice(start, min(start + size, windows.length - 1))
                targets = windows.tokens[window, rows.start + 1 : rows.stop + 1]
                yield _Batch(window, rows, targets.to(self._passage.model.device))

    def _logits(self, stream: str, batch: _Batch) -> torch.Tensor:
        hidden = self._passage.streams.hidden[stream][batch.window, batch.rows]
        return self._passage.model.head(hidden.to(self._passage.model.device)).float()

    def _install(self, tensors: Mapping[str, torch.Tensor | None]) -> None:
        self._passage.model.install({name: tensor for name, tensor in tensors.items() if tensor is not None})

    def _share_errors(self, variants: Sequence[str], names: Sequence[str]) -> None:
        errors = self._passage.progress.layer_errors
        for variant in variants[1:]:
            errors.setdefault(variant, {}).update({name: errors[variants[0]][name] for name in names})

    def _keep(self, stream: str, batch: _Batch, logits: torch.Tensor) -> None:
        if self._references is not None:
            self._references.add(stream, batch.window, batch.rows.start, logits)


def _same_head(decoders: Decoders, variants: Sequence[str]) -> list[list[str]]:
    """Variants grouped by their encoded head, so that each distinct head is decoded once."""
    groups: dict[tuple[tuple[str, int], ...], list[str]] = {}
    for variant in variants:
        key = tuple((name, id(encoded)) for name, encoded in sorted(decoders.get(variant, {}).items()))
        groups.setdefault(key, []).append(variant)
    return list(groups.values())

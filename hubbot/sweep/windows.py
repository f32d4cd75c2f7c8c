"""Text -> token windows of one length, without padding, for calibration and evaluation.

A tokenizer that puts a beginning-of-sequence token before text gets one at the start of every window,
as the model saw it in training; llama.cpp's perplexity tool does the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from hubbot.errors import BadText, Unsupported
from hubbot.model.own_tokenizer import token_ids

__all__ = ["Windows", "calibration_windows", "conversation_windows", "evaluation_windows", "joined", "overlap"]

_SPAN = 32  # tokens: a shared run of this length is no coincidence
_SHARED = 0.25  # share of a window's runs that also stand in the evaluation text


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """Token windows and which of their tokens are scored.

    tokens: int64 [windows, length]. first_target: for each window, the index of the first token whose
    prediction counts; tokens before it are context only.
    """

    tokens: torch.Tensor
    first_target: tuple[int, ...]

    @property
    def count(self) -> int:
        return int(self.tokens.shape[0])

    @property
    def length(self) -> int:
        return int(self.tokens.shape[1])

    def only(self, windows: slice) -> Windows:
        """Some of the windows."""
        return Windows(tokens=self.tokens[windows], first_target=self.first_target[windows])

    def share(self, rank: int, size: int, batch: int) -> slice:
        """The windows that one of `size` processes carries; cut between batches of so many windows."""
        batches = -(-self.count // batch)
        first, last = (min(batches * number // size * batch, self.count) for number in (rank, rank + 1))
        return slice(first, last)

    @property
    def sha256(self) -> str:
        """Of the token ids as little-endian int32, window after window."""
        return hashlib.sha256(self.tokens.numpy().astype("<i4").tobytes()).hexdigest()


def evaluation_windows(
    text: Path, tokenizer: PreTrainedTokenizerBase, *, length: int, stride: int | None, limit: int | None, vocab: int
) -> Windows:
    """The whole text in windows of `length` tokens, `stride` tokens apart (default: no overlap).

    Every token is scored once: with an overlap, only the last `stride` tokens of a window count.
    A rest shorter than a window is left out. Raises BadText where not one window can be filled.
    """
    ids = _encode("\n\n".join(_documents(text)), tokenizer, vocab)
    start = _start(tokenizer)
    body = length - len(start)
    step = min(stride or body, body)
    offsets = list(range(0, len(ids) - body + 1, step))[:limit]
    if not offsets:
        raise BadText(_too_short("evaluation", text, len(ids), body, "a smaller evaluation.context"))
    rows = [np.concatenate([start, ids[offset : offset + body]]) for offset in offsets]
    first = max(len(start), 1)
    later = first if step == body else length - step
    return Windows(
        tokens=torch.from_numpy(np.stack(rows).astype(np.int64)),
        first_target=(first, *[later] * (len(rows) - 1)),
    )


def calibration_windows(
    text: Path, tokenizer: PreTrainedTokenizerBase, *, samples: int, length: int, seed: int, vocab: int
) -> Windows:
    """`samples` windows drawn without overlap from the documents laid end to end.

    Raises BadText where the text has too few tokens for them.
    """
    separator = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    pieces = []
    for document in _documents(text):
        pieces += [_encode(document, tokenizer, vocab), np.array(separator, dtype=np.int64)]
    ids = np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int64)
    start = _start(tokenizer)
    body = length - len(start)
    slots = len(ids) // body
    if slots < samples:
        raise BadText(_too_short("calibration", text, len(ids), samples * body, "fewer or shorter windows"))
    chosen = np.sort(np.random.default_rng(seed).choice(slots, size=samples, replace=False))
    rows = [np.concatenate([start, ids[slot * body : (slot + 1) * body]]) for slot in chosen]
    return Windows(tokens=torch.from_numpy(np.stack(rows).astype(np.int64)), first_target=(1,) * samples)


def conversation_windows(
    conversations: Iterable[str], tokenizer: PreTrainedTokenizerBase, *, name: str, length: int, limit: int, vocab: int
) -> Windows:
    """Conversations one behind the other in at most `limit` windows of `length` tokens.

    Every window begins with a conversation's first token; what stands beyond its end is left out. conversations: as the
    chat template writes them, the beginning-of-sequence token too where there is one. Raises BadText where they do
    not fill one window.
    """
    rows: list[NDArray[np.int64]] = []
    row = np.zeros(0, dtype=np.int64)
    for text in conversations:
        row = np.concatenate([row, _encode(text, tokenizer, vocab)])
        if len(row) >= length:
            rows.append(row[:length])
            row = row[:0]
        if len(rows) == limit:
            break
    if not rows:
        msg = f"The conversations of {name} come to {len(row)} tokens; {length} are needed. Name longer ones or ask for a smaller evaluation.context."
        raise BadText(msg)
    return Windows(tokens=torch.from_numpy(np.stack(rows)), first_target=(1,) * len(rows))


def joined(texts: Sequence[Windows]) -> Windows | None:
    """The windows of texts, all of one length, as those of one; None of no text."""
    if not texts:
        return None
    return Windows(
        tokens=torch.cat([text.tokens for text in texts]),
        first_target=tuple(first for text in texts for first in text.first_target),
    )


def overlap(calibration: Windows, evaluation: Windows) -> int:
    """How many calibration windows share a good part of their text with the evaluation windows.

    A window counts where a quarter of its runs of 32 tokens also stand in the evaluation text.
    """
    if min(calibration.length, evaluation.length) < _SPAN:
        return 0
    known = np.unique(_runs(evaluation.tokens))
    shared = np.isin(_runs(calibration.tokens), known).mean(axis=1)
    return int((shared >= _SHARED).sum())


def _runs(tokens: torch.Tensor) -> NDArray[np.uint64]:
    """A hash of every run of 32 tokens: uint64 [windows, length - 31]."""
    ids = tokens.numpy().astype(np.uint64)
    runs = np.zeros((ids.shape[0], ids.shape[1] - _SPAN + 1), dtype=np.uint64)
    for offset in range(_SPAN):
        runs = runs * np.uint64(0x9E3779B97F4A7C15) + ids[:, offset : offset + runs.shape[1]] + np.uint64(1)
    return runs


def _documents(text: Path) -> Iterator[str]:
    with text.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def _encode(text: str, tokenizer: PreTrainedTokenizerBase, vocab: int) -> NDArray[np.int64]:
    ids = np.asarray(token_ids(tokenizer, text, whole=False), dtype=np.int64)
    if len(ids) and ids.max() >= vocab:
        msg = (
            f"The tokenizer produced token {ids.max()}, but the model's embedding has only {vocab} rows. "
            "Tokenizer and model do not belong together; fix the source."
        )
        raise Unsupported(msg)
    return ids


def _start(tokenizer: PreTrainedTokenizerBase) -> NDArray[np.int64]:
    """The beginning-of-sequence token, where the tokenizer puts one before text; else nothing."""
    ids = token_ids(tokenizer, "a", whole=True)
    bos = tokenizer.bos_token_id
    return np.array([bos] if bos is not None and ids and ids[0] == bos else [], dtype=np.int64)


def _too_short(purpose: str, text: Path, found: int, needed: int, remedy: str) -> str:
    return f"The {purpose} text {text.name} has {found} tokens; {needed} are needed. Name a longer text or ask for {remedy}."

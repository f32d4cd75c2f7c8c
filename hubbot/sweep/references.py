"""The last tokens' logits of every variant, kept for the load check: what its runtime should compute."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from hubbot.sweep.windows import Windows

__all__ = ["References"]


class References:
    """Logits of the last tokens of the first evaluation windows, about `tokens` of them, per stream.

    A runtime reads all of each window, which is what takes time, so there are as few as have that many tokens.
    reach: of how many tokens the windows' beginnings are kept, where that shows what the whole would. It does not in every
    model: what a token's logits are may depend on how long the window is (rope by LongRoPE).
    """

    def __init__(self, evaluation: Windows, *, tokens: int = 128, reach: int | None = None) -> None:
        self._windows = min(max(1, round(tokens / evaluation.length)), evaluation.count)
        rows = tokens // self._windows
        length = min(evaluation.length, reach or evaluation.length)
        self._tokens = evaluation.tokens[: self._windows, :length].clone()
        self._end = min(length, evaluation.length - 1)  # the last token's logits are not computed: nothing follows it
        # nor are those before the first scored row
        self._first = max(*evaluation.first_target[: self._windows], self._end + 1 - rows) - 1
        self._logits: dict[str, torch.Tensor] = {}

    def add(self, stream: str, window: int, start: int, logits: torch.Tensor) -> None:
        """Logits float32 [n, vocab] of a stream's rows from `start` on; what is not needed is passed over."""
        begin, end = max(start, self._first), min(start + len(logits), self._end)
        if window >= self._windows or begin >= end:
            return
        if stream not in self._logits:
            self._logits[stream] = torch.zeros((self._windows, self._end - self._first, logits.shape[-1]))
        rows = slice(begin - self._first, end - self._first)
        self._logits[stream][window, rows] = logits[begin - start : end - start].cpu()

    def save(self, folder: Path) -> dict[str, Path]:
        """One file a stream: `tokens` int64 [windows, length], `logits` float32 [windows, rows, vocab].

        `first` int64 [1] is the token that the first row of logits follows.
        """
        folder.mkdir(parents=True, exist_ok=True)
        paths = {}
        for stream, logits in self._logits.items():
            paths[stream] = folder / f"{stream}.safetensors"
            first = torch.tensor([self._first])
            save_file({"tokens": self._tokens.clone(), "logits": logits, "first": first}, paths[stream])
        return paths

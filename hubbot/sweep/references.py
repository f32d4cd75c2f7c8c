"""The first tokens' logits of every variant, kept for the load check: what its runtime should compute."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from hubbot.sweep.windows import Windows

__all__ = ["References"]


class References:
    """Logits of the first `length` tokens of the first `windows` evaluation windows, per stream."""

    def __init__(self, evaluation: Windows, *, windows: int = 2, length: int = 64) -> None:
        self._windows = min(windows, evaluation.count)
        self._first = min(evaluation.first_target[: self._windows]) - 1  # no logits before the first scored row
        self._length = min(length, evaluation.length - 1)
        self._tokens = evaluation.tokens[: self._windows, : self._length].clone()
        self._logits: dict[str, torch.Tensor] = {}

    def add(self, stream: str, window: int, start: int, logits: torch.Tensor) -> None:
        """Logits float32 [n, vocab] of a stream's rows from `start` on; what is not needed is passed over."""
        if window >= self._windows or start >= self._length:
            return
        if stream not in self._logits:
            self._logits[stream] = torch.zeros((self._windows, self._length, logits.shape[-1]))
        rows = min(len(logits), self._length - start)
        self._logits[stream][window, start : start + rows] = logits[:rows].cpu()

    def save(self, folder: Path) -> dict[str, Path]:
        """One file a stream: `tokens` int64 [windows, length], `logits` float32 [windows, length, vocab].

        `first` int64 [1] is the first row whose logits were computed.
        """
        folder.mkdir(parents=True, exist_ok=True)
        paths = {}
        for stream, logits in self._logits.items():
            paths[stream] = folder / f"{stream}.safetensors"
            first = torch.tensor([self._first])
            save_file({"tokens": self._tokens.clone(), "logits": logits, "first": first}, paths[stream])
        return paths

"""What tells two files, tokenizers or chat templates apart; of these the source's from a variant's, as its runtime reads them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

__all__ = ["PROBE", "file_digest", "template_digest", "tokenizer_digest"]

# A text whose token ids tell tokenizers apart: digits, runs of blanks, case, accents, scripts, emoji, code.
# Nothing that compatibility normalization (NFKC) would rewrite: no runtime but the original's does that.
PROBE = (
    "The quick brown fox's 12345.678 jumps, isn't it?  Two  blanks\n\n\tand a tab; "
    "naïve Ça façade Straße Привет 你好世界 こんにちは مرحبا 👩‍👧\n"
    "def f(x: int) -> str:\n    return f'{x!r:>8}'  # 0xFF <b>&amp;</b>"
)


def file_digest(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tokenizer_digest(ids: Sequence[int]) -> str:
    """sha256 of the token ids of PROBE (without special tokens), as decimal numbers and blanks."""
    return hashlib.sha256(" ".join(str(int(token)) for token in ids).encode()).hexdigest()


def template_digest(template: str) -> str:
    """sha256 of a chat template's text; a final line break makes no difference to what it renders."""
    return hashlib.sha256(template.rstrip("\n").encode("utf-8", "replace")).hexdigest()

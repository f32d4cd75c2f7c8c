"""What a command of the action left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubbot.domain import Record
from hubbot.errors import VariantsRefused


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a command left: everything that outputs and summary are made of."""

    record: Record | None = None  # None: nothing was made, as by a plan
    record_path: Path | None = None
    published: tuple[str, ...] = ()  # URLs of the repos that hold a release
    pull_requests: tuple[str, ...] = ()  # URLs of pull requests that wait for a maintainer
    matrix: Mapping[str, Any] | None = None
    summary: str = ""  # Markdown


class SomeRefused(VariantsRefused):
    """The gate refused variants; what became of the others is in `outcome`."""

    def __init__(self, message: str, outcome: Outcome) -> None:
        super().__init__(message)
        self.outcome = outcome

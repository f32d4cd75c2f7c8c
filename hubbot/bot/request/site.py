"""Where a workflow runs that answers requests."""

from __future__ import annotations

from dataclasses import dataclass

from hubbot.bot.github import GitHub
from hubbot.cards.escape import url

__all__ = ["Site"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where a workflow runs, and who it is on GitHub."""

    github: GitHub
    server: str  # address of the web pages
    run: int
    me: str  # login that our comments are from

    def link(self, run: int) -> str:
        return f"[run {run}]({url(f'{self.server}/{self.github.repo}/actions/runs/{run}')})"

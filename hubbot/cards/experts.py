"""What the calibration's tokens made of a mixture's experts: a sentence of a card, and a table of the blocks."""

from __future__ import annotations

from hubbot.cards import figures
from hubbot.cards.frontmatter import used
from hubbot.domain import Record
from hubbot.formats.protocol import FEWEST_TOKENS, Needs
from hubbot.release.repos import Repo

__all__ = ["experts_said", "experts_table"]


def experts_said(record: Record, repo: Repo) -> str | None:
    """Nothing where no variant of the repo took anything from the calibration."""
    needs = used(record, repo)
    if not record.experts or needs is Needs.NOTHING:
        return None
    worst = min(record.experts, key=lambda use: use.least)
    few, blocks = sum(use.few for use in record.experts), sum(use.few > 0 for use in record.experts)
    said = (
        f"of each block's calibration tokens, the expert with the fewest saw {_share(worst.least)} at least "
        f"(block {worst.block}, whose median expert saw {_share(worst.median)})"
    )
    if not few:
        return said
    everyone = sum(use.experts for use in record.experts)
    fate = "were rounded plainly" if needs.hessian else "have an importance of so few tokens"
    return f"{said}; {few:,} of {everyone:,}, in {blocks:,} of {len(record.experts):,} blocks, saw {FEWEST_TOKENS:.1%} or less and {fate}"


def experts_table(record: Record, repo: Repo) -> str:
    """A row for each block; empty where there is nothing to say."""
    if experts_said(record, repo) is None:
        return ""
    head = [("Block", "--:"), ("Experts", "--:"), ("Too few tokens", "--:"), ("Least share", "--:"), ("Median", "--:")]
    rows = [
        [str(use.block), f"{use.experts:,}", f"{use.few:,}", _share(use.least), _share(use.median)]
        for use in record.experts
    ]
    return figures.table(head, rows)


def _share(share: float) -> str:
    return f"{share:.2%}"

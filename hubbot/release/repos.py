"""Which repo on the Hub every variant goes to, and under which revision. Pure.

One repo for each kind: GGUF files side by side on main; a GPTQ or bitsandbytes checkpoint fills a whole
revision, so the recommended one takes main and every other one a branch with its own name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath

from hubbot.domain import Family, File, Record, Status, Variant, VariantRecord, family_of
from hubbot.errors import BadSettings
from hubbot.release.gate import nominal_bits, recommend
from hubbot.settings import PublishSettings

__all__ = ["Kind", "Repo", "plan_repos", "target_repos"]


class Kind(StrEnum):
    GGUF = "gguf"
    GPTQ = "gptq"
    BNB_4BIT = "bnb-4bit"
    BNB_8BIT = "bnb-8bit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Repo:
    """A repo to be: its variants are those that passed, the recommended one first."""

    kind: Kind
    repo_id: str  # "owner/name", or the name alone while nobody says who publishes
    variants: tuple[VariantRecord, ...]

    @property
    def name(self) -> str:
        return self.repo_id.rsplit("/", 1)[-1]

    @property
    def recommended(self) -> VariantRecord:
        return self.variants[0]

    def revision(self, variant: VariantRecord) -> str:
        """The branch that holds a variant."""
        return "main" if self.kind is Kind.GGUF or variant is self.recommended else variant.name

    def place(self, variant: VariantRecord, file: File) -> str:
        """A file's path in the repo: `gptq/<variant>/x/y` of the output folder is `x/y` of the variant's branch."""
        parts = PurePosixPath(file.path).parts
        below = parts[2:] if parts[:2] == (str(variant.family), variant.name) else parts[-1:]
        return str(PurePosixPath(*below))


def kind_of(variant: VariantRecord) -> Kind:
    match variant.family:
        case Family.GGUF:
            return Kind.GGUF
        case Family.GPTQ:
            return Kind.GPTQ
        case Family.BNB:
            return Kind.BNB_8BIT if nominal_bits(variant) == 8 else Kind.BNB_4BIT


def plan_repos(record: Record, publish: PublishSettings) -> tuple[Repo, ...]:
    """The repos of a gated record. A kind of which nothing passed has none. Raises BadSettings for a bad name template."""
    by_kind: dict[Kind, list[VariantRecord]] = {}
    for variant in record.variants:
        if variant.passed:
            by_kind.setdefault(kind_of(variant), []).append(variant)
    templates = _templates(publish)
    repos = []
    for kind in Kind:
        if variants := by_kind.get(kind):
            best = recommend(variants)
            name = _fill(templates[kind], record.source.name)
            repo_id = f"{publish.namespace}/{name}" if publish.namespace else name
            repos.append(
                Repo(kind=kind, repo_id=repo_id, variants=tuple(sorted(variants, key=lambda v: v is not best)))
            )
    return tuple(repos)


def target_repos(model: str, variants: Iterable[Variant], publish: PublishSettings) -> dict[str, frozenset[str]]:
    """Repo -> names of the variants that will be in it if all of them pass; before anything was made."""
    templates = _templates(publish)
    found: dict[str, frozenset[str]] = {}
    for variant in variants:
        kind = kind_of(VariantRecord(name=variant.name, family=family_of(variant), status=Status.PASSED))
        name = _fill(templates[kind], model.rsplit("/", 1)[-1])
        repo = f"{publish.namespace}/{name}" if publish.namespace else name
        found[repo] = found.get(repo, frozenset()) | {variant.name}
    return found


def _templates(publish: PublishSettings) -> Mapping[Kind, str]:
    return {
        Kind.GGUF: publish.gguf,
        Kind.GPTQ: publish.gptq,
        Kind.BNB_4BIT: publish.bnb_4bit,
        Kind.BNB_8BIT: publish.bnb_8bit,
    }


def _fill(template: str, name: str) -> str:
    plain = re.sub(r"\.{2,}", ".", re.sub(r"[^A-Za-z0-9._]+", "-", name)).strip("-.")[:80]  # the Hub refuses -- and ..
    filled = template.replace("{name}", plain or "model")
    if "{" in filled or "}" in filled or "/" in filled:
        msg = f"{template!r} is no name of a repo; {{name}} stands for the model's name, and no other braces or slashes are known."
        raise BadSettings(msg)
    return filled

"""Which repo on the Hub every variant goes to, and under which revision. Pure.

One repo for each kind: GGUF files side by side on main; a GPTQ or bitsandbytes checkpoint fills a whole
revision, so the recommended one takes main and every other one a branch with its own name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from hubbot.domain import Family, File, Record, Variant, VariantRecord
from hubbot.errors import BadSettings
from hubbot.formats import FAMILIES
from hubbot.formats.family import About, Kind
from hubbot.release.gate import nominal_bits, recommend
from hubbot.settings import PublishSettings

__all__ = ["Repo", "kind_of", "plan_repos", "target_repos", "with_owner"]


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

    @property
    def about(self) -> About:
        """What is to be known of its family."""
        return FAMILIES[self.recommended.family].ABOUT

    def revision(self, variant: VariantRecord) -> str:
        """The branch that holds a variant."""
        return variant.name if self.about.folder and variant is not self.recommended else "main"

    def place(self, variant: VariantRecord, file: File) -> str:
        """A file's path in the repo: `gptq/<variant>/x/y` of the output folder is `x/y` of the variant's branch."""
        parts = PurePosixPath(file.path).parts
        below = parts[2:] if parts[:2] == (str(variant.family), variant.name) else parts[-1:]
        return str(PurePosixPath(*below))


def kind_of(variant: VariantRecord) -> Kind:
    return _kind(variant.family, nominal_bits(variant))


def _kind(family: Family, bits: float) -> Kind:
    kinds = FAMILIES[family].ABOUT.kinds
    return next((kind for kind in kinds if kind.bits == bits), kinds[0])


def plan_repos(record: Record, publish: PublishSettings) -> tuple[Repo, ...]:
    """The repos of a gated record. A kind of which nothing passed has none. Raises BadSettings for a bad name template."""
    by_kind: dict[Kind, list[VariantRecord]] = {}
    for variant in record.variants:
        if variant.passed:
            by_kind.setdefault(kind_of(variant), []).append(variant)
    repos = []
    for kind in (kind for family in FAMILIES.values() for kind in family.ABOUT.kinds):
        if variants := by_kind.get(kind):
            best = recommend(variants)
            name = _fill(kind.name(publish), record.source.name, _owner(record.source.repo))
            repo_id = f"{publish.namespace}/{name}" if publish.namespace else name
            repos.append(
                Repo(kind=kind, repo_id=repo_id, variants=tuple(sorted(variants, key=lambda v: v is not best)))
            )
    return tuple(repos)


def target_repos(model: str, variants: Iterable[Variant], publish: PublishSettings) -> dict[str, frozenset[str]]:
    """Repo -> names of the variants that will be in it if all of them pass; before anything was made."""
    found: dict[str, frozenset[str]] = {}
    for variant in variants:
        kind = _kind(variant.family, variant.bits)
        name = _fill(kind.name(publish), model.rsplit("/", 1)[-1], _owner(model))
        repo = f"{publish.namespace}/{name}" if publish.namespace else name
        found[repo] = found.get(repo, frozenset()) | {variant.name}
    return found


def _owner(model: str | None) -> str:
    """Who owns a model of the Hub; a local folder's is nobody's."""
    return model.split("/", 1)[0] if model and "/" in model and not model.startswith(("/", ".", "~")) else "local"


def with_owner(publish: PublishSettings) -> PublishSettings:
    """The same, with the model's owner in the name of every repo: for where two models have one name."""
    templates = {key: value for key, value in publish if isinstance(value, str) and "{name}" in value}
    return publish.model_copy(
        update={
            key: value if "{owner}" in value else value.replace("{name}", "{owner}-{name}", 1)
            for key, value in templates.items()
        }
    )


def _fill(template: str, name: str, owner: str) -> str:
    filled = template.replace("{name}", _plain(name) or "model").replace("{owner}", _plain(owner))
    if "{" in filled or "}" in filled or "/" in filled:
        msg = f"{template!r} is no name of a repo; {{name}} stands for the model's name, {{owner}} for its owner's, and no other braces or slashes are known."
        raise BadSettings(msg)
    return filled


def _plain(name: str) -> str:
    """Of letters that a repo's name may hold; the Hub refuses -- and .. too."""
    return re.sub(r"\.{2,}", ".", re.sub(r"[^A-Za-z0-9._]+", "-", name)).strip("-.")[:80]

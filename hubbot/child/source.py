"""What the child finds in a model's folder, and what the files say about it."""

from __future__ import annotations

from pathlib import Path

from hubbot.child.messages import Description
from hubbot.domain import Source
from hubbot.model import ModelFacts, read_facts, unpickle
from hubbot.settings import Settings

__all__ = ["describe", "facts_of"]


def facts_of(source: Source, settings: Settings, work: Path) -> ModelFacts:
    """What the snapshot holds; a pickle-only one, where that is allowed, is turned into safetensors first."""
    facts = read_facts(Path(source.folder), allow_pickle=settings.allow_pickle)
    if not any(info.file.endswith(".safetensors") for info in facts.tensors.values()):
        unpickle(facts.folder, work / "unpickled")
        facts = read_facts(work / "unpickled")
    return facts


def describe(facts: ModelFacts) -> Description:
    return Description(
        license=facts.license,
        license_name=facts.license_name,
        license_link=facts.license_link,
        gated=facts.gated,
        architecture=facts.architecture,
        parameters=facts.parameters,
        language=facts.language,
        pipeline_tag=facts.pipeline_tag,
        tags=facts.tags,
        context_length=facts.context_length,
        kv_bytes_per_token=facts.kv_bytes_per_token,
    )

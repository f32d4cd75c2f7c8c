"""What the child finds in a model's folder, and what the files say about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from hubbot.cards.prompt import PromptFormat, prompt_format
from hubbot.child.messages import Description
from hubbot.domain import Source
from hubbot.errors import SourceRefused
from hubbot.model import ModelFacts, part_layout, read_facts, unpickle
from hubbot.model.agreement import agreed
from hubbot.model.generation import check_generation
from hubbot.model.own_tokenizer import load_tokenizer
from hubbot.model.released import MADE_OF_ANOTHER
from hubbot.model.tokens import check_vocabulary
from hubbot.settings import Settings
from hubbot.sweep.blocks import BlockModel
from hubbot.sweep.differentiable import obstacle

__all__ = ["conversation", "describe", "examine", "facts_of"]


def facts_of(source: Source, settings: Settings, work: Path) -> ModelFacts:
    """What the snapshot holds; a pickle-only one, where that is allowed, is turned into safetensors first.

    Raises SourceRefused for what somebody has made of an original, unless forced, and as `read_facts` does.
    """
    facts = read_facts(Path(source.folder), allow_pickle=settings.allow_pickle)
    if not any(info.file.endswith(".safetensors") for info in facts.tensors.values()):
        unpickle(facts.folder, work / "unpickled")
        facts = read_facts(work / "unpickled")
    if facts.released_as in MADE_OF_ANOTHER and not settings.force:
        msg = f"The model is already quantized ({facts.released_as} in config.json). Quantizing twice adds the errors of both; give the original model. --force makes variants of this one, and the card says what they were made from."
        raise SourceRefused(msg)
    return facts


def examine(facts: ModelFacts, *, gradients: bool = False) -> ModelFacts:
    """Compare everything that can disagree before a weight is read, and walk the model without its weights.

    gradients: whether they are to pass back through its blocks, too.
    Returns the facts with what only the built model knows. Raises SourceRefused and Unsupported, by name and value.
    """
    found = agreed(facts)
    walked = BlockModel(facts.folder, part_layout(facts), torch.device("cpu"))
    check_generation(facts.folder)
    tokenizer = load_tokenizer(facts.folder)
    check_vocabulary(facts.folder, tokenizer.get_vocab(), walked.vocab_size)
    written = _written(facts.chat_templates, tokenizer)
    passing = walked.passage
    return replace(
        found,
        stream_width=passing.stream_width,
        companions=passing.companion_bytes,
        borrowed=walked.borrowed,
        undifferentiated=obstacle(walked) if gradients and passing.alone else None,
        conversation=written.text or "",
        notes=(*found.notes, *_on_template(written)),
    )


def conversation(templates: Mapping[str, str], tokenizer: PreTrainedTokenizerBase) -> str:
    """A short conversation as the source's chat template writes it; empty without one, and where it fails."""
    return _written(templates, tokenizer).text or ""


def _written(templates: Mapping[str, str], tokenizer: PreTrainedTokenizerBase) -> PromptFormat:
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return prompt_format(templates["default"], special) if "default" in templates else PromptFormat()


def _on_template(written: PromptFormat) -> Iterator[str]:
    """What a plan says of a template that writes no conversation."""
    if written.reason:
        yield (
            f"{written.reason}: cards show no conversation, and every file carries the template as it is, "
            "with which runtimes may refuse to chat"
        )


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
        experts=facts.experts,
        released_as=facts.released_as,
    )

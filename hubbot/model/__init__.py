"""Reads a model's folder as the input from a stranger that it is, and says what is in it.

Nothing of the model runs here and no weight is read: file names, headers and small JSON and YAML files,
each within bounds. What breaks a rule is refused with a sentence that names the rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from hubbot.errors import SourceRefused
from hubbot.model import snapshot
from hubbot.model.config import ModelConfig, read_config
from hubbot.model.front_matter import Front, read_front_matter
from hubbot.model.parts import Part, part_layout_of
from hubbot.model.pickles import read_pickled_tensors, unpickle
from hubbot.model.safetensors import TensorInfo
from hubbot.model.tokenizer import check_tokenizer, read_chat_templates

__all__ = ["ModelFacts", "TensorInfo", "check_finite", "part_layout", "read_facts", "unpickle"]

_WEIGHTS = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What a snapshot holds, checked."""

    folder: Path
    architecture: str
    model_type: str
    config: Mapping[str, Any]  # config.json
    tensors: Mapping[str, TensorInfo]  # checkpoint name -> dtype, shape, place
    hidden_size: int
    layers: int
    vocab_size: int
    context_length: int | None  # tokens
    kv_bytes_per_token: int | None  # of a 16-bit key/value cache
    tied: bool  # the head computes with the embedding's weights
    experts: int  # of a mixture-of-experts layer; 0 for a dense model
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    gated: bool = False
    language: tuple[str, ...] = ()
    pipeline_tag: str | None = None
    tags: tuple[str, ...] = ()
    base_model: tuple[str, ...] = ()
    chat_templates: Mapping[str, str] = field(default_factory=dict)  # name -> template
    notes: tuple[str, ...] = ()

    @property
    def chat_template(self) -> str | None:
        """What a plain conversation is written with."""
        return self.chat_templates.get("default")

    @cached_property
    def parameters(self) -> int:
        """Number of weights stored."""
        return sum(info.count for info in self.tensors.values())

    @cached_property
    def weight_bytes(self) -> int:
        return sum(info.size for info in self.tensors.values())


def read_facts(folder: Path, *, allow_pickle: bool = False) -> ModelFacts:
    """What the snapshot in `folder` holds; also of one whose safetensors have headers and no data yet.

    allow_pickle: list a pickle-only checkpoint too (`unpickle` makes safetensors of it).
    Raises SourceRefused and its children, and Unsupported, each with the file and the rule.
    """
    files = snapshot.visible_files(folder)
    tensors = read_pickled_tensors(files) if allow_pickle and _pickle_only(files) else snapshot.read_tensors(files)
    if "config.json" not in files:
        msg = f"{folder.name} has no config.json, so nobody knows how to run the weights. Fetch the model whole."
        raise SourceRefused(msg)
    config = read_config(files["config.json"])
    _refuse_integers(tensors)
    check_tokenizer(files)
    front = read_front_matter(files["README.md"]) if "README.md" in files else Front()
    facts = _facts(folder, config, tensors, front, read_chat_templates(files))
    part_layout(facts)  # refuses a checkpoint that config.json does not describe
    return facts


def part_layout(facts: ModelFacts) -> tuple[Part, ...]:
    """The embedding, every decoder block and the head, each with its tensors; every tensor in one part."""
    return part_layout_of(facts.tensors, facts.layers)


def check_finite(folder: Path, facts: ModelFacts) -> None:
    """Read every weight once. Raises SourceRefused for one that is infinite or not a number, naming it."""
    from hubbot.model.finite import check_tensors  # and numpy, which most readers of facts do without

    check_tensors(folder, facts.tensors)


def _pickle_only(files: Mapping[str, Path]) -> bool:
    return snapshot.SINGLE not in files and snapshot.INDEX not in files


def _facts(
    folder: Path, config: ModelConfig, tensors: Mapping[str, TensorInfo], front: Front, templates: Mapping[str, str]
) -> ModelFacts:
    return ModelFacts(
        folder=folder,
        architecture=config.architecture,
        model_type=config.model_type,
        config=config.values,
        tensors=tensors,
        hidden_size=config.hidden_size,
        layers=config.layers,
        vocab_size=config.vocab_size,
        context_length=config.context_length,
        kv_bytes_per_token=_kv_bytes(config),
        tied=bool(config.ties_embeddings) or not _has_head(tensors),
        experts=config.experts,
        license=front.license,
        license_name=front.license_name,
        license_link=front.license_link,
        gated=front.gated,
        language=front.language,
        pipeline_tag=front.pipeline_tag,
        tags=front.tags,
        base_model=front.base_model,
        chat_templates=templates,
        notes=config.notes,
    )


def _kv_bytes(config: ModelConfig) -> int | None:
    """Keys and values of every block, two bytes each, for one token."""
    if not (config.kv_heads and config.head_size) or "kv_lora_rank" in config.values:  # DeepSeek's is compressed
        return None
    return 2 * config.layers * config.kv_heads * config.head_size * 2


def _has_head(tensors: Mapping[str, TensorInfo]) -> bool:
    return any(name.split(".")[-2:-1] in (["lm_head"], ["embed_out"], ["output"]) for name in tensors)


def _refuse_integers(tensors: Mapping[str, TensorInfo]) -> None:
    """Weights must be floating point; masks and position tables may be anything."""
    for name, info in tensors.items():
        if name.endswith(".weight") and info.dtype not in _WEIGHTS:
            msg = f"{name} is stored as {info.dtype}; F32, F16 or BF16 is needed. The model seems to be quantized already: give the original."
            raise SourceRefused(msg)

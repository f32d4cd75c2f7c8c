"""Reads a model's folder as the input from a stranger that it is, and says what is in it.

Nothing of the model runs here and no weight is read: file names, headers and small JSON and YAML files,
each within bounds. What breaks a rule is refused with a sentence that names the rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubbot.errors import SourceRefused
from hubbot.model import snapshot
from hubbot.model.companions import check_modules
from hubbot.model.config import ModelConfig, read_config, text_part
from hubbot.model.front_matter import Front, read_front_matter
from hubbot.model.parts import Part, part_layout_of
from hubbot.model.pickles import read_pickled_tensors, unpickle
from hubbot.model.prediction import note_on, prediction_tensors
from hubbot.model.released import holds_codes, released_weights
from hubbot.model.safetensors import TensorInfo
from hubbot.model.tokenizer import check_tokenizer, read_chat_templates, read_tokenizer_json
from hubbot.model.tokens import check_named_ids

if TYPE_CHECKING:
    from hubbot.model.finite import Large

__all__ = ["ModelFacts", "TensorInfo", "check_finite", "part_layout", "read_facts", "unpickle"]

_WEIGHTS = frozenset({"F64", "F32", "F16", "BF16"})
_PACKED = frozenset({"F4", "F6_E2M3", "F6_E3M2"})  # several values a byte, or parts of them
_OF_CODES = ("_blocks", "_packed", ".qweight")  # MXFP4, compressed-tensors, GPTQ and AWQ


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What a snapshot holds, checked."""

    folder: Path
    architecture: str
    model_type: str
    config: Mapping[str, Any]  # config.json, as it is of the decoded weights
    tensors: Mapping[str, TensorInfo]  # checkpoint name -> dtype, shape, place
    hidden_size: int
    layers: int
    vocab_size: int
    context_length: int | None  # tokens
    kv_bytes_per_token: int | None  # of a 16-bit key/value cache
    tied: bool  # the head computes with the embedding's weights
    experts: int  # of a mixture-of-experts layer; 0 for a dense model
    stream_width: int | None = None  # numbers a token that pass from block to block; None: as many as hidden_size
    companions: tuple[int, ...] = ()  # bytes a token of what blocks are given beside them, table by table
    borrowed: Mapping[int, tuple[str, ...]] = field(
        default_factory=dict
    )  # block -> tensors of other parts that it computes with too
    undifferentiated: str | None = None  # what torch says where no gradient passes back through a block
    released_as: str | None = None  # quantized format that the original's weights are stored in, "FP8"
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    gated: bool = False
    language: tuple[str, ...] = ()
    pipeline_tag: str | None = None
    tags: tuple[str, ...] = ()
    base_model: tuple[str, ...] = ()
    chat_templates: Mapping[str, str] = field(default_factory=dict)  # name -> template
    conversation: str = ""  # a short one as the template of a plain conversation writes it; known once that was run
    prediction: tuple[str, ...] = ()  # tensors of blocks that predict further tokens: stored, not computed with
    unused: tuple[str, ...] = ()  # stored tensors that the model has no place for; known once it was built
    twins: tuple[tuple[str, str], ...] = ()  # stored tensors that are one parameter of the model, in pairs
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
        """As they lie in the files."""
        return sum(info.size + (info.coded.scales.size if info.coded else 0) for info in self.tensors.values())

    @cached_property
    def decoded_bytes(self) -> int:
        """As everything computes with them."""
        return sum(info.read_size for info in self.tensors.values())


def read_facts(folder: Path, *, allow_pickle: bool = False) -> ModelFacts:
    """What the snapshot in `folder` holds; also of one whose safetensors have headers and no data yet.

    allow_pickle: list a pickle-only checkpoint too (`unpickle` makes safetensors of it).
    Raises SourceRefused and its children, and Unsupported, each with the file and the rule.
    """
    files = snapshot.visible_files(folder)
    snapshot.refuse_pointers(files)
    pickled = allow_pickle and _pickle_only(files)
    if not pickled:
        snapshot.require_weights(files)
    if "config.json" not in files:
        msg = f"{folder.name} has no config.json, so nobody knows how to run the weights. Fetch the model whole."
        raise SourceRefused(msg)
    config = read_config(files["config.json"], _defaults)
    ties = config.ties_embeddings is not False
    tensors = read_pickled_tensors(files) if pickled else snapshot.read_tensors(files, tied=ties)
    config, left = _with_release_of(tensors, config)
    tensors, notes = _decoded(tensors, config)
    _refuse_integers(tensors, coded=config.release is not None)
    check_tokenizer(files)
    check_modules(files)
    check_named_ids(_naming_ids(files, config), config.vocab_size)
    front = read_front_matter(files["README.md"]) if "README.md" in files else Front()
    found = _facts(folder, config, tensors, front, read_chat_templates(files))
    return replace(found, notes=(*left, *notes, *found.notes))


def part_layout(facts: ModelFacts) -> tuple[Part, ...]:
    """The embedding, every decoder block and the head, each with its tensors; every tensor in one part."""
    return part_layout_of(facts.tensors, facts.layers)


def check_finite(folder: Path, facts: ModelFacts) -> dict[str, Large]:
    """Read every weight once; returns the tensors with values beyond float16, each with its largest.

    Raises SourceRefused for a value that is infinite or not a number, and where a tied head and its embedding
    are both stored and differ.
    """
    from hubbot.model.finite import check_equal, check_tensors  # and numpy, which most readers of facts do without

    def decoder(name: str) -> Any:
        import torch

        from hubbot.model.weights import read_tensor

        return read_tensor(folder, name, facts.tensors[name]).reshape(-1).view(torch.uint8).numpy()

    large = check_tensors(folder, facts.tensors, decoder)
    for first, second in facts.twins:
        check_equal(folder, facts.tensors, decoder, first, second)
    return large


def _defaults(model_type: str) -> Mapping[str, Any]:
    from hubbot.model.empty import config_defaults  # and torch, which models of text alone are read without

    return config_defaults(model_type)


def _naming_ids(files: Mapping[str, Path], config: ModelConfig) -> dict[str, Mapping[str, Any]]:
    """What names token ids: file -> its values."""
    found: dict[str, Mapping[str, Any]] = {"config.json": {**config.values, **text_part(config.values)}}
    if "generation_config.json" in files:
        found["generation_config.json"] = read_tokenizer_json(files["generation_config.json"])
    return found


def _pickle_only(files: Mapping[str, Path]) -> bool:
    return snapshot.SINGLE not in files and snapshot.INDEX not in files


def _with_release_of(tensors: Mapping[str, TensorInfo], config: ModelConfig) -> tuple[ModelConfig, tuple[str, ...]]:
    """The configuration without the format that it speaks of where no tensor is stored in one, and a note on that.

    Raises SourceRefused for weights in a format that is not read.
    """
    release = config.release
    if release is None:
        return config, ()
    if holds_codes(tensors):
        if release.refusal:
            raise SourceRefused(release.refusal)
        return config, ()
    if release.of_whole:
        raise SourceRefused(release.of_whole)
    note = f"config.json speaks of quantized weights ({release.title}) and all that are stored are whole: they are taken as they are, and the variants' files say nothing of it"
    return replace(config, release=None), (note,)


def _decoded(tensors: dict[str, TensorInfo], config: ModelConfig) -> tuple[dict[str, TensorInfo], tuple[str, ...]]:
    """The tensors as those of the model that is computed with, and what is to be said of that."""
    if config.release is None:
        return tensors, ()
    decoded, dropped = released_weights(tensors, config.release)
    coded = sum(info.coded is not None for info in decoded.values())
    left = f"; {dropped} scales of activations are left out, for activations are not rounded here" if dropped else ""
    return decoded, (f"made from {config.release.title} weights: {coded} tensors are decoded to bfloat16{left}",)


def _facts(
    folder: Path, config: ModelConfig, tensors: Mapping[str, TensorInfo], front: Front, templates: Mapping[str, str]
) -> ModelFacts:
    prediction = prediction_tensors(tensors, config.layers, text_part(config.values))
    rounded = sum(info.stored == "F64" for info in tensors.values())
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
        tied=bool(config.ties_embeddings) or not any(map(snapshot.is_head, tensors)),
        experts=config.experts,
        released_as=config.release.title if config.release else None,
        license=front.license,
        license_name=front.license_name,
        license_link=front.license_link,
        gated=front.gated,
        language=front.language,
        pipeline_tag=front.pipeline_tag,
        tags=front.tags,
        base_model=front.base_model,
        chat_templates=templates,
        prediction=prediction,
        notes=(
            *config.notes,
            *note_on(prediction),
            *((f"{rounded} tensors are stored as float64 and rounded to float32",) if rounded else ()),
        ),
    )


def _kv_bytes(config: ModelConfig) -> int | None:
    """Keys and values of every block, two bytes each, for one token."""
    if not (config.kv_heads and config.head_size) or "kv_lora_rank" in config.values:  # DeepSeek's is compressed
        return None
    return 2 * config.layers * config.kv_heads * config.head_size * 2


def _refuse_integers(tensors: Mapping[str, TensorInfo], *, coded: bool) -> None:
    """Weights must be floating point; masks and position tables may be anything that torch holds.

    coded: whether config.json says how codes are read.
    """
    for name, info in tensors.items():
        if info.stored in _PACKED:
            msg = f"{name} is stored as {info.stored}, which torch has no type for. Take it out of a copy of the model if it is no weight; otherwise the model seems to be quantized already: give the original."
            raise SourceRefused(msg)
        if not coded and name.endswith(_OF_CODES) and info.stored[0] in "UI":
            msg = f"{name} is stored as {info.stored}, as codes of a quantization are, and config.json has no quantization_config that says how to read them. Put back the one that was lost if they are the original, or give the original."
            raise SourceRefused(msg)
        if name.endswith(".weight") and info.stored not in _WEIGHTS and info.coded is None:
            msg = f"{name} is stored as {info.stored}; F64, F32, F16 or BF16 is needed. The model seems to be quantized already: give the original."
            raise SourceRefused(msg)

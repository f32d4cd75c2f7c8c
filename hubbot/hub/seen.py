"""What the Hub shows of a model, and of a repo that hubbot published there."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A model as a listing of the Hub shows it; one request tells all this of a hundred models."""

    id: str
    sha: str  # commit at the head of main
    modified: str = ""  # ISO 8601, as the Hub gives it
    created: str = ""
    private: bool = False
    disabled: bool = False
    gated: bool = False
    downloads: int = 0
    likes: int = 0
    tags: tuple[str, ...] = ()
    library: str | None = None
    pipeline: str | None = None
    architecture: str | None = None  # config.architectures[0]
    quantization: str | None = None  # quant_method of config.quantization_config
    licence: str | None = None  # the Hub's id
    licence_name: str | None = None
    licence_link: str | None = None
    relation: str | None = None  # base_model_relation of the card
    base_models: tuple[str, ...] = ()
    parameters: int | None = None  # weights in safetensors
    weight_bytes: int | None = None  # bytes of those weights

    @property
    def author(self) -> str:
        return self.id.split("/", 1)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """The files of one revision that enter a release: weights, tokenizer, configuration; not the README."""

    model: str
    sha: str
    files: dict[str, str]  # path -> "sha256:…" of large files, "blob:…" (git's id) of small ones
    tagged: bool | None = None  # whether a tag points at this revision; None: nobody asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A repo that hubbot published, as its hubbot.json tells."""

    repo: str
    sha: str  # commit of the repo that hubbot.json was read at
    model: str  # the source
    revision: str  # of the source
    files: dict[str, str]  # path in the source -> sha256
    settings: str  # fingerprint of the settings that shape the bytes
    version: str  # of hubbot
    variants: dict[str, str] = field(default_factory=dict)  # name -> status
    yanked: str | None = None  # the reason
    weights: int = 0  # of the source
    seconds: float = 0.0  # that its job took, upload left out; 0: it does not say
    machine: str = ""  # GPU, or processor without one, that it took them on

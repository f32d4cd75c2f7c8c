"""The nouns of hubbot: frozen values that travel from stage to stage.

`hubbot.json` is `Record` written with `hubbot.record.file`; every number in it was measured in that run,
and `None` stands for what was not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import ClassVar, Literal, Protocol

SCHEMA_VERSION = 1

_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}"
NAMESPACE = re.compile(_NAME)  # a user or an organisation
HUB_ID = re.compile(f"{_NAME}/{_NAME}")  # org/name
GGUF_SUFFIXES = {"_DH": (True, True), "_D": (True, False), "_H": (False, True)}  # of a name: allocated, hessian
REPO_ID = re.compile(f"{_NAME}(/{_NAME})?")  # the same, and the first models, which have no owner


class Family(StrEnum):
    GGUF = "gguf"
    GPTQ = "gptq"
    PACKED = "compressed-tensors"
    BNB = "bnb"


# --- the job ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One model at one revision, to be turned into releases; everything else is in the settings."""

    model: str  # Hub id
    revision: str  # full commit sha
    update: Literal["replace", "revision"] = "replace"  # over the published files, or beside them as a revision
    variants: str | None = None  # comma list that somebody asked for; None: those of the settings


# --- variants: the names of what is made -----------------------------------------------------------


class Named(Protocol):
    @property
    def name(self) -> str: ...


class Variant(Named, Protocol):
    """What a family makes: a frozen value, of which the name says everything."""

    @property
    def family(self) -> Family: ...

    @property
    def bits(self) -> float:
        """The bits that the name promises for a weight: the class that the gate's limits go by."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Gguf:
    """A llama.cpp file type, named as `llama-quantize` names it: Q4_K_M, IQ4_XS, Q8_0, BF16.

    hessian: the same types in as many bytes, rounded by the whole Hessian instead of its diagonal: Q4_K_M_H. allocated: at
    most as many bytes, types given to tensors by measured divergence: Q4_K_M_D, and with both Q4_K_M_DH. Neither
    llama.cpp, asked for `-hf repo:Q4_K_M`, nor the Hub's parser of quantizations takes the one name for the other.
    """

    family: ClassVar[Family] = Family.GGUF
    type: str
    hessian: bool = False
    allocated: bool = False

    @property
    def name(self) -> str:
        told = (self.allocated, self.hessian)
        return self.type + next((suffix for suffix, meant in GGUF_SUFFIXES.items() if meant == told), "")

    @property
    def bits(self) -> int:
        return int("".join(filter(str.isdigit, self.type.partition("_")[0])))


@dataclass(frozen=True, slots=True, kw_only=True)
class Gptq:
    """A GPTQ layout: `gptq-4bit-128g`, `gptq-4bit-32g-actorder`, `gptq-3bit-128g-asym`, `gptq-4bit--1g`.

    end_to_end: the same layout, its codes chosen by the loss of the whole model: `gptq-4bit-128g-e2e`.
    """

    family: ClassVar[Family] = Family.GPTQ
    bits: Literal[2, 3, 4, 8]
    group_size: int  # columns that share a scale; -1: one scale per output row
    act_order: bool = False
    symmetric: bool = True
    end_to_end: bool = False

    @property
    def layout(self) -> Gptq:
        """What the solver is asked for."""
        return self

    @property
    def name(self) -> str:
        order = "-actorder" if self.act_order else ""
        zeros = "" if self.symmetric else "-asym"
        loss = "-e2e" if self.end_to_end else ""
        return f"gptq-{self.bits}bit-{self.group_size}g{order}{zeros}{loss}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """The codes of a GPTQ layout in compressed-tensors' container: `w4a16-128g`, `w8a16--1g`, `w4a16-128g-asym`,
    `w4a16-128g-e2e`."""

    family: ClassVar[Family] = Family.PACKED
    layout: Gptq  # of 4 or 8 bits, in the order of the columns

    @property
    def name(self) -> str:
        zeros = "" if self.layout.symmetric else "-asym"
        loss = "-e2e" if self.layout.end_to_end else ""
        return f"w{self.layout.bits}a16-{self.layout.group_size}g{zeros}{loss}"

    @property
    def bits(self) -> int:
        return self.layout.bits


@dataclass(frozen=True, slots=True, kw_only=True)
class Bnb:
    """A bitsandbytes kind: `bnb-nf4` (double quantization), `bnb-fp4`, `bnb-int8`."""

    family: ClassVar[Family] = Family.BNB
    kind: Literal["nf4", "fp4", "int8"]

    @property
    def name(self) -> str:
        return f"bnb-{self.kind}"

    @property
    def bits(self) -> int:
        return 8 if self.kind == "int8" else 4


# --- the source -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A model as it lies in a folder, checked and hashed, with where it came from."""

    folder: str  # absolute path of the local snapshot
    repo: str | None  # Hub id, None for a local folder
    revision: str | None  # full commit sha
    files: dict[str, str]  # path relative to the folder -> sha256
    license: str | None = None  # SPDX-like id of the Hub, "other" with license_name/license_link
    license_name: str | None = None
    license_link: str | None = None
    gated: bool = False
    architecture: str = ""  # config.architectures[0]
    parameters: int = 0  # number of weights stored in the safetensors
    language: tuple[str, ...] = ()
    pipeline_tag: str | None = None
    tags: tuple[str, ...] = ()
    context_length: int | None = None  # tokens
    released_as: str | None = (
        None  # the quantized format of the source's own weights: FP8, MXFP4, W4A16; None: not quantized
    )
    experts: int = 0  # of which a router picks some for every token; 0: dense
    kv_bytes_per_token: int | None = None  # of a 16-bit key/value cache: 2 * layers * kv heads * head size * 2

    @property
    def name(self) -> str:
        """The model's short name: the last part of the Hub id or of the folder."""
        return (self.repo or self.folder.rstrip("/")).rsplit("/", 1)[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A text on this disk: one JSON object {"text": …} a line, a row of the dataset each, in its order."""

    path: Path
    name: str  # "allenai/c4:en:train", or a local file's name
    revision: str | None  # full sha of the dataset's commit
    sha256: str  # of the file


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """What a run calibrates and evaluates on; None where it does not."""

    calibration: Text | None = None
    evaluation: Text | None = None
    conversations: Text | None = None  # of a chat model: {"messages": […]} a line

    @property
    def digests(self) -> dict[str, str]:
        """Purpose -> sha256 of each text that is there."""
        found = {
            "calibration": self.calibration,
            "evaluation": self.evaluation,
            "conversations": self.conversations,
        }
        return {purpose: text.sha256 for purpose, text in found.items() if text}


# --- measurements -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRecord:
    """Which text was used, exactly: a Hub dataset or local files, and its token windows."""

    dataset: str  # "allenai/c4:en:train" or a local file's name
    revision: str | None
    sha256: str  # of the token ids of all windows, little-endian int32
    windows: int
    length: int  # tokens per window
    seed: int | None = None  # calibration
    stride: int | None = None  # evaluation
    overlap_forced: bool = False  # calibration text overlaps the evaluation text, and the user insisted
    text_sha256: str | None = None  # of the text that the windows were cut from, as JSON lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Perplexity:
    perplexity: float
    stderr: float  # of the perplexity: perplexity * standard error of the mean NLL
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """Kullback-Leibler divergence D(base || variant) per token, in nats."""

    mean: float
    stderr: float
    median: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowMeans:
    """Means over the scored tokens of each window of the evaluation text: what a comparison of two variants draws from.

    Of very many windows neighbours are taken together.
    """

    tokens: tuple[int, ...]
    kld: tuple[float, ...]  # nats
    change: tuple[float, ...]  # of the negative log-likelihood against the base's, nats


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What the evaluator measured of one variant, on the same tokens as the base."""

    perplexity: float
    stderr: float
    ratio: float  # perplexity / base perplexity
    ratio_stderr: float  # its standard error, token against token, by windows
    kld: Divergence
    top1: float  # share of tokens whose most likely successor is the base's, 0..1
    rms_dp: float  # root mean square change of the true token's probability, 0..1
    ratio_interval: tuple[float, float] | None = None  # of 95 %, bootstrapped over windows; None of too few windows
    kld_interval: tuple[float, float] | None = None  # of the mean, likewise
    windows: WindowMeans | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversations:
    """What the evaluator measured on conversations, which a chat model's own template writes: a text beside the other.

    Neither the gate nor the recommendation goes by it.
    """

    text: TextRecord
    base: Perplexity
    scores: dict[str, Score]  # by the name of the variant or artefact

    @staticmethod
    def together(parts: Iterable[Conversations | None]) -> Conversations | None:
        """What was measured on the same conversations, of other variants each time."""
        heard = [part for part in parts if part]
        scores = {name: score for part in heard for name, score in part.scores.items()}
        return replace(heard[0], scores=scores) if heard else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    prompt: str
    base: str  # the base model's greedy continuation
    variant: str
    differs_at: int | None  # index of the first differing token, None: identical


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadCheck:
    """The published file, read by its own runtime."""

    runtime: str  # "llama.cpp b1234", "transformers 5.23.0 + gptqmodel 7.7.0"
    loaded: bool
    generated: str | None = None  # a few greedy tokens
    max_logit_error: float | None = None  # against the sweep's decoded weights, on a few windows
    kld: float | None = None  # mean D(sweep || runtime) on those windows, nats
    tolerance: float | None = None  # the limit on kld
    passed: bool = False
    error: str | None = None
    tokenizer: str | None = None  # sha256 of what the runtime's tokenizer does (model.digests.tokenizer_digest)
    chat_template: str | None = None  # sha256 of the chat template that the runtime reads, utf-8
    ends: tuple[int, ...] | None = None  # the tokens with which the runtime ends a generation
    differences: tuple[str, ...] = ()  # in what a chat runs on other tokens than the source's, a sentence each


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageCheck:
    """A test image shown to a GGUF variant in llama.cpp, with one of the files that see, and to the original."""

    file: str  # name of the mmproj file
    passed: bool
    distance: float | None = None  # of its embeddings of the image from transformers', |theirs - its| / |theirs|
    tolerance: float | None = None  # the limit on it
    kld: float | None = None  # D(original || variant) behind the text that follows the image, mean nats
    base: str | None = None  # what the original says of it, a few greedy tokens
    said: str | None = None  # what the variant says
    error: str | None = None  # of llama.cpp, or why it was not compared


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """The published files in a runtime as its users load them: type and kernels are the runtime's own choice."""

    runtime: str  # "transformers", "GPTQModel", "vLLM"
    release: str  # "5.23.0 + gptqmodel 7.7.0"
    verdict: Literal[
        "agrees", "differs", "refuses", "fails"
    ]  # fails: whatever the weights, so the files are not to blame
    difference: float | None = None  # mean distance of log-probabilities from the sweep's, of a text's tokens, nats
    tolerance: float | None = None  # the limit on it
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Speed of one variant in its own runtime on this machine."""

    runtime: str
    prompt_tokens_per_second: float
    generation_tokens_per_second: float
    prompt_tokens: int
    generated_tokens: int
    peak_memory: int  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Finished artefacts, made anywhere, measured against their base on the same tokens; by their names."""

    evaluation: TextRecord
    base: Perplexity
    scores: dict[str, Score]
    sizes: dict[str, int]  # bytes of their weight files
    families: dict[str, Family | None]  # None: weights as any checkpoint has them
    conversations: Conversations | None = None

    @property
    def spoken(self) -> Measured | None:
        """The same artefacts, measured on conversations."""
        heard = self.conversations
        return (
            replace(self, evaluation=heard.text, base=heard.base, scores=heard.scores, conversations=None)
            if heard
            else None
        )


# --- artefacts --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    path: str  # relative to the output folder, with forward slashes
    size: int  # bytes
    sha256: str


class Status(StrEnum):
    PUBLISHED = "published"
    PASSED = "passed"
    REFUSED = "refused"
    FAILED = "failed"

    @property
    def passed(self) -> bool:
        """Whether the gate let it through, published meanwhile or not."""
        return self in (Status.PASSED, Status.PUBLISHED)


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantRecord:
    name: str
    family: Family
    status: Status
    reason: str | None = None  # of a refusal or failure
    files: tuple[File, ...] = ()
    bits_per_weight: float | None = None  # 8 * bytes of all weight tensors / number of weights
    score: Score | None = None  # flattened into hubbot.json: perplexity, stderr, ratio, …
    load_check: LoadCheck | None = None
    images: tuple[ImageCheck, ...] = ()
    trials: tuple[Trial, ...] = ()
    speed: Speed | None = None
    samples: tuple[Sample, ...] = ()
    seconds: float | None = None  # spent on this variant in the sweep
    notes: tuple[str, ...] = ()  # "damping rose to 0.1 in model.layers.3.mlp.down_proj", …
    layer_errors: dict[str, float] = field(default_factory=dict)  # checkpoint tensor -> relative squared error
    types: dict[str, str] = field(default_factory=dict)  # tensor -> type that measured divergence gave it: of Q4_K_M_D

    @property
    def passed(self) -> bool:
        return self.status.passed


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertUse:
    """How the calibration tokens of one block fell to its experts."""

    block: int
    experts: int
    few: int  # saw too few tokens for statistics of their own: GPTQ rounds these plainly
    least: float  # share of the block's tokens that came to the expert with the fewest
    median: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    rss: int | None = None  # bytes
    vram: int | None = None
    disk: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """`hubbot.json`: the machine-readable truth of one run."""

    schema: int
    hubbot: dict[str, str | None]  # version, commit
    tools: dict[str, str]
    hardware: dict[str, str | int | None]
    command: str
    config: dict[str, object]  # the settings that shape the bytes and the numbers
    source: Source
    calibration: TextRecord | None
    evaluation: TextRecord | None
    base: Perplexity | None
    variants: tuple[VariantRecord, ...]
    timings: dict[str, float]  # stage -> seconds
    peak: Peak
    chat_template: str | None = None  # as found in the source
    special_tokens: dict[str, str] = field(default_factory=dict)  # bos_token, eos_token, …, for the chat template
    created: str | None = None  # ISO 8601, UTC
    conversations: Conversations | None = None  # of a chat model
    experts: tuple[ExpertUse, ...] = ()  # of every block that has some, where a calibration passed

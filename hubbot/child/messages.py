"""What crosses the wall between a job and its confined child: a question and an answer for each stage.

The questions are the job's own. The answers come from the process that reads strangers' files, so they are checked
where they arrive: no key too many, no number for a text, no longer than the record may be. What an answer says of a
file is a claim, which the job looks into itself (`hubbot.record.files`).

Importing this module imports neither torch nor transformers.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated

from pydantic import Field

from hubbot.confine.stage import Stage
from hubbot.domain import (
    Conversations,
    ExpertUse,
    Family,
    ImageCheck,
    LoadCheck,
    Measured,
    Perplexity,
    Sample,
    Score,
    Source,
    Speed,
    Text,
    TextRecord,
    Texts,
    Trial,
    VariantRecord,
)
from hubbot.formats.protocol import Cost
from hubbot.planning.needs import Count as Size
from hubbot.planning.needs import Shapes
from hubbot.planning.plan import Refusal
from hubbot.settings import GgufType, Settings

__all__ = [
    "ALLOCATE",
    "CHECK",
    "EVALUATE",
    "MAKE",
    "SURVEY",
    "AllocateAnswer",
    "AllocateQuestion",
    "CheckAnswer",
    "CheckQuestion",
    "Checked",
    "Description",
    "EvaluateAnswer",
    "EvaluateQuestion",
    "Made",
    "MakeAnswer",
    "MakeQuestion",
    "Price",
    "SurveyAnswer",
    "SurveyQuestion",
]

Line = Annotated[str, Field(max_length=4_096)]
Long = Annotated[str, Field(max_length=65_536)]
Template = Annotated[str, Field(max_length=1_048_576)]
Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


# --- survey: what the headers say, and what variants would come to ---------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SurveyQuestion:
    source: Source  # whole, or of headers alone
    settings: Settings
    work: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a model's own files say about it."""

    license: Line | None
    license_name: Line | None
    license_link: Line | None
    gated: bool
    architecture: Line
    parameters: Count
    language: tuple[Line, ...]
    pipeline_tag: Line | None
    tags: tuple[Line, ...]
    context_length: Count | None
    kv_bytes_per_token: Count | None
    experts: Count = 0
    released_as: Line | None = None

    def of(self, source: Source) -> Source:
        """The source with its description; the Hub's word goes first."""
        return replace(
            source,
            license=source.license or self.license,
            license_name=source.license_name or self.license_name,
            license_link=source.license_link or self.license_link,
            gated=source.gated or self.gated,
            architecture=self.architecture,
            parameters=self.parameters,
            language=source.language or self.language,
            pipeline_tag=source.pipeline_tag or self.pipeline_tag,
            tags=source.tags or self.tags,
            context_length=self.context_length,
            kv_bytes_per_token=self.kv_bytes_per_token,
            experts=self.experts,
            released_as=self.released_as,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """As `hubbot.formats.protocol.Cost`, with the bounds of what comes from a child."""

    file_bytes: Size
    weight_bytes: Size
    bits_per_weight: Annotated[float, Field(ge=0, le=1e6)]
    note: Long | None
    probes: Annotated[int, Field(ge=0, le=2**17)]

    @property
    def cost(self) -> Cost:
        return Cost(**{each.name: getattr(self, each.name) for each in fields(self)})


@dataclass(frozen=True, slots=True, kw_only=True)
class SurveyAnswer:
    """All that a plan is made from but the machine: nothing in it depends on what is free at the moment."""

    description: Description
    shapes: Shapes
    device: Annotated[str, Field(pattern="^(cpu|cuda(:[0-9]{1,3})?)$")]  # that the setting stands for here
    variants: tuple[Line, ...]  # in the order asked for
    prices: dict[Line, Price]  # variant -> its exact size
    refused: dict[Line, Refusal]  # the others of the variants, and why they cannot be made
    notes: tuple[Long, ...]
    lasting: bool  # no tool refused a variant: asked again, it would say the same


# --- make: one sweep ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeQuestion:
    source: Source
    settings: Settings
    work: Path  # of this sweep: what a killed one has left there is gone on from
    out: Path
    variants: tuple[str, ...]
    texts: Texts
    resumable: bool = True  # there is room for checkpoints


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A variant that the sweep has written and measured."""

    paths: tuple[Path, ...]  # absolute
    bits_per_weight: Amount
    notes: tuple[Long, ...]
    layer_errors: dict[Line, float]  # checkpoint tensor -> relative squared error
    score: Score | None
    seconds: Amount | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeAnswer:
    calibration: TextRecord | None
    evaluation: TextRecord | None
    base: Perplexity | None
    made: dict[Line, Made]  # by the variant's name
    failed: dict[Line, Long]  # variant -> why its family could not make it
    seconds: dict[Line, Amount]  # spent on each step
    references: dict[Line, Path]  # variant -> what its runtime should compute, for the load check
    chat_template: Template | None
    special_tokens: dict[Line, Line]
    tokenizer: Sha256  # of what the source's tokenizer does
    conversations: Conversations | None = None
    experts: tuple[ExpertUse, ...] = ()


# --- check: every variant in its own runtime --------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckQuestion:
    source: Source
    settings: Settings
    work: Path
    out: Path
    variants: tuple[VariantRecord, ...]
    references: dict[str, Path]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What a variant's runtime made of it."""

    load_check: LoadCheck | None
    samples: tuple[Sample, ...]
    speed: Speed | None
    notes: tuple[Long, ...]
    images: tuple[ImageCheck, ...] = ()
    trials: tuple[Trial, ...] = ()

    def of(self, variant: VariantRecord) -> VariantRecord:
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        return replace(variant, **found)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckAnswer:
    checked: dict[Line, Checked]  # by the variant's name


# --- evaluate: artefacts made elsewhere -------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateQuestion:
    source: Source  # the base
    settings: Settings
    work: Path
    paths: tuple[Path, ...]  # absolute, distinct
    text: Text | None
    conversations: Text | None = None  # where the base may be a chat model


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateAnswer:
    """As `hubbot.domain.Measured`, with the bounds of what comes from a child."""

    evaluation: TextRecord
    base: Perplexity
    scores: dict[Line, Score]  # by the artefact's name
    sizes: dict[Line, Count]
    families: dict[Line, Family | None]
    conversations: Conversations | None = None

    @property
    def measured(self) -> Measured:
        return Measured(**{each.name: getattr(self, each.name) for each in fields(self)})


# --- allocate: which tensor should get which GGUF type -----------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocateQuestion:
    source: Source
    settings: Settings
    work: Path  # keeps what was measured of this model on this text: nothing there is measured again
    mixes: tuple[str, ...]
    text: Text | None  # of the calibration
    at_once: int  # probes that one walk carries
    resumable: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocateAnswer:
    types: dict[Line, dict[Line, GgufType]]  # mix -> tensor -> type


SURVEY = Stage(target="hubbot.child.survey:survey", question=SurveyQuestion, answer=SurveyAnswer)
MAKE = Stage(target="hubbot.child.make:make", question=MakeQuestion, answer=MakeAnswer)
CHECK = Stage(target="hubbot.child.check:check", question=CheckQuestion, answer=CheckAnswer)
EVALUATE = Stage(target="hubbot.child.evaluate:evaluate", question=EvaluateQuestion, answer=EvaluateAnswer)
ALLOCATE = Stage(target="hubbot.child.allocate:allocate", question=AllocateQuestion, answer=AllocateAnswer)

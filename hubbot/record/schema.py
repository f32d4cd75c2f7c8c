"""The layout of hubbot.json, as pydantic models: what may stand in it and what may not.

One model for each noun of `hubbot.domain`, with the bounds that a file from a stranger has to keep.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, model_validator

from hubbot.domain import SCHEMA_VERSION, Family, Status

__all__ = ["RecordJson", "VersionJson", "schema"]


def _inside(path: str) -> str:
    if any(part in ("", ".", "..") for part in path.split("/")):
        msg = f"{path!r} is no plain path inside the folder"
        raise ValueError(msg)
    return path


_Text = Annotated[str, Field(max_length=65_536)]
_Line = Annotated[str, Field(max_length=4_096)]
_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Name = Annotated[str, Field(pattern=r"^[^/\\\x00-\x1f\x7f.][^/\\\x00-\x1f\x7f]{0,254}$")]
_Path = Annotated[
    str, Field(max_length=1_024, pattern=r"^[^/\\\x00-\x1f\x7f][^\\\x00-\x1f\x7f]*$"), AfterValidator(_inside)
]
_Count = Annotated[int, Field(ge=0)]
_Amount = Annotated[float, Field(ge=0)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class SourceJson(Strict):
    folder: Annotated[_Line, Field(description="name of the local folder; its place is nobody's business")]
    repo: Annotated[_Line | None, Field(description="Hub id; null for a local folder")] = None
    revision: Annotated[_Line | None, Field(description="full commit sha")] = None
    files: dict[_Path, _Sha256]
    license: _Line | None = None
    license_name: _Line | None = None
    license_link: _Line | None = None
    gated: bool = False
    architecture: _Line = ""
    parameters: _Count = 0
    language: tuple[_Line, ...] = ()
    pipeline_tag: _Line | None = None
    tags: tuple[_Line, ...] = ()
    context_length: _Count | None = None
    kv_bytes_per_token: _Count | None = None
    experts: _Count = 0
    released_as: Annotated[
        _Line | None, Field(description="quantized format of the source's own weights: FP8, MXFP4, W4A16")
    ] = None


class TextRecordJson(Strict):
    dataset: _Line
    revision: _Line | None = None
    sha256: Annotated[_Sha256, Field(description="of the token ids of all windows, little-endian int32")]
    windows: _Count
    length: _Count
    seed: int | None = None
    stride: _Count | None = None
    overlap_forced: bool = False
    text_sha256: Annotated[_Sha256 | None, Field(description="of the text, a JSON object a line")] = None


class PerplexityJson(Strict):
    perplexity: _Amount | None
    stderr: _Amount | None
    tokens: _Count


class DivergenceJson(Strict):
    mean: float | None
    stderr: _Amount | None
    median: float | None
    p99: float | None
    max: float | None


class WindowMeansJson(Strict):
    tokens: tuple[_Count, ...]
    kld: tuple[float, ...]
    change: Annotated[tuple[float, ...], Field(description="of the negative log-likelihood against the base's, nats")]

    @model_validator(mode="after")
    def _of_the_same_windows(self) -> Self:
        if not len(self.tokens) == len(self.kld) == len(self.change):
            msg = f"{len(self.tokens)}, {len(self.kld)} and {len(self.change)} windows are not the same windows"
            raise ValueError(msg)
        return self


class FileJson(Strict):
    path: Annotated[_Path, Field(description="relative to the folder of this file")]
    size: _Count
    sha256: _Sha256


class LoadCheckJson(Strict):
    runtime: _Line
    loaded: bool
    generated: _Text | None = None
    max_logit_error: _Amount | None = None
    kld: float | None = None
    tolerance: _Amount | None = None
    passed: bool = False
    error: _Text | None = None
    tokenizer: _Sha256 | None = None
    chat_template: _Sha256 | None = None
    ends: Annotated[tuple[_Count, ...] | None, Field(description="tokens that end a generation in this runtime")] = None
    differences: Annotated[tuple[_Text, ...], Field(description="from the source, in what a chat runs on")] = ()


class ImageCheckJson(Strict):
    file: _Line
    passed: bool
    distance: Annotated[_Amount | None, Field(description="of the image's embeddings from transformers', relative")] = (
        None
    )
    tolerance: _Amount | None = None
    kld: Annotated[float | None, Field(description="behind the image and a text, against the original, nats")] = None
    base: _Text | None = None
    said: _Text | None = None
    error: _Text | None = None


class TrialJson(Strict):
    runtime: _Line
    release: _Line
    verdict: Annotated[
        Literal["agrees", "differs", "refuses", "fails"], Field(description="fails: whatever the weights")
    ]
    difference: Annotated[_Amount | None, Field(description="mean, of log-probabilities from the sweep's, nats")] = None
    tolerance: _Amount | None = None
    error: _Text | None = None


class SpeedJson(Strict):
    runtime: _Line
    prompt_tokens_per_second: _Amount | None
    generation_tokens_per_second: _Amount | None
    prompt_tokens: _Count
    generated_tokens: _Count
    peak_memory: _Count


class SampleJson(Strict):
    prompt: _Text
    base: _Text
    variant: _Text
    differs_at: _Count | None = None


class ScoreJson(Strict):
    perplexity: _Amount | None = None
    stderr: _Amount | None = None
    ratio: Annotated[_Amount | None, Field(description="perplexity over the base's")] = None
    ratio_stderr: _Amount | None = None
    kld: Annotated[DivergenceJson | None, Field(description="D(base || variant) per token, nats")] = None
    top1: Annotated[float | None, Field(ge=0, le=1)] = None
    rms_dp: Annotated[float | None, Field(ge=0, le=1)] = None
    ratio_interval: Annotated[
        tuple[float, float] | None,
        Field(description="95 %, bootstrapped over windows; so is kld_interval, of the mean"),
    ] = None
    kld_interval: tuple[float, float] | None = None
    windows: Annotated[WindowMeansJson | None, Field(description="means over the tokens of each window")] = None


class ConversationsJson(Strict):
    text: TextRecordJson
    base: PerplexityJson
    scores: dict[_Name, ScoreJson]


class VariantJson(ScoreJson):
    name: _Name
    family: Family
    status: Status
    reason: _Text | None = None
    files: tuple[FileJson, ...] = ()
    bits_per_weight: _Amount | None = None
    load_check: LoadCheckJson | None = None
    images: Annotated[tuple[ImageCheckJson, ...], Field(description="a test image shown in llama.cpp")] = ()
    trials: Annotated[tuple[TrialJson, ...], Field(description="loaded as a runtime's users load it")] = ()
    speed: SpeedJson | None = None
    samples: tuple[SampleJson, ...] = ()
    seconds: _Amount | None = None
    notes: tuple[_Text, ...] = ()
    layer_errors: Annotated[dict[_Line, float | None], Field(description="tensor -> relative squared error")] = {}
    types: Annotated[dict[_Line, _Line], Field(description="tensor -> type given by measured divergence")] = {}


class ExpertUseJson(Strict):
    block: _Count
    experts: _Count
    few: Annotated[_Count, Field(description="saw too few calibration tokens; GPTQ rounds these plainly")]
    least: Annotated[
        float, Field(ge=0, le=1, description="share of the block's tokens that an expert saw; so is median")
    ]
    median: Annotated[float, Field(ge=0, le=1)]


class PeakJson(Strict):
    rss: _Count | None = None
    vram: _Count | None = None
    disk: _Count | None = None


class RecordJson(Strict):
    version: Annotated[int, Field(alias="schema", json_schema_extra={"const": SCHEMA_VERSION})]
    hubbot: dict[_Line, _Line | None]
    tools: dict[_Line, _Line]
    hardware: dict[_Line, _Line | int | None]
    command: _Text
    config: Annotated[dict[_Line, JsonValue], Field(description="the settings that shape the bytes and the numbers")]
    source: SourceJson
    calibration: TextRecordJson | None
    evaluation: TextRecordJson | None
    base: PerplexityJson | None
    variants: tuple[VariantJson, ...]
    timings: Annotated[dict[_Line, _Amount], Field(description="stage -> seconds")]
    peak: Annotated[PeakJson, Field(description="bytes")]
    chat_template: Annotated[str | None, Field(max_length=1_048_576)] = None
    created: _Line | None = None
    special_tokens: dict[_Line, _Line] = {}
    conversations: Annotated[
        ConversationsJson | None, Field(description="the same variants measured on conversations, of a chat model")
    ] = None
    experts: Annotated[
        tuple[ExpertUseJson, ...], Field(description="of blocks with experts that a calibration passed")
    ] = ()


class VersionJson(BaseModel):
    version: Annotated[JsonValue, Field(alias="schema")]


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of hubbot.json."""
    drawn = json.loads(json.dumps(RecordJson.model_json_schema(by_alias=True)).replace("Json", ""))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **drawn,
        "title": "hubbot.json",
        "description": "What one run of hubbot made and measured. null: not measured, or no finite number.",
    }

"""hubbot.toml, inputs of the action and flags become `Settings`; `settings.environment` is the only reader of the environment.

Flags win over hubbot.toml, which wins over the defaults here. Unknown keys are refused by their path.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo, field_validator

from hubbot.errors import BadSettings
from hubbot.settings.sections import Section, Size
from hubbot.settings.watch import JobSettings, ServeSettings, WatchSettings

_CHATS, _CHATS_SPLIT = "HuggingFaceH4/ultrachat_200k", "test_sft"  # MIT by its card; others calibrate on its train_sft

Configuration = Annotated[str | None, BeforeValidator(lambda name: name or None)]  # "" says: none


class CalibrationSettings(Section):
    """The text that GPTQ and the importance matrix are calibrated on."""

    dataset: str = Field(
        "allenai/c4", description="calibration text: a Hub dataset, or a local .txt, .jsonl or .parquet file"
    )
    config: Configuration = Field("en", description="configuration of the Hub dataset")
    split: str = Field("train", description="split of the Hub dataset")
    revision: str | None = Field(None, description="branch, tag or commit of the Hub dataset")
    column: str = Field("text", description="column that holds the text")
    samples: int = Field(128, ge=1, le=4096, description="number of calibration windows")
    length: int = Field(2048, ge=16, description="tokens per calibration window; capped at the model's context")
    seed: int = Field(0, description="seed of the choice of calibration windows")

    @property
    def name(self) -> str:
        """What files and records call the text: a local file's name, or dataset:configuration:split."""
        path = Path(self.dataset)
        if path.suffix.lower() in (".txt", ".jsonl", ".parquet"):
            return path.name
        return ":".join(part for part in (self.dataset, self.config, self.split) if part)


class EvaluationSettings(Section):
    """The text that perplexity and divergence are measured on."""

    dataset: str = Field(
        "Salesforce/wikitext",
        description="evaluation text: a Hub dataset, a local file, or `none` to skip the evaluation",
    )
    config: Configuration = Field("wikitext-2-raw-v1", description="configuration of the Hub dataset")
    split: str = Field("test", description="split of the Hub dataset")
    revision: str | None = Field(None, description="branch, tag or commit of the Hub dataset")
    column: str = Field("text", description="column that holds the text")
    context: int = Field(2048, ge=16, description="tokens per evaluation window; capped at the model's context")
    stride: int | None = Field(
        None, ge=1, description="tokens from one evaluation window to the next; default: the context, no overlap"
    )
    windows: int | None = Field(
        None, ge=1, description="use only the first windows of the evaluation text; default: all"
    )
    samples: bool = Field(True, description="compare greedy continuations of a dozen prompts")

    @property
    def wanted(self) -> bool:
        return self.dataset.lower() != "none"


class ConversationSettings(Section):
    """The second text that a chat model is measured on: conversations, as its own chat template writes them."""

    dataset: str = Field(
        "auto",
        description=f"conversations that a chat model is measured on besides: a Hub dataset, a local .jsonl or .parquet file, or `none`; auto: {_CHATS} where the evaluation text is left as it is, else none",
    )
    config: Configuration = Field(None, description="configuration of the Hub dataset")
    split: str | None = Field(
        None, description=f"split of the Hub dataset; default: {_CHATS_SPLIT} of {_CHATS}, else test"
    )
    revision: str | None = Field(None, description="branch, tag or commit of the Hub dataset")
    column: str = Field("messages", description="column that holds the messages, each with its role and content")
    windows: int = Field(32, ge=1, description="windows of conversations, of the evaluation's context, at most")


GgufType = Literal[
    "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "Q5_0", "Q5_1", "Q8_0"
]  # that a tensor may be given


class GgufSettings(Section):
    imatrix: bool = Field(
        True, description="weigh GGUF's quantization error by the importance matrix, or make static files"
    )
    shard_size: Size = Field(45 * 10**9, description="split files above this size")
    first_shard: Literal["weights", "metadata"] = Field(
        "weights",
        description="metadata: split every file, with no weight in the first shard, so that a new template uploads no weights",
    )
    allocation: dict[str, dict[str, GgufType]] = Field(
        default={},
        description="types of the tensors of variants such as Q4_K_M_D, by mix, where they are not to be measured; `hubbot allocate` prints them",
    )


class GptqSettings(Section):
    damping: float = Field(0.01, gt=0, lt=1, description="share of the mean Hessian diagonal added to the diagonal")
    shard_size: Size = Field(5 * 10**9, description="size of a safetensors shard")
    lm_head: bool = Field(False, description="quantize the output head too; docs/runtimes.md says who reads that")


class BnbSettings(Section):
    shard_size: Size = Field(5 * 10**9, description="size of a safetensors shard")
    double_quant: bool = Field(True, description="quantize the scales of nf4 and fp4 again")


class CheckSettings(Section):
    """Further load checks of folders of safetensors, as their users load them: docs/numbers.md."""

    card: bool = Field(True, description="run the lines that the card prints for transformers, in a clean process")
    vllm: Path | None = Field(
        None, description="folder of a virtual environment with vLLM, which then loads every variant that it reads too"
    )


_MAX_RATIO = {"16": 1.005, "8": 1.01, "6": 1.02, "5": 1.05, "4": 1.15, "3": 1.5, "2": 3.0, "1": 10.0}
_MAX_KLD = {"16": 0.005, "8": 0.02, "6": 0.03, "5": 0.05, "4": 0.15, "3": 0.5, "2": 1.5, "1": 3.0}
_SMALL = 500_000_000  # parameters
_Limits = dict[Annotated[str, Field(pattern=r"^[1-9][0-9]?$")], Annotated[float, Field(gt=0, allow_inf_nan=False)]]


class GateSettings(Section):
    """Limits by the bits in a variant's name; a variant past its limit is refused. docs/numbers.md explains them."""

    enabled: bool = Field(True, description="refuse variants past a limit; without the gate nothing is published")
    max_ratio: _Limits = Field(
        default=_MAX_RATIO,
        description="limits on perplexity over the base by whole bits, models from 0.5 B parameters on; others keep theirs",
    )
    max_kld: _Limits = Field(
        default=_MAX_KLD,
        description="limits on the mean divergence in nats by whole bits, models from 0.5 B parameters on; others keep theirs",
    )

    @field_validator("max_ratio", "max_kld")
    @classmethod
    def _with_defaults(cls, value: dict[str, float], info: ValidationInfo) -> dict[str, float]:
        return {**(_MAX_RATIO if info.field_name == "max_ratio" else _MAX_KLD), **value}

    def of_size(self, parameters: int | None) -> GateSettings:
        """The limits for a model of that many parameters. Those of a small one at 4, 3 and 2 bits are the ones of a bit less,
        where they were left as they are. docs/numbers.md has what that rests on."""
        if parameters is None or parameters >= _SMALL:
            return self
        eased = {"max_ratio": _eased(self.max_ratio, _MAX_RATIO), "max_kld": _eased(self.max_kld, _MAX_KLD)}
        return self.model_copy(update=eased)


def _eased(limits: dict[str, float], default: dict[str, float]) -> dict[str, float]:
    untouched = [bits for bits in ("4", "3", "2") if limits[bits] == default[bits]]
    return {**limits, **{bits: default[str(int(bits) - 1)] for bits in untouched}}


class PublishSettings(Section):
    mode: Literal["none", "pr", "main"] = Field(
        "none", description="publish nothing (none), open a pull request for each repo (pr), or commit to main (main)"
    )
    namespace: str | None = Field(None, description="user or organisation that owns the published repos")
    revision: str | None = Field(
        None, pattern=r"^[\w.-]{1,64}$", description="publish beside the release on main, as branches with this name"
    )
    visibility: Literal["public", "private"] = Field("public", description="visibility of a repo that hubbot creates")
    gguf: str = Field("{name}-GGUF", description="name of the GGUF repo")
    gptq: str = Field("{name}-GPTQ", description="name of the GPTQ repo")
    w4a16: str = Field("{name}-quantized.w4a16", description="name of the compressed-tensors repo of 4 bits")
    w8a16: str = Field("{name}-quantized.w8a16", description="name of the compressed-tensors repo of 8 bits")
    bnb_4bit: str = Field("{name}-bnb-4bit", description="name of the bitsandbytes 4-bit repo")
    bnb_8bit: str = Field("{name}-bnb-8bit", description="name of the bitsandbytes int8 repo")
    quantized_by: str | None = Field(None, description="name in cards and GGUF metadata; default: the namespace")

    @property
    def maker(self) -> str | None:
        """The name that files and cards give as who made them."""
        return self.quantized_by or self.namespace


class LicenceSettings(Section):
    allow_unlicensed: bool = Field(
        False,
        description="go on where the source names no licence or one that forbids copies, as you have the right by other means",
    )


class BudgetSettings(Section):
    disk: Size | None = Field(
        None, description="most disk that a run may use, as 200GB; default: what is free in the work folder"
    )
    ram: Size | None = Field(None, description="most memory that a run may use, as 64GB; default: what is available")
    vram: Size | None = Field(
        None, description="most GPU memory that a run may use, as 24GB; default: what is free on the device"
    )


class Settings(Section):
    """Everything that a run can be told. Section by section in docs/settings.md."""

    revision: str | None = Field(None, description="branch, tag or commit of the model; default: main")
    variants: str = Field(
        "default",
        description="comma list of variants (Q4_K_M, gptq-4bit-128g, bnb-nf4), of sizes (fit-8GB: the best GGUF, fit-8GB_D: with measured types), or presets: default, small, gguf, gguf-all, gptq, vllm, bnb",
    )
    out: Path = Field(Path("out"), description="output folder, where a stopped run goes on")
    device: str = Field(
        "auto", description="where to compute: auto, cpu, cuda (all GPUs share a sweep, as with auto) or cuda:N"
    )
    allow_pickle: bool = Field(False, description="read pickle-only checkpoints with torch's weights-only loader")
    benchmark: bool = Field(False, description="measure speed and peak memory of each variant in its runtime")
    force: bool = Field(
        False,
        description="make again what is done; allow calibrating on evaluation text, and W4A16 in the place of an original",
    )
    strict: bool = Field(
        False, description="make and publish nothing unless every variant that is asked for can be made and passes"
    )
    calibration: CalibrationSettings = CalibrationSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    conversations: ConversationSettings = ConversationSettings()
    gguf: GgufSettings = GgufSettings()
    gptq: GptqSettings = GptqSettings()
    bnb: BnbSettings = BnbSettings()
    check: CheckSettings = CheckSettings()
    gate: GateSettings = GateSettings()
    publish: PublishSettings = PublishSettings()
    licence: LicenceSettings = LicenceSettings()
    budget: BudgetSettings = BudgetSettings()
    watch: WatchSettings = WatchSettings()
    serve: ServeSettings = ServeSettings()
    job: JobSettings = JobSettings()

    @property
    def spoken(self) -> ConversationSettings | None:
        """What a chat model is measured on besides the evaluation text, nothing left open; None: nothing."""
        asked, evaluation = self.conversations, self.evaluation
        beside = _CHATS if evaluation.dataset == EvaluationSettings().dataset else "none"
        dataset = beside if asked.dataset == "auto" else asked.dataset
        if dataset.lower() == "none" or not evaluation.wanted:
            return None
        split = asked.split or (_CHATS_SPLIT if dataset == _CHATS else "test")
        windows = min(asked.windows, evaluation.windows or asked.windows)
        return asked.model_copy(update={"dataset": dataset, "split": split, "windows": windows})


def load_settings(config: Path | None, flags: Mapping[str, Any]) -> Settings:
    """Settings of one run.

    flags: dotted path -> value (`calibration.samples`); None means that the flag was not given.
    Raises BadSettings naming the path of every wrong or unknown key.
    """
    values = _read_toml(config) if config else {}
    for path, value in flags.items():
        if value is not None:
            _put(values, path, value)
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise BadSettings(_explain(error, config)) from None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        msg = f"{path} does not exist. Name an existing hubbot.toml with --config, or leave the option out."
        raise BadSettings(msg) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        msg = f"{path} is not valid TOML: {error}. Mend that line; docs/settings.md shows every key."
        raise BadSettings(msg) from None


def _put(values: dict[str, Any], path: str, value: Any) -> None:
    *sections, key = path.split(".")
    for section in sections:
        values = values.setdefault(section, {})
    values[key] = value


def _explain(error: ValidationError, config: Path | None) -> str:
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(f"{where} is no setting")
        else:
            lines.append(f"{where}: {problem['msg']} (found {problem['input']!r})")
    origin = f" in {config}" if config else ""
    return f"Wrong settings{origin}: {'; '.join(lines)}. docs/settings.md lists every key with its default."

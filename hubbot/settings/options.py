"""The settings that have a name on the command line or among the action's inputs: a row each.

What an option means, its type and its default stand in `Settings` alone. A row says what it is called outside, and
what the action lets pass.
"""

from __future__ import annotations

import re
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from hubbot.domain import NAMESPACE
from hubbot.settings import Settings

__all__ = ["OPTIONS", "Option", "with_parts_of_datasets"]

_TEXTS = ("calibration", "evaluation", "conversations")
_SPLITTING = "; NAME:CONFIG:SPLIT names a part of a Hub dataset"

_REVISION = re.compile(r"[A-Za-z0-9][\w./+-]{0,254}")
_DATASET = re.compile(r"(?!.*\.\.)[\w.][\w./ -]*(:[\w.-]*){0,2}")
_DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,3})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One setting, as it is called outside."""

    setting: str  # dotted path in Settings
    flag: str | None = None  # of the command line, without its dashes
    input: str | None = None  # of the action
    pattern: re.Pattern[str] | None = None  # all that the action takes
    example: str | None = None  # a right value, for the action's message

    @property
    def meaning(self) -> str:
        told = _field(self.setting).description or ""
        return told + (_SPLITTING if self.setting.endswith(".dataset") else "")

    @property
    def default(self) -> Any:
        return _field(self.setting).default

    @property
    def type(self) -> Any:
        """bool, int, str, Path or dict; None is left out, as it says only that nobody asked."""
        kind = _field(self.setting).annotation
        if get_origin(kind) in (Union, types.UnionType):
            kind = next(part for part in get_args(kind) if part is not type(None))
        return str if self.choices else get_origin(kind) or kind

    @property
    def choices(self) -> tuple[str, ...]:
        kind = _field(self.setting).annotation
        return get_args(kind) if get_origin(kind) is Literal else ()


def _field(path: str) -> FieldInfo:
    *sections, key = path.split(".")
    section: Any = Settings
    for name in sections:
        section = section.model_fields[name].annotation
    field: FieldInfo = section.model_fields[key]
    return field


def _same(name: str, setting: str | None = None, **more: Any) -> Option:
    """An option that flag and input call alike."""
    return Option(setting=setting or name.replace("-", "_"), flag=name, input=name, **more)


OPTIONS: tuple[Option, ...] = (
    _same("revision", pattern=_REVISION, example="main"),
    _same("variants"),
    _same("out"),
    _same("publish", "publish.mode"),
    _same("namespace", "publish.namespace", pattern=NAMESPACE, example="my-org"),
    Option(input="visibility", setting="publish.visibility"),
    Option(input="quantized-by", setting="publish.quantized_by"),
    _same("calibration", "calibration.dataset", pattern=_DATASET, example="allenai/c4:en:train"),
    Option(flag="samples", input="calibration-samples", setting="calibration.samples", example="128"),
    Option(flag="length", input="calibration-length", setting="calibration.length", example="2048"),
    _same("seed", "calibration.seed", example="0"),
    _same("evaluation", "evaluation.dataset", pattern=_DATASET, example="Salesforce/wikitext:wikitext-2-raw-v1:test"),
    _same("conversations", "conversations.dataset", pattern=_DATASET, example="HuggingFaceH4/ultrachat_200k::test_sft"),
    Option(flag="context", input="evaluation-context", setting="evaluation.context", example="2048"),
    Option(flag="stride", setting="evaluation.stride"),
    Option(input="evaluation-windows", setting="evaluation.windows", example="64"),
    _same("imatrix", "gguf.imatrix"),
    _same("gate", "gate.enabled"),
    Option(input="max-ratio", setting="gate.max_ratio", example="4=1.05,3=1.2"),
    Option(input="max-kld", setting="gate.max_kld", example="4=0.1"),
    _same("check-vllm", "check.vllm"),
    Option(input="disk", setting="budget.disk", example="200GB"),
    Option(input="ram", setting="budget.ram", example="64GB"),
    Option(input="vram", setting="budget.vram", example="24GB"),
    _same("device", pattern=_DEVICE, example="auto"),
    _same("benchmark"),
    _same("allow-unlicensed", "licence.allow_unlicensed"),
    _same("allow-pickle"),
    _same("force"),
    _same("strict"),
)


def with_parts_of_datasets(given: Mapping[str, Any], *, folder: Path = Path()) -> dict[str, Any]:
    """Setting -> value, with the datasets' `NAME:CONFIG:SPLIT` taken apart; a file below `folder` is named by its path.

    A dataset that is named is used by itself: the default dataset's configuration does not belong to it.
    """
    apart = dict(given)
    for section in _TEXTS:
        if text := given.get(f"{section}.dataset"):
            name, _, rest = (text, "", "") if (folder / text).exists() else text.partition(":")
            config, _, split = rest.partition(":")
            apart |= {f"{section}.dataset": name, f"{section}.config": config, f"{section}.split": split or None}
    return apart

"""A family as somebody would add it: every weight in float16, read by transformers. See `tests/formats/test_a_new_family.py`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubbot.domain import Raw, Source, Speed, TextRecord, Variant  # type: ignore[attr-defined]
from hubbot.errors import Unsupported
from hubbot.formats.family import About, Kind
from hubbot.formats.protocol import Cost, Encoded, Format, Needs, Reading
from hubbot.settings import Settings

if TYPE_CHECKING:
    from hubbot.model.chat import Chat
from hubbot.model import ModelFacts

ABOUT = About(
    title="raw",
    grammar="is raw-f16",
    examples=("raw-f16",),
    kinds=(Kind(title="float16", tags=("float16",), name=lambda _: "{name}-raw"),),
    section=None,
    weights=".safetensors",
    folder=True,
    apart=False,
    library="transformers",
    packages=("numpy",),
)


def parse(name: str) -> Raw | None:
    return Raw() if name.lower() == "raw-f16" else None


def needs(config: Mapping[str, Any], names: Collection[str]) -> Needs:
    return Needs.NOTHING


def refusal(architecture: str) -> str | None:
    return None


def costs(
    variants: Sequence[Raw], *, source: Source, facts: ModelFacts, work: Path, settings: Settings
) -> dict[str, Cost | Unsupported]:
    from . import format as raw

    return {variant.name: raw.cost(source, facts) for variant in variants}


def open_format(
    variants: Sequence[Raw],
    *,
    beside: Sequence[Variant],
    source: Source,
    facts: ModelFacts,
    work: Path,
    out: Path,
    settings: Settings,
    calibration: TextRecord | None,
    decoded: bool,
    device: str,
) -> Format:
    from .format import RawFormat

    return RawFormat(variants, source, facts, work, out)


def finished(work: Path, out: Path) -> list[Path]:
    from hubbot.formats.folder import finished_folders

    return finished_folders(work / "raw", out / "raw")


def read(
    paths: Sequence[Path],
    reference: Path | None,
    *,
    prompts: Sequence[Sequence[int]] = (),
    new_tokens: int = 0,
    chat: Chat | None = None,
    device: str = "cpu",
) -> Reading:
    from hubbot.formats import check

    from .format import reader_of

    return check.read(paths, reference, reader_of, prompts=prompts, new_tokens=new_tokens, chat=chat, device=device)


def measure_speed(paths: Sequence[Path], *, prompt_tokens: int, generated_tokens: int, device: str) -> Speed:
    from hubbot.formats import check

    return check.measure_speed(
        paths,
        "hubbot.formats.raw.format",
        prompt_tokens=prompt_tokens,
        generated_tokens=generated_tokens,
        device=device,
    )


def artefact(path: Path, base: ModelFacts) -> Mapping[str, Encoded] | None:
    return None  # a plain checkpoint is read without a family

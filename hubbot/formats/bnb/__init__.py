"""bitsandbytes: nf4, fp4 and int8, encoded by bitsandbytes itself and stored as transformers stores them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubbot.domain import Bnb, Source, Speed, TextRecord, Variant
from hubbot.errors import Unsupported
from hubbot.formats.family import About, Kind
from hubbot.formats.protocol import Cost, Encoded, Format, Needs, Reading, beyond_float16
from hubbot.settings import Settings

if TYPE_CHECKING:
    from hubbot.model import ModelFacts
    from hubbot.model.chat import Chat
    from hubbot.model.finite import Large

_VARIANTS = {variant.name: variant for variant in (Bnb(kind="nf4"), Bnb(kind="fp4"), Bnb(kind="int8"))}

ABOUT = About(
    title="bitsandbytes",
    grammar="is bnb-nf4, bnb-fp4 or bnb-int8",
    examples=tuple(_VARIANTS),
    kinds=(
        Kind(title="bitsandbytes 4-bit", tags=("bitsandbytes", "4-bit"), name=lambda publish: publish.bnb_4bit, bits=4),
        Kind(title="bitsandbytes 8-bit", tags=("bitsandbytes", "8-bit"), name=lambda publish: publish.bnb_8bit, bits=8),
    ),
    section="bnb",
    weights=".safetensors",
    folder=True,
    apart=False,
    library="transformers",
    packages=("bitsandbytes",),
)


def parse(name: str) -> Bnb | None:
    return _VARIANTS.get(name.lower())


def needs(config: Mapping[str, Any], names: Collection[str]) -> Needs:  # noqa: ARG001 - the protocol's
    return Needs.NOTHING


def refusal(architecture: str) -> str | None:  # noqa: ARG001
    return None


def costs(
    variants: Sequence[Bnb],
    *,
    source: Source,
    facts: ModelFacts,
    work: Path,  # noqa: ARG001
    settings: Settings,
) -> dict[str, Cost | Unsupported]:
    from hubbot.formats.bnb import layout

    return dict(layout.costs(variants, facts, source, settings.bnb))


def overflows(
    variants: Sequence[Bnb],
    *,
    source: Source,  # noqa: ARG001
    facts: ModelFacts,
    work: Path,  # noqa: ARG001
    settings: Settings,  # noqa: ARG001
    large: Mapping[str, Large],
) -> dict[str, str]:
    from hubbot.formats.linears import first_large

    found = first_large(facts, large)
    names = [variant.name for variant in variants if variant.kind == "int8"]  # 4 bits keep their scales in float32
    return {name: beyond_float16(name, *found) for name in names} if found else {}


def open_format(
    variants: Sequence[Bnb],
    *,
    beside: Sequence[Variant],  # noqa: ARG001
    source: Source,
    facts: ModelFacts,
    work: Path,
    out: Path,
    settings: Settings,
    calibration: TextRecord | None,  # noqa: ARG001
    decoded: bool,  # noqa: ARG001
    device: str,
) -> Format:
    from hubbot.formats.bnb.format import BnbFormat

    return BnbFormat(
        variants=variants, source=source, facts=facts, work=work, out=out, settings=settings.bnb, device=device
    )


def finished(work: Path, out: Path) -> list[Path]:
    from hubbot.formats.folder import finished_folders

    return finished_folders(work / "bnb", out / "bnb")


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
    from hubbot.formats.bnb.reader import reader_of

    return check.read(paths, reference, reader_of, prompts=prompts, new_tokens=new_tokens, chat=chat, device=device)


def measure_speed(paths: Sequence[Path], *, prompt_tokens: int, generated_tokens: int, device: str) -> Speed:
    from hubbot.formats import check

    return check.measure_speed(
        paths,
        "hubbot.formats.bnb.reader",
        prompt_tokens=prompt_tokens,
        generated_tokens=generated_tokens,
        device=device,
    )


def artefact(path: Path, base: ModelFacts) -> Mapping[str, Encoded] | None:  # noqa: ARG001
    from hubbot.formats.stored import Checkpoint, quantization_of

    if quantization_of(path).get("quant_method") != "bitsandbytes":
        return None
    from hubbot.formats.bnb.foreign import decoders

    return decoders(Checkpoint.of(path))

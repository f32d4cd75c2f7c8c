"""compressed-tensors: the codes of the GPTQ solver in the container that vLLM recommends."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from hubbot.domain import Family, Gptq, Packed, Source, Speed, TextRecord, Variant
from hubbot.errors import Unsupported
from hubbot.formats.family import About, Kind
from hubbot.formats.protocol import Cost, Encoded, Format, Needs, Reading, beyond_float16
from hubbot.settings import Settings

if TYPE_CHECKING:
    from hubbot.model import ModelFacts
    from hubbot.model.chat import Chat
    from hubbot.model.finite import Large

_NAME = re.compile(r"w(?:(8)|(4))a16-(32|64|128|-1)g(?(2)(-asym)?)(-e2e)?")  # no reader takes 8 bits with zero points

ABOUT = About(
    title="compressed-tensors",
    grammar="is w4a16-<32|64|128|-1>g[-asym][-e2e] or w8a16-<32|64|128|-1>g[-e2e]",
    examples=(*(f"w{bits}a16-{size}g" for bits in (4, 8) for size in (32, 64, 128, -1)), "w4a16-128g-e2e"),
    kinds=(
        Kind(
            title="compressed-tensors W4A16",
            tags=("compressed-tensors", "w4a16", "4-bit"),
            name=lambda publish: publish.w4a16,
            bits=4,
        ),
        Kind(
            title="compressed-tensors W8A16",
            tags=("compressed-tensors", "w8a16", "8-bit"),
            name=lambda publish: publish.w8a16,
            bits=8,
        ),
    ),
    section="gptq",
    weights=".safetensors",
    folder=True,
    apart=False,
    library="transformers",
    packages=("compressed-tensors",),
)


def parse(name: str) -> Packed | None:
    match = _NAME.fullmatch(name.lower())
    if not match:
        return None
    eight, four, group, zeros, loss = match.groups()
    bits = cast("Literal[4, 8]", int(eight or four))
    layout = Gptq(
        bits=bits, group_size=int(group), act_order=False, symmetric=zeros is None, end_to_end=loss is not None
    )
    return Packed(layout=layout)


def needs(config: Mapping[str, Any], names: Collection[str]) -> Needs:  # noqa: ARG001 - the protocol's
    weighed = any(variant.layout.end_to_end for variant in map(parse, names) if variant)
    return Needs.GRADIENTS if weighed else Needs.HESSIAN


def refusal(architecture: str) -> str | None:  # noqa: ARG001
    return None


def costs(
    variants: Sequence[Packed],
    *,
    source: Source,
    facts: ModelFacts,
    work: Path,  # noqa: ARG001
    settings: Settings,
) -> dict[str, Cost | Unsupported]:
    from hubbot.formats.gptq import format as gptq
    from hubbot.formats.packed.checkpoint import PACKED

    return gptq.costs(variants, facts, source, settings.gptq, PACKED)


def overflows(
    variants: Sequence[Packed],
    *,
    source: Source,  # noqa: ARG001
    facts: ModelFacts,
    work: Path,  # noqa: ARG001
    settings: Settings,  # noqa: ARG001
    large: Mapping[str, Large],
) -> dict[str, str]:
    """The solver's scales are floats of 16 bits in this container too."""
    from hubbot.formats.linears import first_large

    found = first_large(facts, large)
    return {variant.name: beyond_float16(variant.name, *found) for variant in variants} if found else {}


def open_format(
    variants: Sequence[Packed],
    *,
    beside: Sequence[Variant],
    source: Source,
    facts: ModelFacts,
    work: Path,
    out: Path,
    settings: Settings,
    calibration: TextRecord | None,  # noqa: ARG001
    decoded: bool,  # noqa: ARG001
    device: str,  # noqa: ARG001
) -> Format:
    from hubbot.formats.gptq.format import GptqFormat
    from hubbot.formats.packed.checkpoint import PACKED

    return GptqFormat(
        variants=variants,
        beside=beside,
        source=source,
        facts=facts,
        work=work,
        out=out,
        settings=settings.gptq,
        container=PACKED,
    )


def finished(work: Path, out: Path) -> list[Path]:
    from hubbot.formats.folder import finished_folders

    return finished_folders(work / Family.PACKED, out / Family.PACKED)


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
    from hubbot.formats.packed.reader import reader_of

    return check.read(paths, reference, reader_of, prompts=prompts, new_tokens=new_tokens, chat=chat, device=device)


def measure_speed(paths: Sequence[Path], *, prompt_tokens: int, generated_tokens: int, device: str) -> Speed:
    from hubbot.formats import check

    return check.measure_speed(
        paths,
        "hubbot.formats.packed.reader",
        prompt_tokens=prompt_tokens,
        generated_tokens=generated_tokens,
        device=device,
    )


def artefact(path: Path, base: ModelFacts) -> Mapping[str, Encoded] | None:  # noqa: ARG001
    from hubbot.formats.stored import Checkpoint, quantization_of

    if quantization_of(path).get("quant_method") != "compressed-tensors":
        return None
    from hubbot.formats.packed.checkpoint import decoders

    return decoders(Checkpoint.of(path), quantization_of(path))

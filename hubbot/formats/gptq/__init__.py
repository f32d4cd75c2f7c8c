"""GPTQ checkpoints: solver, packing, files, and the check in their own reader."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from hubbot.domain import Gptq, Source, Speed, TextRecord, Variant
from hubbot.errors import Unsupported
from hubbot.formats.family import About, Kind
from hubbot.formats.protocol import Cost, Encoded, Format, Needs, Reading, beyond_float16
from hubbot.settings import Settings

if TYPE_CHECKING:
    from hubbot.model import ModelFacts
    from hubbot.model.chat import Chat
    from hubbot.model.finite import Large

_NAME = re.compile(r"gptq-(2|3|4|8)bit-(16|32|64|128|256|-1)g(-actorder)?(-asym)?(-e2e)?")

ABOUT = About(
    title="GPTQ",
    grammar="is gptq-<2|3|4|8>bit-<16|32|64|128|256|-1>g[-actorder][-asym][-e2e]",
    examples=(
        *(f"gptq-{bits}bit-{size}g" for bits in (2, 3, 4, 8) for size in (16, 32, 64, 128, 256, -1)),
        "gptq-4bit-128g-e2e",
    ),
    kinds=(Kind(title="GPTQ", tags=("gptq",), name=lambda publish: publish.gptq),),
    section="gptq",
    weights=".safetensors",
    folder=True,
    apart=False,
    library="transformers",
    packages=("gptqmodel",),
)


def parse(name: str) -> Gptq | None:
    match = _NAME.fullmatch(name.lower())
    if not match:
        return None
    bits, group, order, zeros, loss = match.groups()
    return Gptq(
        bits=cast("Literal[2, 3, 4, 8]", int(bits)),
        group_size=int(group),
        act_order=order is not None,
        symmetric=zeros is None,
        end_to_end=loss is not None,
    )


def needs(config: Mapping[str, Any], names: Collection[str]) -> Needs:  # noqa: ARG001 - the protocol's
    weighed = any(variant.end_to_end for variant in map(parse, names) if variant)
    return Needs.GRADIENTS if weighed else Needs.HESSIAN


def refusal(architecture: str) -> str | None:  # noqa: ARG001 - the protocol's
    return None


def costs(
    variants: Sequence[Gptq],
    *,
    source: Source,
    facts: ModelFacts,
    work: Path,  # noqa: ARG001
    settings: Settings,
) -> dict[str, Cost | Unsupported]:
    from hubbot.formats.gptq import format as gptq

    return gptq.costs(variants, facts, source, settings.gptq)


def overflows(
    variants: Sequence[Gptq],
    *,
    source: Source,  # noqa: ARG001
    facts: ModelFacts,
    work: Path,  # noqa: ARG001
    settings: Settings,  # noqa: ARG001
    large: Mapping[str, Large],
) -> dict[str, str]:
    from hubbot.formats.linears import first_large

    found = first_large(facts, large)
    return {variant.name: beyond_float16(variant.name, *found) for variant in variants} if found else {}


def open_format(
    variants: Sequence[Gptq],
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

    return GptqFormat(
        variants=variants, beside=beside, source=source, facts=facts, work=work, out=out, settings=settings.gptq
    )


def finished(work: Path, out: Path) -> list[Path]:
    from hubbot.formats.folder import finished_folders

    return finished_folders(work / "gptq", out / "gptq")


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
    from hubbot.formats.gptq.reader import reader_of

    return check.read(paths, reference, reader_of, prompts=prompts, new_tokens=new_tokens, chat=chat, device=device)


def measure_speed(paths: Sequence[Path], *, prompt_tokens: int, generated_tokens: int, device: str) -> Speed:
    from hubbot.formats import check

    return check.measure_speed(
        paths,
        "hubbot.formats.gptq.reader",
        prompt_tokens=prompt_tokens,
        generated_tokens=generated_tokens,
        device=device,
    )


def artefact(path: Path, base: ModelFacts) -> Mapping[str, Encoded] | None:  # noqa: ARG001
    from hubbot.formats.stored import Checkpoint, quantization_of

    if quantization_of(path).get("quant_method") != "gptq":
        return None
    from hubbot.formats.gptq.foreign import decoders

    return decoders(Checkpoint.of(path), quantization_of(path))

"""GGUF: llama.cpp's file types, written with its own converter, recipes and encoders."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubbot.domain import GGUF_SUFFIXES, Gguf, Source, Speed, TextRecord, Variant
from hubbot.errors import Unsupported
from hubbot.formats.family import About, Kind
from hubbot.formats.protocol import Cost, Encoded, Format, Needs, Reading
from hubbot.model.architectures import known_to_llama_cpp, sees_images
from hubbot.settings import Settings

if TYPE_CHECKING:
    from hubbot.model import ModelFacts
    from hubbot.model.chat import Chat
    from hubbot.model.finite import Large

# llama-quantize's own list, less the types without a CPU encoder or made for one architecture only.
TYPES = (
    "F32 F16 BF16 Q8_0 Q6_K Q5_K_M Q5_K_S Q5_1 Q5_0 Q4_K_M Q4_K_S Q4_1 Q4_0 MXFP4_MOE IQ4_NL IQ4_XS "
    "Q3_K_L Q3_K_M Q3_K_S IQ3_M IQ3_S IQ3_XS IQ3_XXS Q2_K Q2_K_S IQ2_M IQ2_S IQ2_XS IQ2_XXS IQ1_M IQ1_S TQ1_0 TQ2_0"
).split()
# Those whose types are whole numbers in blocks, which can be rounded by the Hessian: named with _H. Without
# Q2_K_S, since the Hub's parser would take Q2_K_S_H for it.
ROUNDED = "Q8_0 Q6_K Q5_K_M Q5_K_S Q5_1 Q5_0 Q4_K_M Q4_K_S Q4_1 Q4_0 Q3_K_L Q3_K_M Q3_K_S Q2_K".split()
# The mixes of K-quants, whose types can be given to tensors by measured divergence: named with _D, and with both _DH.
ALLOCATED = "Q5_K_M Q5_K_S Q4_K_M Q4_K_S Q3_K_L Q3_K_M Q3_K_S Q2_K".split()
_ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}

ABOUT = About(
    title="GGUF",
    grammar="types are named as llama-quantize names them, with _H where the whole Hessian rounds them and _D where measured divergence gives tensors their types",
    examples=(
        *TYPES,
        *(name + "_H" for name in ROUNDED),
        *(name + suffix for name in ALLOCATED for suffix in ("_D", "_DH")),
    ),
    kinds=(Kind(title="GGUF for llama.cpp", tags=("gguf", "llama.cpp"), name=lambda publish: publish.gguf),),
    section="gguf",
    weights=".gguf",
    folder=False,
    apart=True,
    library="gguf",
)


def parse(name: str) -> Gguf | None:
    suffix = next((end for end in GGUF_SUFFIXES if name.upper().endswith(end)), "")
    allocated, hessian = GGUF_SUFFIXES.get(suffix, (False, False))
    plain = name.upper().removesuffix(suffix)
    plain = _ALIASES.get(plain, plain)
    known = ALLOCATED if allocated else ROUNDED if hessian else TYPES
    return Gguf(type=plain, hessian=hessian, allocated=allocated) if plain in known else None


def needs(config: Mapping[str, Any], names: Collection[str]) -> Needs:
    if config.get("imatrix") is not True:
        return Needs.NOTHING
    return Needs.HESSIAN if any(variant.hessian for variant in map(parse, names) if variant) else Needs.SQUARES


# Architectures that llama.cpp loads and computes otherwise than transformers, each found by the load check, and one that it takes half.
# PhiMoE: with both differences put into transformers, a random model's logits diverge from llama.cpp's by 0.00007 nats;
# with the routing alone by 0.0023, with the norms alone by 0.037, with neither by 0.037.
# Hy 4: with neighbouring channels turned in transformers' attention by 1e-10 nats in float32, as it is by 0.045. llama.cpp's source
# says that the reference turns neighbours; a trained model was not at hand to see it by.
# DeepSeek V4: `conversion/deepseek.py` wants a scale beside every expert and repacks the pair as MXFP4; of others it makes nothing.
_OTHERWISE = {
    "phimoeforcausallm": "llama.cpp computes this architecture otherwise than it was trained: its norms do not subtract the mean, and "
    "a token's two experts share one weight by a softmax, where the model has layer norms and SparseMixer's weights.",
    "hyv4forcausallm": "llama.cpp and transformers 5.23, which measures here, compute this architecture differently: by a token's position the "
    "one turns neighbouring channels in attention, the other halves. One of them is wrong, so that no number here would be the file's.",
    "deepseekv4forcausallm": "llama.cpp's converter takes this architecture's experts as the MXFP4 blocks of its original alone, which it copies "
    "as they are; hubbot's GGUF files are made of decoded weights.",
}


def refusal(architecture: str) -> str | None:
    if why := _OTHERWISE.get(architecture.lower()):
        return f"{why} Leave the GGUF types out of --variants."
    if known_to_llama_cpp(architecture) or sees_images(architecture):  # the converter asks for the class of its text
        return None
    return f"llama.cpp's converter does not know {architecture}, so no GGUF can be made. Leave the GGUF variants out (--variants gptq-4bit-128g,bnb-nf4), or use a newer hubbot."


def costs(
    variants: Sequence[Gguf], *, source: Source, facts: ModelFacts, work: Path, settings: Settings
) -> dict[str, Cost | Unsupported]:
    """Runs llama.cpp's converter on the headers."""
    from hubbot.formats.gguf import format as gguf

    text, maker = settings.calibration.name, settings.publish.maker
    context = min(settings.evaluation.context, facts.context_length or settings.evaluation.context)
    return gguf.costs(variants, source, facts, work, settings.gguf, text=text, quantized_by=maker, context=context)


def overflows(
    variants: Sequence[Gguf],
    *,
    source: Source,
    facts: ModelFacts,
    work: Path,
    settings: Settings,
    large: Mapping[str, Large],
) -> dict[str, str]:
    from hubbot.formats.gguf import overflow

    text, maker = settings.calibration.name, settings.publish.maker
    return overflow.overflows(variants, source, facts, work, settings.gguf, large, text=text, quantized_by=maker)


def open_format(
    variants: Sequence[Gguf],
    *,
    beside: Sequence[Variant],  # noqa: ARG001
    source: Source,
    facts: ModelFacts,
    work: Path,
    out: Path,
    settings: Settings,
    calibration: TextRecord | None,
    decoded: bool,
    device: str,
) -> Format:
    from hubbot.formats.gguf.format import GgufFormat

    return GgufFormat(
        variants=variants,
        source=source,
        facts=facts,
        work=work,
        out=out,
        settings=settings.gguf,
        calibration=calibration,
        quantized_by=settings.publish.maker,
        decoded=decoded,
        device=device,
    )


def finished(work: Path, out: Path) -> list[Path]:
    from hubbot.formats.gguf.journal import Journal

    return [out / "gguf" / name for name in Journal(work / "gguf").finals()] if (work / "gguf").is_dir() else []


def read(
    paths: Sequence[Path],
    reference: Path | None,
    *,
    prompts: Sequence[Sequence[int]] = (),
    new_tokens: int = 0,
    chat: Chat | None = None,
    device: str = "cpu",
) -> Reading:
    from hubbot.formats.gguf import check

    return check.read(paths, reference, prompts=prompts, new_tokens=new_tokens, chat=chat, device=device)


def measure_speed(
    paths: Sequence[Path],
    *,
    prompt_tokens: int,
    generated_tokens: int,
    device: str,
) -> Speed:
    from hubbot.formats.gguf import speed

    return speed.measure_speed(paths, prompt_tokens=prompt_tokens, generated_tokens=generated_tokens, device=device)


def artefact(path: Path, base: ModelFacts) -> Mapping[str, Encoded] | None:
    if path.suffix != ".gguf":
        return None
    from hubbot.formats.gguf.foreign import read_gguf_as_checkpoint

    return read_gguf_as_checkpoint(path, base)

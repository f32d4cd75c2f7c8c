"""Makes GPTQ and bitsandbytes folders from a tiny model without the sweep: hooks collect the inputs' statistics."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file

from hubbot.domain import Bnb, Gptq, Packed, Source
from hubbot.formats.bnb.format import BnbFormat
from hubbot.formats.gptq.format import GptqFormat
from hubbot.formats.linears import find_linears
from hubbot.formats.names import parse_variant
from hubbot.formats.packed.checkpoint import PACKED
from hubbot.formats.protocol import InputStatistics
from hubbot.model import part_layout, read_facts
from hubbot.settings import BnbSettings, GptqSettings


def source_of(folder: Path) -> Source:
    return Source(folder=str(folder), repo="tests/tiny", revision=None, files={p.name: "" for p in folder.iterdir()})


def checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def tokens(windows: int = 8, length: int = 64) -> torch.Tensor:
    return torch.randint(3, 400, (windows, length), generator=torch.Generator().manual_seed(0))


def statistics(folder: Path) -> dict[str, InputStatistics]:
    """Of every linear layer in the blocks, on random tokens."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    sums: dict[str, torch.Tensor] = {}
    modules = {linear.name: model.get_submodule(linear.module) for linear in find_linears(read_facts(folder)).blocks}

    def note(name):
        def hook(_module, args):
            rows = args[0].reshape(-1, args[0].shape[-1])
            sums[name] = sums.get(name, 0) + rows.T @ rows

        return hook

    for name, module in modules.items():
        module.register_forward_pre_hook(note(name))
    with torch.inference_mode():
        model(tokens())
    return {name: InputStatistics(squares=H.diagonal(), hessian=H, tokens=tokens().numel()) for name, H in sums.items()}


def gptqs(names: Iterable[str]) -> list[Gptq]:
    return [variant for name in names if isinstance(variant := parse_variant(name), Gptq)]


def bnbs(names: Iterable[str]) -> list[Bnb]:
    return [variant for name in names if isinstance(variant := parse_variant(name), Bnb)]


def gptq_format(folder: Path, names: list[str], out: Path, **settings) -> GptqFormat:
    return GptqFormat(
        variants=gptqs(names),
        source=source_of(folder),
        facts=read_facts(folder),
        work=out / ".work",
        out=out,
        settings=GptqSettings(**settings),
    )


def packed_format(folder: Path, names: list[str], out: Path, **settings) -> GptqFormat:
    return GptqFormat(
        variants=[variant for name in names if isinstance(variant := parse_variant(name), Packed)],
        source=source_of(folder),
        facts=read_facts(folder),
        work=out / ".work",
        out=out,
        settings=GptqSettings(**settings),
        container=PACKED,
    )


def bnb_format(folder: Path, names: list[str], out: Path, **settings) -> BnbFormat:
    return BnbFormat(
        variants=bnbs(names),
        source=source_of(folder),
        facts=read_facts(folder),
        work=out / ".work",
        out=out,
        settings=BnbSettings(**settings),
    )


def encode_all(
    family, folder: Path, seen: dict[str, InputStatistics] | None = None
) -> dict[str, dict[str, torch.Tensor]]:
    """Walk the parts; variant -> checkpoint name -> decoded weight. seen: the statistics, where they are known."""
    weights = checkpoint(folder)
    if seen is None:
        seen = statistics(folder) if isinstance(family, GptqFormat) else {}
    decoded: dict[str, dict[str, torch.Tensor]] = {variant.name: {} for variant in family.variants}
    for part in part_layout(read_facts(folder)):
        encoded = family.encode(part, {name: weights[name] for name in part.tensors}, seen)
        for variant, tensors in encoded.items():
            decoded[variant] |= {name: tensor.decode() for name, tensor in tensors.items()}
    return decoded


def logits(folder: Path, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the original model computes in float32 with some of its weights replaced."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    modules = {linear.name: linear.module for linear in find_linears(read_facts(folder)).blocks}
    with torch.inference_mode():
        for name, weight in weights.items():
            model.get_submodule(modules[name]).weight.copy_(weight)
        found: torch.Tensor = model(tokens(2, 48)).logits.float().contiguous()
    return found

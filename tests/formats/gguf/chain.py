"""The two ways to a GGUF: hubbot's, fed part by part, and llama.cpp's own chain."""

import re
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from hubbot import llamacpp
from hubbot.domain import Source, TextRecord
from hubbot.formats.gguf import parse
from hubbot.formats.gguf.format import GgufFormat
from hubbot.formats.protocol import InputStatistics
from hubbot.model import read_facts
from hubbot.model.parts import Part, PartKind
from hubbot.settings import GgufSettings

TEXT = TextRecord(dataset="a tiny text", revision=None, sha256="0" * 64, windows=7, length=64)
TOKENS = 448


def checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def parts(names) -> list[Part]:
    """The parts that the sweep would cut the model into, in its order."""
    groups: dict[tuple[PartKind, int], list[str]] = {}
    for name in names:
        block = re.search(r"layers\.(\d+)\.", name)
        if block:
            key = (PartKind.BLOCK, int(block[1]))
        else:
            key = (PartKind.EMBEDDING if "embed_" in name else PartKind.HEAD, 0)
        groups.setdefault(key, []).append(name)
    order = [PartKind.EMBEDDING, PartKind.BLOCK, PartKind.HEAD]
    keys = sorted(groups, key=lambda key: (order.index(key[0]), key[1]))
    return [Part(kind=kind, index=index, tensors=tuple(groups[kind, index])) for kind, index in keys]


def statistics_of(part: Part, weights) -> dict[str, InputStatistics]:
    """Made-up statistics of every linear layer of a block, the same at every call; shared where inputs are."""
    if part.kind is not PartKind.BLOCK:
        return {}
    found = {}
    for name in part.tensors:
        if weights[name].ndim == 2:
            generator = torch.Generator().manual_seed(part.index)
            squares = TOKENS * torch.rand(weights[name].shape[1], generator=generator) ** 2
            found[name] = InputStatistics(squares=squares, hessian=None, tokens=TOKENS)
    return found


def open_format(folder: Path, types: list[str], out: Path, *, imatrix: bool = False, **options) -> GgufFormat:
    settings = options.pop("settings", GgufSettings(imatrix=imatrix))
    source = options.pop("source", Source(folder=str(folder), repo=None, revision=None, files={}))
    return GgufFormat(
        variants=[parse(name) for name in types],
        source=source,
        facts=read_facts(folder),
        work=options.pop("work", out / "work"),
        out=out,
        settings=settings,
        calibration=TEXT if imatrix else None,
        **options,
    )


def make(folder: Path, types: list[str], out: Path, **options):
    """Run the whole format over a folder. Returns (files by type, decoded tensors by type)."""
    form = open_format(folder, types, out, **options)
    weights = checkpoint(folder)
    decoded = {name: {} for name in types}
    for part in parts(weights):
        held = {name: weights[name] for name in part.tensors}
        found = form.encode(part, held, statistics_of(part, weights) if options.get("imatrix") else {})
        for name, tensors in found.items():
            decoded[name] |= {key: tensor.decode() for key, tensor in tensors.items()}
    return form.finish(), decoded


def convert(folder: Path, into: Path, outtype: str = "bf16") -> Path:
    """llama.cpp's own conversion of a folder to one file."""
    script = llamacpp.find().source / "convert_hf_to_gguf.py"
    command = [sys.executable, str(script), str(folder), "--outfile", str(into), "--outtype", outtype]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return into


def quantize(base: Path, into: Path, name: str, imatrix: str | None = None) -> Path:
    """llama.cpp's own quantization of a converted file. imatrix: named as the files should remember it."""
    options = ["--imatrix", imatrix] if imatrix else []
    done = llamacpp.run_tool("llama-quantize", [*options, base, into, name], timeout=600)
    assert done.returncode == 0, done.stdout[-2000:]
    return into


def keys_and_tensors(path: Path):
    """(key -> value, tensor name -> (type, shape, bytes)), in file order."""
    reader = llamacpp.gguf().GGUFReader(path)
    keys = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    tensors = {t.name: (int(t.tensor_type), tuple(t.shape.tolist()), t.data.tobytes()) for t in reader.tensors}
    return keys, tensors

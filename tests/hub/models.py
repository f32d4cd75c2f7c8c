"""Small repos to fetch and publish."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from hubbot.domain import SCHEMA_VERSION, Family, File, Peak, Record, Source, Status, VariantRecord
from hubbot.hub.publish.repo_release import RepoRelease
from hubbot.record.file import write_record

CARD = "---\nlicense: apache-2.0\nlanguage: [en]\ntags: [tiny]\npipeline_tag: text-generation\n---\n# Tiny\n"
CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 16}


def weights(seed: int, rows: int = 64) -> bytes:
    values = np.random.default_rng(seed).standard_normal((rows, 64)).astype(np.float32)
    return save({f"layer{seed}.weight": values})


def sharded() -> dict[str, bytes | str]:
    """A model in two shards, with what a fetch needs and what it must leave."""
    index = {
        "weight_map": {
            "layer1.weight": "model-00001-of-00002.safetensors",
            "layer2.weight": "model-00002-of-00002.safetensors",
        }
    }
    return {
        "README.md": CARD,
        "LICENSE": "Apache",
        "config.json": json.dumps(CONFIG),
        "generation_config.json": "{}",
        "tokenizer.model": b"\0tokens",
        "tokenizer_config.json": "{}",
        "chat_template.jinja": "{{ messages }}",
        "model.safetensors.index.json": json.dumps(index),
        "model-00001-of-00002.safetensors": weights(1),
        "model-00002-of-00002.safetensors": weights(2),
        "consolidated.safetensors": weights(3),
        "pytorch_model.bin": b"\x80\x02pickle\0",
        "onnx/model.onnx": b"\0onnx",
        "modeling_evil.py": "raise SystemExit",
        "picture.png": b"\x89PNG\0",
    }


NEEDED = sorted(
    "README.md LICENSE config.json generation_config.json tokenizer.model tokenizer_config.json chat_template.jinja "
    "model.safetensors.index.json model-00001-of-00002.safetensors model-00002-of-00002.safetensors".split()
)


def record(*, seed: int = 0, variants: Mapping[str, Mapping[str, bytes]], version: str = "1.0") -> Record:
    """hubbot.json of a made-up run. seed: another one means other source weights. variants: name -> path -> bytes."""
    source = Source(
        folder="/in/tiny",
        repo="ada/tiny",
        revision="a" * 40,
        files={"model.safetensors": f"{seed:064x}"},
        license="mit",
    )
    return Record(
        schema=SCHEMA_VERSION,
        hubbot={"version": version, "commit": None},
        tools={},
        hardware={},
        command="hubbot run",
        config={},
        source=source,
        calibration=None,
        evaluation=None,
        base=None,
        variants=tuple(_variant(name, files) for name, files in variants.items()),
        timings={"sweep": random.random()},  # two runs never write the same record
        peak=Peak(),
    )


def _variant(name: str, files: Mapping[str, bytes]) -> VariantRecord:
    family = Family.GPTQ if name.startswith("gptq") else Family.GGUF
    return VariantRecord(
        name=name,
        family=family,
        status=Status.PASSED,
        files=tuple(File(path=p, size=len(b), sha256=hashlib.sha256(b).hexdigest()) for p, b in files.items()),
    )


def gguf_release(
    out: Path, *types: str, repo: str = "ada/tiny-GGUF", seed: int = 0, version: str = "1.0"
) -> RepoRelease:
    """A GGUF release: files side by side on main."""
    files = {f"tiny-{name}.gguf": b"GGUF\0" + f"{name} {seed}".encode() * 4000 for name in types}
    made = record(
        seed=seed, version=version, variants={n: {f"gguf/tiny-{n}.gguf": files[f"tiny-{n}.gguf"]} for n in types}
    )
    out.mkdir(parents=True, exist_ok=True)
    write_record(made, out)
    card = CARD.replace("# Tiny", f"# Tiny {seed}\n{' '.join(types)}")
    paths = write(out, {**files, "README.md": card})
    return RepoRelease(
        repo_id=repo,
        branches={"main": {**paths, "hubbot.json": out / "hubbot.json"}},
        title=f"Quantize ada/tiny ({seed})",
        description=f"Release {seed}",
        family=Family.GGUF,
    )


def gptq_release(out: Path, *names: str, repo: str = "ada/tiny-GPTQ", seed: int = 0, machine: int = 0) -> RepoRelease:
    """A GPTQ release: the first variant on main, each other on a branch of its name.

    machine: another one makes other bytes of the same release.
    """
    parts = {
        name: {
            "model.safetensors": weights(seed + 10 * i + 1000 * machine),
            "config.json": f'{{"v": "{name}"}}'.encode(),
        }
        | ({"extra.json": b"{}"} if i else {})
        for i, name in enumerate(names)
    }
    full = {n: {f"gptq/{n}/{path}": content for path, content in files.items()} for n, files in parts.items()}
    out.mkdir(parents=True, exist_ok=True)
    write_record(record(seed=seed, variants=full), out)
    branches = {}
    for i, (name, files) in enumerate(parts.items()):
        paths = write(out / "gptq" / name, {**files, "README.md": CARD + name})
        branches["main" if i == 0 else name] = {**paths, "hubbot.json": out / "hubbot.json"}
    return RepoRelease(
        repo_id=repo, branches=branches, title=f"Quantize ada/tiny ({seed})", description="Text", family=Family.GPTQ
    )


def write(folder: Path, contents: Mapping[str, bytes | str]) -> dict[str, Path]:
    paths = {}
    for name, content in contents.items():
        paths[name] = folder / name
        paths[name].parent.mkdir(parents=True, exist_ok=True)
        paths[name].write_bytes(content.encode() if isinstance(content, str) else content)
    return paths

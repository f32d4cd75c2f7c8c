"""A set of GGUF files: hubbot's one pass against llama.cpp's own chain, in one run on one machine.

    python bench/set.py [--layers 20] [--work DIR] [--markdown FILE]

A random Llama of about 0.4 B weights in bf16; static files, no evaluation on either side. The chain is the
converter and then `llama-quantize` for each type, each writing to the same disk. hubbot's side is a process
that walks the checkpoint part by part and hands each to the GGUF format, as the sweep does with evaluation
off. Files of both sides are compared byte for byte at the end.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

TYPES = ["Q8_0", "Q4_0", "Q4_K_M", "Q5_K_M", "Q6_K", "Q2_K", "Q3_K_M", "IQ4_XS"]


def make_source(folder: Path, layers: int) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.models import make_model

    make_model("llama", folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=1280,
        intermediate_size=3584,
        num_hidden_layers=layers,
        num_attention_heads=20,
        num_key_value_heads=5,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.set_default_dtype(torch.bfloat16)
    LlamaForCausalLM(config).save_pretrained(folder)


def through_hubbot(source: Path, out: Path) -> None:
    """The child: everything from an empty process to finished files."""
    from safetensors import safe_open

    from hubbot.domain import Gguf, Source
    from hubbot.formats.gguf.format import GgufFormat
    from hubbot.model import read_facts
    from hubbot.settings import GgufSettings
    from tests.formats.gguf.chain import parts

    facts = read_facts(source)
    form = GgufFormat(
        variants=[Gguf(type=name) for name in TYPES],
        source=Source(folder=str(source), repo=None, revision=None, files={}),
        facts=facts,
        work=out / "work",
        out=out,
        settings=GgufSettings(imatrix=False),
        decoded=False,
    )
    for part in parts(facts.tensors):
        weights = {}
        for name in part.tensors:
            with safe_open(source / facts.tensors[name].file, framework="pt") as file:
                weights[name] = file.get_tensor(name)
        form.encode(part, weights, {})
    form.finish()


def peak_of(command: list[str | Path]) -> tuple[float, float, int]:
    """(wall seconds, processor seconds, peak bytes) of a program, measured by a process whose only child it is."""
    between = [sys.executable, str(Path(__file__).resolve()), "--between", *map(str, command)]
    done = subprocess.run(between, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command} failed: {done.stderr[-2000:]}")
    wall, cpu, peak = json.loads(done.stdout.splitlines()[-1])
    return wall, cpu, peak


def between(command: list[str]) -> None:
    began = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    wall = time.perf_counter() - began
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(json.dumps([wall, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024]))
    sys.exit(done.returncode)


def compare(work: Path, layers: int) -> str:
    from hubbot import llamacpp

    source, chain, ours = work / "bench-llama", work / "chain", work / "hubbot"
    for folder in (chain, ours):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    if not (source / "model.safetensors").exists():
        make_source(source, layers)
    base = chain / "base.gguf"
    here = llamacpp.find()
    steps = {
        "convert": [
            sys.executable,
            here.source / "convert_hf_to_gguf.py",
            source,
            "--outfile",
            base,
            "--outtype",
            "bf16",
        ]
    }
    for name in TYPES:
        steps[name] = [llamacpp.tool("llama-quantize"), base, chain / f"{source.name}-{name}.gguf", name]
    steps["hubbot"] = [sys.executable, Path(__file__).resolve(), "--child", source, ours]
    found = {step: peak_of(command) for step, command in steps.items()}
    for name in TYPES:
        file = f"{source.name}-{name}.gguf"
        if not filecmp.cmp(chain / file, ours / "gguf" / file, shallow=False):
            raise SystemExit(f"{file}: the two sides differ")
    return report(found, base.stat().st_size)


def report(found: dict[str, tuple[float, float, int]], size: int) -> str:
    from hubbot.llamacpp import runtime_name

    chain = [found[step] for step in found if step != "hubbot"]
    rows = [(step, *found[step]) for step in found if step != "hubbot"]
    rows.append(("chain, together", sum(r[0] for r in chain), sum(r[1] for r in chain), max(r[2] for r in chain)))
    rows.append(("hubbot", *found["hubbot"]))
    wall, cpu = (found["hubbot"][i] / sum(r[i] for r in chain) for i in (0, 1))
    lines = [
        f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}, {runtime_name()}; "
        f"source of {size / 1e9:.2f} GB in bf16; all {len(TYPES)} files equal byte for byte.",
        "",
        "| step | wall s | processor s | peak memory MB |",
        "|---|---:|---:|---:|",
        *(f"| {step} | {wall:.1f} | {cpu:.1f} | {peak / 1e6:.0f} |" for step, wall, cpu, peak in rows),
        "",
        f"hubbot took {wall:.2f} of the chain's time and {cpu:.2f} of its processor time.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    if sys.argv[1:2] == ["--between"]:
        between(sys.argv[2:])
    if sys.argv[1:2] == ["--child"]:
        through_hubbot(Path(sys.argv[2]), Path(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--work", type=Path, default=Path("/tmp/hubbot-bench"))
    parser.add_argument("--markdown", type=Path, help="also write the report here")
    options = parser.parse_args()
    text = compare(options.work, options.layers)
    print(text)
    if options.markdown:
        options.markdown.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

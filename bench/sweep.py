"""One sweep over a random-weight Llama: seconds a step, peak memory, against the model's size.

    python bench/sweep.py --device cuda --hidden 4096 --intermediate 14336 --layers 4 \\
      --samples 128 --length 2048 --windows 48 --variants Q4_K_M,gptq-4bit-128g,bnb-nf4

The tokenizer is the demo model's and the texts are the standard library, so nothing is downloaded.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line sets it; torch reads it when it is imported

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from hubbot.child.make import make
from hubbot.child.messages import MakeAnswer, MakeQuestion
from hubbot.demo.train import Recipe, demo_model, library_texts
from hubbot.domain import Peak, Source, Text, Texts
from hubbot.formats.names import parse_variants
from hubbot.machine import measure_machine
from hubbot.machine.peak import PeakMeter
from hubbot.machine.versions import tools
from hubbot.model import part_layout, read_facts
from hubbot.model.parts import Part, PartKind
from hubbot.settings import load_settings
from hubbot.sweep.judge import Verdicts
from hubbot.sweep.walk import _Walk

COPIED = "tokenizer.json tokenizer.model tokenizer_config.json special_tokens_map.json README.md".split()


def build(folder: Path, *, hidden: int, intermediate: int, layers: int, vocabulary: int) -> int:
    """Write a Llama of random bfloat16 weights; returns its number of weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 128,
        num_key_value_heads=max(1, hidden // 512),
        vocab_size=vocabulary,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )
    with torch.device(
        "cuda" if torch.cuda.is_available() else "cpu"
    ):  # draws faster; the process and its memory end here
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def main() -> None:
    asked = arguments()
    demo = Path(asked.demo) if asked.demo else demo_model(log=print)
    with tempfile.TemporaryDirectory(dir=asked.work) as name:
        work = Path(name)
        folder = work / "model"
        shape = {
            "hidden": asked.hidden,
            "intermediate": asked.intermediate or asked.hidden * 11 // 4 // 256 * 256,
            "layers": asked.layers,
            "vocabulary": asked.vocabulary or json.loads((demo / "config.json").read_text())["vocab_size"],
        }
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:  # its memory is not the sweep's
            weights = apart.submit(build, folder, **shape).result()
        for file in COPIED:
            if (demo / file).exists():
                shutil.copy(demo / file, folder)
        flags = {
            "device": asked.device,
            "calibration.samples": asked.samples,
            "calibration.length": asked.length,
            "evaluation.context": asked.length,
            "evaluation.windows": asked.windows,
        }
        source = Source(folder=str(folder), repo=None, revision=None, files={})
        texts = write_texts(work)
        (work / "out").mkdir()
        (work / "work").mkdir()
        question = MakeQuestion(
            source=source,
            settings=load_settings(None, flags),
            work=work / "work",
            out=work / "out",
            variants=tuple(variant.name for variant in parse_variants(asked.variants)),
            texts=texts if asked.windows else replace(texts, evaluation=None),
        )
        start = time.monotonic()
        with (
            PeakMeter(work, device=asked.device) as meter,
            told_by_part(asked.device) if asked.parts else nullcontext(),
        ):
            answer = make(question)
        seconds = time.monotonic() - start
        report(asked, answer, weights, seconds, meter.peak)
        compare_memory(folder, asked, answer, meter.peak)
        if asked.digests:
            tell_digests(work / "out", answer)


@contextmanager
def told_by_part(device: str) -> Iterator[None]:
    """Print what every part of the model took, step by step; at the end medians over all blocks but the first.

    On a card also the share of these blocks' time in which it ran a kernel, by the driver's own counter (NVML's utilization).
    """
    plain = _Walk._step
    blocks: list[dict[str, float]] = []
    busy: list[int] = []

    def step(walk: _Walk, part: Part) -> list[Verdicts]:
        before, start = dict(walk.progress.seconds), time.monotonic()
        warm = part.kind is PartKind.BLOCK and bool(blocks)
        with watched(device, busy) if warm else nullcontext():
            verdicts = plain(walk, part)
        spent = {name: seconds - before.get(name, 0.0) for name, seconds in walk.progress.seconds.items()}
        spent = {name: seconds for name, seconds in spent.items() if seconds > 0}
        whole = time.monotonic() - start
        steps = ", ".join(f"{name} {seconds:.3f}" for name, seconds in spent.items())
        print(f"{part.name}: {whole:.2f} s ({steps})", flush=True)
        if part.kind is PartKind.BLOCK:
            blocks.append({"the whole block": whole} | spent)
        return verdicts

    _Walk._step = step  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        _Walk._step = plain  # type: ignore[method-assign, assignment]
    for name in dict.fromkeys(itertools.chain(*blocks[1:])):
        print(
            f"  median of {len(blocks) - 1}: {statistics.median(one.get(name, 0.0) for one in blocks[1:]):.3f} s {name}"
        )
    if busy:
        print(f"  the card was busy {statistics.mean(busy):.0f} % of the time, by {len(busy)} readings")


@contextmanager
def watched(device: str, busy: list[int]) -> Iterator[None]:
    """Read ten times a second how much of the last moment the card was running kernels, in percent."""
    if not device.startswith("cuda"):
        yield
        return
    done = threading.Event()

    def read() -> None:
        while not done.wait(0.1):
            busy.append(torch.cuda.utilization(device if ":" in device else 0))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield
    finally:
        done.set()
        reader.join()


def write_texts(into: Path) -> Texts:
    """The whole standard library as calibration and evaluation text."""
    library = library_texts(Recipe(characters=10**9))
    parts = {"calibration": library.training, "evaluation": library.evaluation}
    texts = {}
    for name, pieces in parts.items():
        path = into / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": piece}) + "\n" for piece in pieces))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        texts[name] = Text(path=path, name=name, revision=None, sha256=digest)
    return Texts(**texts)


def report(asked: argparse.Namespace, answer: MakeAnswer, weights: int, seconds: float, peak: Peak) -> None:
    print(json.dumps({"machine": measure_machine(Path(), asked.device).hardware, "tools": tools()}))
    print(f"{weights / 1e6:.0f} M weights, {2 * weights / 1e9:.2f} GB in bfloat16; {seconds:.1f} s; {peak}")
    for name, spent in sorted(answer.seconds.items(), key=lambda item: -item[1]):
        print(f"  {name:28} {spent:8.1f} s")
    for name, made in answer.made.items():
        score = made.score
        measured = f"  KL {score.kld.mean:.3e}  ratio {score.ratio:.4f}" if score else ""
        print(f"  {name:28} {made.bits_per_weight:.3f} bits per weight{measured}")


def tell_digests(out: Path, answer: MakeAnswer) -> None:
    """What the files hold: two runs that print the same lines made the same files."""
    for path in sorted({path for made in answer.made.values() for path in made.paths}):
        print(f"  {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}  {path.relative_to(out)}")


def compare_memory(folder: Path, asked: argparse.Namespace, answer: MakeAnswer, peak: Peak) -> None:
    """Against what a sweep may take: its largest part as 32-bit floats and encoded, its streams, and 1 GB."""
    facts = read_facts(folder)
    largest = max(
        sum(math.prod(facts.tensors[name].shape) for name in part.tensors)
        for part in part_layout(facts)
        if part.kind is PartKind.BLOCK or asked.windows
    )
    encoded = sum(largest * made.bits_per_weight / 8 for made in answer.made.values())
    texts = [answer.calibration, *[answer.evaluation] * (1 + len(answer.made))]
    streams = sum(text.windows * text.length * asked.hidden * 4 for text in texts if text)
    bound = 4 * largest + encoded + streams + 1e9
    print(
        f"peak RSS {(peak.rss or 0) / 1e9:.2f} GB; largest part {4 * largest / 1e9:.2f} GB, its encodings "
        f"{encoded / 1e9:.2f} GB, streams {streams / 1e9:.2f} GB, and 1 GB: {bound / 1e9:.2f} GB"
    )
    if asked.device == "cpu" and (peak.rss or 0) > bound:
        raise SystemExit("The sweep took more memory than it may.")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--intermediate", type=int, default=0, help="width of the MLP; 0: 11/4 of the hidden size")
    parser.add_argument("--vocabulary", type=int, default=0, help="0: the tokenizer's own")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--windows", type=int, default=16, help="evaluation windows; 0: none")
    parser.add_argument("--variants", default="Q8_0,Q4_K_M,gptq-4bit-128g,bnb-nf4")
    parser.add_argument("--parts", action="store_true", help="print the seconds of every part too")
    parser.add_argument("--digests", action="store_true", help="print a digest of every file too")
    parser.add_argument("--demo", help="folder of a trained demo model")
    parser.add_argument("--work", help="where the temporary folder is made")
    return parser.parse_args()


if __name__ == "__main__":
    main()

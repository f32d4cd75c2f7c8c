"""Reads every finished variant in its own runtime: the load check, samples and, where asked for, speed."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import torch
from transformers.utils import logging as transformers_logging

from hubbot import log
from hubbot.child.device import settle_device
from hubbot.child.messages import CheckAnswer, Checked, CheckQuestion
from hubbot.domain import Source, VariantRecord
from hubbot.errors import ToolMissing
from hubbot.formats import FAMILIES, samples
from hubbot.model import read_facts
from hubbot.model.chat import end_tokens
from hubbot.settings import Settings
from hubbot.sweep.windows import load_tokenizer

__all__ = ["check"]

_PROMPT_TOKENS, _GENERATED_TOKENS = 512, 64  # of the benchmark; fewer where the model's context is shorter


def check(question: CheckQuestion) -> CheckAnswer:
    """Load check, samples and speed of the question's variants."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    settings = question.settings
    spoken = _Spoken(question.source, settings) if settings.evaluation.samples else None
    checked = {}
    with log.progress("load check", len(question.variants), "variants") as advance:
        for variant in question.variants:
            checked[variant.name] = _checked(variant, question, spoken)
            advance(1)
    return CheckAnswer(checked=checked)


def _checked(variant: VariantRecord, question: CheckQuestion, spoken: _Spoken | None) -> Checked:
    settings = question.settings
    paths = [question.out / file.path for file in variant.files]
    _let_go()
    device = _device_for(paths, settle_device(settings.device))
    with _aside(question.work / "load-check.log"):
        reading = FAMILIES[variant.family].read(
            paths,
            question.references.get(variant.name),
            prompts=spoken.prompts if spoken else [],
            new_tokens=samples.NEW_TOKENS,
            ends=spoken.ends if spoken else (),
            device=device,
        )
    variant = replace(variant, load_check=reading.check)
    if spoken and spoken.base and reading.check.loaded:
        variant = replace(variant, samples=samples.compare(spoken.tokenizer, spoken.base, reading.continuations))
    if settings.benchmark and reading.check.loaded:
        _let_go()
        variant = _timed(variant, paths, device, question.source.context_length)
    return Checked(load_check=variant.load_check, samples=variant.samples, speed=variant.speed, notes=variant.notes)


def _let_go() -> None:
    """Give back the memory of the variant before, the GPU's too: other processes want it."""
    gc.collect()
    torch.cuda.empty_cache()  # nothing where CUDA was never used


def _device_for(paths: Sequence[Path], device: str) -> str:
    """The asked device; the CPU where a GPU's memory does not hold a variant whole."""
    weights = sum(path.stat().st_size for path in paths)
    return device if _fits(weights, device) or not device.startswith("cuda") else "cpu"


@contextmanager
def _aside(path: Path) -> Iterator[None]:
    """Send what the runtimes print, also from native code, to a file: banners and hints of other programs."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [(number, os.dup(number)) for number in (1, 2)]
    try:
        with path.open("ab") as file:
            for number, _ in kept:
                os.dup2(file.fileno(), number)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in kept:
            os.dup2(copy, number)
            os.close(copy)


class _Spoken:
    """The prompts and what the base model makes of them; `base` is empty where it does not fit into memory."""

    def __init__(self, source: Source, settings: Settings) -> None:
        folder = Path(source.folder)
        self.tokenizer = load_tokenizer(folder)
        self.prompts = samples.encode_prompts(self.tokenizer)
        device = settle_device(settings.device)
        self.ends = end_tokens(folder, self.tokenizer)
        self.base: list[list[int]] = []
        if _fits(read_facts(folder).weight_bytes, device):
            self.base = samples.continue_base(folder, self.prompts, self.ends, torch.device(device))
        else:
            log.warning("The base model does not fit into memory whole, so no samples are compared.")


def _fits(weight_bytes: int, device: str) -> bool:
    if device.startswith("cuda"):
        return bool(weight_bytes * 1.3 < torch.cuda.mem_get_info(device)[0])
    return bool(weight_bytes * 2.6 < psutil.virtual_memory().available)  # float32


def _timed(variant: VariantRecord, paths: Sequence[Path], device: str, context: int | None) -> VariantRecord:
    """The variant with its speed; where its runtime fails at that, with a note that says so."""
    generated = min(_GENERATED_TOKENS, (context or sys.maxsize) // 4)
    prompt = min(_PROMPT_TOKENS, (context or sys.maxsize) - generated - 1)
    try:
        speed = FAMILIES[variant.family].measure_speed(
            paths, prompt_tokens=prompt, generated_tokens=generated, device=device
        )
    except ToolMissing as error:
        return replace(variant, notes=(*variant.notes, f"speed was not measured: {error}"))
    return replace(variant, speed=speed)

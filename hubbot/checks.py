"""Reads every finished variant in its own runtime: the load check, samples and, where asked for, speed.

Runs in the confined child, like `hubbot.stages`.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from pydantic import TypeAdapter
from transformers.utils import logging as transformers_logging

from hubbot import log, samples
from hubbot.domain import Family, Source, Speed, VariantRecord
from hubbot.formats.protocol import Reading
from hubbot.intake import read_facts
from hubbot.settings import Settings
from hubbot.stages import settle_device
from hubbot.sweep.windows import load_tokenizer

__all__ = ["check"]


def check(argument: dict[str, Any]) -> dict[str, Any]:
    """argument: source, settings, work, out, record (for its variants), references (variant -> path).

    Returns `variants` with load check, samples and speed filled in.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    source = TypeAdapter(Source).validate_python(argument["source"])
    settings = Settings.model_validate(argument["settings"])
    variants = TypeAdapter(tuple[VariantRecord, ...]).validate_python(argument["record"]["variants"])
    out, references = Path(argument["out"]), argument["references"]
    spoken = _Spoken(source, settings) if settings.evaluation.samples else None
    checked = []
    with log.progress("load check", len(variants), "variants") as advance:
        for variant in variants:
            paths = [out / file.path for file in variant.files]
            with _aside(Path(argument["work"]) / "load-check.log"):
                reading = _read(variant.family, paths, references.get(variant.name), spoken.prompts if spoken else [])
            variant = replace(variant, load_check=reading.check)
            if spoken and spoken.base and reading.check.loaded:
                found = samples.compare(spoken.tokenizer, spoken.base, reading.continuations)
                variant = replace(variant, samples=found)
            if settings.benchmark and reading.check.loaded:
                variant = replace(variant, speed=_speed(variant.family, paths))
            checked.append(asdict(variant))
            gc.collect()
            advance(1)
    return {"variants": checked}


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
        self.base: list[list[int]] = []
        if _fits(read_facts(folder).weight_bytes, device):
            self.base = samples.continue_base(folder, self.prompts, torch.device(device))
        else:
            log.warning("The base model does not fit into memory whole, so no samples are compared.")


def _fits(weight_bytes: int, device: str) -> bool:
    if device.startswith("cuda"):
        return bool(weight_bytes * 1.3 < torch.cuda.mem_get_info(device)[0])
    return bool(weight_bytes * 2.6 < psutil.virtual_memory().available)  # float32


def _read(family: Family, paths: Sequence[Path], reference: str | None, prompts: Sequence[Sequence[int]]) -> Reading:
    known = Path(reference) if reference else None
    match family:
        case Family.GGUF:
            from hubbot.formats.gguf import check as gguf

            return gguf.read(paths, known, prompts=prompts, new_tokens=samples.NEW_TOKENS)
        case Family.GPTQ | Family.BNB:
            from hubbot.formats import check as folders

            return folders.read(paths, known, prompts=prompts, new_tokens=samples.NEW_TOKENS)


def _speed(family: Family, paths: Sequence[Path]) -> Speed:
    match family:
        case Family.GGUF:
            from hubbot.formats.gguf.speed import measure_speed as measure_gguf

            return measure_gguf(paths)
        case Family.GPTQ | Family.BNB:
            from hubbot.formats.check import measure_speed as measure_folder

            return measure_folder(paths)

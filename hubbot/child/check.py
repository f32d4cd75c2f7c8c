"""Reads every finished variant in its own runtime: the load check, samples and, where asked for, speed."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import psutil
import torch
from transformers.utils import logging as transformers_logging

from hubbot import log
from hubbot.child.device import settle_device, settle_devices
from hubbot.child.images import Gallery
from hubbot.child.messages import CheckAnswer, Checked, CheckQuestion
from hubbot.child.side_by_side import side_by_side
from hubbot.child.source import conversation, facts_of
from hubbot.child.trials import Answers, gptq_last, run_lines, try_as_users
from hubbot.domain import Family, LoadCheck, Source, Trial, VariantRecord
from hubbot.errors import ToolMissing
from hubbot.formats import FAMILIES, samples
from hubbot.formats.gguf.naming import is_vision
from hubbot.formats.protocol import Reading
from hubbot.machine import cores
from hubbot.machine.room import room_on
from hubbot.model.chat import differences, settled
from hubbot.model.digests import tokenizer_digest
from hubbot.model.own_tokenizer import load_tokenizer, names_of, read_chat
from hubbot.settings import Settings

__all__ = ["check"]

_NOTE = 1_000  # characters
_SPACED = "its runtime reads a blank behind every special token, where the source's tokenizer reads none"
_CORES = 4  # of a file that is read beside others
_MORE = 1.3  # memory of a file that is loaded, by its bytes
_CONTEXT = 1 << 30  # bytes of a process's own on a card: kernels, buffers, what it has said so far
_PROMPT_TOKENS, _GENERATED_TOKENS = 512, 64  # of the benchmark; fewer where the model's context is shorter


def check(question: CheckQuestion) -> CheckAnswer:
    """Load check, samples and speed of the question's variants."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    original = _Original(question.source, question.settings, question.work)
    device = settle_device(question.settings.device)
    with log.progress("load check", len(question.variants), "variants") as advance:
        read = _read_all(question, original, device, advance)
    return CheckAnswer(checked=_with_speeds(read, question, device) if question.settings.benchmark else read)


def _with_speeds(read: Mapping[str, Checked], question: CheckQuestion, device: str) -> dict[str, Checked]:
    """With the speed of each that loads, one after another, for they would slow each other down."""
    checked = dict(read)
    with log.progress("benchmark", len(question.variants), "variants") as advance:
        for one in question.variants:
            checked[one.name] = _with_speed(one, read[one.name], question, device)
            advance(1)
    return checked


def _read_all(
    question: CheckQuestion, original: _Original, device: str, advance: Callable[[int], None]
) -> dict[str, Checked]:
    """Files whose runtime has a process of its own are read side by side, folders here, one after another.

    Both at the same time where there are cards, of which the first holds the folders.
    """
    apart = [one for one in question.variants if FAMILIES[one.family].ABOUT.apart]
    here = gptq_last([one for one in question.variants if one not in apart])
    run = partial(run_lines, question, here, chat=bool(original.chat.prompt), device=device)
    beside = device.startswith("cuda") and room_on(torch.device(device)) >= 2 * _largest(here, question)
    slots = _slots(
        apart,
        settle_devices(question.settings.device),
        taken=(1 + beside) * _largest(here, question),
        largest=_largest(apart, question),
    )
    checked = {}

    def read(variant: VariantRecord, place: str) -> Reading:
        return _read(variant, question, original, place)

    def keep(variant: VariantRecord, reading: Reading) -> None:
        checked[variant.name] = _judged(variant, reading, question, original)
        advance(1)

    def read_here() -> None:
        with _begun(run) if beside else nullcontext(run) as lines:
            for variant in here:
                _let_go()
                with log.aside(question.work / "load-check.log"):
                    reading = read(variant, device)
                keep(variant, reading)
            _let_go()
            tried = try_as_users(question, checked, lines(), device=device)
        checked.update({name: _with_trials(checked[name], trials) for name, trials in tried.items()})

    if not device.startswith("cuda"):
        read_here()
    with side_by_side(read, apart, slots) as readings:
        if device.startswith("cuda"):
            read_here()
        for variant, reading in readings:
            keep(variant, reading)
    return checked


@contextmanager
def _begun(run: Callable[[], Answers]) -> Iterator[Callable[[], Answers]]:
    """What it answers when it is asked for, while it runs from now on."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(run).result


def _largest(variants: Sequence[VariantRecord], question: CheckQuestion) -> int:
    """Bytes that the largest of them takes in its runtime, at most."""
    sizes = (_grown(one) * sum(path.stat().st_size for path in _paths(one, question)) for one in variants)
    return int(_MORE * max(sizes, default=0))


def _slots(apart: Sequence[VariantRecord], devices: Sequence[str], *, taken: int, largest: int) -> list[str]:
    """Where files are read at the same time, a device for each: four cores for every one, and memory for the largest.

    Cards take turns; of the first one as many bytes are taken. The CPU reads where no card has room for a file.
    """
    at_once = max(1, min(cores() // _CORES, int(psutil.virtual_memory().available / max(largest, 1)), len(apart)))
    if not devices[0].startswith("cuda"):
        return ["cpu"] * at_once
    rooms = [room_on(torch.device(card)) - (0 if number else taken) for number, card in enumerate(devices)]
    turns = [
        (turn, card) for card, room in zip(devices, rooms, strict=True) for turn in range(room // (largest + _CONTEXT))
    ]
    return [card for _, card in sorted(turns)][:at_once] or ["cpu"] * at_once


def _with_trials(checked: Checked, trials: Sequence[Trial]) -> Checked:
    """What came of loading it as users do, with a note where a runtime fails that is not the files' fault."""
    notes = (f"{one.runtime} {one.release} fails here: {one.error}"[:_NOTE] for one in trials if one.verdict == "fails")
    return replace(checked, trials=tuple(trials), notes=(*checked.notes, *notes))


def _read(variant: VariantRecord, question: CheckQuestion, original: _Original, device: str) -> Reading:
    paths = _paths(variant, question)
    return FAMILIES[variant.family].read(
        paths,
        question.references.get(variant.name),
        prompts=original.prompts,
        new_tokens=samples.NEW_TOKENS,
        chat=original.chat,
        device=_device_for(paths, device, grown=_grown(variant)),
    )


def _judged(variant: VariantRecord, reading: Reading, question: CheckQuestion, original: _Original) -> Checked:
    """What is said of a variant for what its runtime read; an image is shown to one that sees."""
    check, notes = original.compared(reading)
    notes = (*variant.notes, *reading.notes, *notes)
    checked = Checked(load_check=check, samples=variant.samples, speed=variant.speed, notes=notes)
    paths = _paths(variant, question)
    if check.loaded and any(is_vision(path.name) for path in paths):
        with log.aside(question.work / "load-check.log"):
            checked = replace(checked, images=original.gallery.show(paths))
    if check.loaded and original.said:
        found = samples.compare(original.tokenizer, original.said, reading.continuations)
        checked = replace(checked, samples=found)
    return checked


def _paths(variant: VariantRecord, question: CheckQuestion) -> list[Path]:
    return [question.out / file.path for file in variant.files]


def _let_go() -> None:
    """Give back the memory of the variant before, the GPU's too: other processes want it."""
    gc.collect()
    torch.cuda.empty_cache()  # nothing where CUDA was never used


def _device_for(paths: Sequence[Path], device: str, *, grown: float = 1.0) -> str:
    """The asked device; the CPU where a GPU's memory does not hold a variant whole. grown: its bytes there for one of its files."""
    if not device.startswith("cuda"):
        return device
    return device if _fits(int(grown * sum(path.stat().st_size for path in paths)), device) else "cpu"


def _grown(variant: VariantRecord) -> float:
    """transformers decodes compressed-tensors' codes on loading, to 16 bits."""
    return 16 / variant.bits_per_weight if variant.family is Family.PACKED and variant.bits_per_weight else 1.0


class _Original:
    """What variants are compared with: the source's tokens of a chat, and what it says to the prompts.

    `prompts` is empty where no samples are wanted, `said` also where the model does not fit into memory.
    """

    def __init__(self, source: Source, settings: Settings, work: Path) -> None:
        facts = facts_of(source, settings, work)  # pickled weights are turned into safetensors first
        self._facts, self._work, self._device = facts, work, settle_device(settings.device)
        folder = facts.folder
        self.tokenizer = load_tokenizer(folder)
        self.chat = read_chat(folder, self.tokenizer, conversation(facts.chat_templates, self.tokenizer))
        self.prompts = samples.encode_prompts(self.tokenizer) if settings.evaluation.samples else []
        self.said: list[list[int]] = []
        if not self.prompts:
            return
        if self._fits_whole:
            self.said = samples.continue_base(folder, self.prompts, self.chat.tokens.ends, torch.device(self._device))
        else:
            log.warning("The base model does not fit into memory whole, so no samples are compared.")

    @cached_property
    def _fits_whole(self) -> bool:
        return _fits(self._facts.decoded_bytes, self._device)

    @cached_property
    def gallery(self) -> Gallery:
        """What the original makes of a test image; asked for where a variant sees."""
        ends = self.chat.tokens.ends
        return Gallery(self._facts.folder, self._work, self.tokenizer, ends, fits=self._fits_whole, device=self._device)

    def compared(self, reading: Reading) -> tuple[LoadCheck, tuple[str, ...]]:
        """The check with what its runtime makes of a chat otherwise than the source; notes on what is let pass."""
        if reading.tokens is None:
            return reading.check, ()
        tokens, spaced = settled(self.chat, reading.tokens)
        found = differences(self.chat.tokens, tokens, names_of(self.tokenizer))
        check = replace(reading.check, ends=tokens.ends, differences=found)
        return replace(check, tokenizer=tokenizer_digest(tokens.text)), (_SPACED,) if spaced else ()


def _fits(weight_bytes: int, device: str) -> bool:
    if device.startswith("cuda"):
        return bool(weight_bytes * _MORE < room_on(torch.device(device)))
    return bool(weight_bytes * 2.6 < psutil.virtual_memory().available)  # float32


def _with_speed(variant: VariantRecord, checked: Checked, question: CheckQuestion, device: str) -> Checked:
    """With its speed; where its runtime fails at it, with a note that says so."""
    if not (checked.load_check and checked.load_check.loaded):
        return checked
    _let_go()
    context = question.source.context_length
    generated = min(_GENERATED_TOKENS, (context or sys.maxsize) // 4)
    prompt = min(_PROMPT_TOKENS, (context or sys.maxsize) - generated - 1)
    paths = _paths(variant, question)
    try:
        speed = FAMILIES[variant.family].measure_speed(
            paths,
            prompt_tokens=prompt,
            generated_tokens=generated,
            device=_device_for(paths, device, grown=_grown(variant)),
        )
    except ToolMissing as error:
        return replace(checked, notes=(*checked.notes, f"speed was not measured: {error}"))
    return replace(checked, speed=speed)

"""Reads every finished variant in its own runtime: the load check, samples and, where asked for, speed."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers.utils import logging as transformers_logging

from hubbot import log
from hubbot.child.device import settle_device, settle_devices
from hubbot.child.folder import ReadQuestion, read_folder
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
_ENOUGH = 3  # places, from which on it pays that every folder has a process
_CONTEXT = 1 << 30  # bytes of a process's own on a card: kernels, buffers, what it has said so far
_PROCESS = 4 << 30  # bytes of the same in the machine's memory, torch's and CUDA's libraries among them
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
    """On cards all is read side by side, a process each; else the folders here one after another, then the files side by side."""
    checked: dict[str, Checked] = {}

    def keep(variant: VariantRecord, reading: Reading) -> None:
        checked[variant.name] = _judged(variant, reading, question, original)
        advance(1)

    places = _places(question, original) if device.startswith("cuda") else []
    if len(places) >= _ENOUGH:
        lines = _read_on_cards(question, original, places, keep)
    else:
        lines = _read_here(question, original, device, places, keep)
    tried = try_as_users(question, checked, lines, device=device)
    return checked | {name: _with_trials(checked[name], trials) for name, trials in tried.items()}


def _read_on_cards(
    question: CheckQuestion, original: _Original, places: Sequence[str], keep: Callable[[VariantRecord, Reading], None]
) -> Answers:
    """What the cards' lines came to. The largest begin, for they take longest."""

    def work(task: tuple[VariantRecord, bool], place: str) -> Reading | Answers:
        variant, lines = task
        if lines:
            return run_lines(question, [variant], chat=bool(original.chat.prompt), device=place)
        return _read(variant, question, original, place, apart=True)

    found: dict[str, Mapping[str, Any]] = {}
    with side_by_side(work, _tasks(question.variants), places) as answers:
        original.speak()
        for (variant, _), answer in answers:
            if isinstance(answer, Reading):
                keep(variant, answer)
            else:
                found |= answer
    return found


def _tasks(variants: Sequence[VariantRecord]) -> list[tuple[VariantRecord, bool]]:
    """Each variant to be read and, True beside it, a folder's lines of the card to be run; folders first, the largest of all."""
    by_size = sorted(variants, key=lambda one: -sum(file.size for file in one.files))
    folders = [one for one in by_size if not _has_a_process(one)]
    files = [one for one in by_size if _has_a_process(one)]
    return [*((one, lines) for one in folders for lines in (True, False)), *((one, False) for one in files)]


def _read_here(
    question: CheckQuestion,
    original: _Original,
    device: str,
    places: Sequence[str],
    keep: Callable[[VariantRecord, Reading], None],
) -> Answers:
    """The same where no card is there, or none has room for many: a folder of its own process begins with seconds of imports.

    places: cards for the files; the CPU, where there are none.
    """
    here = gptq_last([one for one in question.variants if not _has_a_process(one)])
    apart = [one for one in question.variants if _has_a_process(one)]
    original.speak()
    for variant in here:
        _let_go()
        with log.aside(question.work / "load-check.log"):
            reading = _read(variant, question, original, device)
        keep(variant, reading)
    _let_go()
    lines = run_lines(question, here, chat=bool(original.chat.prompt), device=device)
    largest = max((_memory(one, question) for one in apart), default=1)
    at_once = max(1, min(cores() // _CORES, int(psutil.virtual_memory().available / largest), len(apart)))

    def read(variant: VariantRecord, place: str) -> Reading:
        return _read(variant, question, original, place)

    with side_by_side(read, apart, places or ["cpu"] * at_once) as readings:
        for variant, reading in readings:
            keep(variant, reading)
    return lines


def _has_a_process(variant: VariantRecord) -> bool:
    """Whether its runtime has one of its own, wherever it is read."""
    return FAMILIES[variant.family].ABOUT.apart


def _memory(variant: VariantRecord, question: CheckQuestion) -> int:
    """Bytes that a variant takes in its runtime, at most."""
    return int(_MORE * _grown(variant) * sum(path.stat().st_size for path in _paths(variant, question)))


def _places(question: CheckQuestion, original: _Original) -> list[str]:
    """Where variants are read at the same time, a card for each: a core for every one, and memory for the largest that fits.

    Cards take turns. The original speaks on the first one meanwhile; before, where that leaves no room.
    """
    cards = settle_devices(question.settings.device)
    rooms = [room_on(torch.device(card)) for card in cards]
    fit = [size for size in (_memory(one, question) + _CONTEXT for one in question.variants) if size <= max(rooms)]
    if not fit:
        return []
    if rooms[0] - original.speaking < max(fit):
        original.speak()
        _let_go()
    else:
        rooms[0] -= original.speaking
    turns = [(turn, card) for card, room in zip(cards, rooms, strict=True) for turn in range(room // max(fit))]
    at_once = min(cores(), psutil.virtual_memory().available // (max(fit) + _PROCESS), len(_tasks(question.variants)))
    return [card for _, card in sorted(turns)][: max(1, at_once)]


def _with_trials(checked: Checked, trials: Sequence[Trial]) -> Checked:
    """What came of loading it as users do, with a note where a runtime fails that is not the files' fault."""
    notes = (f"{one.runtime} {one.release} fails here: {one.error}"[:_NOTE] for one in trials if one.verdict == "fails")
    return replace(checked, trials=tuple(trials), notes=(*checked.notes, *notes))


def _read(
    variant: VariantRecord, question: CheckQuestion, original: _Original, device: str, *, apart: bool = False
) -> Reading:
    """apart: a folder too in a process of its own, as files always are."""
    paths = _paths(variant, question)
    device = _device_for(paths, device, grown=_grown(variant))
    asked = ReadQuestion(
        family=variant.family,
        paths=tuple(paths),
        reference=question.references.get(variant.name),
        prompts=tuple(map(tuple, original.prompts)),
        new_tokens=samples.NEW_TOKENS,
        chat=original.chat,
    )
    return read_folder(asked, device) if apart and not _has_a_process(variant) else asked.read(device)


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

    `prompts` is empty where no samples are wanted, `said` also where the model does not fit into memory, or before it spoke.
    """

    def __init__(self, source: Source, settings: Settings, work: Path) -> None:
        facts = facts_of(source, settings, work)  # pickled weights are turned into safetensors first
        self._facts, self._work, self._device = facts, work, settle_device(settings.device)
        folder = facts.folder
        self.tokenizer = load_tokenizer(folder)
        self.chat = read_chat(folder, self.tokenizer, conversation(facts.chat_templates, self.tokenizer))
        self.prompts = samples.encode_prompts(self.tokenizer) if settings.evaluation.samples else []
        self.said: list[list[int]] | None = None

    @property
    def speaking(self) -> int:
        """Bytes that the model takes while it speaks."""
        return int(_MORE * self._facts.decoded_bytes) if self.prompts and self._fits_whole and self.said is None else 0

    def speak(self) -> None:
        """Have the model say what follows the prompts, where they are wanted and it fits into memory; once."""
        if self.said is not None:
            return
        self.said = []
        if self.prompts and self._fits_whole:
            device = torch.device(self._device)
            self.said = samples.continue_base(self._facts.folder, self.prompts, self.chat.tokens.ends, device)
        elif self.prompts:
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

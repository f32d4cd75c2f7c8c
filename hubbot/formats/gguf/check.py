"""The load check of GGUF files: llama.cpp loads them, and computes what the sweep computed."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

from hubbot import llamacpp, log
from hubbot.confine.ask import NoAnswer, ask
from hubbot.domain import LoadCheck
from hubbot.errors import ToolMissing
from hubbot.formats.gguf.naming import text_file
from hubbot.formats.protocol import Reading
from hubbot.machine import cores
from hubbot.machine.nvidia import number_of
from hubbot.model.chat import Chat, Tokens
from hubbot.model.digests import PROBE, template_digest, tokenizer_digest
from hubbot.model.foreign import without_folders

__all__ = ["TOLERANCE", "ask_llama_cpp", "ask_sight", "read", "sees_cards"]

# Mean divergence between the sweep, which computes in float32 with the decoded weights, and llama.cpp's
# kernels, which round activations to 8 bits before each product. docs/formats.md has what that
# alone comes to, per type; a wrong tensor, row order or rotary setting costs orders of magnitude more.
TOLERANCE = 0.02

_GENERATED = 16  # tokens
_SOUND = "models/ggml-vocab-gpt-2.gguf"  # what comes with llama.cpp is no stranger's
_SEE_CARDS = "import sys; from hubbot.llamacpp import open_cards; sys.exit(not open_cards())"
_ASKING = Lock()
_PATIENCE = 3600.0  # seconds: a 70B model on a CPU is slow, a hang is for ever
_ON_A_CARD = 900.0  # seconds, most of them for reading the file


def read(
    paths: Sequence[Path],
    reference: Path | None,
    *,
    prompts: Sequence[Sequence[int]] = (),
    new_tokens: int = 0,
    chat: Chat | None = None,
    tolerance: float = TOLERANCE,
    threads: int | None = None,
    device: str = "cpu",
) -> Reading:
    """Load a variant's files in llama.cpp, in a child process, and compare logits with the sweep's.

    On the card that `device` names where llama.cpp was built for cards. What fails there is read again on the CPU, whose
    verdict counts: a card that is full, or that a build does not know, is no fault of a file. One that computes something
    else is, as a note says.

    paths: the variant's files; the importance matrix among them is passed over. reference: safetensors
    with `tokens` int64 [windows, length], `logits` float32 [windows, rows, vocab] and `first` int64 [1], the token that
    the first row follows. prompts: token ids to go on from, greedily, for up to `new_tokens` tokens each. chat: the
    source's, for the texts that are cut and the tokens that end one.
    """
    model = text_file(paths)
    request = {
        "model": str(model),
        "reference": str(reference) if reference else None,
        "probe": chat.probe if chat else PROBE,
        "prompt": chat.prompt if chat else "",
        "generate": _GENERATED,
        "prompts": [list(map(int, prompt)) for prompt in prompts],
        "new_tokens": new_tokens,
        "ends": list(chat.tokens.ends) if chat else [],
        "threads": threads or cores(),
        "card": None,
    }
    on_card = _on_card(request, device, tolerance)
    if on_card and on_card.check.passed:
        return on_card
    reading = _reading(ask_llama_cpp(request), tolerance)
    if not on_card or not reading.check.passed:
        return reading
    if on_card.check.loaded:
        return replace(reading, notes=(f"On a GPU {on_card.check.error}, while its CPU code agrees.",))
    log.warning(f"{model.name} was read on the CPU, since on the card {on_card.check.error}.")
    return reading


def _on_card(request: dict[str, Any], device: str, tolerance: float) -> Reading | None:
    """What llama.cpp makes of the file on that card, a crash too; None where it computes on none."""
    if not device.startswith("cuda") or not sees_cards():
        return None
    try:
        answer = _answered("runtime", {**request, "card": number_of(device)}, seconds=_ON_A_CARD)
    except NoAnswer as error:
        answer = {"error": f"llama.cpp {error}" if error.late else f"llama.cpp crashed: {last_words(error.said)}"}
    return _reading(answer, tolerance, on_card=True)


def _reading(answer: dict[str, Any], tolerance: float, *, on_card: bool = False) -> Reading:
    check = _judged(answer, tolerance, llamacpp.runtime_name(on_card=on_card))
    if "error" in answer:
        return Reading(check=check)
    tokens = Tokens(**{name: tuple(ids) for name, ids in answer["tokens"].items()})
    return Reading(check=check, continuations=tuple(map(tuple, answer["continuations"])), tokens=tokens)


def _judged(answer: dict[str, Any], tolerance: float, runtime: str) -> LoadCheck:
    if "error" in answer:
        return LoadCheck(runtime=runtime, loaded=False, tolerance=tolerance, error=answer["error"])
    kld, error = answer["kld"], answer["max_logit_error"]
    agrees = kld is None or (math.isfinite(kld) and kld <= tolerance)
    return LoadCheck(
        runtime=runtime,
        loaded=True,
        generated=answer["generated"],
        max_logit_error=error,
        kld=kld,
        tolerance=tolerance,
        passed=agrees,
        error=None if agrees else f"llama.cpp's logits diverge by {kld:.3g} nats from the decoded weights'",
        tokenizer=tokenizer_digest(answer["tokens"]["text"]),
        chat_template=template_digest(answer["chat_template"]) if answer["chat_template"] else None,
    )


def ask_llama_cpp(request: dict[str, Any]) -> dict[str, Any]:
    """The child's answer; a child that dies answers with its last words.

    Raises ToolMissing where it dies on a sound file too: then the build is at fault, and no file.
    """
    return _asked("runtime", request)


def ask_sight(request: dict[str, Any]) -> dict[str, Any]:
    """The same of the process that shows an image: see `hubbot.formats.gguf.sight`."""
    return _asked("sight", {**request, "threads": cores()})


def _asked(program: str, request: dict[str, Any]) -> dict[str, Any]:
    try:
        answer = _answered(program, request)
    except NoAnswer as error:
        _require_sound_build()
        return {"error": f"llama.cpp {error}" if error.late else f"llama.cpp crashed: {last_words(error.said)}"}
    return answer


def _answered(program: str, request: dict[str, Any], *, seconds: float = _PATIENCE) -> dict[str, Any]:
    command = [sys.executable, "-m", f"hubbot.formats.gguf.{program}"]
    answer: dict[str, Any] = json.loads(ask(command, json.dumps(request).encode(), seconds=seconds))
    return answer


def sees_cards() -> bool:
    """Whether llama.cpp computes on cards here; a warning, once, where it was built for them and does not."""
    with _ASKING:  # several files at once want to know
        return _asked_for_cards()


@cache
def _asked_for_cards() -> bool:
    try:
        ask([sys.executable, "-c", _SEE_CARDS], seconds=_PATIENCE)
    except NoAnswer as error:
        if llamacpp.cuda_backend():
            log.warning(f"GGUF files are read on the CPU, since llama.cpp sees no card: {last_words(error.said)}.")
        return False
    return True


@cache
def _require_sound_build() -> None:
    """Have llama.cpp read a file of its own tree."""
    here = llamacpp.find()
    sound = here.source / _SOUND
    if not sound.is_file():
        return
    try:
        _answered("runtime", {"model": str(sound), "rehearsal": True, "probe": "", "prompt": ""})
    except NoAnswer as error:
        if error.late:
            return
        msg = (
            f"llama.cpp crashed: {last_words(error.said)}. It does so on {_SOUND} of its own tree too, so the build in {here.bin} is at fault, not the "
            "file that was checked. Remove it and build it again with the system's own compiler (unset CC and CXX, then "
            "hubbot setup), or point HUBBOT_LLAMA_CPP at another build."
        )
        raise ToolMissing(msg) from error


def last_words(said: str) -> str:
    """What a crashed program said was wrong: the lines that name a failure, in which function, without stack or folders."""
    lines = [line.strip() for line in said.splitlines()]
    spoken = [line for line in lines if line and not _STACK.search(line)]
    telling = [line for line in spoken if _TELLING.search(line)]
    words = "; ".join(dict.fromkeys(without_folders(line) for line in telling or spoken[-5:]))[:_LONGEST]
    function = _ABORTED.search(said)
    return (words or "it said nothing") + (f" (in {function[1]})" if function else "")


_TELLING = re.compile(r"GGML_ASSERT|GGML_ABORT|what\(\)|Error:|error:|error loading|fatal|failed", re.IGNORECASE)
_STACK = re.compile(r"^(#\d+|\[New LWP|\[Inferior|warning:|Using host|\[Thread)|\(\+0x|0x[0-9a-f]{8,}|^File \"")
_ABORTED = re.compile(r"\bggml_abort\b.*\n#\d+ +(?:0x[0-9a-f]+ in )?([\w:~]+)")  # the frame that called it
_LONGEST = 600  # characters

"""Folders of safetensors loaded as users load them: by the card's own lines, and by vLLM where its environment is named.

Type and kernels are the runtime's own choice, and it has a clean process. Compared are the log-probabilities of the
tokens of the text that the load check compares logits of.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from hubbot.cards.python import python_lines
from hubbot.cards.sight import shows_pictures
from hubbot.child.messages import Checked, CheckQuestion
from hubbot.confine.ask import NoAnswer, ask_each
from hubbot.confine.environment import allowed
from hubbot.domain import Family, Trial, VariantRecord
from hubbot.formats import FAMILIES
from hubbot.formats.images import image_for
from hubbot.machine.nvidia import no_other
from hubbot.model.architectures import sees_images
from hubbot.runtimes.layouts import Layout, layouts_of, layouts_of_run
from hubbot.runtimes.table import Runtime, answer

__all__ = ["TOLERANCE", "Answers", "gptq_last", "run_lines", "try_as_users"]

# Mean distance of log-probabilities, nats. bfloat16 alone came to 0.004 and int8 of bitsandbytes to 0.012 on tiny models,
# vLLM's float16 to 0.0005; random weights in one tensor cost several nats.
TOLERANCE = 0.1

_IN_VLLM = Path(__file__).with_name("in_vllm.py")
# of vLLM: one process, no word to anybody, and 1 GiB for the cache on a CPU, where it takes half the memory
_VLLM = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
}
_PATIENCE = 3600.0  # seconds for one folder
_NEW_TOKENS = 8  # that the card's lines say here; loading is what may go wrong
# transformers' words: most image processors of a model that sees films too want the one, Gemma 3n's part that sees the other.
_ABSENT = ("requires the Torchvision library", "requires the timm library")
# GPTQModel's words where it would build a kernel from sources that it has to fetch, or with a compiler that fails: on a card it
# asks for that at once, and here is no network. Its kernel in torch needs nothing.
_UNBUILT = ("GPTQMODEL_OFFLINE", "kernels are not properly installed")
_KERNEL = "gptq_torch"
_ENDS_HERE = ("PYTHONPATH", "VIRTUAL_ENV")  # of hubbot's environment, not of another one


@dataclass(frozen=True, slots=True, kw_only=True)
class _Text:
    """Windows of tokens, and the log-probability of each that follows `first` by the sweep's decoded weights."""

    tokens: list[list[int]]
    first: int
    logprobs: torch.Tensor  # [windows, length - 1 - first]


Answers: TypeAlias = Mapping[str, Mapping[str, Any]]  # variant -> what came of its card's lines


def run_lines(question: CheckQuestion, variants: Sequence[VariantRecord], *, chat: bool, device: str) -> Answers:
    """The card's lines of these variants, run one after another in a process of their own, which sees no card but `device`.

    chat: whether the model has a chat template that renders. device: `cpu` or `cuda:N`.
    """
    if not question.settings.check.card:
        return {}
    folders = _folders(question, gptq_last(variants))
    families = {variant.name: variant.family for variant in variants}
    sees = sees_images(question.source.architecture)
    command = [sys.executable, "-P", "-m", "hubbot.child.card_lines"]
    environment = allowed() | no_other(device)
    with TemporaryDirectory() as place:
        pictures = folders and shows_pictures(question.source)
        picture = _picture(next(iter(folders.values())), Path(place)) if pictures else None

        def lines(name: str, kernel: str | None = None) -> str:
            return "\n".join(
                python_lines(
                    str(folders[name]), name, also=_also(question), chat=chat, sees=sees, picture=picture, new_tokens=_NEW_TOKENS, kernel=kernel
                )
            )  # fmt: skip

        requests = [{"code": lines(name), "tokens": _tokens(question.references.get(name))} for name in folders]
        for name, request in zip(folders, requests, strict=True):
            if families[name] is Family.GPTQ:
                request |= {"otherwise": lines(name, kernel=_KERNEL), "unbuilt": _UNBUILT}
        return dict(zip(folders, _answers(command, requests, environment), strict=True))


def try_as_users(
    question: CheckQuestion, checked: Mapping[str, Checked], lines: Answers, *, device: str
) -> dict[str, list[Trial]]:
    """Variant -> what came of it in each runtime; nothing for one that the load check could not load, or that no row is about.

    lines: of all folders, by `run_lines`. device: `cpu` or `cuda:N`.
    """
    settings = question.settings
    loaded = {name for name, one in checked.items() if one.load_check and one.load_check.loaded}
    folders = _folders(question, [variant for variant in question.variants if variant.name in loaded])
    texts = {name: _text(question.references.get(name)) for name in folders}
    trials: dict[str, list[Trial]] = {name: [] for name in checked}
    for name, found in lines.items():
        if name in folders and not any(word in found.get("error", "") for word in _ABSENT):
            trials[name].append(_of_the_card(checked[name], texts[name], found))
    if settings.check.vllm and folders:
        for name, trial in _by_vllm(folders, texts, _also(question), settings.check.vllm, device=device).items():
            trials[name].append(trial)
    return trials


def gptq_last(variants: Sequence[VariantRecord]) -> list[VariantRecord]:
    """GPTQModel changes transformers' classes of experts in the process that it reads a mixture in: for whatever comes after."""
    return sorted(variants, key=lambda one: one.family is Family.GPTQ)


def _also(question: CheckQuestion) -> Sequence[Layout]:
    return layouts_of_run(
        quantized_head=question.settings.gptq.lm_head,
        experts=question.source.experts,
        architecture=question.source.architecture,
    )


def _folders(question: CheckQuestion, variants: Sequence[VariantRecord]) -> dict[str, Path]:
    """Of those variants that are folders, and that the table of runtimes knows."""
    known = [one for one in variants if FAMILIES[one.family].ABOUT.folder and layouts_of(one.name)]
    return {variant.name: _folder(question.out, variant) for variant in known}


def _folder(out: Path, variant: VariantRecord) -> Path:
    parents = [(out / file.path).parent for file in variant.files if file.path.endswith("config.json")]
    return min(parents, key=lambda folder: len(folder.parts))


def _tokens(reference: Path | None) -> list[list[int]]:
    """Without the last token of each window, for vLLM has to say one itself and the context may end there."""
    if reference is None:
        return []
    with safe_open(reference, "pt") as known:
        tokens: list[list[int]] = known.get_tensor("tokens")[:, :-1].tolist()
    return tokens


def _text(reference: Path | None) -> _Text | None:
    if reference is None:
        return None
    known = load_file(reference)
    first = int(known["first"][0]) if "first" in known else 0
    followers = known["tokens"][:, first + 1 : -1, None]
    logprobs = known["logits"][:, : followers.shape[1]].log_softmax(-1).gather(-1, followers)[..., 0]
    return _Text(tokens=_tokens(reference), first=first, logprobs=logprobs)


# --- the card's lines -----------------------------------------------------------------------------------


def _of_the_card(checked: Checked, text: _Text | None, found: Mapping[str, Any]) -> Trial:
    runtime, _, release = (checked.load_check.runtime if checked.load_check else "transformers").partition(" ")
    kernel = f", {_KERNEL}" if found.get("otherwise") else ""
    # what the load check has read is sound: where the lines fail, it is the runtime's own choice that fails
    return _judged(runtime, f"{release}{kernel}", text, found, at_fault="fails")


def _picture(folder: Path, place: Path) -> str:
    """The test image as a file."""
    from PIL import Image

    path = place / "picture.png"
    Image.fromarray(image_for(folder)).save(path)
    return str(path)


# --- vLLM -----------------------------------------------------------------------------------------------


def _by_vllm(
    folders: Mapping[str, Path], texts: Mapping[str, _Text | None], also: Sequence[Layout], place: Path, *, device: str
) -> dict[str, Trial]:
    """Of the variants that vLLM reads on such a device, by the table of runtimes."""
    on_gpu = device.startswith("cuda")
    rows = {name: answer(name, Runtime.VLLM, also) for name in folders}
    names = [name for name, row in rows.items() if row.reads and (on_gpu or row.only != "GPU")]
    command = [str(place.expanduser().absolute() / "bin" / "python"), "-P", str(_IN_VLLM)]
    environment = {key: value for key, value in allowed().items() if key not in _ENDS_HERE} | _VLLM
    requests = [_request(folders[name], texts[name], on_gpu=on_gpu) for name in names]
    trials = {}
    for name, request, found in zip(names, requests, _answers(command, requests, environment), strict=True):
        at_fault = "refuses"
        if "error" in found:
            [again] = _answers(command, [{**request, "weights": "dummy"}], environment)
            if "error" in again:
                at_fault, found = "fails", {**found, "error": f"{found['error']}; with random weights too"}
        trials[name] = _judged(Runtime.VLLM, found.get("version", ""), texts[name], found, at_fault=at_fault)
    return trials


def _request(folder: Path, text: _Text | None, *, on_gpu: bool) -> dict[str, Any]:
    tokens = text.tokens if text else [[0]]
    return {
        "folder": str(folder),
        "dtype": "auto" if on_gpu else "float16",  # kernels for CPUs know no other type of 4-bit layers
        "weights": "auto",
        "tokens": tokens,
        "prompts": [],
        "new_tokens": 1,
        "length": len(tokens[0]) + 1,
    }


# --- both -----------------------------------------------------------------------------------------------


def _answers(
    command: Sequence[str], requests: Sequence[Mapping[str, Any]], environment: Mapping[str, str]
) -> list[dict[str, Any]]:
    lines = [json.dumps(request).encode() for request in requests]
    answered = ask_each(command, lines, seconds=_PATIENCE, environment=environment)
    return [{"error": f"its process {one}"} if isinstance(one, NoAnswer) else json.loads(one) for one in answered]


def _judged(runtime: str, release: str, text: _Text | None, found: Mapping[str, Any], *, at_fault: Any) -> Trial:
    """at_fault: the verdict where there is an error."""
    if "error" in found:
        return Trial(runtime=runtime, release=release, verdict=at_fault, error=str(found["error"]))
    if text is None:
        return Trial(runtime=runtime, release=release, verdict="agrees")
    logprobs = torch.tensor([window[text.first :] for window in found["logprobs"]])
    difference = float((logprobs - text.logprobs).abs().mean())
    agrees = math.isfinite(difference) and difference <= TOLERANCE
    return Trial(
        runtime=runtime,
        release=release,
        verdict="agrees" if agrees else "differs",
        difference=difference,
        tolerance=TOLERANCE,
    )

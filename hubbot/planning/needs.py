"""How much memory and disk a sweep takes: a model of `hubbot.sweep`, whose terms docs/planning.md explains.

Everything is in bytes. Sizes of the streams dominate for small models, one block's weights for large
ones. The terms are upper bounds; a run's own peak stands in hubbot.json.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated

from pydantic import Field

from hubbot.domain import Variant
from hubbot.formats import FAMILIES, calibration_needs
from hubbot.formats.gguf.allocation import TOKENS
from hubbot.formats.gptq.memory import COPIES
from hubbot.formats.protocol import Cost, Needs
from hubbot.model import ModelFacts, part_layout
from hubbot.model.parts import Part, PartKind
from hubbot.record.fingerprint import shaping
from hubbot.settings import Settings
from hubbot.sweep.batches import (
    BAND,
    DRAWS,
    GRADIENT_TOKENS,
    SLOT,
    batch_tokens,
    gradient_batch_tokens,
    logit_bytes,
)

__all__ = [
    "Need",
    "Passing",
    "Shapes",
    "as_calibrating",
    "checkpoint_bytes",
    "evaluation_tokens",
    "pass_of_gradients",
    "probing_checkpoint_bytes",
    "probing_need",
    "shapes_of",
    "sweep_need",
    "with_text",
]

_PROCESSES = 1_300_000_000  # Python, torch, transformers and llama.cpp's libraries, parent and child together
_CUDA = 900_000_000  # a CUDA context with cuBLAS' workspace
_LOGIT_COPIES = 5  # base and variant, as logits and as log-probabilities, and one temporary
_TEXT_TOKENS = 350_000  # wikitext-2's test split has 280,000 to 340,000 with the usual tokenizers
_TOKEN_BYTES = 2  # of a text, at least: English has four or more, code three, Chinese characters of three make one
_FLOAT = 4
_ROUNDED = 5 * 2**26 + 2**30  # rows that a probe is rounded by, in floats and doubles, and what ggml's encoders hold
_FACTORING = (
    5  # matrices of float32 as large as a Hessian while one is factored: it, and its factor and input in float64
)
_AT_ONCE = 2**25  # weights that are solved together where there is no room for more
# Numbers a token, of the widest matrix and of the stream, that a pass back through a block holds.
_SAVED_WIDEST, _SAVED = 10, 24
_PINNED = 2**30  # see hubbot.formats.gguf.cuda.queue
_NUMBER = re.compile(r"\.\d+(?=\.)")


Count = Annotated[int, Field(ge=0, le=2**62)]  # which whoever reads a model's files may claim


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Peak of one sweep, or of a run."""

    disk: int
    ram: int
    vram: int

    def __or__(self, other: Need) -> Need:
        """The larger of two, resource by resource."""
        return Need(disk=max(self.disk, other.disk), ram=max(self.ram, other.ram), vram=max(self.vram, other.vram))


@dataclass(frozen=True, slots=True, kw_only=True)
class Passing:
    """Tokens of the calibration that pass forth, and how often each passes back, with other labels."""

    forth: int
    draws: int

    @property
    def back(self) -> int:
        return self.forth * self.draws


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """The few sizes of a model that its needs depend on: all that a plan is made from, beside its files' sizes."""

    block_weights: Annotated[Count, Field(ge=1)]  # number of weights of the largest block
    block_bytes: Count  # the same as they are read
    computing_weights: Count  # of the block that computes with the most, those that other parts store among them
    embedding_weights: Count  # of the larger of embedding and head
    widest: Count  # columns of the widest matrix of a block
    hessians: (
        Count  # sum of squares of the columns of a block's matrices but its experts', one of each width counted twice
    )
    expert_hessians: Count  # the same of every expert, once
    bands: Count  # products of the gradients of outputs that a block comes to
    expert_bytes: Count  # of a block's experts as read: they are kept beside the tensor that they are stacked into
    hidden: Count
    stream: Count  # numbers a token that pass from block to block
    companions: tuple[Count, ...]  # bytes a token of what blocks are given beside them, table by table
    vocabulary: Count
    layers: Count
    context_length: Count | None  # tokens
    chat: bool  # a chat template is there
    weight_bytes: Count  # of the whole model, as they lie in its files


def shapes_of(facts: ModelFacts) -> Shapes:
    parts = part_layout(facts)
    blocks = [part for part in parts if part.kind is PartKind.BLOCK]
    largest = max(blocks, key=lambda part: _weights(facts, part))
    widths = [shape[-1] for name in largest.tensors if len(shape := facts.tensors[name].shape) == 2]
    experts = _experts(facts, largest)
    of_experts = set(chain(*experts.values()))
    shared = {shape[-1] for name in largest.tensors if name not in of_experts and (shape := facts.tensors[name].shape)}
    return Shapes(
        block_weights=_weights(facts, largest),
        computing_weights=max(_weights(facts, part) + _borrowed(facts, part) for part in blocks),
        block_bytes=sum(facts.tensors[name].read_size for name in largest.tensors),
        embedding_weights=max(_weights(facts, part) for part in parts if part not in blocks),
        widest=max(widths, default=0),
        hessians=2 * sum(width * width for width in shared.intersection(widths)),
        expert_hessians=_hessians_of_experts(facts, experts),
        bands=_bands(facts, largest, of_experts),
        expert_bytes=sum(facts.tensors[name].read_size for name in of_experts),
        hidden=facts.hidden_size,
        stream=facts.stream_width or facts.hidden_size,
        companions=facts.companions,
        vocabulary=facts.vocab_size,
        layers=facts.layers,
        context_length=facts.context_length,
        chat=bool(facts.chat_template),
        weight_bytes=facts.weight_bytes,
    )


def sweep_need(
    variants: Sequence[Variant],
    shapes: Shapes,
    costs: Mapping[str, Cost],
    settings: Settings,
    *,
    device: str,
    source_bytes: int,
    cards: int = 1,
) -> Need:
    """Peak while one sweep makes and measures these variants. GPU memory is one card's.

    source_bytes: what fetching the model will write; 0 where it is a local folder.
    """
    going_back = _passing(variants, shapes, settings)
    streams = max(_streams(variants, shapes, settings), _FLOAT * shapes.stream * going_back.back)
    host, computing = _working_memory(variants, shapes, costs, settings, device)
    gpu = device.startswith("cuda")
    files = sum(costs[variant.name].file_bytes for variant in variants)
    # The load check takes a folder of safetensors into memory, where llama.cpp maps a GGUF file and lets go of it as others need room.
    folder = max((costs[v.name].file_bytes for v in variants if FAMILIES[v.family].ABOUT.folder), default=0)
    return Need(
        disk=source_bytes
        + files
        + _kept_of_gradients(going_back.forth, min(cards, len(variants)), shapes)
        + (min(cards, len(variants)) + len(variants)) * _companions(shapes, settings),
        ram=_PROCESSES
        + _of_further_cards(min(cards, len(variants)), shapes, settings, host)
        + max(streams + host + (0 if gpu else computing), folder),  # or the load check
        vram=_CUDA + computing if gpu else 0,
    )


def probing_need(probes: int, shapes: Shapes, settings: Settings, *, device: str, source_bytes: int) -> Need:
    """Peak of a walk that measures so many probes, a stream each: nothing of what it makes is kept."""
    streams = _probed(probes, shapes, settings)
    host, computing = _working_memory((), shapes, {}, settings, device)
    gpu = device.startswith("cuda")
    return Need(
        disk=source_bytes + (1 + probes) * _companions(shapes, settings),
        ram=_PROCESSES + streams + host + _ROUNDED + (0 if gpu else computing),
        vram=_CUDA + computing if gpu else 0,
    )


def checkpoint_bytes(variants: Sequence[Variant], shapes: Shapes, settings: Settings) -> int:
    """What a sweep's checkpoints take on the disk, where there is room: one is written beside the last one."""
    return 2 * _streams(variants, shapes, settings)


def probing_checkpoint_bytes(probes: int, shapes: Shapes, settings: Settings) -> int:
    """The same of a walk that measures so many probes."""
    return 2 * _probed(probes, shapes, settings)


def _probed(probes: int, shapes: Shapes, settings: Settings) -> int:
    """Hidden states of the calibration, and of the tokens that the original and every probe are measured on."""
    window = _calibration_window(shapes, settings)
    measured = max(1, TOKENS // window) * window
    return _FLOAT * shapes.stream * (settings.calibration.samples * window + (1 + probes) * measured)


def _of_further_cards(cards: int, shapes: Shapes, settings: Settings, host: int) -> int:
    """What each process after the first holds besides its share, and the memory that all exchange tensors through."""
    if cards < 2:
        return 0
    base = _FLOAT * shapes.stream * _evaluated(shapes, settings)
    return (cards - 1) * (_PROCESSES + host + base) + cards * SLOT


def _streams(variants: Sequence[Variant], shapes: Shapes, settings: Settings) -> int:
    """Hidden states of all windows, one float each: calibration once, evaluation for the base and every variant."""
    window = _calibration_window(shapes, settings)
    calibration = 0 if _statistics(variants, settings) is Needs.NOTHING else settings.calibration.samples * window
    return _FLOAT * shapes.stream * (calibration + (1 + len(variants)) * _evaluated(shapes, settings))


def _calibration_window(shapes: Shapes, settings: Settings) -> int:
    return min(settings.calibration.length, shapes.context_length or settings.calibration.length)


def pass_of_gradients(shapes: Shapes, settings: Settings) -> Passing:
    """What passes before the sweep where a variant asks for gradients."""
    window = _calibration_window(shapes, settings)
    most, there = max(1, GRADIENT_TOKENS // window), settings.calibration.samples
    draws = 1 if there >= most else min(DRAWS, most // there)
    return Passing(forth=window * min(most, there), draws=draws)


def as_calibrating(passing: Passing, shapes: Shapes) -> int:
    """On how many tokens a block would be calibrated with as many products of numbers: for a sum of X'X half of its own.

    Blocks pass forth twice, and back in every draw; what only some tokens reach of them counts as if all did.
    """
    sums = shapes.bands // 2
    once = shapes.block_weights + (shapes.hessians // 2) // 2
    return passing.forth * (2 * shapes.block_weights + passing.draws * (shapes.block_weights + sums)) // once


def _passing(variants: Sequence[Variant], shapes: Shapes, settings: Settings) -> Passing:
    asked = _statistics(variants, settings) is Needs.GRADIENTS
    return pass_of_gradients(shapes, settings) if asked else Passing(forth=0, draws=1)


def _kept_of_gradients(tokens: int, cards: int, shapes: Shapes) -> int:
    """On the disk, 16 bits each: the blocks' inputs, which make room for the products of the gradients, block by block."""
    inputs = (shapes.layers + 1) * tokens * shapes.stream
    products = cards * shapes.bands
    return 2 * (max(inputs, shapes.layers * products) + products) if tokens else 0


def _bands(facts: ModelFacts, part: Part, experts: Container[str]) -> int:
    """Layers with equally many inputs count as if they shared them."""
    outputs: dict[int, int] = {}
    for name in part.tensors:
        if name not in experts and len(shape := facts.tensors[name].shape) == 2:
            outputs[shape[1]] = outputs.get(shape[1], 0) + shape[0]
    return sum(count * min(count, BAND) for count in outputs.values())


def _companions(shapes: Shapes, settings: Settings) -> int:
    """Of what goes with the tokens, as one embedding makes it: on the disk, a row for each token that the texts hold."""
    texts = settings.calibration.samples * settings.calibration.length + _evaluated(shapes, settings)
    return sum(shapes.companions) * min(shapes.vocabulary, texts)


def _evaluated(shapes: Shapes, settings: Settings) -> int:
    """Tokens of a variant's evaluation; 0 where there is none."""
    if not settings.evaluation.wanted:
        return 0
    return evaluation_tokens(settings, shapes.context_length, chat=shapes.chat)


def evaluation_tokens(settings: Settings, longest: int | None = None, *, chat: bool) -> int:
    """Of a variant's evaluation, about. longest: tokens that the model takes at once. chat: it has a chat template."""
    wanted = settings.evaluation
    context = _window(settings, longest)
    overlap = max(1, context // (wanted.stride or context))  # windows that hold a token
    tokens = overlap * _TEXT_TOKENS if wanted.windows is None else wanted.windows * context
    return tokens + (settings.spoken.windows * context if chat and settings.spoken else 0)


def with_text(settings: Settings, text_bytes: int | None, longest: int | None) -> Settings:
    """The settings with no more windows than an evaluation text of so many bytes may come to; None: nobody knows its size."""
    if text_bytes is None:
        return settings
    wanted = settings.evaluation
    held = -(-text_bytes // (_TOKEN_BYTES * (wanted.stride or _window(settings, longest))))
    windows = min(held, wanted.windows or held)
    return settings.model_copy(update={"evaluation": wanted.model_copy(update={"windows": max(1, windows)})})


def _window(settings: Settings, longest: int | None) -> int:
    return min(settings.evaluation.context, longest or settings.evaluation.context)


def _statistics(variants: Sequence[Variant], settings: Settings) -> Needs:
    return calibration_needs(variants, shaping(settings))


def _working_memory(
    variants: Sequence[Variant], shapes: Shapes, costs: Mapping[str, Cost], settings: Settings, device: str
) -> tuple[int, int]:
    """What stays in RAM with any device, and what lies where the computing is done."""
    statistics = _statistics(variants, settings)
    gpu, solved, weighed = device.startswith("cuda"), statistics.hessian, statistics is Needs.GRADIENTS
    encodings = _encodings(variants, shapes, costs)
    # A block as stored, and one matrix at a time as floats for the encoders.
    stored = shapes.block_bytes + 2 * _FLOAT * shapes.widest * shapes.hidden
    original = _FLOAT * shapes.computing_weights + shapes.expert_bytes
    activations = _FLOAT * batch_tokens(device) * (4 * shapes.widest + 8 * shapes.stream)
    activations += shapes.vocabulary * max(shapes.companions, default=0)  # a block's own table
    sums = 2 if gpu else 1  # a card sums in float64, for which what is counted twice has room
    calibrating = original + activations
    if solved:
        calibrating += _FLOAT * (shapes.hessians + sums * shapes.expert_hessians)
    solving = original + (_solving(shapes, gpu=gpu) if solved else 0)
    if weighed:
        calibrating = max(calibrating, original + _passing_back(shapes, settings, device))
        solving += _FLOAT * (
            2 * shapes.bands + _FACTORING * BAND**2
        )  # products, their factors, and one while it is made
    # Then what a variant decodes to comes beside the original, or, of experts, beside what they are stacked from.
    advancing = original + _FLOAT * shapes.block_weights + activations
    lengths = [settings.evaluation.context] * settings.evaluation.wanted + [settings.calibration.length] * weighed
    window = min(
        logit_bytes(device), _FLOAT * max(lengths, default=0) * shapes.vocabulary
    )  # a batch ends with its window
    logits = _LOGIT_COPIES * window
    embedding = 2 * _FLOAT * shapes.embedding_weights + 2 * batch_tokens(device) * sum(shapes.companions)
    heading = embedding + max(activations, logits)
    if not gpu:
        return stored + encodings, max(calibrating, solving, advancing, heading)
    # On a GPU the encoders work too. What they make of folders lies there until it is decoded; GGUF's bytes stay only
    # where there is room, and pass the host on their way to files. A Hessian that the card cannot factor is factored there.
    folders = _encodings([variant for variant in variants if FAMILIES[variant.family].ABOUT.folder], shapes, costs)
    factoring = _FACTORING * _FLOAT * shapes.widest**2 if solved else 0
    return stored + encodings + min(_PINNED, encodings) + factoring, stored + max(
        calibrating, folders + solving, folders + advancing, folders + heading
    )


def _encodings(variants: Sequence[Variant], shapes: Shapes, costs: Mapping[str, Cost]) -> int:
    """The largest block in all variants."""
    return int(shapes.block_weights * sum(costs[variant.name].bits_per_weight for variant in variants) / 8)


def _solving(shapes: Shapes, *, gpu: bool) -> int:
    """Hessians of a block, the widest made ready, and its weights in several copies: on a card fewer where there is no room."""
    ready, matrix = 2 * shapes.widest**2, shapes.widest * shapes.hidden
    if gpu:
        hessians = shapes.hessians - shapes.widest**2  # of each width but the widest there are two or more
        return _FLOAT * (hessians + shapes.expert_hessians + ready + matrix + COPIES * _AT_ONCE)
    most = max(_FACTORING * shapes.widest**2, ready + COPIES * matrix)
    return _FLOAT * (shapes.hessians + shapes.expert_hessians + most)


def _passing_back(shapes: Shapes, settings: Settings, device: str) -> int:
    """What a block keeps of a batch to be walked back through, and the sums: a card adds up in float64."""
    tokens = max(gradient_batch_tokens(device), settings.calibration.length)
    sums = 2 if device.startswith("cuda") else 1
    return _FLOAT * (tokens * (_SAVED_WIDEST * shapes.widest + _SAVED * shapes.stream) + (sums + 1) * shapes.bands)


def _experts(facts: ModelFacts, part: Part) -> dict[str, list[str]]:
    """Expert (`model.layers.3.mlp.experts.7`) -> its matrices, of a block that stores each expert's by themselves."""
    found: dict[str, list[str]] = {}
    for name in part.tensors:
        numbers = [match.end() for match in _NUMBER.finditer(name)]
        if len(numbers) > 1 and len(facts.tensors[name].shape) == 2:
            found.setdefault(name[: numbers[1]], []).append(name)
    return found


def _hessians_of_experts(facts: ModelFacts, experts: Mapping[str, Sequence[str]]) -> int:
    """One for the inputs that an expert is given, and one for each other width inside it."""
    widths = [{facts.tensors[name].shape[-1] for name in names} for names in experts.values()]
    return sum(width * width for found in widths for width in found)


def _borrowed(facts: ModelFacts, part: Part) -> int:
    return sum(facts.tensors[name].count for name in facts.borrowed.get(part.index, ()))


def _weights(facts: ModelFacts, part: Part) -> int:
    return sum(facts.tensors[name].count for name in part.tensors)

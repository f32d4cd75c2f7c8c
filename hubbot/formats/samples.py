"""What the models say: greedy continuations of a dozen prompts, base against variant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from hubbot.domain import Sample
from hubbot.model.foreign import foreign
from hubbot.model.own_tokenizer import text_of, token_ids
from hubbot.model.whole import load_whole

__all__ = ["NEW_TOKENS", "PROMPTS", "compare", "continue_base", "encode_prompts", "greedy", "plainly"]

NEW_TOKENS = 48

# Reasoning, facts, instructions, code, languages; plain text, so that base models have a chance too.
PROMPTS = (
    "Question: A baker sells 3 trays of 12 rolls and has 7 rolls left over. How many rolls were there?\nAnswer:",
    "Question: Anna is older than Ben, and Ben is older than Carl. Who is the youngest?\nAnswer:",
    "If it takes 5 machines 5 minutes to make 5 parts, then 100 machines need",
    "The chemical symbol for gold is",
    "The longest river in South America is",
    "The French Revolution began in the year",
    "Write one polite sentence that declines an invitation to a wedding:\n",
    "Summarize in five words: The match was postponed because heavy rain had flooded the pitch.\nSummary:",
    "List three things to pack for a day in the mountains:\n1.",
    "def is_prime(n):\n    ",
    "Translate into German: Where is the nearest train station?\nGerman:",
    "Once upon a time, in a village by the sea, there lived",
)


def encode_prompts(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of every prompt, with the special tokens that the tokenizer puts before text."""
    return [token_ids(tokenizer, prompt, whole=True) for prompt in PROMPTS]


def continue_base(
    folder: Path, prompts: Sequence[Sequence[int]], ends: Sequence[int], device: torch.device
) -> list[list[int]]:
    """Greedy continuations by the original model, loaded whole: in float32 on a CPU, else in its stored dtype.

    Raises SourceRefused with what transformers says.
    """
    dtype = torch.float32 if device.type == "cpu" else "auto"
    then = "Its samples cannot be compared so: mend what is named in a copy of the model, or set evaluation.samples to false."
    with foreign("transformers", f"load and run {folder.name} whole", then=then):
        model = load_whole(folder, dtype).to(device).eval()
        return greedy(model, prompts, NEW_TOKENS, ends)


@torch.inference_mode()
def greedy(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], count: int, ends: Sequence[int]
) -> list[list[int]]:
    """Up to `count` most likely tokens after each prompt, all prompts in one batch, padded on the left.

    ends: the tokens that end a text; a continuation stops behind the first.
    """
    if not prompts or count == 0:
        return [[] for _ in prompts]
    width = max(len(prompt) for prompt in prompts)
    ids = torch.zeros((len(prompts), width), dtype=torch.long, device=model.device)
    seen = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(list(prompt))
        seen[row, width - len(prompt) :] = 1
    plainly(model, count, ends)
    out = model.generate(ids, attention_mask=seen)
    return [_cut([int(token) for token in row], ends) for row in out[:, width:]]


def plainly(model: PreTrainedModel, count: int, ends: Sequence[int]) -> None:
    """Have a model generate the most likely tokens and nothing else, whatever its own generation configuration says.

    The configuration is replaced: what a call of `generate` leaves open is taken from the model's own, penalties too.
    ends: the tokens that end a text; without any, exactly `count` tokens are made.
    """
    model.generation_config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=count,
        eos_token_id=list(ends) or None,
        pad_token_id=ends[0] if ends else 0,
    )


def _cut(tokens: list[int], end: Sequence[int]) -> list[int]:
    stop = next((index for index, token in enumerate(tokens) if token in end), None)
    return tokens if stop is None else tokens[: stop + 1]


def compare(
    tokenizer: PreTrainedTokenizerBase, base: Sequence[Sequence[int]], variant: Sequence[Sequence[int]]
) -> tuple[Sample, ...]:
    """Prompt by prompt: both texts and the first token where they part."""
    return tuple(
        Sample(
            prompt=prompt,
            base=text_of(tokenizer, left),
            variant=text_of(tokenizer, right),
            differs_at=_first_difference(left, right),
        )
        for prompt, left, right in zip(PROMPTS, base, variant, strict=True)
    )


def _first_difference(left: Sequence[int], right: Sequence[int]) -> int | None:
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return None if len(left) == len(right) else min(len(left), len(right))

"""What the models say: greedy continuations of a dozen prompts, base against variant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from hubbot.domain import Sample

__all__ = ["NEW_TOKENS", "PROMPTS", "compare", "continue_base", "encode_prompts", "greedy"]

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
    return [[int(token) for token in tokenizer(prompt)["input_ids"]] for prompt in PROMPTS]


def continue_base(folder: Path, prompts: Sequence[Sequence[int]], device: torch.device) -> list[list[int]]:
    """Greedy continuations by the original model, loaded whole: in float32 on a CPU, else in its stored dtype."""
    dtype = torch.float32 if device.type == "cpu" else "auto"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True).to(device).eval()
    return greedy(model, prompts, NEW_TOKENS)


@torch.inference_mode()
def greedy(model: PreTrainedModel, prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """Up to `count` most likely tokens after each prompt, all prompts in one batch, padded on the left.

    A continuation ends with its end-of-sequence token.
    """
    if not prompts or count == 0:
        return [[] for _ in prompts]
    width = max(len(prompt) for prompt in prompts)
    ids = torch.zeros((len(prompts), width), dtype=torch.long, device=model.device)
    seen = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(list(prompt))
        seen[row, width - len(prompt) :] = 1
    end = _end(model)
    out = model.generate(
        ids,
        attention_mask=seen,
        max_new_tokens=count,
        do_sample=False,
        num_beams=1,
        pad_token_id=end[0] if end else 0,
    )
    return [_cut([int(token) for token in row], end) for row in out[:, width:]]


def _end(model: PreTrainedModel) -> list[int]:
    """The token ids that end a text."""
    named = model.generation_config.eos_token_id if model.generation_config else None
    return [named] if isinstance(named, int) else list(named or ())


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
            base=tokenizer.decode(left, skip_special_tokens=True),
            variant=tokenizer.decode(right, skip_special_tokens=True),
            differs_at=_first_difference(left, right),
        )
        for prompt, left, right in zip(PROMPTS, base, variant, strict=True)
    )


def _first_difference(left: Sequence[int], right: Sequence[int]) -> int | None:
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return None if len(left) == len(right) else min(len(left), len(right))

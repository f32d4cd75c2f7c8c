"""Seconds a block that llm-compressor takes for GPTQ, 4 bits in groups of 128, on the same shape as `bench/sweep.py`.

    python bench/peer.py --hidden 4096 --intermediate 14336 --layers 4 --samples 128 --length 2048

Run it in the same session on the same machine, in an environment of its own: llm-compressor pins other releases of
transformers than hubbot does. Everything is its default, as its own examples have it; calibration is on random tokens of a
vocabulary of 32,000. A block is timed from the end of the one before to its own end, its passes over the calibration included.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from typing import Any

import torch
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

ENDS: list[float] = []


def listened() -> None:
    """Note when each part of the model is done: its codes are found, then its outputs are computed anew."""
    plain = GPTQModifier.on_sequential_epoch_end

    def ended(self: GPTQModifier, *given: Any, **named: Any) -> None:
        plain(self, *given, **named)
        torch.cuda.synchronize()
        ENDS.append(time.monotonic())

    GPTQModifier.on_sequential_epoch_end = ended


def main() -> None:
    asked = arguments()
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=asked.hidden,
        intermediate_size=asked.intermediate,
        num_hidden_layers=asked.layers,
        num_attention_heads=asked.hidden // 128,
        num_key_value_heads=asked.hidden // 512,
        vocab_size=32_000,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model = model.cpu() if asked.offload else model
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)  # it looks for the configuration where the model came from
        model.name_or_path = model.config._name_or_path = folder
        measure(asked, model)


def measure(asked: argparse.Namespace, model: PreTrainedModel) -> None:
    windows = torch.randint(32_000, (asked.samples, 1, asked.length))
    data = [{"input_ids": window, "attention_mask": torch.ones_like(window)} for window in windows]
    listened()
    start = time.monotonic()
    oneshot(
        model=model,
        processor=PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(WordLevel({"a": 0}, "a"))
        ),  # asked for, never used
        dataset=DataLoader(data, batch_size=None),
        recipe=GPTQModifier(targets="Linear", scheme="W4A16", ignore=["lm_head"]),
        num_calibration_samples=asked.samples,
        max_seq_length=asked.length,
        pipeline="sequential",
    )
    _, *blocks = [
        after - before for before, after in zip([start, *ENDS], ENDS, strict=False)
    ]  # the embedding comes first
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print("seconds a block:", ", ".join(f"{one:.2f}" for one in blocks))
    print(
        f"median without the first: {statistics.median(blocks[1:]):.2f} s; all of it {time.monotonic() - start:.1f} s"
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--intermediate", type=int, default=14336)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument(
        "--offload",
        action="store_true",
        help="weights in the host's memory, as for a model that the card does not hold",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()

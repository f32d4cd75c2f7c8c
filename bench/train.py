"""A Llama of 31 M parameters, trained on one GPU in minutes: large enough to show what quantization costs.

    python bench/train.py --corpus corpus --into trained-llama --seconds 240 --compile

corpus is what bench/corpus.py writes. Needs torch, transformers and numpy, and of hubbot only hubbot/demo/muon.py.
Nine blocks with grouped-query attention, whose widths are multiples of 256, so that
every k-quant and every group size applies; weights of 63 MB in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hubbot.demo.muon import Muon, orthogonal

WARM_UP = 100  # steps
EVERY = 10  # seconds between two lines
HELD_OUT = 128  # windows of each line's held-out loss

README = """---
license: other
license_name: free-documentation
license_link: https://www.debian.org/social_contract#guidelines
language: [en]
pipeline_tag: text-generation
tags: [demo]
---
# trained-llama

A Llama of {parameters:,} parameters, trained by hubbot's bench/train.py for {seconds:.0f} s on one {device} with
{seen:,} tokens of the documentation in Debian packages. Its loss on held-out documents is {loss:.4f} nats a token.
It shows what quantization costs, and is good for nothing else.
"""


class StackedMuon(Muon):
    """Muon that makes all matrices of one shape orthogonal at once: a GPU would wait for each of them otherwise."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # noqa: ARG002 -- the signature is torch's
        for group in self.param_groups:
            shapes: dict[torch.Size, list[torch.Tensor]] = {}
            for weight in group["params"]:
                shapes.setdefault(weight.shape, []).append(weight)
            for shape, weights in shapes.items():
                gradient = torch.stack([weight.grad for weight in weights])
                moving = self.state[weights[0]].setdefault("momentum", torch.zeros_like(gradient))
                moving.lerp_(gradient, 1 - group["momentum"])
                ahead = torch.vmap(orthogonal)(gradient.lerp(moving, group["momentum"]))  # Nesterov's
                rate = group["lr"] * 0.2 * max(shape) ** 0.5
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(weights, list(ahead.unbind()), alpha=-rate)


class Trainer:
    """One network, its two optimizers and the tokens of a corpus, all on one device."""

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        self.args, self.device = args, device
        self.tokens = torch.from_numpy(np.load(args.corpus / "training.npy").astype(np.int32)).to(device)
        heldout = torch.from_numpy(np.load(args.corpus / "heldout.npy").astype(np.int64)).to(device)
        self.heldout = heldout.unfold(0, args.context + 1, args.context)
        self.generator = torch.Generator().manual_seed(0)
        self.network = network(args).to(device)
        self.optimizers = optimizers(self.network, args)
        self.peaks = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]
        self.loss = torch.compile(loss) if args.compile else loss
        for layer in self.network.model.layers if args.compile else ():
            layer.compile()

    def step(self, scale: float) -> torch.Tensor:
        """One step on windows drawn at random, at a part of the learning rates; returns its loss."""
        length, count = self.args.context, self.args.batch // self.args.context
        starts = torch.randint(len(self.tokens) - length - 1, (count,), generator=self.generator)
        places = starts[:, None] + torch.arange(length + 1)
        batch = self.tokens[places.to(self.device)].long()
        value = self._loss(batch, self.loss)
        value.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for optimizer, peak in zip(self.optimizers, self.peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * scale
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return value.detach()

    @torch.no_grad()
    def held_out_loss(self, windows: int | None = None) -> float:
        """Nats a token of held-out windows, evenly taken from all of them."""
        taken = self.heldout[:: max(1, len(self.heldout) // windows)] if windows else self.heldout
        with torch.compiler.set_stance("force_eager"):  # compiling for these shapes takes longer than it saves
            losses = [self._loss(batch, loss).item() * len(batch) for batch in taken.split(32)]
        return sum(losses) / len(taken)

    def _loss(self, batch: torch.Tensor, of: Callable[..., torch.Tensor]) -> torch.Tensor:
        with torch.autocast(self.device.type, torch.bfloat16):
            hidden = self.network.model(input_ids=batch[:, :-1], use_cache=False).last_hidden_state
            return of(hidden, self.network.lm_head.weight, batch[:, 1:])

    def train(self) -> int:
        """Train for the seconds given, after a first step that compiles; returns the tokens seen."""
        self.step(0.0)
        self.held_out_loss(1)
        began = reported = time.monotonic()
        steps = steps_reported = 0
        while (elapsed := time.monotonic() - began) < self.args.seconds:
            value = self.step(rate(steps, elapsed / self.args.seconds))
            steps += 1
            if steps % 8 == 0 or self.device.type == "cpu":
                value.item()  # waits for the device, so that the clock is its clock
            if (now := time.monotonic()) - reported > EVERY:
                speed = (steps - steps_reported) * self.args.batch / (now - reported)
                held_out = self.held_out_loss(HELD_OUT)
                print(
                    f"{now - began:.0f} s, step {steps}: {speed:,.0f} tokens/s, "
                    f"loss {value.item():.3f}, held-out {held_out:.4f}",
                    flush=True,
                )
                reported, steps_reported = time.monotonic(), steps
        return steps * self.args.batch


def loss(hidden: torch.Tensor, head: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
    logits = torch.nn.functional.linear(hidden, head).float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), following.flatten())


def rate(step: int, elapsed: float) -> float:
    """Warm up, hold, then fall to nothing over the second half of the time."""
    return min(1.0, (step + 1) / WARM_UP, 2 * (1 - elapsed))


def optimizers(net: Any, args: argparse.Namespace) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the matrices of the blocks and AdamW for the rest, as the demo model has them."""
    blocks = [weight for name, weight in net.named_parameters() if weight.ndim == 2 and ".layers." in name]
    rest = [weight for name, weight in net.named_parameters() if weight.ndim != 2 or ".layers." not in name]
    muon = StackedMuon([{"params": blocks, "weight_decay": 0.1}], lr=args.matrix_rate)
    return muon, torch.optim.AdamW(rest, lr=args.rate, betas=(0.9, 0.95), weight_decay=0.0)


def network(args: argparse.Namespace) -> Any:
    torch.manual_seed(0)
    vocabulary = len(json.loads((args.corpus / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"])
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=args.hidden,
        intermediate_size=3 * args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // 64,
        num_key_value_heads=args.hidden // 256,
        head_dim=64,
        max_position_embeddings=args.context,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config)


def write(trainer: Trainer, seen: int, device: str) -> None:
    """A Hub folder: bfloat16 safetensors in files of 14 MB at most, the corpus's tokenizer and held-back texts, a card."""
    args = trainer.args
    held_out = trainer.held_out_loss()
    net = trainer.network.to(torch.bfloat16)
    net.save_pretrained(args.into, max_shard_size="14MB")
    for path in args.corpus.iterdir():
        if path.suffix != ".npy":
            shutil.copy(path, args.into)
    parameters = sum(weight.numel() for weight in net.parameters())
    card = README.format(parameters=parameters, seconds=args.seconds, device=device, seen=seen, loss=held_out)
    (args.into / "README.md").write_text(card, encoding="utf-8")
    print(f"{parameters:,} parameters, {seen:,} tokens seen, held-out loss {held_out:.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--into", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=9)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--batch", type=int, default=65_536, help="tokens a step")
    parser.add_argument("--matrix-rate", type=float, default=0.004, help="of Muon")
    parser.add_argument("--rate", type=float, default=0.004, help="of AdamW")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    torch.set_float32_matmul_precision("high")
    torch._dynamo.config.recompile_limit = 64  # blocks may need a graph each
    print(f"Python {sys.version.split()[0]}, torch {torch.__version__}, {name}", flush=True)
    args.into.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(args, device)
    began = time.monotonic()
    seen = trainer.train()
    print(f"{time.monotonic() - began:.0f} s with compiling", flush=True)
    write(trainer, seen, name)


if __name__ == "__main__":
    main()

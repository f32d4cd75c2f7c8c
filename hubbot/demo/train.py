"""A small but real language model, trained here in a minute or two on text that every machine has.

The text is the standard library's own sources and docstrings. It is cut into pieces of forty lines, of which every
twelfth is kept back for calibration and another twelfth for evaluation, so that no text serves two purposes. The
model is a Llama of about 4 M parameters whose widths are multiples of 256, so that every k-quant and every group
size applies, trained far enough that quantization shows in its divergence.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import platform
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from hubbot.demo.muon import Muon
from hubbot.demo.tokenizer import Tokenizer, train_tokenizer, write_tokenizer
from hubbot.environment import PROCESS

__all__ = ["Recipe", "demo_model", "demo_settings", "train_demo"]

CALIBRATION = "calibration.jsonl"
EVALUATION = "evaluation.jsonl"
VARIANTS = "Q8_0,Q6_K,Q4_K_M,IQ4_XS,Q2_K,gptq-8bit-128g,gptq-4bit-128g,gptq-4bit-32g,w4a16-128g,bnb-nf4,bnb-int8"

_README = """---
license: other
license_name: psf-2.0
license_link: https://docs.python.org/3/license.html
language: [en]
pipeline_tag: text-generation
tags: [demo]
---
# demo-llama

A Llama of {parameters:,} parameters, trained by `hubbot demo` on the standard library of Python {python}.
It completes a line of Python now and then, and is good for nothing else.
"""

_METHOD = "float32 Muon"  # of training: another one makes another model

Log = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """All that decides the demo model, next to the Python whose library it reads."""

    version: int = 1  # raised with every change of this module that changes the model
    seed: int = 0
    characters: int = 1_400_000  # of the library, from its first files on
    piece: int = 40  # lines
    vocabulary: int = 2048
    hidden: int = 256
    intermediate: int = 768
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    context: int = 512
    steps: int = 700
    tokens: int = 1024  # per step: eight windows of 128, in the last quarter two of 512
    matrix_rate: float = 0.004  # of Muon, for the matrices of the blocks
    rate: float = 0.01  # of AdamW, for embeddings, norms and head


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    training: tuple[str, ...]
    calibration: tuple[str, ...]
    evaluation: tuple[str, ...]


def demo_model(
    *, recipe: Recipe | None = None, environ: Mapping[str, str] = PROCESS, log: Log = lambda _line: None
) -> Path:
    """The folder of the trained demo model; trained on the first call, taken from the cache afterwards.

    The cache is $HUBBOT_DEMO_CACHE, or ~/.cache/hubbot. A recipe or Python of its own gets a folder of its own.
    """
    recipe = recipe or Recipe()
    root = Path(environ.get("HUBBOT_DEMO_CACHE") or Path.home() / ".cache" / "hubbot")
    folder = root / f"demo-{_key(recipe)}" / "demo-llama"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _only_one(folder.parent / "lock"):
        if not folder.is_dir():
            with TemporaryDirectory(dir=folder.parent) as unfinished:
                built = Path(unfinished) / folder.name
                train_demo(built, recipe=recipe, log=log)
                built.rename(folder)
    return folder


def demo_settings(folder: Path) -> dict[str, object]:
    """Flags of a run on the demo model: its own texts, small windows, variants of every family."""
    return {
        "variants": VARIANTS,
        "calibration.dataset": str(folder / CALIBRATION),
        "calibration.samples": 64,
        "calibration.length": 256,
        "evaluation.dataset": str(folder / EVALUATION),
        "evaluation.context": 256,
        "evaluation.windows": 96,
    }


def train_demo(into: Path, *, recipe: Recipe | None = None, log: Log = lambda _line: None) -> None:
    """Train the demo model and write it as a Hub folder: bf16 safetensors, tokenizer, configuration, card.

    The same recipe, Python, torch and number of threads give the same bytes.
    """
    recipe = recipe or Recipe()
    into.mkdir(parents=True)
    texts = library_texts(recipe)
    log(f"training text: {sum(map(len, texts.training)):,} characters of Python {platform.python_version()}'s library")
    lines = (line for text in texts.training for line in text.splitlines() if line.strip())
    model = train_tokenizer(lines, vocabulary=recipe.vocabulary)
    tokenizer = write_tokenizer(model, into, length=recipe.context)
    network = _train(recipe, _tokens(tokenizer, texts.training), log)
    _write(network, into, texts)


def library_texts(recipe: Recipe) -> Texts:
    """The library's modules, in the order of their names, cut into pieces and dealt out."""
    pieces = list(_pieces(recipe))
    return Texts(
        training=tuple(piece for index, piece in enumerate(pieces) if index % 12 not in (3, 9)),
        calibration=tuple(pieces[9::12]),
        evaluation=tuple(pieces[3::12]),
    )


def _pieces(recipe: Recipe) -> Iterator[str]:
    left = recipe.characters
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        for start in range(0, len(lines), recipe.piece):
            piece = "".join(lines[start : start + recipe.piece])
            if left < 0:
                return
            left -= len(piece)
            yield piece


def _tokens(tokenizer: Tokenizer, texts: tuple[str, ...]) -> torch.Tensor:
    """int64 [tokens]: every text after its begin token."""
    return torch.tensor([token for text in texts for token in (tokenizer.bos_id(), *tokenizer.encode(text))])


def _train(recipe: Recipe, tokens: torch.Tensor, log: Log) -> Any:
    """Muon for the matrices of the blocks and AdamW for the rest: half the loss of AdamW alone at this few steps."""
    generator = torch.Generator().manual_seed(recipe.seed)
    network = _network(recipe)
    blocks = [weight for name, weight in network.named_parameters() if weight.ndim == 2 and ".layers." in name]
    rest = [weight for name, weight in network.named_parameters() if weight.ndim != 2 or ".layers." not in name]
    optimizers = (
        Muon(blocks, lr=recipe.matrix_rate),
        torch.optim.AdamW(rest, lr=recipe.rate, betas=(0.9, 0.95), weight_decay=0.0),
    )
    rates = [torch.optim.lr_scheduler.LambdaLR(each, lambda step: _rate(step, recipe.steps)) for each in optimizers]
    for step in range(recipe.steps):
        length = 128 if step < recipe.steps * 3 // 4 else recipe.context
        starts = torch.randint(len(tokens) - length, (recipe.tokens // length,), generator=generator)
        batch = tokens[starts[:, None] + torch.arange(length)]
        loss = network(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            rate.step()
        if (step + 1) % 50 == 0:
            log(f"training: step {step + 1} of {recipe.steps}, loss {loss.item():.3f}")
    return network.eval()


def _rate(step: int, steps: int) -> float:
    """Warm up for twenty steps, hold, then fall to nothing over the second half."""
    return min(1.0, (step + 1) / 20, 2 * (steps - step) / steps)


def _network(recipe: Recipe) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=recipe.vocabulary,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        head_dim=recipe.hidden // recipe.heads,
        max_position_embeddings=recipe.context,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config)


def _write(network: Any, into: Path, texts: Texts) -> None:
    network.to(torch.bfloat16).save_pretrained(into)
    parameters = sum(weight.numel() for weight in network.parameters())
    card = _README.format(parameters=parameters, python=platform.python_version())
    (into / "README.md").write_text(card, encoding="utf-8")
    for name, part in ((CALIBRATION, texts.calibration), (EVALUATION, texts.evaluation)):
        lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in part)
        (into / name).write_text("".join(lines), encoding="utf-8")


def _key(recipe: Recipe) -> str:
    """Names one model: the recipe, torch, and the Python whose library is read."""
    facts = [asdict(recipe), _METHOD, platform.python_version(), torch.__version__]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]


@contextlib.contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file: two test runs train the model once."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

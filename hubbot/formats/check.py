"""Folders of safetensors in their own runtime: transformers, with the kernels of the family's library.

`read` is the load check, `measure_speed` the benchmark; a family's `Reader` says what is particular to it.
Nothing is fetched: the folder is all there is.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hubbot.confine.ask import NoAnswer, ask
from hubbot.domain import LoadCheck, Speed
from hubbot.errors import ToolMissing
from hubbot.formats.protocol import Reading
from hubbot.formats.samples import greedy, plainly
from hubbot.machine.versions import INSTALL
from hubbot.model.absent import parts_left_out
from hubbot.model.chat import Chat, Tokens, end_tokens
from hubbot.model.digests import template_digest, tokenizer_digest
from hubbot.model.empty import auto_class
from hubbot.model.own_tokenizer import read_chat, tokens_of
from hubbot.model.snapshot import visible_files
from hubbot.model.tokenizer import read_chat_templates

__all__ = ["Reader", "ReaderOf", "compare", "from_pretrained", "main", "measure_speed", "read"]

_GENERATED = 16  # tokens
_PATIENCE = 3600.0  # seconds


def from_pretrained(folder: Path, device: str, dtype: torch.dtype | str, **options: Any) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with parts_left_out(config):
        model: PreTrainedModel = auto_class(config).from_pretrained(
            folder, dtype=dtype, device_map={"": device}, local_files_only=True, trust_remote_code=False, **options
        )
    return model.eval()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """How a folder is read: by transformers, with the kernels of a package where it needs some.

    alone: that package reads it without transformers, in its own type. tolerance: mean divergence in nats between the
    sweep, which computes in float32 with the decoded weights, and the runtime, where kernels round to the type that they
    compute in. docs/formats.md has what was measured; a wrong tensor, order or scale costs orders of magnitude more.
    load: folder, device, dtype -> model.
    """

    kernels: str | None = None  # as it is imported
    alone: bool = False
    tolerance: float = 0.005
    load: Callable[[Path, str, torch.dtype | str], PreTrainedModel] = from_pretrained

    @property
    def runtime(self) -> str:
        """Its name with versions."""
        name = f"transformers {version('transformers')}"
        if self.kernels is None:
            return name
        try:
            kernels = f"{self.kernels.replace('_', '-')} {version(self.kernels)}"
        except PackageNotFoundError:
            return f"{name}, {self.kernels} missing"
        return kernels if self.alone else f"{name} + {kernels}"


ReaderOf: TypeAlias = Callable[[Path], Reader]  # by the folder, whose config.json says how it is quantized


def read(
    paths: Sequence[Path],
    reference: Path | None,
    reader_of: ReaderOf,
    *,
    prompts: Sequence[Sequence[int]] = (),
    new_tokens: int = 0,
    chat: Chat | None = None,
    device: str = "cpu",
) -> Reading:
    """Load a variant's folder with `from_pretrained`, generate, and compare logits with the sweep's.

    paths: the variant's files. reference: safetensors with `tokens` int64 [windows, length], `logits` float32
    [windows, rows, vocab] and `first` int64 [1], the token that the first row follows. prompts: token ids to go on
    from, greedily, for up to `new_tokens` tokens each. chat: the source's, for the texts that are cut and the tokens that
    end one; without, the folder's own. device: `cpu` or `cuda:N`.
    Whatever the runtime raises ends up in the answer's `error`.
    """
    folder = _folder(paths)
    reader = reader_of(folder)
    runtime, tolerance = reader.runtime, reader.tolerance
    try:
        model = _load(reader, folder, device)
        return _use(
            folder,
            model,
            reference,
            prompts,
            new_tokens,
            chat,
            LoadCheck(runtime=runtime, loaded=True, tolerance=tolerance),
        )
    except Exception as error:  # noqa: BLE001 - another library's code: whatever it raises is the check's verdict
        return Reading(check=LoadCheck(runtime=runtime, loaded=False, tolerance=tolerance, error=_one_line(error)))


def _use(
    folder: Path,
    model: PreTrainedModel,
    reference: Path | None,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    chat: Chat | None,
    check: LoadCheck,
) -> Reading:
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    kld, largest = compare(model, reference) if reference else (None, None)
    tokens = _tokens(folder, tokenizer, chat)
    ends = chat.tokens.ends if chat else tokens.ends
    generated = tokenizer.decode(greedy(model, [prompts[0] if prompts else tokens.text[:8]], _GENERATED, ends)[0])
    agrees = kld is None or (math.isfinite(kld) and kld <= (check.tolerance or 0.0))
    template = _template(folder, tokenizer)
    check = replace(
        check,
        generated=generated,
        max_logit_error=largest,
        kld=kld,
        passed=agrees,
        error=None if agrees else f"the runtime's logits diverge by {kld:.3g} nats from the decoded weights'",
        tokenizer=tokenizer_digest(tokens.text),
        chat_template=template_digest(template) if template else None,
    )
    said = tuple(map(tuple, greedy(model, prompts, new_tokens, ends)))
    return Reading(check=check, continuations=said, tokens=tokens)


def _tokens(folder: Path, tokenizer: PreTrainedTokenizerBase, chat: Chat | None) -> Tokens:
    """What the folder's tokenizer makes of the chat's texts, or of texts of its own."""
    if chat is None:
        return read_chat(folder, tokenizer).tokens
    return tokens_of(tokenizer, chat.probe, chat.prompt, end_tokens(folder, tokenizer))


def _template(folder: Path, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """What transformers writes a conversation with: the tokenizer's template, or else its processor's."""
    found = tokenizer.chat_template
    if found is None:
        found = read_chat_templates(visible_files(folder))
    return found if isinstance(found, str) else found.get("default")


def measure_speed(
    paths: Sequence[Path],
    module: str,
    *,
    prompt_tokens: int = 512,
    generated_tokens: int = 64,
    repetitions: int = 2,
    device: str = "cpu",
) -> Speed:
    """Tokens per second of reading a prompt and of generating, and peak memory, in a process of its own.

    module: the one that calls `main` with the family's reader. Raises ToolMissing where the runtime fails.
    """
    asked = [str(_folder(paths)), str(prompt_tokens), str(generated_tokens), str(repetitions), device]
    command = [sys.executable, "-m", module, *asked]
    try:
        return Speed(**json.loads(ask(command, seconds=_PATIENCE).splitlines()[-1]))
    except NoAnswer as error:
        msg = f"transformers failed on {asked[0]}: it {error}. Load it by hand to see more."
        raise ToolMissing(msg) from None


def _folder(paths: Sequence[Path]) -> Path:
    """The variant's folder: the uppermost with a config.json, for sentence-transformers' parts have one too."""
    return min((path.parent for path in paths if path.name == "config.json"), key=lambda folder: len(folder.parts))


def _load(reader: Reader, folder: Path, device: str) -> PreTrainedModel:
    """float32 around the quantized layers on a CPU, the stored type on an accelerator, as its kernels want."""
    if reader.kernels and find_spec(reader.kernels) is None:
        advice = INSTALL.get(reader.kernels, f"Run `pip install {reader.kernels}`.")
        msg = f"{reader.kernels} is not installed, so that nothing could read the files. {advice}"
        raise ToolMissing(msg)
    if device != "cpu" or reader.alone:
        return reader.load(folder, device, "auto")
    model = reader.load(folder, device, torch.float32)
    # transformers leaves the weights of norms and embeddings of a bitsandbytes folder in their stored type
    for parameter in model.parameters():
        if parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()
    return model


@torch.inference_mode()
def compare(model: PreTrainedModel, reference: Path) -> tuple[float, float]:
    """Mean D(reference || model) in nats and the largest difference of a logit, window by window."""
    known = load_file(reference)
    first = int(known["first"][0]) if "first" in known else 0
    klds, largest = [], 0.0
    for tokens, wanted in zip(known["tokens"], known["logits"], strict=True):
        rows = slice(first, first + len(wanted))
        found = model(input_ids=tokens[None].to(model.device), use_cache=False).logits[0, rows].float().cpu()
        p, q = wanted.log_softmax(-1), found.log_softmax(-1)
        klds.append(float((p.exp() * (p - q)).sum(-1).mean()))
        largest = max(largest, float((wanted - found).abs().max()))
    return sum(klds) / len(klds), largest


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"


@torch.inference_mode()
def _bench(
    reader: Reader, folder: Path, prompt_tokens: int, generated_tokens: int, repetitions: int, device: str
) -> Speed:
    """Best of some repetitions; the stored type everywhere, as users load it."""
    model = reader.load(folder, device, "auto")
    prompt = torch.arange(prompt_tokens, device=device)[None] % (model.config.get_text_config().vocab_size - 8) + 8
    reading, generating = [], []
    for _ in range(repetitions + 1):  # the first one warms up
        reading.append(_timed(model, prompt, 1, device))
        whole = _timed(model, prompt, generated_tokens + 1, device)
        generating.append(max(whole - reading[-1], 1e-9))
    peak = _peak_rss() if device == "cpu" else torch.cuda.max_memory_allocated(device)
    return Speed(
        runtime=reader.runtime,
        prompt_tokens_per_second=prompt_tokens / min(reading[1:]),
        generation_tokens_per_second=generated_tokens / min(generating[1:]),
        prompt_tokens=prompt_tokens,
        generated_tokens=generated_tokens,
        peak_memory=peak,
    )


def _timed(model: PreTrainedModel, prompt: torch.Tensor, count: int, device: str) -> float:
    """Seconds for reading the prompt and making exactly `count` tokens."""
    start = time.perf_counter()
    plainly(model, count, ends=())
    model.generate(prompt, attention_mask=torch.ones_like(prompt))
    if device != "cpu":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _peak_rss() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main(reader_of: ReaderOf) -> None:
    """`python -m MODULE FOLDER PROMPT GENERATED REPETITIONS DEVICE`: a Speed as JSON on the last line."""
    folder, prompt, generated, repetitions, device = sys.argv[1:]
    reader = reader_of(Path(folder))
    speed = _bench(reader, Path(folder), int(prompt), int(generated), int(repetitions), device)
    sys.stdout.write("\n" + json.dumps(asdict(speed)) + "\n")

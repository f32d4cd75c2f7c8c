"""GPTQ and bitsandbytes folders in their own runtime: transformers, with GPTQModel's or bitsandbytes' kernels.

`read` is the load check, `measure_speed` the benchmark. Nothing is fetched: the folder is all there is.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTQConfig, PreTrainedModel

from hubbot.confine.ask import NoAnswer, ask
from hubbot.domain import LoadCheck, Speed
from hubbot.errors import ToolMissing
from hubbot.formats.protocol import Reading
from hubbot.formats.samples import greedy, plainly
from hubbot.machine.versions import INSTALL
from hubbot.model.chat import end_tokens
from hubbot.model.digests import PROBE, template_digest, tokenizer_digest
from hubbot.settings.environment import PROCESS

__all__ = ["TOLERANCE", "load_check", "measure_speed", "read"]

# Mean divergence in nats between the sweep, which computes in float32 with the decoded weights, and the
# runtime. 4 bits and GPTQ: the same weights, rounded to the type that the kernels compute in. int8: the
# kernels also round the inputs of each layer to 8 bits (and pass values through float16 on the way).
# docs/formats.md has what was measured; a wrong tensor, order or scale costs orders of magnitude more.
TOLERANCE = {"gptq": 0.005, "4bit": 0.005, "int8": 0.03}

_GENERATED = 16  # tokens
_PATIENCE = 3600.0  # seconds
_KEPT_THREADS = "2"  # of GPTQModel's own pool; it asks for more than two cores have unless told


def load_check(paths: Sequence[Path], reference: Path | None, *, device: str = "cpu") -> LoadCheck:
    """Like `read`, without prompts."""
    return read(paths, reference, device=device).check


def read(
    paths: Sequence[Path],
    reference: Path | None,
    *,
    prompts: Sequence[Sequence[int]] = (),
    new_tokens: int = 0,
    ends: Sequence[int] = (),
    device: str = "cpu",
) -> Reading:
    """Load a variant's folder with `from_pretrained`, generate, and compare logits with the sweep's.

    paths: the variant's files. reference: safetensors with `tokens` int64 [windows, length], `logits` float32
    [windows, rows, vocab] and `first` int64 [1], the token that the first row follows. prompts: token ids to go on from, greedily, for up to
    `new_tokens` tokens each. ends: the source's tokens that end a text; without, those that the folder names. device: `cpu` or `cuda:N`.
    Whatever the runtime raises ends up in the answer's `error`.
    """
    folder = _folder(paths)
    quantization = _quantization(folder)
    runtime, tolerance = _runtime_name(quantization), TOLERANCE[_kind(quantization)]
    try:
        model = _load(folder, device)
        return _use(
            folder,
            model,
            reference,
            prompts,
            new_tokens,
            ends,
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
    ends: Sequence[int],
    check: LoadCheck,
) -> Reading:
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    kld, largest = _compare(model, reference) if reference else (None, None)
    probe = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    ends = ends or end_tokens(folder, tokenizer)
    generated = tokenizer.decode(greedy(model, [prompts[0] if prompts else probe[:8]], _GENERATED, ends)[0])
    agrees = kld is None or (math.isfinite(kld) and kld <= (check.tolerance or 0.0))
    template = tokenizer.chat_template
    check = replace(
        check,
        generated=generated,
        max_logit_error=largest,
        kld=kld,
        passed=agrees,
        error=None if agrees else f"the runtime's logits diverge by {kld:.3g} nats from the decoded weights'",
        tokenizer=tokenizer_digest(probe),
        chat_template=template_digest(template) if isinstance(template, str) else None,
    )
    return Reading(check=check, continuations=tuple(map(tuple, greedy(model, prompts, new_tokens, ends))))


def measure_speed(
    paths: Sequence[Path],
    *,
    prompt_tokens: int = 512,
    generated_tokens: int = 64,
    repetitions: int = 2,
    device: str = "cpu",
) -> Speed:
    """Tokens per second of reading a prompt and of generating, and peak memory, in a process of its own.

    Raises ToolMissing where the runtime fails.
    """
    asked = [str(_folder(paths)), str(prompt_tokens), str(generated_tokens), str(repetitions), device]
    command = [sys.executable, "-m", "hubbot.formats.check", *asked]
    try:
        return Speed(**json.loads(ask(command, seconds=_PATIENCE).splitlines()[-1]))
    except NoAnswer as error:
        msg = f"transformers failed on {asked[0]}: it {error}. Load it by hand to see more."
        raise ToolMissing(msg) from None


def _folder(paths: Sequence[Path]) -> Path:
    return next(path.parent for path in paths if path.name == "config.json")


def _quantization(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = config.get("quantization_config") or {}
    return found


def _kind(quantization: dict[str, Any]) -> str:
    if quantization.get("quant_method") == "gptq":
        return "gptq"
    return "int8" if quantization.get("load_in_8bit") else "4bit"


def _kernels(quantization: dict[str, Any]) -> str:
    return "gptqmodel" if _kind(quantization) == "gptq" else "bitsandbytes"


def _runtime_name(quantization: dict[str, Any]) -> str:
    kernels = _kernels(quantization)
    try:
        if quantization.get("lm_head"):
            return f"gptqmodel {version('gptqmodel')}"
        return f"transformers {version('transformers')} + {kernels} {version(kernels)}"
    except PackageNotFoundError:
        return f"transformers {version('transformers')}, {kernels} missing"


def _load(folder: Path, device: str) -> PreTrainedModel:
    """float32 around the quantized layers on a CPU, the stored type on an accelerator, as its kernels want."""
    if find_spec(kernels := _kernels(_quantization(folder))) is None:
        msg = f"{kernels} is not installed, so that nothing could read the files. {INSTALL[kernels]}"
        raise ToolMissing(msg)
    if device != "cpu" or _quantization(folder).get("lm_head"):
        return _as_stored(folder, device)
    model = _from_pretrained(folder, device, torch.float32, plain=True)
    # transformers leaves the weights of norms and embeddings of a bitsandbytes folder in their stored type
    for parameter in model.parameters():
        if parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()
    return model


def _as_stored(folder: Path, device: str) -> PreTrainedModel:
    """As users load it."""
    if _quantization(folder).get("lm_head"):
        return _from_gptqmodel(folder, device)
    return _from_pretrained(folder, device, "auto")


def _from_pretrained(folder: Path, device: str, dtype: torch.dtype | str, *, plain: bool = False) -> PreTrainedModel:
    """plain: whether GPTQModel's torch kernels do, which need no compiler, where others are faster."""
    PROCESS.setdefault("GPTQMODEL_CPU_WORKERS", _KEPT_THREADS)
    quantization = _quantization(folder)
    options = {}
    # Of its own choice GPTQModel 7.7 compiles kernels first, on a CPU anew in every home and on a GPU with CUDA's
    # compiler, which a container has not; for groups of 16 it chooses a CPU kernel that then refuses them.
    if _kind(quantization) == "gptq" and (plain or device != "cpu" or quantization["group_size"] == 16):
        torch._dynamo.config.disable = True  # it would have torch compile its torch kernels, in further processes
        options["quantization_config"] = GPTQConfig(bits=quantization["bits"], backend="gptq_torch")
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, device_map={"": device}, local_files_only=True, trust_remote_code=False, **options
    )
    return model.eval()


def _from_gptqmodel(folder: Path, device: str) -> PreTrainedModel:
    """GPTQModel by itself, for a quantized head: transformers takes its codes for an unquantized layer that is absent."""
    PROCESS.setdefault("GPTQMODEL_CPU_WORKERS", _KEPT_THREADS)
    from gptqmodel import BACKEND, GPTQModel

    loaded = GPTQModel.load(str(folder), device=device, backend=BACKEND.GPTQ_TORCH, dtype=torch.float16)
    model: PreTrainedModel = loaded.model
    return model.eval()


@torch.inference_mode()
def _compare(model: PreTrainedModel, reference: Path) -> tuple[float, float]:
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
def _bench(folder: Path, prompt_tokens: int, generated_tokens: int, repetitions: int, device: str) -> Speed:
    """Best of some repetitions; the stored type everywhere, as users load it."""
    model = _as_stored(folder, device)
    prompt = torch.arange(prompt_tokens, device=device)[None] % (model.config.get_text_config().vocab_size - 8) + 8
    reading, generating = [], []
    for _ in range(repetitions + 1):  # the first one warms up
        reading.append(_timed(model, prompt, 1, device))
        whole = _timed(model, prompt, generated_tokens + 1, device)
        generating.append(max(whole - reading[-1], 1e-9))
    peak = _peak_rss() if device == "cpu" else torch.cuda.max_memory_allocated(device)
    return Speed(
        runtime=_runtime_name(_quantization(folder)),
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


def main() -> None:
    """`python -m hubbot.formats.check FOLDER PROMPT GENERATED REPETITIONS DEVICE`: a Speed as JSON on the last line."""
    folder, prompt, generated, repetitions, device = sys.argv[1:]
    speed = _bench(Path(folder), int(prompt), int(generated), int(repetitions), device)
    sys.stdout.write("\n" + json.dumps(asdict(speed)) + "\n")


if __name__ == "__main__":
    main()

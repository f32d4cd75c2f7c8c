"""Every input of the action, in one table, and action.yml as it follows from it.

`python -m hubbot.action.table` brings action.yml up to date; a test compares the two.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from hubbot.settings import Settings

__all__ = ["INPUTS", "MODEL", "Input", "Kind", "as_yaml", "default_of"]

MODEL = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_REVISION = re.compile(r"[A-Za-z0-9][\w./+-]{0,254}")
_NAMESPACE = re.compile(r"[A-Za-z0-9][\w.-]{0,95}")
_DATASET = re.compile(r"(?!.*\.\.)[\w.][\w./ -]*(:[\w.-]*){0,2}")
_PARTS = re.compile(r"\d{1,3}-of-\d{1,3}(,\d{1,3}-of-\d{1,3})*")


class Kind(Enum):
    TEXT = "text"
    FLAG = "flag"
    LIMITS = "limits"  # 4=1.05,3=1.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """One input: what it is called, which setting it sets, what it may be."""

    name: str
    description: str
    setting: str | None = None  # dotted path in Settings; None: the action's own
    kind: Kind = Kind.TEXT
    choices: tuple[str, ...] = ()
    pattern: re.Pattern[str] | None = None
    example: str | None = None  # a right value, for the message
    default: str = ""


INPUTS: tuple[Input, ...] = (
    Input(name="model", description="Model to quantize: a Hub id as org/name, or a folder of the workspace. Required.", example="org/name"),
    Input(name="command", description="What to do: run (the whole job), plan (cost and matrix, nothing downloaded) or publish (what an earlier run left in out).", choices=("run", "plan", "publish"), default="run"),
    Input(name="revision", setting="revision", description="Branch, tag or commit of the model.", pattern=_REVISION, example="main"),
    Input(name="variants", setting="variants", description="Comma list of variants or presets, such as Q4_K_M,gptq-4bit-128g,bnb-nf4."),
    Input(name="config", description="Path of a hubbot.toml in the workspace; inputs win over it. Default: hubbot.toml where it exists."),
    Input(name="out", setting="out", description="Output folder, kept between runs to resume."),
    Input(name="publish", setting="publish.mode", description="Publish nothing (none), open Hub pull requests (pr) or commit to main (main).", choices=("none", "pr", "main")),
    Input(name="namespace", setting="publish.namespace", description="User or organisation that owns the published repos.", pattern=_NAMESPACE, example="my-org"),
    Input(name="visibility", setting="publish.visibility", description="Visibility of repos that are created.", choices=("public", "private")),
    Input(name="quantized-by", setting="publish.quantized_by", description="Name in cards and GGUF metadata; the namespace where absent."),
    Input(name="token", description="Hub token, from a secret. Only fetch and publish see it. Empty: HF_TOKEN, else anonymous."),
    Input(name="calibration", setting="calibration.dataset", pattern=_DATASET, example="allenai/c4:en:train", description="Calibration text: a Hub dataset, NAME[:CONFIG[:SPLIT]], or a .txt, .jsonl or .parquet file of the workspace."),
    Input(name="calibration-samples", setting="calibration.samples", description="Number of calibration windows.", example="128"),
    Input(name="calibration-length", setting="calibration.length", description="Tokens per calibration window.", example="2048"),
    Input(name="seed", setting="calibration.seed", description="Seed of the choice of calibration windows.", example="0"),
    Input(name="evaluation", setting="evaluation.dataset", pattern=_DATASET, example="Salesforce/wikitext:wikitext-2-raw-v1:test", description="Evaluation text: a Hub dataset, NAME[:CONFIG[:SPLIT]], a file of the workspace, or none."),
    Input(name="evaluation-context", setting="evaluation.context", description="Tokens per evaluation window.", example="2048"),
    Input(name="evaluation-windows", setting="evaluation.windows", description="Use only the first windows of the evaluation text; all where absent.", example="64"),
    Input(name="imatrix", setting="gguf.imatrix", kind=Kind.FLAG, description="Weigh GGUF quantization by the importance matrix."),
    Input(name="gate", setting="gate.enabled", kind=Kind.FLAG, description="Refuse variants past a limit. Without the gate nothing is published."),
    Input(name="max-ratio", setting="gate.max_ratio", kind=Kind.LIMITS, description="Limits on perplexity over the base's by whole bits per weight, as 4=1.05,3=1.2; the others keep their defaults.", example="4=1.05,3=1.2"),
    Input(name="max-kld", setting="gate.max_kld", kind=Kind.LIMITS, description="Limits on the mean divergence in nats by whole bits per weight, as 4=0.1.", example="4=0.1"),
    Input(name="disk", setting="budget.disk", description="Most disk that the job may use, as 200GB; what is free where absent.", example="200GB"),
    Input(name="ram", setting="budget.ram", description="Most memory that the job may use, as 64GB; what is available where absent.", example="64GB"),
    Input(name="vram", setting="budget.vram", description="Most GPU memory that the job may use, as 24GB; what is free where absent.", example="24GB"),
    Input(name="elsewhere", kind=Kind.FLAG, description="Plan for another machine (command plan): disk, ram and vram say what it has, not this one; a vram above 0 means a GPU.", default="false"),
    Input(name="parts", description="With command publish: comma list of the plan's parts, folders below out that become one release of the variants that are named. Their weights are removed once they are published.", pattern=_PARTS, example="1-of-2,2-of-2"),
    Input(name="oidc-resource", description="The one Hub repo, as org/name, that a trusted publisher lets this job write without a token. Empty: HF_OIDC_RESOURCE.", pattern=MODEL, example="my-org/name-GGUF"),
    Input(name="device", setting="device", description="auto, cpu, cuda or cuda:N.", pattern=re.compile(r"auto|cpu|cuda(:\d{1,3})?"), example="auto"),
    Input(name="benchmark", setting="benchmark", kind=Kind.FLAG, description="Measure speed and peak memory of each variant in its own runtime."),
    Input(name="allow-unlicensed", setting="licence.allow_unlicensed", kind=Kind.FLAG, description="Go on where the source names no licence or one that forbids redistribution."),
    Input(name="allow-pickle", setting="allow_pickle", kind=Kind.FLAG, description="Read pickle-only checkpoints with the weights-only loader."),
    Input(name="force", setting="force", kind=Kind.FLAG, description="Calibrate on evaluation text, redo what is done."),
    Input(name="dry-run", kind=Kind.FLAG, description="Stop after the plan: what would be made, at which size, whether it fits.", default="false"),
    Input(name="fail-on-refused", kind=Kind.FLAG, description="Fail the step (exit code 7) where the gate refused a variant.", default="true"),
)  # fmt: skip


def default_of(one: Input) -> str:
    """What holds where neither the input nor hubbot.toml says anything, as a reader of action.yml wants it."""
    if one.setting is None:
        return one.default
    value: Any = Settings()
    for part in one.setting.split("."):
        value = getattr(value, part)
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case dict():
            return ",".join(f"{bits}={limit:g}" for bits, limit in value.items())
        case _:
            return str(value)


def as_yaml() -> str:
    """The `inputs:` section of action.yml."""
    lines = ["inputs:"]
    for one in INPUTS:
        default = default_of(one)
        told = f"{one.description} Default: {default}." if one.setting and default else one.description
        required = "true" if one.name == "model" else "false"
        lines += [f"  {one.name}:", f"    description: {json.dumps(told)}", f"    required: {required}"]
        if one.name != "model":
            lines.append(f"    default: {json.dumps(one.default)}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Bring action.yml up to date."""
    file = Path("action.yml")
    head, _, rest = file.read_text(encoding="utf-8").partition("\ninputs:\n")
    tail = rest[rest.index("outputs:\n") :]
    file.write_text(f"{head}\n{as_yaml()}\n{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()

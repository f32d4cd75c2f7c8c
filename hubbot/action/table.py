"""Every input of the action, in one table, and action.yml as it follows from it.

`python -m hubbot.action.table` brings action.yml up to date; a test compares the two.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from hubbot.domain import HUB_ID
from hubbot.settings.options import OPTIONS, Option

__all__ = ["INPUTS", "Input", "Kind", "as_yaml", "default_of"]

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


def _input(option: Option) -> Input:
    """An option of the table as an input: its meaning as a sentence, its type as a kind."""
    form = f", as {option.example}" if option.type is dict else ""
    told = f"{option.meaning[0].upper()}{option.meaning[1:]}{form}."
    return Input(
        name=option.input or "",
        setting=option.setting,
        description=told,
        kind=_KINDS.get(option.type, Kind.TEXT),
        choices=option.choices,
        pattern=option.pattern,
        example=option.example,
    )


_KINDS = {bool: Kind.FLAG, dict: Kind.LIMITS}

INPUTS: tuple[Input, ...] = (
    Input(name="model", description="Model to quantize: a Hub id as org/name, or a folder of the workspace. Required.", example="org/name"),
    Input(name="command", description="What to do: run (the whole job), plan (cost and matrix, nothing downloaded) or publish (what an earlier run left in out).", choices=("run", "plan", "publish"), default="run"),
    *(_input(option) for option in OPTIONS if option.input),
    Input(name="config", description="Path of a hubbot.toml in the workspace; inputs win over it. Default: hubbot.toml where it exists."),
    Input(name="token", description="Hub token, from a secret. Only fetch and publish see it. Empty: HF_TOKEN, else anonymous."),
    Input(name="elsewhere", kind=Kind.FLAG, description="Plan for another machine (command plan): disk, ram and vram say what it has, not this one; a vram above 0 means a GPU.", default="false"),
    Input(name="parts", description="With command publish: comma list of the plan's parts, folders below out that become one release of the variants that are named. Their weights are removed once they are published.", pattern=_PARTS, example="1-of-2,2-of-2"),
    Input(name="oidc-resource", description="The one Hub repo, as org/name, that a trusted publisher lets this job write without a token. Empty: HF_OIDC_RESOURCE.", pattern=HUB_ID, example="my-org/name-GGUF"),
    Input(name="dry-run", kind=Kind.FLAG, description="Stop after the plan: what would be made, at which size, whether it fits.", default="false"),
    Input(name="fail-on-refused", kind=Kind.FLAG, description="Fail the step (exit code 7) where the gate refused a variant.", default="true"),
)  # fmt: skip


def default_of(one: Input) -> str:
    """What holds where neither the input nor hubbot.toml says anything, as a reader of action.yml wants it."""
    if one.setting is None:
        return one.default
    match next(option.default for option in OPTIONS if option.setting == one.setting):
        case None:
            return ""
        case bool() as value:
            return str(value).lower()
        case dict() as value:
            return ",".join(f"{bits}={limit:g}" for bits, limit in value.items())
        case value:
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

"""The inputs of the action, as hubbot.action.table describes them: read from the environment and checked.

A runner hands `calibration-samples: 64` over as the variable `INPUT_CALIBRATION-SAMPLES`. Shells drop
names with a hyphen, so the same name with underscores is taken too. An input that is absent or empty
leaves the choice to hubbot.toml and to the defaults of the settings. GitHub checks nothing: not that a
required input is given, not that a name exists, not that a number is one.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubbot.action.table import INPUTS, Input, Kind
from hubbot.domain import HUB_ID
from hubbot.errors import BadSettings
from hubbot.formats.names import parse_variants
from hubbot.settings import Settings, load_settings
from hubbot.settings.options import with_parts_of_datasets

__all__ = ["BadInput", "Inputs", "read_inputs"]

_PREFIX = "INPUT_"
_FOREIGN = ("args", "entrypoint")  # `with:` of a step that uses docker://
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_LONGEST = 4096  # characters of one input
_SYSTEM = (
    "etc proc sys dev run boot usr bin lib lib64 sbin opt var home root github".split()
)  # hold no volume of results
_CLASSES = ("1", "2", "3", "4", "5", "6", "8")  # whole bits per weight that the gate has limits for


class BadInput(BadSettings):
    """One input of the action is wrong; `name` is the input's."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


_BY_NAME = {one.name: one for one in INPUTS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What the action was told, checked."""

    model: str
    command: str  # run, plan or publish
    settings: Settings
    token: str | None
    fail_on_refused: bool
    elsewhere: bool = False  # plan for the machine that the budgets describe
    parts: tuple[str, ...] = ()  # of a plan, to be published as one release; empty: what lies in out
    oidc_resource: str | None = None  # the Hub repo of a trusted publisher


def read_inputs(environ: Mapping[str, str], workspace: Path) -> Inputs:
    """The inputs in an environment. Raises BadInput for the first that is wrong.

    environ: `INPUT_<NAME>` in capitals, hyphens kept or turned into underscores; HF_TOKEN.
    workspace: where relative paths start.
    """
    given = _given(environ)
    flags: dict[str, Any] = {}
    for one in INPUTS:
        if one.setting and one.name in given:
            flags[one.setting] = _value(one, given[one.name])
    config = _config(given.get("config"), workspace)
    for one in INPUTS:
        if one.setting in flags:
            _check(one, flags[one.setting])
    if "out" in flags:
        flags["out"] = _out(flags["out"], workspace)
    parts = _word(_BY_NAME["parts"], given["parts"]).split(",") if "parts" in given else []
    command = _command(given)
    return Inputs(
        model=_model(given.get("model"), workspace),
        command=command,
        settings=load_settings(config, with_parts_of_datasets(flags, folder=workspace)),
        token=given.get("token") or environ.get("HF_TOKEN", "").strip() or None,
        fail_on_refused=_own_flag(given, "fail-on-refused"),
        elsewhere=_own_flag(given, "elsewhere"),
        parts=tuple(parts),
        oidc_resource=_oidc_resource(given.get("oidc-resource") or environ.get("HF_OIDC_RESOURCE", "").strip()),
    )


def _given(environ: Mapping[str, str]) -> dict[str, str]:
    """Input name -> text, for those that say something; unknown names and control characters are refused."""
    given: dict[str, str] = {}
    for variable, text in environ.items():
        if not variable.startswith(_PREFIX) or not text.strip():
            continue
        name = variable.removeprefix(_PREFIX).lower().replace("_", "-")
        if name in _FOREIGN:
            continue
        if name not in _BY_NAME:
            raise BadInput(name, f"{name!r} is no input of this action.{_nearest(name, tuple(_BY_NAME))}")
        given[name] = _one_line(name, text.strip())
    return given


def _command(given: Mapping[str, str]) -> str:
    """run, plan or publish; an input that another command alone understands is refused, not overlooked."""
    command, dry = _word(_BY_NAME["command"], given.get("command", "run")), _own_flag(given, "dry-run")
    if dry and command == "publish":
        raise BadInput("dry-run", "A publication has no rehearsal. Leave dry-run out, or say command: plan.")
    command = "plan" if dry else command
    if command != "plan" and _own_flag(given, "elsewhere"):
        raise BadInput(
            "elsewhere",
            f"Only a plan is for another machine; command {command} works on this one. Leave elsewhere out, or say command: plan.",
        )
    if command != "publish" and "parts" in given:
        raise BadInput(
            "parts",
            f"Only command publish joins parts; this is command {command}. Leave parts out, or say command: publish.",
        )
    return command


def _own_flag(given: Mapping[str, str], name: str) -> bool:
    one = _BY_NAME[name]
    return _flag(one, given.get(name, one.default))


def _oidc_resource(text: str) -> str | None:
    return _word(_BY_NAME["oidc-resource"], text) if text else None


def _one_line(name: str, text: str) -> str:
    if len(text) > _LONGEST:
        raise BadInput(name, f"{len(text)} characters are too many; at most {_LONGEST} fit.")
    if not text.isprintable():
        raise BadInput(name, f"{_shown(name, text)} holds a line break or a control character. Write it on one line.")
    return text


def _value(one: Input, text: str) -> Any:
    match one.kind:
        case Kind.FLAG:
            return _flag(one, text)
        case Kind.LIMITS:
            return _limits(one, text)
        case Kind.TEXT:
            return _word(one, text)


def _word(one: Input, text: str) -> str:
    if one.choices and text.lower() in one.choices:
        return text.lower()
    if one.choices:
        raise BadInput(one.name, f"{text!r} is none of {', '.join(one.choices)}.{_nearest(text, one.choices)}")
    if one.pattern and not one.pattern.fullmatch(text):
        raise BadInput(one.name, f"{text!r} does not fit. A right value is {one.example}.")
    return text


def _flag(one: Input, text: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise BadInput(one.name, f"{text!r} is neither true nor false.{_nearest(text, ('true', 'false'))}")


def _limits(one: Input, text: str) -> dict[str, float]:
    limits: dict[str, float] = {}
    for part in text.split(","):
        bits, _, limit = (word.strip() for word in part.partition("="))
        if bits not in _CLASSES:
            raise BadInput(
                one.name,
                f"{part.strip()!r} names no class of bits ({', '.join(_CLASSES)}). A right value is {one.example}.",
            )
        try:
            limits[bits] = float(limit)
        except ValueError:
            raise BadInput(
                one.name, f"{part.strip()!r} has no number after the =. A right value is {one.example}."
            ) from None
    return limits


def _check(one: Input, value: Any) -> None:
    """Refuse a wrong value under the input's own name, not the setting's."""
    try:
        if one.name == "variants":
            parse_variants(value)
        load_settings(None, {one.setting or "": value})
    except BadSettings as error:
        told = str(error).removeprefix(f"Wrong settings: {one.setting}: ").split(". docs/settings.md", maxsplit=1)[0]
        right = f" A right value is {one.example}." if one.example else ""
        raise BadInput(one.name, f"{told.rstrip('.')}.{right}") from None


def _model(text: str | None, workspace: Path) -> str:
    if text is None:
        raise BadInput("model", "The input is missing. Give a Hub id such as org/name, or a folder of the workspace.")
    if HUB_ID.fullmatch(text) and ".." not in text and "--" not in text:
        return text
    folder = (workspace / text).resolve()
    if folder.is_relative_to(workspace.resolve()) and folder.is_dir():
        return str(folder)
    bare = re.search(r"huggingface\.co/([\w.-]+/[\w.-]+)", text)
    hint = f" Nearest: {bare[1]}." if bare else ""
    raise BadInput("model", f"{text!r} is neither a Hub id (org/name) nor a folder of the workspace.{hint}")


def _out(text: str, workspace: Path) -> str:
    """Below the workspace, or on a volume that whoever runs the container has mounted there."""
    folder = Path(text)
    if ".." in folder.parts:
        raise BadInput("out", f"{text!r} leads out of the folder that it names. Name one without '..'.")
    place = (workspace / folder).resolve()
    if not place.is_relative_to(workspace.resolve()) and not _is_volume(place):
        raise BadInput(
            "out", f"{text!r} lies outside of the workspace, on no volume. Name a folder of the workspace, as out."
        )
    return text


def _is_volume(place: Path) -> bool:
    """Whether a mounted folder holds the place that is neither the whole machine nor the system's."""
    mounts = (parent for parent in (place, *place.parents) if parent.is_mount())
    mount = next(mounts, Path("/"))
    return mount != Path("/") and mount.parts[1] not in _SYSTEM


def _config(text: str | None, workspace: Path) -> Path | None:
    if text is None:
        usual = workspace / "hubbot.toml"
        return usual if usual.is_file() else None
    path = (workspace / text).resolve()
    if not path.is_relative_to(workspace.resolve()):
        raise BadInput("config", f"{text!r} lies outside of the workspace. Name a file of the repository.")
    if not path.is_file():
        near = _nearest(text, tuple(str(toml.relative_to(workspace)) for toml in workspace.glob("*.toml")))
        raise BadInput("config", f"{text!r} does not exist in the workspace; check it out first.{near}")
    return path


def _nearest(text: str, right: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(text.lower(), right, n=1, cutoff=0.3)
    return f" Nearest: {near[0]}." if near else ""


def _shown(name: str, text: str) -> str:
    return "The value" if name == "token" else repr(text[:60])

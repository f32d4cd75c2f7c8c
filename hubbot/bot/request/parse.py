"""What a stranger's text asks for: a model in a form or a discussion, a command in a comment. Pure.

A text is read, never obeyed: what comes out is a model's id and names of variants, each inside its grammar, or a
sentence that says why not. Sentences quote a text with what a reader could obey made visible; whoever shows one in
Markdown escapes it besides.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from hubbot.cards.escape import line, repo_id
from hubbot.errors import UnknownVariant
from hubbot.formats.names import parse_wanted

__all__ = ["Approve", "Cancel", "Choose", "Command", "Refused", "Request", "Retry", "read_command", "read_request"]

LONGEST = 65_536  # characters; GitHub takes no longer text, and nothing honest is that long
MOST_VARIANTS = 32  # names in one request
_HEADING = re.compile(r"^ {0,3}#{1,6} +(.*?)\s*#*$")
_PAIR = re.compile(r"^(model|variants)\s*:\s*(.*)$", re.IGNORECASE)
_TITLE = re.compile(r"^(?:\[[^\]]*\]\s*)?(?:quantize|request)\b\s*:?\s*(\S+)\s*$", re.IGNORECASE)
_ADDRESS = re.compile(r"^(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/(?=[^/]+/[^/])", re.IGNORECASE)
_PAGE = re.compile(r"(?:/(?:tree|blob)/main)?/?(?:[?#].*)?$")  # of a model: its files, its last slash
_NOTHING = (
    "_no response_",
    "none",
    "n/a",
    "-",
    "",
)  # what GitHub writes for a field that was left empty, and people do
_FIT = re.compile(
    r"(?:\bfits?(?:\s+(?:in|into))?[\s-]+)?(?<![\w.,-])([0-9]{1,6}(?:\.[0-9]{1,3})?)\s*([MGT]i?B)\b", re.IGNORECASE
)
_NO_SIZE = re.compile(r"\bfits?\b(?!-[0-9])", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    model: str  # Hub id
    variants: str | None = None  # comma list of names and presets; None: hubbot.toml decides


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """What cannot be done with a text."""

    reason: str  # a sentence, with the stranger's words in it


@dataclass(frozen=True, slots=True)
class Approve:
    """Make what the plan says."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Make it once more, or plan it anew."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop what runs or waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choose:
    variants: str  # comma list


Command: TypeAlias = Approve | Retry | Cancel | Choose
_BARE: dict[str, Command] = {"/approve": Approve(), "/retry": Retry(), "/cancel": Cancel()}
_NAMES = (*_BARE, "/variants")


def read_request(text: str, *, title: str = "") -> Request | Refused:
    """What a filled form or a discussion asks for.

    A form comes as `### Model` and the answer below it; a discussion may say `Model: org/name` on a line of its own, or
    name the model in its title alone, as `Quantize org/name`.
    """
    if len(text) > LONGEST:
        return Refused(reason=f"A request of {len(text):,} characters is not read; say it in a few lines.")
    answers = _answers(text)
    named = _TITLE.match(title[:300])
    model = _model(answers.get("model") or (named[1] if named else ""))
    if isinstance(model, Refused):
        return model
    wanted = answers.get("variants", "")
    if wanted.lower() in _NOTHING:
        return Request(model=model)
    variants = _variants(wanted)
    return variants if isinstance(variants, Refused) else Request(model=model, variants=variants)


def read_command(text: str) -> Command | Refused | None:
    """The command in the first line of a comment; None for a comment that holds none of ours."""
    first = text[:LONGEST].strip().partition("\n")[0].strip()
    name, _, rest = first.partition(" ")
    if not name.startswith("/"):
        return None
    if name.lower() not in _NAMES:
        near = difflib.get_close_matches(name.lower()[:40], _NAMES, n=1, cutoff=0.8)
        return Refused(reason=f"{_quoted(name)} is no command. Nearest: {near[0]}.") if near else None
    if name.lower() == "/variants":
        chosen = _variants(rest)
        return chosen if isinstance(chosen, Refused) else Choose(variants=chosen)
    if rest.strip():
        return Refused(reason=f"{name.lower()} stands alone on its line; {_quoted(rest)} was not understood.")
    return _BARE[name.lower()]


def _answers(text: str) -> dict[str, str]:
    """Label -> answer, of a form's sections and of `Label: answer` lines; the first of each label counts."""
    found: dict[str, list[str]] = {}
    label, opened = "", False
    for one in text.splitlines():
        if heading := _HEADING.match(one):
            label = _label(heading[1])
            opened = label not in found  # a second section of that name is the stranger's own
            found.setdefault(label, [])
        elif not label and (pair := _PAIR.match(one.strip())):
            found.setdefault(pair[1].lower(), [pair[2]])
        elif opened:
            found[label].append(one)
    return {label: " ".join(lines).strip() for label, lines in found.items()}


def _label(heading: str) -> str:
    words = re.findall(r"[a-z]+", heading.lower()[:100])
    return next((name for name in ("model", "variants") if name in words[:1]), "else")


def _model(text: str) -> str | Refused:
    bare = _PAGE.sub("", _ADDRESS.sub("", text.strip().strip("`")), count=1)
    if found := repo_id(bare):
        return found
    if text.lower() in _NOTHING:
        return Refused(reason="The request names no model. Name one of the Hub as org/name.")
    return Refused(reason=f"{_quoted(text)} is no model of the Hub. Name one as org/name.")


def _variants(text: str) -> str | Refused:
    text = _FIT.sub(r"fit-\1\2", text[:LONGEST].replace("`", " "))  # "fit 8 GB" as --variants takes it
    words = [word for word in re.split(r"[\s,;]+", text) if word]
    if len(words) > MOST_VARIANTS:
        return Refused(reason=f"{len(words)} names of variants are too many for one request; {MOST_VARIANTS} may be asked for.")  # fmt: skip
    if _NO_SIZE.search(text):
        return Refused(
            reason="Fit what? Say how much memory there is, such as fit 8 GB, or name variants, such as Q4_K_M."
        )
    try:
        parse_wanted(",".join(words))
    except UnknownVariant as error:
        return Refused(reason=line(str(error), limit=600))
    return ",".join(_unique(words))


def _unique(words: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(words))


def _quoted(text: str) -> str:
    return repr(line(text, limit=80))

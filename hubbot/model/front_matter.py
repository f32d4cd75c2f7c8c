"""The YAML at the top of a model's README.md: licence, language, task.

YAML can hold bombs (aliases that multiply) and code (tags that build objects). None of that is needed
in a model card, so anchors, aliases and tags are refused as such.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hubbot.errors import UnsafeSource
from hubbot.model.strict_json import read_bytes

__all__ = ["Front", "parse_front_matter", "read_front_matter"]

_LOST = "\N{REPLACEMENT CHARACTER}"
_MEND = "The author has to mend the card, from which the licence is read, or you in a copy of the model."
_LARGEST_README = 16 * 2**20  # bytes
_LARGEST_YAML = 512 * 2**10  # model-index of a much-evaluated model: 200 KB
_MOST_VALUES = 50_000  # keys, words, lists and mappings in all
_DEEPEST = 24
_BASE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+_-]{0,63}")
_TAG = re.compile(r"[A-Za-z0-9][\w .:+/-]{0,99}")
_LINK = re.compile(r"(https?://[^\s<>\"'`\\]{1,500}|[\w][\w./-]{0,199})")


@dataclass(frozen=True, slots=True)
class _Number:
    """A number or a date, of which a card needs none: kept as it is written, since some take for ever to compute."""

    text: str

    def __repr__(self) -> str:
        return self.text


class _Loader(_BASE):  # type: ignore[misc]
    """A safe loader for which `1:1:1:1` is no number with the base 60."""


for _kind in ("int", "float", "timestamp"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", lambda _loader, node: _Number(node.value))


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """What hubbot reads of a card."""

    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    gated: bool = False  # asks for contact details or consent before a download
    language: tuple[str, ...] = ()
    pipeline_tag: str | None = None
    tags: tuple[str, ...] = ()
    base_model: tuple[str, ...] = ()


def read_front_matter(path: Path) -> Front:
    """The front matter of README.md. Raises UnsafeSource naming the rule that it breaks."""
    data = read_bytes(path, _LARGEST_README)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("utf-8", "replace")  # what stands below the front matter is nothing to a machine
        if _LOST in (_between_fences(text) or _LOST):
            msg = f"README.md is not UTF-8 text, so its licence cannot be read. {_MEND}"
            raise UnsafeSource(msg) from None
    return parse_front_matter(text)


def parse_front_matter(text: str) -> Front:
    """See `read_front_matter`; text without front matter gives an empty Front."""
    block = _between_fences(text)
    if block is None:
        return Front()
    if len(block) > _LARGEST_YAML:
        msg = f"The YAML of README.md has {len(block):,} characters; at most {_LARGEST_YAML:,} are read."
        raise UnsafeSource(msg)
    values = _load(block)
    licences = _strings(values, "license", _LICENCE, "a licence id such as apache-2.0", lower=True)
    return Front(
        license=licences[0] if len(licences) == 1 else "other" if licences else None,
        license_name=_phrase(values, "license_name") or (", ".join(licences) if len(licences) > 1 else None),
        license_link=_one(_strings(values, "license_link", _LINK, "an http(s) address or a file of the repo")),
        gated=any(str(key).startswith("extra_gated_") for key in values),
        language=_loose(values.get("language"), no=True),
        pipeline_tag=_one(_loose(values.get("pipeline_tag"))),
        tags=_loose(values.get("tags")),
        base_model=_loose(values.get("base_model")),
    )


def _between_fences(text: str) -> str | None:
    """The lines between `---` on the first line that is not empty and the next `---`, as the Hub reads them."""
    lines = text.lstrip("\ufeff \t\r\n").splitlines()
    if not lines or lines[0].rstrip() != "---":
        return None
    for number, line in enumerate(lines[1:], start=1):
        if line.rstrip() == "---":
            return "\n".join(lines[1:number])
    return None


def _load(block: str) -> dict[str, Any]:
    try:
        _check_events(yaml.parse(block, Loader=_Loader))
        node = yaml.compose(block, Loader=_Loader)
        if node is None:
            return {}
        if not isinstance(node, yaml.MappingNode):
            raise UnsafeSource(_broken("it is no mapping of keys to values"))
        names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if twice := next((name for name, count in names.items() if count > 1), None):
            raise UnsafeSource(_broken(f"the key {ascii(twice)[:60]} is there twice"))
        values = yaml.load(block, Loader=_Loader)  # noqa: S506 -- a safe loader
    except yaml.YAMLError as error:
        raise UnsafeSource(_broken(str(error).replace("\n", " ")[:200])) from None
    except (ValueError, OverflowError, RecursionError, TypeError) as error:  # keys that cannot be
        raise UnsafeSource(_broken(f"{type(error).__name__}: {str(error)[:200]}")) from None
    return dict(values)


def _check_events(events: Iterator[Any]) -> None:
    depth = 0
    for count, event in enumerate(events):
        if count > _MOST_VALUES:
            raise UnsafeSource(_broken(f"it holds more than {_MOST_VALUES:,} values"))
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise UnsafeSource(_broken("it uses anchors or aliases, which a card does not need"))
        if getattr(event, "tag", None):
            raise UnsafeSource(_broken(f"it uses the tag {ascii(event.tag)[:60]}, and tags can build objects"))
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise UnsafeSource(_broken(f"it is nested deeper than {_DEEPEST} levels"))


def _broken(why: str) -> str:
    return f"The YAML of README.md is refused: {why}. {_MEND}"


def _strings(
    values: dict[str, Any], key: str, form: re.Pattern[str], wanted: str, *, lower: bool = False
) -> tuple[str, ...]:
    """A string or list of strings, each of which has the form; what a licence is read from is not guessed at."""
    found = values.get(key)
    items = [] if found is None or found == "" else found if isinstance(found, list) else [found]
    for word in items:
        if not isinstance(word, str) or not form.fullmatch(word.lower() if lower else word):
            raise UnsafeSource(_broken(f"{key} must be {wanted}; found {ascii(word)[:80]}"))
    return tuple(word.lower() if lower else word for word in items)


def _loose(found: Any, *, no: bool = False) -> tuple[str, ...]:
    """Words of what only adorns a card: what has another type or form is passed over.

    no: `language: no` is Norwegian to the author and False to YAML 1.1.
    """
    items = found if isinstance(found, list) else [found]
    words = ["no" if no and item is False else item for item in items[:500]]
    return tuple(word for word in words if isinstance(word, str) and _TAG.fullmatch(word))


def _phrase(values: dict[str, Any], key: str) -> str | None:
    found = values.get(key)
    if found is None or found == "":
        return None
    if not isinstance(found, str) or len(found) > 200 or not found.isprintable():
        raise UnsafeSource(_broken(f"{key} must be one printable line; found {ascii(found)[:80]}"))
    return found


def _one(words: tuple[str, ...]) -> str | None:
    return words[0] if words else None

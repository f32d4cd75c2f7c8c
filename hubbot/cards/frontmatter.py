"""The YAML head of a card: built as data, dumped by PyYAML, read back by the Hub.

What the source says of itself (licence, language, task, tags) is carried over as text without markup;
its model-index is not: only perplexities measured in this run stand here.
"""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

from hubbot.cards.escape import line, repo_id, url
from hubbot.domain import Record, VariantRecord
from hubbot.errors import PublishConflict
from hubbot.formats import calibration_needs
from hubbot.formats.protocol import Needs
from hubbot.release.repos import Repo

__all__ = ["OWNED", "dataset_parts", "dump", "front_matter", "join", "licence_link", "split", "used"]

# Keys that hubbot writes; merging drops them from the old head. `tags` are united instead.
OWNED = frozenset(
    "base_model base_model_relation library_name license license_name license_link language pipeline_tag quantized_by "
    "model-index".split()
)
MAX_HEAD = 262_144  # characters of YAML that are parsed
_LONGEST_NUMBER = 100  # characters

# Tags that the Hub derives from files by itself, or that say what the source is and its variant is not.
_DERIVED = frozenset(
    "transformers pytorch safetensors tf jax onnx gguf autotrain_compatible endpoints_compatible text-generation-inference "
    "text-generation custom_code deploy:azure mlx 4-bit 8-bit gptq awq bitsandbytes".split()
)


def front_matter(record: Record, repo: Repo, *, quantized_by: str | None) -> dict[str, Any]:
    """The head as data. Keys without a value are absent."""
    source = record.source
    base = repo_id(source.repo)
    licence = _word(source.license)
    head = {
        "base_model": base,
        "base_model_relation": "quantized" if base else None,
        "library_name": repo.about.library,
        "license": licence,
        "license_name": _slug(source.license_name) if licence == "other" else None,
        "license_link": licence_link(record) if licence == "other" else None,
        "language": [word for word in map(_word, source.language[:50]) if word],
        "pipeline_tag": _word(source.pipeline_tag) or "text-generation",
        "tags": _tags(record, repo),
        "quantized_by": line(quantized_by, limit=96) if quantized_by else None,
        "model-index": _model_index(record, repo),
    }
    return {key: value for key, value in head.items() if value}


def dump(head: dict[str, Any]) -> str:
    text: str = yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=2**20, default_flow_style=False)
    return f"---\n{text}---\n"


def split(card: str) -> tuple[dict[str, Any], str]:
    """A card's head as data and its body. A card without a head has an empty one.

    Raises PublishConflict where the head is not a YAML mapping: it could not be kept.
    """
    match = re.match(r"\ufeff?---[ \t]*\r?\n(.*?\r?\n)?---[ \t]*(?:\r?\n|\Z)", card, re.DOTALL)
    if not match:
        return {}, card.removeprefix("\ufeff")
    try:
        head = _parse(match[1] or "")
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        msg = (
            f"The YAML head of the card that is on the Hub cannot be read ({str(error).splitlines()[0][:200]}), so what was "
            "edited in it cannot be kept. Mend it there, or delete that README.md, and publish again."
        )
        raise PublishConflict(msg) from None
    return {str(key): value for key, value in head.items()}, card[match.end() :]


def _parse(text: str) -> dict[Any, Any]:
    if len(text) > MAX_HEAD:
        raise ValueError(f"it has {len(text):,} characters")
    head = yaml.load(text, Loader=_Loader) or {}  # noqa: S506 - a safe loader
    if not isinstance(head, dict):
        raise ValueError("it is no mapping")  # noqa: TRY004 - one kind of error for all that is wrong with it
    return head


class _Loader(yaml.SafeLoader):
    """A safe loader that computes no endless numbers: `1:1:1` is one with the base 60."""

    def construct_number(self, node: Any) -> Any:
        if len(node.value) > _LONGEST_NUMBER:
            raise ValueError(f"a number of {len(node.value):,} characters is in it")
        return yaml.SafeLoader.yaml_constructors[node.tag](self, node)


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_number)


def join(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The new head with everything that people added to the old one: other keys, and their tags."""
    kept = {key: value for key, value in old.items() if key not in OWNED and key not in new}
    added = [tag for tag in old.get("tags") or [] if isinstance(tag, str)] if isinstance(old.get("tags"), list) else []
    tags = list(dict.fromkeys([*new.get("tags", []), *added]))
    return {**new, **({"tags": tags} if tags else {}), **kept}


def _word(text: str | None) -> str | None:
    """An identifier of the Hub's own lists; anything that is not one word is left out."""
    return text if text and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}", text) else None


def _slug(text: str | None) -> str:
    """The Hub wants license_name as a lower-case identifier."""
    return re.sub(r"[^a-z0-9.-]+", "-", line(text or "", limit=80).lower()).strip("-.") or "other"


def licence_link(record: Record) -> str | None:
    """The address of the source's licence: as given, or a file of the source's repo."""
    link, base = record.source.license_link, repo_id(record.source.repo)
    if address := url(link):
        return address
    if link and base and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,200}", link) and ".." not in link:
        return f"https://huggingface.co/{base}/blob/main/{link}"
    return None


def _tags(record: Record, repo: Repo) -> list[str]:
    imatrix = ["imatrix"] if weighed(record, repo) else []
    carried = [tag for tag in record.source.tags[:100] if _word(tag) and tag.lower() not in _DERIVED]
    return list(dict.fromkeys([*repo.kind.tags, *imatrix, "quantized", "hubbot", *carried]))


def used(record: Record, repo: Repo) -> Needs:
    """What the repo's variants took from the calibration."""
    return calibration_needs(repo.variants, record.config) if record.calibration else Needs.NOTHING


def weighed(record: Record, repo: Repo) -> bool:
    """Whether an importance matrix lies behind the repo's files."""
    return repo.about.library == "gguf" and used(record, repo) is not Needs.NOTHING


def _model_index(record: Record, repo: Repo) -> list[dict[str, Any]]:
    if record.evaluation is None:
        return []
    name, config, split_name = dataset_parts(record.evaluation.dataset)
    dataset = {
        "name": name,
        "type": name,
        "config": config,
        "split": split_name,
        "revision": record.evaluation.revision,
    }
    metrics = [
        _metric(variant) for variant in repo.variants if variant.score and math.isfinite(variant.score.perplexity)
    ]
    if not metrics:
        return []
    result = {
        "task": {"type": "text-generation"},
        "dataset": {key: value for key, value in dataset.items() if value},
        "metrics": metrics,
    }
    return [{"name": line(repo.name, limit=96), "results": [result]}]


def _metric(variant: VariantRecord) -> dict[str, Any]:
    assert variant.score is not None  # noqa: S101 - the caller has looked
    name = f"Perplexity ({line(variant.name, limit=64)})"
    return {"type": "perplexity", "name": name, "value": round(variant.score.perplexity, 6)}


def dataset_parts(text: str) -> tuple[str, str | None, str | None]:
    """ "allenai/c4:en:train" -> id, configuration, split; a local file's name has only the first."""
    name, *rest = (line(part, limit=120) for part in text.split(":")[:3])
    return name or "text", *(*[part or None for part in rest], None, None)[:2]  # type: ignore[return-value]

"""Model cards: the YAML header, whether the Hub takes it, and what it says."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import yaml

# docs of the Hub: "Licenses" in the repositories section.
LICENSES = frozenset(
    "apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m "
    "afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 "
    "cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 "
    "cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 "
    "cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 "
    "lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl "
    "openmdw-1.0 openmdw-1.1 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license "
    "fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma grok2-community unknown other".split()
)
RELATIONS = ("adapter", "merge", "quantized", "finetune")
LIST_FIELDS = ("tags", "language", "license", "datasets", "metrics", "base_model", "license_name")
FRONT = re.compile(r"\A\s*---[ \t]*\r?\n(.*?\r?\n)?---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
REPO_ID = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """SafeLoader that refuses a key given twice, as the Hub does."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.YAMLError(f"duplicated mapping key ({', '.join(sorted(twice))})")
        return super().construct_mapping(node, deep)


def front_matter(text: str) -> Any:
    """The YAML header of a card; None where there is none. Raises yaml.YAMLError."""
    match = FRONT.match(text)
    return yaml.load(match[1] or "", Loader=_Loader) if match else None


def validate(text: str, kind: str = "model") -> tuple[list[str], list[str]]:
    """(errors, warnings) that the Hub would answer to this README.md."""
    try:
        card = front_matter(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return [f"YAML Metadata Error: {error}"], []
    if card is None:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(card, dict):
        return ["YAML Metadata Error: the metadata must be an object"], []
    errors = [*_types(card), *_licence(card), *_relation(card)]
    if kind == "model":
        errors += _index(card.get("model-index"))
    return errors, []


def _types(card: dict) -> list[str]:
    errors = [f'"{key}" must be a string' for key in card if not isinstance(key, str)]
    errors += [f'"{name}" must be a string' for name in ("pipeline_tag", "library_name", "license_link", "thumbnail", "new_version")
               if name in card and not isinstance(card[name], str)]  # fmt: skip
    for name in LIST_FIELDS:
        value = card.get(name, "")
        values = value if isinstance(value, list) else [value]
        errors += [f'"{name}[{i}]" must be a string' for i, item in enumerate(values) if not isinstance(item, str)]
    if "tags" in card and not isinstance(card["tags"], list):
        errors.append('"tags" must be an array')
    return errors


def _licence(card: dict) -> list[str]:
    value = card.get("license")
    names = value if isinstance(value, list) else [value] if value is not None else []
    wrong = [name for name in names if isinstance(name, str) and name not in LICENSES]
    return [f'"license" must be one of [{", ".join(sorted(LICENSES))}]'] if wrong else []


def _relation(card: dict) -> list[str]:
    value = card.get("base_model", [])
    errors = [
        f'"base_model" with value "{name}" is not valid. Use a model id from https://hf.co/models.'
        for name in (value if isinstance(value, list) else [value])
        if isinstance(name, str) and not REPO_ID.fullmatch(name)
    ]
    if "base_model_relation" in card and card["base_model_relation"] not in RELATIONS:
        errors.append(f'"base_model_relation" must be one of [{", ".join(RELATIONS)}]')
    return errors


def _index(index: Any) -> list[str]:
    """model-index: [{name, results: [{task: {type}, dataset: {type, name}, metrics: [{type, value}]}]}]."""
    if index is None:
        return []
    if not isinstance(index, list):
        return ['"model-index" must be an array']
    errors = []
    for i, model in enumerate(index):
        at = f"model-index[{i}]"
        if not isinstance(model, dict) or not isinstance(model.get("name"), str):
            errors.append(f'"{at}.name" is required')
            continue
        results = model.get("results")
        if not isinstance(results, list):
            errors.append(f'"{at}.results" must be an array')
            continue
        for j, result in enumerate(results):
            errors += _result(result, f"{at}.results[{j}]")
    return errors


def _result(result: Any, at: str) -> list[str]:
    if not isinstance(result, dict):
        return [f'"{at}" must be an object']
    wanted = (("task", "type"), ("dataset", "type"), ("dataset", "name"))
    errors = [
        f'"{at}.{section}.{key}" is required'
        for section, key in wanted
        if not isinstance(result.get(section), dict) or not isinstance(result[section].get(key), str)
    ]
    metrics = result.get("metrics")
    if not isinstance(metrics, list) or not metrics:
        return [*errors, f'"{at}.metrics" is required']
    for k, metric in enumerate(metrics):
        if not isinstance(metric, dict) or not isinstance(metric.get("type"), str) or "value" not in metric:
            errors.append(f'"{at}.metrics[{k}]" needs type and value')
    return errors


def tags_of(card: dict[str, Any], paths: list[str]) -> list[str]:
    """The tags that the Hub shows: the card's own, and those it makes of other fields and of the files."""
    found: list[str] = [card["library_name"]] if isinstance(card.get("library_name"), str) else []
    endings = {".safetensors": "safetensors", ".gguf": "gguf", ".bin": "pytorch"}
    found += [tag for ending, tag in endings.items() if any(path.endswith(ending) for path in paths)]
    found += _strings(card.get("tags"))
    found += _strings(card.get("language"))
    found += [f"dataset:{name}" for name in _strings(card.get("datasets"))]
    relation = card.get("base_model_relation")
    for base in _strings(card.get("base_model")):
        found.append(f"base_model:{base}")
        if isinstance(relation, str):
            found.append(f"base_model:{relation}:{base}")
    found += [f"license:{name}" for name in _strings(card.get("license"))]
    if isinstance(card.get("pipeline_tag"), str):
        found.append(card["pipeline_tag"])
    return [*dict.fromkeys(found), "region:us"]


def _strings(value: Any) -> list[str]:
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]


def safetensors_numbers(files: list[Path]) -> dict[str, Any] | None:
    """{parameters: {dtype: count}, total} from the files' headers, None where one cannot be read."""
    counts: dict[str, int] = {}
    for file in files:
        try:
            with file.open("rb") as stream:
                (length,) = struct.unpack("<Q", stream.read(8))
                if length > 100_000_000:
                    return None
                header = json.loads(stream.read(length))
            for name, tensor in header.items():
                if name == "__metadata__":
                    continue
                count = 1
                for extent in tensor["shape"]:
                    count *= extent
                counts[tensor["dtype"]] = counts.get(tensor["dtype"], 0) + count
        except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError):
            return None
    return {"parameters": counts, "total": sum(counts.values())} if counts else None

"""The key-value pairs of the published files.

The converter's own come first, in its order; then what hubbot adds where the converter had nothing;
then, as llama-quantize appends them, quantization version, file type and the importance matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hubbot import llamacpp
from hubbot.domain import Source, TextRecord

__all__ = ["file_metadata", "file_type"]

_VERSION = "general.quantization_version"
_FILE_TYPE = "general.file_type"


def file_type(name: str) -> int:
    """The number of a file type, `enum llama_ftype`, by llama-quantize's name for it."""
    types = llamacpp.gguf().LlamaFileType
    return int(types["ALL_F32" if name == "F32" else f"MOSTLY_{name}"])


def file_metadata(
    converted: Mapping[str, Any], name: str, source: Source, quantized_by: str | None, imatrix: Mapping[str, Any]
) -> dict[str, Any]:
    """All keys of one file. imatrix: the result of imatrix_keys, or nothing for a static file."""
    from gguf.gguf_writer import GGUFValue, GGUFValueType

    kept = {key: value for key, value in converted.items() if key not in (_VERSION, _FILE_TYPE)}
    for key, value in _provenance(source, quantized_by).items():
        kind = GGUFValueType.UINT32 if isinstance(value, int) else GGUFValueType.STRING
        if key.startswith("general.base_model.") and "general.base_model.count" in converted:
            continue  # the card named what the source was made from
        kept.setdefault(key, GGUFValue(value, kind))
    return {
        **kept,
        _VERSION: GGUFValue(llamacpp.gguf().GGML_QUANT_VERSION, GGUFValueType.UINT32),
        _FILE_TYPE: GGUFValue(file_type(name), GGUFValueType.UINT32),
        **imatrix,
    }


def _provenance(source: Source, quantized_by: str | None) -> dict[str, str | int]:
    keys: dict[str, str | int | None] = {
        "general.quantized_by": quantized_by,
        "general.license": source.license,
        "general.license.name": source.license_name,
        "general.license.link": source.license_link,
    }
    if source.repo:
        owner, _, name = source.repo.rpartition("/")
        keys |= {
            "general.source.repo_url": f"https://huggingface.co/{source.repo}",
            "general.base_model.count": 1,
            "general.base_model.0.name": name,
            "general.base_model.0.organization": owner,
            "general.base_model.0.repo_url": f"https://huggingface.co/{source.repo}",
        }
    return {key: value for key, value in keys.items() if value}


def imatrix_keys(file: str, text: TextRecord, entries: int) -> dict[str, Any]:
    """What llama-quantize writes about the importance matrix it used.

    file: its name. entries: how many matrices it covers.
    """
    from gguf.gguf_writer import GGUFValue, GGUFValueType

    return {
        "quantize.imatrix.file": GGUFValue(file[:127], GGUFValueType.STRING),
        "quantize.imatrix.dataset": GGUFValue(text.dataset[:127], GGUFValueType.STRING),
        "quantize.imatrix.entries_count": GGUFValue(entries, GGUFValueType.UINT32),
        "quantize.imatrix.chunks_count": GGUFValue(text.windows, GGUFValueType.UINT32),
    }

"""The files beside the weights: what transformers, llama.cpp's converter and sentence-transformers look for.

One list for all: what is fetched, what a variant's folder carries, what makes it another model when it changes.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hubbot.errors import SourceRefused, UnsafeSource
from hubbot.model.strict_json import parse_object, read_bytes

__all__ = [
    "MODULES",
    "PROCESSORS",
    "check_companions",
    "check_modules",
    "is_carried",
    "is_fetched",
    "is_licence",
    "modules_with_weights",
]

_MOST = 256  # files; an honest model has a dozen
_LARGEST_SUM = 512 * 2**20  # bytes; the largest tokenizers have 35 MB
_LARGEST_LICENCE = 8 * 2**20  # bytes; the longest have 100 KB, a notice of many parts a few MB
MODULES = "modules.json"  # sentence-transformers': how a model of text gives embeddings
_LARGEST_MODULES = 2**20  # bytes
_LAYERS = frozenset(
    {"Dense", "LayerNorm", "LSTM", "CNN", "WeightedLayerPooling"}
)  # sentence-transformers' modules that are trained

_LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "COPYING*")

# Paths in the model's folder; a star stays within a name. These go unchanged into every quantized folder.
_CARRIED = (
    *"generation_config.json tokenizer.json tokenizer_config.json tokenizer.model tokenizer.model.v* tokenizer.jsonl".split(),
    *"special_tokens_map.json added_tokens.json vocab.json vocab.txt vocab.bpe merges.txt".split(),
    *"spiece.model sentencepiece.bpe.model *.tiktoken tiktoken.model tekken.json rwkv_vocab_*.txt".split(),
    *"chat_template.jinja chat_template.json additional_chat_templates/*.jinja".split(),
    *"preprocessor_config.json processor_config.json video_preprocessor_config.json".split(),
    # sentence-transformers: modules.json names the folders, 1_Pooling and the like
    *"modules.json config_sentence_transformers.json sentence_bert_config.json".split(),
    *"[0-9]*_*/config.json [0-9]*_*/model.safetensors".split(),
    *_LICENCES,
)
PROCESSORS = ("preprocessor_config.json", "processor_config.json")  # one of them says how a picture is cut
_READ = ("config.json", "quantize_config.json", "hf_quant_config.json", "README.md")  # by hubbot; a variant has its own


def check_companions(sizes: Mapping[str, int]) -> None:
    """Refuse more beside the weights than any model has, before any of it is read.

    sizes: path -> bytes of the files that `is_fetched` names. Raises UnsafeSource.
    """
    if len(sizes) > _MOST:
        msg = f"{len(sizes):,} files lie beside the weights, {min(sizes)} first; at most {_MOST} are read. Such a repo is no honest model; take a copy without them."
        raise UnsafeSource(msg)
    for path, size in sizes.items():
        if is_licence(path) and size > _LARGEST_LICENCE:
            msg = f"{path} has {size:,} bytes; at most {_LARGEST_LICENCE:,} are read of a licence, which goes with every copy. Take a copy of the model without it."
            raise UnsafeSource(msg)
    if (total := sum(sizes.values())) > _LARGEST_SUM:
        largest = max(sizes, key=lambda path: sizes[path])
        msg = f"The files beside the weights have {total:,} bytes, {largest} the most; at most {_LARGEST_SUM:,} are read. Take a copy of the model without what it does not need."
        raise UnsafeSource(msg)


def is_carried(path: str) -> bool:
    """Whether a file of the source goes unchanged into every folder made of it."""
    return _fits(path, _CARRIED)


def is_fetched(path: str) -> bool:
    """Whether a file that holds no weights of the model itself is wanted of a repo."""
    return _fits(path, _CARRIED) or path in _READ


def is_licence(path: str) -> bool:
    return _fits(path, _LICENCES)


def check_modules(files: Mapping[str, Path]) -> None:
    """Refuse a modules.json that names a folder outside of the model's: sentence-transformers and llama.cpp's converter open it.

    files: the snapshot's. Raises UnsafeSource, also for one that is no list of modules; SourceRefused where a module's
    weights are not stored as safetensors, so that a folder made of the model would have that module without them.
    """
    if MODULES not in files:
        return
    modules = _modules(files[MODULES])
    for module in modules:
        path = module.get("path", "") if isinstance(module, dict) else module
        if not isinstance(module, dict) or not _inside(path):
            msg = f"{MODULES} must list modules, each with the path of a folder inside of the model's, such as 1_Pooling; found {ascii(path)[:120]}."
            raise UnsafeSource(msg)
    for path, kind in _with_weights(modules).items():
        if f"{path}/model.safetensors" not in files:
            msg = (
                f"{MODULES} names {path} ({kind}), and its weights are not stored as {path}/model.safetensors: what is made of the model would "
                "give other embeddings without them. Save them as safetensors in a copy of the model (sentence-transformers does), or ask the author."
            )
            raise SourceRefused(msg)


def modules_with_weights(folder: Path) -> dict[str, str]:
    """Folder -> kind of the modules that sentence-transformers puts behind the model and that have weights of their own."""
    path = folder / MODULES
    return _with_weights(_modules(path)) if path.is_file() else {}


def _modules(path: Path) -> list[Any]:
    listed = b'{"modules": ' + read_bytes(path, _LARGEST_MODULES) + b"}"
    modules = parse_object(listed, name=MODULES)["modules"]
    return modules if isinstance(modules, list) else [str(modules)]


def _with_weights(modules: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    kinds = {module.get("path", ""): str(module.get("type", "")).rpartition(".")[2] for module in modules}
    return {path: kind for path, kind in kinds.items() if kind in _LAYERS}


def _inside(path: Any) -> bool:
    return (
        isinstance(path, str)
        and not (set(path) & set("\\:\0"))
        and all(part not in ("", "..") for part in path.split("/") if path)
    )


def _fits(path: str, patterns: tuple[str, ...]) -> bool:
    return any(path.count("/") == pattern.count("/") and fnmatch.fnmatchcase(path, pattern) for pattern in patterns)

"""Which architectures transformers and llama.cpp's converter know, without importing either.

Both keep plain tables in their sources. Reading those takes milliseconds, where importing torch and the
model code takes seconds; the bot asks for thousands of models.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from hubbot import llamacpp
from hubbot.errors import ToolMissing

__all__ = [
    "class_of",
    "classes_of",
    "known_to_llama_cpp",
    "known_to_transformers",
    "other_purpose",
    "read_from",
    "sees_images",
]


def known_to_transformers(architecture: str) -> bool:
    """Whether AutoModelForCausalLM or AutoModelForImageTextToText builds this class, by its name in config.json, and it runs alone.

    Capitals do not count: the Hub has MPTForCausalLM and PhiMoEForCausalLM where transformers has MptForCausalLM and
    PhimoeForCausalLM, and finds them by `model_type`.
    """
    listed = sees_images(architecture) or architecture.lower() in _transformers("CAUSAL_LM")
    return listed and not _DRAFTS.search(architecture)


# What the classes of heads for speculative decoding are called by, whose states are another model's.
_DRAFTS = re.compile(r"Assistant|Eagle|Medusa|DFlash|Speculator")


# What a class of transformers does, by the table that it stands in; the first that has it counts.
_OTHERWISE = {
    "MODEL_FOR_MULTIMODAL_LM": "reads sounds or further kinds of input",
    "MODEL_FOR_SEQUENCE_CLASSIFICATION": "judges texts (a classifier or reward model)",
    "MODEL_FOR_TOKEN_CLASSIFICATION": "judges tokens",
    "MODEL_FOR_QUESTION_ANSWERING": "marks answers in a text",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM": "is an encoder-decoder",
    "MODEL_FOR_MASKED_LM": "fills gaps in a text (an encoder)",
    "MODEL_FOR_SPEECH_SEQ_2_SEQ": "writes down speech",
    "MODEL": "has no head that writes text (an encoder, or the base of an embedding model)",
}


def other_purpose(architecture: str) -> str | None:
    """What a class does that transformers or llama.cpp knows and that is no model of text, as the end of a sentence about it."""
    if _DRAFTS.search(architecture):
        return (
            "drafts tokens for another model, whose hidden states or keys and values it is given (speculative decoding)"
        )
    return next((does for table, does in _OTHERWISE.items() if architecture.lower() in _classes(table)), None)


def class_of(model_type: object) -> str | None:
    """The class that transformers builds a model of text, or of images and text, of this type with; None where it has none."""
    return next(iter(classes_of(model_type)), None)


def classes_of(model_type: object) -> tuple[str, ...]:
    """All such classes of this type: that of text first, then that of images and text."""
    tables = ("MODEL_FOR_CAUSAL_LM", "MODEL_FOR_IMAGE_TEXT_TO_TEXT")
    names = (_by_type(table).get(model_type, ()) for table in tables) if isinstance(model_type, str) else ()
    return tuple(dict.fromkeys(name for found in names for name in found))


def sees_images(architecture: str) -> bool:
    """Whether this class reads text and images: AutoModelForImageTextToText builds it, whatever else does."""
    return architecture.lower() in _transformers("IMAGE_TEXT_TO_TEXT")


def known_to_llama_cpp(architecture: str) -> bool:
    """Whether the converter of the pinned llama.cpp converts this class. Raises ToolMissing without one."""
    return architecture in _llama_cpp()


def read_from() -> str:
    """The releases whose tables these are: `transformers 5.23.0, llama-cpp-python 0.3.36`."""
    return f"transformers {metadata.version('transformers')}, llama-cpp-python {llamacpp.PIN}"


def _transformers(task: str) -> frozenset[str]:
    return _classes(f"MODEL_FOR_{task}")


@cache
def _classes(table: str) -> frozenset[str]:
    """Names of the classes in one of transformers' tables, without capitals."""
    return frozenset(name.lower() for names in _by_type(table).values() for name in names)


@cache
def _by_type(table: str) -> dict[str, tuple[str, ...]]:
    """One of transformers' tables: model type -> names of its classes; what it takes from another table is left out."""
    found = importlib.util.find_spec("transformers")
    if found is None or not found.submodule_search_locations:
        msg = "transformers is not installed. Run `pip install hubbot` again (`make setup` in a checkout)."
        raise ToolMissing(msg)
    source = Path(found.submodule_search_locations[0]) / "models" / "auto" / "modeling_auto.py"
    call = _assigned(source, f"{table}_MAPPING_NAMES")  # OrderedDict([(model type, class or classes), …])
    pairs = [node for node in ast.walk(call) if isinstance(node, ast.Tuple) and len(node.elts) == 2]
    read = [ast.literal_eval(pair) for pair in pairs if isinstance(pair.elts[0], ast.Constant)]
    return {kind: (names,) if isinstance(names, str) else tuple(names) for kind, names in read}


@cache
def _llama_cpp() -> frozenset[str]:
    source = llamacpp.find().source / "conversion" / "__init__.py"
    return frozenset(ast.literal_eval(_assigned(source, "TEXT_MODEL_MAP")))  # {class: module}


def _assigned(source: Path, name: str) -> Any:
    """The expression that a module assigns to a global name."""
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.Assign | ast.AnnAssign):
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return node.value
    msg = f"{source} assigns no {name}; this release keeps its list of architectures elsewhere. Install the pinned versions: `pip install hubbot` again (`make setup` in a checkout)."
    raise ToolMissing(msg)

"""generation_config.json: what transformers reads it as, and the numbers that it gives to a sampler.

Readers of a folder load it with the model, and llama.cpp's converter writes the numbers into the GGUF's header.
"""

from __future__ import annotations

from pathlib import Path

from hubbot.errors import SourceRefused
from hubbot.model.foreign import foreign
from hubbot.model.tokenizer import read_tokenizer_json

__all__ = ["check_generation"]

_FILE = "generation_config.json"
_WHOLE = "top_k penalty_last_n mirostat".split()
_NUMBERS = (
    "temperature top_p min_p xtc_probability xtc_threshold repetition_penalty penalty_repeat mirostat_tau mirostat_eta"
).split()


def check_generation(folder: Path) -> None:
    """Refuse one that stops transformers from loading the model, or a sampler of the wrong type.

    Raises SourceRefused with the key, or with what transformers says.
    """
    if not (folder / _FILE).is_file():
        return
    values = read_tokenizer_json(folder / _FILE)
    for keys, kinds, needed in ((_WHOLE, (int,), "whole number"), (_NUMBERS, (int, float), "number")):
        for key in keys:
            if (value := values.get(key)) is not None and type(value) not in kinds:
                msg = f"{key} of {_FILE} must be a {needed}; found {ascii(value)[:60]}. Correct it in a copy of the model, or ask the author."
                raise SourceRefused(msg)
    from transformers import GenerationConfig

    then = "Nobody can load the model with transformers beside it: correct it in a copy of the model, or take the file out."
    with foreign("transformers", f"read {_FILE}", then=then):
        GenerationConfig.from_pretrained(folder, local_files_only=True)

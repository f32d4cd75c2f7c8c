"""Every token id that a model's files speak of, against the rows of its embedding.

An id without a row ends a prompt in an IndexError in transformers, and llama.cpp drops its token in silence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hubbot.errors import SourceRefused
from hubbot.model.foreign import foreign
from hubbot.model.tokenizer import is_tiktoken, read_tokenizer_json

__all__ = ["check_named_ids", "check_vocabulary"]

_KEYS = (
    "bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id cls_token_id mask_token_id "
    "decoder_start_token_id forced_bos_token_id forced_eos_token_id suppress_tokens begin_suppress_tokens"
).split()


def check_named_ids(files: Mapping[str, Mapping[str, Any]], rows: int) -> None:
    """Refuse an id that config.json or generation_config.json names and the embedding has no row for.

    files: name -> what it says. rows: vocab_size of config.json. A negative id stands for none.
    Raises SourceRefused naming file, key, id and vocab_size.
    """
    for file, values in files.items():
        for key in _KEYS:
            for number in _ids(values.get(key), key, file):
                if number >= rows:
                    msg = (
                        f"{key} of {file} is {number}, and vocab_size of config.json is {rows:,}: the embedding has rows 0 to {rows - 1:,} only. "
                        f"Name another token in a copy of the model, or remove {key} from {file}; a token that a trainer added "
                        "needs a row (resize_token_embeddings)."
                    )
                    raise SourceRefused(msg)


def _ids(value: Any, key: str, file: str) -> Iterator[int]:
    for number in value if isinstance(value, list) else [] if value is None else [value]:
        if type(number) is not int:
            msg = f"{key} of {file} must be a whole number or a list of them; found {ascii(number)[:60]}. Correct it in a copy of the model."
            raise SourceRefused(msg)
        yield number


def check_vocabulary(folder: Path, known: Mapping[str, int], rows: int) -> None:
    """Refuse a token whose id has no row in the embedding.

    known: token -> id of the tokenizer as transformers reads it, which gives new ids to special tokens that the
    vocabulary lacks. rows: of the embedding. Raises SourceRefused naming the token, its id, the file and the rows.
    """
    spoken = [
        *_told(folder),
        *(("the tokenizer as transformers reads it", token, number) for token, number in known.items()),
    ]
    beyond = [(number, token, file) for file, token, number in spoken if not 0 <= number < rows]
    if beyond:
        number, token, file = beyond[0]
        count = len({number for number, _, _ in beyond})
        more = f" ({count} tokens in all, up to {max(beyond)[0]:,})" if count > 1 else ""
        msg = (
            f"{ascii(token)[:80]} has the id {number:,} in {file}{more}, and the embedding has {rows:,} rows, 0 to {rows - 1:,}: "
            "a prompt with it cannot be computed, and llama.cpp would drop it in silence. Take such tokens out of the "
            "tokenizer in a copy of the model, or ask the author for one whose embedding was resized."
        )
        raise SourceRefused(msg)


def _told(folder: Path) -> Iterator[tuple[str, str, int]]:
    """File, token and id of every token that the tokenizer's files list; a file that a reader would not take is left out."""
    files = {name: read_tokenizer_json(folder / name) for name in _JSON if (folder / name).is_file()}
    fast = files.get("tokenizer.json")
    if fast is not None:
        yield from (("tokenizer.json", *entry) for entry in _vocabulary(fast["model"].get("vocab")))
        yield from (("tokenizer.json", *entry) for entry in _added(fast.get("added_tokens")))
    elif "vocab.json" in files:
        yield from (("vocab.json", *entry) for entry in _pairs(files["vocab.json"].items()))
    yield from (("added_tokens.json", *entry) for entry in _pairs(files.get("added_tokens.json", {}).items()))
    decoder = files.get("tokenizer_config.json", {}).get("added_tokens_decoder")
    if isinstance(decoder, dict):
        yield from (
            ("tokenizer_config.json", str(entry.get("content")), int(number))
            for number, entry in decoder.items()
            if isinstance(entry, dict) and number.isdecimal() and len(number) < 19
        )
    for name in ("tokenizer.model", "spiece.model"):
        if (folder / name).is_file() and not is_tiktoken(folder / name):
            yield from ((name, piece, number) for number, piece in enumerate(_pieces(folder / name)))


_JSON = ("tokenizer.json", "vocab.json", "added_tokens.json", "tokenizer_config.json")


def _vocabulary(vocab: Any) -> Iterator[tuple[str, int]]:
    """Of BPE and WordPiece {token: id}, of Unigram [[token, score], …] in the order of ids."""
    if isinstance(vocab, dict):
        yield from _pairs(vocab.items())
    elif isinstance(vocab, list):
        yield from ((str(entry[0]), number) for number, entry in enumerate(vocab) if isinstance(entry, list) and entry)


def _added(tokens: Any) -> Iterator[tuple[str, int]]:
    for entry in tokens if isinstance(tokens, list) else ():
        if isinstance(entry, dict):
            yield from _pairs([(str(entry.get("content")), entry.get("id"))])


def _pieces(path: Path) -> list[str]:
    """Pieces of a SentencePiece model, which llama.cpp's converter reads in place of tokenizer.json."""
    from sentencepiece import SentencePieceProcessor

    with foreign("sentencepiece", f"read {path.name}", then="The file is damaged or of another type; fetch it again."):
        model = SentencePieceProcessor(model_file=str(path))
        return [model.id_to_piece(number) for number in range(model.vocab_size())]


def _pairs(entries: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, int]]:
    return ((token, number) for token, number in entries if type(number) is int)

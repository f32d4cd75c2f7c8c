"""llama.cpp's converter, run in this process and stopped before it reads a weight.

It gives the tensors of the GGUF (names, shapes, the type they have in a converted file, and a lazy
graph for their values) and the metadata. Never re-implement an architecture here: what the converter
does not know is Unsupported.
"""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from hubbot import llamacpp
from hubbot.errors import HubbotError, Unsupported
from hubbot.formats.gguf import codec
from hubbot.formats.gguf.graph import leaf_tensor, leaves_of
from hubbot.formats.gguf.pieces import sentencepiece_model
from hubbot.formats.gguf.published import as_published, name_for
from hubbot.model.config import read_values
from hubbot.model.own_tokenizer import held_tokenizer
from hubbot.model.released import unquantized
from hubbot.model.tokenizer import is_tiktoken

__all__ = ["NEXT", "Captured", "Converted", "TensorFact", "convert", "convert_vision", "lossless_type"]


_QUANTIZED = "hf_quant_config.json"
NEXT = (
    "GGUF variants cannot be made of it with this version of llama.cpp; leave them out of --variants, or use a model whose "
    "architecture and tokenizer llama.cpp knows."
)


class TensorFact(Protocol):
    """What is known of a checkpoint tensor before it is read (intake's TensorInfo)."""

    @property
    def dtype(self) -> str: ...  # as safetensors writes it: "BF16"

    @property
    def shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
    """One tensor of the GGUF, before it is encoded."""

    name: str  # llama.cpp's name, "blk.0.attn_q.weight"
    shape: tuple[int, ...]  # row-major; the last is ggml's ne[0]
    kind: int  # its ggml type in the converted, not quantized file
    value: Any  # lazy graph or array, float32
    leaves: tuple[str, ...]  # checkpoint tensors it is made of; empty for generated tensors

    @property
    def columns(self) -> int:
        return self.shape[-1]

    @property
    def rows(self) -> int:
        count = 1
        for size in self.shape[:-1]:
            count *= size
        return count

    @property
    def weights(self) -> int:
        return self.rows * self.columns


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """A model as the converter sees it."""

    tensors: tuple[Captured, ...]  # in the converter's order
    metadata: Mapping[str, Any]  # key -> gguf.gguf_writer.GGUFValue, in the converter's order
    architecture: str  # llama.cpp's name: "llama", "qwen3"
    warnings: tuple[str, ...]  # what the converter logged as warning or error

    def named(self, name: str) -> Captured:
        return next(tensor for tensor in self.tensors if tensor.name == name)


def lossless_type(tensors: Mapping[str, TensorFact]) -> int:
    """The ggml type of a converted file that loses nothing: BF16 or F16 where every matrix has it, else F32."""
    dtypes = {fact.dtype for fact in tensors.values() if len(fact.shape) >= 2}
    return {frozenset({"BF16"}): codec.BF16, frozenset({"F16"}): codec.F16}.get(frozenset(dtypes), codec.F32)


def convert(
    folder: Path, tensors: Mapping[str, TensorFact], read: Callable[[str], torch.Tensor], *, name: str | None = None
) -> Converted:
    """Run the converter over a snapshot; no weight is read.

    tensors: checkpoint name -> dtype and shape. read: gives a tensor, should the converter insist.
    name: the model's name; the converter derives metadata from it where the card says nothing.
    Raises Unsupported for an architecture, tokenizer or layout that the converter does not know.
    """
    llamacpp.conversion()
    import gguf

    kind = lossless_type(tensors)
    outtypes = {codec.BF16: gguf.LlamaFileType.MOSTLY_BF16, codec.F16: gguf.LlamaFileType.MOSTLY_F16}
    outtype = outtypes.get(kind, gguf.LlamaFileType.ALL_F32)
    with _converting(folder, tensors, read, name) as (named, heard):
        model = _instance(named, outtype, tensors)
        model.prepare_tensors()
        values = model
        if outtype != gguf.LlamaFileType.ALL_F32:  # the same graphs again, not rounded to the file's type
            values = _instance(named, gguf.LlamaFileType.ALL_F32, tensors)
            values.prepare_tensors()
        model.prepare_metadata(vocab_only=False)
        if not any(key.endswith(".pooling_type") for key in model.gguf_writer.kv_data[0]):
            model._try_set_pooling_type()  # which only some classes do; llama.cpp pools for every architecture
        return _converted(model, values, heard)


def convert_vision(
    folder: Path,
    tensors: Mapping[str, TensorFact],
    read: Callable[[str], torch.Tensor],
    *,
    kind: Literal["F16", "Q8_0"],
    name: str | None = None,
) -> Converted:
    """The part of the model that sees images, as `convert_hf_to_gguf.py --mmproj --outtype KIND` writes it.

    The values come to the very bytes of the file. Arguments and errors as for `convert`.
    """
    llamacpp.conversion()
    import gguf

    with _converting(folder, tensors, read, name) as (named, heard):
        model = _instance(named, gguf.LlamaFileType[f"MOSTLY_{kind}"], tensors, vision=True)
        model.prepare_tensors()
        model.prepare_metadata(vocab_only=False)
        return _converted(model, model, heard)


def _converted(model: Any, values: Any, heard: Sequence[str]) -> Converted:
    """values: the model object whose graphs are kept."""
    kinds = {key: (tuple(info.shape), int(info.dtype)) for key, info in model.gguf_writer.tensors[0].items()}
    graphs = {key: info.tensor for key, info in values.gguf_writer.tensors[0].items()}
    captured = tuple(
        Captured(name=key, shape=shape, kind=kind, value=graphs[key], leaves=leaves_of(graphs[key]))
        for key, (shape, kind) in kinds.items()
    )
    return Converted(
        tensors=captured,
        metadata=_packable(model.gguf_writer),
        architecture=model.gguf_writer.arch,
        warnings=tuple(heard),
    )


def _packable(writer: Any) -> dict[str, Any]:
    """The writer's keys. Raises ValueError where one has no place in a file: None for a number, say, off config.json."""
    found = {key: _in_words(held) if key in _WORDS else held for key, held in writer.kv_data[0].items()}
    for key, held in found.items():
        if key.startswith("tokenizer."):  # made by gguf-py itself, and long
            continue
        try:
            writer._pack_val(held.value, held.type, add_vtype=True, sub_type=held.sub_type)
        except Exception as error:
            msg = f"it has {held.value!r} for {key}: {error}"
            raise ValueError(msg) from error
    return found


# What a card lists in words, and YAML takes for numbers, dates and truths: a tag `3.1`, Norwegian as `no`.
_WORDS = ("general.tags", "general.languages")


def _in_words(held: Any) -> Any:
    words = ["no" if word is False else str(word) for word in held.value]
    return type(held)(words, held.type, held.sub_type)


@contextmanager
def _converting(
    folder: Path, tensors: Mapping[str, TensorFact], read: Callable[[str], torch.Tensor], name: str | None
) -> Iterator[tuple[Path, list[str]]]:
    """Inside, the converter can be run over the folder that is given, and what it says is collected."""
    with (
        _listening() as heard,
        _own_code_only(),
        torch.inference_mode(),
        _explained(folder, heard),
        _called(folder, name) as named,
        _given_the_tokenizer(folder, named),
        _standing_in(tensors, read),
    ):
        yield named, heard


def _instance(folder: Path, outtype: Any, tensors: Iterable[str], *, vision: bool = False) -> Any:
    """The converter's model object, made as convert_hf_to_gguf.py makes it: the class finds its own parameters."""
    from conversion import get_model_class
    from conversion.base import ModelBase, ModelType, get_model_architecture

    kind = ModelType.MMPROJ if vision else ModelType.TEXT
    family = get_model_class(get_model_architecture(ModelBase.load_hparams(folder, False), kind), mmproj=vision)
    if hasattr(family, "opt_num_mtp_layers") or hasattr(family, "_n_nextn"):
        # Qwen3-Next, 3.5 and MiMo count on prediction heads unless told of none
        family.no_mtp = not any(name.removeprefix("model.").startswith("mtp.") for name in tensors)
    # Dots 3 looks for the text's sizes before it has them
    found = {} if vision or family.index_tensors is ModelBase.index_tensors else ModelBase.load_hparams(folder, False)
    more = {"hparams": {**found["text_config"], **found}} if "text_config" in found else {}
    made = family(folder, outtype, folder, **more)  # a folder as output name: the converter only derives a name from it
    return getattr(made, "impl", made)  # Mistral 3's class chooses another one, and has that write the file


@contextmanager
def _standing_in(tensors: Mapping[str, TensorFact], read: Callable[[str], torch.Tensor]) -> Iterator[None]:
    """Lazy stand-ins in the place of the checkpoint's tensors, and the parameters that transformers 5 has moved.

    The base class' ways are replaced, since a class' own call them and change what they give.
    """
    from conversion.base import LazyTorchTensor, ModelBase

    load, index = ModelBase.load_hparams, ModelBase.index_tensors

    def index_tensors(self: Any, remote_hf_model_id: str | None = None) -> dict[str, Any]:  # noqa: ARG001
        found = {}
        name = name_for(self, tensors)
        for key, fact in tensors.items():
            leaf = leaf_tensor(key, LazyTorchTensor._dtype_str_map[fact.dtype], tuple(fact.shape), read)
            kept = self.filter_tensors((name(key), lambda leaf=leaf: leaf))
            if kept:
                found[kept[0]] = kept[1]
        return found

    def load_hparams(folder: Path, *more: Any, **options: Any) -> dict[str, Any]:
        return unquantized(as_published(load(folder, *more, **options), read_values(folder / "config.json")))

    ModelBase.index_tensors, ModelBase.load_hparams = index_tensors, staticmethod(load_hparams)
    try:
        yield
    finally:
        ModelBase.index_tensors, ModelBase.load_hparams = index, staticmethod(load)


@contextmanager
def _called(folder: Path, name: str | None) -> Iterator[Path]:
    """The folder under the model's own name: the converter reads name, version and size off the path."""
    others = _for_converter(folder)
    if not others and (name is None or folder.name == name):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="hubbot-gguf-") as shelter:
        link = Path(shelter) / (name or folder.name)
        if others:
            _link_files(folder.resolve(), link, others)
        else:
            link.symlink_to(folder.resolve(), target_is_directory=True)
        yield link


def _for_converter(folder: Path) -> dict[str, bytes | None]:
    """The files that the converter sees otherwise than the folder has them; None: not at all.

    A SentencePiece model where tokenizer.json says one and the folder has none. Nothing of what another tool says of a
    quantization, for the weights that the converter is given are whole. No vocabulary of tiktoken's under SentencePiece's
    name. No id below zero, which stands for none and which the converter stops at. A card that all is UTF-8.
    """
    found: dict[str, bytes | None] = {}
    if (made := sentencepiece_model(folder)) is not None:
        found["tokenizer.model"] = made
    elif is_tiktoken(folder / "tokenizer.model"):
        found["tokenizer.model"] = None
    if (folder / _QUANTIZED).exists():
        found[_QUANTIZED] = None
    card = folder / "README.md"
    if card.is_file() and (text := (data := card.read_bytes()).decode("utf-8", "replace").encode()) != data:
        found["README.md"] = text
    config = _without_negative_ids(read_values(folder / "config.json"))
    if config != json.loads((folder / "config.json").read_bytes()):
        found["config.json"] = json.dumps(config).encode()
    return found


def _without_negative_ids(config: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in config.items() if not (key.endswith("_token_id") and _negative(value))}
    if isinstance(kept.get("text_config"), dict):
        kept["text_config"] = _without_negative_ids(kept["text_config"])
    return kept


def _negative(value: object) -> bool:
    return isinstance(value, int) and value < 0


def _link_files(folder: Path, into: Path, others: Mapping[str, bytes | None]) -> None:
    into.mkdir()
    for path in folder.iterdir():
        if path.name not in others:
            (into / path.name).symlink_to(path)
    for name, data in others.items():
        if data is not None:
            (into / name).write_bytes(data)


@contextmanager
def _listening() -> Iterator[list[str]]:
    """The converter's log, warnings and worse collected, nothing printed."""
    heard: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage().strip(" *\n")
            if text:
                heard.append(text)

    names = ("hf-to-gguf", "gguf", "gguf.gguf_writer", "gguf.vocab", "gguf.lazy", "metadata", "conversion")
    loggers = [logging.getLogger(name) for name in names]
    before = [(logger, logger.level, logger.propagate) for logger in loggers]
    handler = Collect(logging.WARNING)
    for logger in loggers:
        logger.setLevel(logging.WARNING)
        logger.propagate = False
        logger.addHandler(handler)
    try:
        yield heard
    finally:
        for logger, level, propagate in before:
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate


@contextmanager
def _own_code_only() -> Iterator[None]:
    """The converter asks transformers to trust code in the model's folder; hubbot never does."""
    from transformers import AutoConfig, AutoTokenizer

    originals = {kind: kind.__dict__["from_pretrained"] for kind in (AutoConfig, AutoTokenizer)}

    def distrusting(load: Any) -> Any:
        def from_pretrained(*args: Any, **kwargs: Any) -> Any:
            return load(*args, **{**kwargs, "trust_remote_code": False})

        return staticmethod(from_pretrained)

    try:
        for kind in originals:
            kind.from_pretrained = distrusting(kind.from_pretrained)
        yield
    finally:
        for kind, original in originals.items():
            kind.from_pretrained = original


@contextmanager
def _given_the_tokenizer(folder: Path, named: Path) -> Iterator[None]:
    """The tokenizer that others have loaded of the same files, which the converter only looks at; else one of its own.

    To that is told what tokenizer_config.json says of a first token: transformers 5 passes over it beside a tokenizer.json, and
    DeepSeek's converter insists on the property; texts are cut as without it.
    """
    from transformers import AutoTokenizer

    path = folder / "tokenizer_config.json"
    first = path.is_file() and bool(read_values(path).get("add_bos_token"))
    whole = named.resolve() == folder.resolve()
    original, load = AutoTokenizer.__dict__["from_pretrained"], AutoTokenizer.from_pretrained

    def from_pretrained(where: str | Path, *args: Any, **kwargs: Any) -> Any:
        held = held_tokenizer(folder) if whole and not first and Path(where) == named else None
        if held is not None and not args and kwargs.keys() <= {"trust_remote_code"}:
            return held
        loaded = load(where, *args, **kwargs)
        if first:
            object.__setattr__(
                loaded, "_add_bos_token", True
            )  # the property's setter would have it cut texts otherwise
        return loaded

    AutoTokenizer.from_pretrained = staticmethod(from_pretrained)
    try:
        yield
    finally:
        AutoTokenizer.from_pretrained = original


@contextmanager
def _explained(folder: Path, heard: list[str]) -> Iterator[None]:
    """What the converter raises, told as Unsupported with the step that does not know it."""
    try:
        yield
    except HubbotError:
        raise
    except Exception as error:
        # a converter of a hundred architectures raises whatever its code meets: KeyError, AssertionError, …
        words = " ".join(str(error).split()) or type(error).__name__
        step = _step(words, heard)
        msg = (
            f"llama.cpp's converter cannot handle {folder.name}: {step} ({type(error).__name__}: {words[:400]}). {NEXT}"
        )
        raise Unsupported(msg) from error


def _step(said: str, heard: Sequence[str]) -> str:
    """heard: the converter's log, which has the hash of a pre-tokenizer alone."""
    if "pre-tokenizer" in said:
        hashed = re.search(r"chkhsh:\s*([0-9a-f]{64})", "\n".join(heard))
        return f"it does not recognize the BPE pre-tokenizer{f', whose hash is {hashed[1]}' if hashed else ''}"
    if "mistral-common" in said:
        return "it reads a vocabulary that is in tekken.json alone by Mistral's own library, which is not here; with a tokenizer.json of the same vocabulary beside it, in a copy of the model, it needs none"
    if said.startswith("Architecture") or "architecture" in said:
        return "it does not know the architecture"
    if "Can not map tensor" in said:
        return "it does not know one of the checkpoint's tensors"
    if "trust_remote_code" in said:
        return "the model needs code of its own, which is never run"
    if "tokenizer" in said.lower() or "vocab" in said.lower():
        return "it cannot read the tokenizer"
    return "it stopped"

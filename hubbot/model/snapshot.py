"""Which files of a model's folder are looked at, and which of them hold the weights.

A folder is refused for a link that leads out of it, for special files, and for names that a shell, a
terminal or a card could trip over.
"""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path

from hubbot.errors import SourceNotFound, SourceRefused, UnsafeSource
from hubbot.model.safetensors import TensorInfo, read_header
from hubbot.model.strict_json import object_of, read_object

__all__ = ["is_head", "no_weights", "plain_name", "read_tensors", "refuse_pointers", "require_weights", "visible_files"]

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_MOST_FILES = 10_000
_DEEPEST = 6
_LARGEST_INDEX = 32 * 2**20  # bytes; DeepSeek-V3's has 9 MB
_LARGEST_POINTER = 1_024  # bytes, the limit of Git LFS
_READ = (".safetensors", ".bin", ".json", ".jinja", ".model", ".txt", ".md")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_OF_OTHERS = (".onnx", ".msgpack", ".h5")  # ONNX, Flax, TensorFlow
_OF_TRAINING = frozenset(
    {"training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.bin", "scheduler.pt", "rng_state.pth"}
)


def visible_files(folder: Path) -> dict[str, Path]:
    """Every file of the snapshot by its path with forward slashes; hidden files and folders are not looked at.

    Raises SourceNotFound where there is no folder, UnsafeSource for links out of it and special files.
    """
    if not folder.is_dir():
        msg = f"{folder} is no folder. Give the folder that holds config.json and the safetensors, or a Hub id such as org/name."
        raise SourceNotFound(msg)
    root = folder.resolve()
    files: dict[str, Path] = {}
    waiting = [(root, 0)]
    seen = 0
    while waiting:
        place, depth = waiting.pop()
        with os.scandir(place) as entries:
            found = list(islice(entries, _MOST_FILES + 1))
        seen += len(found)
        if seen > _MOST_FILES or depth > _DEEPEST:
            msg = f"{folder} holds more than {_MOST_FILES:,} files or folders deeper than {_DEEPEST} levels. Give the model's own folder."
            raise UnsafeSource(msg)
        for entry in found:
            if entry.name.startswith("."):
                continue
            path = Path(entry.path)
            kind = _kind(path, root)
            if stat.S_ISDIR(kind):
                waiting.append((path, depth + 1))
            else:
                files[path.relative_to(root).as_posix()] = path
    return dict(sorted(files.items()))


def refuse_pointers(files: Mapping[str, Path]) -> None:
    """Raise SourceRefused for a file that `git clone` without Git LFS has left a pointer of, among those that are read."""
    for name, path in files.items():
        if not name.endswith(_READ) or path.stat().st_size > _LARGEST_POINTER:
            continue
        if path.read_bytes().startswith(b"version https://git-lfs.github.com/spec/"):
            msg = f"{name} is a pointer of Git LFS, of {path.stat().st_size} bytes, and not the file that it stands for. Fetch that with `git lfs pull` in the model's folder, or give the Hub id."
            raise SourceRefused(msg)


def _kind(path: Path, root: Path) -> int:
    """The mode of a file or folder, after the checks that every one must pass."""
    shown = ascii(path.relative_to(root).as_posix())[1:-1]
    if not _printable(path.name):
        msg = f"The file name {shown!r} holds control characters or is not valid UTF-8. Such names are refused."
        raise UnsafeSource(msg)
    if path.is_symlink():
        target = Path(os.path.realpath(path))  # of links that go round, one of them; Path.resolve() raises
        if not target.is_relative_to(root):
            msg = f"{shown} is a symbolic link that leaves the model's folder. Copy the folder with its links followed (cp -rL), or give the Hub id."
            raise UnsafeSource(msg)
        if target.is_dir():
            msg = f"{shown} is a symbolic link to a folder. Only links to files inside the model's folder are followed."
            raise UnsafeSource(msg)
    try:
        mode = path.stat().st_mode
    except OSError:
        msg = f"{shown} is a symbolic link that leads nowhere or round in a ring. Fetch the model again."
        raise SourceRefused(msg) from None
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        msg = f"{shown} is neither a file nor a folder but a device, pipe or socket. A model has no use for one."
        raise UnsafeSource(msg)
    return mode


def _printable(name: str) -> bool:
    return not any(unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") for character in name)


def plain_name(name: object) -> bool:
    """Whether a file name from an index stays in the folder on every system."""
    return (
        isinstance(name, str)
        and 0 < len(name) <= 255
        and _printable(name)
        and not name.startswith(".")
        and not any(character in name for character in '/\\:*?"<>|')
    )


def read_tensors(files: dict[str, Path], *, tied: bool = False) -> dict[str, TensorInfo]:
    """Every tensor of the checkpoint, by the header of its own file.

    tied: the index may name an output head that no file stores, as older savers of tied models wrote it.
    Raises SourceRefused where there are no safetensors or some are missing, UnsafeSource where the
    index and the files do not say the same.
    """
    shards = _shards(files)
    strays = [
        name
        for name in files
        if name.startswith("model") and name.endswith(".safetensors") and "/" not in name and name not in shards
    ]
    if strays:
        msg = f"{strays[0]} lies beside the weights but the checkpoint does not name it, so that two readers would see different models. Remove it from a copy of the folder."
        raise UnsafeSource(msg)
    tensors: dict[str, TensorInfo] = {}
    for shard, listed in shards.items():
        held = read_header(files[shard])
        if twice := held.keys() & tensors.keys():
            msg = f"{min(twice)} is stored in {tensors[min(twice)].file} and again in {shard}; every tensor must be stored once."
            raise UnsafeSource(msg)
        absent = set() if listed is None else {name for name in listed - held.keys() if not (tied and is_head(name))}
        if name := min(absent | (held.keys() - (listed or held.keys())), default=None):
            says = "names a tensor that is not in" if name in absent else "leaves out a tensor of"
            msg = f"{INDEX} {says} {shard}: {name[:200]}. Index and files must agree: fetch the model again or, if its repo is so, load it with transformers and save it again."
            raise UnsafeSource(msg)
        tensors |= held
    if not tensors:
        msg = "The safetensors hold no tensor at all. Check that this is the model's folder."
        raise SourceRefused(msg)
    return tensors


def require_weights(files: dict[str, Path]) -> None:
    """Raise SourceRefused where neither safetensors nor their index are here, with what is."""
    if SINGLE not in files and INDEX not in files:
        raise SourceRefused(no_weights(files))


def is_head(name: str) -> bool:
    """Whether a tensor is of an output head, by the names that architectures give it."""
    return name.split(".")[-2:-1] in (["lm_head"], ["embed_out"], ["output"])


def _shards(files: dict[str, Path]) -> dict[str, set[str] | None]:
    """Files of weights in order, each with the tensors that the index says are in it (None: no index)."""
    if SINGLE in files:
        return {SINGLE: None}
    require_weights(files)
    index = read_object(files[INDEX], largest=_LARGEST_INDEX, most_values=1_000_000)
    shards: dict[str, set[str]] = {}
    for tensor, shard in object_of(index.get("weight_map"), f"weight_map of {INDEX}").items():
        if not plain_name(shard):
            msg = f"{INDEX} puts a tensor into the file {ascii(shard)[:120]}. A plain name of a file in the model's folder is needed."
            raise UnsafeSource(msg)
        shards.setdefault(shard, set()).add(tensor)
    missing = [shard for shard in shards if shard not in files]
    if missing:
        msg = f"{len(missing)} of {len(shards)} files that {INDEX} names are missing, {missing[0]} first. Fetch the model whole; if its repo lacks them, only the author can mend that."
        raise SourceRefused(msg)
    return {shard: shards[shard] for shard in sorted(shards)}


def no_weights(files: Iterable[str]) -> str:
    """Why a folder or repo of these files is refused, which has no weights where they are looked for, as specific as the names allow."""
    names = [name for name in files if name not in _OF_TRAINING]
    stored = [name for name in names if name.endswith(".safetensors")]
    folders = sorted({name.rpartition("/")[0] for name in stored if name.endswith((f"/{SINGLE}", f"/{INDEX}"))})
    if "adapter_config.json" in names:
        return "This is an adapter of PEFT (LoRA and its like), not a whole model: adapter_config.json is here and no full weights are. Merge it into its base model first and give the merged one."
    if "model_index.json" in names:
        return "This is a pipeline of diffusers, not a language model. Give a model with config.json and model.safetensors."
    if shard := next(filter(_SHARD.fullmatch, stored), None):
        return f"{INDEX} is missing, which says what each shard ({shard}, …) holds. Fetch the model whole, or load it with transformers and save it again."
    if folders:
        return f"No weights are here but in the folder{'s' if len(folders) > 1 else ''} {', '.join(map(ascii, folders[:3]))}. Give one model's own folder, with its config.json and tokenizer."
    if any(name.endswith(".gguf") for name in names) and not stored:
        return "Only GGUF files are here, which are already quantized or converted. Give the original model with its safetensors."
    if any(name.endswith(_PICKLES) for name in names) and not stored:
        return "Only pickle files are here (.bin or .pt), and unpickling a stranger's file can run code. Ask the author for safetensors, or pass --allow-pickle to read them with torch's weights-only loader."
    if other := next(iter([*stored, *(name for name in names if name.endswith(_OF_OTHERS))]), None):
        return f"Neither {SINGLE} nor {INDEX} is here, but weights under another name, {ascii(other)[:100]}. The layout that transformers writes is needed: {_advice_on(other)}."
    return f"No weights are here: neither {SINGLE} nor {INDEX}. Check that this is the model's own repo or folder, and whole."


def _advice_on(name: str) -> str:
    """What to do about weights of this name."""
    if name.endswith(_OF_OTHERS):
        return "files of ONNX, TensorFlow and Flax are not read, so ask the author for safetensors"
    if name.startswith("consolidated"):
        return "this is that of the author's own program, so take the model's repo for transformers, or convert it with transformers"
    return f"if that file holds the whole model under the names that transformers gives, call it {SINGLE} in a copy of the folder"

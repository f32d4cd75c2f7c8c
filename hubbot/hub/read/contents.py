"""Which files of a model repo are needed, and which are left where they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hubbot.errors import SourceRefused, UnsafeSource
from hubbot.model.companions import check_companions, is_fetched
from hubbot.model.snapshot import no_weights, plain_name
from hubbot.model.strict_json import object_of, parse_object

__all__ = ["INDEX", "LARGEST_TEXT", "PICKLE_INDEX", "RemoteFile", "needed_files"]

INDEX = "model.safetensors.index.json"
PICKLE_INDEX = "pytorch_model.bin.index.json"
LARGEST_INDEX = 32 * 2**20  # bytes, as the intake allows
_MOST_SHARDS = 2_000  # each costs a plan a request; the largest models have 200
LARGEST_TEXT = 256 * 2**20  # bytes of any file that holds no weights; the largest tokenizers have 35 MB


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A file as the Hub describes it at one commit."""

    path: str
    size: int  # bytes
    sha256: str | None  # of large files
    blob_id: str | None  # git's SHA-1 of "blob SIZE\\0" and the content; of a large file's pointer, so of no use there

    @property
    def is_weights(self) -> bool:
        return self.path.endswith((".safetensors", ".bin", ".pt", ".pth"))


def needed_files(
    files: Iterable[RemoteFile], read: Callable[[RemoteFile], bytes], *, allow_pickle: bool = False
) -> tuple[RemoteFile, ...]:
    """The files of a repo that make the model, companions first.

    read: fetches the bytes of a small file; asked for the index of a sharded checkpoint alone.
    Raises SourceRefused without safetensors (pickles count with allow_pickle), UnsafeSource for an index
    that names other files than the repo's own and for too much beside the weights.
    """
    by_path = {file.path: file for file in files}
    weights = _weights(by_path, read, "model.safetensors", INDEX)
    if not weights and allow_pickle:
        weights = _weights(by_path, read, "pytorch_model.bin", PICKLE_INDEX)
    if not weights:
        raise SourceRefused(no_weights(by_path))
    companions = [file for file in by_path.values() if is_fetched(file.path)]
    for file in companions:
        if file.size > LARGEST_TEXT:
            msg = f"{file.path} has {file.size:,} bytes; at most {LARGEST_TEXT:,} are fetched of a file that holds no weights."
            raise UnsafeSource(msg)
    check_companions({file.path: file.size for file in companions if file not in weights})
    return (*companions, *weights)


def _weights(
    files: dict[str, RemoteFile], read: Callable[[RemoteFile], bytes], single: str, index: str
) -> list[RemoteFile]:
    """One file, or an index and its shards: the order in which transformers looks."""
    if single in files:
        return [files[single]]
    return [files[index], *_shards(files, files[index], read)] if index in files else []


def _shards(files: dict[str, RemoteFile], index: RemoteFile, read: Callable[[RemoteFile], bytes]) -> list[RemoteFile]:
    if index.size > LARGEST_INDEX:
        msg = f"{index.path} has {index.size:,} bytes; at most {LARGEST_INDEX:,} are read. Such a file is no honest part of a model."
        raise UnsafeSource(msg)
    values = parse_object(read(index), name=index.path, most_values=2_000_000)
    names = sorted({*map(str, object_of(values.get("weight_map"), f"{index.path}: weight_map").values())})
    if len(names) > _MOST_SHARDS:
        msg = f"{index.path} names {len(names):,} files of weights; at most {_MOST_SHARDS:,} are read. Save the model in larger shards."
        raise UnsafeSource(msg)
    for name in names:
        if not plain_name(name):
            msg = f"{index.path} names {name[:200]!a}, which is no plain file name. An index may name files of the repo's own folder only."
            raise UnsafeSource(msg)
        if name not in files:
            msg = f"{index.path} names {name}, which the repo does not hold. The upload is unfinished; wait for its author or take another revision."
            raise SourceRefused(msg)
    return [files[name] for name in names]

"""Encoding a tensor into all its types at once, on all cores.

Work is cut into chunks of rows. A chunk is turned to float32 once, encoded into every type that some
file wants, and written to its place in those files: nothing is held but the chunk. Chunks of all
tensors go through one queue, so no core waits where one tensor ends and the next begins.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hubbot.formats.gguf import codec
from hubbot.formats.gguf.store import GgufFile

__all__ = ["EncodingQueue", "Job", "RawRows", "as_floats"]

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

_CHUNK = 2**15  # weights in a chunk: float32 of it stays in a core's cache, and the last chunk ends soon
_WAITING = 3  # evaluated tensors that may wait for a core: bounds memory

_RAW_KINDS = {torch.float32: codec.F32, torch.float16: codec.F16, torch.bfloat16: codec.BF16}


@dataclass(frozen=True, slots=True)
class RawRows:
    """A matrix of floats as it lies in memory: uint8 [rows, bytes of a row], and its ggml type."""

    data: Bytes
    kind: int

    @classmethod
    def of(cls, rows: torch.Tensor) -> RawRows:
        """View float rows, or a copy of them where they lie on a card."""
        return cls(rows.detach().cpu().contiguous().view(torch.uint8).numpy(), _RAW_KINDS[rows.dtype])


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One tensor of the GGUF, to be encoded."""

    name: str
    rows: torch.Tensor  # [count, columns], float32, float16 or bfloat16, on any device
    kind: int  # its type in a converted file: values are rounded to it first, as the usual chain does
    targets: Mapping[int, Sequence[GgufFile]]  # type -> the files that hold the tensor in it
    importance: Floats | None  # [columns], or [experts, columns] where the rows are those of one expert after another

    def weight_of(self, start: int) -> Floats | None:
        """The importance of the features of a row."""
        if self.importance is None or self.importance.ndim == 1:
            return self.importance
        vector: Floats = self.importance[start // self.rows_of_expert]
        return vector

    def chunks(self, most: int) -> list[tuple[int, int]]:
        """Ranges of at most so many rows; none crosses from one expert to the next."""
        whole = self.rows_of_expert
        return [
            (start, min(start + most, first + whole))
            for first in range(0, self.count, whole)
            for start in range(first, first + whole, most)
        ]

    @property
    def rows_of_expert(self) -> int:
        return self.count // (len(self.importance) if self.importance is not None and self.importance.ndim > 1 else 1)

    @property
    def count(self) -> int:
        return int(self.rows.shape[0])

    @property
    def columns(self) -> int:
        return int(self.rows.shape[1])


def _fresh(_name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    return np.empty(shape, dtype)


def as_floats(job: Job, raw: RawRows, buffer: Callable[..., npt.NDArray[Any]] = _fresh) -> Floats:
    """Rows of a job in float32, rounded to the type of a converted file first.

    buffer: name, shape, dtype -> a scratch array. Raises ValueError for what is no number.
    """
    codec.require_finite(raw.kind, raw.data)
    count = raw.data.shape[0]
    if raw.kind == codec.F32:
        values: Floats = raw.data.view(np.float32)
    else:
        values = buffer("floats", (count, job.columns), np.float32)
        codec.decode_rows(raw.kind, raw.data.reshape(-1), values)
    if job.kind in (codec.F32, raw.kind):
        return values
    rounded = buffer("rounded", (count, 2 * job.columns), np.uint8)
    codec.encode_rows(job.kind, values, rounded)
    values = buffer("floats", (count, job.columns), np.float32)
    codec.decode_rows(job.kind, rounded.reshape(-1), values)
    return values


class EncodingQueue:
    """The cores, and what they have to do."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="gguf")
        self._buffers = threading.local()
        self._room = threading.Semaphore(_WAITING)
        self._running: list[Future[None]] = []

    def submit(self, make: Callable[[], Job]) -> None:
        """Make a job as soon as there is room, and hand its chunks to the cores."""
        self._room.acquire()
        try:
            job = make()
            rows = RawRows.of(job.rows)
            for kind in job.targets:
                codec.prepare(kind)
            chunks = job.chunks(max(1, _CHUNK // job.columns))
            left = _Countdown(len(chunks), self._room.release)
        except BaseException:
            self._room.release()
            raise
        for start, stop in chunks:
            self._running.append(self._pool.submit(self._chunk, job, rows, start, stop, left))

    def wait(self) -> None:
        """Wait until everything submitted is written. Raises the first error of a chunk."""
        running, self._running = self._running, []
        wait(running)
        for future in running:
            future.result()

    def forget(self) -> None:
        """Nothing is kept here; see CardQueue."""

    def kept(self, name: str, kind: int, *, weighed: bool) -> torch.Tensor | None:  # noqa: ARG002 - CardQueue's
        """Encoded bytes are in the files alone."""
        return None

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _chunk(self, job: Job, rows: RawRows, start: int, stop: int, left: _Countdown) -> None:
        try:
            raw = RawRows(rows.data[start:stop], rows.kind)
            values = as_floats(job, raw, self._buffer)
            for kind, files in job.targets.items():
                data = self._encoded(job, raw, values, kind, start)
                for file in files:
                    file.write_rows(job.name, start, data)
        except ValueError as error:
            msg = f"{job.name}, rows {start} to {stop}: {error}"
            raise ValueError(msg) from error
        finally:
            left.one_less()

    def _encoded(self, job: Job, raw: RawRows, values: Floats, kind: int, start: int) -> Bytes:
        if kind == job.kind == raw.kind:
            return raw.data.reshape(-1)
        data = self._buffer("encoded", (len(values) * codec.row_bytes(kind, job.columns),), np.uint8)
        codec.encode_rows(kind, values, data, job.weight_of(start))
        return data

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """A scratch array of this thread, used again from chunk to chunk."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        buffer = getattr(self._buffers, name, None)
        if buffer is None or buffer.size < size:
            buffer = np.empty(size, np.uint8)
            setattr(self._buffers, name, buffer)
        scratch: npt.NDArray[Any] = buffer[:size].view(dtype).reshape(shape)
        return scratch


class _Countdown:
    """Calls back when the last of `count` chunks is through."""

    def __init__(self, count: int, then: Callable[[], None]) -> None:
        self._count = count
        self._then = then
        self._lock = threading.Lock()

    def one_less(self) -> None:
        with self._lock:
            self._count -= 1
            done = self._count == 0
        if done:
            self._then()

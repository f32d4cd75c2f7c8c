"""A tensor on a card through all its types: one stream a type, bytes through pinned memory to writers.

Nothing waits per tensor: a writer waits for the copy of its own bytes. What the card cannot encode goes to the cores.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace

import torch

from hubbot.formats.gguf import codec
from hubbot.formats.gguf.cuda.codec import LOST, CardCodec, CardFloats, card_codec, card_codecs
from hubbot.formats.gguf.cuda.rows import FLOATS, floats
from hubbot.formats.gguf.encode import EncodingQueue, Job
from hubbot.machine.room import room_on

__all__ = ["CardQueue"]

_CHUNK = 2**25  # weights that are float32 on the card at once
_PINNED = 2**30  # bytes on their way to files
_KEPT_SHARE = 16  # of the card's free memory, as 1 / n, that a part's encoded bytes may take until they are decoded
_WRITERS = 8
_TAIL = 16  # bytes behind the encoded ones, with the flag of their blocks in front


_Key = tuple[str, int, bool]  # tensor, type, whether with importance


def _key(job: Job, kind: int) -> _Key:
    return job.name, kind, job.importance is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Encoded:
    """Rows from `start` on of a job's tensor in one type, being copied to the host."""

    job: Job
    kind: int
    start: int
    size: int
    host: torch.Tensor  # uint8 [size, padding and tail], pinned
    copied: torch.cuda.Event


class CardQueue:
    """The card, the cores behind it, and what they have to do. Takes the place of an EncodingQueue."""

    def __init__(self, device: torch.device, cores: EncodingQueue, *, kinds: Iterable[int], keep: bool) -> None:
        """kinds: types that will be asked for, compiled from now on. keep: whether encoded bytes stay for `kept`."""
        self._device = device
        self._cores = cores
        self._keep = keep
        self._room_kept = 0
        self._kept: dict[_Key, list[torch.Tensor]] = {}
        self._streams: dict[int, torch.cuda.Stream] = {}
        self._writers = ThreadPoolExecutor(_WRITERS, thread_name_prefix="gguf-write")
        self._room = _Room(_PINNED)
        self._running: list[Future[None]] = []
        self._left_to_cores: set[_Key] = set()
        self._lock = threading.Lock()
        self._warming = threading.Thread(target=card_codecs, args=(frozenset(kinds), device), daemon=True)
        self._warming.start()

    def submit(self, make: Callable[[], Job]) -> None:
        """Make a job and give the card its types; the source's rows must not change until `wait`."""
        job = make()
        if job.kind not in FLOATS:
            self._cores.submit(lambda: job)
            return
        found = {kind: card_codec(kind, self._device) for kind in job.targets}
        here = {kind: encoder for kind, encoder in found.items() if encoder is not None}
        others = {kind: files for kind, files in job.targets.items() if kind not in here}
        if others:
            self._cores.submit(lambda: replace(job, targets=others))
        for start, stop in job.chunks(max(1, _CHUNK // job.columns)) if here else ():
            weight = job.weight_of(start)
            vector = None if weight is None else torch.from_numpy(weight).to(self._device)
            self._encode(job, here, vector, start, stop)

    def wait(self) -> None:
        """Wait until everything submitted is written. Raises the first error."""
        running, self._running = self._running, []
        wait(running)
        self._left_to_cores.clear()
        self._cores.wait()
        for future in running:
            future.result()

    def close(self) -> None:
        self._warming.join()
        self._writers.shutdown(cancel_futures=True)
        self._cores.close()

    def forget(self) -> None:
        """Free what `kept` has, and see how much the card has room for beside what lies there now."""
        self._kept.clear()
        self._room_kept = room_on(self._device) // _KEPT_SHARE if self._keep else 0

    def kept(self, name: str, kind: int, *, weighed: bool) -> torch.Tensor | None:
        """The bytes of a tensor that were encoded since `forget`, if they are still on the card: uint8."""
        pieces = self._kept.get((name, kind, weighed))
        if pieces is None:
            return None
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _encode(
        self,
        job: Job,
        encoders: Mapping[int, CardCodec | CardFloats],
        vector: torch.Tensor | None,
        start: int,
        stop: int,
    ) -> None:
        rows, broken = floats(job.rows[start:stop].to(self._device), job.kind)
        ready = torch.cuda.current_stream(self._device).record_event()
        for kind, encoder in encoders.items():
            size = (stop - start) * codec.row_bytes(kind, job.columns)
            self._room.take(size)
            stream = self._stream(kind)
            stream.wait_event(ready)
            with torch.cuda.stream(stream):
                out = torch.empty(-(-size // _TAIL) * _TAIL + _TAIL, dtype=torch.uint8, device=self._device)
                odd = out[-_TAIL:].view(torch.int32)[:1]
                encoder.encode(rows, vector, out[:size], odd)
                odd |= broken
                host = torch.empty(out.shape, dtype=torch.uint8, pin_memory=True).copy_(out, non_blocking=True)
                copied = stream.record_event()
            for tensor in (rows, broken, *(() if vector is None else (vector,))):
                tensor.record_stream(stream)
            self._keep_piece(job, kind, start, out[:size])
            made = _Encoded(job=job, kind=kind, start=start, size=size, host=host, copied=copied)
            self._running.append(self._writers.submit(self._write, made))

    def _stream(self, kind: int) -> torch.cuda.Stream:
        if kind not in self._streams:
            self._streams[kind] = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        return self._streams[kind]

    def _keep_piece(self, job: Job, kind: int, start: int, data: torch.Tensor) -> None:
        key = _key(job, kind)
        pieces = self._kept.setdefault(key, []) if len(data) <= self._room_kept else None
        if pieces is None or (not pieces and start):
            self._drop(key)  # a part of a tensor is of no use
            return
        pieces.append(data)
        self._room_kept -= len(data)

    def _drop(self, key: _Key) -> None:
        self._room_kept += sum(map(len, self._kept.pop(key, [])))

    def _write(self, made: _Encoded) -> None:
        try:
            made.copied.synchronize()
            odd = int(made.host[-_TAIL:].view(torch.int32)[0])
            if odd & LOST:
                msg = f"{made.job.name}: {codec.beyond(made.kind)}"
                raise ValueError(msg)
            if odd:
                self._leave_to_cores(made)
                return
            data = made.host[: made.size].numpy()
            for file in made.job.targets[made.kind]:
                file.write_rows(made.job.name, made.start, data)
        finally:
            self._room.give(made.size)

    def _leave_to_cores(self, made: _Encoded) -> None:
        """Bytes that are not finite, or not ggml's: the CPU encodes the whole tensor, or says what is wrong with it."""
        key = _key(made.job, made.kind)
        with self._lock:
            if key in self._left_to_cores:
                return
            self._left_to_cores.add(key)
            self._drop(key)
        self._cores.submit(lambda: replace(made.job, targets={made.kind: made.job.targets[made.kind]}))


class _Room:
    """How many bytes may be on their way; one piece always is."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._taken = 0
        self._changed = threading.Condition()

    def take(self, size: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + size <= self._size)
            self._taken += size

    def give(self, size: int) -> None:
        with self._changed:
            self._taken -= size
            self._changed.notify_all()

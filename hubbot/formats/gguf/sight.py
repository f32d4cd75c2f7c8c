"""llama.cpp's multimodal library (libmtmd), in a process of its own: shows a model an image and hears what it says.

    python -m hubbot.formats.gguf.sight < request.json > answer.json

request: {"model": path, "vision": path of the mmproj file, "image": path of uint8 [height, width, 3] in numpy's format,
          "text": what follows the image, "generate": tokens, "ends": token ids, "threads": n, "out": path}
answer:  {"layout": [token ids, or how many embeddings the image is there], "said": token ids, "text"}; or {"error": text}.
`out` gets safetensors: `features` float32 [embeddings, width] of the image, `logits` float32 [rows, vocab] behind the
last stretch of text, token by token.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hubbot import llamacpp
from hubbot.formats.gguf.runtime import Floats, Runtime

__all__ = ["MARKER", "Seen", "Sight"]

MARKER = "<__media__>"  # mtmd's own default
_TEXT, _IMAGE = 0, 1  # mtmd_input_chunk_type
_FLASH_ATTENTION_OFF = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What came of an image: the stretches of the prompt, the image's embeddings, logits of the last text, tokens said."""

    layout: list[list[int] | int]
    features: Floats
    logits: Floats
    said: list[int]


class Sight(Runtime):
    """A text's file and a vision's, loaded together on the CPU."""

    def __init__(self, model: str, vision: str, *, threads: int = 1) -> None:
        """Raises ValueError where llama.cpp refuses one of them."""
        super().__init__(model, threads=threads)
        self._mtmd = mtmd = llamacpp.multimodal()
        for set_log in (mtmd.mtmd_log_set, mtmd.mtmd_helper_log_set):
            set_log(self._listener, ctypes.c_void_p(0))
        asked = mtmd.mtmd_context_params_default()
        asked.use_gpu = asked.print_timings = asked.warmup = False
        asked.n_threads, asked.flash_attn_type = threads, _FLASH_ATTENTION_OFF
        self._eyes = mtmd.mtmd_init_from_file(vision.encode(), self._model, asked)
        if not self._eyes or not mtmd.mtmd_support_vision(self._eyes):
            raise self._refused("cannot load the vision part")

    def see(self, image: npt.NDArray[np.uint8], text: str, *, generate: int, ends: list[int]) -> Seen:
        """Show an image uint8 [height, width, 3], then a text; hear up to `generate` greedy tokens, the last one an end."""
        with self._stretches(image, f"{MARKER}{text}") as chunks:
            room = sum(self._mtmd.mtmd_input_chunk_get_n_tokens(chunk) for chunk in chunks) + generate
            self._open(room)
            self._forget()
            layout: list[list[int] | int] = []
            features: list[Floats] = []
            logits = np.zeros((0, self.vocab_size), np.float32)
            at = 0
            for chunk in chunks:
                tokens = self._tokens_of(chunk)
                if tokens is None:
                    features.append(self._encoded(chunk))
                    layout.append(len(features[-1]))
                    at = self._shown(chunk, features[-1], at)
                else:
                    layout.append(tokens)
                    logits = self._read(tokens, at=at, first=0)
                    at += len(tokens)
            said = self._go_on(logits[-1], at, generate, ends)
        return Seen(layout=layout, features=np.concatenate(features), logits=logits, said=said)

    def _go_on(self, row: Floats, at: int, count: int, ends: list[int]) -> list[int]:
        said: list[int] = []
        while len(said) < count:
            said.append(int(row.argmax()))
            if said[-1] in ends:
                break
            row = self._read(said[-1:], at=at + len(said) - 1, first=0)[-1]
        return said

    @contextmanager
    def _stretches(self, image: npt.NDArray[np.uint8], text: str) -> Iterator[list[Any]]:
        """The prompt as mtmd cuts it into text and image."""
        mtmd, data = self._mtmd, text.encode()
        height, width = image.shape[:2]
        pixels = (ctypes.c_uint8 * image.size).from_buffer_copy(image.tobytes())
        bitmap = mtmd.mtmd_bitmap_init(width, height, pixels)
        chunks = mtmd.mtmd_input_chunks_init()
        try:
            asked = mtmd.mtmd_input_text(text=data, text_len=len(data), add_special=True, parse_special=True)
            images = (ctypes.c_void_p * 1)(bitmap)
            if mtmd.mtmd_tokenize(self._eyes, chunks, ctypes.byref(asked), images, 1):
                raise self._refused("cannot read the test image")
            yield [mtmd.mtmd_input_chunks_get(chunks, at) for at in range(mtmd.mtmd_input_chunks_size(chunks))]
        finally:
            mtmd.mtmd_input_chunks_free(chunks)
            mtmd.mtmd_bitmap_free(bitmap)

    def _tokens_of(self, chunk: Any) -> list[int] | None:
        """A stretch of text; None of an image."""
        if self._mtmd.mtmd_input_chunk_get_type(chunk) != _TEXT:
            return None
        count = ctypes.c_size_t()
        found = self._mtmd.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(count))
        return [int(found[at]) for at in range(count.value)]

    def _encoded(self, chunk: Any) -> Floats:
        if self._mtmd.mtmd_encode_chunk(self._eyes, chunk):
            raise self._refused("cannot encode the test image")
        shape = (self._mtmd.mtmd_input_chunk_get_n_tokens(chunk), self._api.llama_model_n_embd_inp(self._model))
        found = np.ctypeslib.as_array(self._mtmd.mtmd_get_output_embd(self._eyes), shape=shape)
        return np.array(found, dtype=np.float32)

    def _shown(self, chunk: Any, features: Floats, at: int) -> int:
        """Have the text model read the image's embeddings; the place of what follows them."""
        after = self._api.llama_pos(0)
        data = features.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        no_callback = self._mtmd.mtmd_helper_post_decode_callback()  # of a null pointer
        if self._mtmd.mtmd_helper_decode_image_chunk(
            self._eyes, self._context, chunk, data, at, 0, len(features), ctypes.byref(after), no_callback, None
        ):
            raise self._refused("cannot show the image to the text model")
        return int(after.value)


def look(request: dict[str, Any]) -> dict[str, Any]:
    """Load, show, hear; see the module's docstring."""
    from safetensors.numpy import save_file

    sight = Sight(request["model"], request["vision"], threads=request["threads"])
    image = np.load(Path(request["image"]), allow_pickle=False)
    seen = sight.see(image, request["text"], generate=request["generate"], ends=request["ends"])
    save_file({"features": seen.features, "logits": seen.logits}, request["out"])
    return {"layout": seen.layout, "said": seen.said, "text": sight.text_of(seen.said)}


def main() -> None:
    request = json.load(sys.stdin)
    answers = os.dup(1)
    os.dup2(2, 1)  # what native code prints is no answer
    try:
        answer = look(request)
    except ValueError as error:
        answer = {"error": str(error)}
    with os.fdopen(answers, "w") as out:
        json.dump(answer, out)
    os._exit(0)  # see `hubbot.formats.gguf.runtime`


if __name__ == "__main__":
    main()

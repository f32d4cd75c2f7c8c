"""llama.cpp's runtime, in a process of its own: a file that it dislikes may abort it.

    python -m hubbot.formats.gguf.runtime < request.json > answer.json

request: {"model": path, "reference": path or null, "probe": text, "generate": tokens, "threads": n}
         and "prompts": lists of token ids to go on from for up to "new_tokens" tokens each
answer:  {"kld", "max_logit_error", "generated", "probe_ids", "chat_template", "continuations"}; or {"error": text}
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hubbot import llamacpp

__all__ = ["Runtime", "compare"]

Floats = npt.NDArray[np.float32]

_F32 = 0  # ggml type of the key/value cache: the check is of the weights, not of the cache
_FLASH_ATTENTION_OFF = 0


class Runtime:
    """One GGUF, loaded on the CPU."""

    def __init__(self, path: str, *, context: int, threads: int) -> None:
        """Load a file (the first shard of several). Raises ValueError where llama.cpp refuses it."""
        self._api = api = llamacpp.bindings()
        self._quiet = api.llama_log_callback(lambda level, text, data: None)  # noqa: ARG005
        api.llama_log_set(self._quiet, ctypes.c_void_p(0))
        api.llama_backend_init()
        asked = api.llama_model_default_params()
        asked.n_gpu_layers = 0
        asked.check_tensors = True
        self._model = api.llama_model_load_from_file(path.encode(), asked)
        if not self._model:
            msg = "llama.cpp cannot load the file"
            raise ValueError(msg)
        self._vocab = api.llama_model_get_vocab(self._model)
        self.vocab_size = int(api.llama_vocab_n_tokens(self._vocab))
        self._context = self._open(context, threads)

    def _open(self, length: int, threads: int) -> Any:
        api = self._api
        asked = api.llama_context_default_params()
        asked.n_ctx = asked.n_batch = asked.n_ubatch = length
        asked.n_threads = asked.n_threads_batch = threads
        asked.type_k = asked.type_v = _F32
        asked.flash_attn_type = _FLASH_ATTENTION_OFF
        asked.swa_full = True
        context = api.llama_init_from_model(self._model, asked)
        if not context:
            msg = f"llama.cpp cannot open a context of {length} tokens"
            raise ValueError(msg)
        return context

    def logits(self, tokens: Sequence[int]) -> Floats:
        """float32 [tokens, vocab] for a window read from its beginning."""
        api = self._api
        api.llama_memory_clear(api.llama_get_memory(self._context), True)
        return self._decode(tokens, first=0, every=True)

    def generate(self, tokens: Sequence[int], count: int) -> list[int]:
        """`count` greedy tokens after `tokens`."""
        made: list[int] = []
        row = self.logits(tokens)[-1]
        for _ in range(count):
            made.append(int(row.argmax()))
            if self._api.llama_vocab_is_eog(self._vocab, made[-1]):
                break
            row = self._decode(made[-1:], first=len(tokens) + len(made) - 1, every=False)[-1]
        return made

    def _decode(self, tokens: Sequence[int], *, first: int, every: bool) -> Floats:
        api = self._api
        batch = api.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for i, token in enumerate(tokens):
                batch.token[i], batch.pos[i] = int(token), first + i
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
                batch.logits[i] = every or i == len(tokens) - 1
            if api.llama_decode(self._context, batch):
                msg = "llama.cpp cannot run the model"
                raise ValueError(msg)
            rows = len(tokens) if every else 1
            found = np.ctypeslib.as_array(api.llama_get_logits(self._context), shape=(rows, self.vocab_size))
            return np.array(found, dtype=np.float32)
        finally:
            api.llama_batch_free(batch)

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, without the tokens that a sequence begins or ends with."""
        data = text.encode()
        room = (ctypes.c_int32 * (len(data) + 16))()
        count = self._api.llama_tokenize(self._vocab, data, len(data), room, len(room), False, True)
        if count < 0:
            msg = "llama.cpp cannot tokenize the probe text"
            raise ValueError(msg)
        return list(room[:count])

    def text_of(self, tokens: Sequence[int]) -> str:
        ids = (ctypes.c_int32 * len(tokens))(*tokens)
        room = ctypes.create_string_buffer(64 * len(tokens) + 64)
        count = self._api.llama_detokenize(self._vocab, ids, len(tokens), room, len(room), False, True)
        return room.raw[: max(count, 0)].decode(errors="replace")

    def chat_template(self) -> str | None:
        template = self._api.llama_model_chat_template(self._model, None)
        return None if template is None else str(template.decode(errors="replace"))


def compare(reference: Floats, found: Floats) -> tuple[float, float]:
    """(mean divergence D(reference || found) in nats per token, largest logit difference).

    Both float32 [tokens, vocab]; the shorter vocabulary counts (a converter may drop unused rows).
    """
    shared = min(reference.shape[-1], found.shape[-1])
    ours, theirs = (_log_softmax(logits[:, :shared].astype(np.float64)) for logits in (reference, found))
    divergence = (np.exp(ours) * (ours - theirs)).sum(-1).mean()
    return float(divergence), float(np.abs(reference[:, :shared] - found[:, :shared]).max())


def _log_softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = logits - logits.max(-1, keepdims=True)
    normed: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return normed


def check(request: dict[str, Any]) -> dict[str, Any]:
    """Load, compare, generate; see the module's docstring."""
    tokens, logits, first = _reference(request["reference"])
    length = max((len(window) for window in tokens), default=16)
    prompts, new_tokens = request.get("prompts", []), request.get("new_tokens", 0)
    room = max([length + request["generate"], *(len(prompt) + new_tokens for prompt in prompts)]) + 8
    runtime = Runtime(request["model"], context=room, threads=request["threads"])
    answer: dict[str, Any] = {"kld": None, "max_logit_error": None}
    if tokens:
        found = [runtime.logits(window)[first:] for window in tokens]
        pairs = [compare(known[first:], seen) for known, seen in zip(logits, found, strict=True)]
        answer["kld"] = sum(kld for kld, _ in pairs) / len(pairs)
        answer["max_logit_error"] = max(error for _, error in pairs)
    probe = runtime.tokenize(request["probe"])
    prompt = tokens[0][: max(1, length // 2)] if tokens else probe[:8] or [0]
    answer["generated"] = runtime.text_of(runtime.generate(prompt, request["generate"]))
    answer["continuations"] = [runtime.generate(prompt, new_tokens) for prompt in prompts]
    return answer | {"probe_ids": probe, "chat_template": runtime.chat_template()}


def _reference(path: str | None) -> tuple[list[list[int]], list[Floats], int]:
    if path is None:
        return [], [], 0
    from safetensors.numpy import load_file

    kept = load_file(path)
    first = int(kept["first"][0]) if "first" in kept else 0
    return [[int(token) for token in window] for window in kept["tokens"]], list(kept["logits"]), first


def main() -> None:
    request = json.load(sys.stdin)
    answers = os.dup(1)
    os.dup2(2, 1)  # what native code prints is no answer
    try:
        answer = check(request)
    except ValueError as error:
        answer = {"error": str(error)}
    with os.fdopen(answers, "w") as out:
        json.dump(answer, out)
    os._exit(
        0
    )  # the answer stands; what native code does while it is taken down, a crash too, is no verdict on the file


if __name__ == "__main__":
    main()

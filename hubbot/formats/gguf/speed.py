"""Speed of a GGUF in llama.cpp on this machine, by llama-bench."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from hubbot import llamacpp
from hubbot.confine.ask import NoAnswer, ask
from hubbot.confine.environment import allowed
from hubbot.domain import Speed
from hubbot.errors import ToolMissing
from hubbot.formats.gguf.check import sees_cards
from hubbot.formats.gguf.naming import text_file
from hubbot.machine import cores
from hubbot.machine.nvidia import number_of
from hubbot.machine.peak import PeakMeter

__all__ = ["measure_speed"]

_PATIENCE = 3600.0  # seconds


def measure_speed(
    paths: Sequence[Path],
    *,
    prompt_tokens: int = 512,
    generated_tokens: int = 64,
    repetitions: int = 2,
    device: str = "cpu",
) -> Speed:
    """Tokens per second of reading a prompt and of generating, and peak memory: the process's, or the card's.

    device: the card that holds the whole model where llama.cpp was built for cards. Raises ToolMissing where llama-bench
    fails.
    """
    model = text_file(paths)
    on_card = device.startswith("cuda") and sees_cards()
    card = device if on_card else "cpu"
    asked = ["-m", model, "-p", prompt_tokens, "-n", generated_tokens, "-r", repetitions, "-t", cores(), "-o", "json"]
    asked += ["-ngl", llamacpp.ALL_LAYERS if on_card else 0, "-sm", "none", "-mg", number_of(card)]
    command = [str(llamacpp.tool("llama-bench")), *map(str, asked)]
    # a process in between, whose only child is llama-bench: its peak memory is then exactly that of its children
    between = [sys.executable, "-m", "hubbot.formats.gguf.speed", card, *command]
    backend = llamacpp.cuda_backend() if on_card else None
    environment = allowed() | ({"GGML_BACKEND_PATH": str(backend)} if backend else {})
    try:
        answer = json.loads(ask(between, seconds=_PATIENCE, environment=environment))
    except NoAnswer as error:
        msg = f"llama-bench failed on {model.name}: it {error}. Run it by hand to see more."
        raise ToolMissing(msg) from None
    rates = {("prompt" if run["n_prompt"] else "generation"): float(run["avg_ts"]) for run in answer["runs"]}
    return Speed(
        runtime=llamacpp.runtime_name(on_card=on_card),
        prompt_tokens_per_second=rates["prompt"],
        generation_tokens_per_second=rates["generation"],
        prompt_tokens=prompt_tokens,
        generated_tokens=generated_tokens,
        peak_memory=int(answer["peak"]),
    )


def main() -> None:
    """`DEVICE COMMAND…`: run a command that prints JSON; print {"runs": that, "peak": bytes of memory it took at most}."""
    device, *command = sys.argv[1:]
    meter = (
        PeakMeter(device=device) if device != "cpu" else None
    )  # on the CPU the kernel notes it, and nothing else runs
    with meter or nullcontext():
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    peak = meter.peak.vram if meter else None
    json.dump({"runs": json.loads(done.stdout), "peak": peak or _peak_rss()}, sys.stdout)


def _peak_rss() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit


if __name__ == "__main__":
    main()

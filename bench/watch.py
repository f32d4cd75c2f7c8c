"""A poll of many watched authors on the Hub server of the tests: requests, seconds, peak memory.

    python bench/watch.py [--authors 500] [--models 20000]

The Hub runs in a process of its own. Three rounds of `hubbot watch` are measured: the first with an empty
state file, a second with nothing new, a third after one model in a hundred changed. Judging is part of
each; looking at the changed models' files too.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def serve_hub(pipe: Connection, authors: int, models: int) -> None:
    from tests.bot.cheap import files_of_a_model
    from tests.hub.server import Hub

    with Hub() as hub:
        hub.user("bot", token="hf_benchmark0123456789", orgs={"ours": "write"})
        files = files_of_a_model(0)
        for number in range(models):
            hub.model(f"author{number % authors}/model{number}", files)
        pipe.send(hub.endpoint)
        while (order := pipe.recv()) != "end":
            if order == "change":
                weights = files_of_a_model(1)["model.safetensors"]
                for number in range(0, models, 100):
                    hub.commit(f"author{number % authors}/model{number}", {"model.safetensors": weights})
            pipe.send(len(hub.journal.requests))


def peak_rss() -> int:
    """Bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--authors", type=int, default=500)
    parser.add_argument("--models", type=int, default=20_000)
    options = parser.parse_args()

    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    server = context.Process(target=serve_hub, args=(there, options.authors, options.models))
    server.start()
    endpoint = here.recv()

    from hubbot import __version__
    from hubbot.bot.daemon import Bot
    from hubbot.bot.ledger.store import open_ledger
    from hubbot.hub.client import Hub as Seen
    from hubbot.hub.read.reader import Reader
    from hubbot.settings import Settings

    rounds = {}
    with tempfile.TemporaryDirectory(prefix="bench-watch-") as name:
        settings = Settings.model_validate(
            {
                "variants": "gptq-4bit-128g,bnb-nf4",
                "publish": {"mode": "main", "namespace": "ours"},
                "watch": {"authors": [f"author{n}" for n in range(options.authors)], "state": Path(name) / "s.sqlite"},
            }
        )
        idle = peak_rss()
        with open_ledger(settings.watch.state) as ledger:
            reader = Reader(Seen(endpoint=endpoint, token="hf_benchmark0123456789"))
            bot = Bot(reader=reader, ledger=ledger, settings=settings, version=__version__)
            for title in ("first", "nothing new", "one in a hundred changed"):
                if title.startswith("one"):
                    here.send("change")
                    here.recv()
                here.send("count")
                before, began, cpu = here.recv(), time.perf_counter(), time.process_time()
                bot.look()
                polled = time.perf_counter() - began
                verdicts = sum(1 for _ in bot.queue())
                here.send("count")
                rounds[title] = {
                    "requests": here.recv() - before,
                    "poll_seconds": round(polled, 1),
                    "judge_and_queue_seconds": round(time.perf_counter() - began - polled, 1),
                    "own_cpu_seconds": round(time.process_time() - cpu, 1),
                    "models_judged": verdicts,
                    "peak_rss_mb": round(peak_rss() / 1e6),
                }
            size = sum(path.stat().st_size for path in Path(name).iterdir() if path.is_file())
    here.send("end")
    server.join()
    print(
        json.dumps(
            {
                "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
                "load_average": os.getloadavg()[0],
                "authors": options.authors,
                "models": options.models,
                "rss_before_mb": round(idle / 1e6),
                "state_file_mb": round(size / 1e6, 1),
                "rounds": rounds,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()

"""`python -m tests.hub`: the server as a program, for tests that start it from outside."""

from __future__ import annotations

import argparse
import signal
from pathlib import Path

from tests.hub.server import Hub


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.hub", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--user", action="append", default=[], metavar="NAME:TOKEN[:SCOPE]")
    parser.add_argument("--model", action="append", default=[], metavar="ID=FOLDER")
    parser.add_argument("--dataset", action="append", default=[], metavar="ID=FOLDER")
    parser.add_argument("--ready", type=Path, help="file to write the endpoint to once it listens")
    options = parser.parse_args()
    signals = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # the server's thread inherits it; sigwait below takes them
    with Hub(host=options.host, port=options.port) as hub:
        for text in options.user:
            name, token, *scope = text.split(":")
            hub.user(name, token=token, scope=scope[0] if scope else "write")
        for kind in ("model", "dataset"):
            for text in getattr(options, kind):
                repo_id, folder = text.split("=", 1)
                getattr(hub, kind)(repo_id, Path(folder))
        if options.ready:
            options.ready.write_text(hub.endpoint)
        print(hub.endpoint, flush=True)
        stop = signal.sigwait(signals)
        print(f"stopped by {signal.Signals(stop).name}", flush=True)


if __name__ == "__main__":
    main()

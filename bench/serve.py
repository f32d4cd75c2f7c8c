"""Webhook deliveries a second on loopback, every event durable, and none lost under SIGKILL.

    python bench/serve.py [--deliveries 20000] [--connections 64] [--kills 3]

Starts `hubbot.bot.webhook_server` as a process of its own with its state on this disk, sends distinct deliveries over
keep-alive connections from one other process, and then counts what the state file holds. In the second
part the server is killed with SIGKILL at random moments while deliveries arrive, started again, and the
senders go on; every delivery that was answered with 2xx must be in the file.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SECRET = "bench-secret-0123456789"
SERVER = """
import sys
from pathlib import Path
from hubbot.bot.webhook_server import serve
from hubbot.settings.watch import ServeSettings
serve(Path(sys.argv[1]), ServeSettings(port=int(sys.argv[2])), sys.argv[3], route=None)
"""


def request(number: int) -> bytes:
    body = json.dumps(
        {
            "event": {"action": "update", "scope": "repo.content"},
            "repo": {
                "type": "model",
                "name": f"maker-{number % 500}/model-{number}",
                "id": f"id-{number}",
                "private": False,
                "url": {"web": "https://huggingface.co/x", "api": "https://huggingface.co/api/models/x"},
                "owner": {"id": "owner"},
                "headSha": f"{number:040x}",
                "tags": [],
            },
            "updatedRefs": [{"ref": "refs/heads/main", "oldSha": "0" * 40, "newSha": f"{number:040x}"}],
            "webhook": {"id": "hook", "version": 3},
        }
    ).encode()
    head = (
        f"POST /webhook HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"X-Webhook-Secret: {SECRET}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def deliver(port: int, numbers: list[int], answered: set[int], latencies: list[float]) -> None:
    """One sender: keep-alive, one delivery at a time, again until it is answered."""
    reader = writer = None
    while numbers:
        number = numbers[-1]
        started = time.perf_counter()
        try:
            if writer is None:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request(number))
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError):
            if writer is not None:
                writer.close()
            writer = None
            await asyncio.sleep(0.05)
            continue
        if head.split(b" ", 2)[1] != b"202":
            raise SystemExit(f"unexpected answer: {head!r}")
        latencies.append(time.perf_counter() - started)
        answered.add(number)
        numbers.pop()


async def send(port: int, count: int, connections: int, answered: set[int], latencies: list[float]) -> None:
    shares = [list(range(start, count, connections)) for start in range(connections)]
    await asyncio.gather(*(deliver(port, share, answered, latencies) for share in shares))


def start(state: Path, port: int) -> subprocess.Popen[bytes]:
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(state), str(port), SECRET], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return server
        time.sleep(0.02)
    raise SystemExit("the server did not start")


def stored(state: Path) -> tuple[set[int], str]:
    with sqlite3.connect(state) as db:
        numbers = {int(row[0], 16) for row in db.execute("SELECT sha FROM events")}
        return numbers, db.execute("PRAGMA integrity_check").fetchone()[0]


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def throughput(folder: Path, count: int, connections: int) -> dict[str, object]:
    state, port = folder / "throughput.sqlite", free_port()
    server = start(state, port)
    answered: set[int] = set()
    latencies: list[float] = []
    idle, own = cpu_seconds(server.pid), time.process_time()
    began = time.perf_counter()
    asyncio.run(send(port, count, connections, answered, latencies))
    seconds = time.perf_counter() - began
    cpu, own = cpu_seconds(server.pid) - idle, time.process_time() - own
    server.send_signal(signal.SIGKILL)
    server.wait()
    found, sound = stored(state)
    latencies.sort()
    return {
        "deliveries": count,
        "connections": connections,
        "seconds": round(seconds, 2),
        "per_second": round(count / seconds),
        "per_server_cpu_second": round(count / cpu),
        "cpu_seconds": {"server": round(cpu, 2), "sender": round(own, 2)},
        "load_average": os.getloadavg()[0],
        "latency_ms": {
            "median": round(1000 * statistics.median(latencies), 1),
            "p99": round(1000 * latencies[int(0.99 * len(latencies))], 1),
        },
        "answered_but_lost": len(answered - found),
        "state_file": sound,
    }


def under_kills(folder: Path, count: int, connections: int, kills: int) -> dict[str, object]:
    state, port = folder / "kills.sqlite", free_port()
    answered: set[int] = set()
    latencies: list[float] = []
    lost_after: list[int] = []

    async def killer() -> None:
        server = start(state, port)
        sending = asyncio.ensure_future(send(port, count, connections, answered, latencies))
        for _ in range(kills):
            await asyncio.sleep(random.uniform(0.1, 1.0))
            if sending.done():
                break
            server.send_signal(signal.SIGKILL)
            server.wait()
            promised = set(answered)
            found, sound = stored(state)
            if sound != "ok":
                raise SystemExit(f"the state file is not sound: {sound}")
            lost_after.append(len(promised - found))
            server = await asyncio.to_thread(start, state, port)
        await sending
        server.kill()
        server.wait()

    asyncio.run(killer())
    found, sound = stored(state)
    return {
        "deliveries": count,
        "kills": len(lost_after),
        "answered": len(answered),
        "answered_but_lost": sum(lost_after) + len(answered - found),
        "stored": len(found),
        "state_file": sound,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deliveries", type=int, default=20_000)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument(
        "--folder", type=Path, help="where the state file lies; default: a temporary folder on this disk"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench-serve-") as name:
        folder = Path(name)
        result = {
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
            "throughput": throughput(folder, options.deliveries, options.connections),
            "sigkill": under_kills(folder, options.deliveries, options.connections, options.kills),
        }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

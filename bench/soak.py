"""A randomised soak of the bot: many tiny jobs, two bots on one state file, and everything goes wrong.

    python bench/soak.py [--jobs 200] [--mode main|pr] [--seed 0] [--json]

The Hub server of the tests answers with random faults: 500 to 504, 429 with and without Retry-After,
connections cut before and in the middle of uploads, downloads and answers, truncated and corrupted
downloads, slow answers. Meanwhile the bots are killed (SIGKILL) and stopped (SIGTERM) at random moments
and started again with clocks set back or forth by up to a day, tokens are revoked and replaced, sources
are deleted, and strangers commit to the published repos. A job is a real fetch, record, card and publish
around a pretended sweep of milliseconds (tests/bot/cheap.py); pauses are a twentieth of the real ones.

At the end the faults stop, the bots work off what is left, and everything is checked:
every model is released once, or parked because its source is gone; no commit of any published branch
shows half a release, and the branch beside main is of main's release; no second pull request; no release commit twice; the state file is sound; no
upload carried a token to the storage; no token is in the state file or in a repo.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hubbot.domain import Family
from hubbot.hub.client import Hub as Seen
from tests.bot.cheap import VARIANTS, cheap_run, files_of_a_model, settings_for
from tests.hub.server import Hub

BRANCH = "gptq-8bit-128g"  # beside main, so that a release takes more than one commit
VARIANTS[BRANCH] = Family.GPTQ
FASTER = 20  # pauses of the bot are divided by this
FAULTS: tuple[dict[str, object], ...] = (
    *({"status": code} for code in (500, 502, 503, 504)),
    {"status": 429},
    {"status": 429, "retry_after": 2},
    {"status": 429, "ratelimit": 2},
    {"status": 503, "retry_after": 2},
    {"cut": "before"},
    {"cut": "answer"},
    {"slow": 0.3},
)
DOWNLOAD_FAULTS: tuple[dict[str, object], ...] = (
    {"cut": "download", "after": 20},
    {"truncate": 5},
    {"corrupt": -3},
)
UPLOAD_FAULTS: tuple[dict[str, object], ...] = ({"cut": "upload", "after": 100}, {"cut": "answer"}, {"status": 500})


# --- one bot, in a process of its own ---------------------------------------------------------------


def run_bot(folder: Path, endpoint: str, offset: float, mode: str) -> None:
    """`hubbot watch --every --run` with the cheap pipeline."""
    from hubbot import __version__
    from hubbot.bot.daemon import Bot, keep_watching
    from hubbot.bot.ledger.alive import worker
    from hubbot.bot.ledger.store import open_ledger
    from hubbot.bot.stop import on_signals
    from hubbot.bot.worker import Terms, work
    from hubbot.hub.read.reader import Reader

    really = time.sleep
    time.sleep = lambda seconds: really(seconds / FASTER)
    token = os.environ["HF_TOKEN"]
    hub = Seen(endpoint=endpoint, token=token)
    settings = bot_settings(folder, mode)
    with (
        open_ledger(settings.watch.state, clock=lambda: time.time() + offset) as ledger,
        worker(settings.watch.state) as name,
        on_signals() as stop,
    ):
        bot = Bot(
            reader=Reader(hub),
            ledger=ledger,
            settings=settings,
            version=__version__,
        )
        run = partial(cheap_run, settings=settings, hub=hub)
        (folder / f"ready-{os.getpid()}").touch()
        terms = Terms(
            worker=name, delays=(1.0, 2.0, 4.0, 8.0, 8.0, 8.0), secrets=[token], token_works=bot.reader.token_works
        )
        keep_watching(bot, 30.0, lambda ledger, stop, between: work(ledger, run, stop, terms, between), stop)


def bot_settings(folder: Path, mode: str):
    settings = settings_for(folder, authors=["maker"], commits_per_hour=100_000)
    return settings.model_copy(update={"publish": settings.publish.model_copy(update={"mode": mode})})


# --- the world around the bots ----------------------------------------------------------------------


@dataclass
class Soak:
    hub: Hub
    folder: Path
    mode: str
    chance: random.Random
    jobs: int
    token: str = ""
    tokens: list[str] = field(default_factory=list)
    bots: list[subprocess.Popen | None] = field(default_factory=lambda: [None, None])
    counts: Counter[str] = field(default_factory=Counter)
    ends: list[float] = field(
        default_factory=lambda: [0.0, 0.0]
    )  # monotonic: when each bot is to be hit; 0: not yet set
    deleted: set[str] = field(default_factory=set)
    strangers: Counter[str] = field(default_factory=Counter)

    def new_token(self) -> None:
        self.token = self.hub.user("bot", orgs={"ours": "write"})
        self.tokens.append(self.token)

    def start(self, number: int) -> None:
        offset = self.chance.choice((0.0, 0.0, -86_400.0, -3600.0, -60.0, 3600.0)) if self.counts["starts"] else 0.0
        self.counts["starts"] += 1
        self.counts["starts with the clock set back"] += offset < 0
        command = [sys.executable, __file__, "--bot", str(self.folder), self.hub.endpoint, str(offset), self.mode]
        log = (self.folder / f"bot{number}.log").open("a")
        environ = {
            **os.environ,
            "HF_TOKEN": self.token,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(self.folder / "home"),
        }
        self.bots[number] = subprocess.Popen(command, stderr=log, stdout=log, env=environ)

    def kill(self, number: int) -> None:
        bot = self.bots[number]
        if bot is None or bot.poll() is not None:
            return
        how = self.chance.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM))
        self.counts[how.name] += 1
        bot.send_signal(how)
        try:
            bot.wait(30)
        except subprocess.TimeoutExpired:
            self.counts["SIGTERM ignored"] += 1
            bot.kill()
            bot.wait()

    def strike(self) -> None:
        """Kill the bots after random times at work, now and then while they start."""
        for number, bot in enumerate(self.bots):
            if bot is None or bot.poll() is not None:
                continue
            if not self.ends[number] and (self.folder / f"ready-{bot.pid}").exists():
                self.ends[number] = time.monotonic() + self.chance.uniform(0.1, 60.0)
            if (self.ends[number] and time.monotonic() > self.ends[number]) or self.chance.random() < 0.002:
                self.ends[number] = 0.0
                self.kill(number)

    def fault(self) -> None:
        """Order a fault, unless enough are on order: a Hub that answers nothing at all tests nothing."""
        if sum(fault.times is None or fault.hit < fault.times for fault in self.hub.faults) >= 4:
            return
        kind = self.chance.choice(("any", "any", "down", "up", "commit"))
        pattern, faults = {
            "any": (r"(GET|POST|HEAD|PUT) /", FAULTS),
            "down": (r"GET /.*(resolve|storage)", DOWNLOAD_FAULTS),
            "up": (r"PUT /|POST /.*(batch|verify)", UPLOAD_FAULTS),
            "commit": (r"POST /.*/commit/", ({"cut": "answer"}, {"status": 502}, {"cut": "upload", "after": 50})),
        }[kind]
        what = self.chance.choice(faults)
        self.hub.fail(pattern, skip=self.chance.randrange(40), times=self.chance.choice((1, 1, 1, 3)), **what)
        self.counts["faults ordered"] += 1

    def stranger(self) -> None:
        """Somebody edits a card of a published repo."""
        ours = sorted(name for _, name in list(self.hub.store.repos) if name.startswith("ours/"))
        if ours:
            name = self.chance.choice(ours)
            if "README.md" in self.hub.files(name):
                self.hub.commit(name, {"NOTES.md": f"note {self.counts['strangers']}\n"}, author="stranger")
                self.counts["strangers' commits"] += 1

    def delete_source(self) -> None:
        left = [f"maker/m{n}" for n in range(self.jobs) if f"maker/m{n}" not in self.deleted]
        name = self.chance.choice(left)
        self.hub.delete_repo(name)
        self.deleted.add(name)
        self.counts["sources deleted"] += 1

    def revoke(self) -> None:
        self.hub.revoke(self.token, after=self.chance.randrange(20))
        self.new_token()
        self.counts["tokens revoked"] += 1

    def states(self) -> Counter[str]:
        with sqlite3.connect(self.folder / "state.sqlite", timeout=30) as db:
            return Counter(dict(db.execute("SELECT state, count(*) FROM jobs GROUP BY state")))

    def storm(self, limit: float) -> None:
        """Faults until three quarters of the jobs are done."""
        end = time.monotonic() + limit
        while time.monotonic() < end:
            time.sleep(self.chance.uniform(0.1, 0.5))
            for number, bot in enumerate(self.bots):
                if bot is None or bot.poll() is not None:
                    self.start(number)
            self.fault()
            for chance, act in ((0.02, self.stranger), (0.004, self.delete_source), (0.004, self.revoke)):
                if self.chance.random() < chance:
                    act()
            self.strike()
            if self.states()["done"] >= 0.75 * self.jobs:
                return

    def calm(self, limit: float) -> None:
        """No more faults: the bots finish what is left."""
        self.counts["faults that struck"] = sum(fault.hit for fault in self.hub.faults)
        self.hub.heal()
        for number in range(2):
            self.kill(number)
        with sqlite3.connect(self.folder / "state.sqlite", timeout=30) as db:
            # What the storm parked after many failures is tried again, as `hubbot retry` would.
            db.execute("UPDATE jobs SET state = 'queued', failures = 0, due = 0, delay = 0 WHERE state = 'parked'")
        end = time.monotonic() + limit
        while time.monotonic() < end:
            for number, bot in enumerate(self.bots):
                if bot is None or bot.poll() is not None:
                    self.start(number)
            states = self.states()
            if not states["queued"] and not states["running"] and self._all_seen():
                break
            time.sleep(0.5)
        for number, bot in enumerate(self.bots):
            if bot and bot.poll() is None:
                bot.terminate()
                self.counts["clean stops"] += bot.wait(60) == 0
            self.bots[number] = None

    def _all_seen(self) -> bool:
        with sqlite3.connect(self.folder / "state.sqlite", timeout=30) as db:
            known = {row[0] for row in db.execute("SELECT model FROM jobs WHERE state IN ('done', 'parked')")}
        return all(f"maker/m{n}" in known or f"maker/m{n}" in self.deleted for n in range(self.jobs))

    # --- the verdict ----------------------------------------------------------------------------------

    def problems(self) -> list[str]:
        found = []
        with sqlite3.connect(self.folder / "state.sqlite") as db:
            if (sound := db.execute("PRAGMA integrity_check").fetchone()[0]) != "ok":
                found.append(f"the state file is not sound: {sound}")
            last = dict(db.execute("SELECT model, state FROM jobs WHERE state != 'dropped' ORDER BY id"))
            if open_ := db.execute("SELECT count(*) FROM jobs WHERE state IN ('queued', 'running')").fetchone()[0]:
                found.append(f"{open_} jobs are not finished")
        for number in range(self.jobs):
            model = f"maker/m{number}"
            if model not in self.deleted:
                if last.get(model) != "done":
                    found.append(f"{model}: its job is {last.get(model)}")
                found += self._unreleased(model)
        for (_, name), repo in self.hub.store.repos.items():
            if name.startswith("ours/"):
                found += self._half_releases(name, repo)
        if self.hub.journal.leaks:
            found.append(f"{len(self.hub.journal.leaks)} requests carried a token to the storage")
        return found + self._tokens_written()

    def _unreleased(self, model: str) -> list[str]:
        short = model.split("/")[1]
        found = []
        for name in (f"ours/{short}-GGUF", f"ours/{short}-GPTQ"):
            if ("model", name) not in self.hub.store.repos:
                found.append(f"{name} is not there")
                continue
            pulls = [pull for pull in self.hub.pulls(name) if pull.status in ("open", "draft")]
            revision = "main" if self.mode == "main" else f"refs/pr/{pulls[0].num}" if pulls else "main"
            if len(pulls) > (self.mode == "pr"):
                found.append(f"{name} has {len(pulls)} pull requests")
            if "hubbot.json" not in self.hub.files(name, revision):
                found.append(f"{name} has no release at {revision}")
            titles = [
                c.title
                for c in self.hub.history(name, revision)
                if c.author == "bot" and "initial" not in c.title.lower() and "[branch" not in c.title
            ]
            if len(titles) > 1:
                found.append(f"{name} was released {len(titles)} times: {titles}")
            if name.endswith("-GPTQ") and self.mode == "main":
                found += self._mixed(name)
        return found

    def _mixed(self, name: str) -> list[str]:
        """Whether the branch is there and holds what main's record lists of its variant."""
        if f"refs/heads/{BRANCH}" not in self.hub.repo(name).refs:
            return [f"{name} has no branch {BRANCH}"]
        record = json.loads(self.hub.read(name, "hubbot.json"))
        wanted = {f["sha256"] for variant in record["variants"] if variant["name"] == BRANCH for f in variant["files"]}
        held = self.hub.files(name, BRANCH)["model.safetensors"].sha256
        return [] if held in wanted else [f"{name}: its branch {BRANCH} is not of the release on main"]

    def _half_releases(self, name: str, repo) -> list[str]:
        """Every commit that a visitor could ever see holds a whole release or nothing of one."""
        found = []
        for ref in [ref for ref in repo.refs if ref.startswith("refs/heads/")]:
            for commit in self.hub.history(name, ref):
                made = {path for path in commit.files if path.endswith((".gguf", ".safetensors"))}
                whole = "hubbot.json" in commit.files and "README.md" in commit.files and made
                if (made or "hubbot.json" in commit.files) and not whole:
                    found.append(f"{name} shows half a release at {ref} {commit.id[:8]}")
                    continue
                if whole:
                    record = json.loads(self.hub.blobs.read(commit.files["hubbot.json"].sha256))
                    hashes = {file["sha256"] for variant in record["variants"] for file in variant["files"]}
                    if {commit.files[path].sha256 for path in made} - hashes:
                        found.append(f"{name} has files that its record does not know at {commit.id[:8]}")
        return found

    def _tokens_written(self) -> list[str]:
        found = []
        for path in self.folder.rglob("*"):
            if path.is_file():
                content = path.read_bytes()
                found += [f"a token is in {path}" for token in self.tokens if token.encode() in content]
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--mode", choices=("main", "pr"), default="main")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--storm", type=float, default=1200, help="seconds of faults at most")
    parser.add_argument("--keep", type=Path, help="folder for state file, outputs and logs; default: a temporary one")
    parser.add_argument("--bot", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bot:
        folder, endpoint, offset, mode = options.bot
        run_bot(Path(folder), endpoint, float(offset), mode)
        return
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-") as name, Hub() as hub:
        folder = options.keep or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        soak = Soak(hub, folder, options.mode, random.Random(options.seed), options.jobs)
        soak.new_token()
        for number in range(options.jobs):
            hub.model(f"maker/m{number}", files_of_a_model(number))
        for number in range(2):
            soak.start(number)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (folder / "state.sqlite").exists():
            time.sleep(0.1)
        time.sleep(2)
        soak.storm(options.storm)
        soak.calm(900)
        problems = soak.problems()
        with sqlite3.connect(folder / "state.sqlite") as db:
            attempts = dict(db.execute("SELECT coalesce(outcome, 'open'), count(*) FROM attempts GROUP BY outcome"))
            errors = dict(db.execute("SELECT error_class, count(*) FROM attempts WHERE outcome = 'failed' GROUP BY 1"))
        result = {
            "jobs": options.jobs,
            "variants": len(VARIANTS),
            "mode": options.mode,
            "seed": options.seed,
            "seconds": round(time.monotonic() - began),
            **dict(sorted(soak.counts.items())),
            "requests": len(hub.journal.requests),
            "attempts": attempts,
            "failures": errors,
            "job states": dict(soak.states()),
            "problems": problems,
        }
    print(json.dumps(result, indent=1))
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()

"""The bot at work: one round, or round after round until somebody says stop."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from hubbot.bot import round as bot
from hubbot.bot.ledger import events
from hubbot.bot.ledger.store import Ledger
from hubbot.bot.poll import Poll
from hubbot.bot.stop import Stop, Stopped
from hubbot.bot.verdicts import Action, Verdict
from hubbot.bot.worker import Between, Tally
from hubbot.errors import HubbotError, TokenRefused
from hubbot.hub.read.reader import Reader
from hubbot.log import say
from hubbot.log.redact import redact
from hubbot.settings import Settings

WAKE = 5.0  # seconds between looks at the state file while nothing is due

Execute: TypeAlias = Callable[[Ledger, Stop, Between], Tally]
"""Runs what is due in the queue, until what is done between two jobs says no. Raises Stopped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bot:
    """Everything a round needs."""

    reader: Reader
    ledger: Ledger
    settings: Settings
    version: str
    elsewhere: bool = False  # jobs run on a machine that the budgets describe, not on this one

    def look(self, *, finish: bool = True) -> Poll:
        """What the Hub shows. finish: make the branches of merged pull requests too."""
        return bot.look(self.reader, self.ledger, self.settings, finish=finish)

    def judge(self) -> Iterator[Verdict]:
        """The verdict on every watched model; changes nothing."""
        return bot.verdicts(self.reader, self.ledger, self.settings, version=self.version)

    def queue(self) -> Iterator[Verdict]:
        """The verdict on every watched model, queued where it asks for a job."""
        return bot.queue(self.ledger, self.judge(), self.settings, version=self.version)

    def answer_requests(self) -> dict[str, str]:
        """Answer the discussions of the requests repo and queue what was approved there; what failed, and why."""
        if not self.settings.watch.requests:
            return {}
        from hubbot.bot.request.answer import Desk
        from hubbot.bot.request.discussions import answer_discussions
        from hubbot.job import pipeline

        plan = partial(pipeline.plan, elsewhere=self.elsewhere)
        desk = Desk(reader=self.reader, ledger=self.ledger, settings=self.settings, version=self.version, plan=plan)
        return answer_discussions(desk)

    def take_events(self) -> None:
        """Read the models that webhooks told of since the last round, and queue what they ask for."""
        told = frozenset(events.waiting(self.ledger))
        if not told:
            return
        bot.look_at_releases(self.reader, self.ledger, self.settings)
        bot.take_events(self.reader, self.ledger)
        found = bot.verdicts(self.reader, self.ledger, self.settings, version=self.version, only=told)
        for _ in bot.queue(self.ledger, found, self.settings, version=self.version):
            pass


def keep_watching(it: Bot, every: float, execute: Execute | None, stop: Stop) -> None:
    """Round after round, `every` seconds apart, also while jobs are due; events in between. Returns when told to stop.

    A round that fails is said and tried again at the next one: the Hub or a disk may come back. While the
    token is refused nothing runs, for every job would fail by it.
    """
    rounds = _Rounds(it, every, stop)
    while not stop.asked:
        try:
            if rounds.keep_up() and execute:
                with _survived(it) as trouble:
                    execute(it.ledger, stop, rounds.keep_up)
                rounds.token_works = not trouble.token
            stop.sleep(min(WAKE, rounds.due - time.monotonic()))
        except Stopped:
            return


@dataclass(slots=True)
class _Rounds:
    """The bot's other duties, taken up whenever a job is over or nothing is due."""

    it: Bot
    every: float  # seconds
    stop: Stop
    due: float = 0.0  # monotonic
    token_works: bool = True

    def keep_up(self) -> bool:
        """A round where one is due, else what webhooks told of meanwhile. Returns whether jobs may run."""
        if time.monotonic() >= self.due:
            self.token_works = _look_and_queue(self.it, self.stop)
            self.due = time.monotonic() + self.every
        else:
            with _survived(self.it):
                self.it.take_events()
        return self.token_works


def _look_and_queue(it: Bot, stop: Stop) -> bool:
    """Whether the token is good for more."""
    with _survived(it) as trouble:
        with stop.breakable():
            found = it.look()
        for name, why in found.failures.items():
            say(f"{name}: {why}")
        asked = sum(verdict.action is Action.RUN for verdict in it.queue())
        with _survived(it) as asking:
            for name, why in it.answer_requests().items():
                say(f"{name}: {why}")
        trouble.token = asking.token
        say(f"{found.sources} sources read with {found.requests} requests; {asked} models to do")
    return not trouble.token


@dataclass(slots=True)
class _Trouble:
    token: bool = False  # the token was refused


@contextmanager
def _survived(it: Bot) -> Iterator[_Trouble]:
    """Errors inside are said, and the daemon goes on: nobody is there to start it again."""
    trouble = _Trouble()
    try:
        yield trouble
    except HubbotError as error:
        trouble.token = isinstance(error, TokenRefused)
        say(redact(str(error), it.reader.hub.token))
    except Exception as error:  # noqa: BLE001 -- a defect in one round must not end all of them
        say(redact("".join(traceback.format_exception(error)), it.reader.hub.token))

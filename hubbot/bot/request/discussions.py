"""Requests in the discussions of a repo on the Hub: one comment a state, and approvals into the bot's own queue.

What was answered is read from the Hub, by the marks in our comments: a lost state file, or a bot that died between
two steps, answers nothing twice.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from hubbot.bot.ledger import jobs, mirror
from hubbot.bot.ledger.rows import JobState
from hubbot.bot.ledger.store import Ledger
from hubbot.bot.request.answer import Answer, Desk, answer, published_links
from hubbot.bot.request.parse import Approve, Cancel, Choose, Refused, Request, Retry, read_command, read_request
from hubbot.bot.round import settings_digest
from hubbot.cards.card import PICTURE
from hubbot.cards.escape import code, inline, url
from hubbot.errors import HubFailed, TokenRefused
from hubbot.formats.names import parse_variants
from hubbot.hub.discussions import Said, Thread, open_threads, say, writers
from hubbot.hub.read.reader import Reader
from hubbot.hub.rights import account
from hubbot.hub.seen import Release
from hubbot.release.repos import target_repos

__all__ = ["answer_discussions"]

MOST_ANSWERS = 5  # plans in one discussion, however often its form is edited
MOST_PLANS = 10  # new plans in one round
_MARK = re.compile(
    r"^<!-- hubbot:request (answer|heeded|told) ([0-9a-zA-Z_-]{1,64}) ([0-9a-f]{40}|-) -->$", re.MULTILINE
)
_ID = re.compile(r"[0-9a-zA-Z_-]{1,64}")  # of a comment, as a mark holds it
_HOW = "A member of the organisation with write access starts this with a comment `/approve`."


@dataclass(slots=True)
class _Round:
    desk: Desk
    repo: str
    me: str
    plans: int = 0
    _writers: frozenset[str] | None = None

    def may_order(self, who: str) -> bool:
        if self._writers is None:
            told = writers(self.repo.split("/")[0], self.desk.reader)
            self._writers = told | frozenset(self.desk.settings.watch.approvers)
        return who in self._writers and who != self.me

    def say(self, thread: Thread, text: str, *marks: str) -> None:
        body = "\n".join([*(f"<!-- hubbot:request {mark} -->" for mark in marks), "", text])
        say(self.repo, thread.num, body, self.desk.reader.hub)


def answer_discussions(desk: Desk) -> dict[str, str]:
    """Answer what is new in the requests repo, queue what was approved. Returns discussion -> why it failed.

    Raises TokenRefused.
    """
    repo = desk.settings.watch.requests
    failures: dict[str, str] = {}
    if not repo:
        return {}
    if not desk.reader.hub.token:
        return {repo: "Answering its discussions needs a token. Set HF_TOKEN to one that may discuss there."}
    try:
        it = _Round(desk, repo, account(desk.reader.hub))
        for thread in open_threads(repo, desk.reader):
            failures |= _attended(thread, it)
    except TokenRefused:
        raise
    except HubFailed as error:
        failures[repo] = str(error)
    return failures


def _attended(thread: Thread, it: _Round) -> dict[str, str]:
    try:
        _attend(thread, it)
    except TokenRefused:
        raise
    except HubFailed as error:
        return {f"{it.repo}#{thread.num}": str(error)}
    return {}


def _attend(thread: Thread, it: _Round) -> None:
    """The next comment that a discussion wants, if any; what is left is done by the next round."""
    asked = _asked(thread, it)
    key = hashlib.sha256(repr(asked).encode()).hexdigest()[:16]
    answers = [(place, marks["answer"]) for place, marks in _own(thread, it.me) if "answer" in marks]
    if not answers or answers[-1][1][0] != key:
        if len(answers) < MOST_ANSWERS:
            _answer(thread, asked, key, it)
        return
    place, (_, revision) = answers[-1]
    if isinstance(asked, Refused):
        return
    heeded = {marks["heeded"][0] for _, marks in _own(thread, it.me) if "heeded" in marks}
    later = (one for one in thread.said[place + 1 :] if one.author != it.me and _ID.fullmatch(one.id))
    orders = [one for one in later if one.id not in heeded]
    for one in orders:
        _heed(thread, one, asked, key, revision, it)
    _tell(thread, place, asked, revision, it)


def _asked(thread: Thread, it: _Round) -> Request | Refused:
    """What the discussion asks for, with the variants that who asks, or somebody with write access, has chosen since."""
    first = thread.said[0] if thread.said and thread.said[0].author == thread.author else None
    asked = read_request(first.text if first else "", title=thread.title)
    for one in thread.said[1:]:
        command = read_command(one.text)
        if not isinstance(command, Choose) or isinstance(asked, Refused):
            continue
        if one.author not in ("", it.me) and (one.author == thread.author or it.may_order(one.author)):
            asked = replace(asked, variants=command.variants)
    return asked


def _own(thread: Thread, me: str) -> Iterator[tuple[int, dict[str, tuple[str, str]]]]:
    """Our comments: place -> kind of mark -> its two words."""
    for place, one in enumerate(thread.said):
        if one.author == me and one.text.startswith("<!-- hubbot:request "):
            head = one.text.partition("\n\n")[0]
            yield place, {kind: (key, revision) for kind, key, revision in _MARK.findall(head)}


def _answer(thread: Thread, asked: Request | Refused, key: str, it: _Round, *marks: str) -> None:
    if it.plans >= MOST_PLANS:
        return
    it.plans += 1
    found = answer(asked, it.desk)
    revision = found.verdict.revision if found.verdict else "-"
    how = f"\n\n{_HOW}" if found.verdict else ""
    it.say(thread, f"{found.text}{how}", f"answer {key} {revision}", *marks)


def _heed(thread: Thread, one: Said, asked: Request, key: str, revision: str, it: _Round) -> None:
    """Do what somebody with write access has ordered, and say so; what others write is left alone."""
    command = read_command(one.text)
    if command is None or not it.may_order(one.author):
        return
    mark = f"heeded {one.id} -"
    match command:
        case Refused():
            it.say(thread, inline(command.reason, limit=700), mark)
        case Choose():
            pass  # it is in what is asked for
        case Cancel():
            running = jobs.cancel(it.desk.ledger, asked.model, by=one.author)
            told = "is being stopped; nothing more of it is published" if running else "does not wait any more"
            it.say(thread, f"{code(asked.model)} {told}. `/retry` queues it again.", mark, "told cancelled -")
        case Approve() | Retry():
            _queue(thread, asked, key, revision, it, mark, again=isinstance(command, Retry))


def _queue(thread: Thread, asked: Request, key: str, revision: str, it: _Round, mark: str, *, again: bool) -> None:
    """Queue what the plan says, by the rules as they stand now; a model that has moved on is planned anew."""
    ledger, settings = it.desk.ledger, it.desk.settings
    if again and _retried(asked, ledger):
        it.say(thread, f"{code(asked.model)} is queued once more.", mark, f"told queued {revision}")
        return
    found = answer(asked, it.desk)
    if found.verdict is None:
        it.say(thread, found.text, mark)
    elif found.verdict.revision != revision:
        _moved(thread, found, key, it, mark)
    else:
        digest = settings_digest(settings)
        jobs.enqueue_all(ledger, [found.verdict], settings=digest, version=it.desk.version)
        it.say(thread, f"{code(asked.model)} at {code(revision[:8])} is queued.", mark, f"told queued {revision}")


def _retried(asked: Request, ledger: Ledger) -> bool:
    """Whether the model's last job was one of this request, and waits again."""
    job = jobs.last_job(ledger, asked.model)
    if job is None or (job.variants is None) != (asked.variants is None):
        return False
    return f"{job.variants},".startswith(f"{asked.variants},") and jobs.retry(ledger, asked.model) == 1


def _moved(thread: Thread, found: Answer, key: str, it: _Round, mark: str) -> None:
    assert found.verdict is not None  # noqa: S101
    text = f"The model has changed since it was planned. {_HOW}\n\n{found.text}"
    it.say(thread, text, f"answer {key} {found.verdict.revision}", mark)


def _tell(thread: Thread, place: int, asked: Request, revision: str, it: _Round) -> None:
    """What became of a job that was queued here; said once."""
    told = [marks["told"][0] for where, marks in _own(thread, it.me) if where > place and "told" in marks]
    job = jobs.last_job(it.desk.ledger, asked.model)
    if not told or told[-1] != "queued" or (job and job.state in (JobState.QUEUED, JobState.RUNNING)):
        return
    there = [one for one in mirror.releases(it.desk.ledger, asked.model) if one.revision == revision]
    if there:
        text = f"Published: {published_links(asked.model, it.desk)}{_picture(there, it.desk.reader)}"
        it.say(thread, text, f"told published {revision}")
    elif job and job.state is JobState.PARKED:
        it.say(
            thread,
            f"It failed: {inline(job.error or 'no reason recorded', limit=700)}. `/retry` tries again.",
            f"told failed {revision}",
        )
    elif job and job.state is JobState.DONE:
        settings, hub = it.desk.settings, it.desk.reader.hub
        repos = target_repos(asked.model, parse_variants(asked.variants or settings.variants), settings.publish)
        links = ", ".join(f"[{inline(repo)}]({hub.endpoint}/{repo}/discussions)" for repo in repos)
        it.say(thread, f"This bot is done with it; what waits for a review is at {links}.", f"told done {revision}")


def _picture(published: Iterable[Release], reader: Reader) -> str:
    """Size against divergence of the run's variants as it lies in a release at its commit; empty where none holds one.

    The Hub takes bitmaps alone as attachments, and this is a drawing.
    """
    for release in published:
        if release.sha and reader.file(release.repo, release.sha, PICTURE) is not None:
            place = url(f"{reader.hub.endpoint}/{release.repo}/resolve/{release.sha}/{PICTURE}")
            return f"\n\n![Size against divergence of the variants]({place})"
    return ""

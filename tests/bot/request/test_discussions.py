"""Requests in the discussions of a repo on the Hub: answered once, approved by members, queued, told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hubbot import __version__
from hubbot.bot.cli import app
from hubbot.bot.ledger import jobs
from hubbot.bot.ledger.alive import worker
from hubbot.bot.ledger.rows import JobState
from hubbot.bot.ledger.store import open_ledger
from hubbot.bot.request.answer import Desk
from hubbot.bot.request.discussions import answer_discussions
from hubbot.bot.round import look_at_releases
from hubbot.bot.stop import Stop
from hubbot.bot.worker import Tally, Terms, work
from hubbot.cards.card import PICTURE
from hubbot.errors import TokenRefused
from hubbot.hub.read.reader import Reader
from tests.bot.cheap import cheap_run, files_of_a_model, settings_for
from tests.bot.request.test_attend import planned
from tests.bot.request.test_parse import form
from tests.hub.server import Hub

REPO = "ours/requests"


@dataclass
class Place:
    hub: Hub
    desk: Desk
    token: str

    def open(self, text: str, who: str = "asker", title: str = "Please") -> int:
        repo = self.hub.repo(REPO)
        return self.hub._call(lambda: self.hub.open_discussion(repo, title, text, who, base=None)).num

    def say(self, num: int, text: str, who: str) -> None:
        item = self.hub.repo(REPO).discussions[num]
        self.hub._call(lambda: self.hub.add_comment(item, who, text))

    def edit(self, num: int, text: str) -> None:
        self.hub.repo(REPO).discussions[num].events[0]["data"]["latest"] = {"raw": text}

    def look(self) -> dict[str, str]:
        return answer_discussions(self.desk)

    def answers(self, num: int) -> list[str]:
        events = self.hub.repo(REPO).discussions[num].events
        return [one["data"]["latest"]["raw"] for one in events if one["author"]["name"] == "bot"]

    def queued(self) -> list[str]:
        return [row.model for row in jobs.jobs(self.desk.ledger, JobState.QUEUED)]


@pytest.fixture
def place(hub: Hub, tmp_path: Path) -> Iterator[Place]:
    token = hub.user("bot", orgs={"ours": "write"})
    for name, role in (("admin", "admin"), ("writer", "write"), ("reader", "read")):
        hub.user(name, orgs={"ours": role})
    hub.model(REPO, {"README.md": b"# Requests\n"})
    settings = settings_for(tmp_path, requests=REPO)
    with open_ledger(settings.watch.state) as ledger:
        desk = Desk(reader=Reader(hub.seen(token)), ledger=ledger, settings=settings, version=__version__, plan=planned)
        yield Place(hub, desk, token)


def test_a_request_is_answered_once_approved_by_a_member_made_and_told(place):
    sha = place.hub.model("maker/one", files_of_a_model(1))
    num = place.open(form("maker/one"))
    for _ in range(2):
        assert place.look() == {}
    [text] = place.answers(num)
    assert "| `Q8_0` |" in text
    assert "/approve" in text
    place.say(num, "/approve", "writer")
    for _ in range(2):
        place.look()
    assert place.queued() == ["maker/one"]
    assert f"at `{sha[:8]}` is queued" in place.answers(num)[-1]
    with worker(place.desk.ledger.path) as name:
        run = partial(cheap_run, settings=place.desk.settings, hub=place.desk.reader.hub)
        assert work(place.desk.ledger, run, Stop(), Terms(worker=name)).done == 1
    drawn = place.hub.commit("ours/one-GGUF", {PICTURE: b"<svg/>"})
    look_at_releases(place.desk.reader, place.desk.ledger, place.desk.settings)
    for _ in range(2):
        place.look()
    assert "Published: [ours/one-GGUF]" in place.answers(num)[-1]
    picture = f"({place.hub.endpoint}/ours/one-GGUF/resolve/{drawn}/{PICTURE})"
    assert place.answers(num)[-1].endswith(f"![Size against divergence of the variants]{picture}")
    assert len(place.answers(num)) == 3
    again = place.open("", title="Quantize maker/one")
    place.look()
    assert f"({place.hub.endpoint}/ours/one-GGUF)" in place.answers(again)[0]


def test_nobody_but_a_member_who_may_write_queues_anything(place):
    place.hub.model("maker/one", files_of_a_model(1))
    num = place.open(form("maker/one"))
    place.look()
    for who in ("asker", "reader", "nobody", "ours", ""):
        for order in ("/approve", "/retry"):
            place.say(num, order, who)
    place.look()
    assert place.queued() == []
    assert len(place.answers(num)) == 1, "nor does it make us write"
    place.say(num, "/approve", "admin")
    place.look()
    assert place.queued() == ["maker/one"]


def test_where_the_hub_shows_no_roles_the_settings_name_who_approves(place):
    place.hub.model("maker/one", files_of_a_model(1))
    outside = place.hub.user("bot", permissions={"ours": ("discussion.write",)}, scope="fineGrained")
    place.hub.rights.tokens[outside].user.orgs.clear()
    watch = place.desk.settings.watch.model_copy(update={"approvers": ("friend",)})
    settings = place.desk.settings.model_copy(update={"watch": watch})
    place.desk = replace(place.desk, reader=Reader(place.hub.seen(outside)), settings=settings)
    num = place.open(form("maker/one"))
    place.look()
    place.say(num, "/approve", "writer")
    place.look()
    assert place.queued() == []
    place.say(num, "/approve", "friend")
    place.look()
    assert place.queued() == ["maker/one"]


def test_a_lost_state_file_answers_nothing_twice(place, tmp_path):
    place.hub.model("maker/one", files_of_a_model(1))
    num = place.open(form("maker/one"))
    place.look()
    place.say(num, "/approve", "writer")
    place.look()
    before = place.answers(num)
    with open_ledger(tmp_path / "fresh.sqlite") as fresh:
        place.desk = replace(place.desk, ledger=fresh)
        place.look()
    assert place.answers(num) == before


def test_a_bot_that_dies_before_its_word_says_it_in_the_next_round(place):
    place.hub.model("maker/one", files_of_a_model(1))
    num = place.open(form("maker/one"))
    place.look()
    place.say(num, "/approve", "writer")
    place.hub.fail(r"POST .*/comment", status=400)
    assert place.look().keys() == {f"{REPO}#{num}"}
    assert place.queued() == ["maker/one"]
    place.hub.heal()
    place.look()
    assert len(place.answers(num)) == 2
    assert place.queued() == ["maker/one"]


def test_an_approval_is_of_the_request_and_the_commit_that_were_planned(place):
    place.hub.model("maker/one", files_of_a_model(1))
    place.hub.model("maker/two", files_of_a_model(2))
    num = place.open(form("maker/one"))
    place.look()
    place.say(num, "/approve", "writer")
    place.edit(num, form("maker/two"))
    for _ in range(2):
        place.look()
    assert place.queued() == []
    place.hub.model("maker/two", files_of_a_model(3))
    place.say(num, "/approve", "writer")
    for _ in range(2):
        place.look()
    assert place.queued() == []
    assert "has changed since it was planned" in place.answers(num)[-1]
    place.say(num, "/approve", "writer")
    place.look()
    assert place.queued() == ["maker/two"]


def test_a_form_that_is_edited_for_ever_is_answered_five_times(place):
    num = place.open(form("maker/x"))
    for number in range(8):
        place.edit(num, form(f"maker/m{number}"))
        place.look()
    assert len(place.answers(num)) == 5


def test_our_own_words_in_a_strangers_mouth_are_nobodys(place):
    place.hub.model("maker/one", files_of_a_model(1))
    first = place.open(form("maker/one"))
    place.look()
    other = place.open(form("maker/one"))
    place.say(other, place.answers(first)[0], "asker")
    place.look()
    assert place.answers(other) == place.answers(first)


def test_cancel_drops_what_waits(place):
    place.hub.model("maker/one", files_of_a_model(1))
    num = place.open(form("maker/one"))
    place.look()
    place.say(num, "/approve", "writer")
    place.look()
    place.say(num, "/cancel", "asker")
    place.look()
    assert place.queued() == ["maker/one"]
    place.say(num, "/cancel", "writer")
    place.look()
    assert place.queued() == []


def test_who_asks_chooses_variants_and_the_job_makes_those_alone(place):
    place.hub.model("maker/one", files_of_a_model(1))
    num = place.open(form("maker/one"))
    place.look()
    place.say(num, "/variants Q4_K_M", "nobody")
    place.say(num, "/variants gptq-4bit-128g", "asker")
    for _ in range(2):
        place.look()
    assert len(place.answers(num)) == 2
    assert "| `gptq-4bit-128g` |" in place.answers(num)[-1]
    assert "Q8_0" not in place.answers(num)[-1]
    place.say(num, "/approve", "writer")
    place.look()
    with worker(place.desk.ledger.path) as name:
        run = partial(cheap_run, settings=place.desk.settings, hub=place.desk.reader.hub)
        assert work(place.desk.ledger, run, Stop(), Terms(worker=name)).done == 1
    assert {name for _, name in place.hub.store.repos} == {REPO, "maker/one", "ours/one-GPTQ"}
    look_at_releases(place.desk.reader, place.desk.ledger, place.desk.settings)
    place.look()
    assert "Published: [ours/one-GPTQ]" in place.answers(num)[-1]
    rest = place.open(form("maker/one"))
    place.look()
    assert "not published yet: Q8" in place.answers(rest)[-1].replace("\\", ""), "the others were never made"


def test_cancel_ends_the_job_that_runs(place):
    place.hub.model("maker/one", files_of_a_model(1))
    num = place.open(form("maker/one"))
    place.look()
    place.say(num, "/approve", "writer")
    place.look()
    place.say(num, "/cancel", "writer")

    def run(job, commits):
        place.look()  # as the bot beside this one does
        return cheap_run(job, commits, settings=place.desk.settings, hub=place.desk.reader.hub)

    with worker(place.desk.ledger.path) as name:
        assert work(place.desk.ledger, run, Stop(), Terms(worker=name)) == Tally(dropped=1)
    assert "is being stopped" in place.answers(num)[-1]
    assert {name for _, name in place.hub.store.repos} == {REPO, "maker/one"}
    place.say(num, "/retry", "writer")
    place.look()
    assert place.queued() == ["maker/one"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (form("maker/nothing"), "shows no model"),
        (form("maker/one", "whatever fits"), "such as fit 8 GB"),
        (form("@everyone/x"), "is no model of the Hub"),
        ("x" * 100_000, "is not read"),
    ],
)
def test_what_is_not_made_is_told_and_cannot_be_approved(place, text, told):
    place.hub.model("maker/one", files_of_a_model(1))
    num = place.open(text)
    place.look()
    place.say(num, "/approve", "admin")
    place.look()
    assert 1 <= len(place.answers(num)) <= 2, "whose word counts is told once more"
    assert all(told in answer and " @e" not in answer for answer in place.answers(num))
    assert place.queued() == []


def test_pull_requests_and_closed_discussions_are_left_alone_and_a_refused_token_stops_the_round(place):
    num = place.open(form("maker/one"))
    place.hub.repo(REPO).discussions[num].status = "closed"
    assert place.look() == {}
    assert place.answers(num) == []
    place.hub.revoke(place.token)
    with pytest.raises(TokenRefused):
        place.look()


def test_a_round_of_the_watch_answers_and_a_dry_run_does_not(place, monkeypatch):
    place.hub.model("maker/one", files_of_a_model(1))
    num = place.open(form("maker/one"))
    monkeypatch.setenv("HF_TOKEN", place.token)
    monkeypatch.setenv("HF_ENDPOINT", place.hub.endpoint)
    monkeypatch.setattr("hubbot.job.pipeline.plan", lambda run, *, elsewhere: planned(run))
    monkeypatch.chdir(place.desk.settings.watch.state.parent)
    Path("hubbot.toml").write_text(
        f'variants = "Q8_0"\n[publish]\nnamespace = "ours"\n[watch]\nstate = "new.sqlite"\nrequests = "{REPO}"\n'
    )
    for options, answers in ((["--dry-run"], 0), (["--matrix"], 1), (["--once"], 1)):
        said = CliRunner().invoke(app, ["watch", *options])
        assert said.exit_code == 0, said.output
        assert len(place.answers(num)) == answers
    assert "`maker/one`" in place.answers(num)[0]

"""A request on GitHub, in front of a GitHub and a Hub that keep what they are told: who may start what, and one comment."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from hubbot import __version__
from hubbot.bot.github import GitHub as Client
from hubbot.bot.ledger.store import open_ledger
from hubbot.bot.request.answer import Desk
from hubbot.bot.request.attend import Start, attend, tell
from hubbot.bot.request.site import Site
from hubbot.domain import Family
from hubbot.errors import HubFailed, Unsupported
from hubbot.hub.read.reader import Reader
from hubbot.job.pipeline import Run
from hubbot.planning.needs import Need
from hubbot.planning.plan import Plan, PlannedSweep, PlannedVariant
from hubbot.release.licence import judge_licence
from tests.bot.cheap import cheap_run, files_of_a_model, settings_for
from tests.bot.request.github import BOT, REPO, TOKEN, GitHub
from tests.bot.request.test_parse import HOSTILE, form
from tests.hub.server import Hub


def planned(run: Run) -> Plan:
    """A plan as the survey would make it, of a variant for each name that is asked for."""
    names = run.settings.variants.replace("fit-8GB", "Q4_K_M").replace("fit-16GB", "Q8_0").split(",")
    names = list(dict.fromkeys(names))
    variants = tuple(
        PlannedVariant(name=name, family=Family.GGUF, file_bytes=10**9, weight_bytes=10**9, bits_per_weight=8.5)
        for name in names
    )
    need = Need(disk=2 * 10**9, ram=10**9, vram=0)
    return Plan(
        model=run.model,
        revision=run.settings.revision,
        architecture="LlamaForCausalLM",
        parameters=16,
        weight_bytes=64,
        device="cpu",
        variants=variants,
        sweeps=(PlannedSweep(variants=tuple(names), need=need, resumable=True),),
        need=need,
        budget=need,
        licence=judge_licence("mit"),
        gated=False,
    )


@dataclass
class Counter:
    """What answers requests, in front of a GitHub; every look at an issue is a run of its own."""

    github: GitHub
    hub: Hub
    desk: Desk
    runs: int = 100

    def site(self, run: int | None = None) -> Site:
        client = Client(repo=REPO, token=TOKEN, url=self.github.url)
        return Site(github=client, server="https://github.com", run=run or self.runs, me=BOT)

    def look(self, number: int) -> Start | None:
        self.runs += 1
        self.github.runs[self.runs] = "in_progress"
        started = attend(number, self.site(), self.desk)
        self.github.runs[self.runs] = "in_progress" if started else "completed"
        return started

    def shown(self, number: int) -> str:
        """The one comment there is, without its mark."""
        [text] = self.github.own(number)
        return text.partition("\n")[2]


@pytest.fixture
def counter(hub: Hub, tmp_path: Path) -> Iterator[Counter]:
    token = hub.user("bot", orgs={"ours": "write"})
    settings = settings_for(tmp_path)
    with GitHub() as github, open_ledger(settings.watch.state) as ledger:
        desk = Desk(reader=Reader(hub.seen(token)), ledger=ledger, settings=settings, version=__version__, plan=planned)
        yield Counter(github, hub, desk)


@pytest.fixture
def sha(hub: Hub) -> str:
    return hub.model("maker/one", files_of_a_model(1))


def request(counter: Counter, text: str | None = None, **options) -> int:
    number = counter.github.open(text or form("maker/one", "Q8_0"), **options)
    assert counter.look(number) is None
    return number


def test_from_the_form_to_the_pull_requests_there_is_one_comment(counter, sha):
    number = request(counter)
    text = counter.shown(number)
    assert "`maker/one`" in text
    assert "| `Q8_0` | 1.00 GB | 8.50 |" in text
    assert "Licence" in text
    assert "/approve" in text
    counter.github.say(number, "/approve", who="maintainer")
    assert counter.look(number) == Start(model="maker/one", revision=sha, variants="Q8_0")
    assert f"actions/runs/{counter.runs}" in counter.shown(number)
    pull = "https://huggingface.co/ours/one-GGUF/discussions/1"
    tell(number, counter.site(), result="success", published=[], pull_requests=[pull])
    text = counter.shown(number)
    assert f"- {pull} waits for your review." in text
    assert "artifacts `report-…`" in text
    assert "| `Q8_0` |" in text, "the plan stays below"


@pytest.mark.parametrize("way", ["/approve", "/retry", "label"])
def test_nobody_without_write_access_starts_anything(counter, sha, way):
    for who in ("asker", "triager", "nobody", "../../x", "", BOT + "x"):
        number = request(counter, who=who)
        if way == "label":
            counter.github.label(number, "approved", who=who)
        else:
            counter.github.say(number, way, who=who)
        assert counter.look(number) is None
        assert "takes write access" in counter.shown(number)


@pytest.mark.parametrize("who", ["maintainer", "owner"])
def test_a_label_of_a_maintainer_approves(counter, sha, who):
    number = request(counter)
    counter.github.label(number, "something-else", who=who)
    assert counter.look(number) is None
    counter.github.label(number, "approved", who=who)
    assert counter.look(number) == Start(model="maker/one", revision=sha, variants="Q8_0")


def test_an_approval_is_for_the_plan_that_could_be_seen(counter, hub, sha):
    """A form that is edited between plan and approval, or at the same moment, is planned anew and starts nothing."""
    other = hub.model("maker/two", files_of_a_model(2))
    number = request(counter)
    counter.github.issues[number]["body"] = form("maker/two")
    counter.github.say(number, "/approve", who="maintainer")
    assert counter.look(number) is None
    assert counter.look(number) is None, "what was said before the plan is never heeded later"
    assert "`maker/two`" in counter.shown(number)
    counter.github.say(number, "/approve", who="maintainer")
    assert counter.look(number) == Start(model="maker/two", revision=other, variants="")


def test_an_approval_between_the_look_at_the_issue_and_the_plan_is_of_the_old_plan(counter, hub, sha):
    hub.model("maker/two", files_of_a_model(2))
    number = request(counter)

    def slow(run: Run) -> Plan:
        counter.github.say(number, "/approve", who="maintainer")
        return planned(run)

    counter.github.issues[number]["body"] = form("maker/two")
    counter.desk = replace(counter.desk, plan=slow)
    assert counter.look(number) is None
    assert counter.look(number) is None


def test_a_new_commit_after_the_plan_changes_nothing_of_what_was_approved(counter, hub, sha):
    number = request(counter)
    hub.model("maker/one", files_of_a_model(7))
    counter.github.say(number, "/approve", who="maintainer")
    assert counter.look(number) == Start(model="maker/one", revision=sha, variants="Q8_0")


def test_a_run_that_is_started_once_more_edits_and_starts_the_same(counter, sha):
    number = request(counter)
    for _ in range(3):
        assert counter.look(number) is None
    assert len(counter.github.own(number)) == 1
    counter.github.say(number, "/approve", who="maintainer")
    started = counter.look(number)
    assert started
    assert attend(number, counter.site(), counter.desk) == started, "the same run, by Re-run"
    assert counter.look(number) is None, "another one"
    assert len(counter.github.own(number)) == 1


def test_a_second_approval_while_it_runs_starts_no_second_run(counter, sha):
    number = request(counter)
    counter.github.say(number, "/approve", who="maintainer")
    assert counter.look(number)
    first = counter.runs
    for order in ("/approve", "/retry"):
        counter.github.say(number, order, who="owner")
        assert counter.look(number) is None
        assert f"It runs already: [run {first}]" in counter.shown(number)


def test_a_failed_run_is_told_and_retried(counter, sha):
    number = request(counter)
    counter.github.say(number, "/approve", who="maintainer")
    assert counter.look(number)
    tell(number, counter.site(), result="failure", published=[], pull_requests=[])
    assert "failed. `/retry`" in counter.shown(number)
    counter.github.say(number, "/retry", who="maintainer")
    assert counter.look(number) == Start(model="maker/one", revision=sha, variants="Q8_0")


def test_a_run_that_never_told_its_end_is_asked_about(counter, sha):
    number = request(counter)
    counter.github.say(number, "/approve", who="maintainer")
    assert counter.look(number)
    counter.github.runs[counter.runs] = "completed"
    counter.github.say(number, "/retry", who="maintainer")
    assert counter.look(number)


def test_cancel_ends_the_run_and_its_late_word_does_not_speak_over_the_next_one(counter, sha):
    number = request(counter)
    counter.github.say(number, "/approve", who="maintainer")
    assert counter.look(number)
    first = counter.runs
    counter.github.say(number, "/cancel", who="asker")
    counter.look(number)
    assert counter.github.runs[first] == "in_progress"
    counter.github.say(number, "/cancel", who="maintainer")
    counter.look(number)
    assert counter.github.runs[first] == "completed"
    assert "is being cancelled" in counter.shown(number)
    counter.github.say(number, "/retry", who="maintainer")
    assert counter.look(number)
    before = counter.shown(number)
    tell(number, counter.site(first), result="cancelled", published=[], pull_requests=[])
    assert counter.shown(number) == before


def test_who_asks_may_choose_other_variants_and_a_stranger_may_not(counter, sha):
    number = request(counter)
    counter.github.say(number, "/variants Q4_K_M", who="nobody")
    counter.look(number)
    assert "Q4_K_M`" not in counter.shown(number).partition("<!-- hubbot:plan -->")[2]
    counter.github.say(number, "/variants Q4_K_M, Q5_K_M", who="asker")
    counter.look(number)
    assert "| `Q5_K_M` |" in counter.shown(number)
    counter.github.say(number, "/approve", who="maintainer")
    assert counter.look(number) == Start(model="maker/one", revision=sha, variants="Q4_K_M,Q5_K_M")


def test_what_is_published_is_answered_with_its_link(counter, hub, sha):
    from hubbot.domain import Job
    from hubbot.hub.rate_limit import RateLimit

    cheap_run(Job(model="maker/one", revision=sha), RateLimit(), settings=counter.desk.settings, hub=counter.desk.reader.hub)  # fmt: skip
    number = request(counter)
    text = counter.shown(number)
    assert f"[ours/one-GGUF]({hub.endpoint}/ours/one-GGUF)" in text
    assert "(rule `published`)" in text
    counter.github.say(number, "/approve", who="maintainer")
    assert counter.look(number) is None
    assert "nothing to approve" in counter.shown(number)


def test_what_the_same_repo_holds_is_made_again_with_what_is_asked_for(counter, hub, sha):
    """A release takes away what it does not hold itself; the GPTQ repo is none of this one's business."""
    from hubbot.domain import Job
    from hubbot.hub.rate_limit import RateLimit

    cheap_run(Job(model="maker/one", revision=sha), RateLimit(), settings=counter.desk.settings, hub=counter.desk.reader.hub)  # fmt: skip
    number = request(counter, form("maker/one", "Q4_K_M"))
    assert "`Q8_0` of the same repo are made again with it" in counter.shown(number)
    counter.github.say(number, "/approve", who="maintainer")
    assert counter.look(number) == Start(model="maker/one", revision=sha, variants="Q4_K_M,Q8_0")


def test_what_fits_a_memory_is_planned_and_judged_by_the_type_that_the_plan_has_chosen(counter, hub, sha):
    from hubbot.domain import Job
    from hubbot.hub.rate_limit import RateLimit

    cheap_run(Job(model="maker/one", revision=sha), RateLimit(), settings=counter.desk.settings, hub=counter.desk.reader.hub)  # fmt: skip
    number = request(counter, form("maker/one", "fit 16 GB"))
    assert "(rule `published`)" in counter.shown(number), "Q8_0 is there"
    counter.github.say(number, "/variants fit 8 GB", who="asker")
    counter.look(number)
    assert "not published yet: Q4" in counter.shown(number).replace("\\", "")
    assert "| `Q4_K_M` |" in counter.shown(number)
    counter.github.say(number, "/approve", who="maintainer")
    assert counter.look(number) == Start(model="maker/one", revision=sha, variants="fit-8GB,Q8_0")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (form("maker/nothing"), "shows no model"),
        (form("maker/closed"), "licence"),
        (form("maker/secret"), "shows no model"),
        (form("maker/one", "whatever fits"), "such as fit 8 GB"),
        ("please", "names no model"),
    ],
)
def test_what_is_not_made_is_told_with_its_reason_and_cannot_be_approved(counter, hub, sha, text, told):
    hub.model("maker/closed", files_of_a_model(3, licence="cc-by-nd-4.0"))
    hub.model("maker/secret", files_of_a_model(4), private=True)
    number = request(counter, text)
    assert told in counter.shown(number)
    counter.github.say(number, "/approve", who="owner")
    assert counter.look(number) is None
    assert len(counter.github.own(number)) == 1


def test_a_private_model_is_answered_as_one_that_is_not_there(counter, hub):
    hub.user("maker")
    counter.desk = replace(counter.desk, reader=Reader(hub.seen(hub.user("reader", orgs={"maker": "read"}))))
    hub.model("maker/secret", files_of_a_model(4), private=True)
    texts = [counter.shown(request(counter, form(f"maker/{name}"))) for name in ("secret", "absent")]
    assert texts[0].replace("secret", "absent") == texts[1]


def test_what_cannot_be_planned_is_a_sentence(counter, sha):
    def refuse(run: Run) -> Plan:
        raise Unsupported("@everyone <b>No</b> such layers.")

    counter.desk = replace(counter.desk, plan=refuse)
    text = counter.shown(request(counter))
    assert "cannot be planned" in text
    assert "<b>" not in text
    assert "@everyone" not in text


def test_what_strangers_write_is_shown_and_obeys_nobody(counter, sha):
    for attack in (*HOSTILE, "x" * 60_000):
        number = request(counter, form(attack, attack, attack), title=attack)
        counter.github.say(number, f"/approve {attack}", who="nobody")
        counter.github.say(number, f"/variants {attack}", who="asker")
        assert counter.look(number) is None
        text = counter.github.own(number)[0]
        assert len(text) < 65_536
        shown = re.sub(r"`[^`\n]*`", "", text.partition("\n")[2])
        assert not re.search(r"(?<![\w`])@\w", shown), "a mention"
        assert "](https://evil" not in shown
        assert "\x1b" not in text
        assert "\u202e" not in text


def test_the_mark_of_a_stranger_is_no_comment_of_ours(counter, sha):
    number = counter.github.open(form("maker/one"))
    forged = '<!-- hubbot:request {"model": "maker/one", "variants": null, "revision": "%s", "planned": "", "comment": 0, "event": 0, "run": null, "over": false} -->\n'
    counter.github.say(number, forged % ("1" * 40), who="asker")
    counter.look(number)
    counter.github.say(number, "/approve", who="maintainer")
    assert counter.look(number) == Start(model="maker/one", revision=sha, variants="")


@pytest.mark.parametrize("damage", ["{}", '{"model": 3}', "{" * 900 + "}"])
def test_a_damaged_mark_is_planned_anew_in_the_same_comment(counter, sha, damage):
    number = request(counter)
    [own] = [one for one in counter.github.comments[number] if one["user"]["login"] == BOT]
    own["body"] = f"<!-- hubbot:request {damage} -->\n" + own["body"].partition("\n")[2]
    counter.github.say(number, "/approve", who="maintainer")
    assert counter.look(number) is None
    assert "/approve" in counter.shown(number)


def test_a_pull_request_a_closed_issue_and_one_without_the_label_are_left_alone(counter, sha):
    for change in ({"state": "closed"}, {"pull_request": {}}, {"labels": []}):
        number = counter.github.open(form("maker/one"))
        counter.github.issues[number] |= change
        assert counter.look(number) is None
        assert counter.github.own(number) == []


@pytest.mark.parametrize("failing", [r"GET .*/comments", r"GET .*/events", r"POST .*/comments", r"GET .*permission"])
def test_a_github_that_fails_starts_nothing_and_the_next_look_does_it(counter, sha, failing):
    number = counter.github.open(form("maker/one"))
    if "POST" not in failing:
        counter.look(number)
    counter.github.say(number, "/approve", who="maintainer")
    counter.github.failures.append((failing, 502))
    with pytest.raises(HubFailed, match="502"):
        counter.look(number)
    if "POST" in failing:
        assert counter.look(number) is None
        counter.github.say(number, "/approve", who="maintainer")
    assert counter.look(number) == Start(model="maker/one", revision=sha, variants="")
    assert len(counter.github.own(number)) == 1
